//! The end of connections: half-close, FIN and RST in each direction, and timeouts. Rows 4 and 5 of the
//! hazards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_tests::bulk::{random, receive, send};
use isthmus_tests::client::{End, dial, echo, read_exactly, reset, rest};
use isthmus_tests::endpoint::Endpoint;
use isthmus_tests::figure;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::lock::alone;
use isthmus_tests::process::{CLOSE_WAIT, Process};
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::{median, throughout, until, within};
use rustix::process::Signal;

const HOST: &str = "web.example";
const MIB: u64 = 1 << 20;

struct World {
    gateway: Gateway,
    endpoint: Endpoint,
    hello: Vec<u8>,
}

/// Both ends of a connection after its hello and the server's first byte.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    peer: SocketAddr,
}

impl World {
    fn new(timeouts: &str) -> World {
        let endpoint = Endpoint::new();
        let setup = Setup::new(service(HOST, &[], &[endpoint.address()]));
        let gateway = setup.with(&format!("timeouts: {{ {timeouts} }}")).start();
        World { gateway, endpoint, hello: hello(HOST) }
    }

    fn pair(&self) -> Pair {
        let mut client = dial(self.gateway.address());
        client.write_all(&self.hello).unwrap();
        let (mut server, hello) = self.endpoint.take();
        assert_eq!(hello, self.hello);
        server.write_all(b"!").unwrap();
        assert_eq!(read_exactly(&mut client, 1), b"!");
        let peer = client.local_addr().unwrap();
        Pair { client, server, peer }
    }

    #[track_caller]
    fn ended(&self, peer: SocketAddr, reason: &str) {
        let line = self.gateway.log().line_of(peer);
        assert_eq!(line.reason(), reason, "{line:?}");
    }

    fn at_rest(&self) -> usize {
        self.gateway.process().sockets().len()
    }

    /// Asserts that the gateway has released all sockets of connections.
    #[track_caller]
    fn assert_released(&self, at_rest: usize) {
        let sockets = || self.gateway.process().sockets();
        let back = within(Duration::from_secs(10), || sockets().len() <= at_rest);
        assert!(back, "10 s later the gateway still has {:#?}", sockets());
    }
}

/// Sends this many bytes and half-closes, then sends 10 MiB in the other direction and closes it.
fn half_close(before: u64, closer: &TcpStream, mut other: &TcpStream) {
    let (written, closed) = thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let hash = receive(&mut &*other, before).unwrap();
            assert_eq!((&*other).read(&mut [0]).unwrap(), 0);
            (hash, Instant::now())
        });
        let hash = send(&mut &*closer, before).unwrap();
        let closing = Instant::now();
        closer.shutdown(Shutdown::Write).unwrap();
        let (got, closed) = reading.join().unwrap();
        assert_eq!(got, hash);
        (hash, closed.duration_since(closing))
    });
    let got = thread::scope(|scope| {
        let got = scope.spawn(|| receive(&mut &*closer, 10 * MIB).unwrap());
        let sent = send(&mut other, 10 * MIB).unwrap();
        other.shutdown(Shutdown::Write).unwrap();
        assert_eq!(got.join().unwrap(), sent);
        sent
    });
    assert_ne!(got, written);
    assert_eq!((&*closer).read(&mut [0]).unwrap(), 0);
    figure!("{before} bytes and FIN, seen {closed:?} later; then 10 MiB back, SHA-256 {:02x?}…", &got[..4]);
}

#[test]
fn half_close_each_way_delivers_10_mib_after_it() {
    let world = World::new("");
    let at_rest = world.at_rest();
    for before in [10, 10 * MIB] {
        let pair = world.pair();
        half_close(before, &pair.client, &pair.server);
        world.ended(pair.peer, "client_closed");
        drop(pair);
        let pair = world.pair();
        half_close(before, &pair.server, &pair.client);
        world.ended(pair.peer, "server_closed");
        drop(pair);
    }
    world.assert_released(at_rest);
}

