//! `verify`: verifies a chain as a gateway does in a handshake.

use std::process::ExitCode;

use anyhow::Context as _;
use isthmus_certs::printable::printable;
use isthmus_certs::{Peer, Proven, Role, TrustBundles, VerifyError, pem};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde_json::json;

use super::chains::{bundles, escaped};
use super::options::{As, VerifyOptions};
use super::say::{Answer, bad, good, say};

pub(super) fn verify(options: &VerifyOptions, as_json: bool) -> anyhow::Result<ExitCode> {
    let chain = pem::certificates(super::read(&options.file)?).with_context(|| escaped(&options.file))?;
    let bundles = bundles(&options.judges)?.context("no bundles to verify with; give --bundles DIR")?;
    let judged = judge(options, &chain, &bundles);
    let (answer, code) = match &judged {
        Ok(proven) => {
            let text = good(&format!("{}: OK ({})", escaped(&options.file), proven.id));
            (Answer::new(text, json!({ "believed": true, "id": proven.id })), ExitCode::SUCCESS)
        }
        Err(why) => {
            let text = bad(&format!("{}: {}", escaped(&options.file), printable(&why.to_string())));
            let json = json!({ "believed": false, "reason": why.reason(), "why": why.to_string() });
            (Answer::new(text, json), ExitCode::FAILURE)
        }
    };
    say(&answer, as_json)?;
    Ok(code)
}

fn judge(
    options: &VerifyOptions,
    chain: &[CertificateDer<'_>],
    bundles: &TrustBundles,
) -> Result<Proven, VerifyError> {
    let now = UnixTime::now();
    let proven = match options.role {
        As::Client => bundles.verify(chain, Role::Client, now)?,
        As::Server => bundles.verify(chain, Role::Server, now)?,
        As::Both => {
            bundles.verify(chain, Role::Client, now)?;
            bundles.verify(chain, Role::Server, now)?
        }
    };
    let whom = if options.expect.is_empty() {
        Peer::Domain(proven.id.trust_domain().clone())
    } else {
        Peer::Matching(options.expect.clone())
    };
    let whom = match options.pin {
        Some(issuer) => Peer::Pinned { issuer, peer: Box::new(whom) },
        None => whom,
    };
    whom.admit(&proven)?;
    Ok(proven)
}
