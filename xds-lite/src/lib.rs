//! The registry of a cluster, the agent that serves it, and what gateways follow an agent with: the model of
//! services (`host`, `locality`, `slice`, `config::services`), discovery (`ads`, over `serve` and `dial`), the
//! registry and the agent. The exchange between clusters is not here yet.

pub mod accepted;
pub mod admin;
pub mod ads;
pub mod agent;
pub mod cli;
pub mod config;
pub mod dial;
pub mod exports;
pub mod foreign;
pub mod host;
pub mod imports;
pub mod issuing;
pub mod kept;
pub mod locality;
pub mod outbound;
pub mod proofs;
pub mod proto;
pub mod reachability;
pub mod registry;
pub mod serve;
pub mod slice;

pub use host::{HostName, HostPattern};
pub use locality::Locality;
pub use slice::Slice;
