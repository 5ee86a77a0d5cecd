//! The report of `hairpin` as data: figures for both routes, their ratios and a verdict. The table is
//! rendered from it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;

use super::visit::{Plan, Visit};
use super::world::{Route, Shapes};
use crate::report::Machine;
use crate::sample::number;
use crate::stats::Summary;

/// Schema name; changes with every incompatible change.
const SCHEMA: &str = "isthmus-bench/hairpin/1";

/// Key, title, unit, and the values of one visit with downloads of this many GB.
type Figure = (&'static str, &'static str, &'static str, fn(&Visit, f64) -> Vec<f64>);

const FIGURES: [Figure; 13] = [
    (ROUND_TRIP, "round trip on an open connection", "ms", |visit, _| {
        visit.round_trips.iter().map(ms).collect()
    }),
    ("handshake", "connect and TLS, as the client sees it", "ms", |visit, _| vec![ms(&visit.handshake)]),
    (FIRST_BYTE, "time to first byte, from connect", "ms", |visit, _| vec![ms(&visit.first_byte)]),
    ("download_fresh", "download, from connect", "ms", |visit, _| vec![ms(&visit.fresh)]),
    ("download_open", "download, open connection", "ms", |visit, _| vec![ms(&visit.open)]),
    ("cpu_connection", "CPU a connection", "ms", |visit, _| vec![ms(&visit.connection.total())]),
    ("cpu_connection_ingress", "  ingress", "ms", |visit, _| vec![ms(&visit.connection.ingress)]),
    ("cpu_connection_gateway", "  gateway", "ms", |visit, _| vec![ms(&visit.connection.gateway)]),
    ("cpu_connection_ends", "  client and service", "ms", |visit, _| vec![ms(&visit.connection.ends())]),
    ("cpu_gb", "CPU a GB", "s", |visit, gb| vec![visit.transfer.total().as_secs_f64() / gb]),
    ("cpu_gb_ingress", "  ingress", "s", |visit, gb| vec![visit.transfer.ingress.as_secs_f64() / gb]),
    ("cpu_gb_gateway", "  gateway", "s", |visit, gb| vec![visit.transfer.gateway.as_secs_f64() / gb]),
    ("cpu_gb_ends", "  client and service", "s", |visit, gb| vec![visit.transfer.ends().as_secs_f64() / gb]),
];
const ROUND_TRIP: &str = "round_trip";
const FIRST_BYTE: &str = "first_byte";

/// The result of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: &'static str,
    bench_version: &'static str,
    pub(super) machine: Machine,
    pub(super) rounds: usize,
    #[serde(flatten)]
    pub(super) setting: Setting,
    /// Whether the links of the direct path are half of the detour's.
    equal_legs: bool,
    pub(super) direct: RouteReport,
    pub(super) hairpin: RouteReport,
    pub(super) figures: Vec<FigureReport>,
    pub(super) verdict: String,
}

/// The settings of the run.
#[derive(Debug, Serialize)]
pub(super) struct Setting {
    /// Versions of the gateway and of the ingress.
    pub(super) versions: [String; 2],
    /// TCP congestion control.
    pub(super) congestion_control: String,
    #[serde(flatten)]
    pub(super) plan: Plan,
    #[serde(flatten)]
    pub(super) shapes: Shapes,
    /// Seed of the jitter.
    pub(super) seed: u64,
    /// Packets dropped at full queues: west-centre, centre-east, west-east.
    pub(super) dropped: [u64; 3],
    pub(super) client_id: String,
}

/// Properties of a route that need no clock.
#[derive(Debug, Serialize)]
pub(super) struct RouteReport {
    pub(super) links: usize,
    /// Round-trip time of the links alone, in ms, without jitter.
    pub(super) links_round_trip_ms: f64,
    /// How often a byte is encrypted, and decrypted.
    pub(super) encryptions: usize,
    /// Sequential link round trips before the first byte: TCP, TLS and the request on each link.
    pub(super) link_round_trips_to_first_byte: usize,
    pub(super) service_saw: String,
    pub(super) client_saw: String,
    pub(super) key_exchange: String,
}

#[derive(Debug, Serialize)]
pub(super) struct FigureReport {
    pub(super) key: &'static str,
    #[serde(skip)]
    pub(super) title: &'static str,
    pub(super) unit: &'static str,
    pub(super) direct: Summary,
    pub(super) hairpin: Summary,
    /// Median of direct divided by that of hairpin; `None` if the latter is zero.
    pub(super) ratio: Option<f64>,
}