#[test]
fn fin_is_forwarded_at_once() {
    let _alone = alone();
    let world = World::new("");
    for client_first in [true, false] {
        let times = (0..21)
            .map(|_| {
                let pair = world.pair();
                let (closer, mut other) =
                    if client_first { (&pair.client, &pair.server) } else { (&pair.server, &pair.client) };
                let started = Instant::now();
                closer.shutdown(Shutdown::Write).unwrap();
                assert_eq!(other.read(&mut [0]).unwrap(), 0);
                started.elapsed()
            })
            .collect();
        let middle = median(times);
        figure!("FIN forwarded within {middle:?} (median of 21, client first: {client_first})");
        assert!(middle < Duration::from_millis(100));
    }
}

#[test]
fn half_closes_leave_no_socket_in_close_wait() {
    let world = World::new("");
    let at_rest = world.at_rest();
    for round in 0..1_000 {
        let Pair { mut client, mut server, .. } = world.pair();
        let (closer, other) =
            if round % 2 == 0 { (&mut client, &mut server) } else { (&mut server, &mut client) };
        closer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
        echo_back(other, closer);
        match round % 3 {
            0 => other.shutdown(Shutdown::Write).unwrap(),
            1 => other.shutdown(Shutdown::Both).unwrap(),
            _ => {}
        }
    }
    let gone = within(Duration::from_secs(5), || world.gateway.process().in_state(CLOSE_WAIT) == 0);
    let left = world.gateway.process().in_state(CLOSE_WAIT);
    figure!("1000 half-closed connections, 5 s later {left} in CLOSE-WAIT");
    assert!(gone, "{left} sockets are in CLOSE-WAIT");
    world.assert_released(at_rest);
}

fn echo_back(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"after the FIN").unwrap();
    assert_eq!(read_exactly(to, 13), b"after the FIN");
}

#[test]
fn half_closed_stuck_peer_is_closed_at_timeout() {
    for client_first in [true, false] {
        let world = World::new("half_closed: 2s");
        let at_rest = world.at_rest();
        let pair = world.pair();
        let closer = if client_first { &pair.client } else { &pair.server };
        let started = Instant::now();
        closer.shutdown(Shutdown::Write).unwrap();
        world.ended(pair.peer, "half_close_timeout");
        let took = started.elapsed();
        figure!("half-closed and silent for 2 s: closed after {took:?} (client first: {client_first})");
        // The clock has a resolution of 250 ms.
        assert!(took > Duration::from_millis(1_700) && took < Duration::from_secs(6), "{took:?}");
        world.assert_released(at_rest);
    }
}

#[test]
fn half_closed_connection_with_traffic_is_not_closed() {
    let world = World::new("half_closed: 2s");
    let Pair { client, mut server, peer } = world.pair();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    let mut from = &client;
    // One byte every half second, for more than twice the limit.
    let mut next = Instant::now();
    let mut sent = 0;
    throughout(Duration::from_secs(5), "the connection lives", || {
        if Instant::now() >= next {
            next += Duration::from_millis(500);
            sent += 1;
            server.write_all(&[sent]).unwrap();
            return read_exactly(&mut from.try_clone().unwrap(), 1) == [sent];
        }
        true
    });
    drop(server);
    assert_eq!(from.read(&mut [0]).unwrap(), 0);
    world.ended(peer, "client_closed");
}

#[test]
fn reset_is_forwarded_to_the_other_side() {
    for client_first in [true, false] {
        let world = World::new("");
        let at_rest = world.at_rest();
        let Pair { client, server, peer } = world.pair();
        let (first, mut other) = if client_first { (client, server) } else { (server, client) };
        reset(first);
        assert_eq!(rest(&mut other), (Vec::new(), End::Reset), "client first: {client_first}");
        world.ended(peer, if client_first { "client_reset" } else { "server_reset" });
        world.assert_released(at_rest);
    }
}

