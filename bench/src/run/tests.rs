//! Runs against real TLS servers on loopback: every kind of operation, every kind of failure, and the
//! correction for coordinated omission.

mod output;

use std::io::{Read as _, Write as _};
use std::net::TcpListener as StdListener;
use std::sync::atomic::Ordering;

use clap::Parser;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use isthmus_certs::{Authority, Identity, Peer, SpiffeId, TrustBundles, TrustDomain, server_config};
use rustls::ServerConfig;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::failure::Kind;
use super::*;

const NAME: &str = "web.east.example";
const ID: &str = "spiffe://east.example/ns/shop/sa/web";

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    run: Run,
}

/// The client's files and the server's identity.
struct World {
    files: TempDir,
    authority: Authority,
    server: Identity,
}

impl World {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        let authority = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let stranger = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let issue = |id: &str| {
            let id = SpiffeId::parse(id).unwrap();
            authority.issue(&id, &[NAME], Duration::from_hours(1)).unwrap()
        };
        std::fs::write(files.path().join("ca.pem"), authority.certificate_pem()).unwrap();
        std::fs::write(files.path().join("stranger.pem"), stranger.certificate_pem()).unwrap();
        issue("spiffe://east.example/ns/shop/sa/client").write_to(files.path(), "client").unwrap();
        let server = issue(ID);
        Self { files, authority, server }
    }

    /// Requires no client certificate.
    fn open_config(&self) -> ServerConfig {
        ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.server.chain().to_vec(), self.server.key().clone_key())
            .unwrap()
    }

    /// Requires a client certificate of the trust domain.
    fn mutual_config(&self) -> ServerConfig {
        let mut bundles = TrustBundles::new();
        let domain = self.authority.trust_domain();
        bundles.add_root(domain.clone(), self.authority.certificate()).unwrap();
        server_config(&self.server, Arc::new(bundles), Peer::Domain(domain.clone())).unwrap()
    }

    /// Parses an operator's command line; a word ending in `.pem`, `.crt` or `.key` is a file of this world.
    fn prepare(&self, address: SocketAddr, line: &str) -> Prepared {
        let is_file = |word: &str| [".pem", ".crt", ".key"].iter().any(|end| word.ends_with(end));
        let words = line.split_whitespace().map(|word| match is_file(word) {
            true => self.files.path().join(word).display().to_string(),
            false => word.to_owned(),
        });
        let sni = (!line.contains("--sni")).then(|| format!("--sni={NAME}"));
        let fixed = ["run".to_owned(), address.to_string()].into_iter().chain(sni);
        let run = Cli::try_parse_from(fixed.chain(words)).unwrap().run;
        run.prepare().unwrap()
    }

    fn measure(&self, address: SocketAddr, line: &str) -> Report {
        self.prepare(address, line).measure().unwrap().0
    }
}

/// A server's behaviour after the handshake.
#[derive(Clone)]
enum Does {
    Echo,
    /// Echoes; after this many messages each one waits for a permit.
    StallAfter(usize, Arc<Semaphore>),
    /// Echoes a wrong first byte.
    Garble,
    HangUp,
    Http,
}

struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    _runtime: Runtime,
}

impl Server {
    fn start(config: ServerConfig, does: Does) -> Self {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (count, acceptor) = (Arc::clone(&accepted), TlsAcceptor::from(Arc::new(config)));
        runtime.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                tcp.set_nodelay(true).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let (acceptor, does) = (acceptor.clone(), does.clone());
                tokio::spawn(async move {
                    // Some clients are expected to reject this server.
                    if let Ok(stream) = acceptor.accept(tcp).await {
                        does.serve(stream).await;
                    }
                });
            }
        });
        Self { address, accepted, _runtime: runtime }
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Does {
    async fn serve(self, mut stream: TlsStream<TcpStream>) {
        let mut buffer = vec![0; 1 << 16];
        let mut messages = 0;
        match self {
            // Reads first: closing with unread bytes would reset the connection.
            Self::HangUp => return drop(stream.read(&mut buffer).await),
            Self::Http => return http(stream).await,
            Self::Garble => stream.write_all(&[0xff]).await.unwrap(),
            Self::Echo | Self::StallAfter(..) => {}
        }
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            messages += 1;
            if let Self::StallAfter(quick, gate) = &self
                && messages > *quick
            {
                let _permit = gate.acquire().await.unwrap();
            }
            if stream.write_all(&buffer[..count]).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
        let _ = stream.shutdown().await;
    }
}

async fn http(stream: TlsStream<TcpStream>) {
    let service = service_fn(async |request: hyper::Request<hyper::body::Incoming>| {
        let right = request.headers().get("host").is_some_and(|host| host == NAME);
        let status = if right && request.uri() == "/here?x=1" { 200 } else { 404 };
        hyper::Response::builder().status(status).body("hello".to_owned())
    });
    // The client may leave at any time.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A server that answers each ClientHello with these bytes.
fn answers_with(bytes: &'static [u8]) -> SocketAddr {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        while let Ok((mut tcp, _)) = listener.accept() {
            let mut hello = [0; 1 << 16];
            assert!(tcp.read(&mut hello).unwrap() > 0);
            tcp.write_all(bytes).unwrap();
            tcp.shutdown(std::net::Shutdown::Write).unwrap();
            // Reads until the client closes: closing with unread bytes would reset the connection.
            while tcp.read(&mut hello).is_ok_and(|count| count > 0) {}
        }
    });
    address
}

