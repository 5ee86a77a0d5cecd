//! gRPC over mTLS: clients and servers, the budget of each identity (`budget`, `metered`), closing connections whose
//! peer is no longer trusted (`revocation_watch`), and name resolution (`resolve`). The services are elsewhere.

pub mod budget;
pub mod dial;
pub mod metered;
pub mod resolve;
pub mod revocation_watch;
pub mod serve;
