//! Builds the pages of the admin port from the running gateway, without changing it. Long lists are paged: `offset`,
//! `limit` (default 100, at most 1 000), and `name` as a filter.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use isthmus_model::HostName;
use serde_json::{Value, json};

use super::effective::effective;
use super::explain::explain;
use crate::config::settings::{Bind, Listener};
use crate::control::{self, Control, Unreached};
use crate::demotion::Outcome;
use crate::live::Conn;
use crate::log::rfc3339;
use crate::snapshot::{Endpoint, Service, Snapshot};
use crate::socket;

/// The answer to a request.
#[derive(Debug)]
pub enum Answer {
    /// A page.
    Page(Value),
    /// The request is wrong: the problem and the remedy.
    Wrong(String),
    /// The path does not exist.
    Nothing,
}

/// The parameters of a request.
#[derive(Debug, Default)]
pub struct Params(HashMap<String, String>);

impl Params {
    /// Parses `a=b&c=d`, percent-decoded.
    ///
    /// # Errors
    /// The encoding is invalid.
    pub fn parse(query: &str) -> Result<Params, String> {
        let mut params = HashMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            params.insert(decode(key)?, decode(value)?);
        }
        Ok(Params(params))
    }

    /// Returns the value of a parameter.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn number(&self, key: &str, unless: usize) -> Result<usize, String> {
        self.get(key).map_or(Ok(unless), |value| {
            value.parse().map_err(|_| format!("{key} must be a number, not '{}'", value.escape_default()))
        })
    }
}

fn decode(text: &str) -> Result<String, String> {
    let bytes = text.replace('+', " ");
    percent_encoding::percent_decode_str(&bytes)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| "a parameter is not UTF-8".to_owned())
}

pub(super) const PATHS: [&str; 6] =
    ["/status", "/config", "/routes", "/services", "/connections", "/explain"];

/// Returns the page at a path.
pub fn page(path: &str, params: &Params, control: &Control) -> Answer {
    let answer = match path {
        "/status" => Ok(status(control)),
        "/config" => Ok(effective(control.written(), &control.configured())),
        "/routes" => routes(params, control),
        "/services" => services(params, control),
        "/connections" => connections(params, control),
        "/explain" => explain(params, control),
        _ => return Answer::Nothing,
    };
    answer.map_or_else(Answer::Wrong, Answer::Page)
}

/// Returns the existing paths, as the answer for an unknown one.
#[must_use]
pub fn index() -> Value {
    json!({ "error": "there is no such path", "get": PATHS, "post": ["/drain"] })
}

fn status(control: &Control) -> Value {
    let process = &control.process;
    let tables = process.tables.load();
    let listeners: Vec<Value> = process
        .fixed
        .binds
        .iter()
        .enumerate()
        .map(|(index, bind)| {
            let what = format!("listener {}", bind.name);
            let bound = process.own.get().into_iter().flatten().find(|bound| bound.what == what);
            json!({
                "name": bind.name,
                "address": bound.map_or(bind.address, |bound| bound.address),
                "connections": process.limits.on_listener(index),
                "accepted": accepted(control, index),
            })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": process.fixed.node,
        "phase": control.phase.borrow().word(),
        "started": rfc3339(control.started),
        "uptime_seconds": seconds_since(control.started),
        "workers": control.workers.iter().map(|worker| json!({ "connections": worker.live.len() })).collect::<Vec<_>>(),
        "listeners": listeners,
        "connections": {
            "open": process.limits.total(),
            "limit": process.limits.descriptors().min(tables.live.limits.connections),
            "descriptors_allow": process.limits.descriptors(),
            "lingering": process.limits.lingering(),
        },
        "tables": {
            "epoch": tables.epoch,
            "changed": rfc3339(control.changed()),
            "age_seconds": seconds_since(control.changed()),
            "services": tables.len(),
            "endpoints": tables.services().map(|service| service.endpoints.len()).sum::<usize>(),
        },
        "ready": control.is_ready(),
        "names": control.answers.all(),
        "reloads": {
            "applied": process.metrics.reloads.load(Relaxed),
            "refused": process.metrics.reloads_refused.load(Relaxed),
        },
        "last_refused_edit": control.last_refused(),
        "endpoints_failing": process.suspects.failing(),
        "hello_memory_bytes": process.limits.hellos.held(),
        "hellos_given_up": process.limits.hellos.revoked(),
        "pipes": {
            "limit": process.fixed.relay.pipes,
            "open": control.workers.iter().map(|worker| worker.pipes.open()).sum::<usize>(),
            "denied": control.workers.iter().map(|worker| worker.pipes.denied()).sum::<u64>(),
        },
        "agent": process.fixed.xds.as_ref().map(|_| control.following.borrow().clone()),
        "state": control.state.get().map(|health| health.report()),
        "trust": trust(control),
        "access_log_dropped": process.metrics.log_dropped.load(Relaxed),
    })
}

