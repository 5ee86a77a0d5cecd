//! Signed deny-lists: whose signatures count. `tls::bad` and `tls::resume` test their effect in handshakes.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, IsCa, KeyPair, KeyUsagePurpose, SigningKey as _};
use serde_json::{Value, json};

use super::*;
use crate::facts::Facts;
use crate::key::KeyKind;

const HOUR: Duration = Duration::from_secs(3600);
const PATTERN: &str = "spiffe://west.example/ns/bookinfo/*";

fn authority(domain: &str) -> Authority {
    Authority::generate(TrustDomain::new(domain).unwrap()).unwrap()
}

fn serial(text: &str) -> Serial {
    text.parse().unwrap()
}

fn bundle(root: &Authority) -> Bundle {
    Bundle::new(root.trust_domain(), 1, [root.certificate()]).unwrap()
}

fn a_list(domain: &TrustDomain) -> DenyList {
    let mut list = DenyList::new(domain.clone());
    list.add_identity(IdPattern::parse(PATTERN).unwrap());
    list.add_serial(serial("0A:BC"), Some(OffsetDateTime::UNIX_EPOCH + HOUR));
    list.add_serial(serial("ffee"), None);
    list.renumber(7);
    list
}

fn open(envelope: &str, root: &Authority) -> Result<DenyList, DenyError> {
    DenyList::open(envelope.as_bytes(), root.trust_domain(), &bundle(root), UnixTime::now(), None)
}

/// An envelope signed by `key`, under any certificate.
fn envelope(payload: &[u8], key: &KeyPair, certificate: &CertificateDer<'_>) -> Value {
    let signature = key.sign(&signed_text(payload)).unwrap();
    json!({
        "payloadType": PAYLOAD_TYPE,
        "payload": STANDARD.encode(payload),
        "signatures": [{"sig": STANDARD.encode(signature), "cert": STANDARD.encode(certificate)}],
    })
}

/// An alteration: its name, a part of the error, and how to make it.
type Alteration<'a> = (&'static str, &'static str, &'a dyn Fn(&mut Value));

fn key_of(authority: &Authority) -> KeyPair {
    KeyPair::from_pem(authority.key_pem().unwrap()).unwrap()
}

#[test]
fn deny_list_signed_by_root_or_intermediate_round_trips() {
    for kind in KeyKind::ALL {
        let domain = TrustDomain::new("west.example").unwrap();
        let west = Authority::root(domain, kind, HOUR * 2).unwrap();
        let below = west.intermediate("west", kind, HOUR).unwrap();
        let list = a_list(west.trust_domain());
        for signer in [&west, &below] {
            assert_eq!(open(&list.sign(signer).unwrap(), &west), Ok(list.clone()), "{kind}");
        }
        assert_eq!(list.sequence(), 7);
        let serials: Vec<_> = list.serials().collect();
        let expected = [(&serial("0abc"), Some(OffsetDateTime::UNIX_EPOCH + HOUR)), (&serial("ffee"), None)];
        assert_eq!(serials, expected);
        assert_eq!(list.identities().map(ToString::to_string).collect::<Vec<_>>(), [PATTERN]);
    }
}

#[test]
fn deny_list_not_signed_by_an_authority_of_its_domain_is_refused() {
    let [west, east] = ["west.example", "east.example"].map(authority);
    let list = a_list(west.trust_domain());
    let now = OffsetDateTime::now_utc();
    let past = west.intermediate_altered(|p| p.not_after = now - HOUR / 60);
    let future = west.intermediate_altered(|p| p.not_before = now + HOUR / 60);
    let no_signer = west.intermediate_altered(|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let no_usage = west.intermediate_altered(|p| p.key_usages.clear());
    let no_authority = west.intermediate_altered(|p| p.is_ca = IsCa::ExplicitNoCa);
    let grandchild = west
        .intermediate_altered(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))
        .intermediate_altered(|_| {});
    let namesake = authority("west.example");
    let east_below = east.intermediate_altered(|_| {});
    let signers = [
        ("another domain's root", &east),
        ("another domain's intermediate", &east_below),
        ("a root that only calls itself west's", &namesake),
        ("an expired intermediate", &past),
        ("an intermediate of tomorrow", &future),
        ("an intermediate without keyCertSign", &no_signer),
        ("an intermediate without key usage", &no_usage),
        ("a signed certificate that is no authority", &no_authority),
        ("an intermediate's intermediate", &grandchild),
    ];
    for (name, signer) in signers {
        let refused = open(&list.sign(signer).unwrap(), &west);
        assert_eq!(refused, Err(DenyError::NotSigned(west.trust_domain().clone())), "{name}");
        println!("deny-list refused: signed by {name}");
    }
    let next = authority("west.example");
    let rolled_over = open(&list.sign(&west).unwrap(), &next);
    assert_eq!(rolled_over, Err(DenyError::NotSigned(west.trust_domain().clone())), "its root is gone");
}

