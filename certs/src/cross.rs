//! One file of roots for programs that know no bundles per domain, such as those that use OpenSSL: the own
//! roots as they are, and each foreign root signed under a constraint to its domain's URI names. What signs them
//! is an anchor made for that file alone, whose key is thrown away: outside the file nobody believes it, and a
//! new file takes the old one back. An own root must not do that: its signature would count wherever the root does.
//!
//! Our own verification never uses it: webpki refuses URI names under name constraints.

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

/// Why a foreign root was not signed.
#[derive(Debug, thiserror::Error)]
pub enum CrossError {
    /// It cannot be read.
    #[error("a root of {0} cannot be read")]
    Unreadable(TrustDomain),
    /// Its subject has a form that cannot be written the same again.
    #[error(
        "the subject of a root of {0} cannot be written again byte by byte; its certificates would not chain to it"
    )]
    Subject(TrustDomain),
    /// Its kind of key is unknown.
    #[error("the key of a root of {0} is of an unknown kind")]
    Key(TrustDomain),
    /// It was not signed.
    #[error(transparent)]
    Issue(#[from] IssueError),
}

/// The file's certificates: the roots of `own`, then, where there are any others, the anchor and each foreign root
/// signed by it, under the domain that it is of.
///
/// It protects what checks URI names: a certificate through a foreign root that claims an identity of any other
/// domain is refused. It does not protect names of other kinds: a program that looks at DNS names, or that lets in
/// whoever chains to its file, believes each domain about all of them.
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
    let facts = Facts::of(root).map_err(|_| unreadable())?;
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
    let is_same = Facts::of(&signed).is_ok_and(|signed| signed.subject_name == facts.subject_name);
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
    fn a_foreign_root_is_signed_with_its_name_key_and_constraint() {
        let [east, west] = ["east.example", "west.example"]
            .map(|name| Authority::generate(TrustDomain::new(name).unwrap()).unwrap());
        let signed = sign(&east, west.trust_domain(), west.certificate()).unwrap();
        let [signed_facts, root] = [&signed, west.certificate()].map(|der| Facts::of(der).unwrap());
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
