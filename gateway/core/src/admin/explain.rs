//! Explains what would happen to a ClientHello, with the same look-up and choice as for a real one but without side
//! effects.

use std::net::IpAddr;

use isthmus_model::access::{Caller, Decision, Verdict};
use isthmus_model::admin::gateway::{
    Asked, Ends, Explanation, Matched, ORIGINATE, Outcome, Refusal, TERMINATE,
};
use isthmus_model::{HostName, sni};

use super::pages::Params;
use super::tables::{down, endpoint_page, left_out};
use crate::access;
use crate::config::settings::Originate;
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
pub(super) fn explain(params: &Params, control: &Control) -> Result<Explanation, String> {
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
    let (matched, reason) = match outcomes.get(listener) {
        Some(Ok(route)) => {
            let (matched, reason) = matched(&tables, route, query(listener).source, control);
            let access = Access::of(route, originating(&tables, listener), query(listener).source);
            (Some(matched), access.and_then(|access| access.refusal()).or(reason))
        }
        Some(Err(reason)) => (None, Some(*reason)),
        None => return Err("this gateway has no listeners; add one under `listeners`".to_owned()),
    };
    let route = outcomes.get(listener).and_then(|outcome| outcome.as_ref().ok());
    let ends = route.map(|route| ends(route, originating(&tables, listener), query(listener).source));
    let each = binds.iter().zip(&outcomes).map(|(bind, outcome)| Outcome {
        listener: bind.name.clone(),
        service: outcome.as_ref().ok().map(|route| route.service.name().to_string()),
        refused: outcome.as_ref().err().map(ToString::to_string),
    });
    Ok(Explanation {
        asked: Asked {
            sni: sni.as_ref().map(ToString::to_string),
            from: query(listener).source.to_string(),
            alpn: alpn.iter().map(|name| name.escape_ascii().to_string()).collect(),
            listener: binds.get(listener).map(|bind| bind.name.clone()),
        },
        listeners: named.is_none().then(|| each.collect()),
        matched,
        ends: ends.unwrap_or_default(),
        refusal: reason.map(refusal),
    })
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

/// What the rules of a service say about a caller.
struct Access<'a> {
    caller: Caller<'a>,
    decision: Decision<'a>,
}

impl<'a> Access<'a> {
    /// `None` without rules, and where only the handshake tells who calls.
    fn of(route: &'a Route, originate: Option<&'a Originate>, source: IpAddr) -> Option<Access<'a>> {
        let service = &route.service;
        let caller = originate.and_then(|originate| originate.caller(source));
        let identity = caller.map(|(_, caller)| &caller.identity);
        if identity.is_none() && service.ends_tls() {
            return None;
        }
        let caller = Caller { identity, source, port: service.port };
        Some(Access { decision: service.access()?.decide(&caller), caller })
    }

    fn refusal(&self) -> Option<Reason> {
        (self.decision.verdict == Verdict::Denied).then(|| access::refusal(&self.caller))
    }
}

/// What the gateway itself speaks on either side.
fn ends(route: &Route, originate: Option<&Originate>, source: IpAddr) -> Ends {
    let caller = originate.and_then(|service| service.caller(source));
    Ends {
        mode: originate.map(|_| ORIGINATE.to_owned()),
        caller: caller.map(|(_, caller)| caller.identity.to_string()),
        expects: originate.map(|service| service.identities.iter().map(ToString::to_string).collect()),
        access: Access::of(route, originate, source).map(|asked| asked.decision.to_string()),
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

/// The service and its endpoints in order, and why it would refuse a connection all the same.
fn matched(tables: &Snapshot, route: &Route, source: IpAddr, control: &Control) -> (Matched, Option<Reason>) {
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
    let matched = Matched {
        service: service.name().to_string(),
        instance: route.instance.as_ref().map(ToString::to_string),
        balance: service.rules.balance,
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
