//! Renders `/status` from the running gateway, without changing it.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use isthmus_model::admin::gateway::{
    AbortedPart, AgentContact, AwaitedTrust, Bindings, Certificate, Connections, Domain, DownEndpoint,
    EndpointHealth, Issued, LastRefusedEdit, Listener, LoadedTrust, Matrix, Node, NotOpen, Pipes, Probed,
    Reloads, Renewal, Resolved, Status, Tables, Trust, UnhealthyEndpoint, Worker,
};

use crate::config::settings::{self, Bind};
use crate::control::{self, Answer, Control, Following, Refused, Unreached};
use crate::health::{Health, Unhealthy};
use crate::issued::Report;
use crate::log::rfc3339;
use crate::snapshot;

/// Addresses listed of those that are not open, and of those that several hosts claim; parts taken out of their splits.
const MAX_LISTED: usize = 100;

/// Renders the state of a gateway.
#[must_use]
pub fn status(control: &Control) -> Status {
    let process = &control.process;
    let tables = process.tables.load();
    let names = control.answers.all().into_iter().map(|(name, answer)| (name.to_string(), resolved(answer)));
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: node(&process.fixed.node),
        phase: control.phase.borrow().word().to_owned(),
        ready: control.is_ready(),
        started: rfc3339(control.started),
        uptime_seconds: seconds_since(control.started),
        workers: control
            .workers
            .iter()
            .map(|worker| Worker { connections: worker.live.len() as u64 })
            .collect(),
        listeners: process
            .fixed
            .binds
            .iter()
            .enumerate()
            .map(|(index, bind)| listener(control, index, bind))
            .collect(),
        connections: Connections {
            open: process.limits.total(),
            limit: process.limits.descriptors().min(tables.live.limits.connections),
            descriptors_allow: process.limits.descriptors(),
            lingering: process.limits.lingering(),
        },
        tables: Tables {
            epoch: tables.epoch,
            changed: rfc3339(control.changed()),
            age_seconds: seconds_since(control.changed()),
            services: tables.len() as u64,
            endpoints: tables.endpoints() as u64,
        },
        bindings: bindings(&tables.bindings),
        names: names.collect(),
        reloads: Reloads {
            applied: process.metrics.reloads.load(Relaxed),
            refused: process.metrics.reloads_refused.load(Relaxed),
        },
        last_refused_edit: control
            .last_refused()
            .map(|Refused { why, at }| LastRefusedEdit { why, at: rfc3339(at) }),
        endpoints_failing: process.health.suspects.failing() as u64,
        endpoint_health: endpoint_health(&process.health),
        matrix: matrix(control),
        split_aborts: split_aborts(&tables),
        hello_memory_bytes: process.limits.hellos.held() as u64,
        hellos_given_up: process.limits.hellos.revoked(),
        pipes: Pipes {
            limit: process.fixed.relay.pipes as u64,
            open: control.workers.iter().map(|worker| worker.pipes.open() as u64).sum(),
            denied: control.workers.iter().map(|worker| worker.pipes.denied()).sum(),
        },
        agent: process.fixed.xds.as_ref().map(|_| agent(&control.following.borrow())),
        state: control.state.get().map(|health| health.report()),
        trust: trust(control),
        access_log_dropped: process.metrics.log_dropped.load(Relaxed),
    }
}

/// Renders how the gateway reaches other clusters' gateways.
#[must_use]
pub fn matrix(control: &Control) -> Matrix {
    let found = control.matrix.rows();
    Matrix { rows: found.rows.clone(), cut_off_since: found.cut_off_since, left_out: found.left_out as u64 }
}

fn split_aborts(tables: &snapshot::Snapshot) -> Vec<AbortedPart> {
    let splits = tables.services().filter_map(|service| Some((service, service.split()?)));
    let aborted = splits.flat_map(|(service, split)| {
        let parts = split.written().filter(|(_, part)| part.is_aborted());
        parts.map(|(written, _)| AbortedPart {
            service: service.name().to_string(),
            part: written.to.to_string(),
        })
    });
    aborted.take(MAX_LISTED).collect()
}

fn node(node: &settings::Node) -> Node {
    let settings::Node { id, cluster, network, locality } = node.clone();
    Node { id, cluster, network, locality }
}

