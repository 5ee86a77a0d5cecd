//! Whose identity counts where a gateway speaks TLS itself, and for how long. Who may use whom, in each mode, is in
//! `identity_matrix.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use isthmus_tests::client::{End, dial, dial_from, echo, read_exactly, rest};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::ends::{Domains, HOST, connect, connect_to, id, tls_endpoint};
use isthmus_tests::gateway::{Gateway, run_to_end};
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::tls::ClientStream;
use isthmus_tests::wait::until;
use rustls::{HandshakeKind, SupportedProtocolVersion, version};

const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&version::TLS12], &[&version::TLS13]];

/// What a refused client reads: the alert, or the end of its connection.
fn refusal(tls: &mut ClientStream) -> String {
    let written = tls.write_all(b"let me in").map(|()| 0);
    written.and_then(|_| tls.read(&mut [0])).expect_err("a refusal").to_string()
}

/// Without anything that allows, nobody may; a denial wins.
#[test]
fn ends_terminate_denies_by_default() {
    let domains = Domains::new();
    domains.issue("east", "app");
    let backend = Endpoint::new();
    let denied = format!("access: {{ allow: [{0}], deny: [{0}] }}", id("east", "app"));
    let files = domains.issue("east", "server").replace(", key", "\n  key");
    let services = [
        domains.terminated("nobody.example", &[], &[], backend.address()),
        service("denied.example", &["tls: terminate", &files, &denied], &[backend.address()]),
    ];
    let east = Setup::new(services.concat()).with(&domains.trust_yaml()).start();
    for host in ["nobody.example", "denied.example"] {
        let mut tls = connect_to(&domains.client("east", "app"), host, east.address());
        assert!(refusal(&mut tls).contains("AccessDenied"), "{host}");
    }
    assert!(backend.is_untouched());
}

/// A resumed session shows no certificate, and still ends with what allowed it (apisix#9525).
#[test]
fn ends_terminate_resumption_ends_with_the_access() {
    let domains = Domains::new();
    domains.issue("east", "app");
    let backend =
        Scripted::unread(|mut stream| drop(std::io::copy(&mut stream.try_clone().unwrap(), &mut stream)));
    let east = domains.terminating(&["app"], backend.address()).start();
    for versions in VERSIONS {
        let config = domains.client_of("east", "app", versions);
        let kinds = [0, 1].map(|_| {
            let mut tls = connect(&config, east.address());
            tls_echo(&mut tls);
            tls.conn.handshake_kind().unwrap()
        });
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
    }
    let config = domains.client("east", "app");
    tls_echo(&mut connect(&config, east.address()));
    let accepted = backend.accepted();
    let file = fs::read_to_string(east.file()).unwrap();
    let edited = file.replace(&format!("allow: [{}]", id("east", "app")), "allow: []");
    assert_ne!(edited, file);
    fs::write(east.file(), edited).unwrap();
    until("the edit is applied", || east.admin("GET", "/status").json()["reloads"]["applied"] == 1);
    let mut tls = connect(&config, east.address());
    refusal(&mut tls);
    assert_eq!(backend.accepted(), accepted);
}

fn tls_echo(tls: &mut ClientStream) {
    tls.write_all(b"ping").unwrap();
    let mut got = [0; 4];
    tls.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
}

/// DNS names restrict a certificate; the identity is the SPIFFE ID.
#[test]
fn ends_certificate_for_another_name_is_not_presented() {
    let domains = Domains::new();
    domains.issue("east", "app");
    let endpoint = Endpoint::new();
    let aliases = ["aliases: [other.example]"];
    let yaml = domains.terminated(HOST, &["app"], &aliases, endpoint.address());
    domains.issue_named("east", "server", &[HOST]);
    let gateway = Setup::new(yaml).with(&domains.trust_yaml()).start();
    let client = domains.client("east", "app");
    let mut tls = connect_to(&client, HOST, gateway.address());
    tls.write_all(b"served").unwrap();
    drop(endpoint.accept());
    let mut tls = connect_to(&client, "other.example", gateway.address());
    assert!(tls.write_all(b"refused").is_err() || tls.read(&mut [0]).is_err());
    let line = gateway.log().wait("the refusal", |line| line.reason() == "tls_failed");
    let why = "the certificate of the service is not for other.example";
    assert!(line.text("tls_error").contains(why) && endpoint.is_untouched(), "{line:?}");
}

