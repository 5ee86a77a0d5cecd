//! Plaintext clients, the real psql and mariadb: the log identifies them and names the remedy, and the
//! gateway does not answer with bytes that they would take for their own protocol.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use isthmus_tests::gateway::Gateway;
use isthmus_tests::log::Line;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::skip;

fn gateway() -> Gateway {
    let nobody: SocketAddr = "127.0.0.1:9".parse().unwrap();
    Setup::new(service("db.example", &[], &[nobody])).with("timeouts: { hello: 1s }").start()
}

/// Runs a client to its end; `None` if it is not installed.
fn run(command: &mut Command) -> Option<Output> {
    command.stdin(Stdio::null()).env("PGCONNECT_TIMEOUT", "20").output().ok()
}

#[track_caller]
fn is_told(gateway: &Gateway, reason: &str, hint: &str) -> Line {
    let line = gateway.log().wait(reason, |line| line.reason() == reason);
    assert!(line.text("hint").contains(hint), "{line:?}");
    line
}

#[test]
fn plaintext_psql_is_identified_in_the_log() {
    for mode in ["require", "prefer", "disable"] {
        let gateway = gateway();
        let port = gateway.address().port();
        let place = format!("host=127.0.0.1 port={port} user=u dbname=d sslmode={mode} gssencmode=disable");
        let Some(output) = run(Command::new("psql").arg(place)) else {
            skip!("psql is not installed (tests/run installs it)")
        };
        assert!(!output.status.success());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!stderr.contains("invalid response") && !stderr.contains('\u{15}'), "{mode}: {stderr}");
        is_told(&gateway, "postgres_plain", "sslnegotiation=direct");
    }
}

#[test]
fn plaintext_mariadb_is_identified_in_the_log() {
    let gateway = gateway();
    let port = gateway.address().port().to_string();
    let mut client = Command::new("mariadb");
    client.args(["--no-defaults", "--host=127.0.0.1", "--user=u", "--connect-timeout=20", "--port", &port]);
    let Some(output) = run(&mut client) else { skip!("mariadb is not installed (tests/run installs it)") };
    assert!(!output.status.success());
    is_told(&gateway, "client_silent", "speaks first");
}
