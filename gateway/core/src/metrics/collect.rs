//! Renders the metrics for Prometheus. One table defines each metric with its labels, help and source;
//! `docs/metrics.md` documents the same table.

mod reached;
mod render;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use isthmus_certs::trust::Expiry;
use isthmus_model::matrix::State;
use isthmus_store::StoreHealth;
use prometheus::TextEncoder;
use prometheus::proto::{self, MetricFamily};

use self::reached::{attempts, ejections, hedges, matrix, seconds};
use self::render::family;
use super::{BUCKETS, Histogram, ListenerCounters, PROBES, WorkerCounters};
use crate::control::{Control, Following, Probed};
use crate::demotion::Outcome;
use crate::drain::Phase;
use crate::endpoint::ServiceState;
use crate::gateways::RESULTS;
use crate::reason::Reason;

/// One family of metrics.
pub struct Definition {
    /// Name, with its prefix.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: &'static str,
    /// Labels, in order.
    pub labels: &'static [&'static str],
    /// Help text.
    pub help: &'static str,
    read: fn(&Control) -> Vec<Sample>,
}

impl std::fmt::Debug for Definition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

enum Value {
    Number(f64),
    Histogram(proto::Histogram),
}

/// A value and its labels, in the definition's order.
struct Sample(Vec<String>, Value);

macro_rules! metrics {
    ($($name:literal $kind:ident [$($label:literal),*] $help:literal = $read:expr;)+) => {
        /// All exported metrics.
        pub const ALL: &[Definition] = &[$(Definition {
            name: concat!("isthmus_", $name),
            kind: stringify!($kind),
            labels: &[$($label),*],
            help: $help,
            read: $read,
        },)+];
    };
}

