//! Implements aggregated discovery (ADS), client and server. State machines without I/O: the resources of one type for
//! one kind of client (`view`), one type on a server's stream (`server` for delta, `sotw` for state of the world,
//! `session` for what both share), one type of a client (`client`, delta only). Around them: a view with many streams
//! (`shared`), the gRPC service (`service`, `stream`), and a client that reconnects (`subscribe`, `backoff`). What the
//! resources mean is up to the user of this crate.

pub mod backoff;
pub mod client;
pub mod server;
pub mod service;
pub mod session;
pub mod shared;
pub mod sotw;
pub mod stream;
pub mod stubs;
pub mod subscribe;
pub mod view;

#[cfg(test)]
mod model;
