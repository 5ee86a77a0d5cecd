//! Compares edits with the settings that are bound at start.

use crate::config::settings::Fixed;

/// Returns the changed keys that need a restart, as written in the file.
pub(super) fn needs_restart(running: &Fixed, edit: &Fixed) -> Option<String> {
    let differs = [
        ("node", running.node != edit.node),
        ("workers", running.workers != edit.workers),
        (
            "listeners[].name, address, ports, virtual_addresses, ipv6_only or backlog, or original_destination: tproxy",
            running.binds != edit.binds,
        ),
        (
            "listeners[]: the first that needs bindings or callers of the agent",
            edit.follows_bindings && !running.follows_bindings,
        ),
        ("admin.address", running.admin != edit.admin),
        ("metrics.address", running.metrics != edit.metrics),
        ("metrics.services", running.service_metrics != edit.service_metrics),
        ("health.address", running.health != edit.health),
        ("relay", running.relay != edit.relay),
        ("tcp", running.tcp != edit.tcp),
        ("access_log", running.access_log != edit.access_log),
        ("audit_log", running.audit_log != edit.audit_log),
        ("trust", running.trust != edit.trust),
        ("xds", running.xds != edit.xds),
        ("dns", running.dns != edit.dns),
    ];
    let keys: Vec<_> = differs.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect();
    (!keys.is_empty()).then(|| keys.join(", "))
}