metrics! {
    "connections_accepted_total" counter ["listener"] "Client connections accepted."
        = |control| by_listener(control, |counters| &counters.accepted);
    "connections_active" gauge ["listener"] "Open client connections."
        = |control| listeners(control).map(|(index, name)| one([name], control.process.limits.on_listener(index))).collect();
    "connections_ended_total" counter ["listener", "reason"] "Connections ended or refused, by reason."
        = ended;
    "bytes_total" counter ["listener", "direction"] "Bytes relayed by ended connections; `in` from clients, `out` from servers."
        = bytes;
    "hello_seconds" histogram [] "Time from accept to a complete ClientHello."
        = |control| histogram(control, |counters| &counters.hello);
    "connect_seconds" histogram [] "Time from the ClientHello to a connected endpoint, including failed attempts."
        = |control| histogram(control, |counters| &counters.connect);
    "first_byte_seconds" histogram [] "Time from the connected endpoint to the server's first byte."
        = |control| histogram(control, |counters| &counters.first_byte);
    "duration_seconds" histogram [] "Time from accept to the end of the connection."
        = |control| histogram(control, |counters| &counters.duration);
    "attempts_failed_total" counter ["reason"] "Failed attempts to reach an endpoint, by reason; most are followed by another attempt."
        = |control| attempts(control, |counters| &counters.failures);
    "moves_total" counter ["reason"] "Connections moved to another endpoint, by the reason of the failed attempt."
        = |control| attempts(control, |counters| &counters.moves);
    "hedges_total" counter ["result"] "Second connects begun because the first was slow, by result: `won` if the second endpoint serves the connection, otherwise `lost`."
        = hedges;
    "lost_after_bytes_total" counter [] "Connections that a server reset or left without an answer when they could no longer move to another endpoint."
        = |control| total(control, |counters| &counters.lost);
    "replays_total" counter [] "ClientHellos replayed to another endpoint because the first one rejected them."
        = |control| total(control, |counters| &counters.replays);
    "ejections_total" counter [] "Endpoint ejections after failed connects or unanswered ClientHellos of the gateway itself."
        = ejections;
    "demotions_total" counter [] "Endpoint demotions (tried last for a while) after rejected ClientHellos or failed connects."
        = |control| total(control, |counters| &counters.demotions);
    "split_aborts_total" counter [] "Parts taken out of their split because too many of their connections failed (`abort_if`)."
        = |control| vec![one([], sum([&control.process.metrics.split_aborts]))];
    "hello_checks_total" counter ["result"] "The gateway's own ClientHellos to demoted endpoints, by result: `answered`, `alert`, `closed`, `reset`, `silent`, `unreached`, `not_served` by another cluster's gateway, or `not_asked` if this machine could not send one."
        = hello_checks;
    "endpoints_failing" gauge [] "Endpoints that do not answer the gateway's own ClientHello and are tried last until they do."
        = |control| vec![one([], float(control.process.health.suspects.failing()))];
    "endpoints_unhealthy" gauge [] "Endpoints that are ejected or have failed their probes; they get no new connections while others are healthy."
        = |control| vec![one([], float(control.process.health.count()))];
    "endpoints_probed" gauge [] "Endpoints of services with `health.probe`."
        = |control| vec![one([], float(control.process.health.endpoints()))];
    "probes_total" counter ["probe", "result"] "Probes of services with `health.probe`, by kind and result, with the results of `isthmus_hello_checks_total` and `bad_status` for HTTP."
        = probes;
    "probe_stretch" gauge [] "How many times longer than configured the interval of the slowest recent probe was; 1 is as configured. More than 500 probes a second are not made."
        = |control| vec![one([], control.process.health.stretch())];
    "matrix_up" gauge ["cluster", "address"] "1 while a gateway address of another cluster answers probes, otherwise 0; absent before the first probe."
        = |control| matrix(control, |row| (row.state != State::Unknown).then(|| u8::from(row.state == State::Up).into()));
    "matrix_rtt_seconds" gauge ["cluster", "address"] "Smoothed round trip to a gateway address of another cluster."
        = |control| matrix(control, |row| seconds(row.rtt_micros));
    "matrix_jitter_seconds" gauge ["cluster", "address"] "Mean deviation of the round trip to a gateway address of another cluster."
        = |control| matrix(control, |row| seconds(row.jitter_micros));
    "matrix_loss_ratio" gauge ["cluster", "address"] "Share of the last 32 probes of a gateway address of another cluster without an answer, from 0 to 1."
        = |control| matrix(control, |row| Some(f64::from(row.loss_percent) / 100.0));
    "matrix_class" gauge ["cluster", "address"] "Class of distance of a gateway address of another cluster; connections prefer lower ones."
        = |control| matrix(control, |row| Some(row.class.into()));
    "matrix_cut_off" gauge [] "1 while no gateway of another cluster answers probes: this gateway seems to be cut off."
        = |control| vec![one([], u32::from(control.matrix.rows().cut_off_since.is_some()))];
    "matrix_left_out" gauge [] "Gateway addresses of other clusters that are not probed because there are too many."
        = |control| vec![one([], float(control.matrix.rows().left_out))];
    "matrix_probes_total" counter ["result"] "Probes of gateway addresses of other clusters, by result: `alert` (as gateways answer), `closed`, `unreached`, or `not_asked` if this machine could not send one."
        = matrix_probes;
    "accept_pauses_total" counter [] "Times accepting paused because file descriptors had run out."
        = |control| total(control, |counters| &counters.accept_pauses);
    "connections_limit" gauge [] "Connections allowed by the descriptor limit and `limits.connections`."
        = |control| vec![one([], connections_limit(control))];
    "lingering" gauge [] "Refused connections kept open until their alert has arrived."
        = |control| vec![one([], control.process.limits.lingering())];
    "hello_memory_bytes" gauge [] "Memory held by ClientHellos in flight, in bytes."
        = |control| vec![one([], float(control.process.limits.hellos.held()))];
    "pipes_open" gauge [] "Pipes open for splicing, in use or idle."
        = |control| vec![one([], float(control.workers.iter().map(|worker| worker.pipes.open()).sum()))];
    "pipes_denied_total" counter [] "Times a bulk transfer was copied because no pipe was available."
        = |control| vec![one([], sum(control.workers.iter().map(|worker| &worker.pipes.denied)))];
    "access_log_dropped_total" counter [] "Access log lines dropped because they could not be written in time."
        = |control| vec![one([], sum([&*control.process.metrics.log_dropped]))];
    "audit_log_dropped_total" counter [] "Audit log lines dropped because they could not be written."
        = |control| vec![one([], sum([&*control.process.metrics.audit_dropped]))];
    "log_dropped_total" counter [] "Log lines dropped because standard error was not read."
        = |_| vec![one([], number(isthmus_certs::output::lost()))];
    "reloads_total" counter ["result"] "Configuration edits, by result: `applied` or `refused`."
        = reloads;
    "tables_epoch" gauge [] "Number of the tables in use, starting at 1."
        = |control| vec![one([], number(control.process.tables.load().epoch))];
    "tables_age_seconds" gauge [] "Time since the tables last changed."
        = |control| vec![one([], age(control.changed()))];
    "services" gauge [] "Services in the tables."
        = |control| vec![one([], float(control.process.tables.load().len()))];
    "endpoints" gauge [] "Endpoints in the tables, with host names resolved."
        = |control| vec![one([], float(control.process.tables.load().endpoints()))];
    "service_connections_total" counter ["service"] "Connections that reached an endpoint of the service."
        = |control| by_service(control, |counters| &counters.connections);
    "service_connections_active" gauge ["service"] "Open connections of the service."
        = |control| service_states(control, ServiceState::active);
    "service_connects_pending" gauge ["service"] "Connects of the service that are under way."
        = |control| service_states(control, ServiceState::pending);
    "service_retries_active" gauge ["service"] "Retries of the service that are under way and count against its budget."
        = |control| service_states(control, ServiceState::retries);
    "service_bytes_total" counter ["service", "direction"] "Bytes relayed by ended connections of the service; `in` from clients, `out` from servers."
        = service_bytes;
    "certificate_expiry_seconds" gauge ["kind", "name", "serial"] "Time until a certificate in use expires, negative afterwards; `kind` is `leaf`, `intermediate` or `root`."
        = certificates;
    "issued_missing" gauge [] "Callers and services without a valid certificate of the agent; their connections are refused."
        = |control| vec![one([], float(missing(control)))];
    "trust_refused" gauge [] "Files of `trust` refused at the last check; the previous ones stay in use."
        = |control| control.process.trust.get().iter().map(|_| one([], float(control.refused_files().len()))).collect();
    "agent_connected" gauge [] "1 while an agent or control plane of `xds` is reachable, otherwise 0."
        = |control| control.process.fixed.xds.iter().map(|_| one([], u32::from(control.following.borrow().connected))).collect();
    "agent_slices" gauge [] "Slices from agents in the tables; with a control plane, its services."
        = |control| control.process.fixed.xds.iter().map(|_| one([], float(control.following.borrow().slices))).collect();
    "agent_slices_refused_total" counter [] "Slices of agents, or resources of a control plane, that were refused."
        = |control| control.process.fixed.xds.iter().map(|_| one([], number(control.following.borrow().refusals))).collect();
    "agent_silence_seconds" gauge [] "Time since the agent was last reachable, 0 while it is; the maximum age of the tables."
        = |control| control.process.fixed.xds.iter().map(|_| one([], silence(&control.following.borrow()))).collect();
    "stale_probed" gauge [] "Addresses probed while the agent is unreachable (`stale: probe`)."
        = |control| control.process.fixed.xds.iter().map(|_| one([], probed(&control.following.borrow(), |probed| probed.addresses))).collect();
    "stale_down" gauge [] "Addresses that failed their probes while the agent is unreachable and receive no new connections (`stale: probe`)."
        = |control| control.process.fixed.xds.iter().map(|_| one([], probed(&control.following.borrow(), |probed| probed.down))).collect();
    "state_usable" gauge ["store"] "1 while state is persisted for a restart; 0 while the disk does not allow it."
        = |control| state(control, |report| u32::from(report.usable).into());
    "state_damaged_total" counter ["store"] "Damaged state files that were found."
        = |control| state(control, |report| number(report.damaged_files));
    "state_records_lost_total" counter ["store"] "Persisted records that were damaged and are lost."
        = |control| state(control, |report| number(report.lost_records));
    "draining" gauge [] "1 while the gateway drains, otherwise 0."
        = |control| vec![one([], u32::from(*control.phase.borrow() != Phase::Serving))];
    "open_fds" gauge [] "Open file descriptors of the process."
        = |_| vec![one([], float(std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)))];
    "resident_memory_bytes" gauge [] "Resident memory of the process."
        = |_| vec![one([], resident_memory())];
    "build_info" gauge ["version"] "Always 1; the label is the version."
        = |_| vec![one([env!("CARGO_PKG_VERSION").to_owned()], 1)];
}

