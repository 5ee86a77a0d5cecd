//! Connections that move to another endpoint beyond what `failover` covers: priorities, slow connects, servers that hang,
//! limits, and gateways of other clusters that have reached no endpoint.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod doors;
mod hedge;
mod limits;
mod priorities;
mod silent;

use std::net::SocketAddr;

use isthmus_tests::client::{End, alert, rest, send};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::log::Line;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::until;

const HOST: &str = "web.example";

fn gateway(keys: &[&str], endpoints: &[SocketAddr], more: &str) -> Gateway {
    Setup::new(service(HOST, keys, endpoints)).with(more).start()
}

/// Makes one call that the client ends; returns its log line.
#[track_caller]
fn call(gateway: &Gateway, hello: &[u8]) -> Line {
    let line = gateway.call(hello);
    assert_eq!(line.reason(), "client_closed", "{line:?}");
    line
}

/// Makes a call that is refused with alert 80; returns its log line.
#[track_caller]
fn refused(gateway: &Gateway, hello: &[u8]) -> Line {
    let mut client = send(gateway.address(), hello);
    assert_eq!(rest(&mut client), (alert(80), End::Fin));
    gateway.log().line_of(client.local_addr().unwrap())
}

/// Puts an endpoint before those of the gateway's only service.
#[track_caller]
fn put_first(gateway: &Gateway, endpoint: SocketAddr) {
    gateway.edit("endpoints: [", &format!("endpoints: [{{address: \"{endpoint}\"}}, "));
}

/// Waits until nothing of the service is under way any more.
#[track_caller]
fn until_idle(gateway: &Gateway) {
    until("all counters are back at zero", || {
        let metrics = gateway.metrics();
        [
            "isthmus_service_connects_pending",
            "isthmus_service_retries_active",
            "isthmus_service_connections_active",
        ]
        .iter()
        .all(|metric| metrics.has(metric) && metrics.sum(metric, &[]) == 0.0)
    });
}
