//! TLS that a gateway begins for applications without it, and ends for services without it: what both ends receive, how
//! each end is passed on, and what happens to connections that fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use isthmus_tests::bulk::{receive, send};
use isthmus_tests::client::{End, dial, echo, read_exactly, reset, rest};
use isthmus_tests::endpoint::{BlackHole, Endpoint, Scripted, closed};
use isthmus_tests::ends::{Domains, HOST, connect, connect_to, id, tls_endpoint};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::tls::ClientStream;
use isthmus_tests::wait::{throughout, until};

const MIB: u64 = 1 << 20;

/// A plaintext service that sends a greeting and echoes until its client closes.
fn greeter(greeting: &'static [u8]) -> Scripted {
    Scripted::unread(move |mut stream| {
        let _gone = stream.write_all(greeting).and_then(|()| {
            let mut from = stream.try_clone()?;
            io::copy(&mut from, &mut stream)
        });
    })
}

/// The gateways of plain application → originate → terminate → plain service.
fn both(domains: &Domains, endpoint: SocketAddr) -> (Gateway, Gateway) {
    let east = domains.terminating(&["app"], endpoint).start();
    let west = domains.originating("app", &[east.address()]).start();
    (west, east)
}

/// Ends a TLS client's side in order.
fn close_notify(tls: &mut ClientStream) {
    tls.conn.send_close_notify();
    tls.flush().unwrap();
}

#[test]
fn ends_plain_application_reaches_plain_service() {
    let domains = Domains::new();
    for greeting in [&b"server first"[..], b""] {
        let backend = greeter(greeting);
        let (west, east) = both(&domains, backend.address());
        let mut app = dial(west.address());
        // A server that speaks first needs no byte of its client.
        assert_eq!(read_exactly(&mut app, greeting.len()), greeting);
        echo(&mut app, b"hello");
        app.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut app), (Vec::new(), End::Fin));
        let line = west.log().line_of(app.local_addr().unwrap());
        assert_eq!(line.reason(), "client_closed", "{line:?}");
        assert_eq!(
            (line.text("caller"), line.text("server_identity")),
            (&*id("east", "app"), &*id("east", "server"))
        );
        assert_eq!((line.number("bytes_in"), line.number("bytes_out")), (5, 5 + greeting.len() as u64));
        let line = east.log().wait("the connection", |line| line.reason() == "client_closed");
        assert_eq!((line.text("caller"), line.text("sni")), (&*id("east", "app"), HOST));
        assert_eq!((line.number("bytes_in"), line.number("bytes_out")), (5, 5 + greeting.len() as u64));
    }
}

#[test]
fn ends_carry_bulk_both_ways_unchanged() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let (west, _east) = both(&domains, backend.address());
    let mut app = dial(west.address());
    let mut served = backend.accept();
    thread::scope(|scope| {
        let mut own = app.try_clone().unwrap();
        let up = scope.spawn(move || send(&mut own, 20 * MIB).unwrap());
        let mut theirs = served.try_clone().unwrap();
        let down = scope.spawn(move || send(&mut theirs, 20 * MIB).unwrap());
        let got = scope.spawn(move || receive(&mut served, 20 * MIB).unwrap());
        assert_eq!(receive(&mut app, 20 * MIB).unwrap(), down.join().unwrap());
        assert_eq!(got.join().unwrap(), up.join().unwrap());
    });
}

#[test]
fn ends_tls_application_reaches_plain_service_through_passthrough() {
    let domains = Domains::new();
    let backend = greeter(b"hi ");
    let east = domains.terminating(&["app"], backend.address()).start();
    let west = Setup::new(service(HOST, &[], &[east.address()])).start();
    domains.issue("east", "app");
    let mut tls = connect(&domains.client("east", "app"), west.address());
    tls.write_all(b"there").unwrap();
    let mut got = [0; 8];
    tls.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hi there");
    close_notify(&mut tls);
    assert_eq!(tls.read(&mut got).unwrap(), 0, "close_notify, not a cut");
}

#[test]
fn ends_plain_application_reaches_mtls_service_through_passthrough() {
    let domains = Domains::new();
    domains.issue("east", "server");
    let backend = tls_endpoint(domains.server("server"), |tls| {
        let mut got = [0; 4];
        tls.read_exact(&mut got).unwrap();
        tls.write_all(&got).unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
    });
    let east = Setup::new(service(HOST, &[], &[backend.address()])).start();
    let west = domains.originating("app", &[east.address()]).start();
    let mut app = dial(west.address());
    echo(&mut app, b"ping");
    assert_eq!(rest(&mut app), (Vec::new(), End::Fin));
    drop(app);
    let line = east.log().wait("the connection", |line| line.text("sni") == HOST);
    assert_eq!(line.text("caller"), "", "passthrough sees no identity");
}

