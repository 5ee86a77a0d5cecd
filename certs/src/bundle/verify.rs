//! Whether a chain proves an identity: the one place that decides it, for gateways, agents and the
//! command line alike, and the words that say why not.

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, Error, ExpirationPolicy, KeyUsage, RevocationOptions, RevocationOptionsBuilder,
    UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::TrustBundles;
use crate::crl::StaleCrl;
use crate::crypto;
use crate::deny::Denied;
use crate::facts::serial_of;
use crate::key::KeyPin;
use crate::spiffe::SpiffeId;
use crate::svid::{SvidError, peer_id};

/// What a peer shows its certificate as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It opened the connection.
    Client,
    /// It accepted the connection.
    Server,
}

/// What a chain has proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// Who it is.
    pub id: SpiffeId,
    /// Until when the chain is valid, in seconds since 1970: the earliest end of its certificates.
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
    /// Nobody is trusted about that domain.
    #[error("{id} is of a trust domain without a bundle here; add the bundle of {domain}", id = .0, domain = .0.trust_domain())]
    NoBundle(SpiffeId),
    /// The chain does not lead to a root of the claimed domain, is out of its time, or is for another use.
    #[error("the chain of {id} does not verify against the bundle of {}: {cause}; {}", id.trust_domain(), remedy(cause))]
    Chain {
        /// The identity claimed.
        id: SpiffeId,
        /// What is wrong with the chain.
        cause: Error,
    },
    /// Proven, but its domain took it back.
    #[error(
        "{id} is on the deny-list {sequence} of its domain ({what}); issue a new identity or key, or take it off with `isthmus-certs deny remove`"
    )]
    Denied {
        /// The identity claimed.
        id: SpiffeId,
        /// What of it is on the list.
        what: Denied,
        /// Which list.
        sequence: u64,
    },
    /// Proven, but not whom we want here.
    #[error("the peer is {0}, which is not expected here; check the address, or allow this identity")]
    Unexpected(SpiffeId),
    /// Proven, but by an authority that is not the pinned one.
    #[error(
        "the chain of {id} has no intermediate with the pinned key {pin}; it is of another cluster, or the pin is old"
    )]
    Pin {
        /// The identity claimed.
        id: SpiffeId,
        /// The pin that none of its authorities has.
        pin: KeyPin,
    },
}

impl TrustBundles {
    /// Verifies a chain, leaf first, as shown by a peer in `role` at `now`, and returns who it is.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<Proven, VerifyError> {
        let (leaf, intermediates) = chain.split_first().ok_or(SvidError::NoCertificate)?;
        let id = peer_id(chain)?;
        let believed = match self.0.get(id.trust_domain()) {
            Some(believed) if !believed.bundle.roots.is_empty() => believed,
            _ => return Err(VerifyError::NoBundle(id)),
        };
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let lists: Vec<_> = believed.crls.iter().flat_map(|crls| crls.lists()).collect();
        let revocation = believed.crls.as_ref().and_then(|crls| options(&lists, crls.stale));
        let algorithms = crypto::algorithms().all;
        let anchors = &believed.bundle.anchors;
        let fact = EndEntityCert::try_from(leaf).and_then(|leaf| {
            let path =
                leaf.verify_for_usage(algorithms, anchors, intermediates, now, usage, revocation, None)?;
            Ok(Path::of(&path))
        });
        let path = match fact {
            Ok(path) => path,
            Err(cause) => return Err(VerifyError::Chain { id, cause }),
        };
        if let Some(list) = &believed.denied
            && let Some(what) = list.denies(&id, &path.serials)
        {
            return Err(VerifyError::Denied { id, what, sequence: list.sequence() });
        }
        Ok(Proven { id, until: path.until, issuers: path.issuers })
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

/// What of a verified path is needed once it is verified.
struct Path {
    until: u64,
    issuers: Vec<KeyPin>,
    serials: Vec<String>,
}

impl Path {
    fn of(path: &VerifiedPath<'_>) -> Self {
        let ends = std::iter::once(path.end_entity().der())
            .chain(path.intermediate_certificates().map(|certificate| certificate.der()));
        let mut found = Self { until: u64::MAX, issuers: Vec::new(), serials: Vec::new() };
        for (place, der) in ends.enumerate() {
            let Ok((_, certificate)) = X509Certificate::from_der(&der) else { continue };
            let end = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
            found.until = found.until.min(end);
            found.serials.push(serial_of(&certificate));
            if place > 0 {
                found.issuers.push(KeyPin::of(certificate.public_key().raw));
            }
        }
        found
    }
}

impl VerifyError {
    /// The one word for counters and logs; the set is closed.
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
            Self::Chain { cause, .. } => chain_reason(cause),
            Self::Denied { .. } => "denied",
            Self::Unexpected(_) => "unexpected",
            Self::Pin { .. } => "pin",
        }
    }
}

fn chain_reason(cause: &Error) -> &'static str {
    match cause {
        Error::CertExpired { .. } => "expired",
        Error::CertNotValidYet { .. } => "not_yet_valid",
        Error::InvalidCertValidity => "validity",
        Error::UnknownIssuer => "unknown_issuer",
        Error::InvalidSignatureForPublicKey => "bad_signature",
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => "wrong_use",
        Error::EndEntityUsedAsCa => "issuer_not_authority",
        Error::CaUsedAsEndEntity => "authority_as_leaf",
        Error::PathLenConstraintViolated => "path_length",
        Error::NameConstraintViolation | Error::MalformedNameConstraint => "name_constraints",
        Error::UnsupportedCriticalExtension => "critical_extension",
        Error::CertRevoked => "revoked",
        Error::CrlExpired { .. } => "crl_stale",
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | Error::SignatureAlgorithmMismatch => "signature_algorithm",
        Error::MaximumSignatureChecksExceeded
        | Error::MaximumPathBuildCallsExceeded
        | Error::MaximumPathDepthExceeded
        | Error::MaximumNameConstraintComparisonsExceeded => "too_costly",
        _ => "malformed",
    }
}

fn remedy(cause: &Error) -> &'static str {
    match chain_reason(cause) {
        "expired" => "renew it, and see why its rotation stopped",
        "not_yet_valid" => "compare the clocks of both sides",
        "unknown_issuer" => {
            "the peer must send its intermediates, and the bundle must hold the root that signed them"
        }
        "bad_signature" => "a root or intermediate of the same name has another key; refresh the bundle",
        "wrong_use" => "issue it for this use: client and server each have their extended key usage",
        "issuer_not_authority" | "path_length" => "have it signed by an authority that may sign it",
        "name_constraints" => "a URI name under name constraints is never accepted; use an authority without",
        "revoked" => "issue a new one",
        "crl_stale" => "refresh the revocation list, or accept stale ones explicitly",
        _ => "issue it anew",
    }
}
