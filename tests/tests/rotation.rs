//! Rotation: a root rolls over under load without a failed handshake, and a rotation killed at any point is
//! completed by the next one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_certs::facts::Facts;
use isthmus_certs::{
    Authority, Client, Identity, Peer, Server, SpiffeId, Trust, TrustDomain, TrustFiles, VerifyError,
    client_config,
};
use isthmus_tests::lock::alone;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::{until, until_some};
use isthmus_tests::{binary, figure, skip};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, HandshakeKind, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tempfile::TempDir;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const SERVER: &str = "spiffe://east.example/ns/test/sa/server";
const CLIENT: &str = "spiffe://east.example/ns/test/sa/client";
/// Connections per second in total.
const RATE: u32 = 200;
const CALLERS: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(20);

/// An authority's directory, managed with the command line.
struct Pki(TempDir);

impl Pki {
    /// Creates a cluster and the leaves of a server and a client.
    fn new(overlap: &str, ttl: &str) -> Pki {
        let pki = Pki(tempfile::tempdir().unwrap());
        pki.done(&["init", "--trust-domain", "east.example", "--overlap", overlap]);
        pki.done(&["intermediate", "--cluster", "east"]);
        for (name, id) in [("server", SERVER), ("client", CLIENT)] {
            pki.done(&["issue", "--spiffe", id, "--name", name, "--ttl", ttl]);
        }
        pki
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("pki")
    }

    fn command(&self, words: &[&str]) -> Command {
        command_in(&self.folder(), words)
    }

    fn done(&self, words: &[&str]) -> String {
        succeeded(words, self.command(words).output().unwrap())
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.done(&["status", "--json"])).unwrap()
    }

    fn step(&self) -> Option<String> {
        self.status()["rollover"]["step"].as_str().map(str::to_owned)
    }

    fn trust_files(&self, leaf: &str) -> TrustFiles {
        trust_files(&self.folder(), leaf)
    }
}

fn command_in(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(binary::certs());
    command.env("ISTHMUS_CERTS_DIR", folder).args(words);
    command
}

#[track_caller]
fn succeeded(words: &[&str], output: Output) -> String {
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn trust_files(folder: &Path, leaf: &str) -> TrustFiles {
    let leaf = folder.join("leaves").join(leaf);
    TrustFiles {
        certificate: leaf.join("tls.crt"),
        key: leaf.join("tls.key"),
        bundles: folder.join("bundles"),
        ..TrustFiles::default()
    }
}

/// A program, killed with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn only(id: &str) -> Peer {
    Peer::Ids(vec![SpiffeId::parse(id).unwrap()])
}

/// Echoes one byte to each connection of the expected client.
fn serve(server: Arc<Server>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let server = Arc::clone(&server);
            thread::spawn(move || {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut tls = StreamOwned::new(ServerConnection::new(server.config()).unwrap(), stream);
                let mut byte = [0];
                if tls.read_exact(&mut byte).is_ok() && tls.write_all(&byte).is_ok() {
                    tls.conn.send_close_notify();
                    // The client counts the call; its close may be of any kind.
                    let _ = tls.flush().and_then(|()| tls.read(&mut byte));
                }
            });
        }
    });
    address
}

/// The result of a call: the server's leaf, and whether the session was resumed.
struct Call {
    serial: String,
    was_resumed: bool,
}

fn call(config: Arc<rustls::ClientConfig>, gateway: SocketAddr, name: &str) -> io::Result<Call> {
    let stream = TcpStream::connect(gateway)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = StreamOwned::new(ClientConnection::new(config, name).unwrap(), stream);
    tls.write_all(b"x")?;
    tls.read_exact(&mut [0])?;
    let leaf = tls.conn.peer_certificates().unwrap().first().unwrap();
    Ok(Call {
        serial: Facts::read(leaf).unwrap().serial,
        was_resumed: tls.conn.handshake_kind() == Some(HandshakeKind::Resumed),
    })
}

