//! Renders the settings in the file's syntax with every default filled in, for `/config` and `check --against`. They
//! hold no secrets.

use std::sync::Arc;

use isthmus_model::admin::gateway::{Config, ListenerConfig, ORIGINATE, Section};
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::settings::{
    Bind, Callers, Destination, Fixed, Listener, Live, Originate, Service, Sockets,
};

/// Renders all settings. Services are referred to by name, because an edit changes their positions.
#[must_use]
pub fn effective(fixed: &Fixed, live: &Live) -> Config {
    // Destructured completely, so that a new setting cannot be forgotten here.
    let Fixed {
        node,
        workers,
        binds,
        admin,
        metrics,
        health,
        relay,
        tcp,
        access_log,
        audit_log,
        service_metrics,
        trust,
        xds,
        dns,
        follows_bindings: _,
    } = fixed;
    let Live { listeners, services, bindings, capture, limits, timeouts, upstream, drain } = live;
    let listeners = binds.iter().zip(listeners).map(|(bind, rules)| listener(bind, rules, services));
    Config {
        node: section(node),
        workers: *workers as u64,
        listeners: listeners.collect(),
        services: services.iter().map(|service| section(&**service)).collect(),
        bindings: bindings.iter().map(|binding| section(&**binding)).collect(),
        capture: capture.as_ref().map(section),
        limits: section(limits),
        timeouts: section(timeouts),
        upstream: section(upstream),
        relay: section(relay),
        tcp: section(tcp),
        drain: section(drain),
        admin: section(&json!({ "address": admin })),
        metrics: section(&json!({ "address": metrics, "services": service_metrics })),
        health: section(&json!({ "address": health })),
        access_log: section(access_log),
        audit_log: audit_log.as_ref().map_or_else(|| "off".to_owned(), |file| file.display().to_string()),
        trust: trust.as_ref().map(section),
        xds: xds.as_ref().map(section),
        dns: section(dns),
    }
}

fn listener(bind: &Bind, rules: &Listener, services: &[Arc<Service>]) -> ListenerConfig {
    let default = rules.default.and_then(|index| services.get(index));
    let originate = rules.originate.as_deref();
    let service = originate.and_then(|own| match &own.to {
        Destination::Service { host, port } => Some((host, *port)),
        Destination::ListenerPort | Destination::Redirected | Destination::Dialled => None,
    });
    ListenerConfig {
        name: bind.name.clone(),
        address: bind.sockets.to_string(),
        ipv6_only: bind.ipv6_only,
        backlog: bind.backlog,
        max_connections: rules.max_connections,
        default: default.map(|service| format!("{}:{}", service.host, service.port)),
        proxy_protocol: section(&json!({ "from": rules.proxy_from })),
        mode: originate.map(|_| ORIGINATE.to_owned()),
        service: service.map(|(host, _)| host.to_string()),
        port: service.map(|(_, port)| port),
        found_by: originate.and_then(|own| found_by(own, bind)).map(str::to_owned),
        callers: originate.and_then(|own| match &own.callers {
            Callers::OfFile(callers) => Some(callers.iter().map(section).collect()),
            Callers::OfAgent => None,
        }),
    }
}

/// The key by which a listener finds services.
fn found_by(originate: &Originate, bind: &Bind) -> Option<&'static str> {
    match (&originate.to, &bind.sockets) {
        (Destination::Service { .. }, _) => None,
        (Destination::ListenerPort, _) => Some("ports"),
        (Destination::Dialled, Sockets::Virtual) => Some("virtual_addresses"),
        (Destination::Redirected | Destination::Dialled, _) => Some("original_destination"),
    }
}

/// A section of the settings by key; each is a mapping.
fn section(settings: &impl Serialize) -> Section {
    match serde_json::to_value(settings) {
        Ok(Value::Object(section)) => section.into_iter().collect(),
        _ => Section::new(),
    }
}
