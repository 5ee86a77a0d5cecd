//! The report of `control`: figures with their targets and verdicts, as JSON and as a table.

use std::fmt::Write as _;
use std::time::Duration;

use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};
use serde::Serialize;

use super::Size;
use super::change::Times;
use super::fanout::Step;
use super::large::{Added, Large};
use super::pages::Page;
use crate::report::Machine;
use crate::sample::number;
use crate::stats::Summary;

/// Schema name; changes with every incompatible change.
const SCHEMA: &str = "isthmus-bench/control/1";

/// The result of a run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    schema: &'static str,
    bench_version: &'static str,
    machine: Machine,
    /// The only property of the build profile that is known at run time.
    debug_build: bool,
    figures: Vec<Figure>,
}

/// One figure.
#[derive(Debug, Serialize)]
struct Figure {
    part: &'static str,
    title: String,
    unit: &'static str,
    value: f64,
    /// Upper limit, if there is a target.
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<Verdict>,
}

/// Whether a target is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Met,
    NotMet,
    /// The rounds are on both sides of the target, or changes were merged.
    Unclear,
}

impl Verdict {
    fn new(is_met: bool) -> Self {
        if is_met { Self::Met } else { Self::NotMet }
    }
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
        self.figures.push(Figure { part, title: title.into(), unit, value, bar: None, verdict: None });
    }

    fn bar(&mut self, part: &'static str, title: &str, unit: &'static str, value: f64, bar: f64) {
        self.judged(part, title, unit, (value, bar, Verdict::new(value <= bar)));
    }

    fn judged(
        &mut self,
        part: &'static str,
        title: &str,
        unit: &'static str,
        (value, bar, verdict): (f64, f64, Verdict),
    ) {
        let (bar, verdict) = (Some(bar), Some(verdict));
        self.figures.push(Figure { part, title: title.to_owned(), unit, value, bar, verdict });
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

    /// Compares the cost of an added service with that in the small registry: it is equal if the cost follows
    /// the change, and many times larger if it follows the size of the registry.
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
        self.added("", large);
        self.added("the small registry: ", small);
        let (large, small) = (&large.added, &small.added);
        let is_sound = large.is_each_alone && small.is_each_alone;
        let bytes = number(large.bytes) / number(small.bytes.max(1));
        let verdict = if is_sound { Verdict::new(bytes <= TWICE) } else { Verdict::Unclear };
        self.judged(part, "large ÷ small: bytes of an added service", "×", (bytes, TWICE, verdict));
        for (who, large, small) in
            [("agent", large.agent, small.agent), ("gateway", large.gateway, small.gateway)]
        {
            let title = format!("large ÷ small: {who}'s CPU of an added service");
            self.judged(part, &title, "×", ratio(large, small, is_sound));
        }
    }

    fn added(&mut self, which: &str, registry: &Large) {
        let Added { bytes, agent, gateway, is_each_alone, live } = registry.added;
        let part = "large";
        let about = |what: &str| format!("{which}one added service: {what}");
        self.tell(part, about("live in the gateway after"), "ms", ms(live));
        self.tell(part, about("bytes"), "B", number(bytes));
        for (who, cost) in [("agent", agent), ("gateway", gateway)] {
            self.tell(part, about(&format!("{who}'s CPU")), "ms", cost.median);
            self.tell(part, about(&format!("{who}'s CPU, least of the rounds")), "ms", cost.min);
            self.tell(part, about(&format!("{who}'s CPU, most of the rounds")), "ms", cost.max);
        }
        if !is_each_alone {
            self.tell(part, about("several went as one: bytes and CPU are too low"), "", 1.0);
        }
        let idle = format!("{which}without a change: agent's CPU in a second");
        self.tell(part, idle, "ms", ms(registry.agent_idle));
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

    pub(super) fn pages(&mut self, size: Size, pages: &[Page]) {
        let part = "pages";
        self.tell(part, "services", "", f64::from(size.services));
        for Page { work, program, path, times } in pages {
            let about = |what: &str| format!("{work}: {program}, {path}: {what}");
            self.tell(part, about(&format!("p50 of {}", times.len())), "ms", ms(quantile(times, 0.5)));
            self.bar(part, &about("slowest"), "ms", ms(quantile(times, 1.0)), 100.0);
        }
    }

    /// Renders the table for a terminal.
    pub(super) fn render(&self) -> String {
        let Machine { cpu, cores, kernel, .. } = &self.machine;
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{cpu}, {cores} cores, Linux {kernel}");
        if self.debug_build {
            text += "debug build: the figures are meaningless\n";
        }
        let _ = writeln!(text, "{}", self.table().trim_fmt());
        let bars: Vec<_> = self.figures.iter().filter_map(|one| Some((one, one.verdict?))).collect();
        let met = bars.iter().filter(|(_, verdict)| *verdict == Verdict::Met).count();
        let _ = writeln!(text, "{met} of {} targets met", bars.len());
        for (figure, verdict) in bars.iter().filter(|(_, verdict)| *verdict != Verdict::Met) {
            let _ = writeln!(text, "{}: {}: {}", label(*verdict), figure.part, figure.title);
        }
        text
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        let line = |fill| LineStyle::none().fill(fill).junction(fill);
        let style = TableStyle::new().top_border(line('─')).header_separator(line('═'));
        table.load_style(style.bottom_border(line('─')));
        table.set_header(["part", "figure", "measured", "target (at most)", ""]);
        for figure in &self.figures {
            let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
            let bar = figure.bar.map_or_else(String::new, |bar| with_unit(bar, figure.unit));
            let verdict = figure.verdict.map(label).unwrap_or_default();
            table.add_row([
                Cell::new(figure.part),
                Cell::new(&figure.title),
                right(with_unit(figure.value, figure.unit)),
                right(bar),
                Cell::new(verdict),
            ]);
        }
        table
    }
}