/// Callers at a steady rate, until stopped.
#[derive(Default)]
struct Load {
    calls: AtomicUsize,
    resumed: AtomicUsize,
    failures: Mutex<Vec<String>>,
    serials: Mutex<BTreeSet<String>>,
    is_over: AtomicBool,
}

impl Load {
    /// Every second call uses a unique name, so that it cannot resume a session.
    fn run(&self, client: &Client, gateway: SocketAddr, caller: u32) {
        let pace = Duration::from_secs(1) * CALLERS / RATE;
        let start = Instant::now() + pace * caller / CALLERS;
        for number in 0.. {
            thread::sleep((start + pace * number).saturating_duration_since(Instant::now()));
            if self.is_over.load(Relaxed) {
                return;
            }
            let name = match number % 2 {
                0 => "all.web.example".to_owned(),
                _ => format!("c{caller}-{number}.web.example"),
            };
            self.calls.fetch_add(1, Relaxed);
            match call(client.config(), gateway, &name) {
                Ok(call) => {
                    self.resumed.fetch_add(usize::from(call.was_resumed), Relaxed);
                    self.serials.lock().unwrap().insert(call.serial);
                }
                Err(error) => self.failures.lock().unwrap().push(format!("{name}: {error}")),
            }
        }
    }
}

#[test]
fn roll_over_fails_no_handshake_at_200_per_second() {
    let _alone = alone();
    let pki = Pki::new("6s", "12s");
    let load_of = |leaf| Trust::load(&pki.trust_files(leaf)).unwrap();
    let (server_trust, client_trust) = (load_of("server"), load_of("client"));
    let _follow = [("server", &server_trust), ("client", &client_trust)]
        .map(|(leaf, trust)| trust.watch(pki.trust_files(leaf)).unwrap());
    let old = old_intermediate(&pki);
    let server = Arc::new(Server::new(server_trust, only(CLIENT), &[b"test"]).unwrap());
    let client = Client::new(client_trust, only(SERVER), &[b"test"]).unwrap();
    let gateway = Setup::new(service("*.web.example", &[], &[serve(Arc::clone(&server))])).start();
    let address = gateway.address();
    let rotating = pki.command(&["rotate", "--watch", "--root"]).stdout(Stdio::null()).spawn().unwrap();
    let rotating = Running(rotating);

    let load = Load::default();
    let started = Instant::now();
    let mut steps = Vec::new();
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            scope.spawn({
                let (load, client) = (&load, &client);
                move || load.run(client, address, caller)
            });
        }
        until_some("the roll-over is complete", || {
            let step = pki.step();
            if steps.last() != Some(&step) {
                steps.push(step.clone());
            }
            (steps.len() > 1 && step.is_none()).then_some(())
        });
        // Calls with only the new root.
        let before = load.calls.load(Relaxed);
        until("calls continue", || load.calls.load(Relaxed) > before + 3 * RATE as usize);
        load.is_over.store(true, Relaxed);
    });
    drop(rotating);
    let calls = load.calls.load(Relaxed);
    let rate = f64::from(u32::try_from(calls).unwrap()) / started.elapsed().as_secs_f64();
    let failures = load.failures.lock().unwrap();
    let leaves = load.serials.lock().unwrap().len();
    figure!(
        "{calls} connections at {rate:.0}/s over a root roll-over ({steps:?}), {} resumed, {leaves} server leaves, {} failed",
        load.resumed.load(Relaxed),
        failures.len()
    );
    assert!(failures.is_empty(), "{failures:?}");
    assert!(leaves >= 2, "the server's leaf was renewed under load");
    assert_eq!(pki.status()["trusted_roots"], json!([2]));
    let leaf = old.issue(&SpiffeId::parse(CLIENT).unwrap(), &[], Duration::from_secs(60)).unwrap();
    assert_eq!(refusal_of(leaf, &pki, &server).reason(), "unknown_issuer", "the old root is gone");
}

