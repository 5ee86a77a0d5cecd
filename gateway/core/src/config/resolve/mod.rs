//! Turns the raw file into valid settings and reports all problems it finds, not only the first. Parsing is in
//! [`isthmus_model::yaml`].

mod access;
mod bindings;
mod capture;
mod destination;
mod ends;
mod general;
mod listeners;
mod originate;
mod traffic;
mod trust;
mod xds;

use std::sync::Arc;

use isthmus_model::problem::Report;
use isthmus_model::services::{Refusal, Service, Table};
use isthmus_model::traffic::Traffic;

use crate::config::raw::File;
use crate::config::settings::{Fixed, Listener, Live, Node, Settings};
use crate::priorities::{Position, compact};

pub(crate) use trust::{gateway_of, read as read_token};

/// Returns the settings, valid only if nothing was reported; `None` if a part could not be made at all.
pub(crate) fn resolve(report: &mut Report, mut raw: File) -> Option<Settings> {
    let binds = listeners::binds(report, &raw);
    let ports = listeners::ports(report, &raw, &binds);
    let (timeouts, service_timeouts) = general::timeouts(report, raw.timeouts.take().unwrap_or_default());

    let mut own = listeners::own(&binds, &ports);
    let refuse = |address| {
        let what = format!("{address} is this gateway's own {}", own.reached_by(address)?);
        Some(Refusal { what, remedy: "write the address of the server itself" })
    };
    let table = Table::new(report, raw.services.as_deref().unwrap_or_default(), &service_timeouts, refuse);
    traffic::check(report, &raw, &table);
    let listeners = listeners::listeners(report, &raw, &table);
    ends::check(report, &raw, &listeners, &table);
    access::check(report, &table);
    let bindings = bindings::bindings(report, &raw, &table);
    let capture = raw.capture.as_ref().and_then(|capture| {
        capture::capture(
            report,
            capture,
            &capture::Surroundings { raw: &raw, binds: &binds, ports: &ports, services: &table },
        )
    });
    let services: Vec<_> = table.into_services().collect();

    let service_metrics = general::service_metrics(report, &raw);
    let xds = xds::xds(report, &raw);
    let follows_bindings = xds::has_agents(&raw) && listeners.iter().any(Listener::needs_bindings);
    let trust = trust::trust(report, &raw);
    let fixed = Fixed {
        workers: general::workers(report, &raw),
        node: general::node(report, raw.node.unwrap_or_default()),
        binds: binds.into_iter().collect::<Option<Vec<_>>>()?,
        admin: ports.admin,
        metrics: ports.metrics,
        health: ports.health,
        relay: general::relay(report, &raw.relay.unwrap_or_default()),
        tcp: general::tcp(report, &raw.tcp.unwrap_or_default()),
        access_log: general::access_log(report, &raw.access_log.unwrap_or_default()),
        audit_log: general::audit_log(report, raw.audit_log.as_ref()),
        service_metrics,
        trust,
        xds,
        dns: general::dns(report, &raw.dns.unwrap_or_default()),
        follows_bindings,
    };
    let live = Live {
        listeners,
        services: placed(services, &fixed.node),
        bindings,
        capture,
        limits: general::limits(report, &raw.limits.unwrap_or_default()),
        timeouts,
        upstream: general::upstream(report, raw.upstream.unwrap_or_default()),
        drain: general::drain(report, &raw.drain.unwrap_or_default()),
    };
    Some(Settings { fixed, live })
}

/// Returns services with the priorities of their endpoints, all of the own cluster, and their parts of the split.
fn placed(services: Vec<Service>, node: &Node) -> Vec<Arc<Service>> {
    let position = Position { cluster: node.cluster.clone(), locality: node.locality.clone() };
    let place = |mut service: Service| {
        let traffic = service.traffic.clone().unwrap_or_else(Traffic::unwritten);
        for endpoint in &mut service.endpoints {
            position.place(endpoint, &traffic, &node.cluster, 0);
        }
        compact(&mut service.endpoints);
        Arc::new(service)
    };
    services.into_iter().map(place).collect()
}