fn trust(control: &Control) -> Option<Value> {
    let process = &control.process;
    let Some(trust) = process.trust.get() else {
        let awaited = || json!({ "identity": null, "problem": control.renewal.problem() });
        return process.fixed.trust.as_ref().map(|_| awaited());
    };
    let current = trust.current();
    let renewal = |due| json!({ "due": rfc3339(due), "problem": control.renewal.problem() });
    Some(json!({
        "renewal": control.renewal.due().map(renewal),
        "identity": current.identity.id(),
        "epoch": current.epoch,
        "certificates": control.expiries(),
        "domains": current.bundles.iter().map(|(domain, bundle)| json!({
            "trust_domain": domain,
            "sequence": bundle.sequence,
            "denied": current.bundles.denied(domain).map(|list| list.sequence()),
        })).collect::<Vec<_>>(),
        "refused": control.refused_files(),
    }))
}

fn accepted(control: &Control, listener: usize) -> u64 {
    let workers = &control.process.metrics.workers;
    let counters = workers.iter().filter_map(|worker| worker.listeners.get(listener));
    counters.map(|counters| counters.accepted.load(Relaxed)).sum()
}

fn routes(params: &Params, control: &Control) -> Result<Value, String> {
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
    let mut page = paged(
        params,
        rows,
        |(name, _)| name.clone(),
        |(name, service)| {
            json!({
                "name": name,
                "service": service.name(),
                "alpn": service.rules.alpn,
                "sources": service.rules.sources,
            })
        },
    )?;
    if let Value::Object(page) = &mut page {
        page.insert("defaults".to_owned(), defaults(control, &tables));
    }
    Ok(page)
}

/// Returns the default service of each listener that has one.
fn defaults(control: &Control, tables: &Snapshot) -> Value {
    let binds = &control.process.fixed.binds;
    let default = |(bind, rules): (&Bind, &Listener)| {
        let service = tables.in_file(rules.default?)?;
        Some(json!({ "listener": bind.name, "service": service.name() }))
    };
    binds.iter().zip(&tables.live.listeners).filter_map(default).collect()
}

fn services(params: &Params, control: &Control) -> Result<Value, String> {
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
pub(super) fn left_out<'d>(service: &Service, down: &'d HashMap<String, Unreached>) -> Vec<&'d Unreached> {
    if down.is_empty() {
        return Vec::new();
    }
    service.drained().iter().filter_map(|target| down.get(&target.to_string())).collect()
}

fn service_page(
    service: &Service,
    answers: &BTreeMap<HostName, control::Answer>,
    down: &HashMap<String, Unreached>,
) -> Value {
    let unresolved: Vec<_> = service
        .targets()
        .filter(|host| answers.get(*host).is_none_or(|answer| answer.addresses.is_empty()))
        .collect();
    json!({
        "service": service.name(),
        "balance": service.rules.balance,
        "connections": service.state.active(),
        "endpoints": service.endpoints.iter().map(|endpoint| endpoint_page(endpoint, None)).collect::<Vec<_>>(),
        "unresolved": unresolved,
        "down": left_out(service, down),
    })
}