/// The kind, detail and step of the report's only failure.
fn only_failure(report: &Report) -> (&'static str, Option<&str>, &'static str) {
    let [failure] = &*report.failures else { panic!("not one kind: {:?}", report.failures) };
    assert_eq!(failure.count, report.failed, "{report:?}");
    assert!(!report.is_good());
    (failure.kind, failure.detail.as_deref(), failure.step)
}

fn alert(code: u8) -> Option<String> {
    Kind::Alert(code).detail()
}

#[test]
fn operation_is_a_whole_connection_by_default() {
    let world = World::new();
    let server = Server::start(world.open_config(), Does::Echo);
    let report = world.measure(server.address, "--ca ca.pem -n 30 -c 3");
    assert_eq!((report.succeeded, report.failed, report.unstarted), (30, 0, 0), "{:?}", report.failures);
    assert_eq!(server.accepted(), 30);
    let latency = &report.latency_us;
    let counts = [latency.connect, latency.handshake, latency.operation].map(|q| q.unwrap().count);
    assert_eq!(counts, [30; 3]);
    assert!(latency.first_byte.is_none() && latency.service.is_none());
    assert!(report.is_good());
}

#[test]
fn client_certificate_and_expected_identity_pass_mtls_server() {
    let world = World::new();
    let server = Server::start(world.mutual_config(), Does::Echo);
    let credentials = "--ca ca.pem --cert client.crt --key client.key -n 5";
    for expect in ["", "--expect spiffe://east.example", &format!("--expect {ID}")] {
        let report = world.measure(server.address, &format!("{credentials} {expect}"));
        assert_eq!((report.succeeded, report.failed), (5, 0), "{expect}: {:?}", report.failures);
    }
    let another = "--expect spiffe://east.example/ns/shop/sa/other";
    let report = world.measure(server.address, &format!("{credentials} {another}"));
    assert_eq!(only_failure(&report), ("certificate_refused", None, "handshake"));
    assert!(report.failures[0].example.contains(ID), "{:?}", report.failures);
}

#[test]
fn requests_share_connections_unless_one_each_is_asked_for() {
    let world = World::new();
    let server = Server::start(world.open_config(), Does::Http);
    let report = world.measure(server.address, "--ca ca.pem --http /here?x=1 -n 40 -c 4");
    assert_eq!((report.succeeded, report.failed), (40, 0), "{:?}", report.failures);
    assert_eq!(server.accepted(), 4);
    assert_eq!(report.latency_us.first_byte.unwrap().count, 40);
    let report = world.measure(server.address, "--ca ca.pem --http /here?x=1 -n 40 -c 4 --new");
    assert_eq!((report.succeeded, server.accepted()), (40, 44), "{:?}", report.failures);
    let report = world.measure(server.address, "--insecure --http /absent -n 3");
    assert_eq!(only_failure(&report), ("status", Some("404"), "answer"));
    // A connection may be opened for an operation that another one takes first.
    assert!(server.accepted() < 54, "connections are opened on demand");
}

#[test]
fn echo_must_equal_the_request() {
    let world = World::new();
    let server = Server::start(world.open_config(), Does::Echo);
    // More than all buffers on the path hold: sending and receiving must overlap.
    let report = world.measure(server.address, "--ca ca.pem --echo 20000000 -n 2 -c 1");
    assert_eq!((report.succeeded, server.accepted()), (2, 1), "{:?}", report.failures);
    let report = world.measure(server.address, "--ca ca.pem --echo 1 -n 6 -c 2 --new");
    assert_eq!((report.succeeded, server.accepted()), (6, 7), "{:?}", report.failures);
    let garbling = Server::start(world.open_config(), Does::Garble);
    let report = world.measure(garbling.address, "--ca ca.pem --echo 100 -n 3 -c 1");
    assert_eq!(only_failure(&report), ("wrong_answer", None, "answer"));
}