/// A ticket of one service is worth nothing at another (nginx#493).
#[test]
fn ends_terminate_sessions_are_kept_apart_by_service() {
    let domains = Domains::new();
    domains.issue("east", "app");
    let backend =
        Scripted::unread(|mut stream| drop(std::io::copy(&mut stream.try_clone().unwrap(), &mut stream)));
    let services = [
        domains.terminated(HOST, &["app"], &["aliases: [a.example]"], backend.address()),
        domains.terminated("b.example", &["app"], &["aliases: [b.a.example]"], backend.address()),
    ];
    let east = Setup::new(services.concat()).with(&domains.trust_yaml()).start();
    for versions in VERSIONS {
        // The same name for both connections, as a client that does not tell them apart.
        let config = domains.client_of("east", "app", versions);
        tls_echo(&mut connect_to(&config, "a.example", east.address()));
        let file = fs::read_to_string(east.file()).unwrap();
        let swapped = file.replace("[a.example]", "[x]").replace("[b.a.example]", "[a.example]");
        fs::write(east.file(), swapped.replace("[x]", "[b.a.example]")).unwrap();
        let applied = || east.admin("GET", "/status").json()["last_refused_edit"].is_null();
        until("the aliases are swapped", || {
            applied() && {
                let page = east.admin("GET", "/explain?sni=a.example").json();
                page["service"] == "b.example:443"
            }
        });
        let mut tls = connect_to(&config, "a.example", east.address());
        tls_echo(&mut tls);
        assert_eq!(tls.conn.handshake_kind(), Some(HandshakeKind::Full));
        fs::write(east.file(), file).unwrap();
        until("the aliases are as before", || {
            east.admin("GET", "/explain?sni=a.example").json()["service"] == format!("{HOST}:443")
        });
    }
}

/// A plaintext client that sees a reset, and the line of its connection.
#[track_caller]
fn refused(west: &Gateway, mut app: TcpStream, reason: &str) {
    assert_eq!(rest(&mut app), (Vec::new(), End::Reset));
    let line = west.log().line_of(app.local_addr().unwrap());
    assert_eq!(line.reason(), reason, "{line:?}");
}

/// The far side refuses after the client's handshake is complete, and the application is silent (tokio-rustls#38), or
/// speaks at once.
#[test]
fn ends_originate_learns_of_a_refusal() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let east = domains.terminating(&["other"], backend.address()).start();
    let west = domains.originating("app", &[east.address()]).start();
    refused(&west, dial(west.address()), "identity_denied");
    let mut speaking = dial(west.address());
    speaking.write_all(b"hello").unwrap();
    refused(&west, speaking, "identity_denied");
    east.log().wait("the refusal", |line| {
        line.reason() == "identity_denied" && line.text("caller") == id("east", "app")
    });
    assert!(backend.is_untouched());

    let strict = tls_endpoint(domains.server_for("server", "other"), |tls| drop(tls.read(&mut [0])));
    let west = domains.originating("app", &[strict.address()]).start();
    refused(&west, dial(west.address()), "identity_denied");
}

