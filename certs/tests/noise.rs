//! All readers of foreign input: any bytes, and altered valid input, give a result and never a panic. Altered signed
//! input is never accepted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests fail by panicking")]

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isthmus_certs::crl::{Crls, StaleCrl};
use isthmus_certs::facts::Facts;
use isthmus_certs::{
    Authority, Bundle, Csr, DenyList, IdPattern, Identity, KeyKind, Role, SpiffeId, TrustBundles,
    TrustDomain, peer_id, spiffe_bundle,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use rcgen::{CertificateParams, CertificateRevocationListParams, KeyIdMethod, SerialNumber};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::Value;

const HOUR: Duration = Duration::from_secs(3600);

/// One valid input of each kind.
struct Good {
    domain: TrustDomain,
    root: Authority,
    bundles: TrustBundles,
    identity: Identity,
    csr: Vec<u8>,
    bundle: String,
    list: DenyList,
    signed: String,
    crl: Vec<u8>,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let domain = TrustDomain::new("west.example").unwrap();
    let root = Authority::generate(domain.clone()).unwrap();
    let below = root.intermediate("west", KeyKind::P256, HOUR * 2).unwrap();
    let id = SpiffeId::workload(&domain, "bookinfo", "productpage").unwrap();
    let mut bundles = TrustBundles::new();
    bundles.add_root(domain.clone(), root.certificate()).unwrap();
    let key = KeyKind::P256.generate().unwrap();
    let csr = CertificateParams::new(["web.example".to_owned()]).unwrap().serialize_request(&key).unwrap();
    let mut list = DenyList::new(domain.clone());
    list.add_identity(IdPattern::Exactly(id.clone()));
    list.add_serial("0abc".parse().unwrap(), None);
    let issuer = rcgen::Issuer::from_ca_cert_pem(
        &root.certificate_pem(),
        rcgen::KeyPair::from_pem(root.key_pem().unwrap()).unwrap(),
    );
    let now = time::OffsetDateTime::now_utc();
    let crl = CertificateRevocationListParams {
        this_update: now,
        next_update: now + HOUR,
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Good {
        bundle: spiffe_bundle::write(&Bundle::new(&domain, 7, [root.certificate()]).unwrap()).unwrap(),
        identity: below.issue(&id, &["web.example"], HOUR).unwrap(),
        csr: csr.der().to_vec(),
        signed: list.sign(&below).unwrap(),
        crl: crl.signed_by(&issuer.unwrap()).unwrap().der().to_vec(),
        list,
        domain,
        root,
        bundles,
    }
});

/// One alteration of some bytes.
#[derive(Debug, Clone)]
enum Alteration {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Cut(Index),
    /// Copies a part to another place.
    Repeat(Index, Index, usize),
}

fn alterations() -> impl Strategy<Value = Vec<Alteration>> {
    let at = any::<Index>;
    let one = prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Alteration::Set(at, byte)),
        (at(), 0..8u8).prop_map(|(at, bit)| Alteration::Flip(at, bit)),
        (at(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Alteration::Insert(at, bytes)),
        (at(), 1..40usize).prop_map(|(at, length)| Alteration::Remove(at, length)),
        at().prop_map(Alteration::Cut),
        (at(), at(), 1..200usize).prop_map(|(from, to, length)| Alteration::Repeat(from, to, length)),
    ];
    vec(one, 1..4)
}

fn altered(good: &[u8], alterations: &[Alteration]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for alteration in alterations {
        // `Cut` and `Remove` can leave nothing to alter.
        if bytes.is_empty() {
            break;
        }
        let length = bytes.len();
        match alteration {
            Alteration::Set(at, byte) => bytes[at.index(length)] = *byte,
            Alteration::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Alteration::Insert(at, new) => {
                let at = at.index(length);
                bytes.splice(at..at, new.iter().copied());
            }
            Alteration::Remove(at, count) => {
                let at = at.index(length);
                bytes.drain(at..length.min(at + count));
            }
            Alteration::Cut(at) => bytes.truncate(at.index(length)),
            Alteration::Repeat(from, to, count) => {
                let from = from.index(length);
                let part = bytes[from..length.min(from + count)].to_vec();
                let to = to.index(length);
                bytes.splice(to..to, part);
            }
        }
    }
    bytes
}

fn roles() -> [Role; 2] {
    [Role::Client, Role::Server]
}

fn read_all(bytes: &[u8]) {
    let der = CertificateDer::from(bytes.to_vec());
    let chains = [
        vec![der.clone()],
        [GOOD.identity.chain(), std::slice::from_ref(&der)].concat(),
        vec![der.clone(); 3],
    ];
    for chain in &chains {
        for role in roles() {
            let _ = GOOD.bundles.verify(chain, role, UnixTime::now());
        }
        let _ = peer_id(chain);
    }
    let _ = Facts::read(&der);
    let _ = Bundle::new(&GOOD.domain, 0, [&der]);
    let _ = Csr::parse(bytes);
    let _ = Identity::from_pem(bytes, bytes);
    let _ = Authority::from_pem(GOOD.domain.clone(), bytes, bytes);
    let _ = spiffe_bundle::read(&GOOD.domain, bytes);
    let bundle = GOOD.bundles.get(&GOOD.domain).unwrap();
    let _ = DenyList::open(bytes, &GOOD.domain, bundle, UnixTime::now(), None);
    let _ = Crls::read(bytes, StaleCrl::Refuse, Duration::ZERO);
}

