//! Finds names that exist and have no route: another host's pattern must not match them. Envoy would fall back to the
//! next shorter pattern, so these names get a chain that closes. Which chain has which name is `claims`.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_model::host::HostPattern;
use isthmus_model::slice::Offer;

use super::claims::NamedChain;

/// All names of a host, routed or not, except `outbound_` names: no pattern matches those.
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

/// Names that no chain has and that a chain's pattern would match.
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
