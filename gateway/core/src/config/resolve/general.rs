//! Resolves every section but `listeners:`, `services:`, `trust:` and `xds:`.

use std::path::PathBuf;
use std::time::Duration;

use isthmus_model::at::At;
use isthmus_model::problem::{Place, Quoted, Report};
use isthmus_model::services;
use isthmus_model::units::{Scalar, show_size};
use isthmus_model::values::Zero;

use crate::config::defaults;
use crate::config::raw;
use crate::config::settings::{
    AccessLog, Dns, Drain, Ejection, Limits, Node, Relay, Replay, ServiceTimeouts, Tcp, Timeouts, Upstream,
};

pub(crate) fn node(report: &mut Report, raw: raw::Node) -> Node {
    let place = Place::Root.key("node");
    Node {
        id: word(report, raw.id, place.key("id"), 1).unwrap_or_else(host_name),
        cluster: word(report, raw.cluster, place.key("cluster"), 1).unwrap_or(defaults::CLUSTER.to_owned()),
        network: word(report, raw.network, place.key("network"), 0).unwrap_or_default(),
        locality: raw.locality.unwrap_or_default(),
    }
}

fn word(report: &mut Report, raw: Option<At<String>>, place: Place<'_>, least: usize) -> Option<String> {
    let At { value, spot } = raw?;
    if !(least..=defaults::NODE_TEXT).contains(&value.len()) || value.chars().any(char::is_control) {
        let remedy = format!("write {least} to {} bytes without control characters", defaults::NODE_TEXT);
        report.add(spot, format_args!("{place}: {} cannot be used", Quoted(&value)), remedy);
    }
    Some(value)
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

pub(super) fn service_metrics(report: &mut Report, raw: &raw::File) -> usize {
    let written = raw.metrics.as_ref().and_then(|metrics| metrics.services.as_ref());
    let metrics = Place::Root.key("metrics");
    report.count(written, metrics.key("services"), defaults::SERVICE_METRIC_COUNTS, defaults::SERVICE_METRICS)
        as usize
}

/// Defaults to the cores available to the process, by its affinity and cgroup quota.
pub(crate) fn workers(report: &mut Report, raw: &raw::File) -> usize {
    let cores =
        std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(1));
    let (least, most) = defaults::WORKERS;
    let cores = u64::from(cores).clamp(least, most);
    let default = u32::try_from(cores).unwrap_or(1);
    report.count(raw.workers.as_ref(), Place::Root.key("workers"), defaults::WORKERS, default) as usize
}

pub(crate) fn limits(report: &mut Report, raw: &raw::Limits) -> Limits {
    let place = Place::Root.key("limits");
    let counts = defaults::CONNECTION_COUNTS;
    let hello_size = report.size(
        raw.hello_size.as_ref(),
        place.key("hello_size"),
        defaults::HELLO_SIZES,
        defaults::HELLO_SIZE,
    );
    // The upper bound only keeps sums of it from overflowing.
    let all = (0, u64::from(u32::MAX) << 10);
    let hello_memory =
        report.size(raw.hello_memory.as_ref(), place.key("hello_memory"), all, defaults::HELLO_MEMORY);
    if let Some(memory) = &raw.hello_memory
        && hello_memory < hello_size
        && memory.value.read().is_ok()
    {
        let what =
            format_args!("{}: {} is less than hello_size", place.key("hello_memory"), memory.value.text());
        report.add(memory.spot, what, format_args!("write at least {}", show_size(hello_size as u64)));
    }
    Limits {
        connections: report.count(
            raw.connections.as_ref(),
            place.key("connections"),
            counts,
            defaults::CONNECTIONS,
        ),
        per_source: report.count_or_off(raw.per_source.as_ref(), place.key("per_source"), counts),
        hello_size,
        hello_memory,
    }
}

