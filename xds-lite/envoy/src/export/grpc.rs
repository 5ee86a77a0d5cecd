//! Builds Listeners for proxyless gRPC clients: one for each `HOST:PORT`, with the cluster that a stock Envoy uses for
//! `outbound_.PORT_._.HOST`. A port whose settings such a client cannot honour is left out: no gateway would enforce
//! them.

use std::collections::BTreeMap;

use bytes::Bytes;

use isthmus_model::services::Balance;
use isthmus_model::slice::Port;

use super::claims::NamedChain;
use super::encode::api_listener;

const HTTP_2: &str = "h2";

/// Listeners by name, and what is left out.
#[derive(Debug, Default)]
pub(super) struct Direct {
    pub(super) listeners: BTreeMap<String, Bytes>,
    pub(super) wrong: Vec<String>,
}

/// Why a port is left out for gRPC clients, if it is.
pub(super) fn unfit(port: &Port) -> Option<&'static str> {
    if !port.sources.is_empty() {
        return Some("no gateway would enforce its `sources`");
    }
    if !port.alpn.is_empty() && !port.alpn.iter().any(|it| it == HTTP_2) {
        return Some("its `alpn` does not include h2");
    }
    if port.send_proxy {
        return Some("gRPC clients send no `proxy_protocol`");
    }
    if port.max_connections.is_some() {
        return Some("no gateway would enforce its `max_connections`");
    }
    (port.balance != Balance::RoundRobin).then_some("gRPC clients support no `balance` but round_robin")
}

/// Builds the Listeners of Envoy's chains.
pub(super) fn direct(chains: &[NamedChain<'_>]) -> Direct {
    // Where several chains have a name, Envoy chooses by protocol first, then by source, and never backtracks.
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

/// The Listener's name for an `outbound_` name.
fn listener_of(outbound: &str) -> Option<String> {
    let (port, host) = outbound.strip_prefix("outbound_.")?.split_once("_._.")?;
    Some(format!("{host}:{port}"))
}
