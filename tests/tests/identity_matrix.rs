//! Who may use whom, in each mode of a gateway: what the client sees, what the application sees (nothing, where the client is
//! refused), the reason and the line of the audit log. One table; a test for each column.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use isthmus_tests::audit::Audit;
use isthmus_tests::client::{dial, dial_from};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::ends::{Domains, HOST, connect_over, id, tls_endpoint};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::setup::{Setup, service};
use rustls::{ServerConfig, SupportedProtocolVersion, version};

use Case::{
    Allowed, Denied, Expired, NoCertificate, NotYetValid, Revoked, TrustedDomain, UnknownDomain,
    UnknownSource, WrongDestination,
};

const TEXT: &[u8] = b"let me in";
/// An address that is nobody's.
const UNKNOWN: &str = "127.9.9.9";

/// What is special about a client. Where the gateway originates, its own peer is the server: the certificate is the server's,
/// except in the rows whose comment says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Allowed,
    /// Of `originate`: the caller, which the server refuses.
    Denied,
    TrustedDomain,
    UnknownDomain,
    Expired,
    NotYetValid,
    Revoked,
    WrongDestination,
    /// Of `originate`: the caller, to which the agent has issued none.
    NoCertificate,
    UnknownSource,
}

/// One cell of the table.
enum Cell {
    Served,
    Refused {
        /// A part of what the client sees, by version of TLS.
        client: &'static [&'static str],
        reason: &'static str,
        /// The caller's name in log and audit; empty if it has not proven any.
        caller: &'static str,
        /// A part of the audit's cause.
        cause: &'static str,
        /// An originating gateway asks the server who it is; others do not dial for a refused client.
        dialled: bool,
    },
    /// The gateway lets the client pass, and the application refuses it, which no gateway sees.
    RefusedByTheApplication {
        client: &'static [&'static str],
    },
    /// Why there is no such cell.
    No(&'static str),
}

use Cell::{No, Refused, RefusedByTheApplication, Served};

/// What a client without a certificate gets, by version.
const REQUIRED: &[&str] = &["CertificateRequired", "HandshakeFailure"];

const fn at_the_door(
    client: &'static [&'static str],
    reason: &'static str,
    caller: &'static str,
    cause: &'static str,
) -> Cell {
    Refused { client, reason, caller, cause, dialled: false }
}

/// The application gets a reset, whatever the server has shown.
const fn by_the_server(reason: &'static str, caller: &'static str, cause: &'static str) -> Cell {
    Refused { client: &["reset"], reason, caller, cause, dialled: true }
}

const fn by_the_application(client: &'static [&'static str]) -> Cell {
    RefusedByTheApplication { client }
}

/// Rows: terminate, originate, passthrough.
#[rustfmt::skip]
const MATRIX: [(Case, [Cell; 3]); 10] = [
    (Allowed, [Served, Served, Served]),
    (Denied, [
        at_the_door(&["AccessDenied"], "identity_denied", "other", ""),
        by_the_server("identity_denied", "other", "received fatal alert"),
        by_the_application(&["CertificateUnknown"]),
    ]),
    (TrustedDomain, [
        at_the_door(&["AccessDenied"], "identity_denied", "app", ""),
        by_the_server("tls_failed", "app", "spiffe://west.example/ns/test/sa/server"),
        by_the_application(&["CertificateUnknown"]),
    ]),
    (UnknownDomain, [
        at_the_door(&["CertificateUnknown"], "tls_failed", "", "north.example"),
        by_the_server("tls_failed", "app", "north.example"),
        by_the_application(&["CertificateUnknown"]),
    ]),
    (Expired, [
        at_the_door(&["CertificateUnknown"], "tls_failed", "", "expired"),
        by_the_server("tls_failed", "app", "expired"),
        by_the_application(&["CertificateUnknown"]),
    ]),
    (NotYetValid, [
        at_the_door(&["CertificateUnknown"], "tls_failed", "", "is not valid before"),
        by_the_server("tls_failed", "app", "is not valid before"),
        by_the_application(&["CertificateUnknown"]),
    ]),
    (Revoked, [
        at_the_door(&["CertificateUnknown"], "identity_denied", "", "deny-list"),
        by_the_server("identity_denied", "app", "deny-list"),
        by_the_application(&["CertificateUnknown"]),
    ]),
    // The client refuses, not the gateway.
    (WrongDestination, [
        at_the_door(&["sa/impostor"], "tls_failed", "", "received fatal alert"),
        by_the_server("tls_failed", "app", "spiffe://east.example/ns/test/sa/impostor"),
        by_the_application(&["sa/impostor"]),
    ]),
    (NoCertificate, [
        at_the_door(REQUIRED, "tls_failed", "", "peer sent no certificates"),
        at_the_door(&["reset"], "tls_failed", "app", "has issued no certificate"),
        by_the_application(REQUIRED),
    ]),
    (UnknownSource, [
        No("the certificate says who calls, from wherever"),
        at_the_door(&["reset"], "identity_denied", "", ""),
        at_the_door(&["AccessDenied"], "source_denied", "", ""),
    ]),
];