#[test]
fn deny_list_signed_by_a_leaf_is_refused() {
    let west = authority("west.example");
    let id = SpiffeId::parse("spiffe://west.example/ns/a/sa/b").unwrap();
    let leaf = west.issue(&id, &[], HOUR).unwrap();
    let payload = serde_json::to_vec(&a_list(west.trust_domain())).unwrap();
    let leaf_key = KeyPair::from_pem(leaf.key_pem()).unwrap();
    let by = |key: &KeyPair, certificate| open(&envelope(&payload, key, certificate).to_string(), &west);
    let refused = Err(DenyError::NotSigned(west.trust_domain().clone()));
    assert_eq!(by(&leaf_key, &leaf.chain()[0]), refused);
    assert_eq!(by(&leaf_key, west.certificate()), refused, "under the root's certificate");
    assert_eq!(by(&key_of(&west), &leaf.chain()[0]), refused, "the root's key under a leaf's certificate");
    assert!(by(&key_of(&west), west.certificate()).is_ok(), "the envelopes refused above are well-formed");
}

#[test]
fn deny_list_envelope_with_an_altered_part_is_refused() {
    let west = authority("west.example");
    let payload = serde_json::to_vec(&a_list(west.trust_domain())).unwrap();
    let empty = serde_json::to_vec(&DenyList::new(west.trust_domain().clone())).unwrap();
    let good = envelope(&payload, &key_of(&west), west.certificate());
    let other = envelope(&empty, &key_of(&west), west.certificate());
    let altered = |alter: &dyn Fn(&mut Value)| {
        let mut envelope = good.clone();
        alter(&mut envelope);
        open(&envelope.to_string(), &west)
    };
    let table: [Alteration<'_>; 9] = [
        ("another payload", "not signed", &|e| e["payload"] = STANDARD.encode(&empty).into()),
        ("another list's signature", "not signed", &|e| e["signatures"] = other["signatures"].clone()),
        ("no signature", "not signed", &|e| e["signatures"] = json!([])),
        ("an empty signature", "not signed", &|e| e["signatures"][0]["sig"] = "".into()),
        ("a signature that is no base64", "not signed", &|e| e["signatures"][0]["sig"] = "?".into()),
        ("a certificate that is none", "not signed", &|e| e["signatures"][0]["cert"] = "AAAA".into()),
        ("another type", "payload type", &|e| e["payloadType"] = "application/json".into()),
        ("a payload that is no base64", "cannot be read", &|e| e["payload"] = "?".into()),
        ("no payload", "cannot be read", &|e| _ = e.as_object_mut().unwrap().remove("payload")),
    ];
    for (name, expected, alter) in table {
        let error = altered(alter).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    // One valid signature is enough, whatever the others.
    let both = altered(&|e| {
        let good = e["signatures"][0].clone();
        e["signatures"] = json!([{"sig": "?", "cert": "?"}, good]);
    });
    assert_eq!(both, Ok(a_list(west.trust_domain())));
}

#[test]
fn deny_list_signature_over_another_payload_type_is_refused() {
    let west = authority("west.example");
    let payload = serde_json::to_vec(&a_list(west.trust_domain())).unwrap();
    let key = key_of(&west);
    for text in [
        payload.clone(),
        [format!("DSSEv1 16 application/json {} ", payload.len()).as_bytes(), &payload].concat(),
    ] {
        let mut envelope = envelope(&payload, &key, west.certificate());
        envelope["signatures"][0]["sig"] = STANDARD.encode(key.sign(&text).unwrap()).into();
        assert!(matches!(open(&envelope.to_string(), &west), Err(DenyError::NotSigned(_))));
    }
}

#[test]
fn deny_list_denies_only_identities_of_its_own_domain() {
    let [west, east] = ["west.example", "east.example"].map(authority);
    let of_east = a_list(east.trust_domain()).sign(&west).unwrap();
    let expected = west.trust_domain().clone();
    let found = east.trust_domain().clone();
    assert_eq!(open(&of_east, &west), Err(DenyError::OtherDomain { found, expected }));
    // A pattern of west in the list of east denies nothing: a list is applied to its own domain only.
    let list = a_list(east.trust_domain());
    let mut bundles = crate::TrustBundles::new();
    for authority in [&west, &east] {
        bundles.add_root(authority.trust_domain().clone(), authority.certificate()).unwrap();
    }
    bundles.deny(list);
    let id = SpiffeId::parse("spiffe://west.example/ns/bookinfo/sa/reviews").unwrap();
    let leaf = west.issue(&id, &[], HOUR).unwrap();
    assert!(bundles.verify(leaf.chain(), crate::Role::Client, UnixTime::now()).is_ok());
}

#[test]
fn deny_list_signed_but_malformed_is_refused() {
    let west = authority("west.example");
    let good = serde_json::to_value(a_list(west.trust_domain())).unwrap();
    let table: [Alteration<'_>; 5] = [
        ("a field from the future", "unknown field", &|list| list["keys"] = json!([])),
        ("no sequence", "missing field", &|list| _ = list.as_object_mut().unwrap().remove("sequence")),
        ("a sequence below zero", "invalid value", &|list| list["sequence"] = (-1).into()),
        ("an identity that is none", "starts with", &|list| list["identities"] = json!(["*"])),
        ("a domain that is none", "only a-z", &|list| list["trust_domain"] = "West".into()),
    ];
    for (name, expected, alter) in table {
        let mut list = good.clone();
        alter(&mut list);
        let signed = envelope(&serde_json::to_vec(&list).unwrap(), &key_of(&west), west.certificate());
        let error = open(&signed.to_string(), &west).unwrap_err();
        assert!(matches!(error, DenyError::Malformed(_)), "{name}: {error}");
        assert!(error.to_string().contains(expected), "{name}: {error}");
    }
}

/// A cross-signed root, as in the file for OpenSSL.
#[test]
fn deny_list_signed_by_a_cross_signed_root_is_refused() {
    let [east, west] = ["east.example", "west.example"].map(authority);
    let crossed = crate::cross::sign(&east, west.trust_domain(), west.certificate()).unwrap();
    let mut list = DenyList::new(east.trust_domain().clone());
    list.renumber(1);
    let payload = serde_json::to_vec(&list).unwrap();
    let forged = envelope(&payload, &key_of(&west), &crossed).to_string();
    assert_eq!(open(&forged, &east), Err(DenyError::NotSigned(east.trust_domain().clone())));
}

#[test]
fn deny_list_signed_by_a_denied_authority_is_refused() {
    let west = Authority::generate(TrustDomain::new("west.example").unwrap()).unwrap();
    let [thief, other] =
        ["stolen", "other"].map(|cluster| west.intermediate(cluster, KeyKind::P256, HOUR).unwrap());
    let mut known = DenyList::new(west.trust_domain().clone());
    known.add_serial(serial(&Facts::read(thief.certificate()).unwrap().serial), None);
    known.renumber(1);
    let mut next = DenyList::new(west.trust_domain().clone());
    next.renumber(2);
    let after = |signer: &Authority| {
        let signed = next.sign(signer).unwrap();
        let (domain, bundle) = (west.trust_domain(), bundle(&west));
        DenyList::open(signed.as_bytes(), domain, &bundle, UnixTime::now(), Some(&known))
    };
    assert_eq!(after(&thief), Err(DenyError::NotSigned(west.trust_domain().clone())));
    assert_eq!(after(&other), Ok(next.clone()));
    assert_eq!(after(&west), Ok(next.clone()));
}

#[test]
fn deny_list_truncated_at_any_byte_is_refused() {
    let west = authority("west.example");
    let signed = a_list(west.trust_domain()).sign(&west).unwrap();
    for end in 0..signed.len() {
        assert!(open(&signed[..end], &west).is_err(), "{end} of {} bytes", signed.len());
    }
    assert!(open(&signed, &west).is_ok());
}

#[test]
fn serial_number_spellings_are_equal() {
    let domain = TrustDomain::new("west.example").unwrap();
    let mut list = DenyList::new(domain);
    let id = SpiffeId::parse("spiffe://west.example/ns/a/sa/b").unwrap();
    for written in ["0A:BC:DE", "0ABCDE", "0abcde", "0a:bc:de"] {
        assert!(list.add_serial(serial(written), None), "new");
        assert!(!list.add_serial(serial("0abcde"), None), "the same");
        assert_eq!(list.denies(&id, &["0abcde".to_owned()]), Some(Denied::Serial("0abcde".to_owned())));
        assert!(list.denies(&id, &["abcd".to_owned(), "0abcdef".to_owned()]).is_none());
        assert!(list.remove_serial(&serial(written)));
    }
}

/// A list written by another program: a serial number in another spelling must count, or the list be refused.
#[test]
fn serial_number_in_a_signed_list_counts_in_any_spelling() {
    let west = authority("west.example");
    let id = SpiffeId::parse("spiffe://west.example/ns/a/sa/b").unwrap();
    for written in ["0ABCDE", "0a:bc:de"] {
        let payload = json!({"trust_domain": "west.example", "sequence": 1, "serials": {written: null}});
        let payload = serde_json::to_vec(&payload).unwrap();
        let signed = envelope(&payload, &key_of(&west), west.certificate()).to_string();
        if let Ok(list) = open(&signed, &west) {
            assert!(
                list.denies(&id, &["0abcde".to_owned()]).is_some(),
                "{written} is accepted and denies nothing"
            );
        }
    }
}

#[test]
fn serial_number_equals_the_one_that_openssl_prints() {
    let west = authority("west.example");
    let id = SpiffeId::parse("spiffe://west.example/ns/a/sa/b").unwrap();
    // The first byte has the sign bit, is small, is zero.
    for number in [&[0x80, 1, 2][..], &[0x0a, 0xbc], &[0, 0x7f]] {
        let leaf = west.issue_altered(&id, |p| {
            p.serial_number = Some(rcgen::SerialNumber::from_slice(number));
        });
        let Some(printed) = openssl_serial(leaf.chain_pem()) else { return };
        let mut list = DenyList::new(west.trust_domain().clone());
        list.add_serial(serial(&printed), None);
        let own = Facts::read(&leaf.chain()[0]).unwrap().serial;
        assert!(list.denies(&id, std::slice::from_ref(&own)).is_some(), "{printed} is not {own}");
    }
}

fn openssl_serial(certificate: &str) -> Option<String> {
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-serial"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut openssl = match command.spawn() {
        Ok(openssl) => openssl,
        Err(error) => {
            let demanded = std::env::var("ISTHMUS_REQUIRE_PEERS").as_deref() == Ok("1");
            assert!(!demanded, "required, but: openssl: {error}");
            eprintln!("SKIPPED openssl: {error}");
            return None;
        }
    };
    openssl.stdin.take().unwrap().write_all(certificate.as_bytes()).unwrap();
    let printed = String::from_utf8(openssl.wait_with_output().unwrap().stdout).unwrap();
    Some(printed.trim().strip_prefix("serial=").unwrap().to_owned())
}

#[test]
fn deny_list_drops_expired_serial_numbers() {
    let mut list = a_list(&TrustDomain::new("west.example").unwrap());
    let end = OffsetDateTime::UNIX_EPOCH + HOUR;
    assert!(!list.forget_expired(end), "it counts until its last second");
    assert!(list.forget_expired(end + Duration::from_secs(1)));
    assert_eq!(list.serials().map(|(one, _)| one).collect::<Vec<_>>(), [&serial("ffee")], "without end");
    assert_eq!(list.identities().count(), 1);
}
