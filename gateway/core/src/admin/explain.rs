//! Explains what would happen to a ClientHello, with the same look-up and choice as for a real one but without side
//! effects.

use std::net::IpAddr;

use isthmus_model::{HostName, sni};
use serde_json::{Value, json};

use super::pages::{Params, down, endpoint_page, left_out};
use crate::config::settings::{Mode, Originate};
use crate::control::Control;
use crate::hello::Alpn;
use crate::pick::{Choice, order};
use crate::reason::Reason;
use crate::route::{Query, Route, route};
use crate::snapshot::Snapshot;
use crate::socket;

/// Answers `sni`, `from`, `alpn` and `listener`. Without `listener`: the first that serves the name, else the first that
/// refuses it for another reason than `sni_unmatched`, else the first; and what each of the others would do.
///
/// # Errors
/// The wrong parameter and the remedy.
pub fn explain(params: &Params, control: &Control) -> Result<Value, String> {
    let sni = match params.get("sni") {
        None => None,
        Some(name) => Some(HostName::parse(name).map_err(|error| {
            format!("sni: {error}; the gateway refuses such a ClientHello as hello_malformed")
        })?),
    };
    let source: IpAddr = match params.get("from") {
        None => IpAddr::from([127, 0, 0, 1]),
        Some(from) => from.parse().map_err(|_| "from must be an IP address".to_owned())?,
    };
    let alpn = Alpn::of(params.get("alpn").unwrap_or_default().split(',').filter(|name| !name.is_empty()));
    let binds = &control.process.fixed.binds;
    let named = match params.get("listener") {
        None => None,
        Some(name) => Some(binds.iter().position(|bind| bind.name == name).ok_or_else(|| {
            let names: Vec<_> = binds.iter().map(|bind| bind.name.as_str()).collect();
            format!("no such listener; the listeners are: {}", names.join(", "))
        })?),
    };
    let tables = control.process.tables.load();
    let query = |listener| Query { listener, sni: sni.as_ref(), alpn: &alpn, source: source.to_canonical() };
    let outcomes: Vec<_> = binds
        .iter()
        .enumerate()
        .map(|(listener, _)| match originating(&tables, listener) {
            Some(service) => plaintext(&tables, query(listener), service),
            None => route(&tables, query(listener)),
        })
        .collect();
    // A name that only one listener serves is not refused because another one was asked first.
    let knows = |outcome: &Result<_, Reason>| !matches!(outcome, Err(Reason::SniUnmatched));
    let serves = || outcomes.iter().position(Result::is_ok);
    let listener = named.or_else(serves).or_else(|| outcomes.iter().position(knows)).unwrap_or_default();
    let mut answer = match outcomes.get(listener) {
        Some(Ok(route)) => {
            let mut answer = matched(&tables, route, query(listener).source, control);
            add_ends(&mut answer, route, originating(&tables, listener), query(listener).source);
            answer
        }
        Some(Err(reason)) => refusal(*reason),
        None => return Err("this gateway has no listeners; add one under `listeners`".to_owned()),
    };
    if let Value::Object(answer) = &mut answer {
        let asked = json!({
            "sni": sni,
            "from": query(listener).source,
            "alpn": alpn.iter().map(|name| name.escape_ascii().to_string()).collect::<Vec<_>>(),
            "listener": binds.get(listener).map(|bind| &bind.name),
        });
        answer.insert("asked".to_owned(), asked);
        if named.is_none() {
            let each = binds.iter().zip(&outcomes).map(|(bind, outcome)| match outcome {
                Ok(route) => json!({ "listener": bind.name, "service": route.service.name() }),
                Err(reason) => json!({ "listener": bind.name, "refused": reason }),
            });
            answer.insert("listeners".to_owned(), each.collect());
        }
    }
    Ok(answer)
}

fn originating(tables: &Snapshot, listener: usize) -> Option<&Originate> {
    tables.live.listeners.get(listener)?.originate.as_deref()
}

/// Where a listener for applications without TLS leads. Such a client names nothing; a name that was asked for must be
/// the service's.
fn plaintext(tables: &Snapshot, query: Query<'_>, service: &Originate) -> Result<Route, Reason> {
    let (asked, _port) = query.sni.map(|name| sni::split(name.as_str())).unzip();
    if asked.is_some_and(|asked| asked != service.service.as_str()) {
        return Err(Reason::SniUnmatched);
    }
    if service.caller(query.source).is_none() {
        return Err(Reason::IdentityDenied);
    }
    let (sni, alpn) = service.question();
    route(tables, Query { sni: sni.as_ref(), alpn: &alpn, ..query })
}

/// Adds what the gateway itself speaks on either side.
fn add_ends(answer: &mut Value, route: &Route, originate: Option<&Originate>, source: IpAddr) {
    let Value::Object(answer) = answer else { return };
    let is_door = route.service.access().is_some();
    if let Some(service) = originate {
        answer.insert("mode".to_owned(), json!(Mode::Originate));
        answer.insert("caller".to_owned(), json!(service.caller(source).map(|(_, caller)| &caller.identity)));
        answer.insert("expects".to_owned(), json!(service.identities));
    }
    if is_door {
        answer.insert("tls".to_owned(), json!("terminate"));
    }
}

fn refusal(reason: Reason) -> Value {
    json!({
        "refused": reason,
        "meaning": reason.meaning(),
        "alert": reason.alert().map(|alert| alert as u8),
    })
}

fn matched(tables: &Snapshot, route: &Route, source: IpAddr, control: &Control) -> Value {
    let service = &route.service;
    let now = socket::now();
    let choice = Choice {
        instance: route.instance.as_ref(),
        side: route.side,
        tried: &[],
        source,
        turn: service.state.turn(),
        off: control.process.families.off(now),
        now,
    };
    let attempts = tables.live.upstream.attempts as usize;
    let endpoints = order(service, &choice, attempts, &mut fastrand::Rng::new());
    let mut answer = json!({
        "service": service.name(),
        "instance": route.instance,
        "balance": service.rules.balance,
        "endpoints": endpoints.iter().map(|endpoint| endpoint_page(endpoint, Some(source))).collect::<Vec<_>>(),
        "down": left_out(service, &down(control)),
    });
    let full = service.rules.max_connections.is_some_and(|most| service.state.active() >= most);
    let refused = match (endpoints.is_empty(), full) {
        (true, _) if service.endpoints.is_empty() && service.leads_back => Some(Reason::Loop),
        (true, _) => Some(Reason::NoEndpoint),
        (false, true) => Some(Reason::LimitService),
        (false, false) => None,
    };
    if let (Value::Object(answer), Some(Value::Object(refusal))) = (&mut answer, refused.map(refusal)) {
        answer.extend(refusal);
    }
    answer
}
