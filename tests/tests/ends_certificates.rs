//! Bad certificates where a gateway itself speaks TLS: of clients of a terminated service, and of servers to which it
//! originates. Each is refused before the other side sees a byte. Rows 11 and 14 of the hazards; the library's own rows
//! are in `certs/src/tls/bad`; who may use whom is in `identity_matrix.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use isthmus_certs::{Peer, SpiffeId, Trust, TrustFiles, server_verifier};
use isthmus_tests::client::{End, dial, read_exactly, rest};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::ends::{Domains, connect, id};
use isthmus_tests::figure;
use isthmus_tests::forged::{issuer, leaf, uri};
use isthmus_tests::tls::{ClientStream, ServerStream};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
    version,
};
use time::{Duration, OffsetDateTime};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS12, &version::TLS13];

/// A certificate with its chain and key, as one side shows it.
struct Shown {
    what: String,
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    /// The roles in which it is bad.
    as_client: bool,
    as_server: bool,
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(text).unwrap())
}

/// What a good intermediate has, with this common name.
fn intermediate(name: &str) -> CertificateParams {
    let mut params = leaf(Vec::new());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = Vec::new();
    params
}

/// Bad chains that claim the identity `server` of east, or one that is almost the same.
struct Forger {
    east: Issuer<'static, KeyPair>,
    west: Issuer<'static, KeyPair>,
    north: Issuer<'static, KeyPair>,
    good: String,
    rows: Vec<Shown>,
}

impl Forger {
    fn new(domains: &Domains) -> Forger {
        let [east, west, north] = ["east", "west", "north"].map(|name| issuer(domains.authority(name)));
        Forger { east, west, north, good: id("east", "server"), rows: Vec::new() }
    }

    fn add(&mut self, what: &str, chain: Vec<CertificateDer<'static>>, key: KeyPair) -> &mut Shown {
        self.rows.push(Shown { what: what.to_owned(), chain, key, as_client: true, as_server: true });
        self.rows.last_mut().unwrap()
    }

    /// A leaf of east itself.
    fn leaf(&mut self, what: &str, params: &CertificateParams) -> &mut Shown {
        let key = KeyPair::generate().unwrap();
        let der = params.signed_by(&key, &self.east).unwrap().der().clone();
        self.add(what, vec![der], key)
    }

    fn named(&mut self, what: &str, names: Vec<SanType>) {
        self.leaf(what, &leaf(names));
    }

    /// A good leaf, changed.
    fn altered(&mut self, what: &str, alter: impl FnOnce(&mut CertificateParams)) -> &mut Shown {
        let mut params = leaf(vec![uri(&self.good)]);
        alter(&mut params);
        self.leaf(what, &params)
    }