/// Its own service needs no TLS within the gateway, only its access.
#[test]
fn ends_originate_to_own_terminated_service_stays_inside() {
    let domains = Domains::new();
    let backend = greeter(b"");
    let terminated = domains.terminated(HOST, &["app"], &[], backend.address());
    let listener = |caller: &str| {
        let keys = domains.issue("east", caller);
        let id = id("east", caller);
        format!(
            "- {{ name: {caller}, address: \"127.0.0.1:0\", side: outbound, mode: originate, service: {HOST}, \
             identity: {id}, {keys} }}"
        )
    };
    let listeners = ["app", "other"].map(listener).join("\n");
    let gateway = Setup::new(terminated).with(&domains.trust_yaml()).listeners(&listeners).start();
    echo(&mut dial(gateway.at("listener app")), b"inside");
    let mut other = dial(gateway.at("listener other"));
    assert_eq!(rest(&mut other).1, End::Reset);
    assert_eq!(gateway.log().line_of(other.local_addr().unwrap()).reason(), "identity_denied");
    assert_eq!(backend.accepted(), 1);
}

/// As envoy#11619: the request is followed by close_notify, the answer comes later.
#[test]
fn ends_half_close_keeps_the_answer() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let (west, east) = both(&domains, backend.address());
    domains.issue("east", "app");
    let mut tls = connect(&domains.client("east", "app"), east.address());
    tls.write_all(b"request").unwrap();
    close_notify(&mut tls);
    let mut served = backend.accept();
    assert_eq!(rest(&mut served), (b"request".to_vec(), End::Fin));
    thread::sleep(Duration::from_secs(2));
    let sending = thread::spawn(move || send(&mut served, 10 * MIB).unwrap());
    assert_eq!(receive(&mut tls, 10 * MIB).unwrap(), sending.join().unwrap());
    assert_eq!(tls.read(&mut [0]).unwrap(), 0, "close_notify, not a cut");

    let mut app = dial(west.address());
    app.write_all(b"request").unwrap();
    app.shutdown(Shutdown::Write).unwrap();
    let mut served = backend.accept();
    assert_eq!(rest(&mut served), (b"request".to_vec(), End::Fin));
    let sending = thread::spawn(move || send(&mut served, 10 * MIB).unwrap());
    assert_eq!(receive(&mut app, 10 * MIB).unwrap(), sending.join().unwrap());
    assert_eq!(rest(&mut app), (Vec::new(), End::Fin));
}

/// As ghostunnel#795: what trickles is not cut, what is silent is closed at its timeout.
#[test]
fn ends_half_closed_connection_ends_when_silent() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let east = domains.terminating(&["app"], backend.address()).start();
    let west = domains.originating("app", &[east.address()]).with("timeouts: { half_closed: 1s }").start();
    let mut app = dial(west.address());
    app.write_all(b"request").unwrap();
    app.shutdown(Shutdown::Write).unwrap();
    let mut served = backend.accept();
    for _ in 0..12 {
        thread::sleep(Duration::from_millis(250));
        served.write_all(b"x").unwrap();
        assert_eq!(read_exactly(&mut app, 1), b"x");
    }
    assert_eq!(rest(&mut app), (Vec::new(), End::Fin));
    assert_eq!(west.log().line_of(app.local_addr().unwrap()).reason(), "half_close_timeout");
}

/// As linkerd2-proxy#944: no byte waits for another write.
#[test]
fn ends_last_byte_leaves_a_blocked_session() {
    const SIZE: usize = 1_000_003;
    let domains = Domains::new();
    let backend = Endpoint::new();
    let (west, _east) = both(&domains, backend.address());
    let mut app = dial(west.address());
    let mut served = backend.accept();
    app.write_all(&vec![b'x'; SIZE]).unwrap();
    thread::sleep(Duration::from_millis(500));
    assert!(read_exactly(&mut served, SIZE).iter().all(|byte| *byte == b'x'));
}

#[test]
fn ends_pass_on_resets() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let (west, east) = both(&domains, backend.address());
    domains.issue("east", "app");
    let client = domains.client("east", "app");

    let mut tls = connect(&client, east.address());
    tls.write_all(b"before").unwrap();
    let mut served = backend.accept();
    assert_eq!(read_exactly(&mut served, 6), b"before");
    reset(tls.sock);
    assert_eq!(rest(&mut served).1, End::Reset);

    let mut tls = connect(&client, east.address());
    tls.write_all(b"before").unwrap();
    let mut served = backend.accept();
    assert_eq!(read_exactly(&mut served, 6), b"before");
    reset(served);
    assert_eq!(tls.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    // Through both gateways, in both directions.
    let mut app = dial(west.address());
    echo_once(&mut app, &mut backend.accept());
    let mut app = dial(west.address());
    let mut served = backend.accept();
    echo_once(&mut app, &mut served);
    reset(app);
    assert_eq!(rest(&mut served).1, End::Reset);
    let mut app = dial(west.address());
    let mut served = backend.accept();
    echo_once(&mut app, &mut served);
    reset(served);
    assert_eq!(rest(&mut app).1, End::Reset);
}

