//! Reports of gateways to the agent of their cluster, on the port of xDS: which endpoints a gateway found unhealthy, and
//! how it reaches the gateways of other clusters. `client` sends them and `server` receives them; `wire` bounds and
//! validates them. What follows from a report is up to the agent.

pub mod client;
mod pace;
pub mod server;
pub mod stubs;
mod wire;

pub use wire::{Part, Report, Unhealthy, WireError};
