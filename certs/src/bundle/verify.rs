//! Verifies that a chain proves an identity. The only place that decides it: gateways, agents and the command line
//! all call this.

use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use webpki::{
    EndEntityCert, Error, ExpirationPolicy, KeyUsage, RevocationOptions, RevocationOptionsBuilder,
    UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::{DomainTrust, TrustBundles, cause};
use crate::crl::{Crls, StaleCrl};
use crate::crypto;
use crate::deny::Denied;
use crate::facts::serial_of;
use crate::key::KeyPin;
use crate::spiffe::{SpiffeId, TrustDomain};
use crate::svid::{SvidError, peer_id};

/// The side of a connection on which a peer presents its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It opened the connection.
    Client,
    /// It accepted the connection.
    Server,
}

/// The identity that a chain has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The identity.
    pub id: SpiffeId,
    /// When this expires, in seconds since 1970: the earliest end of its certificates, or of a revocation list
    /// that must not be stale.
    pub until: u64,
    /// The keys of the intermediates that vouch for it, the leaf's issuer first; none if a root signed it.
    pub issuers: Vec<KeyPin>,
}

/// Why a chain does not prove an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The leaf is not the leaf of a SPIFFE identity.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// There is no bundle of that trust domain.
    #[error("{id} is of a trust domain without a bundle here; add the bundle of {domain}", id = .0, domain = .0.trust_domain())]
    NoBundle(SpiffeId),
    /// The chain does not lead to a root of the claimed domain, is expired or not yet valid, or is for another use.
    #[error("the chain of {id} does not verify against the bundle of {}: {}; {}", id.trust_domain(), cause::explanation(cause), cause::remedy(cause))]
    Chain {
        /// The identity claimed.
        id: SpiffeId,
        /// What is wrong with the chain.
        cause: Error,
    },
    /// The signer is an authority whose key may not sign certificates.
    #[error(
        "{0} is signed by an authority whose key usage lacks keyCertSign; have it signed by one that has it"
    )]
    Issuer(SpiffeId),
    /// The chain does not lead from a server of that name to a root of that domain.
    #[error("the server does not prove to be {name} by the bundle of {domain}: {}", named(cause))]
    Name {
        /// The expected name.
        name: String,
        /// The domain whose roots must have signed it.
        domain: TrustDomain,
        /// What is wrong.
        cause: Error,
    },
    /// Proven, but denied by its own domain.
    #[error(
        "{id} is denied by the deny-list of its domain ({what}, sequence {sequence}); issue a new identity or key, or remove the entry with `isthmus-certs deny remove`"
    )]
    Denied {
        /// The identity claimed.
        id: SpiffeId,
        /// The entry that denies it.
        what: Denied,
        /// The sequence number of the list.
        sequence: u64,
    },
    /// Proven, but not an expected peer.
    #[error("the peer is {0}, which is not expected here; check the address, or allow this identity")]
    Unexpected(SpiffeId),
    /// Proven, but not by the pinned intermediate.
    #[error(
        "the chain of {id} has no intermediate with the pinned key {pin}; it belongs to another cluster, or the pin is outdated"
    )]
    Pin {
        /// The identity claimed.
        id: SpiffeId,
        /// The expected pin.
        pin: KeyPin,
    },
}

impl TrustBundles {
    /// Verifies a chain, leaf first, that a peer in `role` presents at `now`, and returns its identity.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Proven, VerifyError> {
        let (leaf, intermediates) = chain.split_first().ok_or(SvidError::NoCertificate)?;
        let id = peer_id(chain)?;
        let entry = match self.0.get(id.trust_domain()) {
            Some(entry) if !entry.bundle.roots.is_empty() => entry,
            _ => return Err(VerifyError::NoBundle(id)),
        };
        let path = match entry.path(leaf, intermediates, role, now, |_| Ok(())) {
            Ok(path) => path,
            Err(cause) => return Err(VerifyError::Chain { id, cause }),
        };
        if !path.may_sign {
            return Err(VerifyError::Issuer(id));
        }
        if let Some(list) = &entry.denied
            && let Some(what) = list.denies(&id, &path.serials)
        {
            return Err(VerifyError::Denied { id, what, sequence: list.sequence() });
        }
        let until = entry.crls.as_ref().map_or(u64::MAX, Crls::until).min(path.until);
        Ok(Proven { id, until, issuers: path.issuers })
    }

    /// Verifies a server by its DNS name, against the roots of `domain`. Returns when this expires, in seconds since
    /// 1970.
    pub fn verify_name(
        &self,
        domain: &TrustDomain,
        name: &DnsName<'_>,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<u64, VerifyError> {
        let wrong =
            |cause| VerifyError::Name { name: name.as_ref().to_owned(), domain: domain.clone(), cause };
        let entry = self.0.get(domain).ok_or_else(|| wrong(Error::UnknownIssuer))?;
        let server = ServerName::DnsName(name.borrow());
        let path = entry
            .path(leaf, intermediates, Role::Server, now, |leaf| {
                leaf.verify_is_valid_for_subject_name(&server)
            })
            .map_err(wrong)?;
        let denied = entry.denied.as_ref().is_some_and(|list| list.denies_any(&path.serials));
        match (path.may_sign, denied) {
            (false, _) => Err(wrong(Error::EndEntityUsedAsCa)),
            (_, true) => Err(wrong(Error::CertRevoked)),
            _ => Ok(entry.crls.as_ref().map_or(u64::MAX, Crls::until).min(path.until)),
        }
    }
}