/// Returns the ClientHello deadline, and the defaults for services that set none.
pub(crate) fn timeouts(report: &mut Report, raw: raw::Timeouts) -> (Timeouts, ServiceTimeouts) {
    let place = Place::Root.key("timeouts");
    let hello = report.time(raw.hello.as_ref(), place.key("hello"), Zero::Refused, defaults::HELLO);
    let raw = services::raw::ServiceTimeouts {
        connect: raw.connect,
        connect_total: raw.connect_total,
        idle: raw.idle,
        half_closed: raw.half_closed,
        first_byte: raw.first_byte,
        max_duration: raw.max_duration,
    };
    (Timeouts { hello }, services::timeouts(report, place, &raw, &ServiceTimeouts::default()))
}

pub(crate) fn upstream(report: &mut Report, raw: raw::Upstream) -> Upstream {
    let place = Place::Root.key("upstream");
    Upstream {
        attempts: report.count(
            raw.attempts.as_ref(),
            place.key("attempts"),
            defaults::ATTEMPT_COUNTS,
            defaults::ATTEMPTS,
        ),
        source_addresses: report.values(raw.source_addresses.as_ref(), place.key("source_addresses")),
        replay: replay(report, place.key("replay"), &raw.replay.unwrap_or_default()),
        ejection: ejection(report, place.key("ejection"), &raw.ejection.unwrap_or_default()),
        demotion: report.time_or_off(raw.demotion.as_ref(), place.key("demotion"), defaults::DEMOTION),
    }
}

fn replay(report: &mut Report, place: Place<'_>, raw: &raw::Replay) -> Replay {
    Replay {
        ratio: report.share(raw.ratio.as_ref(), place.key("ratio"), Zero::Allowed, defaults::REPLAY_RATIO),
        burst: report.count(
            raw.burst.as_ref(),
            place.key("burst"),
            defaults::REPLAY_BURSTS,
            defaults::REPLAY_BURST,
        ),
        source_share: report.share(
            raw.source_share.as_ref(),
            place.key("source_share"),
            Zero::Refused,
            defaults::REPLAY_SOURCE_SHARE,
        ),
    }
}

fn ejection(report: &mut Report, place: Place<'_>, raw: &raw::Ejection) -> Ejection {
    let base = report.time(raw.base.as_ref(), place.key("base"), Zero::Refused, defaults::EJECTION_BASE);
    let max = report.time(raw.max.as_ref(), place.key("max"), Zero::Refused, defaults::EJECTION_MAX);
    ordered(report, place, ("base", raw.base.as_ref(), base), ("max", raw.max.as_ref(), max));
    let percent = report.count(
        raw.max_percent.as_ref(),
        place.key("max_percent"),
        defaults::PERCENTS,
        defaults::EJECTION_PERCENT.into(),
    );
    Ejection {
        failures: report.count(
            raw.failures.as_ref(),
            place.key("failures"),
            defaults::EJECTION_FAILURE_COUNTS,
            defaults::EJECTION_FAILURES,
        ),
        base,
        max,
        max_percent: u8::try_from(percent).unwrap_or(defaults::EJECTION_PERCENT),
    }
}

/// A key of the file, its value as written, and the resolved value.
type Bound<'a, S> = (&'static str, Option<&'a At<S>>, Duration);

/// Reports a minimum above its maximum, at the value that is set in the file.
fn ordered<S: Scalar>(report: &mut Report, place: Place<'_>, small: Bound<'_, S>, large: Bound<'_, S>) {
    if small.2 <= large.2 {
        return;
    }
    if let Some(raw) = large.1.or(small.1) {
        let what = format_args!("{place}: {} is longer than {}", small.0, large.0);
        report.add(raw.spot, what, format_args!("make {} at least as long as {}", large.0, small.0));
    }
}

pub(crate) fn relay(report: &mut Report, raw: &raw::Relay) -> Relay {
    let place = Place::Root.key("relay");
    Relay {
        pipe_size: report.size(
            raw.pipe_size.as_ref(),
            place.key("pipe_size"),
            defaults::PIPE_SIZES,
            defaults::PIPE_SIZE,
        ),
        pipes: report.count(raw.pipes.as_ref(), place.key("pipes"), defaults::PIPE_COUNTS, defaults::PIPES)
            as usize,
    }
}

