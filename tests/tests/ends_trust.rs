//! Trust and rules that change while a gateway runs, where it speaks TLS itself: sessions that were earned before are
//! worth nothing after. Row 12 of the hazards in these modes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use isthmus_certs::{Authority, TrustDomain};
use isthmus_tests::client::{End, dial, rest};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::ends::{Domains, HOST, connect, connect_to, id, tls_endpoint};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::setup::Setup;
use isthmus_tests::tls::ClientStream;
use isthmus_tests::wait::{until, within};
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind, NamedGroup, SupportedProtocolVersion, version};

const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&version::TLS12], &[&version::TLS13]];

fn echo() -> Scripted {
    Scripted::unread(|mut stream| drop(std::io::copy(&mut stream.try_clone().unwrap(), &mut stream)))
}

/// Sends a word and gets it back; the kind of the handshake.
fn ask(mut tls: ClientStream) -> std::io::Result<HandshakeKind> {
    let mut got = [0; 4];
    tls.write_all(b"ping")?;
    tls.read_exact(&mut got)?;
    Ok(tls.conn.handshake_kind().unwrap())
}

fn ask_at(config: &Arc<ClientConfig>, gateway: &Gateway) -> std::io::Result<HandshakeKind> {
    ask(connect(config, gateway.address()))
}

/// A client whose sessions resume.
fn holder(
    domains: &Domains,
    name: &str,
    versions: &[&'static SupportedProtocolVersion],
    at: &Gateway,
) -> Arc<ClientConfig> {
    let config = domains.client_of("east", name, versions);
    let kinds = [0, 1].map(|_| ask_at(&config, at).unwrap());
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
    config
}

/// As apisix#9525.
#[test]
fn ends_terminate_resumption_ends_with_the_clients_certificate() {
    let domains = Domains::new();
    let service = echo();
    let east = domains.terminating(&["brief"], service.address()).start();
    domains.issue_for("east", "brief", Duration::from_secs(3));
    let holders = VERSIONS.map(|versions| holder(&domains, "brief", versions, &east));
    thread::sleep(Duration::from_secs(4));
    let accepted = service.accepted();
    for config in holders {
        assert!(ask_at(&config, &east).is_err());
    }
    assert_eq!(service.accepted(), accepted);
}

#[test]
fn ends_terminate_resumption_ends_when_the_client_is_denied() {
    let domains = Domains::new();
    let service = echo();
    let east = domains.terminating(&["app", "other"], service.address()).start();
    for name in ["app", "other"] {
        domains.issue("east", name);
    }
    let holders = VERSIONS.map(|versions| holder(&domains, "app", versions, &east));
    let others = VERSIONS.map(|versions| holder(&domains, "other", versions, &east));
    domains.deny("east", "app");
    until("the client is refused", || ask_at(&domains.client("east", "app"), &east).is_err());
    let accepted = service.accepted();
    for config in holders {
        assert!(ask_at(&config, &east).is_err());
    }
    assert_eq!(service.accepted(), accepted);
    for config in others {
        assert_eq!(ask_at(&config, &east).unwrap(), HandshakeKind::Full);
    }
}

/// Every server gets the tickets of every other.
#[derive(Debug)]
struct OneName(ClientSessionMemoryCache);

impl OneName {
    fn name() -> ServerName<'static> {
        ServerName::try_from("any.example").unwrap()
    }
}

impl ClientSessionStore for OneName {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(OneName::name(), group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&OneName::name())
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.0.set_tls12_session(OneName::name(), value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.0.tls12_session(&OneName::name())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&OneName::name());
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(OneName::name(), value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&OneName::name())
    }
}

/// As nginx#493: the other service's rules decide, whatever a ticket says.
#[test]
fn ends_terminate_ticket_of_another_service_opens_nothing() {
    let domains = Domains::new();
    domains.issue("east", "app");
    let (service, closed) = (echo(), echo());
    let services = [
        domains.terminated(HOST, &["app"], &[], service.address()),
        domains.terminated("open.example", &["app"], &[], service.address()),
        domains.terminated("closed.example", &["other"], &[], closed.address()),
    ];
    let east = Setup::new(services.concat()).with(&domains.trust_yaml()).start();
    for versions in VERSIONS {
        for (host, is_open) in [("open.example", true), ("closed.example", false)] {
            let mut config = (*domains.client_of("east", "app", versions)).clone();
            config.resumption = Resumption::store(Arc::new(OneName(ClientSessionMemoryCache::new(64))));
            let config = Arc::new(config);
            assert_eq!(ask_at(&config, &east).unwrap(), HandshakeKind::Full);
            let other = ask(connect_to(&config, host, east.address()));
            assert_eq!(other.ok(), is_open.then_some(HandshakeKind::Full), "{host}");
        }
    }
    assert_eq!(closed.accepted(), 0);
}

