//! Explains what would happen to a ClientHello, with the same look-up and choice as for a real one but without side
//! effects.

use std::net::{IpAddr, SocketAddr};

use isthmus_certs::SpiffeId;
use isthmus_model::admin::gateway::{
    Asked, Ends, Explanation, Matched, ORIGINATE, Outcome, Priority, Refusal, SplitPart, TERMINATE,
};
use isthmus_model::{HostName, sni, traffic};

use super::decision::{Asking, Prediction};
use super::pages::Params;
use super::tables::{down, endpoint_page, left_out};
use crate::config::settings::{Bind, Destination, Originate, Side, Sockets};
use crate::control::Control;
use crate::hello::Alpn;
use crate::originate;
use crate::pick::{Choice, order};
use crate::reason::Reason;
use crate::route::{Query, Route, route};
use crate::snapshot::{Part, Service, Snapshot};
use crate::socket::{self, Millis};

/// What is asked.
struct Question {
    sni: Option<HostName>,
    source: IpAddr,
    /// The identity that the client is said to have.
    claimed: Option<SpiffeId>,
    alpn: Alpn,
}

impl Question {
    fn read(params: &Params) -> Result<Question, String> {
        let sni = params.get("sni").map(HostName::parse).transpose();
        let sni = sni.map_err(|error| {
            format!("sni: {error}; the gateway refuses such a ClientHello as hello_malformed")
        })?;
        let source = params.get("from").map_or(Ok(IpAddr::from([127, 0, 0, 1])), str::parse);
        let source = source.map_err(|_| "from must be an IP address".to_owned())?;
        let claimed = params.get("as").map(SpiffeId::parse).transpose();
        let claimed = claimed.map_err(|error| format!("as: {error}"))?;
        let alpn = Alpn::from_protocols(
            params.get("alpn").unwrap_or_default().split(',').filter(|name| !name.is_empty()),
        );
        Ok(Question { sni, source: source.to_canonical(), claimed, alpn })
    }
}

/// Answers `sni`, `from`, `as`, `alpn` and `listener`. Without `listener`: the first that serves the name, else the first that
/// refuses it for another reason than `sni_unmatched`, else the first; and what each of the others would do.
///
/// # Errors
/// The wrong parameter and the remedy.
pub(super) fn explain(params: &Params, control: &Control) -> Result<Explanation, String> {
    let Question { sni, source, claimed, alpn } = Question::read(params)?;
    let binds = &control.process.fixed.binds;
    let named = match params.get("listener") {
        None => None,
        Some(name) => Some(binds.iter().position(|bind| bind.name == name).ok_or_else(|| {
            let names: Vec<_> = binds.iter().map(|bind| bind.name.as_str()).collect();
            format!("no such listener; the listeners are: {}", names.join(", "))
        })?),
    };
    let tables = control.process.tables.load();
    let query = |listener| Query { listener, sni: sni.as_ref(), alpn: Some(&alpn), source };
    let outcomes: Vec<_> = binds
        .iter()
        .enumerate()
        .map(|(listener, bind)| match originating(&tables, listener) {
            Some(originate) => plaintext(&tables, query(listener), originate, bind),
            None => route(&tables, query(listener)),
        })
        .collect();
    // A name that only one listener serves is not refused because another one was asked first.
    let knows = |outcome: &Result<_, Reason>| !matches!(outcome, Err(Reason::SniUnmatched));
    let serves = || outcomes.iter().position(Result::is_ok);
    let listener = named.or_else(serves).or_else(|| outcomes.iter().position(knows)).unwrap_or_default();
    let asking = Asking {
        by_address: originate::identity(&tables, listener, source),
        claimed: claimed.as_ref(),
        source,
    };
    let mut ends = Ends::default();
    let (matched, reason) = match outcomes.get(listener) {
        Some(Ok(route)) => {
            let prediction = asking.predict(route, control);
            let (matched, reason) = matched(&tables, route, &asking, control);
            ends = ends_of(route, originating(&tables, listener), &asking, &prediction);
            ends.reached_at = reached(&tables, route, listener, binds);
            (Some(matched), prediction.refusal.or(reason))
        }
        Some(Err(reason)) => (None, Some(*reason)),
        None => return Err("this gateway has no listeners; add one under `listeners`".to_owned()),
    };
    let each = binds.iter().zip(&outcomes).map(|(bind, outcome)| Outcome {
        listener: bind.name.clone(),
        service: outcome.as_ref().ok().map(|route| route.service.name().to_string()),
        refused: outcome.as_ref().err().map(ToString::to_string),
    });
    Ok(Explanation {
        asked: Asked {
            sni: sni.as_ref().map(ToString::to_string),
            from: source.to_string(),
            identity: claimed.as_ref().map(ToString::to_string),
            alpn: alpn.iter().map(|name| name.escape_ascii().to_string()).collect(),
            listener: binds.get(listener).map(|bind| bind.name.clone()),
        },
        listeners: named.is_none().then(|| each.collect()),
        matched,
        ends,
        refusal: reason.map(refusal),
    })
}

fn originating(tables: &Snapshot, listener: usize) -> Option<&Originate> {
    tables.live.listeners.get(listener)?.originate.as_deref()
}

