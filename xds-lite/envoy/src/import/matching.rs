//! Reads the match of a filter chain (names, protocols, sources), and finds chains of a Listener with overlapping
//! matches, which Envoy refuses.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::fields::Shape;
use super::{MOST_ITEMS, MOST_WAYS, quoted};
use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::sni;
use isthmus_proto::envoy::config::core::v3::CidrRange;
use isthmus_proto::envoy::config::listener::v3::{FilterChain, FilterChainMatch};

pub(super) static SHAPE: Shape = Shape {
    name: "FilterChainMatch",
    plain: &[3, 4, 5, 7, 8, 9, 10, 11, 12],
    messages: &[(6, &CIDR), (13, &CIDR)],
};
pub(super) static CIDR: Shape = Shape { name: "CidrRange", plain: &[1, 2], messages: &[] };

/// The match of a chain, as far as this gateway can evaluate it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Matching {
    /// Its valid names.
    pub(super) names: Vec<Name>,
    /// Empty: any.
    pub(super) alpn: Vec<String>,
    pub(super) sources: Sources,
}

/// A name, as a service of this gateway has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) host: HostPattern,
    /// 0 for a name without a port: no `outbound_.PORT_._.HOST` reaches it.
    pub(super) port: u16,
}

/// Source addresses that a chain admits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sources {
    Any,
    /// Empty: no client.
    Only(Vec<IpNet>),
}

impl Sources {
    /// The sources that both admit.
    pub(super) fn and(self, other: Sources) -> Sources {
        let (these, those) = match (self, other) {
            (Sources::Any, sources) | (sources, Sources::Any) => return sources,
            (Sources::Only(these), Sources::Only(those)) => (these, those),
        };
        // Two ranges are disjoint, or one contains the other.
        let both = |a: &IpNet, b: &IpNet| match (a.contains(b), b.contains(a)) {
            (true, _) => Some(*b),
            (_, true) => Some(*a),
            _ => None,
        };
        let mut nets: Vec<_> =
            these.iter().flat_map(|a| those.iter().filter_map(move |b| both(a, b))).collect();
        nets.sort_unstable();
        nets.dedup();
        Sources::Only(nets)
    }
}

/// Whether a chain is only for other protocols than TLS. It never gets a TLS connection.
pub(super) fn is_plain(chain: &FilterChain) -> bool {
    let protocol = chain.filter_chain_match.as_ref().map(|rules| rules.transport_protocol.as_str());
    !matches!(protocol, None | Some("" | "tls"))
}

/// Whether a chain matches this port by destination. Then only such chains get its connections: Envoy checks the
/// destination before the name, and does not backtrack.
pub(super) fn is_before_names(chain: &FilterChain, port: u16) -> bool {
    chain.filter_chain_match.as_ref().is_some_and(|rules| {
        rules.destination_port == Some(port.into())
            || rules.prefix_ranges.iter().any(|range| range.prefix_len.unwrap_or(0) == 0)
    })
}