impl Report {
    /// Summarizes the visits of each route; `None` without visits.
    pub(super) fn compare(setting: Setting, [direct, hairpin]: [(&Route, &[Visit]); 2]) -> Option<Self> {
        let Shapes { west_centre, centre_east, west_east } = setting.shapes;
        let gb = number(setting.plan.size) / 1e9;
        let figures: Vec<FigureReport> = FIGURES
            .iter()
            .map(|(key, title, unit, find)| {
                let summary = |visits: &[Visit]| {
                    Summary::from_samples(
                        &visits.iter().flat_map(|visit| find(visit, gb)).collect::<Vec<_>>(),
                    )
                };
                let (direct, hairpin) = (summary(direct.1)?, summary(hairpin.1)?);
                let ratio = (hairpin.median > 0.0).then(|| direct.median / hairpin.median);
                Some(FigureReport { key, title, unit, direct, hairpin, ratio })
            })
            .collect::<Option<_>>()?;
        Some(Self {
            schema: SCHEMA,
            bench_version: env!("CARGO_PKG_VERSION"),
            machine: Machine::read(),
            rounds: direct.1.len(),
            setting,
            equal_legs: west_centre == centre_east && centre_east == west_east,
            direct: RouteReport::new(direct),
            hairpin: RouteReport::new(hairpin),
            verdict: verdict(&figures)?,
            figures,
        })
    }
}

impl RouteReport {
    fn new((route, visits): (&Route, &[Visit])) -> Self {
        let seen = |what: fn(&Visit) -> &str| {
            let all: BTreeSet<&str> = visits.iter().map(what).collect();
            all.into_iter().collect::<Vec<_>>().join(", ")
        };
        Self {
            links: route.links.len(),
            links_round_trip_ms: route.links.iter().map(|link| 2.0 * ms(&link.delay)).sum(),
            encryptions: route.tls_connections,
            link_round_trips_to_first_byte: 3 * route.links.len(),
            service_saw: seen(|visit| &visit.service_saw),
            client_saw: seen(|visit| &visit.client_saw),
            key_exchange: seen(|visit| &visit.key_exchange),
        }
    }
}

fn verdict(figures: &[FigureReport]) -> Option<String> {
    let ratio = |key| figures.iter().find(|figure| figure.key == key)?.ratio;
    let (trip, first) = (ratio(ROUND_TRIP)?, ratio(FIRST_BYTE)?);
    Some(format!("direct needs {trip:.2} of the round trip and {first:.2} of the time to first byte"))
}

fn ms(time: &Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};
    use std::sync::Arc;

    use super::super::cost::Cost;
    use super::super::table;
    use super::super::trust::Trust;
    use super::*;
    use crate::wan::Shape;

    fn visit(milliseconds: u64, ingress: Duration, service_saw: &str) -> Visit {
        let time = Duration::from_millis(milliseconds);
        let cost = Cost { ingress, client: time, ..Cost::default() };
        Visit {
            handshake: 2 * time,
            first_byte: 3 * time,
            round_trips: vec![time; 3],
            fresh: 5 * time,
            open: 4 * time,
            connection: cost,
            transfer: cost,
            service_saw: service_saw.into(),
            client_saw: "spiffe://mesh.example/x".into(),
            key_exchange: "X25519".into(),
        }
    }

    fn report() -> Report {
        let trust = Trust::new().unwrap();
        let shape = Shape::default();
        let route = |name, links: Vec<Shape>| Route {
            name,
            entry: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            config: Arc::clone(&trust.to_service),
            tls_connections: links.len(),
            links,
        };
        let routes = [route("direct", vec![shape]), route("hairpin", vec![shape, shape])];
        let client_id = trust.client_id.to_string();
        let direct = [40, 30, 50].map(|time| visit(time, Duration::ZERO, &client_id));
        let hairpin =
            [80, 60, 160].map(|time| visit(time, Duration::from_secs(1), "spiffe://mesh.example/hub"));
        let setting = Setting {
            versions: ["gateway 1".into(), "haproxy 2".into()],
            congestion_control: "cubic".into(),
            plan: Plan { round_trips: 3, size: 500_000_000 },
            shapes: Shapes { west_centre: shape, centre_east: shape, west_east: shape },
            seed: 1,
            client_id,
            dropped: [1, 2, 3],
        };
        Report::compare(setting, [(&routes[0], &direct), (&routes[1], &hairpin)]).unwrap()
    }

    #[test]
    fn report_figures_are_round_medians_and_ratios_of_medians() {
        let report = report();
        let figure = |key| report.figures.iter().find(|figure| figure.key == key).unwrap();
        let trip = figure("round_trip");
        assert_eq!((trip.direct.median, trip.direct.min, trip.direct.max), (40.0, 30.0, 50.0));
        assert_eq!((trip.hairpin.median, trip.ratio), (80.0, Some(0.5)));
        assert_eq!(figure("cpu_gb_ingress").hairpin.median, 2.0, "one second for half a GB");
        assert_eq!(report.verdict, "direct needs 0.50 of the round trip and 0.50 of the time to first byte");
        assert!(report.equal_legs);
        assert_eq!((report.direct.encryptions, report.hairpin.encryptions), (1, 2));
        assert_eq!((report.direct.links_round_trip_ms, report.hairpin.links_round_trip_ms), (40.0, 80.0));
    }

    #[test]
    fn report_json_contains_every_table_figure() {
        let report = report();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["figures"][0]["key"], "round_trip");
        assert_eq!(json["hairpin"]["service_saw"], "spiffe://mesh.example/hub");
        assert_eq!(json["west_east"], "20ms, 100Mbit/s");
        let table = table::render(&report);
        for text in ["40.0 (30.0..50.0)", "0.50", "/hub, not the client", "west-east 3", "haproxy 2"] {
            assert!(table.contains(text), "{text} in\n{table}");
        }
    }
}
