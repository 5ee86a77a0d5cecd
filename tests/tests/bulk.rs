//! Bulk transfers: intact, in bounded memory, and without pipes if the kernel grants none. Rows 6, 6b and 7
//! of the hazards. For speed see the benchmarks.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_tests::bulk::{exchange, receive, send};
use isthmus_tests::client::{dial, echo, read_exactly};
use isthmus_tests::endpoint::Endpoint;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::lock::alone;
use isthmus_tests::setup::{NOBODY, Setup, service};
use isthmus_tests::wait::until;
use isthmus_tests::{figure, is_root, skip};
use rustix::pipe::{fcntl_setpipe_size, pipe};
use rustix::process::Uid;
use socket2::{SockRef, Socket, Type};

const HOST: &str = "web.example";
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

struct World {
    gateway: Gateway,
    endpoint: Endpoint,
    hello: Vec<u8>,
}

impl World {
    fn new(change: impl FnOnce(Setup) -> Setup) -> World {
        let endpoint = Endpoint::new();
        let gateway = change(Setup::new(service(HOST, &[], &[endpoint.address()]))).start();
        World { gateway, endpoint, hello: hello(HOST) }
    }

    /// A client and its server after the hello and the first byte.
    fn pair(&self) -> [TcpStream; 2] {
        self.pair_of(dial(self.gateway.address()))
    }

    fn pair_of(&self, mut client: TcpStream) -> [TcpStream; 2] {
        client.write_all(&self.hello).unwrap();
        let (mut server, hello) = self.endpoint.take();
        assert_eq!(hello, self.hello);
        server.write_all(b"!").unwrap();
        assert_eq!(read_exactly(&mut client, 1), b"!");
        [client, server]
    }

    fn denied(&self) -> f64 {
        self.gateway.metrics().sum("isthmus_pipes_denied_total", &[])
    }
}

