//! Discovery. Machines without sockets: what a server has for one kind of receiver (`view`), one type on a
//! stream of a server (`server` in delta, `sotw` in states of the world, `session` for what both are to the
//! service), one type of a client (`client`, delta only). Around them: a view that many follow (`shared`), the
//! gRPC service (`service`, `stream`), and a client that comes back (`subscribe`, `backoff`). Not what the resources mean.

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