    /// A good leaf below an intermediate of east.
    fn below(&mut self, what: &str, over: &CertificateParams) -> &mut Shown {
        let (own, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let above = over.signed_by(&own, &self.east).unwrap().der().clone();
        let der = leaf(vec![uri(&self.good)])
            .signed_by(&key, &Issuer::from_params(over, &own))
            .unwrap()
            .der()
            .clone();
        self.add(what, vec![der, above], key)
    }

    /// A good leaf with one edit of its bytes.
    fn edited(&mut self, what: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let shown = self.altered(what, |_| {});
        let mut der = shown.chain[0].to_vec();
        edit(&mut der);
        shown.chain[0] = der.into();
    }

    fn names(&mut self) {
        let good = || uri("spiffe://east.example/ns/test/sa/server");
        self.named("no name", vec![]);
        self.named("a DNS name alone", vec![dns("db.example")]);
        self.named("the ID as a DNS name", vec![dns(&self.good.clone())]);
        self.named("a web address alone", vec![uri("https://east.example/ns/test/sa/server")]);
        self.named("the ID and a web address", vec![good(), uri("https://east.example/server")]);
        self.named("a web address and the ID", vec![uri("https://east.example/server"), good()]);
        self.named("two IDs", vec![good(), uri("spiffe://east.example/ns/test/sa/other")]);
        self.named("two IDs, the other first", vec![uri("spiffe://east.example/ns/test/sa/other"), good()]);
        self.named("the ID twice", vec![good(), good()]);
        let mut common = leaf(vec![]);
        common.distinguished_name.push(DnType::CommonName, self.good.clone());
        self.leaf("the ID in CN alone", &common);
        for text in [
            "SPIFFE://east.example/ns/test/sa/server",
            "spiffe://EAST.example/ns/test/sa/server",
            "spiffe://east.example:443/ns/test/sa/server",
            "spiffe://me@east.example/ns/test/sa/server",
            "spiffe://east.example/ns/test/sa/%73erver",
            "spiffe://east.example/ns/test/sa/server%00",
            "spiffe://east.example/ns/test/sa/server\0",
            "spiffe://east.example\0.evil/ns/test/sa/server",
            "spiffe://east.example/ns/test/sa/server/",
            "spiffe://east.example/ns/test/sa//server",
            "spiffe://east.example/ns/test/sa/other/../server",
            "spiffe://east.example/ns/test/sa/server?x",
            "spiffe://east.example/ns/test/sa/server#x",
            "spiffe://east.example/ns/test/sa/*",
            "spiffe://east.example/ns/test/sa/.*",
            "spiffe://east.example",
            "",
        ] {
            self.named(&format!("the name {text:?}"), vec![uri(text)]);
        }
        // Valid, and others.
        for text in [
            "spiffe://east.example/ns/test/sa/serve",
            "spiffe://east.example/ns/test/sa/servers",
            "spiffe://east.example/ns/test/sa/Server",
            "spiffe://east.example/ns/test/sa/server/more",
            "spiffe://east.example/ns/test/sa",
            "spiffe://east.example/ns/tes/sa/server",
            "spiffe://east.example/ns/test/sa/s.rver",
        ] {
            self.named(&format!("the identity {text}"), vec![uri(text)]);
        }
    }

    fn leaves(&mut self) {
        self.altered("an authority", |leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        self.altered("may sign certificates", |leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign));
        self.altered("may not sign handshakes", |leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
        self.altered("for code", |leaf| {
            leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]
        });
        let server_only = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.altered("for servers", |leaf| leaf.extended_key_usages = server_only).as_server = false;
        let client_only = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.altered("for clients", |leaf| leaf.extended_key_usages = client_only).as_client = false;
        self.altered("an unknown critical extension", |leaf| {
            let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            unknown.set_criticality(true);
            leaf.custom_extensions.push(unknown);
        });
        self.edited("one bit of the signature", |der| *der.last_mut().unwrap() ^= 1);
        self.edited("cut in half", |der| der.truncate(der.len() / 2));
        self.edited("bytes behind it", |der| der.push(0));
        self.edited("empty", Vec::clear);
        let shown = self.altered("the key of another certificate", |_| {});
        shown.key = KeyPair::generate().unwrap();
        let none = self.altered("no certificate", |_| {});
        none.chain.clear();
        none.as_server = false;
    }

    fn chains(&mut self) {
        let good = leaf(vec![uri(&self.good)]);
        for (what, north) in
            [("signed by another trusted domain", false), ("signed by an unknown domain", true)]
        {
            let (key, issuer) = (KeyPair::generate().unwrap(), if north { &self.north } else { &self.west });
            let der = good.signed_by(&key, issuer).unwrap().der().clone();
            self.add(what, vec![der], key);
        }
        let key = KeyPair::generate().unwrap();
        let own = good.self_signed(&key).unwrap().der().clone();
        self.add("signed by itself", vec![own], key);
        self.below("its intermediate is missing", &intermediate("missing")).chain.truncate(1);
        let mut no_authority = intermediate("no authority");
        no_authority.is_ca = IsCa::ExplicitNoCa;
        self.below("below a leaf", &no_authority);
        let mut expired = intermediate("expired");
        expired.not_after = OffsetDateTime::now_utc() - Duration::MINUTE;
        self.below("below an expired intermediate", &expired);
    }
}

fn key_of(shown: &Shown) -> Arc<SingleCertAndKey> {
    let key = PrivatePkcs8KeyDer::from(shown.key.serialize_der());
    let key = default_provider().key_provider.load_private_key(key.into()).unwrap();
    Arc::new(CertifiedKey::new(shown.chain.clone(), key).into())
}

/// A client that shows it and accepts our server.
fn client(domains: &Domains, shown: &Shown, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let files = TrustFiles {
        certificate: domains.path("east-gateway.crt"),
        key: domains.path("east-gateway.key"),
        bundles: domains.path("bundles"),
        ..TrustFiles::default()
    };
    let bundles = Arc::clone(&Trust::load(&files).unwrap().current().bundles);
    let server = Peer::Ids(vec![SpiffeId::parse(&id("east", "server")).unwrap()]);
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(bundles, server))
        .with_client_cert_resolver(key_of(shown));
    Arc::new(config)
}

/// A server that shows it and accepts the gateway.
fn server(domains: &Domains, shown: &Shown, version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(domains.authority("east").certificate().clone()).unwrap();
    let clients =
        WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_cert_resolver(key_of(shown));
    Arc::new(config)
}

