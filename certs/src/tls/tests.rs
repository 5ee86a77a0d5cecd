//! Real handshakes in memory: who gets through, and that a server's application sees no byte of the others.

use std::io::{Read, Write};
use std::time::Duration;

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConnection, HandshakeKind, ServerConnection};

use super::*;
use crate::{Authority, BundleError, Role, SvidError};

const HOUR: Duration = Duration::from_secs(3600);
const REQUEST: &[u8] = b"a request";

struct World {
    east: Authority,
    west: Authority,
    bundles: Arc<TrustBundles>,
    server: Identity,
    client: Identity,
}

impl World {
    /// Two federated domains; the server is of east, the client of west.
    fn new() -> Self {
        let [east, west] = ["east.example", "west.example"].map(authority);
        let bundles = bundles(&[&east, &west]);
        let server = east.issue(&workload(&east, "reviews"), &["reviews.example"], HOUR).unwrap();
        let client = west.issue(&workload(&west, "productpage"), &[], HOUR).unwrap();
        Self { east, west, bundles, server, client }
    }

    fn server_config(&self, identity: &Identity) -> ServerConfig {
        let allowed = Peer::Domain(self.west.trust_domain().clone());
        server_config(identity, Arc::clone(&self.bundles), allowed).unwrap()
    }

    fn client_config(&self, identity: &Identity) -> ClientConfig {
        let expected = Peer::Ids(vec![self.server.id().clone()]);
        client_config(identity, Arc::clone(&self.bundles), expected).unwrap()
    }

    /// Why the server refuses this client.
    fn refusal_of(&self, client: &Identity) -> VerifyError {
        server_refusal(connect(self.client_config(client), self.server_config(&self.server)))
    }
}

fn authority(domain: &str) -> Authority {
    Authority::generate(TrustDomain::new(domain).unwrap()).unwrap()
}

fn workload(authority: &Authority, account: &str) -> SpiffeId {
    SpiffeId::workload(authority.trust_domain(), "bookinfo", account).unwrap()
}

fn bundles(authorities: &[&Authority]) -> Arc<TrustBundles> {
    let mut bundles = TrustBundles::new();
    for authority in authorities {
        bundles.add_root(authority.trust_domain().clone(), authority.certificate()).unwrap();
    }
    Arc::new(bundles)
}

/// How a connection went on which the client sends a request at once.
struct Outcome {
    client: Result<ClientConnection, rustls::Error>,
    server: Result<ServerConnection, rustls::Error>,
    /// What the server's application could read.
    received: Vec<u8>,
}

fn connect(client: ClientConfig, server: ServerConfig) -> Outcome {
    let name = ServerName::try_from("any.name.at.all").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    client.writer().write_all(REQUEST).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    while client.wants_write() || server.wants_write() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut flight = flight.as_slice();
        while !flight.is_empty() && server_error.is_none() {
            server.read_tls(&mut flight).unwrap();
            server_error = server.process_new_packets().err();
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        let mut flight = flight.as_slice();
        while !flight.is_empty() && client_error.is_none() {
            client.read_tls(&mut flight).unwrap();
            client_error = client.process_new_packets().err();
        }
    }
    let mut received = Vec::new();
    // Its end is WouldBlock: the connection stays open.
    let _ = server.reader().read_to_end(&mut received);
    Outcome {
        client: client_error.map_or(Ok(client), Err),
        server: server_error.map_or(Ok(server), Err),
        received,
    }
}

fn server_refusal(outcome: Outcome) -> VerifyError {
    assert_eq!(outcome.received, b"", "the application must see nothing");
    assert!(matches!(outcome.client, Err(rustls::Error::AlertReceived(_))), "the client must be told");
    VerifyError::of(&outcome.server.unwrap_err()).unwrap().clone()
}

fn client_refusal(outcome: Outcome) -> VerifyError {
    assert_eq!(outcome.received, b"", "the application must see nothing");
    assert!(matches!(outcome.server, Err(rustls::Error::AlertReceived(_))), "the server must be told");
    VerifyError::of(&outcome.client.unwrap_err()).unwrap().clone()
}

