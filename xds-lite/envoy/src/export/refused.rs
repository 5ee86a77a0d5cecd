//! Names that exist and lead nowhere: another host's pattern must not get them. Envoy knows no such thing: it would
//! look for the next shorter pattern, so these names get a chain of their own that closes. Not who has which name:
//! that is `claims`.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_model::host::HostPattern;
use isthmus_model::slice::Offer;

use super::claims::NamedChain;

/// Every name that is this host's, whoever may reach it by that. Its `outbound_` names are not among them: no pattern
/// leads to a name of that form.
pub(super) fn owned(host: &HostPattern, offer: &Offer) -> BTreeSet<String> {
    let mut names: BTreeSet<_> =
        std::iter::once(host).chain(&offer.aliases).map(ToString::to_string).collect();
    for endpoint in offer.ports.iter().flat_map(|port| &port.endpoints) {
        names.extend(endpoint.aliases.iter().map(ToString::to_string));
        if let (HostPattern::Exact(host), Some(instance)) = (host, &endpoint.instance) {
            names.insert(format!("{instance}.{host}"));
        }
    }
    names
}

/// Those of them that no chain has, and that a chain's pattern would get.
pub(super) fn refused<'a>(
    owned: &'a BTreeMap<HostPattern, BTreeSet<String>>,
    chains: &[NamedChain<'_>],
) -> BTreeSet<&'a str> {
    let led: BTreeSet<&str> = chains.iter().flat_map(|chain| &chain.names).copied().collect();
    let is_caught = |name: &str| {
        let name = name.strip_prefix("*.").unwrap_or(name);
        let mut suffixes =
            std::iter::successors(Some(name), |name| name.split_once('.').map(|(_, rest)| rest));
        suffixes.any(|suffix| suffix != name && led.contains(format!("*.{suffix}").as_str()))
    };
    if !led.iter().any(|name| is_pattern(name)) {
        return BTreeSet::new();
    }
    let names = owned.values().flatten().map(String::as_str);
    names.filter(|name| !led.contains(name) && is_caught(name)).collect()
}

/// Whether a chain's name is `*.suffix`.
pub(super) fn is_pattern(name: &str) -> bool {
    name.starts_with("*.")
}
