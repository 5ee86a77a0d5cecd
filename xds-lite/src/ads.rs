//! Delta discovery as machines without sockets: what a server has for one kind of receiver (`view`), one
//! stream of a server (`server`), one stream of a client (`client`). Not the transport, and not what the
//! resources mean.

pub mod client;
pub mod server;
pub mod view;

#[cfg(test)]
mod model;