/// Closing with unread bytes sends a reset, as when a process exits.
#[test]
fn client_exit_with_unread_bytes_frees_the_server() {
    let world = World::new("half_closed: 10s");
    let at_rest = world.at_rest();
    for round in 0..200 {
        let Pair { client, mut server, .. } = world.pair();
        server.write_all(&random(1 + round * 7)).unwrap();
        drop(client);
        // Either side may be first, but the server's connection ends.
        let (_, end) = isthmus_tests::client::rest_within(&mut server, Duration::from_secs(5));
        assert_ne!(end, End::Open, "round {round}: the server's connection outlives the client's");
        drop(server);
    }
    world.assert_released(at_rest);
}

/// The same, but the server's bytes arrive after the client has closed.
#[test]
fn server_bytes_for_departed_client_end_the_connection() {
    let world = World::new("half_closed: 10s");
    let at_rest = world.at_rest();
    for round in 0..200 {
        let Pair { client, mut server, .. } = world.pair();
        drop(client);
        if round % 2 == 0 {
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        }
        let _gone = server.write_all(b"are you there?");
        let (_, end) = isthmus_tests::client::rest_within(&mut server, Duration::from_secs(5));
        if end == End::Fin {
            // The FIN came first; bytes sent after it are answered with a reset on the gateway's client side.
            let mut left = [0];
            server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let _again = server.write_all(b"!");
            until("the server's side is reset", || {
                server.write_all(b"!").is_err() || server.peek(&mut left).is_err()
            });
        }
        assert_ne!(end, End::Open, "round {round}: the server's connection outlives the client's");
        drop(server);
    }
    world.assert_released(at_rest);
}

/// All bytes received before the reset are delivered, and the reset follows promptly.
#[test]
fn reset_follows_all_received_data_promptly() {
    let _alone = alone();
    for client_first in [true, false] {
        let (mut times, mut most) = (Vec::new(), 0);
        for _ in 0..15 {
            let world = World::new("half_closed: 20s");
            let Pair { client, server, peer } = world.pair();
            let (first, other) = if client_first { (client, server) } else { (server, client) };
            let reasons = if client_first { "client_reset" } else { "server_reset" };
            let (had, time) = reset_behind_data(4 << 20, first, other, || {});
            times.push(time);
            most = most.max(had);
            world.ended(peer, reasons);
        }
        let middle = median(times);
        figure!(
            "up to {most} bytes before the RST arrived intact; RST {middle:?} after the last (median of 15, client first: {client_first})"
        );
        assert!(middle < Duration::from_millis(100), "{middle:?}");
    }
}

/// Sends until the path is full, waits until the gateway has all bytes, then resets; the reader then reads
/// them all.
fn reset_behind_data(
    size: usize,
    first: TcpStream,
    mut other: TcpStream,
    before: impl FnOnce(),
) -> (usize, Duration) {
    let data = random(size);
    first.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let mut stuck_since = Instant::now();
    while sent < data.len() && stuck_since.elapsed() < Duration::from_millis(200) {
        match (&first).write(&data[sent..]) {
            Ok(written) => {
                sent += written;
                stuck_since = Instant::now();
            }
            Err(_) => thread::yield_now(),
        }
    }
    // Bytes still in this end's own buffer are lost with the reset: the gateway never had them.
    let unacknowledged = unsent(&first);
    reset(first);
    before();
    let had = sent - unacknowledged;
    let mut got = vec![0; had];
    for start in (0..had).step_by(64 << 10) {
        let part = &mut got[start..had.min(start + (64 << 10))];
        if let Err(error) = other.read_exact(part) {
            panic!("the gateway had {had} bytes, about {start} arrived: {error}");
        }
    }
    assert!(got == data[..had], "the bytes differ");
    let taken = Instant::now();
    let (_, end) = rest(&mut other);
    assert_eq!(end, End::Reset);
    (had, taken.elapsed())
}

