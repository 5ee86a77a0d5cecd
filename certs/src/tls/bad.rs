//! Bad certificates in real handshakes, of clients and of servers, in TLS 1.2 and 1.3: each is refused with its own
//! reason, the peer gets an alert, and no application sees a byte. `resume` tests resumption.

mod chains;
mod names;
mod peers;

use std::collections::{BTreeMap, BTreeSet};

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::SupportedProtocolVersion;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::version::{TLS12, TLS13};
use time::OffsetDateTime;

use super::world::*;
use super::*;
use crate::{Authority, Bundle, Role};

/// A bad chain, and how it must be refused.
struct Row {
    /// What is wrong with the chain.
    name: String,
    /// The expected reason.
    reason: &'static str,
    /// A part of the error, in its debug form.
    detail: &'static str,
    chain: Vec<CertificateDer<'static>>,
    /// The identity whose key is used.
    key: Identity,
    as_client: bool,
    as_server: bool,
    /// The bundles of the verifying end, and the peers that it accepts.
    bundles: Arc<TrustBundles>,
    peer: Peer,
}

impl Row {
    /// Presented both as a client and as a server to an end that trusts both domains and accepts all of west.
    fn new(
        world: &World,
        name: impl Into<String>,
        reason: &'static str,
        detail: &'static str,
        shown: Identity,
    ) -> Self {
        Self {
            name: name.into(),
            reason,
            detail,
            chain: shown.chain.clone(),
            key: shown,
            as_client: true,
            as_server: true,
            bundles: Arc::clone(&world.bundles),
            peer: Peer::Domain(world.west.trust_domain().clone()),
        }
    }

    fn accepting(self, peer: Peer) -> Self {
        Self { peer, ..self }
    }

    fn with_bundles(self, bundles: impl Into<Arc<TrustBundles>>) -> Self {
        Self { bundles: bundles.into(), ..self }
    }

    fn only_as_client(self) -> Self {
        Self { as_server: false, ..self }
    }

    fn only_as_server(self) -> Self {
        Self { as_client: false, ..self }
    }

    /// The errors of the verifying end in each handshake.
    fn refusals(&self, world: &World) -> Vec<rustls::Error> {
        let versions = [&TLS12, &TLS13];
        let clients = versions.iter().filter(|_| self.as_client).map(|version| {
            let verifying = server_config(&world.server, Arc::clone(&self.bundles), self.peer.clone());
            connect(self.client(world, version), verifying.unwrap()).server_error()
        });
        let servers = versions.iter().filter(|_| self.as_server).map(|version| {
            let verifying = client_config(&world.client, Arc::clone(&self.bundles), self.peer.clone());
            connect(verifying.unwrap(), self.server(world, version)).client_error()
        });
        clients.chain(servers).collect()
    }

    fn client(&self, world: &World, version: &'static SupportedProtocolVersion) -> ClientConfig {
        let all_east = Peer::Domain(world.east.trust_domain().clone());
        showing_client(&self.chain, &self.key, &world.bundles, all_east, version)
    }

    fn server(&self, world: &World, version: &'static SupportedProtocolVersion) -> ServerConfig {
        let all_west = Peer::Domain(world.west.trust_domain().clone());
        showing_server(&self.chain, &self.key, &world.bundles, all_west, version)
    }
}

/// The reason of a refusal, and its error in debug form.
fn refusal(error: &rustls::Error) -> (&'static str, String) {
    match VerifyError::find_in(error) {
        Some(why) => (why.reason(), format!("{why:?}")),
        // An empty chain never reaches a verifier: rustls itself refuses it.
        None if *error == rustls::Error::NoCertificatesPresented => ("no_certificate", format!("{error:?}")),
        None => panic!("not refused by a verifier: {error}"),
    }
}

/// A valid leaf of west, changed by `alter`.
fn leaf(world: &World, alter: impl FnOnce(&mut CertificateParams)) -> Identity {
    world.west.issue_altered(world.client.id(), alter)
}

/// A leaf of the client's identity under any authority, bypassing its checks.
fn leaf_below(world: &World, authority: &Authority, alter: impl FnOnce(&mut CertificateParams)) -> Identity {
    let mut params = CertificateParams::default();
    let mut identity = leaf(world, |good| {
        alter(good);
        params = good.clone();
    });
    let key = KeyPair::from_pem(&identity.key_pem).unwrap();
    let leaf = params.signed_by(&key, &authority.signer().unwrap()).unwrap().der().clone();
    identity.chain = std::iter::once(leaf).chain(authority.above().iter().cloned()).collect();
    identity
}