/// Renders all metrics in the text format.
#[must_use]
pub fn text(control: &Control) -> String {
    let families: Vec<MetricFamily> = ALL.iter().map(|definition| family(definition, control)).collect();
    // Encoding fails only for a family without a metric; those are filtered out.
    let shown: Vec<_> = families.into_iter().filter(|family| !family.get_metric().is_empty()).collect();
    TextEncoder::new().encode_to_string(&shown).unwrap_or_default()
}

fn one<const N: usize>(labels: [String; N], value: impl Into<f64>) -> Sample {
    Sample(labels.into(), Value::Number(value.into()))
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64; counts stay below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

fn float(count: usize) -> f64 {
    number(count as u64)
}

fn sum<'a>(counts: impl IntoIterator<Item = &'a AtomicU64>) -> f64 {
    number(counts.into_iter().map(|count| count.load(Relaxed)).sum())
}

fn workers(control: &Control) -> impl Iterator<Item = &WorkerCounters> {
    control.process.metrics.workers.iter().map(|counters| &**counters)
}

fn listeners(control: &Control) -> impl Iterator<Item = (usize, String)> {
    control.process.fixed.binds.iter().map(|bind| bind.name.clone()).enumerate()
}

fn on_listener(control: &Control, index: usize) -> impl Iterator<Item = &ListenerCounters> {
    workers(control).filter_map(move |counters| counters.listeners.get(index))
}