/// The reader starts long after the reset: the gateway keeps the bytes and does not spin.
#[test]
fn late_reader_after_reset_loses_nothing() {
    for client_first in [true, false] {
        let world = World::new("half_closed: 30s");
        let at_rest = world.gateway.process().sockets().len();
        let Pair { client, server, peer } = world.pair();
        let (first, other) = if client_first { (client, server) } else { (server, client) };
        let mut used = Duration::ZERO;
        let (had, _) = reset_behind_data(48 << 20, first, other, || {
            let (reset, before) = (Instant::now(), world.gateway.process().time());
            until("three seconds have passed since the reset", || reset.elapsed() > Duration::from_secs(3));
            used = world.gateway.process().time() - before;
        });
        world.ended(peer, if client_first { "client_reset" } else { "server_reset" });
        figure!(
            "read 3 s after the reset (client first: {client_first}): all {had} bytes; gateway {used:?} meanwhile"
        );
        assert!(used < Duration::from_millis(600), "the gateway spins: {used:?} of 3 s");
        world.assert_released(at_rest);
    }
}

/// A half-closed connection with a stuck reader must not spin either.
#[test]
fn stuck_half_closed_connection_uses_no_cpu() {
    for client_first in [true, false] {
        let world = World::new("half_closed: 30s");
        let Pair { client, server, peer } = world.pair();
        let (first, mut other) = if client_first { (client, server) } else { (server, client) };
        fill(&first);
        first.shutdown(Shutdown::Write).unwrap();
        let (closed, before) = (Instant::now(), world.gateway.process().time());
        until("three seconds have passed", || closed.elapsed() > Duration::from_secs(3));
        let used = world.gateway.process().time() - before;
        let (got, end) = rest(&mut other);
        figure!(
            "stuck and half-closed for 3 s (client first: {client_first}): gateway {used:?}; then {} bytes",
            got.len()
        );
        assert!(used < Duration::from_millis(600), "the gateway spins: {used:?} of 3 s");
        assert_eq!(end, End::Fin);
        drop(other);
        world.ended(peer, if client_first { "client_closed" } else { "server_closed" });
    }
}

/// Bytes not acknowledged by the other end.
fn unsent(stream: &TcpStream) -> usize {
    let key = |address: SocketAddr| match address {
        SocketAddr::V4(own) => format!("{:08X}:{:04X}", u32::from_le_bytes(own.ip().octets()), own.port()),
        SocketAddr::V6(_) => panic!("IPv4 here"),
    };
    // Matches both addresses: listeners and closed connections share one of them.
    let ends = format!(" {} {} ", key(stream.local_addr().unwrap()), key(stream.peer_addr().unwrap()));
    let text = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let row = text.lines().find(|line| line.contains(&ends)).unwrap();
    let queues = row.split_whitespace().nth(4).unwrap();
    usize::from_str_radix(queues.split(':').next().unwrap(), 16).unwrap()
}

#[test]
fn graceful_closes_cause_no_reset() {
    let world = World::new("");
    let at_rest = world.at_rest();
    let mut ends = Vec::new();
    for round in 0..1_000 {
        let Pair { mut client, mut server, .. } = world.pair();
        let size = [0, 1, 100, 20_000, 300_000][round % 5];
        let bytes = random(size);
        let (closer, other) =
            if round % 2 == 0 { (&mut client, &mut server) } else { (&mut server, &mut client) };
        thread::scope(|scope| {
            let closing = scope.spawn(|| {
                closer.write_all(&bytes).unwrap();
                closer.shutdown(Shutdown::Write).unwrap();
                rest(closer)
            });
            let (got, end) = rest(other);
            assert!(got == bytes, "round {round}: {} of {size} bytes", got.len());
            other.write_all(b"bye").unwrap();
            other.shutdown(Shutdown::Write).unwrap();
            let (back, end_back) = closing.join().unwrap();
            assert_eq!(back, b"bye");
            ends.extend([end, end_back]);
        });
    }
    let resets = ends.iter().filter(|end| **end != End::Fin).count();
    figure!("1000 graceful closes, {resets} resets");
    assert_eq!(resets, 0);
    for reason in ["client_closed", "server_closed"] {
        until("every line is logged", || world.gateway.log().count(|line| line.reason() == reason) == 500);
    }
    assert_eq!(world.gateway.log().lines().len(), 1_000);
    world.assert_released(at_rest);
}

