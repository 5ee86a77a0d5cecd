//! What was measured, with the bar for each figure and whether it is met: as JSON and as a table.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};
use serde::Serialize;

use super::Size;
use super::change::Times;
use super::fanout::Step;
use super::large::Large;
use crate::report::Machine;
use crate::sample::number;

/// Changes when a reader of the JSON would have to change.
const SCHEMA: &str = "isthmus-bench/control/1";

/// Everything that a run found out.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: &'static str,
    bench_version: &'static str,
    machine: Machine,
    /// Overflow checks, optimisation and link-time optimisation are the build's: only this much is known here.
    debug_build: bool,
    figures: Vec<Figure>,
}

/// One number.
#[derive(Debug, Serialize)]
struct Figure {
    part: &'static str,
    title: String,
    unit: &'static str,
    value: f64,
    /// At most this, if anything was promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            schema: SCHEMA,
            bench_version: env!("CARGO_PKG_VERSION"),
            machine: Machine::read(),
            debug_build: cfg!(debug_assertions),
            figures: Vec::new(),
        }
    }

    fn tell(&mut self, part: &'static str, title: impl Into<String>, unit: &'static str, value: f64) {
        self.figures.push(Figure { part, title: title.into(), unit, value, bar: None, met: None });
    }

    fn bar(&mut self, part: &'static str, title: &str, unit: &'static str, value: f64, bar: f64) {
        let (bar, met) = (Some(bar), Some(value <= bar));
        self.figures.push(Figure { part, title: title.to_owned(), unit, value, bar, met });
    }

    pub(super) fn change(&mut self, size: Size, times: Times) {
        let part = "change";
        self.tell(part, "services", "", f64::from(size.services));
        let kinds = [("an endpoint is replaced", times.replaced), ("a service is added", times.added)];
        for (what, mut times) in kinds {
            times.sort();
            self.bar(part, &format!("{what}: p50"), "ms", ms(quantile(&times, 0.50)), 150.0);
            self.bar(part, &format!("{what}: p99"), "ms", ms(quantile(&times, 0.99)), 500.0);
            self.tell(part, format!("{what}: fastest"), "ms", ms(quantile(&times, 0.0)));
            self.tell(part, format!("{what}: slowest of {}", times.len()), "ms", ms(quantile(&times, 1.0)));
        }
    }

    /// What an added service costs is compared with what it costs in the small registry: in proportion to the
    /// change it is the same in both, in proportion to the registry it is as many times as it is larger.
    pub(super) fn large(&mut self, small: &Large, large: &Large) {
        let part = "large";
        let mib = |kib: u64| number(kib) / 1024.0;
        let endpoints = f64::from(large.size.services) * f64::from(large.size.endpoints);
        self.tell(part, "services", "", f64::from(large.size.services));
        self.tell(part, "endpoints", "", endpoints);
        self.tell(part, "the agent has read its registry after", "s", large.read.as_secs_f64());
        self.bar(part, "first sync of a gateway", "s", large.first_sync.as_secs_f64(), 10.0);
        self.tell(part, "first sync: bytes", "MB", number(large.first_sync_bytes) / 1e6);
        self.bar(part, "agent: RSS", "MiB", mib(large.agent_rss), 1024.0);
        self.bar(part, "agent: RSS at most", "MiB", mib(large.agent_peak), 1024.0);
        let each = |kib: u64| number(kib) * 1024.0 / endpoints;
        self.bar(part, "gateway: RSS for each endpoint", "B", each(large.gateway_rss), 400.0);
        self.tell(part, "gateway: RSS at most for each endpoint", "B", each(large.gateway_peak));
        let added = (large.added, small.added);
        self.tell(part, "one added service: live in the gateway after", "ms", ms(added.0.live));
        self.tell(part, "one added service: bytes", "B", number(added.0.bytes));
        self.tell(part, "one added service: agent's CPU", "ms", ms(added.0.agent));
        self.tell(part, "one added service: gateway's CPU", "ms", ms(added.0.gateway));
        self.tell(part, "without a change: agent's CPU in a second", "ms", ms(large.agent_idle));
        let factor = large.size.services / small.size.services.max(1);
        self.tell(part, "the small registry: smaller by", "×", f64::from(factor));
        self.tell(part, "the small registry: bytes", "B", number(added.1.bytes));
        self.tell(part, "the small registry: agent's CPU", "ms", ms(added.1.agent));
        self.tell(part, "the small registry: gateway's CPU", "ms", ms(added.1.gateway));
        let ratio = |large: Duration, small: Duration| ms(large) / ms(small).max(1.0);
        let bytes = number(added.0.bytes) / number(added.1.bytes.max(1));
        self.bar(part, "large ÷ small: bytes of an added service", "×", bytes, 2.0);
        let agent = ratio(added.0.agent, added.1.agent);
        self.bar(part, "large ÷ small: agent's CPU of an added service", "×", agent, 2.0);
        let gateway = ratio(added.0.gateway, added.1.gateway);
        self.bar(part, "large ÷ small: gateway's CPU of an added service", "×", gateway, 2.0);
    }

    pub(super) fn fanout(&mut self, size: Size, peers: usize, steps: &[Step]) {
        let part = "fanout";
        self.tell(part, "services", "", f64::from(size.services));
        self.tell(part, "peers", "", count(peers));
        for step in steps {
            let gateways = step.gateways;
            let about = |what: &str| format!("{gateways} gateways: {what}");
            self.tell(part, about("all joined and in sync after"), "s", step.joined.as_secs_f64());
            self.tell(part, about("the last has a change, p50"), "ms", ms(quantile(&step.times, 0.5)));
            let slowest = ms(quantile(&step.times, 1.0));
            self.bar(part, &about("the last has a change, slowest"), "ms", slowest, 1000.0);
            self.tell(part, about("agent's CPU for a change"), "ms", ms(step.agent));
            self.tell(part, about("agent: RSS"), "MiB", number(step.agent_rss) / 1024.0);
        }
        let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return };
        let points = |of: fn(&Step) -> f64| -> Vec<(f64, f64)> {
            steps.iter().map(|step| (count(step.members), of(step))).collect()
        };
        let (slope, base) = line(&points(|step| ms(quantile(&step.times, 0.5))));
        self.tell(part, "slope: time for each receiver", "ms", slope);
        self.tell(part, "slope: time with none", "ms", base);
        let (slope, _) = line(&points(|step| ms(step.agent)));
        self.tell(part, "slope: agent's CPU for each receiver", "ms", slope);
        let receivers = count(last.members) / count(first.members).max(1.0);
        let title = format!("CPU for each receiver: {} gateways ÷ {}", last.gateways, first.gateways);
        let growth = ms(last.agent) / ms(first.agent).max(0.1) / receivers;
        self.bar(part, &title, "×", growth, 1.25);
    }

    /// The table for a terminal.
    pub(super) fn render(&self) -> String {
        let Machine { cpu, cores, kernel, .. } = &self.machine;
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{cpu}, {cores} cores, Linux {kernel}");
        if self.debug_build {
            text += "a debug build: its figures mean nothing\n";
        }
        let _ = writeln!(text, "{}", self.table().trim_fmt());
        let missed: Vec<_> = self.figures.iter().filter(|figure| figure.met == Some(false)).collect();
        let bars = self.figures.iter().filter(|figure| figure.met.is_some()).count();
        let _ = writeln!(text, "{} of {bars} bars are met", bars - missed.len());
        for figure in missed {
            let _ = writeln!(text, "NOT met: {}: {}", figure.part, figure.title);
        }
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        let line = |fill| LineStyle::none().fill(fill).junction(fill);
        let style = TableStyle::new().top_border(line('─')).header_separator(line('═'));
        table.load_style(style.bottom_border(line('─')));
        table.set_header(["part", "figure", "measured", "at most", ""]);
        for figure in &self.figures {
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            let bar = figure.bar.map_or_else(String::new, |bar| shown(bar, figure.unit));
            let verdict = match figure.met {
                Some(true) => "met",
                Some(false) => "NOT met",
                None => "",
            };
            table.add_row([
                Cell::new(figure.part),
                Cell::new(&figure.title),
                right(shown(figure.value, figure.unit)),
                right(bar),
                Cell::new(verdict),
            ]);
        }
        table
    }
}

