//! The end of a gateway: SIGTERM and the drain windows, a second signal, SIGKILL, and a restart on the same
//! ports. Row 10 of the hazards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_tests::client::{End, dial, echo, end_of, read_exactly, rest, send};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::{Hello, hello};
use isthmus_tests::lock::alone;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::{throughout, until, within};
use isthmus_tests::{figure, http};
use rustix::process::Signal;

const HOST: &str = "web.example";

fn world(drain: &str) -> (Gateway, Scripted) {
    let server = Scripted::echo(b"+");
    let services = service(HOST, &[], &[server.address()]);
    let gateway = Setup::new(services).with(&format!("drain: {{ {drain} }}")).start();
    (gateway, server)
}

fn open(address: SocketAddr) -> TcpStream {
    let mut client = send(address, &hello(HOST));
    assert_eq!(read_exactly(&mut client, 1), b"+");
    client
}

fn serves(address: SocketAddr) -> bool {
    let Ok(mut client) = TcpStream::connect(address) else { return false };
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut answer = [0];
    client.write_all(&hello(HOST)).and_then(|()| client.read(&mut answer)).is_ok() && answer == *b"+"
}

#[test]
fn drain_of_idle_gateway_accepts_for_its_delay_then_exits() {
    let (mut gateway, _server) = world("accept_for: 2s, window: 20s");
    assert!(gateway.is_ready());
    let started = Instant::now();
    gateway.signal(Signal::TERM);
    until("the gateway is not ready", || !gateway.is_ready());
    let unready = started.elapsed();
    throughout(Duration::from_millis(1_200), "it still accepts", || serves(gateway.address()));
    assert_eq!(http::ask(gateway.at("health"), "GET", "/healthz/live").status, 200);
    let status = gateway.wait_end();
    let took = started.elapsed();
    figure!(
        "SIGTERM without connections: not ready after {unready:?}, accepted for 2 s, exited after {took:?} with {status}"
    );
    assert!(status.success(), "{status}");
    assert!(unready < Duration::from_secs(1), "{unready:?}");
    assert!(took > Duration::from_millis(1_900) && took < Duration::from_secs(6), "{took:?}");
}

/// Sends traffic until the gateway closes the connection; returns how long after the signal, and how it
/// ended.
fn talk(mut client: TcpStream, since: Instant) -> (Duration, End) {
    loop {
        let talked = client.write_all(b"ping").and_then(|()| {
            let mut back = [0; 4];
            client.read_exact(&mut back)
        });
        match talked {
            Ok(()) => thread::yield_now(),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return (since.elapsed(), End::Fin);
            }
            Err(error) => return (since.elapsed(), end_of(&error)),
        }
    }
}

#[test]
fn drain_closes_idle_connections_first_without_reset() {
    let _alone = alone();
    let (mut gateway, _server) = world("accept_for: 2s, window: 4s");
    let idle: Vec<TcpStream> = (0..40).map(|_| open(gateway.address())).collect();
    let busy: Vec<TcpStream> = (0..8).map(|_| open(gateway.address())).collect();
    let started = Instant::now();
    let busy: Vec<_> = busy.into_iter().map(|client| thread::spawn(move || talk(client, started))).collect();
    // A pause, so that idle connections are recognized.
    throughout(Duration::from_secs(2), "nothing ends", || gateway.log().lines().is_empty());
    let signal = Instant::now();
    let offset = signal.duration_since(started);
    gateway.signal(Signal::TERM);
    let idle: Vec<_> = idle
        .into_iter()
        .map(|mut client| {
            let (bytes, end) = rest(&mut client);
            assert!(bytes.is_empty());
            (signal.elapsed(), end)
        })
        .collect();
    let busy: Vec<_> =
        busy.into_iter().map(|thread| thread.join().unwrap()).map(|(at, end)| (at - offset, end)).collect();
    let status = gateway.wait_end();
    let took = signal.elapsed();
    let last_idle = idle.iter().map(|(at, _)| *at).max().unwrap();
    let ends: Vec<_> = busy.iter().map(|(at, _)| *at).collect();
    let resets = idle.iter().chain(&busy).filter(|(_, end)| *end != End::Fin).count();
    figure!(
        "drain 2 s + 4 s: idle connections closed by {last_idle:?}, busy ones at {ends:?}, {resets} resets, exited after {took:?}"
    );
    assert_eq!(resets, 0);
    assert!(status.success(), "{status}");
    assert!(last_idle < Duration::from_secs(5), "{last_idle:?}");
    let first_busy = *ends.iter().min().unwrap();
    assert!(
        first_busy + Duration::from_millis(250) > last_idle,
        "a busy connection was closed before an idle one: {last_idle:?}, {first_busy:?}"
    );
    assert!(took < Duration::from_secs(8), "{took:?}");
    let drained = gateway.log().count(|line| line.reason() == "drained");
    assert_eq!(drained, 48, "{:?}", gateway.log().lines());
}