/// As ghostunnel#220: old, old and new, new, and a file that cannot be read.
#[test]
fn ends_terminate_follows_the_roots_of_its_clients() {
    let mut domains = Domains::new();
    let service = echo();
    let terminated = domains.terminated(HOST, &[], &[], service.address());
    let access = format!("allow: [{}]", id("west", "app"));
    let east = Setup::new(terminated.replace("allow: []", &access)).with(&domains.trust_yaml()).start();
    let bundle = domains.path("bundles/west.example.pem");
    let old_root = domains.authority("west").certificate_pem();
    domains.issue("west", "app");
    let old = domains.client("west", "app");
    assert_eq!(ask_at(&old, &east).unwrap(), HandshakeKind::Full);

    let new_authority = Authority::generate(TrustDomain::new("west.example").unwrap()).unwrap();
    let new_root = new_authority.certificate_pem();
    domains.replace(new_authority);
    domains.issue("west", "app");
    let new = domains.client("west", "app");
    assert!(ask_at(&new, &east).is_err());
    fs::write(&bundle, format!("{old_root}{new_root}")).unwrap();
    until("a client of the new root is accepted", || ask_at(&new, &east).is_ok());
    assert!(ask_at(&old, &east).is_ok());
    fs::write(&bundle, &new_root).unwrap();
    until("a client of the old root is refused, and its session with it", || ask_at(&old, &east).is_err());
    assert!(ask_at(&new, &east).is_ok());

    fs::write(&bundle, "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n").unwrap();
    until("the broken file is named", || {
        east.admin("GET", "/status").json()["trust"]["refused"].to_string().contains("west.example.pem")
    });
    assert!(ask_at(&new, &east).is_ok());
    assert!(ask_at(&old, &east).is_err());
}

/// As istio#20442: a rule that is not understood changes nothing, and an empty list admits nobody.
#[test]
fn ends_terminate_keeps_its_rules_when_an_edit_is_refused() {
    let domains = Domains::new();
    domains.issue("east", "app");
    domains.issue("east", "other");
    let service = echo();
    let east = domains.terminating(&["app"], service.address()).start();
    let good = fs::read_to_string(east.file()).unwrap();
    let rules = format!("access: {{ allow: [{}] }}", id("east", "app"));
    let answers = || ["app", "other"].map(|name| ask_at(&domains.client("east", name), &east).is_ok());
    assert_eq!(answers(), [true, false]);
    for bad in [
        format!("access: {{ allow: [{}], deny: [{{ identitys: [x] }}] }}", id("east", "other")),
        format!("access: {{ allow: [{}], forbid: [] }}", id("east", "other")),
        format!("access: {{ allow: [{}, {{}}] }}", id("east", "other")),
    ] {
        let refused = || east.admin("GET", "/status").json()["reloads"]["refused"].as_u64().unwrap();
        let before = refused();
        fs::write(east.file(), good.replace(&rules, &bad)).unwrap();
        until("the edit is refused", || refused() > before);
        assert_eq!(answers(), [true, false], "{bad}");
    }
    fs::write(east.file(), good.replace(&rules, "access: { allow: [] }")).unwrap();
    until("the empty list is live", || answers() == [false, false]);
}

/// A gateway resumes with a server only as long as that server is trusted and expected.
#[test]
fn ends_originate_resumes_with_no_server_that_is_no_longer_expected() {
    let domains = Domains::new();
    domains.issue("east", "server");
    let kinds = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&kinds);
    let far = tls_endpoint(domains.server("server"), move |tls| {
        let mut got = [0; 4];
        if tls.read_exact(&mut got).is_ok() {
            seen.lock().unwrap().push(tls.conn.handshake_kind().unwrap());
            let _gone = tls.write_all(&got);
        }
    });
    let west = domains.originating("app", &[far.address()]).start();
    let call = || {
        let mut app = dial(west.address());
        app.write_all(b"ping").unwrap();
        let (got, end) = rest(&mut app);
        (got == b"ping", end)
    };
    until("sessions are resumed", || {
        call().0 && kinds.lock().unwrap().last() == Some(&HandshakeKind::Resumed)
    });

    let file = fs::read_to_string(west.file()).unwrap();
    let expected = format!("identities: [{}]", id("east", "server"));
    fs::write(west.file(), file.replace(&expected, &format!("identities: [{}]", id("east", "next"))))
        .unwrap();
    until("the edit is applied", || west.admin("GET", "/status").json()["reloads"]["applied"] == 1);
    let calls = kinds.lock().unwrap().len();
    assert_eq!(call(), (false, End::Reset));
    fs::write(west.file(), &file).unwrap();
    until("the edit is undone", || call().0);
    domains.deny("east", "server");
    until("the server is refused", || call() == (false, End::Reset));
    assert!(!within(Duration::from_millis(300), || call().0));
    assert!(kinds.lock().unwrap().len() > calls);
}