#[test]
fn failure_kinds_are_distinct() {
    let world = World::new();
    let open = Server::start(world.open_config(), Does::Echo);
    let mutual = Server::start(world.mutual_config(), Does::Echo);
    let hangs_up = Server::start(world.open_config(), Does::HangUp);
    let closed = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let unrecognized = answers_with(&[21, 3, 3, 0, 2, 2, 112]);
    let denied = answers_with(&[21, 3, 3, 0, 2, 2, 49]);
    let no_tls = answers_with(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let [missing, not_there, not_allowed] = [116, 112, 49].map(alert);
    let cases = [
        (open.address, "--ca stranger.pem", ("certificate_refused", None, "handshake")),
        (
            open.address,
            "--ca stranger.pem --expect spiffe://east.example",
            ("certificate_refused", None, "handshake"),
        ),
        (open.address, "--ca ca.pem --sni other.example", ("certificate_refused", None, "handshake")),
        (mutual.address, "--ca ca.pem", ("alert", missing.as_deref(), "close")),
        (mutual.address, "--ca ca.pem --http /", ("alert", missing.as_deref(), "answer")),
        (mutual.address, "--ca ca.pem --echo 9", ("alert", missing.as_deref(), "answer")),
        (closed, "--ca ca.pem", ("refused", None, "connect")),
        (unrecognized, "--ca ca.pem", ("alert", not_there.as_deref(), "handshake")),
        (denied, "--insecure", ("alert", not_allowed.as_deref(), "handshake")),
        (no_tls, "--insecure", ("tls", None, "handshake")),
        (hangs_up.address, "--insecure --echo 9", ("closed", None, "answer")),
    ];
    for (address, line, wanted) in cases {
        let report = world.measure(address, &format!("{line} -n 4 -c 2"));
        assert_eq!(only_failure(&report), wanted, "{line}: {:?}", report.failures);
        assert_eq!(report.succeeded, 0, "{line}");
    }
}

#[test]
fn addresses_are_used_in_turn() {
    let world = World::new();
    let servers = [(); 3].map(|()| Server::start(world.open_config(), Does::Echo));
    let mut prepared = world.prepare(servers[0].address, "--ca ca.pem -n 12 -c 2");
    prepared.client.addresses = servers.iter().map(|server| server.address).collect();
    let (report, _) = prepared.measure().unwrap();
    assert_eq!((report.succeeded, servers.map(|server| server.accepted())), (12, [4; 3]));
}

/// Coordinated omission: while one echo is delayed, 200 more become due. All of them waited, but only the one
/// in flight was slow by itself.
#[test]
fn latency_charges_stall_to_every_operation_due_meanwhile() {
    let world = World::new();
    let gate = Arc::new(Semaphore::new(0));
    let server = Server::start(world.open_config(), Does::StallAfter(20, Arc::clone(&gate)));
    let prepared =
        world.prepare(server.address, "--ca ca.pem --echo 64 -c 1 --rate 1000 -n 400 --timeout 1m");
    let drive = Drive::new(prepared.plan, prepared.client, prepared.connections).unwrap();
    let runtime = Runtime::new().unwrap();
    let running = Arc::clone(&drive);
    let run = runtime.spawn(async move { running.run().await });
    while drive.undone().unstarted < 200 {
        thread::yield_now();
    }
    gate.add_permits(1);
    runtime.block_on(run).unwrap().unwrap();

    let tally = drive.tally();
    assert_eq!((tally.succeeded, tally.failed), (400, 0), "{:?}", tally.failures);
    // At 1000 a second, the oldest of 200 has waited 199 ms, and 100 of them 100 ms or more.
    let slow = |times: &hdrhistogram::Histogram<u64>| times.count_between(99_000_000, u64::MAX);
    let (corrected, uncorrected) = (slow(&tally.operation), slow(&tally.service));
    assert!(corrected >= 100, "{corrected} waited 99 ms or more");
    assert!(uncorrected * 10 < corrected, "{uncorrected} were slow by themselves, {corrected} came late");
}

#[test]
fn missed_rate_is_reported_and_loses_no_operation() {
    let world = World::new();
    let never = Arc::new(Semaphore::new(0));
    let server = Server::start(world.open_config(), Does::StallAfter(0, never));
    let line = "--ca ca.pem --echo 64 -c 1 --rate 1000 --duration 100ms --timeout 100ms";
    let report = world.measure(server.address, line);
    assert_eq!(only_failure(&report), ("timed_out", None, "answer"));
    assert!(report.unstarted > 0, "{report:?}");
    assert_eq!((report.succeeded, report.failed + report.unstarted), (0, 100));
    assert!(show::summary(&report).contains("never started"));
}

#[test]
fn operations_in_flight_at_cut_off_are_neither_success_nor_failure() {
    let world = World::new();
    let never = Arc::new(Semaphore::new(0));
    let server = Server::start(world.open_config(), Does::StallAfter(1, never));
    let prepared = world.prepare(server.address, "--ca ca.pem --echo 64 -c 3 -n 1000 --timeout 1m");
    let drive = Drive::new(prepared.plan, prepared.client, prepared.connections).unwrap();
    let runtime = Runtime::new().unwrap();
    let running = Arc::clone(&drive);
    let run = runtime.spawn(async move { running.run().await });
    // Sequentially: both take the tally's lock.
    while { drive.tally().succeeded } < 3 || drive.undone().under_way < 3 {
        thread::yield_now();
    }
    run.abort();
    assert!(runtime.block_on(run).unwrap_err().is_cancelled());
    let undone = drive.undone();
    let report = Report::new(prepared.asked, &drive.tally(), undone, drive.elapsed(), true);
    assert_eq!((report.succeeded, report.failed, report.cut_off), (3, 0, 3));
    assert!(report.is_good());
    let summary = show::summary(&report);
    assert!(summary.contains("interrupted") && summary.contains("in flight, not counted: 3"), "{summary}");
}