/// The valid names of a chain.
pub(super) fn names(chain: &FilterChain) -> Vec<Name> {
    let texts = chain.filter_chain_match.iter().flat_map(|rules| &rules.server_names);
    let mut names: Vec<_> = texts.take(MOST_ITEMS).filter_map(|text| name(text).ok()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn name(text: &str) -> Result<Name, String> {
    let wrong = |error| format!("server_names has {}: {error}", quoted(text));
    match HostPattern::parse(text).map_err(wrong)? {
        HostPattern::Exact(name) => {
            let (host, port) = sni::split(name.as_str());
            let host = HostName::parse(host).map_err(wrong)?;
            Ok(Name { host: HostPattern::Exact(host), port: port.unwrap_or(0) })
        }
        suffix @ HostPattern::Suffix(_) => Ok(Name { host: suffix, port: 0 }),
    }
}

/// Reads a chain's match.
///
/// # Errors
/// What of it this gateway cannot evaluate.
pub(super) fn read(chain: &FilterChain) -> Result<Matching, String> {
    let nothing = FilterChainMatch::default();
    let rules = chain.filter_chain_match.as_ref().unwrap_or(&nothing);
    let set = [
        ("destination_port", rules.destination_port.is_some()),
        ("prefix_ranges", !rules.prefix_ranges.is_empty()),
        ("address_suffix", !rules.address_suffix.is_empty()),
        ("suffix_len", rules.suffix_len.is_some()),
        ("direct_source_prefix_ranges", !rules.direct_source_prefix_ranges.is_empty()),
        ("source_type", rules.source_type != 0),
        ("source_ports", !rules.source_ports.is_empty()),
    ];
    if let Some((field, _)) = set.iter().find(|(_, set)| *set) {
        return Err(format!("filter_chain_match.{field} is not supported"));
    }
    if is_plain(chain) {
        let protocol = quoted(&rules.transport_protocol);
        return Err(format!("transport_protocol is {protocol}: only TLS is passed through"));
    }
    if rules.server_names.is_empty() {
        return Err(
            "filter_chain_match.server_names is empty: a chain without names is not supported; set `default:` of the \
             gateway's listeners for connections that match no name"
                .to_owned(),
        );
    }
    let lists =
        [rules.server_names.len(), rules.application_protocols.len(), rules.source_prefix_ranges.len()];
    if lists.iter().any(|length| *length > MOST_ITEMS) {
        return Err(format!("filter_chain_match has a list of more than {MOST_ITEMS} items"));
    }
    for text in &rules.server_names {
        name(text)?;
    }
    if let Some(wrong) = rules.application_protocols.iter().find(|text| !(1..=255).contains(&text.len())) {
        return Err(format!("application_protocols has {}, which is not a protocol name", quoted(wrong)));
    }
    let sources = match rules.source_prefix_ranges.as_slice() {
        [] => Sources::Any,
        ranges => Sources::Only(ranges.iter().map(net).collect::<Result<_, _>>()?),
    };
    Ok(Matching { names: names(chain), alpn: rules.application_protocols.clone(), sources })
}

/// A range as Envoy reads it: bits after the prefix are ignored. An IPv4-mapped range is the IPv4 range, as with
/// addresses.
pub(super) fn net(range: &CidrRange) -> Result<IpNet, String> {
    let net = as_written(range)?;
    if let IpNet::V6(v6) = net
        && let Some(mapped) = v6.addr().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Ok(net) = IpNet::new(mapped.into(), length)
    {
        return Ok(net);
    }
    Ok(net)
}

fn as_written(range: &CidrRange) -> Result<IpNet, String> {
    let length = range.prefix_len.unwrap_or(0);
    let wrong = || format!("{}/{length} is not an address range", quoted(&range.address_prefix));
    let address: IpAddr = range.address_prefix.parse().map_err(|_| wrong())?;
    let length = u8::try_from(length).map_err(|_| wrong())?;
    IpNet::new(address, length).map(|net| net.trunc()).map_err(|_| wrong())
}

/// One combination that a chain's match admits.
#[derive(PartialEq, Eq, Hash)]
struct Way<'a> {
    port: Option<u32>,
    destination: String,
    suffix: (&'a str, Option<u32>),
    name: String,
    transport: &'a str,
    protocol: &'a str,
    direct: String,
    kind: i32,
    source: String,
    source_port: Option<u32>,
}

/// Two chains of a Listener, by position, whose matches overlap. It may be one chain that lists something twice: Envoy
/// refuses such a Listener, too.
///
/// # Errors
/// There are too many combinations to compare.
pub(super) fn alike(chains: &[FilterChain]) -> Result<Option<(usize, usize)>, String> {
    let too_many = || format!("its filter chains match more than {MOST_WAYS} combinations");
    let nothing = FilterChainMatch::default();
    let mut left = MOST_WAYS;
    let mut known: HashMap<Way<'_>, usize> = HashMap::with_capacity(chains.len());
    for (index, chain) in chains.iter().enumerate() {
        let rules = chain.filter_chain_match.as_ref().unwrap_or(&nothing);
        let count = count(rules).filter(|count| *count <= left).ok_or_else(too_many)?;
        left -= count;
        for way in ways(rules) {
            if let Some(earlier) = known.insert(way, index) {
                return Ok(Some((earlier, index)));
            }
        }
    }
    Ok(None)
}

fn count(rules: &FilterChainMatch) -> Option<usize> {
    let lists = [
        rules.prefix_ranges.len(),
        rules.server_names.len(),
        rules.application_protocols.len(),
        rules.direct_source_prefix_ranges.len(),
        rules.source_prefix_ranges.len(),
        rules.source_ports.len(),
    ];
    lists.iter().try_fold(1_usize, |all, length| all.checked_mul((*length).max(1)))
}

fn ways(rules: &FilterChainMatch) -> Vec<Way<'_>> {
    let names = each(rules.server_names.iter().map(|name| name.to_ascii_lowercase()));
    let protocols = each(rules.application_protocols.iter().map(String::as_str));
    let destinations = each(rules.prefix_ranges.iter().map(range));
    let directs = each(rules.direct_source_prefix_ranges.iter().map(range));
    let sources = each(rules.source_prefix_ranges.iter().map(range));
    let ports = each(rules.source_ports.iter().map(|port| Some(*port)));
    let mut ways = Vec::new();
    for name in &names {
        for protocol in &protocols {
            for (destination, direct) in
                destinations.iter().flat_map(|one| directs.iter().map(move |other| (one, other)))
            {
                for (source, source_port) in
                    sources.iter().flat_map(|one| ports.iter().map(move |other| (one, other)))
                {
                    ways.push(Way {
                        port: rules.destination_port,
                        destination: destination.clone(),
                        suffix: (&rules.address_suffix, rules.suffix_len),
                        name: name.clone(),
                        transport: &rules.transport_protocol,
                        protocol,
                        direct: direct.clone(),
                        kind: rules.source_type,
                        source: source.clone(),
                        source_port: *source_port,
                    });
                }
            }
        }
    }
    ways
}

/// The items, or one default if there are none.
fn each<T: Default>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut list: Vec<T> = items.collect();
    if list.is_empty() {
        list.push(T::default());
    }
    list
}

/// A range for comparison; an invalid one as written.
fn range(range: &CidrRange) -> String {
    match as_written(range) {
        Ok(net) => net.to_string(),
        Err(_) => format!("{}/{:?}", range.address_prefix, range.prefix_len),
    }
}
