//! Assigns names to chains. Envoy refuses a whole Listener if two chains overlap, so conflicts are settled here: own
//! names come before aliases, aliases before instances' names, and among equals the first by name.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::chain::Chain;

/// Chains with their names, none of which overlap.
#[derive(Debug)]
pub(super) struct Named<'a> {
    pub(super) chains: Vec<NamedChain<'a>>,
    /// What is left out, and why.
    pub(super) clashes: Vec<String>,
}

/// A chain with its names.
#[derive(Debug)]
pub(super) struct NamedChain<'a> {
    pub(super) chain: &'a Chain,
    /// At least one.
    pub(super) names: BTreeSet<&'a str>,
}

impl std::ops::Deref for NamedChain<'_> {
    type Target = Chain;

    fn deref(&self) -> &Chain {
        self.chain
    }
}

/// Assigns each name to one chain. Beyond `most` chains none is added; live ones stay.
pub(super) fn name<'a>(
    all: impl Iterator<Item = &'a Chain>,
    live: &BTreeSet<String>,
    most: usize,
) -> Named<'a> {
    let mut all: Vec<_> = all.collect();
    let mut clashes = Vec::new();
    if all.len() > most {
        clashes.push(format!(
            "{} services and instances are left out of Envoy's tables, which hold at most {most}; use isthmus-gateway, which has no such limit",
            all.len() - most
        ));
        // Stable: live ones first, then by name.
        all.sort_by_key(|chain| !live.contains(&chain.cluster));
        all.truncate(most);
    }
    all.sort_by(|one, other| one.cluster.cmp(&other.cluster));
    let mut owners = HashMap::new();
    let mut names: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for rank in 0..3 {
        for (index, chain) in all.iter().enumerate() {
            for name in chain.names.iter().skip(rank).take(1).flatten() {
                match claim(&mut owners, chain, name) {
                    Ok(()) => _ = names.entry(index).or_default().insert(name),
                    Err(owner) if owner == chain.cluster => {}
                    Err(owner) => clashes.push(format!(
                        "the name {name} of {} is left out of Envoy's tables: {owner} has it; remove one of them",
                        chain.cluster
                    )),
                }
            }
        }
    }
    let chains = all
        .iter()
        .enumerate()
        .filter_map(|(index, chain)| names.remove(&index).map(|names| NamedChain { chain, names }));
    Named { chains: chains.collect(), clashes }
}

/// Claims all that a chain matches by a name, or nothing, if another chain (returned) has some of it already.
fn claim<'a>(
    owners: &mut HashMap<(&'a str, Option<&'a str>, String), &'a str>,
    chain: &'a Chain,
    name: &'a str,
) -> Result<(), &'a str> {
    let protocols: Vec<_> = if chain.alpn.is_empty() {
        vec![None]
    } else {
        chain.alpn.iter().map(|it| Some(it.as_str())).collect()
    };
    // To Envoy, no source range means every source.
    let sources: Vec<_> = if chain.sources.is_empty() {
        vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()]
    } else {
        chain.sources.iter().map(ToString::to_string).collect()
    };
    let claims = || {
        let each =
            |source: &String| protocols.iter().map(|it| (name, *it, source.clone())).collect::<Vec<_>>();
        sources.iter().flat_map(each)
    };
    if let Some(owner) = claims().find_map(|claim| owners.get(&claim).copied()) {
        return Err(owner);
    }
    owners.extend(claims().map(|claim| (claim, chain.cluster.as_str())));
    Ok(())
}
