//! Renders the lists of the admin port from the running gateway, without changing it. Long lists are paged: `offset`,
//! `limit` (default 100, at most 1 000), and `name` as a filter.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use isthmus_model::HostName;
use isthmus_model::admin::gateway::{
    self as page, Connection, DefaultService, DownEndpoint, Paged, Route, Routes,
};

use super::pages::Params;
use super::status::down_endpoint;
use crate::config::settings::{Bind, Listener};
use crate::control::{self, Control, Unreached};
use crate::demotion::Outcome;
use crate::live::Conn;
use crate::log::rfc3339;
use crate::snapshot::{Endpoint, Service, Snapshot};
use crate::socket;

pub(super) fn routes(params: &Params, control: &Control) -> Result<Routes, String> {
    let tables = control.process.tables.load();
    let rows = tables.services().flat_map(|service| {
        let mut names = Vec::new();
        // A service of a control plane without a port has no such form.
        if service.port != 0 {
            names.push(format!("outbound_.{}_._.{}", service.port, service.host));
        }
        if service.rules.default_port {
            let instances = service.instances().iter().filter_map(|traits| traits.instance.as_ref());
            names.push(service.host.to_string());
            names.extend(service.aliases().iter().map(ToString::to_string));
            names.extend(instances.map(|instance| format!("{instance}.{}", service.host)));
        }
        names.into_iter().map(move |name| (name, service))
    });
    let page = paged(
        params,
        rows,
        |(name, _)| name.clone(),
        |(name, service)| Route {
            name,
            service: service.name().to_string(),
            alpn: service.rules.alpn.clone(),
            sources: service.rules.sources.iter().map(ToString::to_string).collect(),
        },
    )?;
    Ok(Routes { page, defaults: defaults(control, &tables) })
}

/// Returns the default service of each listener that has one.
fn defaults(control: &Control, tables: &Snapshot) -> Vec<DefaultService> {
    let binds = &control.process.fixed.binds;
    let default = |(bind, rules): (&Bind, &Listener)| {
        let service = tables.in_file(rules.default?)?;
        Some(DefaultService { listener: bind.name.clone(), service: service.name().to_string() })
    };
    binds.iter().zip(&tables.live.listeners).filter_map(default).collect()
}

pub(super) fn services(params: &Params, control: &Control) -> Result<Paged<page::Service>, String> {
    let tables = control.process.tables.load();
    let answers = control.answers.all();
    let down = down(control);
    paged(
        params,
        tables.services(),
        |service| service.name().to_string(),
        |service| service_page(service, &answers, &down),
    )
}

/// Returns the addresses that failed their probes while the agent is unreachable.
pub(super) fn down(control: &Control) -> HashMap<String, Unreached> {
    let following = control.following.borrow();
    let down = following.probed.iter().flat_map(|probed| &probed.listed);
    down.map(|one| (one.address.clone(), one.clone())).collect()
}

/// Returns the endpoints of a service that receive no new connections for that reason.
pub(super) fn left_out(service: &Service, down: &HashMap<String, Unreached>) -> Vec<DownEndpoint> {
    if down.is_empty() {
        return Vec::new();
    }
    service
        .drained()
        .iter()
        .filter_map(|target| down.get(&target.to_string()))
        .cloned()
        .map(down_endpoint)
        .collect()
}

fn service_page(
    service: &Service,
    answers: &BTreeMap<HostName, control::Answer>,
    down: &HashMap<String, Unreached>,
) -> page::Service {
    let is_unresolved =
        |host: &&HostName| answers.get(*host).is_none_or(|answer| answer.addresses.is_empty());
    page::Service {
        service: service.name().to_string(),
        balance: service.rules.balance,
        traffic: service.rules.traffic.to_string(),
        connections: service.state.active(),
        endpoints: service.endpoints.iter().map(|endpoint| endpoint_page(endpoint, None)).collect(),
        unresolved: service.targets().filter(is_unresolved).map(ToString::to_string).collect(),
        down: left_out(service, down),
    }
}

/// Renders one endpoint for `/services` and `/explain`; `demoted` is for all sources, or for this one.
pub(super) fn endpoint_page(endpoint: &Endpoint, source: Option<IpAddr>) -> page::Endpoint {
    let (state, now) = (&endpoint.state, socket::now());
    let is_demoted =
        source.map_or_else(|| state.is_demoted_for_all(now), |source| state.is_demoted(source, now));
    page::Endpoint {
        address: endpoint.address.to_string(),
        instance: endpoint.traits.instance.as_ref().map(ToString::to_string),
        weight: endpoint.weight,
        priority: endpoint.place().1,
        locality: endpoint.traits.locality.clone(),
        cluster: endpoint.cluster().map(str::to_owned),
        healthy: state.healthy(now),
        demoted: is_demoted,
        own_hello: state.outcome().map(|outcome| Outcome::word(outcome).to_owned()),
        failures: state.failures(),
        connections: state.active(),
    }
}

pub(super) fn connections(params: &Params, control: &Control) -> Result<Paged<Connection>, String> {
    let mut all: Vec<Arc<Conn>> = control.workers.iter().flat_map(|worker| worker.live.all()).collect();
    all.sort_by_key(|conn| conn.id);
    let name = |conn: &Arc<Conn>| conn.sni.get().map(ToString::to_string).unwrap_or_default();
    paged(
        params,
        all.iter(),
        |conn| name(conn),
        |conn| {
            let target = conn.target();
            Connection {
                id: conn.id,
                listener: control.process.fixed.binds.get(conn.listener).map(|bind| bind.name.clone()),
                peer: conn.peer.to_string(),
                client: conn.client().to_string(),
                sni: conn.sni.get().map(ToString::to_string),
                service: target.as_ref().map(|target| target.service.name().to_string()),
                endpoint: target.as_ref().map(|target| target.endpoint.to_string()),
                since: rfc3339(conn.since),
                idle_ms: socket::now().saturating_sub(conn.last_byte()),
                bytes_in: conn.bytes_in.load(Relaxed),
                bytes_out: conn.bytes_out.load(Relaxed),
            }
        },
    )
}

const PAGE: usize = 100;
const LONGEST_PAGE: usize = 1_000;

fn paged<T, I>(
    params: &Params,
    rows: impl Iterator<Item = T>,
    name: impl Fn(&T) -> String,
    show: impl Fn(T) -> I,
) -> Result<Paged<I>, String> {
    let offset = params.number("offset", 0)?;
    let limit = params.number("limit", PAGE)?.clamp(1, LONGEST_PAGE);
    let wanted = params.get("name").map(str::to_ascii_lowercase);
    let mut total = 0;
    let mut items = Vec::new();
    for row in rows.filter(|row| wanted.as_ref().is_none_or(|wanted| name(row).contains(wanted))) {
        if (offset..offset.saturating_add(limit)).contains(&total) {
            items.push(show(row));
        }
        total += 1;
    }
    Ok(Paged { total: total as u64, offset: offset as u64, limit: limit as u64, items })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_paged_and_filtered() {
        let params = Params::parse("offset=1&limit=2&name=A.").unwrap();
        let rows = ["a.x", "b.x", "a.y", "a.z", "a.w"];
        let page = |params: &Params| paged(params, rows.iter(), |row| (*row).to_string(), |row| *row);
        assert_eq!(page(&params), Ok(Paged { total: 4, offset: 1, limit: 2, items: vec!["a.y", "a.z"] }));
        assert!(page(&Params::parse("limit=many").unwrap()).is_err());
    }
}