/// The longest prefix decides; an unknown source has no identity.
#[test]
fn ends_originate_identity_is_the_sources() {
    let domains = Domains::new();
    let backend =
        Scripted::unread(|mut stream| drop(std::io::copy(&mut stream.try_clone().unwrap(), &mut stream)));
    let east = domains.terminating(&["one", "many"], backend.address()).start();
    let caller = |name: &str, sources: &str| {
        format!("{{ sources: [{sources}], identity: {}, {} }}", id("east", name), domains.issue("east", name))
    };
    let callers = [caller("many", "127.1.0.0/16"), caller("one", "127.1.2.3")].join(", ");
    let identities = format!("identities: [{}]", id("east", "server"));
    let west = Setup::new(service(HOST, &[&identities], &[east.address()]))
        .with(&domains.trust_yaml())
        .listeners(&format!(
            "- {{ address: \"ADDRESS\", side: outbound, mode: originate, service: {HOST}, callers: [{callers}] }}"
        ))
        .start();
    for (source, name) in [("127.1.2.3", "one"), ("127.1.2.4", "many")] {
        let mut app = dial_from(source.parse().unwrap(), west.address());
        echo(&mut app, b"who am I");
        let peer = app.local_addr().unwrap();
        drop(app);
        assert_eq!(west.log().line_of(peer).text("caller"), id("east", name));
    }
    let explain = |from: &str| west.admin("GET", &format!("/explain?sni={HOST}&from={from}")).json();
    assert_eq!(explain("127.1.2.3")["caller"], id("east", "one"));
    assert_eq!(explain("127.0.0.1")["refused"], "identity_denied");
}

/// The source of a PROXY header counts from those alone who must send one; from others it is data.
#[test]
fn ends_originate_believes_proxy_headers_of_trusted_sources_alone() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let east = domains.terminating(&["app"], backend.address()).start();
    let keys = domains.issue("east", "app");
    let identities = format!("identities: [{}]", id("east", "server"));
    let west = Setup::new(service(HOST, &[&identities], &[east.address()]))
        .with(&domains.trust_yaml())
        .listeners(&format!(
            "- {{ address: \"ADDRESS\", side: outbound, mode: originate, service: {HOST}, identity: {}, {keys}, \
             sources: [192.0.2.1, 127.0.0.2], proxy_protocol: {{ from: [127.0.0.1] }} }}",
            id("east", "app")
        ))
        .start();
    let mut app = dial(west.address());
    app.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.9 1 2\r\nhello").unwrap();
    assert_eq!(read_exactly(&mut backend.accept(), 5), b"hello");
    let mut other = dial(west.address());
    other.write_all(b"PROXY TCP4 192.0.2.7 192.0.2.9 1 2\r\nhello").unwrap();
    assert_eq!(rest(&mut other).1, End::Reset);
    let header = b"PROXY TCP4 192.0.2.7 192.0.2.9 1 2\r\n";
    let mut plain = dial_from("127.0.0.2".parse().unwrap(), west.address());
    plain.write_all(header).unwrap();
    assert_eq!(read_exactly(&mut backend.accept(), header.len()), header);
    assert!(backend.is_untouched());
}