/// Peers that ignore the FIN do not delay the exit.
#[test]
fn drain_deadline_closes_remaining_connections() {
    let _alone = alone();
    let server = Scripted::new(|mut stream, _| {
        let _gone = stream.write_all(b"+");
        // It sees the FIN and keeps its side open.
        let _bytes = rest(&mut stream);
        thread::park_timeout(Duration::from_secs(20));
    });
    let mut gateway = Setup::new(service(HOST, &[], &[server.address()]))
        .with("drain: { accept_for: 1s, window: 3s }")
        .start();
    let clients: Vec<TcpStream> = (0..20).map(|_| open(gateway.address())).collect();
    let started = Instant::now();
    gateway.signal(Signal::TERM);
    let status = gateway.wait_end();
    let took = started.elapsed();
    figure!("20 connections whose peers ignore the FIN, drain 1 s + 3 s: exited after {took:?}");
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_millis(5_500), "not closed at the deadline ± 1 s: {took:?}");
    assert_eq!(gateway.log().lines().len(), 20, "log lines");
    drop(clients);
}

#[test]
fn drain_ends_with_the_last_connection() {
    let (mut gateway, _server) = world("accept_for: 1s, window: 60s");
    let client = open(gateway.address());
    let started = Instant::now();
    gateway.signal(Signal::TERM);
    until("the gateway is not ready", || !gateway.is_ready());
    drop(client);
    assert!(gateway.wait_end().success());
    let took = started.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn second_signal_exits_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let (mut gateway, _server) = world("accept_for: 60s, window: 60s");
        let mut client = open(gateway.address());
        gateway.signal(Signal::TERM);
        until("the gateway is not ready", || !gateway.is_ready());
        echo(&mut client, b"still here");
        let started = Instant::now();
        gateway.signal(second);
        let status = gateway.wait_end();
        let took = started.elapsed();
        figure!("a second signal: exited after {took:?} with {status}");
        assert!(took < Duration::from_secs(3), "{took:?}");
        assert_ne!(rest(&mut client).1, End::Open);
        gateway.log().wait("the cut connection", |line| line.reason() == "shutdown");
    }
}

#[test]
fn drain_by_http_equals_drain_by_signal() {
    let (mut gateway, _server) = world("accept_for: 1s, window: 2s");
    assert_eq!(http::ask(gateway.at("admin"), "GET", "/drain").status, 405, "GET changes nothing");
    assert!(gateway.is_ready());
    let answer = http::ask(gateway.at("admin"), "POST", "/drain");
    assert!((200..300).contains(&answer.status), "{answer:?}");
    until("the gateway is not ready", || !ready(&gateway));
    assert!(gateway.wait_end().success());
}

fn ready(gateway: &Gateway) -> bool {
    http::ask_as(gateway.at("health"), "localhost", "GET", "/healthz/ready")
        .is_ok_and(|answer| answer.status == 200)
}

