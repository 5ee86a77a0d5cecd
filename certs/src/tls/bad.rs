//! Bad certificates in real handshakes, as clients and as servers, in TLS 1.2 and 1.3: each is refused for
//! its own reason, its peer is told, and no application sees a byte. Not for resumption (`resume`).

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

/// One thing that somebody may show, and what must be said of it.
struct Row {
    /// What is wrong with it.
    name: String,
    /// The word that counters have.
    reason: &'static str,
    /// What the error must say beside the word.
    detail: &'static str,
    chain: Vec<CertificateDer<'static>>,
    /// Whose key proves it.
    key: Identity,
    as_client: bool,
    as_server: bool,
    /// What the verifying end believes, and whom it wants.
    bundles: Arc<TrustBundles>,
    peer: Peer,
}

impl Row {
    /// Shown both as a client and as a server to an end that believes both domains and wants all of west.
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

    fn wanting(self, peer: Peer) -> Self {
        Self { peer, ..self }
    }

    fn believing(self, bundles: impl Into<Arc<TrustBundles>>) -> Self {
        Self { bundles: bundles.into(), ..self }
    }

    fn only_as_client(self) -> Self {
        Self { as_server: false, ..self }
    }

    fn only_as_server(self) -> Self {
        Self { as_client: false, ..self }
    }

    /// What the verifying end said each time.
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

/// The word for a refusal and all that its error says.
fn said(error: &rustls::Error) -> (&'static str, String) {
    match VerifyError::of(error) {
        Some(why) => (why.reason(), format!("{why:?}")),
        // An empty list never reaches a verifier: rustls itself refuses it.
        None if *error == rustls::Error::NoCertificatesPresented => ("no_certificate", format!("{error:?}")),
        None => panic!("not refused by a verifier: {error}"),
    }
}

/// A leaf of west as it should be, but for what `alter` does.
fn leaf(world: &World, alter: impl FnOnce(&mut CertificateParams)) -> Identity {
    world.west.issue_altered(world.client.id(), alter)
}

/// A leaf of the client's identity signed by an authority that would not sign it by itself.
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
fn each_bad_certificate_is_refused_for_its_own_reason_before_any_byte() {
    let world = World::new();
    let mut rows = names::rows(&world);
    rows.extend(chains::rows(&world));
    rows.extend(peers::rows(&world));
    let mut counted = BTreeMap::<_, usize>::new();
    let (mut handshakes, mut wrong) = (0, Vec::new());
    for row in &rows {
        let refusals = row.refusals(&world);
        for error in &refusals {
            let (reason, text) = said(error);
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
    assert_eq!(rows.iter().map(|row| &row.name).collect::<BTreeSet<_>>().len(), rows.len(), "two alike");
    let words: BTreeSet<_> = counted.into_keys().collect();
    assert_eq!(words, BTreeSet::from(VerifyError::REASONS), "every word of the closed set must have a row");
}

#[test]
fn an_intermediate_that_may_not_sign_certificates_is_refused() {
    let world = World::new();
    let below = world.west.intermediate_altered(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let shown = leaf_below(&world, &below, |_| {});
    let row = Row::new(&world, "an intermediate without keyCertSign", "issuer_not_authority", "", shown);
    for error in row.refusals(&world) {
        assert_eq!(said(&error).0, row.reason, "{error}");
    }
}

#[test]
fn names_beside_the_identity_do_not_matter() {
    let world = World::new();
    let text = |text: &str| Ia5String::try_from(text).unwrap();
    let good = leaf(&world, |p| {
        let email = SanType::Rfc822Name(text("admin@east.example"));
        let ip = SanType::IpAddress([127, 0, 0, 1].into());
        // Nobody looks at DNS names here, so even this one cannot be taken for another.
        let nul = SanType::DnsName(text("east.example\0.west.example"));
        p.subject_alt_names.splice(0..0, [SanType::DnsName(text("east.example")), nul, email, ip]);
    });
    let outcome = connect(world.client_config(&good), world.server_config(&world.server));
    let server = outcome.server.unwrap();
    assert_eq!(outcome.received, REQUEST);
    assert_eq!(outcome.answered, REPLY);
    assert_eq!(crate::peer_id(server.peer_certificates().unwrap()).as_ref(), Ok(world.client.id()));
}

/// webpki does not look at an anchor's dates; the bundle does. The length of path that an anchor allows is looked
/// at by neither, as RFC 5280 6.1 lets it.
#[test]
fn a_root_is_believed_until_it_ends_or_leaves_the_bundle() {
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