/// A copy of the cluster's intermediate under the first root.
fn old_intermediate(pki: &Pki) -> Authority {
    let read = |name: &str| fs::read_to_string(pki.folder().join("clusters/east").join(name)).unwrap();
    let domain = TrustDomain::new("east.example").unwrap();
    Authority::from_pem(domain, read("ca-cert.pem"), read("ca-key.pem")).unwrap()
}

/// The server's error for a client with an unexpired certificate under a removed root.
fn refusal_of(client: Identity, pki: &Pki, server: &Server) -> VerifyError {
    let bundles = pki.trust_files("client").bundles_only().unwrap();
    let config = client_config(&client, Arc::new(bundles), only(SERVER)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let calling = thread::spawn(move || call(Arc::new(config), address, "web.example").is_ok());
    let stream = listener.accept().unwrap().0;
    let mut tls = StreamOwned::new(ServerConnection::new(server.config()).unwrap(), stream);
    let error = tls.read_exact(&mut [0]).unwrap_err();
    drop(tls);
    assert!(!calling.join().unwrap(), "the client was accepted");
    VerifyError::find_in(error.get_ref().unwrap().downcast_ref::<rustls::Error>().unwrap()).unwrap().clone()
}

/// System calls that change files: killing before each of them covers every intermediate state. (After a
/// kill, unlike a power failure, data is visible without fsync.)
const CHANGES: [&str; 15] = [
    "write",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "rmdir",
    "chmod",
    "fchmod",
];

/// Runs a command and kills it with SIGKILL at the `number`th such call; returns whether it got that far.
fn killed_at(change: &str, number: usize, folder: &Path, words: &[&str]) -> bool {
    let output = Command::new("strace")
        .args(["-f", "-qqq", "-o", "/dev/null", "-e", &format!("trace={change}")])
        .args(["-e", &format!("inject={change}:signal=KILL:when={number}")])
        .arg(binary::certs())
        .args(words)
        .env("ISTHMUS_CERTS_DIR", folder)
        .output()
        .unwrap();
    let was_killed = output.status.signal() == Some(9);
    assert!(was_killed || output.status.success(), "{words:?}: {output:?}");
    was_killed
}

/// Kills a command at each of its changes in turn, on a fresh copy of `before`; `check` inspects the result
/// of each kill. Returns the number of kills.
fn kill_everywhere(before: &Path, words: &[&str], check: impl Fn(&Path)) -> usize {
    let kills_at = |change: &str| {
        let kills = (1..).take_while(|number| {
            let copy = TempDir::new().unwrap();
            let folder = copy.path().join("pki");
            if before.exists() {
                let copied = Command::new("cp").arg("-a").arg(before).arg(&folder).status().unwrap();
                assert!(copied.success());
            }
            let was_killed = killed_at(change, *number, &folder, words);
            if was_killed {
                check(&folder);
            }
            was_killed
        });
        kills.count()
    };
    CHANGES.into_iter().map(kills_at).sum()
}

/// Asserts that a pass finds nothing to do, every leaf is valid, and no temporary files are left.
fn assert_in_order(folder: &Path) {
    let pass = succeeded(&["rotate"], command_in(folder, &["rotate", "--json"]).output().unwrap());
    let pass: Value = serde_json::from_str(&pass).unwrap();
    assert_eq!(pass["done"], json!([]), "{pass}");
    let status = succeeded(&["status"], command_in(folder, &["status", "--json"]).output().unwrap());
    let status: Value = serde_json::from_str(&status).unwrap();
    for leaf in status["certificates"].as_array().unwrap().iter().filter(|one| one["kind"] == "leaf") {
        Trust::load(&trust_files(folder, leaf["name"].as_str().unwrap())).unwrap();
    }
    let left: Vec<_> = all_files(folder).into_iter().filter(|path| is_left_over(path)).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn all_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(all_files(&entry.path()));
        }
        found.push(entry.path());
    }
    found
}

/// Whether the path is a temporary file or an unlinked set of files.
fn is_left_over(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    let data = || fs::read_link(path.with_file_name("..data")).ok();
    let is_old_set = name.starts_with("..") && name != "..data" && data() != Some(name.into());
    name.starts_with(".new-") || name.ends_with(".new") || is_old_set
}