fn hex(hash: [u8; 32]) -> String {
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Transfers in one direction; returns the hash, which is equal at both ends.
fn one_way(from: &TcpStream, to: &TcpStream, size: u64) -> [u8; 32] {
    thread::scope(|scope| {
        let sent = scope.spawn(|| send(&mut &*from, size).unwrap());
        let got = receive(&mut &*to, size).unwrap();
        assert_eq!(got, sent.join().unwrap());
        got
    })
}

#[test]
fn bulk_one_gib_each_way_arrives_intact() {
    let _alone = alone();
    let world = World::new(|setup| setup);
    let [client, server] = world.pair();
    let peer = client.local_addr().unwrap();
    let started = Instant::now();
    let there = one_way(&client, &server, GIB);
    let back = one_way(&server, &client, GIB);
    let (took, used) = (started.elapsed(), world.gateway.process().time());
    drop([client, server]);
    let line = world.gateway.log().line_of(peer);
    assert_eq!(line.number("bytes_in"), GIB + world.hello.len() as u64, "{line:?}");
    assert_eq!(line.number("bytes_out"), GIB + 1, "{line:?}");
    figure!(
        "1 GiB to the server ({}…) and back ({}…) in {took:.1?}; gateway CPU {used:.2?}",
        hex(there),
        hex(back)
    );
}

#[test]
fn bulk_eight_connections_both_ways_arrive_intact() {
    let world = World::new(|setup| setup);
    let pairs: Vec<_> = (0..8).map(|_| world.pair()).collect();
    thread::scope(|scope| {
        for [client, server] in &pairs {
            let at_client = scope.spawn(|| exchange(&mut &*client, &mut &*client, 32 * MIB));
            scope.spawn(|| {
                let [sent, got] = exchange(&mut &*server, &mut &*server, 32 * MIB);
                assert_eq!(at_client.join().unwrap(), [got, sent]);
            });
        }
    });
    figure!("8 connections, 32 MiB each way concurrently: 16 equal hashes");
}

/// Writes to all servers until none accepts a byte for a while; returns the number of bytes.
fn fill(servers: &[[TcpStream; 2]]) -> u64 {
    let block = [b'x'; 64 << 10];
    for [_, server] in servers {
        server.set_nonblocking(true).unwrap();
    }
    let (mut total, mut last) = (0, Instant::now());
    until("the writers are stuck", || {
        for [_, server] in servers {
            match (&*server).write(&block) {
                Ok(written) => {
                    total += written as u64;
                    last = Instant::now();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        last.elapsed() > Duration::from_millis(500)
    });
    total
}

#[test]
fn stuck_readers_use_bounded_memory_and_delay_nobody() {
    const STUCK: usize = 150;
    let _alone = alone();
    let world = World::new(|setup| setup);
    let [client, server] = world.pair();
    one_way(&server, &client, 16 * MIB);
    let before = world.gateway.process().memory();
    let stuck: Vec<_> = (0..STUCK).map(|_| world.pair()).collect();
    let taken = fill(&stuck);
    let each = world.gateway.process().memory().saturating_sub(before) / STUCK as u64;
    figure!(
        "{STUCK} stuck readers, {} MiB in flight: {} KiB of process memory each, {} pipes denied",
        taken / MIB,
        each / KIB,
        world.denied()
    );
    assert!(each <= 256 * KIB, "{each} bytes each");
    // Works beside the stuck readers, although they hold the pipes.
    one_way(&server, &client, 64 * MIB);
    one_way(&client, &server, 64 * MIB);
    thread::scope(|scope| {
        scope.spawn(|| echo(&mut client.try_clone().unwrap(), b"ping"));
        let got = read_exactly(&mut server.try_clone().unwrap(), 4);
        (&server).write_all(&got).unwrap();
    });
    // Nothing in flight is lost: the first reader reads all of it.
    let [mut reader, writer] = stuck.into_iter().next().unwrap();
    drop(writer);
    let mut late = Vec::new();
    reader.read_to_end(&mut late).unwrap();
    assert!(!late.is_empty() && late.iter().all(|byte| *byte == b'x'));
    figure!(
        "beside them 64 MiB each way are intact; one stuck reader then read its {} KiB",
        late.len() >> 10
    );
}

#[test]
fn socket_buffers_stay_within_configured_limits() {
    const STUCK: usize = 150;
    const BUFFER: usize = 64 << 10;
    let _alone = alone();
    let world = World::new(|setup| setup.with("tcp: { receive_buffer: 64KiB, send_buffer: 64KiB }"));
    let stuck: Vec<_> = (0..STUCK)
        .map(|_| {
            let socket = Socket::new(socket2::Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_recv_buffer_size(BUFFER).unwrap();
            socket.connect(&world.gateway.address().into()).unwrap();
            let pair = world.pair_of(socket.into());
            SockRef::from(&pair[1]).set_send_buffer_size(BUFFER).unwrap();
            pair
        })
        .collect();
    let taken = fill(&stuck);
    // Four sockets on each path, whose buffers the kernel doubles, and the 64 pipes of 1 MiB.
    let most = (STUCK * 4 * 2 * BUFFER) as u64 + 64 * MIB;
    figure!("buffers of 64 KiB: {} KiB in flight per stuck reader", taken / STUCK as u64 / KIB);
    assert!(taken <= most, "{taken} bytes are in flight, the limit is {most}");
}

#[test]
fn slow_reader_at_one_kib_per_second_gets_every_byte() {
    let world = World::new(|setup| setup);
    let [client, server] = world.pair();
    let size = 32 * MIB;
    let started = Instant::now();
    thread::scope(|scope| {
        let sent = scope.spawn(|| send(&mut &server, size).unwrap());
        let got = receive(&mut Slow { stream: &client, started, taken: 0 }, size).unwrap();
        assert_eq!(got, sent.join().unwrap());
    });
    let memory = world.gateway.process().memory();
    figure!("1 KiB/s for 8 s, then the rest of 32 MiB: equal SHA-256; process {} KiB", memory / KIB);
}

/// Reads 1 KiB in each of the first eight seconds, then at full speed.
struct Slow<'a> {
    stream: &'a TcpStream,
    started: Instant,
    taken: u64,
}

impl Read for Slow<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.taken >= 8 * KIB {
            return self.stream.read(into);
        }
        let due = Duration::from_secs(self.taken / KIB + 1);
        until("the next second has come", || self.started.elapsed() >= due);
        let read = self.stream.read(&mut into[..1 << 10])?;
        self.taken += read as u64;
        Ok(read)
    }
}

/// Opens pipes as the unprivileged user until the kernel refuses more of 1 MiB.
fn use_up_pipes() -> Vec<(OwnedFd, OwnedFd)> {
    let thread = thread::spawn(|| {
        let nobody = Uid::from_raw(NOBODY);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let mut held = Vec::new();
        loop {
            let pair = pipe().unwrap();
            let granted = fcntl_setpipe_size(&pair.0, 1 << 20);
            held.push(pair);
            assert!(held.len() < 4_096, "the quota of pipes is not enforced");
            if granted.is_err() {
                return held;
            }
        }
    });
    thread.join().unwrap()
}

/// Transfers in both directions, one after the other; returns the gateway's CPU time.
fn work(world: &World) -> Duration {
    let [client, server] = world.pair();
    let before = world.gateway.process().time();
    one_way(&client, &server, 256 * MIB);
    one_way(&server, &client, 256 * MIB);
    world.gateway.process().time() - before
}

#[test]
fn relay_copies_when_unprivileged_user_has_no_pipes_left() {
    if !is_root() {
        skip!("only root can start the gateway as another user");
    }
    let _alone = alone();
    let held = use_up_pipes();
    let world = World::new(Setup::nobody);
    let time = work(&world);
    let denied = world.denied();
    let eight = [world.pair(), world.pair()];
    for [client, server] in &eight {
        one_way(server, client, 32 * MIB);
    }
    drop(world);
    let copying = work(&World::new(|setup| setup.nobody().with("relay: { pipes: 0 }")));
    let count = held.len();
    drop(held);
    let free = World::new(Setup::nobody);
    let splicing = work(&free);
    figure!(
        "{count} pipes held by another: {denied} denied, 512 MiB whole, {time:?} of the gateway; only copying {copying:?}; \
         with pipes {splicing:?} ({} denied)",
        free.denied()
    );
    assert!(denied > 0.0);
    assert!(time <= copying * 3 / 2, "the fallback costs more than copying: {time:?}, {copying:?}");
}