/// What the applications were sent, without TLS.
type Seen = Arc<Mutex<Vec<u8>>>;

/// Sends back what it reads, and records it.
fn converse(stream: &mut (impl Read + Write), seen: &Seen) {
    let mut bytes = [0; 64];
    while let Ok(read) = stream.read(&mut bytes)
        && read > 0
    {
        seen.lock().unwrap().extend_from_slice(&bytes[..read]);
        let _gone = stream.write_all(&bytes[..read]);
    }
}

fn plain_application(seen: &Seen) -> Scripted {
    let seen = Arc::clone(seen);
    Scripted::unread(move |mut stream| converse(&mut stream, &seen))
}

/// After a refusal it reads on, so that its alert is not lost by a reset.
fn tls_application(config: Arc<ServerConfig>, seen: &Seen) -> Scripted {
    let seen = Arc::clone(seen);
    tls_endpoint(config, move |tls| {
        converse(tls, &seen);
        let _alert = tls.flush();
        let _gone =
            tls.sock.shutdown(std::net::Shutdown::Write).and_then(|()| tls.sock.read_to_end(&mut Vec::new()));
    })
}

/// One cell's world: a gateway before an application.
struct World {
    domains: Domains,
    audit: Audit,
    seen: Seen,
    application: Scripted,
    gateway: Gateway,
}

/// Domains in which everything that a case needs is issued under this name of each side.
fn domains(case: Case, side: &str) -> Domains {
    let domains = Domains::new();
    for (domain, name) in [("east", "app"), ("east", "other"), ("east", "server"), ("east", "impostor")] {
        domains.issue(domain, name);
    }
    for domain in ["west", "north"] {
        domains.issue(domain, side);
    }
    match case {
        Expired => domains.issue_between("east", side, (-60, -1)),
        NotYetValid => domains.issue_between("east", side, (1, 60)),
        Revoked => domains.deny("east", side),
        _ => {}
    }
    domains
}

/// Domain and name of the side whose certificate is special.
fn special(case: Case, name: &'static str, wrong: &'static str) -> (&'static str, &'static str) {
    match case {
        TrustedDomain => ("west", name),
        UnknownDomain => ("north", name),
        Denied | WrongDestination => ("east", wrong),
        _ => ("east", name),
    }
}

impl World {
    fn terminate(case: Case) -> World {
        let (domains, audit, seen) = (domains(case, "app"), Audit::new(), Seen::default());
        let application = plain_application(&seen);
        let name = if case == WrongDestination { "impostor" } else { "server" };
        let files = domains.files("east", name).replace(", key", "\n  key");
        let access = format!("access: {{ allow: [{}] }}", id("east", "app"));
        let service = service(HOST, &["tls: terminate", &files, &access], &[application.address()]);
        let gateway = Setup::new(service).with(&domains.trust_yaml()).with(&audit.yaml()).start();
        World { domains, audit, seen, application, gateway }
    }

    fn originate(case: Case) -> World {
        let (domains, audit, seen) = (domains(case, "server"), Audit::new(), Seen::default());
        let config = match case {
            Allowed | Denied => domains.server_for("server", "app"),
            _ => {
                let (domain, name) = special(case, "server", "impostor");
                domains.showing(domain, name)
            }
        };
        let application = tls_application(config, &seen);
        let caller = if case == Denied { "other" } else { "app" };
        let (caller, files) = (id("east", caller), domains.files("east", caller));
        let who = match case {
            NoCertificate => format!("identity: {caller}"),
            UnknownSource => format!("callers: [{{ sources: [{UNKNOWN}], identity: {caller}, {files} }}]"),
            _ => format!("identity: {caller}, {files}"),
        };
        let identities = format!("identities: [{}]", id("east", "server"));
        let mut setup = Setup::new(service(HOST, &[&identities], &[application.address()]))
            .listeners(&format!(
                "- {{ address: \"ADDRESS\", side: outbound, mode: originate, service: {HOST}, {who} }}"
            ))
            .with(&domains.trust_yaml())
            .with(&audit.yaml());
        if case == NoCertificate {
            // Nobody is there.
            setup = setup.with("xds: { agents: ['127.0.0.1:1'] }\nnode: { cluster: east }");
        }
        let gateway = setup.start();
        World { domains, audit, seen, application, gateway }
    }

