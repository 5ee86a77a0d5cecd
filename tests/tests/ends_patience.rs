//! Clients that take their time where a gateway itself speaks TLS: those that hold places without a handshake, and those
//! that have closed one direction.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use isthmus_tests::client::{End, dial, read_exactly, rest};
use isthmus_tests::endpoint::Endpoint;
use isthmus_tests::ends::{Domains, HOST, connect};
use isthmus_tests::hello::hello;
use isthmus_tests::wait::until;

/// As vector#26126: silent clients, slow ones, and ones that stop within the handshake.
#[test]
fn ends_terminate_takes_places_back_from_clients_without_a_handshake() {
    const PLACES: usize = 12;
    let domains = Domains::new();
    domains.issue("east", "app");
    let service = Endpoint::new();
    let east = domains
        .terminating(&["app"], service.address())
        .with(&format!("limits: {{ connections: {PLACES} }}"))
        .with("timeouts: { hello: 1s }")
        .start();
    let config = domains.client("east", "app");
    let mut holders: Vec<TcpStream> = (0..PLACES).map(|_| dial(east.address())).collect();
    until("all places are taken", || east.metrics().sum("isthmus_connections_active", &[]) > 11.5);
    let flight = hello(HOST);
    for (number, holder) in holders.iter_mut().enumerate() {
        match number % 3 {
            0 => {}
            1 => holder.write_all(&flight[..1]).unwrap(),
            _ => holder.write_all(&flight).unwrap(),
        }
    }
    let slow = thread::spawn(move || {
        for byte in 1..4 {
            thread::sleep(Duration::from_millis(500));
            for holder in holders.iter_mut().skip(1).step_by(3) {
                let _closed = holder.write_all(&flight[byte..=byte]);
            }
        }
        holders
    });
    until("a valid client has a place", || {
        let mut tls = connect(&config, east.address());
        let sent = tls.write_all(b"hello");
        sent.is_ok() && service.waiting().is_some_and(|mut served| read_exactly(&mut served, 5) == b"hello")
    });
    for mut holder in slow.join().unwrap() {
        assert_ne!(rest(&mut holder).1, End::Open);
    }
    for reason in ["client_silent", "hello_timeout", "tls_failed"] {
        until(reason, || east.log().count(|line| line.reason() == reason) == PLACES / 3);
    }
}

/// As ghostunnel#795, in `terminate`: a client that has sent its close_notify gets all that trickles, for as long as it
/// does; in silence its connection ends.
#[test]
fn ends_terminate_half_closed_connection_ends_when_silent() {
    let domains = Domains::new();
    domains.issue("east", "app");
    let service = Endpoint::new();
    let east = domains.terminating(&["app"], service.address()).with("timeouts: { half_closed: 1s }").start();
    let mut tls = connect(&domains.client("east", "app"), east.address());
    tls.write_all(b"request").unwrap();
    tls.conn.send_close_notify();
    tls.flush().unwrap();
    let mut served = service.accept();
    assert_eq!(rest(&mut served), (b"request".to_vec(), End::Fin));
    let mut got = [0];
    for _ in 0..12 {
        thread::sleep(Duration::from_millis(250));
        served.write_all(b"x").unwrap();
        tls.read_exact(&mut got).unwrap();
    }
    assert_eq!(tls.read(&mut got).unwrap(), 0, "close_notify, not a cut");
    let peer = tls.sock.local_addr().unwrap();
    assert_eq!(east.log().line_of(peer).reason(), "half_close_timeout");

    // The other direction: the service has closed, the client trickles.
    let mut tls = connect(&domains.client("east", "app"), east.address());
    tls.write_all(b"request").unwrap();
    let mut served = service.accept();
    assert_eq!(read_exactly(&mut served, 7), b"request");
    served.shutdown(Shutdown::Write).unwrap();
    assert_eq!(tls.read(&mut got).unwrap(), 0);
    for _ in 0..12 {
        thread::sleep(Duration::from_millis(250));
        tls.write_all(b"x").unwrap();
        assert_eq!(read_exactly(&mut served, 1), b"x");
    }
    assert_eq!(rest(&mut served), (Vec::new(), End::Fin));
    let peer = tls.sock.local_addr().unwrap();
    assert_eq!(east.log().line_of(peer).reason(), "half_close_timeout");
}
