//! The registry of a cluster, the agent that serves it, and what gateways follow an agent with. From the ground up:
//! the model of services (`host`, `locality`, `cluster`, `slice`, `config::services`); discovery (`ads`, over `serve`
//! and `dial`; names by `resolve`); a registry (`registry`), what of it others may see (`exports`, `reachability`, `proofs`), and what of
//! theirs comes in (`imports`, `accepted`, `held`; `probes` and `probing` while they are silent); other worlds' tables
//! (`envoy` for stock Envoys, `foreign` from control planes); how clusters meet (`join`) and what they say of their
//! trust domains later (`bundles`); certificates for who has one and who has a token (`issuing`, and `enrol` on the
//! other side); and the `agent` that is made of it. `http` serves the pages of both programs.

pub mod accepted;
pub mod admin;
pub mod ads;
pub mod agent;
mod believed;
pub mod bundles;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod dial;
pub mod enrol;
pub mod envoy;
pub mod exports;
pub mod foreign;
pub mod held;
pub mod host;
pub mod http;
pub mod imports;
pub mod issuing;
pub mod join;
pub mod locality;
pub mod outbound;
pub mod probes;
pub mod probing;
pub mod proofs;
pub mod proto;
pub mod reachability;
pub mod registry;
pub mod resolve;
pub mod serve;
pub mod slice;

pub use host::{HostName, HostPattern};
pub use locality::Locality;
pub use slice::Slice;