/// Renders one endpoint for `/services` and `/explain`; `demoted` is for all sources, or for this one.
pub(super) fn endpoint_page(endpoint: &Endpoint, source: Option<IpAddr>) -> Value {
    let (state, now) = (&endpoint.state, socket::now());
    let is_demoted =
        source.map_or_else(|| state.is_demoted_for_all(now), |source| state.is_demoted(source, now));
    json!({
        "address": endpoint.address,
        "instance": endpoint.traits.instance,
        "weight": endpoint.weight,
        "locality": endpoint.traits.locality,
        "cluster": endpoint.cluster(),
        "healthy": state.healthy(now),
        "demoted": is_demoted,
        "own_hello": state.outcome().map(Outcome::word),
        "failures": state.failures(),
        "connections": state.active(),
    })
}

fn connections(params: &Params, control: &Control) -> Result<Value, String> {
    let mut all: Vec<Arc<Conn>> = control.workers.iter().flat_map(|worker| worker.live.all()).collect();
    all.sort_by_key(|conn| conn.id);
    let name = |conn: &Arc<Conn>| conn.sni.get().map(ToString::to_string).unwrap_or_default();
    paged(
        params,
        all.iter(),
        |conn| name(conn),
        |conn| {
            let target = conn.target();
            json!({
                "id": conn.id,
                "listener": control.process.fixed.binds.get(conn.listener).map(|bind| &bind.name),
                "peer": conn.peer,
                "client": conn.client(),
                "sni": conn.sni.get(),
                "service": target.as_ref().map(|target| target.service.name()),
                "endpoint": target.as_ref().map(|target| target.endpoint),
                "since": rfc3339(conn.since),
                "idle_ms": socket::now().saturating_sub(conn.last_byte()),
                "bytes_in": conn.bytes_in.load(Relaxed),
                "bytes_out": conn.bytes_out.load(Relaxed),
            })
        },
    )
}

const PAGE: usize = 100;
const LONGEST_PAGE: usize = 1_000;

fn paged<T>(
    params: &Params,
    rows: impl Iterator<Item = T>,
    name: impl Fn(&T) -> String,
    show: impl Fn(T) -> Value,
) -> Result<Value, String> {
    let offset = params.number("offset", 0)?;
    let limit = params.number("limit", PAGE)?.clamp(1, LONGEST_PAGE);
    let wanted = params.get("name").map(str::to_ascii_lowercase);
    let mut total = 0_usize;
    let mut items = Vec::new();
    for row in rows.filter(|row| wanted.as_ref().is_none_or(|wanted| name(row).contains(wanted))) {
        if (offset..offset.saturating_add(limit)).contains(&total) {
            items.push(show(row));
        }
        total += 1;
    }
    Ok(json!({ "total": total, "offset": offset, "limit": limit, "items": items }))
}

fn seconds_since(moment: SystemTime) -> u64 {
    moment.elapsed().unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_paths_are_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/admin.md");
        let documented = std::fs::read_to_string(path).unwrap();
        for path in PATHS.iter().chain(&["POST /drain"]) {
            let row =
                path.strip_prefix('/').map_or_else(|| (*path).to_owned(), |name| format!("GET /{name}"));
            assert!(documented.contains(&format!("\n| `{row}` |")), "docs/admin.md has no row for {row}");
        }
    }

    #[test]
    fn params_are_decoded_and_lists_are_paged() {
        let params = Params::parse("offset=1&limit=2&name=A%2e").unwrap();
        let rows = ["a.x", "b.x", "a.y", "a.z", "a.w"];
        let page = paged(&params, rows.iter(), |row| (*row).to_string(), |row| json!(row)).unwrap();
        assert_eq!(page, json!({ "total": 4, "offset": 1, "limit": 2, "items": ["a.y", "a.z"] }));
        assert!(Params::parse("a=%ff").is_err());
        let wrong = Params::parse("limit=many").unwrap();
        assert!(paged(&wrong, rows.iter(), |row| (*row).to_string(), |row| json!(row)).is_err());
    }
}