/// Largest accepted ratio of the large to the small registry; equal costs would be 1.
const TWICE: f64 = 2.0;
/// CPU times below this, in ms, are indistinguishable from zero.
const TICK: f64 = 1.0;

/// The ratio of the medians, and whether all rounds are on the same side of the target. A negative cost means
/// that the noise is larger than the cost: the verdict is unclear.
fn ratio(large: Summary, small: Summary, is_sound: bool) -> (f64, f64, Verdict) {
    let of = |large: f64, small: f64| large.max(TICK) / small.max(TICK);
    let (least, most) = (of(large.min, small.max), of(large.max, small.min));
    let is_told = large.min.min(small.min) >= -TICK;
    let verdict = match (least <= TWICE, most <= TWICE) {
        (true, true) if is_sound && is_told => Verdict::Met,
        (false, false) => Verdict::NotMet,
        _ => Verdict::Unclear,
    };
    (of(large.median, small.median), TWICE, verdict)
}

fn with_unit(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        large if large >= 100.0 || large.fract() == 0.0 => 0,
        medium if medium >= 10.0 => 1,
        _ => 3,
    };
    format!("{value:.digits$} {unit}").trim_end().to_owned()
}

fn label(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "met",
        Verdict::NotMet => "NOT met",
        Verdict::Unclear => "unclear",
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn count(of: usize) -> f64 {
    number(of as u64)
}

/// A quantile of ascending times, as a measured value.
fn quantile(times: &[Duration], share: f64) -> Duration {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a place in the list")]
    let place = (count(times.len()) * share).ceil() as usize;
    times.get(place.saturating_sub(1)).copied().unwrap_or_default()
}

/// Slope and intercept of the regression line.
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
    use super::*;

    fn times(milliseconds: &[u64]) -> Vec<Duration> {
        milliseconds.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn quantile_is_a_measured_value() {
        let hundred = times(&(1..=100).collect::<Vec<_>>());
        let found = [0.0, 0.5, 0.99, 1.0].map(|share| quantile(&hundred, share).as_millis());
        assert_eq!(found, [1, 50, 99, 100]);
        assert_eq!(quantile(&times(&[7]), 0.99), Duration::from_millis(7));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn record_lookup_finds_line_by_name() {
        let (slope, start) = line(&[(50.0, 110.0), (100.0, 210.0), (200.0, 410.0)]);
        assert!((slope - 2.0).abs() < 1e-9 && (start - 10.0).abs() < 1e-9);
        assert_eq!(line(&[(1.0, 5.0)]), (0.0, 5.0));
    }

    fn large(services: u32, agent: f64) -> Large {
        let added = Added {
            bytes: 700,
            agent: Summary { median: agent, min: agent, max: agent },
            gateway: Summary { median: 2.0, min: 2.0, max: 2.0 },
            is_each_alone: true,
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
    fn missed_target_is_reported_as_missed() {
        let mut report = Report::new();
        let replaced = times(&[100, 120, 700]);
        report.change(Size { services: 10, endpoints: 1 }, Times { replaced, added: times(&[90]) });
        report.large(&large(1_000, 5.0), &large(10_000, 50.0));
        let step = |gateways: usize, slowest: u64| Step {
            gateways,
            members: gateways,
            joined: Duration::ZERO,
            times: times(&[10, slowest]),
            agent: Duration::from_millis(gateways as u64),
            agent_rss: 1,
        };
        report.fanout(Size { services: 10, endpoints: 1 }, 0, &[step(50, 20), step(200, 1_001)]);
        let page = |path, slowest| Page {
            work: "slices arrive",
            program: "agent",
            path,
            times: times(&[2, slowest]),
        };
        report.pages(Size { services: 10, endpoints: 1 }, &[page("/metrics", 101), page("/status", 99)]);
        let text = report.render();
        for missed in [
            "an endpoint is replaced: p99",
            "first sync of a gateway",
            "agent: RSS at most",
            "agent's CPU of an added service",
            "200 gateways: the last has a change, slowest",
            "slices arrive: agent, /metrics: slowest",
        ] {
            assert!(text.contains(&format!("{missed}\n")), "{missed} in\n{text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        let figures = json["figures"].as_array().unwrap();
        let find = |title: &str| figures.iter().find(|figure| figure["title"] == title).unwrap();
        assert_eq!(find("an endpoint is replaced: p50")["verdict"], "met");
        assert_eq!(find("first sync of a gateway")["verdict"], "not_met");
        assert_eq!(find("large ÷ small: agent's CPU of an added service")["value"], 10.0);
        assert_eq!(find("CPU for each receiver: 200 gateways ÷ 50")["verdict"], "met");
    }

    #[test]
    fn target_is_undecided_under_noise_or_merged_changes() {
        let rounds = |min, median, max| Summary { median, min, max };
        let verdict = |large, small, is_sound| ratio(large, small, is_sound).2;
        let small = rounds(4.0, 5.0, 6.0);
        assert_eq!(verdict(rounds(5.0, 6.0, 7.0), small, true), Verdict::Met);
        assert_eq!(verdict(rounds(5.0, 6.0, 7.0), small, false), Verdict::Unclear, "merged changes");
        assert_eq!(verdict(rounds(40.0, 50.0, 60.0), small, true), Verdict::NotMet);
        assert_eq!(verdict(rounds(-9.0, 2.0, 15.0), small, true), Verdict::Unclear);
        assert_eq!(verdict(rounds(-6.0, -2.0, 1.0), rounds(-1.0, 1.0, 2.0), true), Verdict::Unclear);
        assert_eq!(verdict(rounds(-1.0, 0.0, 0.5), rounds(-1.0, 0.0, 0.5), true), Verdict::Met);
    }
}