fn chain_error(refusal: VerifyError) -> webpki::Error {
    match refusal {
        VerifyError::Chain { cause, .. } => cause,
        other => panic!("{other}"),
    }
}

#[test]
fn federated_domains_know_each_other() {
    let world = World::new();
    let outcome = connect(world.client_config(&world.client), world.server_config(&world.server));
    let (client, server) = (outcome.client.unwrap(), outcome.server.unwrap());
    assert_eq!(outcome.received, REQUEST);
    assert_eq!(crate::peer_id(client.peer_certificates().unwrap()).as_ref(), Ok(world.server.id()));
    assert_eq!(crate::peer_id(server.peer_certificates().unwrap()).as_ref(), Ok(world.client.id()));
}

#[test]
fn tls12_is_verified_too() {
    let world = World::new();
    let verifier = |peer| server_verifier(Arc::clone(&world.bundles), peer);
    let client = |expected: &SpiffeId| {
        ClientConfig::builder_with_provider(crypto::provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(verifier(Peer::Ids(vec![expected.clone()])))
            .with_client_auth_cert(world.client.chain.clone(), world.client.key.clone_key())
            .unwrap()
    };
    let outcome = connect(client(world.server.id()), world.server_config(&world.server));
    assert_eq!(outcome.received, REQUEST);
    let refusal = client_refusal(connect(client(world.client.id()), world.server_config(&world.server)));
    assert_eq!(refusal, VerifyError::Unexpected(world.server.id().clone()));
}

#[test]
fn nothing_is_resumed() {
    let world = World::new();
    let client = world.client_config(&world.client);
    let server = world.server_config(&world.server);
    // Either end alone must prevent it, whatever the other is willing to do.
    let mut willing_client = client.clone();
    willing_client.resumption = Resumption::in_memory_sessions(8);
    let mut willing_server = server.clone();
    willing_server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    willing_server.send_tls13_tickets = 2;
    for (client, server) in [(willing_client, server), (client, willing_server)] {
        for _ in 0..2 {
            let outcome = connect(client.clone(), server.clone());
            assert_eq!(outcome.received, REQUEST);
            assert_ne!(outcome.client.unwrap().handshake_kind(), Some(HandshakeKind::Resumed));
        }
    }
}

#[test]
fn a_client_without_certificate_is_refused() {
    let world = World::new();
    let peer = Peer::Domain(world.east.trust_domain().clone());
    let client = ClientConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(Arc::clone(&world.bundles), peer))
        .with_no_client_auth();
    let outcome = connect(client, world.server_config(&world.server));
    assert_eq!(outcome.received, b"");
    assert_eq!(outcome.server.unwrap_err(), rustls::Error::NoCertificatesPresented);
}

#[test]
fn a_proven_peer_must_also_be_the_expected_one() {
    let world = World::new();
    // The server's own domain is trusted, but not allowed as a client.
    let local = world.east.issue(&workload(&world.east, "local"), &[], HOUR).unwrap();
    assert_eq!(world.refusal_of(&local), VerifyError::Unexpected(local.id().clone()));
    // The right DNS name does not make up for another identity; nor does an identity that merely starts alike.
    for account in ["ratings", "review", "reviews2"] {
        let other = world.east.issue(&workload(&world.east, account), &["any.name.at.all"], HOUR).unwrap();
        let outcome = connect(world.client_config(&world.client), world.server_config(&other));
        assert_eq!(client_refusal(outcome), VerifyError::Unexpected(other.id().clone()));
    }
}

#[test]
fn a_domain_without_bundle_is_refused() {
    let world = World::new();
    let north = authority("north.example");
    let stranger = north.issue(&workload(&north, "productpage"), &[], HOUR).unwrap();
    assert_eq!(world.refusal_of(&stranger), VerifyError::NoBundle(stranger.id().clone()));
}

