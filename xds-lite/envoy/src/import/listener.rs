//! Reads a Listener as routes: one for each name of each filter chain. Endpoints are in `cluster` and `assignment`.

use std::collections::BTreeMap;

use prost::Message as _;

use super::fields::{Shape, messages, unknown};
use super::filters::{self, Forward};
use super::matching::{self, Name, Sources, is_plain};
use super::{MOST_CHAINS, message, quoted};
use ipnet::IpNet;
use isthmus_proto::envoy::config::core::v3::address::Address;
use isthmus_proto::envoy::config::core::v3::socket_address::PortSpecifier;
use isthmus_proto::envoy::config::listener::v3::listener_filter::ConfigType;
use isthmus_proto::envoy::config::listener::v3::{FilterChain, Listener, ListenerFilter};

/// Fields that are read or ignored. Ignored: how Envoy's socket is bound, statistics and logs.
static SHAPE: Shape = Shape {
    name: "Listener",
    plain: &[
        1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 22, 24, 25, 26, 27, 28, 29, 30,
        31, 32, 33, 34, 35, 36,
    ],
    messages: &[],
};
const CHAINS: u32 = 3;
static CHAIN: Shape =
    Shape { name: "FilterChain", plain: &[3, 4, 5, 6, 7, 9], messages: &[(1, &matching::SHAPE)] };

/// Listener filters for what this gateway reads in any case.
const INSPECTORS: &[&str] = &[
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
    "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
];

/// The routes of the Listener whose port is the gateway's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Routes {
    pub(super) routes: BTreeMap<Name, Route>,
    /// Refused chains, each with its reason.
    pub(super) refused: Vec<String>,
}

/// The route of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    To {
        alpn: Vec<String>,
        /// None: any.
        sources: Vec<IpNet>,
        forward: Forward,
    },
    /// The name exists and admits no client.
    Nowhere,
}

/// Reads a Listener; none if its port is not the gateway's.
///
/// # Errors
/// Why the whole Listener is refused.
pub(super) fn read(name: &str, bytes: &[u8], port: u16) -> Result<Option<Routes>, String> {
    let listener = Listener::decode(bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if listener.name != name {
        return Err(format!("has the name {}", quoted(&listener.name)));
    }
    if port_of(&listener) != Some(port) {
        return Ok(None);
    }
    if let Some(field) = unknown(bytes, &SHAPE) {
        return Err(format!("{field} is not supported"));
    }
    whole(&listener)?;
    if listener.filter_chains.len() > MOST_CHAINS {
        return Err(format!("has more than {MOST_CHAINS} filter chains"));
    }
    if let Some((one, other)) = matching::alike(&listener.filter_chains)? {
        let label = |index: usize| listener.filter_chains.get(index).map(|chain| label(chain, index));
        return Err(format!(
            "{} and {} match the same connections; remove one of them",
            label(one).unwrap_or_default(),
            label(other).unwrap_or_default()
        ));
    }
    Ok(Some(routes(&listener, bytes, port)))
}

fn port_of(listener: &Listener) -> Option<u16> {
    match listener.address.as_ref()?.address.as_ref()? {
        Address::SocketAddress(socket) => match socket.port_specifier.as_ref()? {
            PortSpecifier::PortValue(port) => u16::try_from(*port).ok(),
            PortSpecifier::NamedPort(_) => None,
        },
        _ => None,
    }
}

/// Refuses a Listener with settings that affect which connections reach its chains, or how.
fn whole(listener: &Listener) -> Result<(), String> {
    let set = [
        ("filter_chain_matcher", listener.filter_chain_matcher.is_some()),
        ("fcds_config", listener.fcds_config.is_some()),
        ("use_original_dst", listener.use_original_dst == Some(true)),
        ("transparent", listener.transparent == Some(true)),
        ("udp_listener_config", listener.udp_listener_config.is_some()),
        ("api_listener", listener.api_listener.is_some()),
        ("internal_listener", listener.listener_specifier.is_some()),
    ];
    if let Some((field, _)) = set.iter().find(|(_, set)| *set) {
        return Err(format!("{field} is not supported"));
    }
    match listener.listener_filters.iter().find(|filter| !inspects(filter)) {
        Some(filter) => Err(format!("listener filter {} is not supported", quoted(&filter.name))),
        None => Ok(()),
    }
}

fn inspects(filter: &ListenerFilter) -> bool {
    match &filter.config_type {
        Some(ConfigType::TypedConfig(any)) => INSPECTORS.contains(&message(&any.type_url)),
        _ => false,
    }
}

fn label(chain: &FilterChain, index: usize) -> String {
    if chain.name.is_empty() {
        format!("filter_chains[{index}]")
    } else {
        format!("chain {}", quoted(&chain.name))
    }
}

fn routes(listener: &Listener, bytes: &[u8], port: u16) -> Routes {
    let shared = shared(&listener.filter_chains);
    let goes_first = |chain: &FilterChain| matching::is_before_names(chain, port);
    let first = listener.filter_chains.iter().position(goes_first);
    let raw = messages(bytes, CHAINS);
    let mut all = Routes { routes: BTreeMap::new(), refused: Vec::new() };
    for (index, chain) in listener.filter_chains.iter().enumerate() {
        let bytes = raw.get(index).copied().unwrap_or_default();
        let outdone = first.filter(|_| !goes_first(chain)).map(|first| {
            let other = listener.filter_chains.get(first).map(|chain| label(chain, first));
            let other = other.unwrap_or_default();
            format!("{other} matches by destination, before names: no connection reaches this chain")
        });
        match outdone.map_or_else(|| read_chain(chain, bytes, &shared), Err) {
            Ok((names, route)) => all.routes.extend(names.into_iter().map(|name| (name, route.clone()))),
            Err(why) => {
                all.refused.push(format!("{}: {why}", label(chain, index)));
                // Without this entry, clients of the name would get a less restrictive chain.
                if !is_plain(chain) {
                    all.routes.extend(matching::names(chain).into_iter().map(|name| (name, Route::Nowhere)));
                }
            }
        }
    }
    if listener.default_filter_chain.is_some() {
        let what = "default_filter_chain: is not supported; set `default:` of the gateway's listeners for connections \
                    that match no name";
        all.refused.push(what.to_owned());
    }
    all
}

/// Names that several chains have, which differ in something else.
fn shared(chains: &[FilterChain]) -> std::collections::HashSet<Name> {
    let mut known = std::collections::HashSet::new();
    let names = chains.iter().filter(|chain| !is_plain(chain)).flat_map(matching::names);
    names.filter(|name| !known.insert(name.clone())).collect()
}

fn read_chain(
    chain: &FilterChain,
    bytes: &[u8],
    shared: &std::collections::HashSet<Name>,
) -> Result<(Vec<Name>, Route), String> {
    if let Some(field) = unknown(bytes, &CHAIN) {
        return Err(format!("{field} is not supported"));
    }
    let matching = matching::read(chain)?;
    if let Some(name) = matching.names.iter().find(|name| shared.contains(name)) {
        return Err(format!(
            "another chain has the name {} too; chains that differ only in protocols or sources are not supported",
            name.host
        ));
    }
    let (forward, admitted) = filters::read(chain)?;
    let route = match matching.sources.and(admitted) {
        Sources::Any => Route::To { alpn: matching.alpn, sources: Vec::new(), forward },
        Sources::Only(sources) if sources.is_empty() => Route::Nowhere,
        Sources::Only(sources) => Route::To { alpn: matching.alpn, sources, forward },
    };
    Ok((matching.names, route))
}
