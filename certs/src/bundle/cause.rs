//! Translates webpki's errors: a reason for counters, a sentence for people, and the remedy.

use std::time::Duration;

use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::Error;

/// The reason, for counters and logs.
pub(super) fn reason(cause: &Error) -> &'static str {
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
        Error::InvalidCrlSignatureForPublicKey
        | Error::IssuerNotCrlSigner
        | Error::UnsupportedCrlSignatureAlgorithmContext(_)
        | Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => "crl_bad",
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

/// What is wrong, as a sentence for people.
pub(super) fn explanation(cause: &Error) -> String {
    match cause {
        Error::CertExpired { not_after, .. } => {
            format!("a certificate in it expired at {}", at(*not_after))
        }
        Error::CertNotValidYet { not_before, .. } => {
            format!("a certificate in it is not valid before {}", at(*not_before))
        }
        Error::CrlExpired { next_update, .. } => {
            format!("the revocation list of its authority has been stale since {}", at(*next_update))
        }
        other => match reason(other) {
            "unknown_issuer" => "no root of the bundle signed it".to_owned(),
            "bad_signature" => "a signature in it was not made by the key of its signer".to_owned(),
            "wrong_use" => "it is not issued for this use".to_owned(),
            "issuer_not_authority" => "a certificate that signed it is not an authority".to_owned(),
            "path_length" => "it has more intermediates than an authority in it allows".to_owned(),
            "name_constraints" => "an authority in it has name constraints".to_owned(),
            "critical_extension" => "it has an unknown critical extension".to_owned(),
            "revoked" => "its authority has revoked it".to_owned(),
            "crl_bad" => "the revocation list is not signed by its authority".to_owned(),
            "too_costly" => "it has too many possible paths to verify".to_owned(),
            _ => format!("{other:?}"),
        },
    }
}

/// The remedy.
pub(super) fn remedy(cause: &Error) -> &'static str {
    match reason(cause) {
        "expired" => "renew it, and find out why its rotation stopped",
        "not_yet_valid" => "compare the clocks of both sides",
        "unknown_issuer" => {
            "the peer must send its intermediates, and the bundle must have the root that signed them"
        }
        "bad_signature" => "a root or intermediate of the same name has another key; update the bundle",
        "wrong_use" => "issue it with the extended key usage for this use (clientAuth, serverAuth)",
        "issuer_not_authority" | "path_length" => "have it signed by an authority that may sign it",
        "name_constraints" => {
            "a URI name under name constraints is never accepted; use an authority without them"
        }
        "revoked" => "issue a new certificate",
        "crl_stale" => "update the revocation list, or accept stale ones explicitly",
        "crl_bad" => "get the revocation list from its authority again",
        _ => "issue a new certificate",
    }
}

fn at(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let shown = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok());
    shown.unwrap_or_else(|| humantime::format_duration(Duration::from_secs(time.as_secs())).to_string())
}