fn all(domains: &Domains) -> Vec<Shown> {
    let mut forger = Forger::new(domains);
    forger.names();
    forger.leaves();
    forger.chains();
    forger.rows
}

/// A good leaf, whose DNS names are no identity and no obstacle.
fn good(domains: &Domains, names: Vec<SanType>) -> Shown {
    let mut forger = Forger::new(domains);
    forger.named("good", names);
    forger.rows.remove(0)
}

fn tally(counted: &BTreeMap<String, usize>, rows: usize, mode: &str) {
    let total: usize = counted.values().sum();
    figure!("{mode}: {total} handshakes with {rows} bad certificates refused, 0 bytes: {counted:?}");
    assert!(rows >= 40, "{rows}");
    assert!(
        counted.keys().all(|reason| ["tls_failed", "identity_denied"].contains(&reason.as_str())),
        "{counted:?}"
    );
}

#[test]
fn ends_terminate_refuses_each_bad_certificate() {
    let domains = Domains::new();
    let service = Endpoint::new();
    let east = domains.terminating(&["server"], service.address()).start();
    let rows: Vec<_> = all(&domains).into_iter().filter(|shown| shown.as_client).collect();
    let mut counted = BTreeMap::new();
    for version in VERSIONS {
        for shown in &rows {
            let mut tls = connect(&client(&domains, shown, version), east.address());
            let peer = tls.sock.local_addr().unwrap();
            let answer = tls.write_all(b"hello").and_then(|()| tls.read(&mut [0]));
            assert!(answer.is_err(), "{}: {answer:?}", shown.what);
            drop(tls);
            let line = east.log().line_of(peer);
            *counted.entry(line.reason().to_owned()).or_insert(0) += 1;
            assert!(!line.text("tls_error").is_empty(), "{}: {line:?}", shown.what);
            assert!(service.is_untouched(), "{}", shown.what);
        }
    }
    tally(&counted, rows.len(), "terminate");
    for (reason, count) in &counted {
        let reason = format!("reason=\"{reason}\"");
        let metric = east.metrics().sum("isthmus_connections_ended_total", &[&reason]);
        assert!((metric - f64::from(u32::try_from(*count).unwrap())).abs() < 0.1, "{reason}: {metric}");
    }
    let names = vec![dns("other.example"), uri(&id("east", "server")), dns("db.example")];
    let good = good(&domains, names);
    for version in VERSIONS {
        let mut tls: ClientStream = connect(&client(&domains, &good, version), east.address());
        tls.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&mut service.accept(), 5), b"hello");
    }
}

#[test]
fn ends_originate_sends_nothing_to_each_bad_certificate() {
    let domains = Domains::new();
    let config = Arc::new(Mutex::new(None::<Arc<ServerConfig>>));
    let (current, seen) = (Arc::clone(&config), Arc::new(Mutex::new(Vec::new())));
    let got = Arc::clone(&seen);
    let server_end = Scripted::unread(move |stream| {
        let config = Arc::clone(current.lock().unwrap().as_ref().unwrap());
        let mut tls: ServerStream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
        let mut bytes = [0; 16];
        while let Ok(read) = tls.read(&mut bytes)
            && read > 0
        {
            got.lock().unwrap().extend_from_slice(&bytes[..read]);
            let _gone = tls.write_all(b"+");
        }
    });
    let west = domains.originating("caller", &[server_end.address()]).start();
    let rows: Vec<_> = all(&domains).into_iter().filter(|shown| shown.as_server).collect();
    let mut counted = BTreeMap::new();
    for version in VERSIONS {
        for shown in &rows {
            *config.lock().unwrap() = Some(server(&domains, shown, version));
            let mut app = dial(west.address());
            // The reset may come before the application has written.
            if app.write_all(b"secret").is_ok() {
                assert_eq!(rest(&mut app), (Vec::new(), End::Reset), "{}", shown.what);
            }
            let line = west.log().line_of(app.local_addr().unwrap());
            *counted.entry(line.reason().to_owned()).or_insert(0) += 1;
            assert_eq!((line.number("bytes_out"), line.text("server_identity")), (0, ""), "{}", shown.what);
        }
    }
    assert_eq!(*seen.lock().unwrap(), b"", "no server has seen a byte of the application");
    tally(&counted, rows.len(), "originate");
    let names = vec![dns("other.example"), uri(&id("east", "server")), dns("db.example")];
    for version in VERSIONS {
        *config.lock().unwrap() = Some(server(&domains, &good(&domains, names.clone()), version));
        let mut app = dial(west.address());
        app.write_all(b"hello").unwrap();
        assert_eq!(read_exactly(&mut app, 1), b"+");
    }
}
