//! webpki's errors in words: one for counters, a sentence for people, and what to do. Not deciding anything.

use std::time::Duration;

use rustls::pki_types::UnixTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::Error;

/// The word for counters and logs.
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

/// What is wrong, for people.
pub(super) fn said(cause: &Error) -> String {
    match cause {
        Error::CertExpired { not_after, .. } => {
            format!("it, or what signed it, expired at {}", at(*not_after))
        }
        Error::CertNotValidYet { not_before, .. } => {
            format!("it, or what signed it, is valid only from {} on", at(*not_before))
        }
        Error::CrlExpired { next_update, .. } => {
            format!("the revocation list of its authority is stale since {}", at(*next_update))
        }
        other => match reason(other) {
            "unknown_issuer" => "no root there has signed it".to_owned(),
            "bad_signature" => "a signature in it is not by the key of its signer".to_owned(),
            "wrong_use" => "it is not for this use".to_owned(),
            "issuer_not_authority" => "what signed it is no authority".to_owned(),
            "path_length" => "there are more authorities in it than one of them allows below".to_owned(),
            "name_constraints" => "an authority in it constrains names".to_owned(),
            "critical_extension" => "it has a critical extension that is not known".to_owned(),
            "revoked" => "its authority has revoked it".to_owned(),
            "crl_bad" => "the revocation list is not by its authority".to_owned(),
            "too_costly" => "there are too many ways through it".to_owned(),
            _ => format!("{other:?}"),
        },
    }
}

/// What to do about it.
pub(super) fn remedy(cause: &Error) -> &'static str {
    match reason(cause) {
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
        "crl_bad" => "get the revocation list from its authority again",
        _ => "issue it anew",
    }
}

fn at(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let shown = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok());
    shown.unwrap_or_else(|| humantime::format_duration(Duration::from_secs(time.as_secs())).to_string())
}
