//! How a gateway learns whether endpoints are healthy: the section `health:` of a service, its bounds, and what is left of
//! it at another cluster. The probes themselves are the gateway's.

use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::at::At;
use crate::problem::{Place, Report};
use crate::units;
use crate::values::{Range, Zero};

use super::{TlsMode, raw};

/// Time between two probes of an endpoint.
pub const INTERVAL: Duration = Duration::from_secs(3);
/// The bounds of `interval`.
pub const INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(1));
/// Time for an endpoint's answer, the connect included.
pub const TIMEOUT: Duration = Duration::from_secs(2);
/// The bounds of `timeout`.
pub const TIMEOUTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// Failed probes in a row after which an endpoint is unhealthy.
pub const DOWN_AFTER: u8 = 3;
/// Answered probes in a row after which it is healthy again.
pub const UP_AFTER: u8 = 1;
/// The bounds of both.
pub const COUNTS: Range = (1, 10);
/// The bounds of `slow_start` and `close_on_unhealthy`.
pub const WINDOWS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(1));
/// The path of an HTTP probe.
pub const PATH: &str = "/";
/// The most bytes of a path.
const LONGEST_PATH: usize = 1_024;

/// How the health of a service's endpoints is learned.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HealthCheck {
    /// How endpoints are probed. `None`: as is usual where the service is written, see [`HealthCheck::usual`].
    #[serde(flatten, serialize_with = "written_probe")]
    pub probe: Option<Probe>,
    /// Time between two probes of an endpoint.
    #[serde(serialize_with = "units::duration")]
    pub interval: Duration,
    /// Time for its answer, the connect included.
    #[serde(serialize_with = "units::duration")]
    pub timeout: Duration,
    /// Failed probes in a row after which an endpoint is unhealthy.
    pub down_after: u8,
    /// Answered probes in a row after which it is healthy again.
    pub up_after: u8,
    /// How long an endpoint that returns or is new gets a growing share of connections.
    #[serde(serialize_with = "units::duration_or_off")]
    pub slow_start: Option<Duration>,
    /// The time over which the open connections of an endpoint that turned unhealthy are closed.
    #[serde(serialize_with = "units::duration_or_off")]
    pub close_on_unhealthy: Option<Duration>,
}

/// How endpoints are probed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// Not at all.
    Off,
    /// By a ClientHello with the service's name.
    Tls,
    /// By `GET PATH` without TLS.
    Http {
        /// The port; `None`: the endpoint's.
        port: Option<u16>,
        /// The path.
        path: Box<str>,
    },
    /// By a connect and nothing more.
    Tcp {
        /// The port; `None`: the endpoint's.
        port: Option<u16>,
    },
}

impl Default for HealthCheck {
    fn default() -> HealthCheck {
        HealthCheck {
            probe: None,
            interval: INTERVAL,
            timeout: TIMEOUT,
            down_after: DOWN_AFTER,
            up_after: UP_AFTER,
            slow_start: None,
            close_on_unhealthy: None,
        }
    }
}

impl HealthCheck {
    /// The same, where an agent hands it to gateways: TLS that passes through is probed by a ClientHello unless its file
    /// says otherwise; a service whose TLS ends at a gateway is not, because its server would count connections without
    /// a login.
    #[must_use]
    pub fn usual(mut self, mode: TlsMode) -> HealthCheck {
        self.probe.get_or_insert(match mode {
            TlsMode::Passthrough => Probe::Tls,
            TlsMode::Terminate => Probe::Off,
        });
        self
    }

    /// What another cluster's gateways do with it: a ClientHello in place of any other probe. The owner's paths and ports
    /// are meant for its own gateways, and a peer must not choose what this cluster sends where.
    #[must_use]
    pub fn at_peers(mut self, mode: TlsMode) -> HealthCheck {
        self.probe = match (self.probe, mode) {
            (None | Some(Probe::Off), _) | (_, TlsMode::Terminate) => Some(Probe::Off),
            (Some(Probe::Tls | Probe::Http { .. } | Probe::Tcp { .. }), TlsMode::Passthrough) => {
                Some(Probe::Tls)
            }
        };
        self
    }