/// Where a listener for applications without TLS leads. Such a client names nothing; a name that was asked for must be
/// that of a service that it reaches.
fn plaintext(
    tables: &Snapshot,
    query: Query<'_>,
    originate: &Originate,
    bind: &Bind,
) -> Result<Route, Reason> {
    let route = match &originate.to {
        Destination::Service { host, port } => {
            let (asked, _port) = query.sni.map(|name| sni::split(name.as_str())).unzip();
            if asked.is_some_and(|asked| asked != host.as_str()) {
                return Err(Reason::SniUnmatched);
            }
            let sni = HostName::parse(sni::name(host.as_str(), *port)).ok();
            route(tables, Query { sni: sni.as_ref(), alpn: None, ..query })?
        }
        Destination::ListenerPort | Destination::Redirected | Destination::Dialled => {
            let route = route(tables, Query { alpn: None, ..query })?;
            if reached_at(tables, &route, originate, bind).is_empty() {
                return Err(Reason::DestinationUnmatched);
            }
            route
        }
    };
    originate::Caller::find(originate, tables, query.source).ok_or(Reason::IdentityDenied)?;
    Ok(route)
}

fn reached(tables: &Snapshot, route: &Route, listener: usize, binds: &[Bind]) -> Vec<String> {
    let Some((originate, bind)) = originating(tables, listener).zip(binds.get(listener)) else {
        return Vec::new();
    };
    reached_at(tables, route, originate, bind).iter().map(ToString::to_string).collect()
}

/// Returns where an application reaches a service on a listener, as bindings say.
fn reached_at(tables: &Snapshot, route: &Route, originate: &Originate, bind: &Bind) -> Vec<SocketAddr> {
    let (bindings, port) = (&tables.bindings, route.service.port);
    let host = match &route.instance {
        Some(instance) => format!("{instance}.{}", route.service.host),
        None => route.service.host.to_string(),
    };
    let Some(binding) = bindings.get(&host) else { return Vec::new() };
    let is_it = |found: Option<(&HostName, u16)>| found == Some((&binding.host, port));
    match (&originate.to, &bind.sockets) {
        (Destination::ListenerPort, Sockets::Ports(ip, range)) => {
            let ports = binding.ports.iter().filter_map(|bound| bound.listener_port);
            let ports = ports.filter(|port| range.contains(*port) && is_it(bindings.at_listener_port(*port)));
            ports.map(|port| SocketAddr::new(*ip, port)).collect()
        }
        (Destination::Redirected | Destination::Dialled, _) => {
            let all = binding.addresses().map(|ip| SocketAddr::new(ip, port));
            all.filter(|address| is_it(bindings.at(*address))).collect()
        }
        (Destination::Service { .. } | Destination::ListenerPort, _) => Vec::new(),
    }
}

/// What the gateway itself speaks on either side, and what is decided about the caller.
fn ends_of(
    route: &Route,
    originate: Option<&Originate>,
    asking: &Asking<'_>,
    prediction: &Prediction<'_>,
) -> Ends {
    Ends {
        mode: originate.map(|_| ORIGINATE.to_owned()),
        caller: asking.by_address.map(ToString::to_string),
        reached_at: Vec::new(),
        expects: originate.map(|_| route.service.identities().iter().map(ToString::to_string).collect()),
        access: prediction.decision.as_ref().map(ToString::to_string),
        decision: prediction.page(),
        tls: route.service.ends_tls().then(|| TERMINATE.to_owned()),
    }
}

fn refusal(reason: Reason) -> Refusal {
    Refusal {
        refused: reason.to_string(),
        meaning: reason.meaning().to_owned(),
        alert: reason.alert().map(|alert| alert as u8),
    }
}

fn split_part((written, part): (&traffic::SplitPart, &Part)) -> SplitPart {
    SplitPart { to: written.to.to_string(), weight: written.weight, aborted: part.is_aborted() }
}

/// The priorities of a service by part, and what each receives of the part's connections.
fn priorities(service: &Service, side: Side, now: Millis) -> Vec<Priority> {
    let loads = service.loads(now);
    let parts: Vec<_> = service.split().iter().flat_map(|split| split.written()).collect();
    let groups = service.groups().zip(loads.of_side(side)).filter_map(|(group, load)| {
        let (part, priority) = group.endpoints(service).first()?.place();
        Some(Priority {
            part: parts.get(usize::from(part)).map(|(written, _)| written.to.to_string()),
            priority,
            endpoints: group.endpoints(service).len() as u64,
            health: load.health,
            share: load.per_cent,
            panic: load.panics,
        })
    });
    groups.collect()
}

/// The service and its endpoints in order, and why it would refuse a connection all the same.
fn matched(
    tables: &Snapshot,
    route: &Route,
    asking: &Asking<'_>,
    control: &Control,
) -> (Matched, Option<Reason>) {
    let (service, source) = (&route.service, asking.source);
    let now = socket::now();
    let choice = Choice {
        instance: route.instance.as_ref(),
        side: route.side,
        tried: &[],
        source,
        identity: asking.seen(service),
        turn: service.state.turn(),
        off: control.process.families.off(now),
        now,
    };
    let split = service.split().filter(|_| route.instance.is_none());
    let attempts = tables.live.upstream.attempts as usize;
    let endpoints = order(service, &choice, attempts, &mut fastrand::Rng::new());
    let matched = Matched {
        service: service.name().to_string(),
        instance: route.instance.as_ref().map(ToString::to_string),
        balance: service.rules.balance,
        traffic: service.rules.traffic.to_string(),
        split: split.iter().flat_map(|split| split.written()).map(split_part).collect(),
        priorities: priorities(service, route.side, now),
        endpoints: endpoints.iter().map(|endpoint| endpoint_page(endpoint, Some(source))).collect(),
        down: left_out(service, &down(control)),
    };
    let full = service.rules.max_connections.is_some_and(|most| service.state.active() >= most);
    let refused = match (endpoints.is_empty(), full) {
        (true, _) if service.endpoints.is_empty() && service.leads_back => Some(Reason::Loop),
        (true, _) => Some(Reason::NoEndpoint),
        (false, true) => Some(Reason::LimitService),
        (false, false) => None,
    };
    (matched, refused)
}
