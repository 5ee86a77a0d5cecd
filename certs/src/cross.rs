//! Makes one file of roots for programs without a bundle per trust domain, such as those that use OpenSSL: the own
//! roots, and each root of another domain cross-signed under a name constraint to URI names of its domain. The signer
//! is an anchor made for that file only, whose key is destroyed: outside the file it is not trusted, and a new file
//! replaces the old one. An own root must not cross-sign: its signature would count everywhere the root does.
//!
//! The verifier of this crate never uses the file: webpki refuses URI names under name constraints.

use rcgen::{
    BasicConstraints, CustomExtension, DistinguishedName, DnType, DnValue, IsCa, KeyIdMethod,
    KeyUsagePurpose, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::Tag;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::authority::{Authority, IssueError, dated_until};
use crate::bundle::Bundle;
use crate::facts::Facts;
use crate::spiffe::TrustDomain;

const NAME_CONSTRAINTS: [u64; 4] = [2, 5, 29, 30];

/// Why a root of another domain was not cross-signed.
#[derive(Debug, thiserror::Error)]
pub enum CrossError {
    /// The root cannot be read.
    #[error("a root of {0} cannot be read; get its bundle again")]
    Unreadable(TrustDomain),
    /// Its subject cannot be reproduced exactly.
    #[error(
        "the subject of a root of {0} cannot be reproduced byte by byte, so its certificates would not chain to it; leave that domain out (--trust-domain)"
    )]
    Subject(TrustDomain),
    /// Its key type is unknown.
    #[error("the key of a root of {0} is of an unknown type; leave that domain out (--trust-domain)")]
    Key(TrustDomain),
    /// The signature failed.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// The certificates of the file, each with its domain: the roots of `own`, then, if there are other domains, the anchor
/// and each of their roots signed by it.
///
/// Programs that check name constraints refuse a certificate under a root of another domain that claims a SPIFFE ID of
/// any other domain. Other kinds of names are not protected: a program that checks DNS names, or accepts every chain to
/// the file, trusts each domain for all of them.
pub fn file<'a>(
    own: &'a TrustDomain,
    bundles: impl IntoIterator<Item = (&'a TrustDomain, &'a Bundle)>,
) -> Result<Vec<(&'a TrustDomain, CertificateDer<'static>)>, CrossError> {
    let anchor = Authority::anchor(own.clone())?;
    let (mut roots, mut foreign) = (Vec::new(), Vec::new());
    for (domain, bundle) in bundles {
        for root in bundle.roots() {
            match domain == own {
                true => roots.push((own, root.clone())),
                false => foreign.push((domain, sign(&anchor, domain, root)?)),
            }
        }
    }
    if !foreign.is_empty() {
        roots.push((own, anchor.certificate().clone()));
    }
    roots.extend(foreign);
    Ok(roots)
}

pub(crate) fn sign(
    anchor: &Authority,
    domain: &TrustDomain,
    root: &CertificateDer<'_>,
) -> Result<CertificateDer<'static>, CrossError> {
    let unreadable = || CrossError::Unreadable(domain.clone());
    let (_, parsed) = X509Certificate::from_der(root).map_err(|_| unreadable())?;
    let facts = Facts::read(root).map_err(|_| unreadable())?;
    let key = SubjectPublicKeyInfo::from_der(parsed.public_key().raw)
        .map_err(|_| CrossError::Key(domain.clone()))?;
    let mut params = dated_until(facts.not_after.min(anchor.not_after()))?;
    params.distinguished_name =
        subject(parsed.subject()).ok_or_else(|| CrossError::Subject(domain.clone()))?;
    params.is_ca = IsCa::Ca(match facts.path_length.and_then(|length| u8::try_from(length).ok()) {
        Some(length) => BasicConstraints::Constrained(length),
        None => BasicConstraints::Unconstrained,
    });
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if let Some(identifier) = key_identifier(&parsed) {
        params.key_identifier_method = KeyIdMethod::PreSpecified(identifier);
    }
    params.custom_extensions.push(only_uris_of(domain));
    let signer = anchor.signer().map_err(IssueError::from)?;
    let signed = params.signed_by(&key, &signer).map_err(IssueError::from)?.der().clone();
    let is_same = Facts::read(&signed).is_ok_and(|signed| signed.subject_name == facts.subject_name);
    if is_same { Ok(signed) } else { Err(CrossError::Subject(domain.clone())) }
}

fn only_uris_of(domain: &TrustDomain) -> CustomExtension {
    let content = yasna::construct_der(|writer| {
        writer.write_sequence(|constraints| {
            constraints.next().write_tagged_implicit(yasna::Tag::context(0), |permitted| {
                permitted.write_sequence(|subtrees| {
                    subtrees.next().write_sequence(|subtree| {
                        subtree.next().write_tagged_implicit(yasna::Tag::context(6), |uri| {
                            uri.write_ia5_string(domain.as_str());
                        });
                    });
                });
            });
        });
    });
    let mut extension = CustomExtension::from_oid_content(&NAME_CONSTRAINTS, content);
    extension.set_criticality(true);
    extension
}

fn key_identifier(root: &X509Certificate<'_>) -> Option<Vec<u8>> {
    root.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
        _ => None,
    })
}

fn subject(name: &X509Name<'_>) -> Option<DistinguishedName> {
    let mut subject = DistinguishedName::new();
    for attribute in name.iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter()?.collect();
        subject.push(DnType::from_oid(&oid), value(attribute)?);
    }
    Some(subject)
}

fn value(attribute: &AttributeTypeAndValue<'_>) -> Option<DnValue> {
    let text = attribute.as_str().ok()?;
    Some(match attribute.attr_value().tag() {
        Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
        Tag::PrintableString => DnValue::PrintableString(text.try_into().ok()?),
        Tag::Ia5String => DnValue::Ia5String(text.try_into().ok()?),
        Tag::TeletexString => DnValue::TeletexString(text.try_into().ok()?),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cross_signed_root_keeps_its_name_and_key_under_a_constraint() {
        let [east, west] = ["east.example", "west.example"]
            .map(|name| Authority::generate(TrustDomain::new(name).unwrap()).unwrap());
        let signed = sign(&east, west.trust_domain(), west.certificate()).unwrap();
        let [signed_facts, root] = [&signed, west.certificate()].map(|der| Facts::read(der).unwrap());
        assert_eq!(signed_facts.public_key, root.public_key);
        assert_eq!(signed_facts.subject_name, root.subject_name);
        assert!(crate::facts::is_signed_by(&signed, east.certificate()));
        let (_, parsed) = X509Certificate::from_der(&signed).unwrap();
        let constraints = parsed.name_constraints().unwrap().unwrap();
        let permitted = constraints.value.permitted_subtrees.as_ref().unwrap();
        assert!(constraints.critical);
        assert_eq!(permitted.len(), 1);
        assert_eq!(format!("{}", permitted[0].base), "URI(west.example)");
        let (_, west_parsed) = X509Certificate::from_der(west.certificate()).unwrap();
        assert_eq!(key_identifier(&parsed), key_identifier(&west_parsed));
    }
}
