//! What gRPC clients without a proxy are led by: a Listener for each name and port, `HOST:PORT`, to the cluster
//! that a stock Envoy leads to from `outbound_.PORT_._.HOST`. What such a client could not honour is left out:
//! nobody stands between it and the endpoints.

use std::collections::BTreeMap;

use bytes::Bytes;

use isthmus_model::services::Balance;
use isthmus_model::slice::Port;

use super::claims::NamedChain;
use super::encode::api_listener;

const HTTP_2: &str = "h2";

/// Listeners by name, and what was left out.
#[derive(Debug, Default)]
pub(super) struct Direct {
    pub(super) listeners: BTreeMap<String, Bytes>,
    pub(super) wrong: Vec<String>,
}

/// Why gRPC clients are not led to a port, if they are not.
pub(super) fn unfit(port: &Port) -> Option<&'static str> {
    if !port.sources.is_empty() {
        return Some("nobody would enforce its `sources`");
    }
    if !port.alpn.is_empty() && !port.alpn.iter().any(|it| it == HTTP_2) {
        return Some("it is for clients that offer other protocols than h2 (`alpn`)");
    }
    if port.send_proxy {
        return Some("they send no `proxy_protocol`");
    }
    if port.max_connections.is_some() {
        return Some("nobody would count its `max_connections`");
    }
    (port.balance != Balance::RoundRobin).then_some("they know no `balance` but round_robin")
}

/// Those of the chains that Envoy has.
pub(super) fn direct(chains: &[NamedChain<'_>]) -> Direct {
    // Where several have a name, Envoy chooses by protocol first, then by source, and never turns back.
    let mut ranked: Vec<_> =
        chains.iter().filter(|chain| chain.alpn.is_empty() || chain.alpn.contains(HTTP_2)).collect();
    ranked.sort_by_key(|chain| (!chain.alpn.is_empty(), !chain.sources.is_empty()));
    let others = chains.iter().filter(|chain| !chain.alpn.is_empty() && !chain.alpn.contains(HTTP_2));
    let mut owners = BTreeMap::new();
    for chain in others.chain(ranked) {
        owners.extend(chain.names.iter().filter_map(|name| Some((listener_of(name)?, chain))));
    }
    let mut found = Direct::default();
    for (name, chain) in owners {
        match chain.unfit {
            None => _ = found.listeners.insert(name.clone(), api_listener(&name, &chain.cluster)),
            Some(why) => found.wrong.push(format!("{name} is left out for gRPC clients: {why}")),
        }
    }
    found
}

/// The name that a gRPC client asks for where Envoy's clients say this one.
fn listener_of(outbound: &str) -> Option<String> {
    let (port, host) = outbound.strip_prefix("outbound_.")?.split_once("_._.")?;
    Some(format!("{host}:{port}"))
}