#[test]
fn idle_timeout_closes_idle_but_not_busy_connections() {
    let world = World::new("idle: 2s");
    let idle = world.pair();
    let Pair { mut client, mut server, peer } = world.pair();
    let started = Instant::now();
    let mut idle_end = None;
    let mut next = Instant::now();
    while started.elapsed() < Duration::from_secs(5) {
        if Instant::now() >= next {
            next += Duration::from_millis(300);
            client.write_all(b"tick").unwrap();
            assert_eq!(read_exactly(&mut server, 4), b"tick");
        }
        if idle_end.is_none() && world.gateway.log().count(|line| line.peer() == Some(idle.peer)) > 0 {
            idle_end = Some(started.elapsed());
        }
        thread::yield_now();
    }
    let took = idle_end.expect("the idle connection was closed");
    figure!("idle timeout 2 s: closed after {took:?}; a connection with traffic stays open");
    assert!(took > Duration::from_millis(1_800) && took < Duration::from_millis(4_500), "{took:?}");
    world.ended(idle.peer, "idle_timeout");
    let mut gone = idle;
    assert_ne!(rest(&mut gone.client).1, End::Open);
    assert_ne!(rest(&mut gone.server).1, End::Open);
    drop(client);
    drop(server);
    world.ended(peer, "client_closed");
}

/// The hello counts as activity, even if the client connected long before it.
#[test]
fn idle_timeout_counts_from_the_hello() {
    let world = World::new("idle: 3s");
    let mut client = dial(world.gateway.address());
    let silent = || world.gateway.log().count(|_| true) == 0;
    throughout(Duration::from_millis(3_500), "the hello is waited for", silent);
    client.write_all(&world.hello).unwrap();
    let (mut server, _) = world.endpoint.take();
    throughout(Duration::from_millis(1_500), "the connection lives", silent);
    server.write_all(b"!").unwrap();
    assert_eq!(read_exactly(&mut client, 1), b"!");
}

#[test]
fn first_byte_timeout_ends_the_connection() {
    let world = World::new("first_byte: 1s");
    let mut client = dial(world.gateway.address());
    let started = Instant::now();
    client.write_all(&world.hello).unwrap();
    let (mut server, _) = world.endpoint.take();
    world.ended(client.local_addr().unwrap(), "first_byte_timeout");
    let took = started.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(4), "{took:?}");
    assert_ne!(rest(&mut client).1, End::Open);
    assert_ne!(rest(&mut server).1, End::Open);
    // A server that answered in time may be silent afterwards.
    let Pair { mut client, mut server, .. } = world.pair();
    throughout(Duration::from_secs(3), "the connection lives", || world.gateway.log().count(|_| true) == 0);
    server.write_all(b"later").unwrap();
    assert_eq!(read_exactly(&mut client, 5), b"later");
    figure!("first-byte timeout 1 s: closed after {took:?}");
}

#[test]
fn max_lifetime_ends_every_connection() {
    let world = World::new("max_duration: 2s");
    let started = Instant::now();
    let Pair { mut client, mut server, peer } = world.pair();
    let line = loop {
        if world.gateway.log().count(|line| line.peer() == Some(peer)) > 0 {
            break world.gateway.log().line_of(peer);
        }
        assert!(started.elapsed() < Duration::from_secs(10), "the connection is still open");
        if client.write_all(b"x").is_ok() {
            let _gone = server.read(&mut [0; 16]);
        }
    };
    let took = started.elapsed();
    assert_eq!(line.reason(), "max_duration");
    assert!(took > Duration::from_millis(1_900) && took < Duration::from_secs(5), "{took:?}");
    assert_ne!(rest(&mut client).1, End::Open);
    figure!("maximum lifetime 2 s: closed after {took:?}");
}

