//! Renders the settings in the file's syntax with every default filled in, for `/config` and `check --against`. They
//! hold no secrets.

use serde_json::{Value, json};

use crate::config::settings::{Fixed, Live, Mode, Originate};

/// Renders all settings. Services are referred to by name, because an edit changes their positions.
#[must_use]
pub fn effective(fixed: &Fixed, live: &Live) -> Value {
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
    let listeners: Vec<Value> = binds
        .iter()
        .zip(listeners)
        .map(|(bind, rules)| {
            let default = rules.default.and_then(|index| services.get(index));
            let mut shown = json!({
                "name": bind.name,
                "address": bind.address,
                "ipv6_only": bind.ipv6_only,
                "backlog": bind.backlog,
                "max_connections": rules.max_connections,
                "default": default.map(|service| format!("{}:{}", service.host, service.port)),
                "proxy_protocol": { "from": rules.proxy_from },
            });
            if let (Value::Object(shown), Some(service)) = (&mut shown, &rules.originate) {
                let Originate { service, port, callers, alpn: _, identities: _ } = &**service;
                let own =
                    json!({ "mode": Mode::Originate, "service": service, "port": port, "callers": callers });
                shown.extend(own.as_object().cloned().into_iter().flatten());
            }
            shown
        })
        .collect();
    json!({
        "node": node,
        "workers": workers,
        "listeners": listeners,
        "services": services,
        "limits": limits,
        "timeouts": timeouts,
        "upstream": upstream,
        "relay": relay,
        "tcp": tcp,
        "drain": drain,
        "admin": { "address": admin },
        "metrics": { "address": metrics, "services": service_metrics },
        "health": { "address": health },
        "access_log": access_log,
        "trust": trust,
        "xds": xds,
        "dns": dns,
    })
}