    /// The same within the bounds of a file: what others have written cannot make a gateway probe more often.
    #[must_use]
    pub fn within_bounds(self) -> HealthCheck {
        let count = |count: u8| count.clamp(1, 10);
        let window = |window: Option<Duration>| window.map(|time| time.clamp(WINDOWS.0, WINDOWS.1));
        HealthCheck {
            probe: self.probe,
            interval: self.interval.clamp(INTERVALS.0, INTERVALS.1),
            timeout: self.timeout.clamp(TIMEOUTS.0, TIMEOUTS.1),
            down_after: count(self.down_after),
            up_after: count(self.up_after),
            slow_start: window(self.slow_start),
            close_on_unhealthy: window(self.close_on_unhealthy),
        }
    }

    /// Whether endpoints are probed.
    #[must_use]
    pub fn probes(&self) -> bool {
        !matches!(self.probe, None | Some(Probe::Off))
    }
}

impl Probe {
    /// The word in files, logs and labels.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Probe::Off => "none",
            Probe::Tls => "tls",
            Probe::Http { .. } => "http",
            Probe::Tcp { .. } => "tcp",
        }
    }

    /// Whether it connects to the port that clients are sent to.
    #[must_use]
    pub const fn is_at_endpoint(&self) -> bool {
        match self {
            Probe::Off => false,
            Probe::Tls => true,
            Probe::Http { port, .. } | Probe::Tcp { port } => port.is_none(),
        }
    }
}

/// Whether a text is the path of a request: it begins with a slash and is of visible ASCII.
#[must_use]
pub fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.len() <= LONGEST_PATH && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// As the keys of the file.
fn written_probe<S: Serializer>(probe: &Option<Probe>, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Keys<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        probe: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        port: Option<u16>,
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<&'a str>,
    }
    let (port, path) = match probe {
        Some(Probe::Http { port, path }) => (*port, Some(&**path)),
        Some(Probe::Tcp { port }) => (*port, None),
        Some(Probe::Off | Probe::Tls) | None => (None, None),
    };
    Keys { probe: probe.as_ref().map(Probe::word), port, path }.serialize(serializer)
}

/// Resolves the section; `None` if a service has none.
pub(super) fn resolve(
    report: &mut Report,
    place: Place<'_>,
    service: &raw::Service,
) -> Option<Box<HealthCheck>> {
    let written = service.health.as_deref()?;
    let (place, raw) = (place.key("health"), &written.value);
    let mode = service.tls.as_ref().map(|tls| tls.value).unwrap_or_default();
    let time = |report: &mut Report, raw: Option<_>, key, bounds, default| {
        let time = report.time(raw, place.key(key), Zero::Refused, default);
        within(report, place.key(key), raw, time, bounds)
    };
    let window = |report: &mut Report, raw: Option<_>, key| {
        let time = report.time_or_off(raw, place.key(key), None)?;
        Some(within(report, place.key(key), raw, time, WINDOWS))
    };
    let count = |report: &mut Report, raw: Option<_>, key, default: u8| {
        u8::try_from(report.count(raw, place.key(key), COUNTS, default.into())).unwrap_or(default)
    };
    Some(Box::new(HealthCheck {
        probe: probe(report, place, written, mode),
        interval: time(report, raw.interval.as_ref(), "interval", INTERVALS, INTERVAL),
        timeout: time(report, raw.timeout.as_ref(), "timeout", TIMEOUTS, TIMEOUT),
        down_after: count(report, raw.down_after.as_ref(), "down_after", DOWN_AFTER),
        up_after: count(report, raw.up_after.as_ref(), "up_after", UP_AFTER),
        slow_start: window(report, raw.slow_start.as_ref(), "slow_start"),
        close_on_unhealthy: window(report, raw.close_on_unhealthy.as_ref(), "close_on_unhealthy"),
    }))
}