fn listener(control: &Control, index: usize, bind: &Bind) -> Listener {
    let process = &control.process;
    let what = format!("listener {}", bind.name);
    let bound = process.own.get().into_iter().flatten().find(|bound| bound.what == what);
    let sockets = process.binding_sockets.report(index);
    let counters = process.metrics.workers.iter().filter_map(|worker| worker.listeners.get(index));
    Listener {
        name: bind.name.clone(),
        address: bound.map_or_else(|| bind.sockets.to_string(), |bound| bound.address.to_string()),
        open: bind.sockets.address().is_none().then_some(sockets.open as u64),
        not_open: sockets.refused.into_iter().take(MAX_LISTED).map(not_open).collect(),
        connections: process.limits.on_listener(index),
        accepted: counters.map(|counters| counters.accepted.load(Relaxed)).sum(),
    }
}

fn not_open((address, why): (SocketAddr, String)) -> NotOpen {
    NotOpen { address: address.to_string(), why }
}

fn bindings(bindings: &snapshot::Bindings) -> Bindings {
    Bindings {
        hosts: bindings.len() as u64,
        callers: bindings.callers().len() as u64,
        conflicts: bindings.conflicts().iter().take(MAX_LISTED).cloned().collect(),
    }
}

fn resolved(answer: Answer) -> Resolved {
    Resolved {
        addresses: answer.addresses.iter().map(ToString::to_string).collect(),
        confirmed: answer.confirmed.map(rfc3339),
        problem: answer.problem,
    }
}

fn agent(following: &Following) -> AgentContact {
    let Following { agent, connected, since, error, slices, refusals, refusal, probed } = following.clone();
    let probed = probed.map(|control::Probed { addresses, down, listed }| Probed {
        addresses: addresses as u64,
        down: down as u64,
        listed: listed.into_iter().map(down_endpoint).collect(),
    });
    AgentContact {
        agent,
        connected,
        since: rfc3339(since),
        error,
        slices: slices as u64,
        refusals,
        refusal,
        probed,
    }
}

pub(super) fn down_endpoint(down: Unreached) -> DownEndpoint {
    DownEndpoint { address: down.address, since: rfc3339(down.since), why: down.why }
}

fn trust(control: &Control) -> Option<Trust> {
    let process = &control.process;
    let Some(trust) = process.trust.get() else {
        let awaited = AwaitedTrust { identity: (), problem: control.renewal.problem() };
        return process.fixed.trust.as_ref().map(|_| Trust::Awaited(awaited));
    };
    let current = trust.current();
    let renewal = |due| Renewal { due: rfc3339(due), problem: control.renewal.problem() };
    let certificates = control.expiries().into_iter().map(|expiry| Certificate {
        kind: expiry.kind.to_string(),
        name: expiry.name,
        serial: expiry.serial,
        not_after: humantime::format_rfc3339_seconds(expiry.not_after.into()).to_string(),
    });
    let domains = current.bundles.iter().map(|(domain, bundle)| Domain {
        trust_domain: domain.to_string(),
        sequence: Some(bundle.sequence),
        denied: current.bundles.denied(domain).map(|list| list.sequence()),
    });
    Some(Trust::Loaded(LoadedTrust {
        identity: current.identity.id().to_string(),
        renewal: control.renewal.due().map(renewal),
        epoch: current.epoch,
        certificates: certificates.collect(),
        domains: domains.collect(),
        refused: control.refused_files(),
        issued: control.process.tables.load().ends.issued.report().into_iter().map(issued).collect(),
    }))
}

fn issued(report: Report) -> Issued {
    let text = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
    Issued {
        identity: report.identity.to_string(),
        not_after: report.until.map(text),
        due: report.due.map(text),
        problem: report.problem,
    }
}

fn endpoint_health(health: &Health) -> EndpointHealth {
    let unhealthy = health.unhealthy();
    EndpointHealth {
        probed: health.endpoints() as u64,
        stretch: health.stretch(),
        unhealthy: unhealthy.len() as u64,
        listed: unhealthy.into_iter().take(MAX_LISTED).map(unhealthy_endpoint).collect(),
    }
}

fn unhealthy_endpoint(one: Unhealthy) -> UnhealthyEndpoint {
    UnhealthyEndpoint {
        service: format!("{}:{}", one.host, one.port),
        address: one.endpoint.to_string(),
        cluster: one.cluster.map(Into::into),
        since: rfc3339(one.since),
        why: one.why.to_string(),
    }
}

fn seconds_since(moment: SystemTime) -> u64 {
    moment.elapsed().unwrap_or_default().as_secs()
}