#[test]
fn handshake_with_each_bad_certificate_is_refused_with_its_reason_before_any_byte() {
    let world = World::new();
    let mut rows = names::rows(&world);
    rows.extend(chains::rows(&world));
    rows.extend(peers::rows(&world));
    let mut counted = BTreeMap::<_, usize>::new();
    let (mut handshakes, mut wrong) = (0, Vec::new());
    for row in &rows {
        let refusals = row.refusals(&world);
        for error in &refusals {
            let (reason, text) = refusal(error);
            if reason != row.reason || !text.contains(row.detail) {
                wrong.push(format!("{}: {reason}, not {} ({}): {text}", row.name, row.reason, row.detail));
            }
        }
        println!("{:2} refused, 0 bytes, {:20} {}", refusals.len(), row.reason, row.name);
        handshakes += refusals.len();
        *counted.entry(row.reason).or_default() += refusals.len();
    }
    println!("{} rows, {handshakes} handshakes refused, 0 bytes seen: {counted:?}", rows.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(rows.len() >= 45, "{}", rows.len());
    assert_eq!(
        rows.iter().map(|row| &row.name).collect::<BTreeSet<_>>().len(),
        rows.len(),
        "duplicate names"
    );
    let words: BTreeSet<_> = counted.into_keys().collect();
    assert_eq!(words, BTreeSet::from(VerifyError::REASONS), "every reason must have a row");
}

#[test]
fn handshake_under_an_intermediate_without_key_cert_sign_is_refused() {
    let world = World::new();
    let below = world.west.intermediate_altered(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let shown = leaf_below(&world, &below, |_| {});
    let row = Row::new(&world, "an intermediate without keyCertSign", "issuer_not_authority", "", shown);
    for error in row.refusals(&world) {
        assert_eq!(refusal(&error).0, row.reason, "{error}");
    }
}

#[test]
fn handshake_ignores_names_beside_the_identity() {
    let world = World::new();
    let text = |text: &str| Ia5String::try_from(text).unwrap();
    let good = leaf(&world, |p| {
        let email = SanType::Rfc822Name(text("admin@east.example"));
        let ip = SanType::IpAddress([127, 0, 0, 1].into());
        // DNS names are not checked here, so even this one cannot be mistaken for another.
        let nul = SanType::DnsName(text("east.example\0.west.example"));
        p.subject_alt_names.splice(0..0, [SanType::DnsName(text("east.example")), nul, email, ip]);
    });
    let outcome = connect(world.client_config(&good), world.server_config(&world.server));
    let server = outcome.server.unwrap();
    assert_eq!(outcome.received, REQUEST);
    assert_eq!(outcome.answered, REPLY);
    assert_eq!(crate::peer_id(server.peer_certificates().unwrap()).as_ref(), Ok(world.client.id()));
}

/// webpki does not check the dates of an anchor; the bundle does. Neither checks its path length, as RFC 5280 6.1
/// allows.
#[test]
fn root_is_trusted_until_it_expires_or_leaves_the_bundle() {
    let world = World::new();
    let key = KeyPair::from_pem(world.west.key_pem().unwrap()).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(world.west.certificate()).unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = chains::subject(&world.west);
    params.not_before = OffsetDateTime::now_utc() - HOUR;
    params.not_after = OffsetDateTime::now_utc() + HOUR;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let old = params.self_signed(&key).unwrap().der().clone();
    assert_eq!(x509_parser::parse_x509_certificate(&old).unwrap().1.subject(), parsed.subject());
    let mut bundles = TrustBundles::new();
    bundles.add_root(world.west.trust_domain().clone(), &old).unwrap();
    let below = world.west.intermediate_altered(|_| {});
    for identity in [leaf(&world, |_| {}), leaf_below(&world, &below, |_| {})] {
        let proven = bundles.verify(identity.chain(), Role::Client, UnixTime::now());
        assert_eq!(proven.map(|proven| proven.id).as_ref(), Ok(world.client.id()));
        let later =
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(UnixTime::now().as_secs()) + HOUR * 2);
        let ended = bundles.verify(identity.chain(), Role::Client, later).unwrap_err();
        assert_eq!(ended.reason(), "expired");
    }
    bundles.insert(world.west.trust_domain().clone(), Bundle::default());
    let gone = bundles.verify(world.client.chain(), Role::Client, UnixTime::now()).unwrap_err();
    assert_eq!(gone.reason(), "no_bundle");
}
