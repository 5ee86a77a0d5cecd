//! Delta discovery. Machines without sockets: what a server has for one kind of receiver (`view`), one stream
//! of a server (`server`), one type of a client (`client`). Around them: a view that many follow (`shared`), the
//! gRPC service (`service`), and a client that comes back (`subscribe`). Not what the resources mean.

pub mod client;
pub mod server;
pub mod service;
pub mod shared;
pub mod subscribe;
pub mod view;

#[cfg(test)]
mod model;