fn shown(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 || large.fract() == 0.0 => 0,
        medium if medium >= 10.0 => 1,
        _ => 3,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn count(of: usize) -> f64 {
    number(of as u64)
}

/// Of ascending times: the smallest that so many are not above.
fn quantile(times: &[Duration], share: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    let place = (count(times.len()) * share).ceil() as usize;
    times.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

/// Slope and start of the straight line that is nearest to some points.
fn line(points: &[(f64, f64)]) -> (f64, f64) {
    let n = count(points.len()).max(1.0);
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let over: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let under: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let slope = if under == 0.0 { 0.0 } else { over / under };
    (slope, y - slope * x)
}

#[cfg(test)]
mod tests {
    use super::super::large::Added;
    use super::*;

    fn times(milliseconds: &[u64]) -> Vec<Duration> {
        milliseconds.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn a_quantile_is_a_time_that_was_measured() {
        let hundred = times(&(1..=100).collect::<Vec<_>>());
        let found = [0.0, 0.5, 0.99, 1.0].map(|share| quantile(&hundred, share).as_millis());
        assert_eq!(found, [1, 50, 99, 100]);
        assert_eq!(quantile(&times(&[7]), 0.99), Duration::from_millis(7));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn a_line_is_found_again() {
        let (slope, start) = line(&[(50.0, 110.0), (100.0, 210.0), (200.0, 410.0)]);
        assert!((slope - 2.0).abs() < 1e-9 && (start - 10.0).abs() < 1e-9);
        assert_eq!(line(&[(1.0, 5.0)]), (0.0, 5.0));
    }

    fn large(services: u32, agent: u64) -> Large {
        let added = Added {
            bytes: 700,
            agent: Duration::from_millis(agent),
            gateway: Duration::from_millis(2),
            live: Duration::from_millis(80),
        };
        Large {
            size: Size { services, endpoints: 3 },
            read: Duration::from_secs(1),
            first_sync: Duration::from_secs(11),
            first_sync_bytes: 1,
            agent_rss: 2 << 20,
            agent_peak: 3 << 20,
            gateway_rss: 100,
            gateway_peak: 200,
            added,
            agent_idle: Duration::ZERO,
        }
    }

    #[test]
    fn a_miss_is_shown_as_one() {
        let mut report = Report::new();
        let replaced = times(&[100, 120, 700]);
        report.change(Size { services: 10, endpoints: 1 }, Times { replaced, added: times(&[90]) });
        report.large(&large(1_000, 5), &large(10_000, 50));
        let step = |gateways: usize, slowest: u64| Step {
            gateways,
            members: gateways,
            joined: Duration::ZERO,
            times: times(&[10, slowest]),
            agent: Duration::from_millis(gateways as u64),
            agent_rss: 1,
        };
        report.fanout(Size { services: 10, endpoints: 1 }, 0, &[step(50, 20), step(200, 1_001)]);
        let text = report.render();
        for missed in [
            "an endpoint is replaced: p99",
            "first sync of a gateway",
            "agent: RSS at most",
            "agent's CPU of an added service",
            "200 gateways: the last has a change, slowest",
        ] {
            assert!(text.contains(&format!("{missed}\n")), "{missed} in\n{text}");
        }
        assert!(text.contains("8 of 14 bars are met") || text.contains("NOT met"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        let figures = json["figures"].as_array().unwrap();
        let find = |title: &str| figures.iter().find(|figure| figure["title"] == title).unwrap();
        assert_eq!(find("an endpoint is replaced: p50")["met"], true);
        assert_eq!(find("first sync of a gateway")["met"], false);
        assert_eq!(find("large ÷ small: agent's CPU of an added service")["value"], 10.0);
        assert_eq!(find("CPU for each receiver: 200 gateways ÷ 50")["met"], true);
    }
}
