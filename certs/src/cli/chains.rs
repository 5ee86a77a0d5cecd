//! What `inspect` and `verify` share: a chain as text, the files that it is verified with, and the errors found.

use std::path::Path;

use isthmus_certs::facts::Facts;
use isthmus_certs::printable::printable;
use isthmus_certs::trust::TrustFiles;
use isthmus_certs::{Role, TrustBundles, peer_id};
use rustls::pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

use super::options::Judges;
use super::say::{left, time};

/// The bundles, if `--bundles` was given.
pub(super) fn bundles(judges: &Judges) -> anyhow::Result<Option<TrustBundles>> {
    let Some(bundles) = &judges.bundles else { return Ok(None) };
    let files = TrustFiles {
        bundles: bundles.clone(),
        deny: judges.deny.clone(),
        crls: judges.crls.clone(),
        stale_crl: judges.stale_crl.into(),
        outage_budget: judges.outage_budget,
        ..TrustFiles::default()
    };
    Ok(Some(files.bundles_only()?))
}

/// The errors that a peer would report, in the order in which it finds them; empty if there are none.
pub(super) fn objections(
    chain: &[CertificateDer<'_>],
    bundles: Option<&TrustBundles>,
    roles: &[Role],
) -> Vec<String> {
    let mut found = Vec::new();
    let mut object = |text: String| {
        if !found.contains(&text) {
            found.push(text);
        }
    };
    match bundles {
        Some(bundles) => {
            for role in roles {
                if let Err(why) = bundles.verify(chain, *role, UnixTime::now()) {
                    object(why.to_string());
                }
            }
        }
        None => {
            if let Err(why) = peer_id(chain) {
                object(why.to_string());
            }
            for facts in chain.iter().filter_map(|certificate| Facts::read(certificate).ok()) {
                out_of_time(&facts).into_iter().for_each(&mut object);
            }
        }
    }
    found
}

fn out_of_time(facts: &Facts) -> Option<String> {
    let now = OffsetDateTime::now_utc();
    let what = facts.uris.first().map_or_else(|| printable(&facts.subject), |uri| printable(uri));
    if now > facts.not_after {
        return Some(format!("the certificate of {what} has expired ({})", left(facts.not_after)));
    }
    (now < facts.not_before).then(|| {
        format!("the certificate of {what} is not valid yet ({}); compare the clocks", left(facts.not_before))
    })
}

/// One certificate as text.
pub(super) fn described(place: usize, facts: &Facts) -> String {
    let kind = if facts.is_authority { "authority" } else { "leaf" };
    let names = [("uri", &facts.uris), ("dns", &facts.dns)];
    let mut lines = vec![format!("{place}  {kind}")];
    for (label, values) in names {
        lines.extend(values.iter().map(|value| format!("   {label:<9} {}", printable(value))));
    }
    lines.extend(facts.ips.iter().map(|ip| format!("   {:<9} {ip}", "ip")));
    if !facts.subject.is_empty() {
        lines.push(format!("   {:<9} {}", "subject", printable(&facts.subject)));
    }
    lines.push(format!("   {:<9} {}", "signed by", printable(&facts.issuer)));
    let (from, until) = (time(facts.not_before), time(facts.not_after));
    lines.push(format!("   {:<9} {from} to {until} ({})", "valid", left(facts.not_after)));
    lines.push(format!("   {:<9} {}, pin {}", "key", facts.key, facts.pin));
    lines.push(format!("   {:<9} {}", "serial", facts.serial));
    lines.join("\n")
}

/// A path that is safe to print.
pub(super) fn escaped(path: &Path) -> String {
    printable(&path.display().to_string())
}
