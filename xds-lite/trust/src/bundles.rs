//! Exchanges trust bundles and deny-lists with peers after a join: updates arrive on the authenticated
//! stream, and a peer's agent speaks for its own trust domain only. `published` parses an update, `rule`
//! decides whether it may replace the known one, `known` reads what is on disk, `keeper` writes it. A gateway
//! stores what its own agent trusts (`mirror`). The first
//! meeting of two agents is in `join`.

mod keeper;
pub(crate) mod known;
mod mirror;
pub(crate) mod published;
mod rule;
mod wire;

#[cfg(test)]
mod tests;

pub use keeper::{BundleUpdate, Keeper};
pub use mirror::Mirror;
pub use published::PublishedError;
pub use rule::{Refusal, Remedy};
pub use wire::encode;