pub(crate) fn tcp(report: &mut Report, raw: &raw::Tcp) -> Tcp {
    let place = Place::Root.key("tcp");
    let idle = raw.keepalive_idle.as_ref();
    let interval = raw.keepalive_interval.as_ref();
    let buffers = defaults::SOCKET_BUFFERS;
    let tcp = Tcp {
        nodelay: raw.nodelay.unwrap_or(true),
        keepalive_idle: report.time_or_off(idle, place.key("keepalive_idle"), Some(defaults::KEEPALIVE)),
        keepalive_interval: report.time(
            interval,
            place.key("keepalive_interval"),
            Zero::Refused,
            defaults::KEEPALIVE,
        ),
        keepalive_probes: report.count(
            raw.keepalive_probes.as_ref(),
            place.key("keepalive_probes"),
            defaults::KEEPALIVE_PROBE_COUNTS,
            defaults::KEEPALIVE_PROBES,
        ),
        receive_buffer: report.size_or_auto(
            raw.receive_buffer.as_ref(),
            place.key("receive_buffer"),
            buffers,
        ),
        send_buffer: report.size_or_auto(raw.send_buffer.as_ref(), place.key("send_buffer"), buffers),
    };
    whole_seconds(report, place.key("keepalive_idle"), idle, tcp.keepalive_idle);
    whole_seconds(report, place.key("keepalive_interval"), interval, Some(tcp.keepalive_interval));
    tcp
}

/// The kernel refuses other keepalive times or truncates them to whole seconds.
fn whole_seconds<S: Scalar>(
    report: &mut Report,
    place: Place<'_>,
    raw: Option<&At<S>>,
    value: Option<Duration>,
) {
    let (Some(raw), Some(value)) = (raw, value) else { return };
    let longest = defaults::KEEPALIVE_LONGEST;
    if !value.is_zero() && (value.subsec_nanos() != 0 || value > longest) {
        let what =
            format_args!("{place}: {} is not a time that the kernel accepts", Quoted(raw.value.text()));
        report.add(raw.spot, what, format_args!("write whole seconds, 1s to {}s", longest.as_secs()));
    }
}

pub(crate) fn drain(report: &mut Report, raw: &raw::Drain) -> Drain {
    let place = Place::Root.key("drain");
    Drain {
        accept_for: report.time(
            raw.accept_for.as_ref(),
            place.key("accept_for"),
            Zero::Allowed,
            defaults::DRAIN_ACCEPT_FOR,
        ),
        window: report.time(raw.window.as_ref(), place.key("window"), Zero::Allowed, defaults::DRAIN_WINDOW),
    }
}

pub(crate) fn access_log(report: &mut Report, raw: &raw::AccessLog) -> AccessLog {
    let place = Place::Root.key("access_log");
    AccessLog {
        enabled: raw.enabled.unwrap_or(true),
        no_data: raw.no_data.unwrap_or(false),
        probes: raw.probes.unwrap_or(false),
        buffer: report.size(
            raw.buffer.as_ref(),
            place.key("buffer"),
            defaults::LOG_BUFFERS,
            defaults::LOG_BUFFER,
        ),
    }
}

pub(crate) fn audit_log(report: &mut Report, raw: Option<&At<String>>) -> Option<PathBuf> {
    let raw = raw.filter(|raw| raw.value != "off")?;
    if raw.value.is_empty() {
        report.add(
            raw.spot,
            format_args!("{}: is empty", Place::Root.key("audit_log")),
            "write a file, or off",
        );
    }
    Some(PathBuf::from(&raw.value))
}

pub(crate) fn dns(report: &mut Report, raw: &raw::Dns) -> Dns {
    let place = Place::Root.key("dns");
    let min_ttl = report.time(raw.min_ttl.as_ref(), place.key("min_ttl"), Zero::Allowed, defaults::MIN_TTL);
    let max_ttl = report.time(raw.max_ttl.as_ref(), place.key("max_ttl"), Zero::Refused, defaults::MAX_TTL);
    let (min, max) = (raw.min_ttl.as_ref(), raw.max_ttl.as_ref());
    ordered(report, place, ("min_ttl", min, min_ttl), ("max_ttl", max, max_ttl));
    Dns { servers: report.values(raw.servers.as_ref(), place.key("servers")), min_ttl, max_ttl }
}