fn echo_once(app: &mut TcpStream, served: &mut TcpStream) {
    app.write_all(b"ping").unwrap();
    assert_eq!(read_exactly(served, 4), b"ping");
    served.write_all(b"pong").unwrap();
    assert_eq!(read_exactly(app, 4), b"pong");
}

/// A FIN without close_notify may cut off what the peer meant to send.
#[test]
fn ends_tls_cut_without_close_notify_is_a_reset() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let east = domains.terminating(&["app"], backend.address()).start();
    domains.issue("east", "app");
    let mut tls = connect(&domains.client("east", "app"), east.address());
    tls.write_all(b"part").unwrap();
    let mut served = backend.accept();
    assert_eq!(read_exactly(&mut served, 4), b"part");
    tls.sock.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut served).1, End::Reset);
    east.log().wait("the cut", |line| line.reason() == "client_reset");

    let cutting = tls_endpoint(domains.server("server"), |tls| {
        tls.write_all(b"part").unwrap();
        tls.sock.shutdown(Shutdown::Write).unwrap();
        let _gone = tls.read(&mut [0]);
    });
    let west = domains.originating("app", &[cutting.address()]).start();
    let mut app = dial(west.address());
    assert_eq!(read_exactly(&mut app, 4), b"part");
    assert_eq!(rest(&mut app).1, End::Reset);
    assert_eq!(west.log().line_of(app.local_addr().unwrap()).reason(), "server_reset");
}

#[test]
fn ends_originate_moves_on_to_another_endpoint() {
    let domains = Domains::new();
    domains.issue("east", "server");
    domains.issue("east", "impostor");
    let good = tls_endpoint(domains.server("server"), |tls| {
        let _gone = tls.write_all(b"welcome");
        let _gone = tls.read(&mut [0]);
    });
    let impostor = tls_endpoint(domains.server("impostor"), |tls| {
        let _refused = tls.read(&mut [0]);
    });
    let closing = Scripted::unread(drop);
    let silent = BlackHole::new();
    for bad in [closed(), impostor.address(), closing.address(), silent.address()] {
        let setup = domains.originating("app", &[bad, good.address()]);
        let west = setup.with("timeouts: { connect: 500ms }").start();
        for _ in 0..2 {
            let mut app = dial(west.address());
            // What the application has sent meanwhile is not lost.
            app.write_all(b"early").unwrap();
            assert_eq!(read_exactly(&mut app, 7), b"welcome", "{bad}");
        }
    }
}

/// An endpoint without TLS gets no ClientHello of the gateway's own, which it would count as an error.
#[test]
fn ends_terminate_moves_on_without_asking_the_endpoint_in_tls() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let more = format!("endpoints: [{{address: \"{}\"}}, ", closed());
    let terminated = domains.terminated(HOST, &["app"], &[], backend.address());
    let terminated = terminated.replace("endpoints: [", &more);
    let east = Setup::new(terminated).with(&domains.trust_yaml()).start();
    domains.issue("east", "app");
    let client = domains.client("east", "app");
    for _ in 0..4 {
        let mut tls = connect(&client, east.address());
        tls.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&mut backend.accept(), 5), b"hello");
    }
    assert!(backend.is_untouched());
    let asked = east.metrics();
    assert_eq!(asked.sum("isthmus_hello_checks_total", &[]), 0.0);
}

#[test]
fn ends_stalled_handshake_has_a_deadline() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let east = domains.terminating(&["app"], backend.address()).with("timeouts: { hello: 1s }").start();
    let mut stalled = dial(east.address());
    stalled.write_all(&hello(HOST)).unwrap();
    let (flight, end) = rest(&mut stalled);
    assert!(!flight.is_empty() && end != End::Open, "{end:?}");
    assert_eq!(east.log().line_of(stalled.local_addr().unwrap()).reason(), "tls_failed");
    assert!(backend.is_untouched());

    let mute = Scripted::unread(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let setup = domains.originating("app", &[mute.address()]);
    let west = setup.with("timeouts: { connect: 500ms }").start();
    let mut app = dial(west.address());
    assert_eq!(rest(&mut app), (Vec::new(), End::Reset));
    assert_eq!(west.log().line_of(app.local_addr().unwrap()).reason(), "tls_failed");
}