impl DomainTrust {
    /// The path from a leaf to a valid root, if the leaf also passes the check `also`.
    fn path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
        also: impl FnOnce(&EndEntityCert<'_>) -> Result<(), Error>,
    ) -> Result<Path, Error> {
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let lists: Vec<_> = self.crls.iter().flat_map(|crls| crls.lists()).collect();
        let revocation = self.crls.as_ref().and_then(|crls| options(&lists, crls.stale));
        let algorithms = crypto::algorithms().all;
        let anchors = self.bundle.anchors_at(now)?;
        let leaf = EndEntityCert::try_from(leaf)?;
        also(&leaf)?;
        let path =
            leaf.verify_for_usage(algorithms, &anchors, intermediates, now, usage, revocation, None)?;
        Path::from_verified(&path)
    }
}

/// What is wrong with a server verified by name. Its own names are not quoted: it chose them.
fn named(cause: &Error) -> String {
    match cause {
        Error::CertNotValidForName(_) => {
            "its certificate has other names; check the address and the name".to_owned()
        }
        cause => format!("{}; {}", cause::explanation(cause), cause::remedy(cause)),
    }
}

fn options<'a>(
    lists: &'a [&'a webpki::CertRevocationList<'a>],
    stale: StaleCrl,
) -> Option<RevocationOptions<'a>> {
    let builder = RevocationOptionsBuilder::new(lists).ok()?;
    let expiration = match stale {
        StaleCrl::Refuse => ExpirationPolicy::Enforce,
        StaleCrl::Accept => ExpirationPolicy::Ignore,
    };
    // An authority without a list has revoked nothing: lists are read where they are configured.
    Some(builder.with_status_policy(UnknownStatusPolicy::Allow).with_expiration_policy(expiration).build())
}

/// What is kept of a verified path.
struct Path {
    until: u64,
    issuers: Vec<KeyPin>,
    serials: Vec<String>,
    may_sign: bool,
}

impl Path {
    fn from_verified(path: &VerifiedPath<'_>) -> Result<Self, Error> {
        let ends = std::iter::once(path.end_entity().der())
            .chain(path.intermediate_certificates().map(|certificate| certificate.der()));
        let mut found = Self { until: u64::MAX, issuers: Vec::new(), serials: Vec::new(), may_sign: true };
        for (place, der) in ends.enumerate() {
            // A certificate must be readable by both parsers.
            let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| Error::BadDer)?;
            let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
            found.until = found.until.min(end);
            found.serials.push(serial_of(&certificate));
            if place > 0 {
                found.issuers.push(KeyPin::new(certificate.public_key().raw));
                // webpki leaves key usage to us.
                let usage = certificate.key_usage().map_err(|_| Error::BadDer)?;
                found.may_sign &= usage.is_none_or(|usage| usage.value.key_cert_sign());
            }
        }
        Ok(found)
    }
}

impl VerifyError {
    /// Every reason that [`VerifyError::reason`] returns.
    pub const REASONS: [&'static str; 26] = [
        "no_certificate",
        "malformed",
        "uri_names",
        "not_spiffe",
        "no_path",
        "authority_as_leaf",
        "key_usage",
        "no_bundle",
        "expired",
        "not_yet_valid",
        "validity",
        "unknown_issuer",
        "bad_signature",
        "wrong_use",
        "issuer_not_authority",
        "path_length",
        "name_constraints",
        "critical_extension",
        "signature_algorithm",
        "too_costly",
        "denied",
        "revoked",
        "crl_stale",
        "crl_bad",
        "unexpected",
        "pin",
    ];

    /// The reason, one of [`VerifyError::REASONS`], for counters and logs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Svid(error) => match error {
                SvidError::NoCertificate => "no_certificate",
                SvidError::Malformed(_) => "malformed",
                SvidError::UriNames(_) => "uri_names",
                SvidError::Id(_) => "not_spiffe",
                SvidError::NoPath(_) => "no_path",
                SvidError::Authority => "authority_as_leaf",
                SvidError::KeyUsage => "key_usage",
            },
            Self::NoBundle(_) => "no_bundle",
            Self::Name { cause: Error::CertNotValidForName(_), .. } => "unexpected",
            Self::Chain { cause, .. } | Self::Name { cause, .. } => cause::reason(cause),
            Self::Issuer(_) => "issuer_not_authority",
            Self::Denied { .. } => "denied",
            Self::Unexpected(_) => "unexpected",
            Self::Pin { .. } => "pin",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verify_reasons_are_all_documented() {
        let documented = include_str!("../../../docs/certificates.md");
        for reason in VerifyError::REASONS {
            assert!(documented.contains(&format!("`{reason}`")), "{reason}");
        }
    }
}
