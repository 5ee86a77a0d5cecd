//! First flights at a service whose TLS ends at the gateway: the same verdicts as where it passes through, handshakes in
//! any pieces, and nothing of a flight that fails reaches the service.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;

use isthmus_tests::client::{End, alert, dial, read_exactly, rest, send};
use isthmus_tests::endpoint::Endpoint;
use isthmus_tests::ends::{Domains, HOST};
use isthmus_tests::flights::{malformed, not_tls, well_formed};
use isthmus_tests::hello::{Hello, records};
use isthmus_tests::tls::ClientStream;
use isthmus_tests::wait::until;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

#[test]
fn ends_hello_that_is_malformed_is_refused_as_in_passthrough() {
    let domains = Domains::new();
    let service = Endpoint::new();
    let east = domains.terminating(&["app"], service.address()).start();
    let plain = not_tls().into_iter().map(|bytes| ("not TLS".to_owned(), bytes, "not_tls", 50));
    let bad = malformed(HOST).into_iter().map(|(what, bytes)| (what, bytes, "hello_malformed", 50));
    let unknown = ["other.example", "outbound_.80_._.db.example"]
        .map(|name| (name.to_owned(), Hello::new(name).bytes(), "sni_unmatched", 112));
    for (what, bytes, reason, code) in plain.chain(bad).chain(unknown) {
        let mut client = send(east.address(), &bytes);
        assert_eq!(rest(&mut client), (alert(code), End::Fin), "{what}");
        assert_eq!(east.log().line_of(client.local_addr().unwrap()).reason(), reason, "{what}");
    }
    assert!(service.is_untouched());
}

/// Each gets an answer of the gateway's own TLS: a handshake that the client never finishes, or an alert.
#[test]
fn ends_hello_that_is_well_formed_is_answered_and_reaches_nobody() {
    let domains = Domains::new();
    let service = Endpoint::new();
    let east = domains.terminating(&["app"], service.address()).start();
    for (what, pieces) in well_formed(HOST) {
        let mut client = dial(east.address());
        for piece in pieces {
            client.write_all(&piece).unwrap();
        }
        let kind = read_exactly(&mut client, 1)[0];
        assert!([21, 22].contains(&kind), "{what}: a record of type {kind}");
        client.shutdown(Shutdown::Write).unwrap();
        assert_ne!(rest(&mut client).1, End::Open, "{what}");
        assert_eq!(east.log().line_of(client.local_addr().unwrap()).reason(), "tls_failed", "{what}");
    }
    let whole = Hello::new(HOST).bytes();
    for length in 1..whole.len() {
        let mut client = send(east.address(), &whole[..length]);
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut client).1, End::Fin, "cut after {length}");
    }
    until("each truncated hello is logged", || {
        east.log().count(|line| line.reason() == "hello_incomplete") == whole.len() - 1
    });
    assert!(service.is_untouched());
}

/// How a flight is cut, or put into other records.
type Pieces = dyn Fn(&[u8]) -> Vec<Vec<u8>>;

fn chunks(bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
    bytes.chunks(size).map(<[u8]>::to_vec).collect()
}

/// Begins TLS with the ClientHello in these pieces.
fn connect_in(pieces: &Pieces, config: &Arc<ClientConfig>, mut stream: TcpStream) -> ClientStream {
    let mut tls = ClientConnection::new(Arc::clone(config), ServerName::try_from(HOST).unwrap()).unwrap();
    let mut flight = Vec::new();
    tls.write_tls(&mut flight).unwrap();
    for piece in pieces(&flight) {
        stream.write_all(&piece).unwrap();
    }
    StreamOwned::new(tls, stream)
}

#[test]
fn ends_hello_in_any_pieces_completes_the_handshake() {
    const HEADER: usize = 5;
    let domains = Domains::new();
    domains.issue("east", "app");
    let service = Endpoint::new();
    let east = domains.terminating(&["app"], service.address()).start();
    let config = domains.client("east", "app");
    let ways: [&Pieces; 5] = [
        &|flight| chunks(flight, 1),
        &|flight| vec![records(&flight[HEADER..], 1)],
        &|flight| vec![records(&flight[HEADER..], 100)],
        &|flight| chunks(&records(&flight[HEADER..], 7), 3),
        // The begin of the record's header, of the message's, and the rest.
        &|flight| vec![flight[..3].to_vec(), flight[3..7].to_vec(), flight[7..].to_vec()],
    ];
    for (number, pieces) in ways.into_iter().enumerate() {
        let mut tls = connect_in(pieces, &config, dial(east.address()));
        tls.write_all(b"hello").unwrap();
        let mut served = service.accept();
        assert_eq!(read_exactly(&mut served, 5), b"hello", "{number}");
        served.write_all(b"hi").unwrap();
        let mut got = [0; 2];
        tls.read_exact(&mut got).unwrap();
    }
}
