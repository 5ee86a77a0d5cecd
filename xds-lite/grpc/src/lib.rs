//! gRPC over mTLS: dialling and serving, what each identity may take (`budget`, `metered`), for how long it is trusted
//! (`revocation_watch`), and the addresses of names (`resolve`). Not what is served.

pub mod budget;
pub mod dial;
pub mod metered;
pub mod resolve;
pub mod revocation_watch;
pub mod serve;
