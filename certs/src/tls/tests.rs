//! Real handshakes in memory: which peers are accepted, and that applications see no byte of the others.

use rustls::HandshakeKind;
use rustls::pki_types::{CertificateDer, UnixTime};

use super::world::*;
use super::*;
use crate::{BundleError, Role, SvidError};

#[test]
fn handshake_between_federated_domains_proves_both_identities() {
    let world = World::new();
    let outcome = connect(world.client_config(&world.client), world.server_config(&world.server));
    let (client, server) = (outcome.client.unwrap(), outcome.server.unwrap());
    assert_eq!(outcome.received, REQUEST);
    assert_eq!(crate::peer_id(client.peer_certificates().unwrap()).as_ref(), Ok(world.server.id()));
    assert_eq!(crate::peer_id(server.peer_certificates().unwrap()).as_ref(), Ok(world.client.id()));
}

#[test]
fn handshake_in_tls12_verifies_the_server_identity() {
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
fn plain_configurations_never_resume_sessions() {
    let world = World::new();
    let client = world.client_config(&world.client);
    let server = world.server_config(&world.server);
    // Either end alone must prevent resumption, whatever the other offers.
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
fn handshake_without_a_certificate_is_refused() {
    let world = World::new();
    let peer = || Peer::Domain(world.east.trust_domain().clone());
    let client = ClientConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(Arc::clone(&world.bundles), peer()))
        .with_no_client_auth();
    let error = connect(client, world.server_config(&world.server)).server_error();
    assert_eq!(error, rustls::Error::NoCertificatesPresented);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let west = Peer::Domain(world.west.trust_domain().clone());
        let server = showing_server(&[], &world.server, &world.bundles, west, version);
        let outcome = connect(world.client_config(&world.client), server);
        assert_eq!((outcome.received.len(), outcome.answered.len()), (0, 0));
        // rustls sends the server no alert, but the client's connection fails.
        assert_eq!(outcome.client.unwrap_err(), rustls::Error::NoCertificatesPresented);
    }
}

#[test]
fn handshake_refuses_a_proven_but_unexpected_peer() {
    let world = World::new();
    // The server's own domain is trusted, but not allowed as a client.
    let local = world.east.issue(&workload(&world.east, "local"), &[], HOUR).unwrap();
    assert_eq!(world.refusal_of(&local), VerifyError::Unexpected(local.id().clone()));
    // Neither the right DNS name nor a similar identity is enough.
    for account in ["ratings", "review", "reviews2"] {
        let other = world.east.issue(&workload(&world.east, account), &["any.name.at.all"], HOUR).unwrap();
        let outcome = connect(world.client_config(&world.client), world.server_config(&other));
        assert_eq!(client_refusal(outcome), VerifyError::Unexpected(other.id().clone()));
    }
}

#[test]
fn handshake_refuses_a_domain_without_bundle() {
    let world = World::new();
    let north = authority("north.example");
    let stranger = north.issue(&workload(&north, "productpage"), &[], HOUR).unwrap();
    assert_eq!(world.refusal_of(&stranger), VerifyError::NoBundle(stranger.id().clone()));
}

#[test]
fn federated_domain_cannot_sign_identities_of_another() {
    let world = World::new();
    // Both roots are trusted, each about its own domain only.
    let impostor = world.east.issue_altered(world.client.id(), |_| {});
    assert_eq!(chain_error(world.refusal_of(&impostor)), webpki::Error::UnknownIssuer);
    let impostor = world.west.issue_altered(world.server.id(), |_| {});
    let outcome = connect(world.client_config(&world.client), world.server_config(&impostor));
    assert_eq!(chain_error(client_refusal(outcome)), webpki::Error::UnknownIssuer);
}

#[test]
fn bundle_with_two_roots_verifies_leaves_of_both() {
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
fn bundle_refuses_a_leaf_as_root() {
    let world = World::new();
    let domain = world.west.trust_domain();
    let mut bundles = TrustBundles::new();
    let leaf = world.client.chain().first().unwrap();
    assert_eq!(bundles.add_root(domain.clone(), leaf), Err(BundleError::NotAuthority(domain.clone())));
    let noise = CertificateDer::from(b"noise".to_vec());
    assert!(matches!(bundles.add_root(domain.clone(), &noise), Err(BundleError::Malformed { .. })));
    assert_eq!(bundles.verify(&[], Role::Client, UnixTime::now()), Err(SvidError::NoCertificate.into()));
}

/// The certificate of istiod has DNS names and no SPIFFE ID.
#[test]
fn server_without_spiffe_id_is_verified_by_name() {
    let world = World::new();
    let name = |text: &str| DnsName::try_from(text.to_owned()).unwrap();
    let client = |bundles: &TrustBundles, domain: &TrustDomain, text: &str| {
        let peer = Peer::Name { domain: domain.clone(), name: name(text) };
        client_config(&world.client, Arc::new(bundles.clone()), peer).unwrap()
    };
    let without_id = world.east.issue_altered(world.server.id(), |params| {
        let name = rcgen::string::Ia5String::try_from("istiod.istio-system.svc").unwrap();
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name)];
    });
    let (east, west) = (world.east.trust_domain(), world.west.trust_domain());
    let outcome =
        connect(client(&world.bundles, east, "istiod.istio-system.svc"), world.server_config(&without_id));
    assert_eq!((outcome.received.as_slice(), outcome.answered.as_slice()), (REQUEST, REPLY));

    let mut denied = TrustBundles::clone(&world.bundles);
    let mut list = crate::DenyList::new(east.clone());
    list.add_serial(crate::facts::Facts::read(&without_id.chain()[0]).unwrap().serial.parse().unwrap(), None);
    denied.deny(list);
    let cases = [
        (&*world.bundles, east, "istiod.other.svc", "unexpected"),
        (&*world.bundles, west, "istiod.istio-system.svc", "unknown_issuer"),
        (&TrustBundles::new(), east, "istiod.istio-system.svc", "unknown_issuer"),
        (&denied, east, "istiod.istio-system.svc", "revoked"),
    ];
    for (bundles, domain, name, reason) in cases {
        let outcome = connect(client(bundles, domain, name), world.server_config(&without_id));
        outcome.assert_silent();
        let refusal = client_refusal(outcome);
        assert_eq!(refusal.reason(), reason, "{refusal}");
        assert!(
            refusal.to_string().starts_with(&format!("the server does not prove to be {name}")),
            "{refusal}"
        );
    }

    let nobody = Peer::Name { domain: west.clone(), name: name("a.example") };
    let server = server_config(&world.server, Arc::clone(&world.bundles), nobody).unwrap();
    let refusal = server_refusal(connect(world.client_config(&world.client), server));
    assert_eq!(refusal, VerifyError::Unexpected(world.client.id().clone()));
}