#[test]
fn simultaneous_close_is_not_a_reset() {
    let world = World::new("");
    for _ in 0..50 {
        let Pair { mut client, mut server, peer } = world.pair();
        client.write_all(b"from the client").unwrap();
        server.write_all(b"from the server").unwrap();
        thread::scope(|scope| {
            scope.spawn(|| client.shutdown(Shutdown::Write).unwrap());
            scope.spawn(|| server.shutdown(Shutdown::Write).unwrap());
        });
        assert_eq!(rest(&mut client), (b"from the server".to_vec(), End::Fin));
        assert_eq!(rest(&mut server), (b"from the client".to_vec(), End::Fin));
        let line = world.gateway.log().line_of(peer);
        assert!(["client_closed", "server_closed"].contains(&line.reason()), "{line:?}");
        assert_eq!(line.number("bytes_out"), 16, "{line:?}");
        assert_eq!(line.number("bytes_in"), world.hello.len() as u64 + 15, "{line:?}");
    }
}

#[test]
fn gateway_still_serves_after_all_kinds_of_closes() {
    let world = World::new("");
    let Pair { client, server, .. } = world.pair();
    reset(client);
    drop(server);
    let Pair { mut client, mut server, .. } = world.pair();
    thread::scope(|scope| {
        scope.spawn(|| echo(&mut client, b"ping"));
        let got = read_exactly(&mut server, 4);
        server.write_all(&got).unwrap();
    });
}

/// Writes until the stream accepts no more.
fn fill(stream: &TcpStream) {
    stream.set_nonblocking(true).unwrap();
    let block = random(1 << 20);
    let mut last = Instant::now();
    until("the writer is stuck", || {
        if (&*stream).write(&block).is_ok() {
            last = Instant::now();
        }
        last.elapsed() > Duration::from_millis(300)
    });
}

/// A reader that never reads the bytes before a reset cannot keep the connection beyond the timeout.
fn reset_behind_a_stuck_reader(client_first: bool) {
    let world = World::new("half_closed: 2s");
    let at_rest = world.gateway.process().sockets().len();
    let Pair { client, server, peer } = world.pair();
    let (first, mut other) = if client_first { (client, server) } else { (server, client) };
    fill(&first);
    let started = Instant::now();
    reset(first);
    world.ended(peer, if client_first { "client_reset" } else { "server_reset" });
    let took = started.elapsed();
    world.assert_released(at_rest);
    let (got, end) = rest(&mut other);
    figure!(
        "reset with a stuck reader, half_closed 2 s: closed after {took:?}, the reader had {} bytes",
        got.len()
    );
    assert_eq!(end, End::Reset);
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn client_reset_waits_for_stuck_server_up_to_half_closed_timeout() {
    reset_behind_a_stuck_reader(true);
}

#[test]
fn server_reset_waits_for_stuck_client_up_to_half_closed_timeout() {
    reset_behind_a_stuck_reader(false);
}

/// Both sides reset, the server while the client's reset is pending: nothing is left to wait for.
#[test]
fn pending_reset_ends_when_server_resets_too() {
    let world = World::new("half_closed: off");
    let at_rest = world.at_rest();
    let Pair { mut client, server, peer } = world.pair();
    // More than the server's side buffers, less than the gateway's: the rest is unacknowledged.
    client.write_all(&random(600_000)).unwrap();
    until("the gateway has all bytes", || unsent(&client) == 0);
    reset(client);
    throughout(Duration::from_millis(500), "the reset waits for earlier bytes", || {
        server.peek(&mut [0]).is_ok()
    });
    reset(server);
    world.ended(peer, "client_reset");
    world.assert_released(at_rest);
}

/// A timeout during the wait does not turn the reset into an orderly close.
#[test]
fn pending_reset_past_idle_timeout_is_still_a_reset() {
    let world = World::new("idle: 2s");
    let Pair { mut client, mut server, peer } = world.pair();
    client.write_all(&random(600_000)).unwrap();
    until("the gateway has all bytes", || unsent(&client) == 0);
    reset(client);
    world.ended(peer, "idle_timeout");
    assert_eq!(rest(&mut server).1, End::Reset);
}

/// The server resets while its client writes but does not read: the write consumes the socket error that
/// signals the reset.
#[test]
fn reset_behind_stuck_reader_survives_failed_write() {
    for client_first in [true, false] {
        let world = World::new("half_closed: 2s");
        let at_rest = world.at_rest();
        let Pair { client, server, peer } = world.pair();
        let (first, mut other) = if client_first { (client, server) } else { (server, client) };
        let name = first.local_addr().unwrap();
        fill(&first);
        reset(first);
        until("the reset has arrived", || {
            world.gateway.process().sockets().iter().all(|socket| socket.remote != name)
        });
        other.write_all(b"are you there?").unwrap();
        world.ended(peer, if client_first { "client_reset" } else { "server_reset" });
        world.assert_released(at_rest);
    }
}

fn is_stopped(process: Process) -> bool {
    let mut states = std::fs::read_dir(format!("/proc/{}/task", process.0)).unwrap().map(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        stat.rsplit(") ").next().unwrap().starts_with('T')
    });
    states.all(|stopped| stopped)
}