    /// Nobody sees the client's identity but the application, so the rules are of addresses.
    fn passthrough(case: Case) -> World {
        let (domains, audit, seen) = (domains(case, "app"), Audit::new(), Seen::default());
        let name = if case == WrongDestination { "impostor" } else { "server" };
        let application = tls_application(domains.server_for(name, "app"), &seen);
        let access = "access: { allow: [{ name: near, sources: [127.0.0.1] }] }";
        let service = service(HOST, &[access], &[application.address()]);
        let gateway = Setup::new(service).with(&audit.yaml()).start();
        World { domains, audit, seen, application, gateway }
    }

    /// What a client sees that speaks this version of TLS, and its address.
    fn call(&self, case: Case, version: &'static SupportedProtocolVersion) -> (String, SocketAddr) {
        let (domain, name) = match case {
            WrongDestination => ("east", "app"),
            _ => special(case, "app", "other"),
        };
        let config = match case {
            NoCertificate => self.domains.anonymous(&[version]),
            _ => self.domains.client_of(domain, name, &[version]),
        };
        let address = self.gateway.address();
        let stream = match case {
            UnknownSource => dial_from(UNKNOWN.parse::<IpAddr>().unwrap(), address),
            _ => dial(address),
        };
        let mut tls = connect_over(&config, HOST, stream);
        (said(&mut tls), tls.sock.local_addr().unwrap())
    }

    /// What an application without TLS sees, and its address.
    fn call_plainly(&self) -> (String, SocketAddr) {
        let mut stream = dial(self.gateway.address());
        (said(&mut stream), stream.local_addr().unwrap())
    }

    /// What differs from the table.
    fn differences(&self, cell: &Cell, (seen, peer): (&str, SocketAddr)) -> Vec<String> {
        let line = self.gateway.log().line_of(peer);
        let verdict = if matches!(cell, Refused { .. }) { "denied" } else { "allowed" };
        let audited = self
            .audit
            .wait(verdict, |line| line.text("source") == peer.to_string() && line.text("verdict") == verdict);
        let sent = std::mem::take(&mut *self.seen.lock().unwrap());
        let expected: &[u8] = if matches!(cell, Served) { TEXT } else { b"" };
        let is_seen = |texts: &[&str]| texts.iter().any(|text| seen.contains(text));
        let checks = match cell {
            Served => vec![("the client sees", seen == "served")],
            Refused { client, reason, caller, cause, dialled } => vec![
                ("the client sees", is_seen(client)),
                ("the reason", [line.reason(), audited.reason()] == [*reason; 2]),
                (
                    "the caller",
                    [name_of(line.text("caller")), name_of(audited.text("caller"))] == [*caller; 2],
                ),
                ("the cause", audited.text("cause").contains(cause)),
                ("the application is dialled", (self.application.accepted() > 0) == *dialled),
            ],
            RefusedByTheApplication { client } => vec![
                ("the client sees", is_seen(client)),
                ("the reason", ["client_closed", "server_closed"].contains(&line.reason())),
                ("the caller", audited.text("caller").is_empty()),
            ],
            No(_) => Vec::new(),
        };
        let all = checks.into_iter().chain([("the application sees", sent == expected)]);
        let wrong = all.filter(|(_, is_right)| !is_right);
        wrong.map(|(what, _)| format!("{what}: {seen:?}\n  {line:?}\n  {audited:?}")).collect()
    }
}

/// The last part of a SPIFFE ID.
fn name_of(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or_default()
}

/// Sends the text and expects it back.
fn said(stream: &mut (impl Read + Write)) -> String {
    let mut got = vec![0; TEXT.len()];
    match stream.write_all(TEXT).and_then(|()| stream.read_exact(&mut got)) {
        Ok(()) => {
            assert_eq!(got, TEXT);
            "served".to_owned()
        }
        Err(error) => error.to_string(),
    }
}

/// A call in a world of a case.
type Call = fn(&World, Case) -> (String, SocketAddr);

/// Of both versions of TLS.
const OF_TLS: &[Call] =
    &[|world, case| world.call(case, &version::TLS12), |world, case| world.call(case, &version::TLS13)];

/// Compares a column of the table with what happens.
fn compare(column: usize, world: fn(Case) -> World, calls: &[Call]) {
    let mut wrong = Vec::new();
    for (case, cells) in &MATRIX {
        let cell = &cells[column];
        if let No(why) = cell {
            eprintln!("{case:?}: no such cell, because {why}");
            continue;
        }
        let world = world(*case);
        for call in calls {
            let (seen, peer) = call(&world, *case);
            let differences = world.differences(cell, (&seen, peer));
            wrong.extend(differences.into_iter().map(|what| format!("{case:?}: {what}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn identity_matrix_of_terminate() {
    compare(0, World::terminate, OF_TLS);
}

#[test]
fn identity_matrix_of_originate() {
    compare(1, World::originate, &[|world, _| world.call_plainly()]);
}

#[test]
fn identity_matrix_of_passthrough() {
    compare(2, World::passthrough, OF_TLS);
}