/// A written time within bounds; one outside is reported.
fn within<T>(
    report: &mut Report,
    place: Place<'_>,
    raw: Option<&At<T>>,
    time: Duration,
    (least, most): (Duration, Duration),
) -> Duration {
    if let (Some(raw), false) = (raw, time.is_zero() || (least..=most).contains(&time)) {
        let (shown, show) = (units::show_duration(time), units::show_duration);
        let remedy = format_args!("write {} to {}", show(least), show(most));
        report.add(raw.spot, format_args!("{place}: '{shown}' is out of range"), remedy);
    }
    time.clamp(least, most)
}

fn probe(report: &mut Report, place: Place<'_>, written: &At<raw::Health>, mode: TlsMode) -> Option<Probe> {
    let raw = &written.value;
    let port = report.port(raw.port.as_ref(), place.key("port"));
    let path = raw.path.as_ref().filter(|path| {
        let is_path = is_path(&path.value);
        if !is_path {
            let what = format_args!("{}: is not the path of a request", place.key("path"));
            report.add(path.spot, what, "write '/' and visible ASCII, such as /healthz");
        }
        is_path
    });
    let kind = raw.probe.as_ref().map(|probe| probe.value);
    let no_effect = |report: &mut Report, key, spot, remedy| {
        report.add(spot, format_args!("{}: has no effect", place.key(key)), remedy);
    };
    if let (Some(raw), false) = (&raw.port, matches!(kind, Some(raw::Probe::Http | raw::Probe::Tcp))) {
        no_effect(report, "port", raw.spot, "add 'probe: http' or 'probe: tcp', or remove it");
    }
    if let (Some(raw), false) = (&raw.path, kind == Some(raw::Probe::Http)) {
        no_effect(report, "path", raw.spot, "add 'probe: http', or remove it");
    }
    let spot = raw.probe.as_ref().map_or(written.spot, |probe| probe.spot);
    match (kind?, mode) {
        (raw::Probe::Tls, TlsMode::Terminate) => {
            let what = format_args!("{place}: a server behind 'tls: terminate' speaks no TLS");
            report.add(spot, what, "write 'probe: http' with a port of its own, or 'probe: none'");
        }
        (raw::Probe::Tcp, TlsMode::Terminate) if port.is_none() => {
            let what = format_args!(
                "{place}: servers count a connect without a login as an error, and block the gateway after some"
            );
            report.add(spot, what, "add 'port: …' with a port for checks, or write 'probe: none'");
        }
        (raw::Probe::Http, TlsMode::Passthrough) if port.is_none() => {
            let what = format_args!("{place}: the endpoint's own port speaks TLS, not HTTP");
            report.add(spot, what, "add 'port: …' with a port for checks, or write 'probe: tls'");
        }
        _ => {}
    }
    Some(match kind? {
        raw::Probe::None => Probe::Off,
        raw::Probe::Tls => Probe::Tls,
        raw::Probe::Http => Probe::Http { port, path: path.map_or(PATH, |path| path.value.as_str()).into() },
        raw::Probe::Tcp => Probe::Tcp { port },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn probe_at_peers_is_a_hello_or_none() {
        let check = |probe| HealthCheck { probe, ..HealthCheck::default() };
        let http = || Some(Probe::Http { port: Some(80), path: "/admin?delete=all".into() });
        for (probe, passthrough) in [
            (None, Probe::Off),
            (Some(Probe::Off), Probe::Off),
            (Some(Probe::Tls), Probe::Tls),
            (http(), Probe::Tls),
            (Some(Probe::Tcp { port: Some(22) }), Probe::Tls),
        ] {
            let at_peers = check(probe.clone()).at_peers(TlsMode::Passthrough);
            assert_eq!(at_peers.probe, Some(passthrough), "{probe:?}");
            assert_eq!(check(probe).at_peers(TlsMode::Terminate).probe, Some(Probe::Off));
        }
    }

    #[test]
    fn probe_of_a_terminated_service_is_off_unless_written() {
        let usual = |mode| HealthCheck::default().usual(mode).probe;
        assert_eq!(usual(TlsMode::Passthrough), Some(Probe::Tls));
        assert_eq!(usual(TlsMode::Terminate), Some(Probe::Off));
        let written = HealthCheck { probe: Some(Probe::Off), ..HealthCheck::default() };
        assert!(!written.usual(TlsMode::Passthrough).probes());
    }

    #[test]
    fn path_is_one_line_of_visible_ascii() {
        for good in ["/", "/healthz?deep=1", "/%20"] {
            assert!(is_path(good), "{good}");
        }
        let long = format!("/{}", "a".repeat(LONGEST_PATH));
        for bad in ["", "healthz", "/a b", "/a\r\nHost: b", "/ä", "/\0", &long] {
            assert!(!is_path(bad), "{bad:?}");
        }
    }

    fn read(keys: &str) -> Result<Option<Box<HealthCheck>>, String> {
        let text = format!("services:\n- {{ host: a.b, {keys} }}\n");
        let read = crate::registry_file(&text, std::path::Path::new("r.yaml"));
        read.map(|services| services[0].health.clone()).map_err(|problems| problems.to_string())
    }

    #[test]
    fn health_of_a_file_is_read_or_refused_with_its_remedy() {
        const DOOR: &str = "tls: terminate, identities: ['spiffe://a.b/ns/c/sa/d']";
        assert_eq!(read("port: 1"), Ok(None));
        let written = "health: { probe: http, port: 8081, path: /ready, interval: 5s, timeout: 1s, down_after: 2, \
                       up_after: 4, slow_start: 1m, close_on_unhealthy: 30s }";
        let expected = HealthCheck {
            probe: Some(Probe::Http { port: Some(8_081), path: "/ready".into() }),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            down_after: 2,
            up_after: 4,
            slow_start: Some(Duration::from_mins(1)),
            close_on_unhealthy: Some(Duration::from_secs(30)),
        };
        assert_eq!(read(written), Ok(Some(Box::new(expected))));
        assert_eq!(read("health: {}"), Ok(Some(Box::default())));
        let door = |health: &str| format!("{DOOR}, health: {health}");
        for (keys, problem) in [
            ("health: { probe: http }".to_owned(), "the endpoint's own port speaks TLS, not HTTP"),
            ("health: { probe: tls, port: 80 }".to_owned(), "services[0].health.port: has no effect"),
            ("health: { probe: tcp, path: / }".to_owned(), "services[0].health.path: has no effect"),
            ("health: { probe: http, port: 80, path: x }".to_owned(), "is not the path of a request"),
            ("health: { interval: 10ms }".to_owned(), "interval: '10ms' is out of range; write 1s to 1h"),
            ("health: { slow_start: 2h }".to_owned(), "slow_start: '2h' is out of range"),
            ("health: { down_after: 11 }".to_owned(), "down_after: '11' is out of range; write 1 to 10"),
            (door("{ probe: tls }"), "a server behind 'tls: terminate' speaks no TLS"),
            (door("{ probe: tcp }"), "add 'port: …' with a port for checks"),
        ] {
            let refused = read(&keys).unwrap_err();
            assert!(refused.contains(problem), "{keys}: {refused}");
        }
        assert!(read(&door("{ probe: http }")).is_ok() && read(&door("{ probe: tcp, port: 81 }")).is_ok());
    }

    proptest! {
        #[test]
        fn health_check_of_others_stays_within_bounds(
            millis in prop::array::uniform4(any::<u64>()),
            counts in any::<(u8, u8)>(),
        ) {
            let [interval, timeout, slow_start, close] = millis.map(Duration::from_millis);
            let check = HealthCheck {
                probe: None,
                interval,
                timeout,
                down_after: counts.0,
                up_after: counts.1,
                slow_start: Some(slow_start),
                close_on_unhealthy: Some(close),
            }
            .within_bounds();
            prop_assert!(check.interval >= INTERVALS.0 && check.interval <= INTERVALS.1);
            prop_assert!(check.timeout >= TIMEOUTS.0 && check.timeout <= TIMEOUTS.1);
            prop_assert!((1..=10).contains(&check.down_after) && (1..=10).contains(&check.up_after));
            prop_assert_eq!(check.clone().within_bounds(), check);
        }
    }
}
