//! Tests the agent's admin port over real sockets: every path, access, and that no client takes more than its share.
//! Registrations behind it are real; the rest of an agent is not.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use clap::Parser;
use isthmus_agent::admin::{ExplainQuestion, Limits, Local, Pages, Refusal, serve, serve_local};
use isthmus_agent::cli::ask::{AskError, Question, ask};
use isthmus_model::admin::Answer;
use isthmus_model::admin::agent::{Deregistered, Explanation, Lease, Matrix, Registry, Status};
use isthmus_model::services::Service;
use isthmus_registry::registered::Registered;
use isthmus_registry::registered::lease::LeaseId;
use isthmus_registry::registered::registrar::Registrar;
use isthmus_registry::registered::registration::Registration;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Long enough for a busy machine; only a failure waits this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A registration token.
const TOKEN: &str = "4f1d9c2a7b8e";

/// Registrations behind the admin port.
#[derive(Default)]
struct Agent {
    registered: Mutex<Registered>,
    ready: AtomicBool,
    /// Metrics take this lock, as an agent's take that of its state.
    busy: Mutex<()>,
    metrics_made: AtomicUsize,
}

impl Agent {
    fn count(&self) -> usize {
        self.registered.lock().unwrap().count()
    }
}

impl Pages for Agent {
    fn status(&self) -> Status {
        let registry = Registry { registered: self.count() as u64, ..Registry::default() };
        Status { registry, ..Status::default() }
    }

    fn matrix(&self) -> Matrix {
        Matrix::default()
    }

    fn explain(&self, question: &ExplainQuestion) -> Result<Explanation, String> {
        let host = question.host.as_str();
        let services = self.registered.lock().unwrap().services();
        let found = services.iter().find(|service| service.host.to_string() == host);
        let explanation = |service: &Service| Explanation {
            host: host.to_owned(),
            port: Some(service.port),
            others: service.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect(),
            ..Explanation::default()
        };
        found.map(explanation).ok_or_else(|| format!("{host:?} is no service"))
    }

    fn holder(&self, token: &str) -> Option<Registrar> {
        (token == TOKEN).then(|| Registrar::Token("vms".to_owned()))
    }

    fn register(&self, body: &[u8], by: &Registrar) -> Result<Lease, Refusal> {
        let registration = Registration::parse(body)?;
        let mut registered = self.registered.lock().unwrap();
        let lease = registered.register(registration, by, &[], LeaseId::random().unwrap(), Instant::now())?;
        Ok(lease.page())
    }

    fn heartbeat(&self, body: &[u8]) -> Result<Lease, Refusal> {
        let id = LeaseId::from_body(body)?;
        Ok(self.registered.lock().unwrap().heartbeat(&id, Instant::now())?.page())
    }

    fn deregister(&self, body: &[u8]) -> Result<Deregistered, Refusal> {
        let identity = self.registered.lock().unwrap().deregister(&LeaseId::from_body(body)?)?;
        Ok(Deregistered { deregistered: identity.to_string() })
    }

    fn ready(&self) -> bool {
        self.ready.load(SeqCst)
    }

    fn metrics(&self) -> String {
        self.metrics_made.fetch_add(1, SeqCst);
        let _quiet = self.busy.lock().unwrap();
        "# TYPE isthmus_agent_registered gauge\n".to_owned()
    }
}

struct World {
    at: SocketAddr,
    agent: Arc<Agent>,
    runtime: Option<Runtime>,
}

