//! The registry's model: what a service is called and where an endpoint stands. The gateway reads it
//! from its own file today; the agent that exchanges it between clusters is not here yet.

pub mod accepted;
pub mod ads;
pub mod config;
pub mod dial;
pub mod host;
pub mod issuing;
pub mod locality;
pub mod proto;
pub mod registry;
pub mod serve;
pub mod slice;

pub use host::{HostName, HostPattern};
pub use locality::Locality;
pub use slice::Slice;