/// A reset is not an orderly close, even if a write is the first to fail.
#[test]
fn reset_first_seen_by_a_write_is_still_a_reset() {
    for client_first in [true, false] {
        let world = World::new("");
        let Pair { client, server, peer } = world.pair();
        let (first, mut other) = if client_first { (client, server) } else { (server, client) };
        world.gateway.signal(Signal::STOP);
        until("the gateway is stopped", || is_stopped(world.gateway.process()));
        reset(first);
        other.write_all(b"are you there?").unwrap();
        until("the bytes and the reset have arrived", || unsent(&other) == 0);
        world.gateway.signal(Signal::CONT);
        assert_eq!(rest(&mut other), (Vec::new(), End::Reset), "client first: {client_first}");
        world.ended(peer, if client_first { "client_reset" } else { "server_reset" });
    }
}

#[test]
fn idle_timeout_applies_to_connection_with_stuck_reader() {
    for client_first in [true, false] {
        let world = World::new("idle: 2s");
        let at_rest = world.gateway.process().sockets().len();
        let pair = world.pair();
        let started = Instant::now();
        fill(if client_first { &pair.client } else { &pair.server });
        world.ended(pair.peer, "idle_timeout");
        figure!(
            "stuck reader, idle 2 s: closed after {:?} (client writes: {client_first})",
            started.elapsed()
        );
        world.assert_released(at_rest);
    }
}

/// Bytes in the same segment as the hello are neither lost nor reordered.
#[test]
fn bytes_following_the_hello_arrive_in_order() {
    let world = World::new("");
    for size in [1, 1_000, 70_000, 3 << 20] {
        let mut client = dial(world.gateway.address());
        let peer = client.local_addr().unwrap();
        let data = random(size);
        thread::scope(|scope| {
            let served = scope.spawn(|| {
                let (mut server, hello) = world.endpoint.take();
                assert_eq!(hello, world.hello);
                assert!(read_exactly(&mut server, size) == data, "{size} bytes differ");
                server.write_all(b"all of it").unwrap();
                server
            });
            client.write_all(&[&*world.hello, &data].concat()).unwrap();
            served.join().unwrap()
        });
        assert_eq!(read_exactly(&mut client, 9), b"all of it");
        drop(client);
        let line = world.gateway.log().line_of(peer);
        assert_eq!(line.number("bytes_in"), (world.hello.len() + size) as u64, "{line:?}");
    }
}
