//! Health of endpoints, as an agent or a gateway sees it by itself: when to check which (`schedule`), whether it accepts
//! TCP connections (`tcp`), and whether it requires a client certificate (`mtls`).

pub mod mtls;
pub mod schedule;
pub mod tcp;