/// What could give an identity away, or leave a server unverified, is refused with its remedy.
#[test]
fn ends_check_refuses_unsafe_files() {
    let domains = Domains::new();
    let keys = domains.issue("east", "app");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    let identity = id("east", "app");
    let base = format!("side: outbound, mode: originate, service: {HOST}");
    let one = format!("identity: {identity}, {keys}");
    let of = |sources: &str, name: &str| {
        format!("{{ sources: [{sources}], identity: {}, {keys} }}", id("east", name))
    };
    let (ids, none) = ("identities: [spiffe://east.example/a]", "port: 443");
    for (listener, key, problem) in [
        (format!("{base}, {one}"), none, "has no identities"),
        (format!("mode: originate, service: {HOST}, {one}"), ids, "serves local applications alone"),
        (format!("{base}, {one}, callers: []"), ids, "has both an identity and callers"),
        (base.clone(), ids, "has neither an identity nor callers"),
        (format!("{base}, callers: []"), ids, "everybody would be refused"),
        (
            format!("{base}, callers: [{}], sources: [127.0.0.1]", of("10.0.0.0/8", "a")),
            ids,
            "has no effect beside callers",
        ),
        (
            format!("{base}, callers: [{}, {}]", of("10.0.0.0/8", "a"), of("10.0.0.0/8", "b")),
            ids,
            "has two identities",
        ),
        (format!("{base}, identity: {identity}"), ids, "has an identity but no certificate"),
        (format!("{base}, port: 80, {one}"), ids, "there is no service"),
        (format!("side: outbound, {one}"), ids, "has no effect without 'mode: originate'"),
        (
            format!("side: outbound, default: {HOST}"),
            "tls: terminate\n  certificate: c\n  key: k",
            "certificate for its own name",
        ),
        ("side: outbound".to_owned(), "tls: terminate", "has tls: terminate but no certificate"),
        ("side: outbound".to_owned(), "certificate: c", "has no effect without 'tls: terminate'"),
    ] {
        let services = service(HOST, &[key], &["127.0.0.1:1".parse().unwrap()]);
        let text = format!(
            "listeners: [{{ address: \"127.0.0.1:0\", {listener} }}]\nservices:\n{services}{}\n",
            domains.trust_yaml()
        );
        fs::write(&file, &text).unwrap();
        let checked = run_to_end(&["check", "--config", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(!checked.status.success() && said.contains(problem), "{text}\n{said}");
    }
    let open = format!(
        "listeners: [{{ address: \"0.0.0.0:0\", {base}, {one} }}]\nservices:\n{}",
        service(HOST, &[ids], &[])
    );
    fs::write(&file, &open).unwrap();
    let said = run_to_end(&["check", "--config", file.to_str().unwrap()]).stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("gives its identity to whoever reaches its address"), "{said}");
    assert!(said.contains("mode: originate needs trust"), "{said}");
}

/// A directory that the gateway manages has no bundle before the first start.
#[test]
fn ends_certificate_in_files_is_refused_beside_a_managed_directory() {
    let domains = Domains::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    let said = |text: &str| {
        fs::write(&file, text).unwrap();
        let checked = run_to_end(&["check", "--config", file.to_str().unwrap()]);
        (checked.status.success(), String::from_utf8_lossy(&checked.stderr).into_owned())
    };
    let terminated = domains.terminated(HOST, &["app"], &[], "127.0.0.1:1".parse().unwrap());
    let rest = "listeners: [{ address: '127.0.0.1:0' }]\ntrust: { directory: d }\nxds: { agents: ['127.0.0.1:1'] }\n";
    let (is_good, why) = said(&format!("{rest}services:\n{terminated}"));
    assert!(!is_good && why.contains("services[0] has tls: terminate and a certificate in files"), "{why}");
    let identities = format!("identities: [{}]", id("east", "server"));
    let issued = service(HOST, &["tls: terminate", &identities], &[]);
    assert!(said(&format!("{rest}services:\n{issued}")).0, "the agent issues it");
    let alone = rest
        .replace("xds: { agents: ['127.0.0.1:1'] }\n", "")
        .replace("directory: d", "certificate: c, key: k, bundles: b");
    let (is_good, why) = said(&format!("{alone}services:\n{issued}"));
    assert!(!is_good && why.contains("services[0] has tls: terminate but no certificate"), "{why}");
    assert!(why.contains("or 'xds: { agents: [ADDRESS:15012] }' for one of the agent"), "{why}");
}

/// The certificate must be the identity's, at the start and at an edit.
#[test]
fn ends_start_refuses_the_certificate_of_another() {
    let domains = Domains::new();
    domains.issue("east", "other");
    let setup = domains.originating("app", &[]);
    let text = setup.yaml().replace("east-app", "east-other").replace("ADDRESS", "127.0.0.1:0");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    fs::write(&file, text).unwrap();
    let ran = run_to_end(&["run", "--config", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(!ran.status.success() && said.contains("is the certificate of"), "{said}");
    assert!(said.contains("listeners[0]") && !said.contains("PRIVATE KEY"), "{said}");

    let west = setup.start();
    let good = fs::read_to_string(west.file()).unwrap();
    fs::write(west.file(), good.replace("east-app", "east-other")).unwrap();
    until("the edit is refused", || {
        let refused = west.admin("GET", "/status").json()["last_refused_edit"].to_string();
        refused.contains("is the certificate of")
    });
}