impl World {
    fn new(limits: Limits) -> World {
        let agent = Arc::new(Agent::default());
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let at = listener.local_addr().unwrap();
        runtime.spawn(serve(listener, Arc::clone(&agent) as Arc<dyn Pages>, limits));
        World { at, agent, runtime: Some(runtime) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a raw head and body; returns the status and the body of the answer.
    fn send(&self, line: &str, headers: &str, body: &[u8]) -> (u16, String) {
        let mut stream = self.connect();
        write!(stream, "{line} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").unwrap();
        stream.write_all(body).unwrap();
        let (head, body) = hear(&mut stream);
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.send(&format!("GET {path}"), &format!("Host: {}\r\n", self.at), b"")
    }

    fn post(&self, path: &str, body: &[u8]) -> (u16, Value) {
        let proof =
            if path == "/register" { format!("Authorization: Bearer {TOKEN}\r\n") } else { String::new() };
        let headers = format!("Host: {}\r\n{proof}Content-Length: {}\r\n", self.at, body.len());
        let (status, body) = self.send(&format!("POST {path}"), &headers, body);
        (status, serde_json::from_str(&body).unwrap())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn hear(stream: &mut TcpStream) -> (String, String) {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    (head.to_owned(), body.to_owned())
}

fn registration(instance: &str, address: &str) -> String {
    json!({ "host": "db.pxc", "port": 3306, "instance": instance, "endpoints": [{ "address": address }] })
        .to_string()
}

#[test]
fn admin_port_serves_every_path() {
    let world = World::new(Limits::default());
    assert_eq!(world.get("/healthz/live"), (200, "live\n".to_owned()));
    assert_eq!(world.get("/healthz/ready"), (503, "not ready\n".to_owned()));
    world.agent.ready.store(true, SeqCst);
    assert_eq!(world.get("/healthz/ready"), (200, "ready\n".to_owned()));
    assert!(world.get("/metrics").1.contains("isthmus_agent_registered"));

    let (status, lease) = world.post("/register", registration("db-0", "10.0.0.1:3306").as_bytes());
    assert_eq!((status, &lease["ttl"], &lease["heartbeat_every"]), (200, &json!("30s"), &json!("10s")));
    let word = json!({ "lease": lease["lease"] }).to_string();
    let status: Status = serde_json::from_str(&world.get("/status").1).unwrap();
    assert_eq!(status.registry.registered, 1);
    let explained: Explanation = serde_json::from_str(&world.get("/explain?host=db%2epxc").1).unwrap();
    assert_eq!(explained.others, ["10.0.0.1:3306"]);
    let schema: Value = serde_json::from_str(&world.get("/schema").1).unwrap();
    assert_eq!(schema["properties"]["/heartbeat"]["$ref"], "#/$defs/Lease");
    assert_eq!(world.post("/heartbeat", word.as_bytes()), (200, lease));
    // The same instance at another address, and another instance at the same address.
    let (status, taken) = world.post("/register", registration("db-0", "10.0.0.2:3306").as_bytes());
    assert_eq!(status, 409);
    assert!(taken["error"].as_str().unwrap().contains("is already registered at 10.0.0.1:3306"), "{taken}");
    assert_eq!(world.post("/register", registration("db-1", "10.0.0.1:3306").as_bytes()).0, 409);
    let (status, wrong) = world.post("/register", registration("db-1", "10.0.0.1").as_bytes());
    assert_eq!(
        (status, wrong["error"].as_str().unwrap().split(':').next()),
        (400, Some("endpoints[0].address"))
    );
    assert_eq!(world.post("/deregister", b"{}").0, 400);
    let (status, gone) = world.post("/deregister", word.as_bytes());
    assert_eq!((status, gone), (200, json!({ "deregistered": "db-0 of db.pxc:3306" })));
    for path in ["/heartbeat", "/deregister"] {
        let (status, unknown) = world.post(path, word.as_bytes());
        assert_eq!(status, 404);
        assert!(unknown["error"].as_str().unwrap().contains("register again"), "{unknown}");
    }
    assert_eq!(world.agent.count(), 0);
}

#[test]
fn admin_port_refuses_wrong_methods_paths_and_queries() {
    let world = World::new(Limits::default());
    let host = format!("Host: {}\r\n", world.at);
    let error = |answer: (u16, String)| {
        let body: Value = serde_json::from_str(&answer.1).unwrap();
        (answer.0, body["error"].as_str().unwrap().to_owned())
    };
    let body = registration("db-0", "10.0.0.1:3306");
    for path in ["/register", "/heartbeat", "/deregister"] {
        for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
            let headers = format!("{host}Content-Length: {}\r\n", body.len());
            let (status, why) = error(world.send(&format!("{method} {path}"), &headers, body.as_bytes()));
            assert_eq!((status, why.as_str()), (405, "this path takes POST"), "{method} {path}");
        }
    }
    for path in ["/status", "/explain?host=a", "/schema", "/metrics", "/healthz/ready", "/healthz/live"] {
        let answer = world.send(&format!("POST {path}"), &format!("{host}Content-Length: 0\r\n"), b"");
        assert_eq!(error(answer), (405, "this path takes GET, HEAD".to_owned()), "{path}");
    }
    for path in ["/", "/drain", "/status/", "/Register", "//status", "/healthz", "/%73tatus"] {
        assert_eq!(error(world.get(path)), (404, "no such path".to_owned()), "{path}");
    }
    let listed: Value = serde_json::from_str(&world.get("/").1).unwrap();
    assert!(listed["post"].as_array().unwrap().contains(&json!("/register")), "{listed}");
    for query in ["", "?", "?host=", "?hosts=a", "?host=a&host=b", "?host=%ff"] {
        assert_eq!(error(world.get(&format!("/explain{query}"))).0, 400, "{query}");
    }
    assert_eq!(error(world.get("/explain?host=%00%1b")), (400, "\"\\0\\u{1b}\" is no service".to_owned()));
    let (status, nothing) = world.send("HEAD /status", &host, b"");
    assert_eq!((status, nothing.as_str()), (200, ""));
    assert_eq!(world.agent.count(), 0);
}

#[test]
fn admin_port_refuses_foreign_host_and_origin() {
    let world = World::new(Limits::default());
    let body = registration("db-0", "10.0.0.1:3306");
    let own = format!("Host: {}\r\n", world.at);
    let ask = |target: &str, headers: &str| {
        let headers = format!("{headers}Authorization: Bearer {TOKEN}\r\nContent-Length: {}\r\n", body.len());
        let posted = world.send(&format!("POST {target}/register"), &headers, body.as_bytes()).0;
        let got = world
            .send(&format!("GET {target}/status"), headers.split("Authorization").next().unwrap(), b"")
            .0;
        (posted, got)
    };
    for host in ["evil.example", &format!("evil.example:{}", world.at.port()), "10.0.0.1", "localhost:1", ""]
    {
        assert_eq!(ask("", &format!("Host: {host}\r\n")), (403, 403), "{host}");
    }
    assert_eq!(ask("", ""), (403, 403), "no Host");
    assert_eq!(ask("", &format!("{own}Host: evil.example\r\n")), (403, 403), "two");
    assert_eq!(ask("http://evil.example", &own), (403, 403), "absolute");
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1", &format!("https://{}", world.at), ""]
    {
        assert_eq!(ask("", &format!("{own}Origin: {origin}\r\n")), (403, 403), "{origin}");
    }
    assert_eq!(world.agent.count(), 0);
    assert_eq!(ask("", &format!("{own}Origin: http://{}\r\n", world.at)), (200, 200));
    assert_eq!(ask(&format!("http://{}", world.at), "Host: localhost\r\n"), (200, 200));
}

#[test]
fn registration_needs_a_token_and_heartbeat_needs_the_lease() {
    let world = World::new(Limits::default());
    let body = registration("db-0", "10.0.0.1:3306");
    let own = format!("Host: {}\r\nContent-Length: {}\r\n", world.at, body.len());
    for proof in [
        "",
        "Authorization: Bearer wrong\r\n",
        "Authorization: Bearer \r\n",
        &format!("Authorization: Basic {TOKEN}\r\n"),
        &format!("Authorization: {TOKEN}\r\n"),
        &format!("Authorization: Bearer {TOKEN}x\r\n"),
        &format!("Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\n"),
        &format!("X-Token: {TOKEN}\r\n"),
    ] {
        let (status, why) = world.send("POST /register", &format!("{own}{proof}"), body.as_bytes());
        assert!(status == 401 && why.contains("registering needs a proof"), "{proof:?}: {status} {why}");
        let query = format!("POST /register?token={TOKEN}");
        assert_eq!(
            world.send(&query, &format!("{own}{proof}"), body.as_bytes()).0,
            401,
            "a token in the query"
        );
    }
    assert_eq!(world.agent.count(), 0);
    let (status, lease) = world.post("/register", body.as_bytes());
    assert_eq!((status, world.agent.count()), (200, 1));
    let word = json!({ "lease": lease["lease"] }).to_string();
    assert_eq!(world.post("/heartbeat", word.as_bytes()).0, 200);
    assert_eq!(world.post("/deregister", word.as_bytes()).0, 200);
    assert_eq!(world.agent.registered.lock().unwrap().registrars().len(), 0);
}

#[test]
fn registration_by_socket_is_attributed_to_the_peer_user() {
    let world = World::new(Limits::default());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.sock");
    // Leftover of a killed agent.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let local = Local { path: path.clone(), users: [1_000_001].into() };
    let pages = Arc::clone(&world.agent) as Arc<dyn Pages>;
    let serving = serve_local(local.clone(), Arc::clone(&pages), Limits::default());
    world.runtime.as_ref().unwrap().spawn(serving);
    let file = folder.path().join("me.json");
    std::fs::write(&file, registration("db-0", "10.0.0.1:3306")).unwrap();
    let socket = path.to_str().unwrap();
    let tell = |words: &[&str]| {
        let line = [&["isthmus-agent"], words, &["--socket", socket]].concat();
        ask(&Line::try_parse_from(line).unwrap().question)
    };
    let begun = Instant::now();
    let lease = loop {
        match tell(&["register", file.to_str().unwrap()]) {
            Ok(lease) => break lease.value()["lease"].as_str().unwrap().to_owned(),
            Err(AskError::Nobody { .. }) if begun.elapsed() < PATIENCE => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    let own = Registrar::User(rustix::process::geteuid().as_raw());
    assert_eq!(world.agent.registered.lock().unwrap().registrars().keys().collect::<Vec<_>>(), [&own]);
    tell(&["heartbeat", &lease]).unwrap();
    tell(&["deregister", &lease]).unwrap();
    // Neither a served socket nor another file is removed.
    let other = folder.path().join("file");
    std::fs::write(&other, "mine").unwrap();
    let elsewhere = Local { path: other.clone(), ..local.clone() };
    for taken in [local, elsewhere] {
        let (tried, trying) = std::sync::mpsc::channel();
        let serving = serve_local(taken, Arc::clone(&pages), Limits::default());
        world.runtime.as_ref().unwrap().spawn(async move {
            tokio::select! {
                biased;
                () = serving => {}
                () = std::future::ready(()) => tried.send(()).unwrap(),
            }
        });
        trying.recv_timeout(PATIENCE).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "mine");
    tell(&["register", file.to_str().unwrap()]).unwrap();
}

#[test]
fn request_body_is_bounded_in_size_and_time() {
    let world = World::new(Limits { body: PATIENCE, ..Limits::default() });
    for size in [(64 << 10) + 1, 900 << 10] {
        let (status, why) = world.post("/register", &vec![b' '; size]);
        assert_eq!(status, 413, "{size}");
        assert_eq!(why["error"], "the body is larger than 64 KiB; send less");
    }
    // The largest body that fits is read whole.
    let mut fits = registration("db-0", "10.0.0.1:3306").into_bytes();
    fits.resize(64 << 10, b' ');
    assert_eq!(world.post("/register", &fits).0, 200);
    // An endless chunked body is cut off.
    let mut endless = world.connect();
    write!(endless, "POST /register HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    let sent = (0..4_096).take_while(|_| endless.write_all(&chunk).is_ok()).count();
    assert!(sent < 4_096, "all of 256 MiB was read");
    assert_eq!((world.get("/healthz/live").0, world.agent.count()), (200, 1));
    // A body that stops half-way.
    let world = World::new(Limits { body: Duration::from_millis(300), ..Limits::default() });
    let mut slow = world.connect();
    write!(slow, "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{{").unwrap();
    let (head, body) = hear(&mut slow);
    assert!(
        head.starts_with("HTTP/1.1 408 ") && body.contains("timed out waiting for the request body"),
        "{head}\n{body}"
    );
    let mut cut = world.connect();
    write!(cut, "POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{{").unwrap();
    cut.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    cut.read_to_end(&mut rest).unwrap();
    assert_eq!((world.get("/healthz/live").0, world.agent.count()), (200, 0));
}

/// The agent's lock is held, and every page slot is taken; health checks are answered all the same.
#[test]
fn health_check_is_answered_while_metrics_and_pages_wait_for_the_lock() {
    const LOOPING: usize = 60;
    let world = World::new(Limits { clients: LOOPING + 4, ..Limits::default() });
    world.agent.ready.store(true, SeqCst);
    let busy = world.agent.busy.lock().unwrap();
    let registered = world.agent.registered.lock().unwrap();
    let ask = |path: &str| {
        let mut stream = world.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        stream
    };
    let mut scraping: Vec<_> = (0..LOOPING).map(|_| ask("/metrics")).collect();
    let mut looking: Vec<_> = (0..3).map(|_| ask("/status")).collect();
    let begun = Instant::now();
    while world.agent.metrics_made.load(SeqCst) == 0 {
        assert!(begun.elapsed() < PATIENCE, "metrics were not requested");
        std::thread::yield_now();
    }
    for _ in 0..20 {
        assert_eq!(world.get("/healthz/ready"), (200, "ready\n".to_owned()));
        assert_eq!(world.get("/healthz/live").0, 200);
    }
    drop((busy, registered));
    for stream in scraping.iter_mut().chain(&mut looking) {
        assert!(hear(stream).0.starts_with("HTTP/1.1 200 "));
    }
    // Once for the first client, once for all that came meanwhile, a third time for late ones.
    let made = world.agent.metrics_made.load(SeqCst);
    assert!(made <= 3, "made {made} times for {LOOPING} clients");
}

#[test]
fn garbage_is_refused_and_harmless() {
    let world = World::new(Limits::default());
    let mut random = fastrand::Rng::with_seed(7);
    let long = "x".repeat(100_000);
    let mut all: Vec<Vec<u8>> = vec![
        b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /status\r\n\r\n".to_vec(),
        b"GET \x1b[31m HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n".to_vec(),
        b"POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz"
            .to_vec(),
        format!("GET /status HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n").into_bytes(),
        format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes(),
        format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1_000)).into_bytes(),
        format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "[".repeat(1_000)).into_bytes(),
    ];
    for _ in 0..100 {
        let length = random.usize(..300);
        all.push((0..length).map(|_| random.u8(..)).collect());
    }
    for bytes in &all {
        let mut stream = world.connect();
        // The server may close before everything is sent.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(ended.is_ok() || ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{:?}", bytes.escape_ascii().to_string());
    }
    assert_eq!((world.get("/healthz/live").0, world.agent.count()), (200, 0));
}

#[test]
fn slow_headers_are_cut_off_at_the_deadline() {
    let world = World::new(Limits { headers: Duration::from_secs(2), ..Limits::default() });
    let mut slow = world.connect();
    slow.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (begin, mut bytes) = (Instant::now(), 0);
    // Each byte arrives in time, the whole does not.
    for byte in "GET /status HTTP/1.1\r\nX: ".bytes().chain(std::iter::repeat(b'x')) {
        assert!(begin.elapsed() < PATIENCE, "still open after {bytes} bytes");
        let ended = match slow.write_all(&[byte]) {
            Err(_) => true,
            Ok(()) => match slow.read(&mut [0; 256]) {
                Ok(0) => true,
                Ok(_) => false,
                Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            },
        };
        if ended {
            break;
        }
        bytes += 1;
        if bytes == 5 {
            assert_eq!(world.get("/healthz/live").0, 200, "other clients are answered meanwhile");
        }
    }
    assert!(bytes >= 5, "closed after {bytes} bytes");
}

#[test]
fn connections_over_the_limit_are_closed_oldest_first() {
    // Only the connection limit can close them.
    let hour = Duration::from_secs(3_600);
    let limits = Limits { headers: hour, body: hour, longest: hour, ..Limits::default() };
    let world = World::new(limits);
    let all: Vec<TcpStream> = (0..1_000)
        .map(|_| {
            let mut client = world.connect();
            client.write_all(b"G").unwrap();
            client.set_nonblocking(true).unwrap();
            client
        })
        .collect();
    assert_eq!(world.get("/healthz/live").0, 200, "one more is answered");
    let open = || {
        let is_open = |client: &&TcpStream| match client.peek(&mut [0]) {
            Ok(read) => read > 0,
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        all.iter().filter(is_open).count()
    };
    let end = Instant::now() + PATIENCE;
    while open() >= limits.clients && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(open(), limits.clients - 1, "the newest stay, except one that made room for the health check");
    let oldest_of_those = all.len() - (limits.clients - 1);
    for (index, client) in all.iter().enumerate() {
        let kept = client.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        assert_eq!(kept, index >= oldest_of_those, "{index}");
    }
}

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    question: Question,
}

/// Runs a command of `isthmus-agent`.
fn call(at: &str, words: &[&str]) -> Result<Answer, AskError> {
    let line = [&["isthmus-agent"], words, &["--admin", at]].concat();
    ask(&Line::try_parse_from(line).unwrap().question)
}

#[test]
fn command_line_queries_and_registers() {
    let world = World::new(Limits::default());
    let folder = tempfile::tempdir().unwrap();
    let file = |text: &str| -> PathBuf {
        let path = folder.path().join("me.json");
        std::fs::write(&path, text).unwrap();
        path
    };
    let good = file(&registration("db-0", "10.0.0.1:3306"));
    let good = good.to_str().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let register = ["register", good, "--token-file", token.to_str().unwrap()];
    for at in [world.at.to_string(), format!("http://{}/", world.at)] {
        let page = |words: &[&str]| call(&at, words).unwrap();
        assert_eq!(page(&["status"]).page::<Status>().unwrap().registry.registered, 0);
        let refused = call(&at, &register[..2]).unwrap_err().to_string();
        assert!(refused.contains("registering needs a proof"), "{refused}");
        let lease = page(&register).page::<Lease>().unwrap().lease.unwrap();
        assert_eq!(page(&register).page::<Lease>().unwrap().lease, None, "the lease is returned once");
        assert_eq!(page(&["explain", "db.pxc"]).page::<Explanation>().unwrap().port, Some(3306));
        assert_eq!(page(&["heartbeat", &lease]).page::<Lease>().unwrap().ttl, "30s");
        let gone: Deregistered = page(&["deregister", &lease]).page().unwrap();
        assert_eq!(gone.deregistered, "db-0 of db.pxc:3306");
    }
    let at = world.at.to_string();
    let error = |words: &[&str]| call(&at, words).unwrap_err().to_string();
    assert!(error(&["explain", "a&host=b c"]).ends_with("\"a&host=b c\" is no service"));
    assert!(error(&["deregister", "00"]).contains("with the lease that /register told"));
    assert!(
        error(&["register", folder.path().join("none").to_str().unwrap()]).contains("none: cannot be read")
    );
    file(&"x".repeat((64 << 10) + 1));
    assert!(error(&["register", good]).contains("larger than 64 KiB"));
    file("{}");
    assert!(error(&register).contains("the registration has no host"));
    let nowhere = folder.path().join("agent.yaml");
    let line = ["isthmus-agent", "heartbeat", "00", "--config", nowhere.to_str().unwrap()];
    let why = ask(&Line::try_parse_from(line).unwrap().question).unwrap_err().to_string();
    assert!(why.contains("agent.yaml") && why.contains("--socket"), "{why}");
}

#[test]
fn command_line_recognizes_what_is_not_an_agent() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = call(&nobody, &["status"]).unwrap_err();
    assert!(matches!(error, AskError::Nobody { .. }) && error.to_string().contains("--admin"), "{error}");
    let refuse = "HTTP/1.1 403 Forbidden\r\nContent-Length: 22\r\n\r\n{\"error\":\"\\u001b[31m\"}";
    for (answer, expected) in [
        ("SSH-2.0-OpenSSH_9.2\r\n", "is not the admin address of an agent"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "its answer (200 OK) is not JSON"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", "is not the admin address of an agent"),
        (refuse, ": \\u{1b}[31m"),
    ] {
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = stranger.local_addr().unwrap().to_string();
        let answering = std::thread::spawn(move || {
            let mut client = stranger.accept().unwrap().0;
            let _ = client.read(&mut [0; 4_096]).unwrap();
            client.write_all(answer.as_bytes()).unwrap();
        });
        let error = call(&at, &["status"]).unwrap_err().to_string();
        answering.join().unwrap();
        assert!(error.contains(expected), "{error:?}");
    }
}

#[test]
fn command_line_names_what_is_not_the_page() {
    let question = Line::try_parse_from(["isthmus-agent", "status"]).unwrap().question;
    let other = Answer::parse(br#"{"version": "0.1.0", "cluster": 7}"#).unwrap();
    let why = question.render(&other).unwrap_err().to_string();
    assert!(why.contains("cluster: invalid type") && why.contains("--json"), "{why}");
    let json = Line::try_parse_from(["isthmus-agent", "status", "--json"]).unwrap().question;
    assert!(json.render(&other).unwrap().contains("\"cluster\": 7"));
}