fn total(control: &Control, of: fn(&WorkerCounters) -> &AtomicU64) -> Vec<Sample> {
    vec![one([], sum(workers(control).map(of)))]
}

fn by_listener(control: &Control, of: fn(&ListenerCounters) -> &AtomicU64) -> Vec<Sample> {
    listeners(control).map(|(index, name)| one([name], sum(on_listener(control, index).map(of)))).collect()
}

fn ended(control: &Control) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (index, name) in listeners(control) {
        for reason in Reason::ALL {
            let counts =
                on_listener(control, index).filter_map(|counters| counters.ended.get(*reason as usize));
            samples.push(one([name.clone(), reason.word().to_owned()], sum(counts)));
        }
    }
    samples
}

fn bytes(control: &Control) -> Vec<Sample> {
    let both = |(index, name): (usize, String)| {
        let counters = || on_listener(control, index);
        [
            one([name.clone(), "in".to_owned()], sum(counters().map(|counters| &counters.bytes_in))),
            one([name, "out".to_owned()], sum(counters().map(|counters| &counters.bytes_out))),
        ]
    };
    listeners(control).flat_map(both).collect()
}

fn histogram(control: &Control, of: fn(&WorkerCounters) -> &Histogram) -> Vec<Sample> {
    let mut histogram = proto::Histogram::default();
    let mut below = 0;
    let mut buckets = Vec::new();
    for (index, bound) in BUCKETS.iter().copied().chain([f64::INFINITY]).enumerate() {
        below += workers(control)
            .filter_map(|counters| of(counters).buckets.get(index))
            .map(|count| count.load(Relaxed))
            .sum::<u64>();
        let mut bucket = proto::Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(below);
        buckets.push(bucket);
    }
    histogram.set_bucket(buckets);
    histogram.set_sample_count(below);
    histogram.set_sample_sum(sum(workers(control).map(|counters| &of(counters).micros)) / 1e6);
    vec![Sample(Vec::new(), Value::Histogram(histogram))]
}

fn matrix_probes(control: &Control) -> Vec<Sample> {
    let counts = RESULTS.iter().zip(&control.matrix.probes);
    counts.map(|(result, count)| one([(*result).to_owned()], sum([count]))).collect()
}