#[test]
fn a_federated_domain_cannot_speak_for_another() {
    let world = World::new();
    // Both roots are trusted, each about its own domain only.
    let impostor = world.east.issue_altered(world.client.id(), |_| {});
    assert_eq!(chain_error(world.refusal_of(&impostor)), webpki::Error::UnknownIssuer);
    let impostor = world.west.issue_altered(world.server.id(), |_| {});
    let outcome = connect(world.client_config(&world.client), world.server_config(&impostor));
    assert_eq!(chain_error(client_refusal(outcome)), webpki::Error::UnknownIssuer);
}

#[test]
fn each_flaw_of_a_leaf_is_refused_for_itself() {
    let world = World::new();
    let id = world.client.id();
    let refusal =
        |alter: &dyn Fn(&mut CertificateParams)| world.refusal_of(&world.west.issue_altered(id, alter));
    let uri = |text: &str| SanType::URI(Ia5String::try_from(text).unwrap());
    let now = time::OffsetDateTime::now_utc();

    let expired = chain_error(refusal(&|p| p.not_after = now - time::Duration::minutes(1)));
    assert!(matches!(expired, webpki::Error::CertExpired { .. }), "{expired}");
    let early = chain_error(refusal(&|p| p.not_before = now + time::Duration::minutes(1)));
    assert!(matches!(early, webpki::Error::CertNotValidYet { .. }), "{early}");
    let server_only =
        chain_error(refusal(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]));
    assert!(matches!(server_only, webpki::Error::RequiredEkuNotFoundContext(_)), "{server_only}");

    let two = refusal(&|p| p.subject_alt_names.push(uri("spiffe://west.example/ns/a/sa/b")));
    assert_eq!(two, SvidError::UriNames(2).into());
    let two = refusal(&|p| p.subject_alt_names.push(uri("https://west.example/")));
    assert_eq!(two, SvidError::UriNames(2).into());
    let none = refusal(&|p| p.subject_alt_names = vec![SanType::DnsName("west.example".try_into().unwrap())]);
    assert_eq!(none, SvidError::UriNames(0).into());
    let web = refusal(&|p| p.subject_alt_names = vec![uri("https://west.example/")]);
    assert!(matches!(web, VerifyError::Svid(SvidError::Id(_))), "{web}");
    let nul = refusal(&|p| p.subject_alt_names = vec![uri(&format!("{id}\0"))]);
    assert!(matches!(nul, VerifyError::Svid(_)), "{nul}");
    let domain = refusal(&|p| p.subject_alt_names = vec![uri("spiffe://west.example")]);
    assert!(matches!(domain, VerifyError::Svid(SvidError::NoPath(_))), "{domain}");

    let signer = refusal(&|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign));
    assert_eq!(signer, SvidError::Authority.into());
    let ca = refusal(&|p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert_eq!(ca, SvidError::Authority.into());
    let usage = refusal(&|p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]);
    assert_eq!(usage, SvidError::KeyUsage.into());
}

#[test]
fn a_root_may_roll_over() {
    let world = World::new();
    let next = authority("west.example");
    let bundles = bundles(&[&world.east, &world.west, &next]);
    let renewed = next.issue(world.client.id(), &[], HOUR).unwrap();
    for identity in [&world.client, &renewed] {
        let verified = bundles.verify(identity.chain(), Role::Client, UnixTime::now());
        assert_eq!(verified.map(|proven| proven.id).as_ref(), Ok(world.client.id()));
    }
}

#[test]
fn a_leaf_is_no_root() {
    let world = World::new();
    let domain = world.west.trust_domain();
    let mut bundles = TrustBundles::new();
    let leaf = world.client.chain().first().unwrap();
    assert_eq!(bundles.add_root(domain.clone(), leaf), Err(BundleError::NotAuthority(domain.clone())));
    let noise = CertificateDer::from(b"noise".to_vec());
    assert!(matches!(bundles.add_root(domain.clone(), &noise), Err(BundleError::Malformed { .. })));
    assert_eq!(bundles.verify(&[], Role::Client, UnixTime::now()), Err(SvidError::NoCertificate.into()));
}