#[test]
fn noise_baseline_inputs_are_valid() {
    let good = &*GOOD;
    let bundle = good.bundles.get(&good.domain).unwrap();
    for role in roles() {
        assert!(good.bundles.verify(good.identity.chain(), role, UnixTime::now()).is_ok());
    }
    assert!(Csr::parse(&good.csr).is_ok());
    assert_eq!(spiffe_bundle::read(&good.domain, &good.bundle).unwrap().roots(), bundle.roots());
    let list = DenyList::open(good.signed.as_bytes(), &good.domain, bundle, UnixTime::now(), None);
    assert_eq!(list.as_ref(), Ok(&good.list));
    assert!(Crls::read(&good.crl, StaleCrl::Refuse, HOUR / 2).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn readers_never_panic_on_any_bytes(bytes in vec(any::<u8>(), 0..600)) {
        read_all(&bytes);
    }

    /// DER with right outer lengths, which pure noise rarely has.
    #[test]
    fn readers_never_panic_on_any_der_sequences(bytes in vec(any::<u8>(), 0..120), depth in 1..6usize) {
        let wrapped = (0..depth).fold(bytes, |inner, _| {
            let length = u8::try_from(inner.len()).unwrap();
            [&[0x30, 0x81, length][..], &inner].concat()
        });
        read_all(&wrapped);
    }

    #[test]
    fn altered_certificate_is_never_verified(alterations in alterations(), place in 0..2usize) {
        let mut chain = GOOD.identity.chain().to_vec();
        let bytes = altered(&chain[place], &alterations);
        let same = bytes == *chain[place];
        read_all(&bytes);
        chain[place] = bytes.into();
        for role in roles() {
            let verified = GOOD.bundles.verify(&chain, role, UnixTime::now());
            prop_assert_eq!(verified.is_ok(), same);
        }
    }

    #[test]
    fn altered_root_never_panics_a_reader(alterations in alterations()) {
        let bytes = altered(GOOD.root.certificate(), &alterations);
        read_all(&bytes);
        let mut bundles = TrustBundles::new();
        if bundles.add_root(GOOD.domain.clone(), &bytes.into()).is_ok() {
            let _ = bundles.verify(GOOD.identity.chain(), Role::Client, UnixTime::now());
        }
    }

    #[test]
    fn altered_csr_never_proves_another_key(alterations in alterations()) {
        let bytes = altered(&GOOD.csr, &alterations);
        read_all(&bytes);
        if let Ok(csr) = Csr::parse(&bytes) {
            let good = Csr::parse(&GOOD.csr).unwrap();
            prop_assert_eq!(csr.key(), good.key());
        }
    }

    #[test]
    fn altered_bundle_never_panics_a_reader(alterations in alterations(), inside in any::<bool>()) {
        let text = match inside {
            false => altered(GOOD.bundle.as_bytes(), &alterations),
            true => {
                let mut document: Value = serde_json::from_str(&GOOD.bundle).unwrap();
                let root = altered(GOOD.root.certificate(), &alterations);
                document["keys"][0]["x5c"][0] = STANDARD.encode(root).into();
                document.to_string().into_bytes()
            }
        };
        read_all(&text);
        if let Ok(bundle) = spiffe_bundle::read(&GOOD.domain, &text) {
            prop_assert!(!bundle.roots().is_empty());
            prop_assert!(spiffe_bundle::write(&bundle).is_ok());
        }
    }

    #[test]
    fn altered_deny_list_never_has_other_content(alterations in alterations(), inside in 0..4usize) {
        let mut envelope: Value = serde_json::from_str(&GOOD.signed).unwrap();
        let bytes = match inside {
            0 => altered(GOOD.signed.as_bytes(), &alterations),
            _ => {
                let part = match inside {
                    1 => &mut envelope["payload"],
                    2 => &mut envelope["signatures"][0]["sig"],
                    _ => &mut envelope["signatures"][0]["cert"],
                };
                let good = STANDARD.decode(part.as_str().unwrap()).unwrap();
                *part = STANDARD.encode(altered(&good, &alterations)).into();
                envelope.to_string().into_bytes()
            }
        };
        read_all(&bytes);
        let bundle = GOOD.bundles.get(&GOOD.domain).unwrap();
        if let Ok(list) = DenyList::open(&bytes, &GOOD.domain, bundle, UnixTime::now(), None) {
            prop_assert_eq!(&list, &GOOD.list);
        }
    }

    #[test]
    fn altered_revocation_list_never_panics_a_reader(alterations in alterations()) {
        let bytes = altered(&GOOD.crl, &alterations);
        read_all(&bytes);
        if let Ok(lists) = Crls::read(&bytes, StaleCrl::Refuse, Duration::ZERO) {
            let is_altered = bytes != GOOD.crl;
            let mut bundles = GOOD.bundles.clone();
            bundles.revoke(GOOD.domain.clone(), lists);
            let direct = GOOD.root.issue(GOOD.identity.id(), &[], HOUR).unwrap();
            let verified = bundles.verify(direct.chain(), Role::Client, UnixTime::now());
            // A list of another issuer does not apply; one in the name of the root must be as the root signed it.
            prop_assert!(verified.is_ok() || is_altered);
        }
    }
}