fn hello_checks(control: &Control) -> Vec<Sample> {
    let counts = Outcome::ALL.iter().zip(&control.process.metrics.checks);
    let of_hellos = counts.filter(|(outcome, _)| **outcome != Outcome::BadStatus);
    of_hellos.map(|(outcome, count)| one([outcome.word().to_owned()], sum([count]))).collect()
}

fn probes(control: &Control) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (probe, counts) in PROBES.iter().zip(&control.process.metrics.probes) {
        for (outcome, count) in Outcome::ALL.iter().zip(counts) {
            samples.push(one([(*probe).to_owned(), outcome.word().to_owned()], sum([count])));
        }
    }
    samples
}

fn connections_limit(control: &Control) -> u32 {
    control.process.limits.descriptors().min(control.process.tables.load().live.limits.connections)
}

fn reloads(control: &Control) -> Vec<Sample> {
    let metrics = &control.process.metrics;
    [("applied", &metrics.reloads), ("refused", &metrics.reloads_refused)]
        .map(|(word, count)| one([word.to_owned()], sum([count])))
        .into()
}

fn by_service(control: &Control, of: fn(&crate::endpoint::ServiceCounters) -> &AtomicU64) -> Vec<Sample> {
    let services = control.process.metrics.services.all();
    services.iter().map(|counters| one([counters.name.to_string()], sum([of(counters)]))).collect()
}

fn service_states(control: &Control, of: fn(&ServiceState) -> u32) -> Vec<Sample> {
    let services = control.process.metrics.services.all();
    services
        .iter()
        .filter_map(|counters| Some(one([counters.name.to_string()], of(&*counters.of.upgrade()?))))
        .collect()
}

fn service_bytes(control: &Control) -> Vec<Sample> {
    let services = control.process.metrics.services.all();
    let both = |counters: &std::sync::Arc<crate::endpoint::ServiceCounters>| {
        [("in", &counters.bytes_in), ("out", &counters.bytes_out)]
            .map(|(word, count)| one([counters.name.to_string(), word.to_owned()], sum([count])))
    };
    services.iter().flat_map(both).collect()
}

fn certificates(control: &Control) -> Vec<Sample> {
    let sample = |expiry: Expiry| {
        let left = expiry.left(SystemTime::now());
        one([expiry.kind.to_string(), expiry.name, expiry.serial], left)
    };
    control.expiries().into_iter().map(sample).collect()
}

fn missing(control: &Control) -> usize {
    let (reports, now) = (control.process.tables.load().ends.issued.report(), SystemTime::now());
    reports.iter().filter(|report| report.is_missing(now)).count()
}

fn state(control: &Control, read: fn(&StoreHealth) -> f64) -> Vec<Sample> {
    let report = control.state.get().map(|health| health.report());
    report.iter().map(|report| one([report.store.clone()], read(report))).collect()
}

fn silence(following: &Following) -> f64 {
    if following.connected { 0.0 } else { age(following.since) }
}

fn probed(following: &Following, count: fn(&Probed) -> usize) -> f64 {
    float(following.probed.as_ref().map_or(0, count))
}

fn age(since: SystemTime) -> f64 {
    since.elapsed().unwrap_or_default().as_secs_f64()
}

fn resident_memory() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|statm| statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()));
    number(pages.unwrap_or(0)) * float(rustix::param::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_documentation_matches_definitions() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (own, _agent) = page.split_once("\n## Agent\n").unwrap();
        let rows: Vec<&str> = own.lines().filter(|line| line.starts_with("| `isthmus_")).collect();
        let expected: Vec<String> = ALL
            .iter()
            .map(|metric| {
                let labels = metric.labels.join("`, `");
                let labels = if labels.is_empty() { "–".to_owned() } else { format!("`{labels}`") };
                format!("| `{}` | {} | {labels} | {} |", metric.name, metric.kind, metric.help)
            })
            .collect();
        assert_eq!(rows, expected, "write these rows into docs/metrics.md:\n{}", expected.join("\n"));
    }
}
