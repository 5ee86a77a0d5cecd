//! SNI, protocols and source address → service. Pure: it reads one snapshot and answers. A name that no
//! table holds does not exist, however it is spelled.

use std::net::IpAddr;
use std::sync::Arc;

use isthmus_xds::HostName;

use crate::hello::Alpn;
use crate::reason::Reason;
use crate::snapshot::{Claims, Service, Snapshot};

/// Where a hello leads.
#[derive(Clone, Debug)]
pub struct Route {
    /// The service.
    pub service: Arc<Service>,
    /// Only this instance of it.
    pub instance: Option<HostName>,
}

/// What a route is looked up by.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Index of the listener.
    pub listener: usize,
    /// The name asked for.
    pub sni: Option<&'a HostName>,
    /// The protocols offered.
    pub alpn: &'a Alpn,
    /// The client's address, an IPv4-mapped one already made IPv4.
    pub source: IpAddr,
}

/// Finds the service: exact name, then instance, then the longest `*.suffix`, then the listener's default.
///
/// # Errors
/// `no_sni`, `sni_unmatched`, or the condition that the name's services set and the client does not meet.
pub fn route(snapshot: &Snapshot, query: Query<'_>) -> Result<Route, Reason> {
    let named = query.sni.and_then(|sni| find(snapshot, sni, query));
    match named {
        Some(answer) => answer,
        None => {
            let default = snapshot.live.listeners.get(query.listener).and_then(|listener| listener.default);
            match default.and_then(|index| snapshot.service(index)) {
                Some(service) => meets(service, query).map(|()| Route::to(service)),
                None if query.sni.is_none() => Err(Reason::NoSni),
                None => Err(Reason::SniUnmatched),
            }
        }
    }
}

impl Route {
    fn to(service: &Arc<Service>) -> Route {
        Route { service: Arc::clone(service), instance: None }
    }
}

/// `None` when nothing has that name.
fn find(snapshot: &Snapshot, sni: &HostName, query: Query<'_>) -> Option<Result<Route, Reason>> {
    let (name, port) = outbound(sni.as_str());
    if let Some(claims) = snapshot.exact.get(name)
        && let Some(answer) = choose(snapshot, claims, port, None, query)
    {
        return Some(answer);
    }
    let (label, parent) = name.split_once('.')?;
    if let Some(claims) = snapshot.exact.get(parent)
        && let Some(answer) = choose(snapshot, claims, port, Some(label), query)
    {
        return Some(answer);
    }
    std::iter::successors(Some(parent), |suffix| suffix.split_once('.').map(|(_, rest)| rest)).find_map(
        |suffix| snapshot.suffixes.get(suffix).and_then(|claims| choose(snapshot, claims, port, None, query)),
    )
}

/// Istio's form for one port of a host: `outbound_.PORT_._.HOST`. With a subset between the last two
/// underscores it is no name of ours.
fn outbound(name: &str) -> (&str, Option<u16>) {
    let parsed = name.strip_prefix("outbound_.").and_then(|rest| rest.split_once("_._."));
    match parsed.and_then(|(port, host)| Some((host, port.parse::<u16>().ok()?))) {
        Some((host, port)) => (host, Some(port)),
        None => (name, None),
    }
}

/// The first service, most specific first, that has the port and the instance and whose conditions are
/// met. `None` when none of them has that port or that instance.
fn choose(
    snapshot: &Snapshot,
    claims: &Claims,
    port: Option<u16>,
    instance: Option<&str>,
    query: Query<'_>,
) -> Option<Result<Route, Reason>> {
    let mut answer = None;
    for service in claims.indexes().iter().filter_map(|index| snapshot.service(*index as usize)) {
        let settings = &service.settings;
        if port.map_or(!settings.bare, |port| settings.port != port) {
            continue;
        }
        let named = instance.map(|label| {
            service
                .endpoints
                .iter()
                .filter_map(|endpoint| endpoint.instance.as_ref())
                .find(|name| name.as_str() == label)
        });
        if matches!(named, Some(None)) {
            continue;
        }
        match meets(service, query) {
            Ok(()) => {
                return Some(Ok(Route { service: Arc::clone(service), instance: named.flatten().cloned() }));
            }
            Err(reason) => answer = Some(Err(reason)),
        }
    }
    answer
}

fn meets(service: &Service, query: Query<'_>) -> Result<(), Reason> {
    let settings = &service.settings;
    if !settings.sources.is_empty() && !settings.sources.iter().any(|net| net.contains(&query.source)) {
        return Err(Reason::SourceDenied);
    }
    if !settings.alpn.is_empty() && !settings.alpn.iter().any(|protocol| query.alpn.offers(protocol)) {
        return Err(Reason::AlpnUnmatched);
    }
    Ok(())
}
