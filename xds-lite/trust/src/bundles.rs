//! What agents say of their trust domains once they know each other, and what is taken of it: later bundles and
//! deny-lists come on the authenticated stream, and a domain's own agent is believed about that domain alone.
//! What is said is read in `said`, whether it may replace what is known is decided in `rule`, where it stands is in
//! `known`, and `keeper` writes it. How two agents meet first is in `join`.

mod keeper;
pub(crate) mod known;
pub(crate) mod published;
mod rule;
mod wire;

#[cfg(test)]
mod tests;

pub use keeper::{BundleUpdate, Keeper};
pub use published::PublishedError;
pub use rule::{Refusal, Remedy};
pub use wire::encode;
