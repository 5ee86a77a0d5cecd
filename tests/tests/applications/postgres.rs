//! Postgres through the gateways: queries are cancelled by a connection that closes at once, and its own questions about
//! encryption reach it as they are.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::{Command, Output};

use isthmus_tests::client::{End, dial, read_exactly, rest};
use isthmus_tests::endpoint::{Endpoint, free};
use isthmus_tests::ends::{Domains, connect};
use isthmus_tests::hello::hello;
use isthmus_tests::wait::until;
use isthmus_tests::{is_root, skip};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::Way;
use crate::pgwire::{GSS_REQUEST, Session, TLS_REQUEST};
use crate::program::{Program, command, done, find, said};

/// Debian's `nobody`: the server refuses to run as root.
const NOBODY: u32 = 65534;
const CANCELLED: usize = 50;

/// A running server that answers a TLS request with yes.
struct Postgres {
    program: Program,
    address: SocketAddr,
    _folder: TempDir,
}

/// A command of an unprivileged user.
fn unprivileged(program: PathBuf) -> Command {
    if !is_root() {
        return command(program);
    }
    let mut command = Command::new("setpriv");
    command
        .args([
            "--pdeathsig=KILL",
            &format!("--reuid={NOBODY}"),
            &format!("--regid={NOBODY}"),
            "--clear-groups",
        ])
        .arg(program);
    command
}

impl Postgres {
    /// Starts a server with a certificate; `None` if it is not installed.
    fn start(domains: &Domains) -> Option<Postgres> {
        let (initdb, server) = (find("initdb")?, find("postgres")?);
        let folder = tempfile::Builder::new().prefix("isthmus-postgres-").tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        domains.issue("east", "postgres");
        for ending in ["crt", "key"] {
            let own = file(&format!("tls.{ending}"));
            fs::copy(domains.path(&format!("east-postgres.{ending}")), &own).unwrap();
            fs::set_permissions(&own, fs::Permissions::from_mode(0o600)).unwrap();
        }
        if is_root() {
            for own in [folder.path().to_owned(), file("tls.crt"), file("tls.key")] {
                chown(own, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        let data = file("data");
        done(
            unprivileged(initdb)
                .args(["--no-sync", "--no-instructions", "--auth=trust", "--username=postgres", "--pgdata"])
                .arg(&data)
                .current_dir(folder.path()),
        );
        let address = free();
        let setting = |text: String| ["-c".to_owned(), text];
        let mut run = unprivileged(server);
        run.arg("-D").arg(&data).current_dir(folder.path()).args(
            [
                "listen_addresses=127.0.0.1".to_owned(),
                format!("port={}", address.port()),
                "unix_socket_directories=".to_owned(),
                "fsync=off".to_owned(),
                "shared_buffers=8MB".to_owned(),
                "ssl=on".to_owned(),
                format!("ssl_cert_file={}", file("tls.crt").display()),
                format!("ssl_key_file={}", file("tls.key").display()),
            ]
            .into_iter()
            .flat_map(setting),
        );
        let program = Program::start(&mut run, &file("log"));
        let mut postgres = Postgres { program, address, _folder: folder };
        until("Postgres answers", || {
            postgres.program.assert_runs();
            psql(address, "sslmode=disable").status.success()
        });
        Some(postgres)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // At once, but with its shared memory.
        self.program.end(Signal::QUIT);
    }
}

/// Asks whether the connection is encrypted.
fn psql(address: SocketAddr, mode: &str) -> Output {
    let place = format!("host=127.0.0.1 port={} user=postgres dbname=postgres {mode}", address.port());
    let question = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    command("psql").args(["--no-psqlrc", "-At", "-c", question]).arg(place).output().unwrap()
}

/// As cloud-sql-proxy#1517.
#[test]
fn postgres_query_is_cancelled_by_a_connection_that_closes_at_once() {
    let domains = Domains::new();
    let Some(postgres) = Postgres::start(&domains) else {
        skip!("Postgres' server is not installed (tests/run installs it)")
    };
    let way = Way::to(&domains, postgres.address);
    let mut session = Session::open(way.address());
    for round in 0..CANCELLED {
        // The server signals the process and then its group: the second signal may come late, and end the next query.
        while !session.begins("DO $$ BEGIN RAISE NOTICE 'begun'; PERFORM pg_sleep(60); END $$") {}
        dial(way.address()).write_all(&session.cancel()).unwrap();
        let error = session.until(b'E');
        assert!(error.contains("57014"), "round {round}: {error}");
        session.until(b'Z');
    }
}

/// As electric#630: each answer of one byte comes at once, and TLS of the application's own is its own.
#[test]
fn postgres_questions_about_encryption_arrive_unchanged() {
    let domains = Domains::new();
    let Some(postgres) = Postgres::start(&domains) else {
        skip!("Postgres' server is not installed (tests/run installs it)")
    };
    let way = Way::to(&domains, postgres.address);
    for (mode, is_encrypted) in [("sslmode=disable", "f"), ("sslmode=prefer", "t"), ("sslmode=require", "t")]
    {
        for gss in ["", " gssencmode=disable"] {
            let answer = psql(way.address(), &format!("{mode}{gss}"));
            assert_eq!((answer.status.success(), said(&answer).trim()), (true, is_encrypted), "{mode}{gss}");
        }
    }
    // Debian's server speaks both.
    let mut app = dial(way.address());
    app.write_all(&GSS_REQUEST).unwrap();
    assert_eq!(read_exactly(&mut app, 1), b"G");
    let mut app = dial(way.address());
    app.write_all(&TLS_REQUEST).unwrap();
    assert_eq!(read_exactly(&mut app, 1), b"S");
    app.write_all(&hello("db.example")).unwrap();
    assert_eq!(read_exactly(&mut app, 2), [22, 3], "Postgres' own handshake");
    // The same by a client that speaks TLS to the gateway.
    for (request, answer) in [(GSS_REQUEST, b"G"), (TLS_REQUEST, b"S")] {
        let mut tls = connect(&domains.client("east", "app"), way.east.address());
        tls.write_all(&request).unwrap();
        let mut got = [0];
        tls.read_exact(&mut got).unwrap();
        assert_eq!(&got, answer);
    }
}

/// A ClientHello as an application's first bytes is the application's, in `originate` and in `terminate`.
#[test]
fn tls_inside_plaintext_arrives_unchanged() {
    let domains = Domains::new();
    let service = Endpoint::new();
    let way = Way::to(&domains, service.address());
    let first = [hello("other.example"), GSS_REQUEST.to_vec()].concat();
    let mut app = dial(way.address());
    app.write_all(&first).unwrap();
    app.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut service.accept()), (first.clone(), End::Fin));
    let mut tls = connect(&domains.client("east", "app"), way.east.address());
    tls.write_all(&first).unwrap();
    assert_eq!(read_exactly(&mut service.accept(), first.len()), first);
}
