//! Checks the health of endpoints: which address is due (`schedule`), whether it accepts TCP connections (`tcp`), and
//! whether it requires a client certificate (`mtls`); and how far other clusters' gateways are (`matrix`).

pub mod matrix;
pub mod mtls;
pub mod schedule;
pub mod tcp;