#[test]
fn rotation_killed_anywhere_is_completed_by_the_next() {
    if Command::new("strace").arg("-V").output().is_err() {
        skip!("strace is not installed");
    }
    let pki = Pki::new("0s", "1h");
    pki.done(&["deny", "add", "spiffe://east.example/ns/gone/*"]);
    // The whole roll-over except its last step, which waits for certificates of the old root to expire.
    let kills = kill_everywhere(&pki.folder(), &["rotate", "--root"], |folder| {
        for leaf in ["server", "client"] {
            let trust = Trust::load(&trust_files(folder, leaf));
            trust.expect("a leaf, its key and its bundle");
        }
        succeeded(&["rotate"], command_in(folder, &["rotate", "--root"]).output().unwrap());
        let status = succeeded(&["status"], command_in(folder, &["status", "--json"]).output().unwrap());
        assert_eq!(serde_json::from_str::<Value>(&status).unwrap()["rollover"]["step"], "used");
        assert_in_order(folder);
    });
    figure!("rotate --root was killed at each of {kills} changes, and completed each time");
    assert!(kills > 50, "{kills}");
}

#[test]
fn roll_over_killed_in_its_last_step_is_completed() {
    if Command::new("strace").arg("-V").output().is_err() {
        skip!("strace is not installed");
    }
    let pki = Pki::new("0s", "2s");
    pki.done(&["rotate", "--root"]);
    let due = || {
        let due = pki.status()["rollover"]["next"].as_str().unwrap().to_owned();
        OffsetDateTime::parse(&due, &Rfc3339).unwrap() < OffsetDateTime::now_utc()
    };
    until("certificates of the old root have expired", due);
    let kills = kill_everywhere(&pki.folder(), &["rotate"], |folder| {
        succeeded(&["rotate"], command_in(folder, &["rotate"]).output().unwrap());
        let status = succeeded(&["status"], command_in(folder, &["status", "--json"]).output().unwrap());
        let status: Value = serde_json::from_str(&status).unwrap();
        assert_eq!((&status["trusted_roots"], &status["rollover"]), (&json!([2]), &Value::Null));
        assert!(!folder.join("roots/1").exists(), "the old key is still there");
    });
    figure!("the last step was killed at each of {kills} changes, and completed each time");
    assert!(kills > 20, "{kills}");
}

#[test]
fn killed_command_can_be_repeated() {
    if Command::new("strace").arg("-V").output().is_err() {
        skip!("strace is not installed");
    }
    let nothing = TempDir::new().unwrap();
    let init = ["init", "--trust-domain", "east.example"];
    let pki = Pki::new("0s", "1h");
    let leaf = ["issue", "--spiffe", "spiffe://east.example/ns/a/sa/b", "--name", "b"];
    let west = Pki(TempDir::new().unwrap());
    west.done(&["init", "--trust-domain", "west.example"]);
    let bundle = west.folder().join("bundles/west.example.json");
    let add = ["bundle", "add", bundle.to_str().unwrap(), "--trust-domain", "west.example"];
    let commands: [(&Path, &[&str]); 5] = [
        (&nothing.path().join("absent"), &init),
        (&pki.folder(), &["intermediate", "--cluster", "another"]),
        (&pki.folder(), &[&leaf[..], &["--cluster", "east"]].concat()),
        (&pki.folder(), &["deny", "add", "spiffe://east.example/ns/gone/*"]),
        (&pki.folder(), &add),
    ];
    for (before, words) in commands {
        let kills = kill_everywhere(before, words, |folder| {
            let again = command_in(folder, words).output().unwrap();
            // The command may have finished without reporting it.
            let was_done = words[0] == "init" && String::from_utf8_lossy(&again.stderr).contains("already");
            assert!(again.status.success() || was_done, "{again:?}");
            assert_in_order(folder);
        });
        figure!("{} was killed at each of {kills} changes", words[..2].join(" "));
        assert!(kills > 3, "{kills}");
    }
}