#[test]
fn ends_garbage_never_reaches_the_service() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let east = domains.terminating(&["app"], backend.address()).with("timeouts: { hello: 1s }").start();
    let whole = hello(HOST);
    let mut inputs = vec![b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![0; 64], vec![22, 3, 1, 255, 255]];
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = whole.clone();
        match seed % 3 {
            0 => bytes.extend((0..200).map(|_| random.u8(..))),
            1 => bytes.extend([23, 3, 3, 0, 4, 1, 2, 3, 4]),
            _ => {
                let place = random.usize(5..bytes.len());
                bytes[place] ^= random.u8(1..);
            }
        }
        inputs.push(bytes);
    }
    thread::scope(|scope| {
        for input in &inputs {
            let east = &east;
            scope.spawn(move || {
                let mut stream = dial(east.address());
                let _refused = stream.write_all(input);
                let _refused = stream.shutdown(Shutdown::Write);
                assert_ne!(rest(&mut stream).1, End::Open);
                let reason = east.log().line_of(stream.local_addr().unwrap()).reason().to_owned();
                assert_ne!(reason, "internal");
            });
        }
    });
    assert!(backend.is_untouched());
    domains.issue("east", "app");
    let mut tls = connect(&domains.client("east", "app"), east.address());
    tls.write_all(b"good").unwrap();
    assert_eq!(read_exactly(&mut backend.accept(), 4), b"good");
}

/// Terminated services negotiate the protocols that they list.
#[test]
fn ends_terminate_chooses_a_protocol_of_the_service() {
    let domains = Domains::new();
    let backend = greeter(b"");
    let services = [
        domains.terminated(HOST, &["app"], &["alpn: [h2, http/1.1]"], backend.address()),
        domains.terminated("none.example", &["app"], &[], backend.address()),
    ];
    let east = Setup::new(services.concat()).with(&domains.trust_yaml()).start();
    domains.issue("east", "app");
    let mut config = (*domains.client("east", "app")).clone();
    config.alpn_protocols = vec![b"x".to_vec(), b"http/1.1".to_vec()];
    let config = config.into();
    for (host, chosen) in [(HOST, Some(&b"http/1.1"[..])), ("none.example", None)] {
        let mut tls = connect_to(&config, host, east.address());
        tls.write_all(b"ping").unwrap();
        tls.read_exact(&mut [0; 4]).unwrap();
        assert_eq!(tls.conn.alpn_protocol(), chosen);
    }
}

/// The header comes first, once, and names the client that the gateway has verified.
#[test]
fn ends_terminate_tells_the_service_who_calls() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let terminated = domains.terminated(HOST, &["app"], &["proxy_protocol: v2"], backend.address());
    let east = Setup::new(terminated).with(&domains.trust_yaml()).start();
    domains.issue("east", "app");
    let mut tls = connect(&domains.client("east", "app"), east.address());
    // Bytes of the client stay data, whatever they look like.
    tls.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").unwrap();
    close_notify(&mut tls);
    let (got, end) = rest(&mut backend.accept());
    assert_eq!(end, End::Fin);
    let id = id("east", "app");
    let header = got.strip_suffix(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n").unwrap();
    assert!(header.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11"));
    let length = u8::try_from(id.len()).unwrap();
    assert!(header.ends_with(&[&[0xd0, 0, length], id.as_bytes()].concat()), "{header:?}");
}

/// New connections use the new certificate; live ones lose nothing.
#[test]
fn ends_renewed_certificates_are_used_for_new_connections() {
    let domains = Domains::new();
    let backend = greeter(b"");
    let (west, east) = both(&domains, backend.address());
    let serials = |gateway: &Gateway| {
        let all = gateway.admin("GET", "/status").json()["trust"]["certificates"].clone();
        all.as_array().unwrap().iter().map(|one| one["serial"].to_string()).collect::<Vec<_>>()
    };
    let before = [serials(&west), serials(&east)];
    let mut live = dial(west.address());
    echo(&mut live, b"before");
    domains.issue("east", "app");
    domains.issue("east", "server");
    until("both gateways use the new certificates", || {
        serials(&west) != before[0] && serials(&east) != before[1]
    });
    echo(&mut dial(west.address()), b"new");
    echo(&mut live, b"after");
    throughout(Duration::from_millis(200), "the live connection is open", || {
        echo(&mut live, b"still");
        true
    });
    // A key that does not match leaves the certificate in use, and is named.
    std::fs::write(domains.path("east-server.key"), "not a key").unwrap();
    until("the bad key is named", || {
        let refused = east.admin("GET", "/status").json()["trust"]["refused"].to_string();
        refused.contains("east-server.key")
    });
    echo(&mut dial(west.address()), b"again");
}
