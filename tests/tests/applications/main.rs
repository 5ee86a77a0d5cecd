//! Real databases and programs without TLS, through a gateway that originates and one that terminates: what they do
//! without the gateways, they do with them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic anywhere"
)]

mod connect_errors;
mod grpc;
mod logins;
mod mariadb;
mod pgwire;
mod postgres;
mod program;
mod redis;
mod replication;
mod ssh;

use std::net::SocketAddr;

use isthmus_tests::ends::Domains;
use isthmus_tests::gateway::Gateway;

/// The gateways of an application without TLS → originate → terminate → a service without TLS.
struct Way {
    west: Gateway,
    east: Gateway,
}

impl Way {
    /// The way of the caller `app` to a service on loopback.
    fn to(domains: &Domains, service: SocketAddr) -> Way {
        let east = domains.terminating(&["app"], service).start();
        let west = domains.originating("app", &[east.address()]).start();
        Way { west, east }
    }

    /// Where the application connects.
    fn address(&self) -> SocketAddr {
        self.west.address()
    }
}
