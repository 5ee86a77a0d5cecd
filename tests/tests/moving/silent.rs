//! Servers that accept a connection and never answer: the connection moves after `first_byte`, while it can.

use std::io::Write as _;
use std::net::TcpStream;

use isthmus_tests::client::{End, dial, echo, read_exactly, rest, send};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::ends::{Domains, tls_endpoint};
use isthmus_tests::figure;
use isthmus_tests::hello::{Hello, hello};

use super::{HOST, call, gateway, until_idle};

const LIMITED: &str = "timeouts: { first_byte: 300ms }\nupstream: { demotion: off }";

/// Reads everything and never answers.
fn mute() -> Scripted {
    Scripted::new(|mut stream, _| drop(rest(&mut stream)))
}

#[test]
fn silent_server_loses_the_connection_after_first_byte() {
    let (mute, good) = (mute(), Scripted::echo(b"+"));
    let gateway = gateway(&["balance: round_robin"], &[mute.address(), good.address()], LIMITED);
    let hello = hello(HOST);
    let mut moved = 0;
    for _ in 0..6 {
        let line = call(&gateway, &hello);
        assert_eq!(line.text("endpoint"), good.address().to_string());
        moved += usize::from(line.number("attempts") == 2);
    }
    assert!(moved >= 2, "the silent server was tried {moved} times");
    assert!(mute.hellos().iter().chain(&good.hellos()).all(|sent| *sent == hello));
    let moves = gateway.metrics().sum("isthmus_moves_total", &[r#"reason="first_byte_timeout""#]);
    assert_eq!(moves, f64::from(u32::try_from(moved).unwrap()));
    until_idle(&gateway);
    figure!("first_byte 300 ms: 6 calls served, {moved} of them moved from a silent server");
}

#[test]
fn silent_servers_alone_end_the_connection() {
    let both = [mute(), mute()];
    let addresses = both.each_ref().map(Scripted::address);
    let gateway = gateway(&["balance: round_robin"], &addresses, LIMITED);
    let mut client = send(gateway.address(), &hello(HOST));
    assert_eq!(rest(&mut client), (Vec::new(), End::Fin));
    let line = gateway.log().line_of(client.local_addr().unwrap());
    assert_eq!((line.reason(), line.number("attempts")), ("first_byte_timeout", 2), "{line:?}");
}

/// What cannot move ends at `first_byte` as before.
#[test]
fn silent_server_keeps_what_cannot_be_replayed() {
    let first = Endpoint::new();
    let gateway = gateway(&[], &[first.address()], LIMITED);
    let early = Hello::new(HOST).and((42, Vec::new())).bytes();
    for (hello, more) in [(hello(HOST), &b"more"[..]), (early, b"")] {
        let mut client = send(gateway.address(), &hello);
        let mut server = first.accept();
        assert_eq!(read_exactly(&mut server, hello.len()), hello);
        client.write_all(more).unwrap();
        assert_eq!(rest(&mut client), (Vec::new(), End::Fin));
        let line = gateway.log().line_of(client.local_addr().unwrap());
        assert_eq!((line.reason(), line.number("attempts")), ("first_byte_timeout", 1), "{line:?}");
    }
}

/// A service whose server speaks first, between gateways: no byte of the application has left.
#[test]
fn silent_server_loses_a_silent_application() {
    let domains = Domains::new();
    domains.issue("east", "server");
    let good = tls_endpoint(domains.server("server"), |tls| {
        let _gone = tls.write_all(b"welcome").and_then(|()| tls.flush());
        let _gone = std::io::Read::read(tls, &mut [0]);
    });
    let mute = tls_endpoint(domains.server("server"), |tls| {
        let _gone = tls.conn.complete_io(&mut tls.sock);
        let _gone = std::io::Read::read(tls, &mut [0]);
    });
    let setup = domains.originating("app", &[mute.address(), good.address()]);
    let west = setup.with(LIMITED).start();
    let mut moved = 0;
    for _ in 0..4 {
        let mut app = dial(west.address());
        assert_eq!(read_exactly(&mut app, 7), b"welcome");
        let peer = app.local_addr().unwrap();
        drop(app);
        moved += u32::from(west.log().line_of(peer).number("attempts") == 2);
    }
    assert!(moved >= 1, "the silent server was never tried");
}

/// Three calls that hang at once are within every budget.
#[test]
fn silent_server_costs_no_call_of_a_small_service() {
    let (mute, good) = (mute(), Scripted::echo(b"+"));
    let gateway = gateway(&["balance: round_robin"], &[mute.address(), good.address()], LIMITED);
    for _ in 0..4 {
        let waiting: Vec<TcpStream> = (0..6).map(|_| send(gateway.address(), &hello(HOST))).collect();
        for mut client in waiting {
            assert_eq!(read_exactly(&mut client, 1), b"+");
            echo(&mut client, b"ping");
        }
    }
    until_idle(&gateway);
}
