//! gRPC in plaintext through the gateways, whose certificates live for seconds: a stream outlives them, and new calls use
//! the renewed ones.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_tests::control_plane::python;
use isthmus_tests::ends::Domains;
use isthmus_tests::wait::until;
use isthmus_tests::{figure, skip};

use crate::Way;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/stream.py");
/// A certificate's lifetime, how often it is renewed, and how many times: the stream spans four lifetimes. Three minutes
/// would show no more, and cost the suite as much.
const LIFETIME: Duration = Duration::from_secs(6);
const RENEWAL: Duration = Duration::from_secs(2);
const RENEWALS: u32 = 12;

/// The script as a server, a stream or a caller; it answers each line of its input with a line.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &std::path::Path, words: &[&str]) -> Peer {
        let mut child = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(python)
            .arg(SCRIPT)
            .args(words)
            .env("GRPC_VERBOSITY", "NONE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Peer { child, input, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self, words: &str) -> String {
        writeln!(self.input, "{words}").unwrap();
        self.line()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn grpc_stream_outlives_the_certificates_that_it_began_with() {
    let Some(python) = python() else {
        skip!("no Python with grpcio and xds-protos; tests/run installs one");
    };
    let domains = Domains::new();
    let mut server = Peer::start(&python, &["serve"]);
    let port: u16 = server.line().parse().unwrap();
    let way = Way::to(&domains, SocketAddr::from(([127, 0, 0, 1], port)));
    let renew = || ["app", "server"].map(|name| domains.issue_for("east", name, LIFETIME));
    renew();
    let serial = || {
        let all = way.west.admin("GET", "/status").json()["trust"]["certificates"].clone();
        all.as_array().unwrap().iter().map(|one| one["serial"].to_string()).collect::<Vec<_>>()
    };
    let first = serial();
    until("short certificates are in use", || serial() != first);
    let target = way.address().to_string();
    let mut stream = Peer::start(&python, &["stream", &target]);
    let mut caller = Peer::start(&python, &["call", &target]);
    let began = Instant::now();
    for turn in 0..RENEWALS {
        renew();
        assert_eq!(caller.ask("call"), "ok", "turn {turn}");
        thread::sleep((RENEWAL * (turn + 1)).saturating_sub(began.elapsed()));
    }
    let lifetimes = began.elapsed().as_secs() / LIFETIME.as_secs();
    let carried: u64 = stream.ask("count").parse().unwrap_or_else(|_| panic!("the stream broke"));
    assert!(lifetimes >= 3 && carried > 0);

    // Nothing is renewed any more: live streams go on, new connections are refused.
    until("the certificates have expired", || caller.ask("call") == "UNAVAILABLE");
    let (one, two) = (stream.ask("count"), stream.ask("count"));
    assert!(two.parse::<u64>().unwrap() > one.parse().unwrap(), "{one}, {two}");
    figure!(
        "a gRPC stream of {:?} carried {two} messages over {lifetimes} lifetimes of certificates",
        began.elapsed()
    );
    let ended = way.west.log().count(|line| line.number("duration_ms") > 20_000);
    assert_eq!(ended, 0, "the stream's connection is still the first");
}
