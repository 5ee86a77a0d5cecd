//! Renders the settings in the file's syntax with every default filled in, for `/config` and `check --against`. They
//! hold no secrets.

use isthmus_model::admin::gateway::{Config, ListenerConfig, ORIGINATE, Section};
use serde::Serialize;
use serde_json::{Value, json};

use crate::config::settings::{Fixed, Live};

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
        service_metrics,
        trust,
        xds,
        dns,
    } = fixed;
    let Live { listeners, services, limits, timeouts, upstream, drain } = live;
    let listeners = binds.iter().zip(listeners).map(|(bind, rules)| {
        let default = rules.default.and_then(|index| services.get(index));
        let originate = rules.originate.as_deref();
        ListenerConfig {
            name: bind.name.clone(),
            address: bind.address.to_string(),
            ipv6_only: bind.ipv6_only,
            backlog: bind.backlog,
            max_connections: rules.max_connections,
            default: default.map(|service| format!("{}:{}", service.host, service.port)),
            proxy_protocol: section(&json!({ "from": rules.proxy_from })),
            mode: originate.map(|_| ORIGINATE.to_owned()),
            service: originate.map(|own| own.service.to_string()),
            port: originate.map(|own| own.port),
            callers: originate.map(|own| own.callers.iter().map(section).collect()),
        }
    });
    Config {
        node: section(node),
        workers: *workers as u64,
        listeners: listeners.collect(),
        services: services.iter().map(|service| section(&**service)).collect(),
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
        trust: trust.as_ref().map(section),
        xds: xds.as_ref().map(section),
        dns: section(dns),
    }
}

/// A section of the settings by key; each is a mapping.
fn section(settings: &impl Serialize) -> Section {
    match serde_json::to_value(settings) {
        Ok(Value::Object(section)) => section.into_iter().collect(),
        _ => Section::new(),
    }
}