/// Clients in the accept queue when the gateway stops accepting are served, not reset.
#[test]
fn drain_serves_clients_in_the_accept_queue() {
    let _alone = alone();
    let (mut gateway, server) = world("accept_for: 0s, window: 3s");
    gateway.signal(Signal::STOP);
    let mut clients: Vec<TcpStream> =
        (0..200).map(|_| send(gateway.address(), &Hello::new(HOST).bytes())).collect();
    gateway.signal(Signal::TERM);
    gateway.signal(Signal::CONT);
    let ends: Vec<_> = clients.iter_mut().map(rest).collect();
    let resets = ends.iter().filter(|(_, end)| *end != End::Fin).count();
    let served = ends.iter().filter(|(bytes, _)| bytes == b"+").count();
    figure!(
        "200 clients in the queue at SIGTERM with accept_for 0: {resets} reset, {served} served, {} endpoint connections",
        server.accepted()
    );
    assert_eq!(resets, 0);
    assert!(gateway.wait_end().success());
}

/// Continuously arriving clients are served or see a closed port, never a reset.
#[test]
fn drain_never_resets_arriving_clients() {
    let _alone = alone();
    let (mut gateway, _server) = world("accept_for: 1s, window: 3s");
    let address = gateway.address();
    let stop = AtomicBool::new(false);
    let (served, resets) = thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (mut served, mut resets) = (0, 0);
                    while !stop.load(SeqCst) {
                        let Ok(mut client) = TcpStream::connect(address) else { continue };
                        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                        let mut answer = [0];
                        match client
                            .write_all(&Hello::new(HOST).bytes())
                            .and_then(|()| client.read(&mut answer))
                        {
                            Ok(1) => served += 1,
                            Ok(_) => {}
                            Err(_) => resets += 1,
                        }
                    }
                    (served, resets)
                })
            })
            .collect();
        until("the gateway serves", || {
            gateway.metrics().sum("isthmus_connections_accepted_total", &[]) > 50.0
        });
        gateway.signal(Signal::TERM);
        gateway.wait_end();
        stop.store(true, SeqCst);
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    });
    figure!("clients arriving through a drain: {served} served, {resets} reset");
    assert!(served > 50);
    // A client between the last accept and the close of the socket is unavoidable.
    assert!(resets <= 2, "{resets} resets");
}

#[test]
fn gateway_restarts_on_its_ports_after_sigkill() {
    let server = Scripted::echo(b"+");
    let setup = Setup::new(service(HOST, &[], &[server.address()]));
    let mut gateway = setup.start();
    let mut clients: Vec<TcpStream> = (0..20).map(|_| open(gateway.address())).collect();
    gateway.kill();
    for client in &mut clients {
        assert_ne!(rest(client).1, End::Open);
    }
    let started = Instant::now();
    let again = setup.ports_of(&gateway).start();
    assert_eq!(again.addresses(), gateway.addresses());
    echo(&mut open(again.address()), b"again");
    figure!("killed, serving again on the same ports after {:?}", started.elapsed());
}

/// A port in use makes the start fail; the gateway does not listen elsewhere.
#[test]
fn second_gateway_on_the_same_port_fails_to_start() {
    let (gateway, server) = world("window: 1s");
    let second = Setup::new(service(HOST, &[], &[server.address()])).ports_of(&gateway);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("second.yaml");
    std::fs::write(&file, second.yaml()).unwrap();
    let mut child = std::process::Command::new(isthmus_tests::binary::gateway())
        .args(["run", "--config"])
        .arg(&file)
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ended = within(Duration::from_secs(10), || child.try_wait().unwrap().is_some());
    if !ended {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(ended, "a second gateway is running on the same ports: {stderr}");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(serves(gateway.address()), "the first gateway no longer serves");
    let mut client = dial(gateway.address());
    client.write_all(&hello(HOST)).unwrap();
    assert_eq!(read_exactly(&mut client, 1), b"+");
}
