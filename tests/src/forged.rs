//! Certificates that an operator's authority would not issue.

use isthmus_certs::Authority;
use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use time::{Duration, OffsetDateTime};

/// A URI as a name.
#[must_use]
pub fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

/// What a good leaf has.
#[must_use]
pub fn leaf(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.not_before = OffsetDateTime::now_utc() - Duration::HOUR;
    params.not_after = OffsetDateTime::now_utc() + Duration::HOUR;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

/// An authority as an issuer of whatever is asked.
#[must_use]
pub fn issuer(authority: &Authority) -> Issuer<'static, KeyPair> {
    let key = KeyPair::from_pem(authority.key_pem().unwrap()).unwrap();
    Issuer::from_ca_cert_der(authority.certificate(), key).unwrap()
}
