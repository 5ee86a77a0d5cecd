//! Revocation lists as authorities publish them, and malformed ones. `tls::bad` tests their effect in handshakes.

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
    SigningKey,
};
use rustls::pki_types::CertificateDer;

use super::*;
use crate::{Authority, TrustDomain};

const HOUR: Duration = Duration::from_secs(3600);

/// A list, DER, that revokes these certificates.
pub(crate) fn list(
    authority: &Authority,
    revoked: &[&CertificateDer<'_>],
    from: OffsetDateTime,
    until: OffsetDateTime,
) -> Vec<u8> {
    list_by(&authority.signer().unwrap(), revoked, from, until)
}

/// [`list`] by any signer.
pub(crate) fn list_by(
    issuer: &rcgen::Issuer<'_, impl SigningKey>,
    revoked: &[&CertificateDer<'_>],
    from: OffsetDateTime,
    until: OffsetDateTime,
) -> Vec<u8> {
    let revoked_certs = revoked.iter().map(|der| {
        let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
        RevokedCertParams {
            serial_number: SerialNumber::from_slice(parsed.raw_serial()),
            revocation_time: from,
            reason_code: Some(RevocationReason::KeyCompromise),
            invalidity_date: None,
        }
    });
    let params = CertificateRevocationListParams {
        this_update: from,
        next_update: until,
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked_certs.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().der().to_vec()
}

/// Lists as PEM.
pub(crate) fn pem_of(lists: &[Vec<u8>]) -> String {
    lists.iter().map(|der| ::pem::encode(&::pem::Pem::new("X509 CRL", der.clone()))).collect()
}

fn authority() -> Authority {
    Authority::generate(TrustDomain::new("west.example").unwrap()).unwrap()
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(OffsetDateTime::now_utc().unix_timestamp()).unwrap()
}

fn read(bytes: &[u8], budget: Duration) -> Result<Crls, CrlError> {
    Crls::read(bytes, StaleCrl::Refuse, budget)
}

#[test]
fn crl_is_read_from_pem_and_der_one_or_several() {
    let (root, now) = (authority(), now());
    let below = root.intermediate("west", crate::KeyKind::P256, HOUR).unwrap();
    let first = list(&root, &[below.certificate()], now - HOUR, now + HOUR * 2);
    let second = list(&below, &[], now - HOUR, now + HOUR);
    let der = read(&first, HOUR).unwrap();
    assert_eq!((der.lists().count(), der.next_update()), (1, now + HOUR * 2));
    let pem = pem_of(&[first.clone(), second.clone()]);
    let both = read(pem.as_bytes(), HOUR).unwrap();
    assert_eq!((both.lists().count(), both.next_update()), (2, now + HOUR), "the earliest nextUpdate counts");
    let remarks = format!("a remark, as openssl -text writes\n{pem}\nand another\n");
    assert_eq!(read(remarks.as_bytes(), HOUR).unwrap().lists().count(), 2);
    assert_eq!(der, read(&first, HOUR).unwrap());
    assert_ne!(der, Crls::read(&first, StaleCrl::Accept, HOUR).unwrap());
    assert_ne!(der, both);
}

#[test]
fn crl_malformed_is_refused() {
    let (root, now) = (authority(), now());
    let good = list(&root, &[], now - HOUR, now + HOUR);
    let pem = pem_of(std::slice::from_ref(&good));
    let certificate = root.certificate_pem();
    let broken_pem = pem.replacen("\nM", "\n!", 1);
    let table: [(&str, &[u8], &str); 9] = [
        ("nothing", b"", "no revocation list"),
        ("words", b"no list", "no revocation list"),
        ("a certificate as PEM", certificate.as_bytes(), "no revocation list"),
        ("a certificate as DER", root.certificate(), "cannot be read"),
        ("garbage before DER", &[b"x", &good[..]].concat(), "no revocation list"),
        ("a byte after DER", &[&good[..], b"x"].concat(), "cannot be used"),
        ("a list after a list", &[&good[..], &good[..]].concat(), "cannot be used"),
        ("PEM with other letters", broken_pem.as_bytes(), "line 2: "),
        ("an empty block", b"-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n", "cannot be read"),
    ];
    for (name, bytes, expected) in table {
        let error = read(bytes, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
    for end in 0..good.len() {
        assert!(read(&good[..end], Duration::ZERO).is_err(), "{end} bytes of {}", good.len());
    }
}

#[test]
fn crl_without_next_update_is_refused() {
    let (root, now) = (authority(), now());
    let endless = without_next_update(&list(&root, &[], now - HOUR, now + HOUR));
    let error = read(&endless, Duration::ZERO).unwrap_err();
    assert!(matches!(&error, CrlError::NoNextUpdate(issuer) if issuer.contains("west.example")), "{error}");
}

#[test]
fn crl_must_be_valid_for_longer_than_the_outage_budget() {
    let (root, now) = (authority(), now());
    let good = list(&root, &[], now - HOUR, now + HOUR);
    assert!(read(&good, HOUR * 2 - Duration::from_secs(1)).is_ok());
    for budget in [HOUR * 2, HOUR * 24] {
        let error = read(&good, budget).unwrap_err();
        assert!(
            matches!(error, CrlError::TooShort { life, budget: reported, .. } if life == HOUR * 2 && reported == budget),
            "{error}"
        );
    }
    let one_is_short = pem_of(&[list(&root, &[], now, now + HOUR * 9), good]);
    assert!(matches!(read(one_is_short.as_bytes(), HOUR * 3), Err(CrlError::TooShort { .. })));
}

/// Removes the nextUpdate, the second time in a list, which rcgen always writes and RFC 5280 allows to omit.
fn without_next_update(list: &[u8]) -> Vec<u8> {
    const UTC_TIME: &[u8] = &[0x17, 13];
    let (_, parsed) = CertificateRevocationList::from_der(list).unwrap();
    let signed = parsed.tbs_cert_list.as_ref();
    let times: Vec<_> = (0..signed.len()).filter(|&at| signed[at..].starts_with(UTC_TIME)).collect();
    let content = &signed[signed.len() - length(signed)..];
    let at = times[1] - (signed.len() - content.len());
    let shorter = sequence(&[&content[..at], &content[at + UTC_TIME.len() + 13..]].concat());
    let outer = &list[list.len() - length(list)..];
    sequence(&[&shorter, &outer[signed.len()..]].concat())
}

/// The length of the content of the DER value in `der`.
fn length(der: &[u8]) -> usize {
    match der[1] {
        0x81 => der.len() - 3,
        0x82 => der.len() - 4,
        _ => der.len() - 2,
    }
}

fn sequence(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head: Vec<u8> = match content.len() {
        0..128 => vec![0x30, length[1]],
        128..256 => vec![0x30, 0x81, length[1]],
        _ => vec![0x30, 0x82, length[0], length[1]],
    };
    [&head[..], content].concat()
}
