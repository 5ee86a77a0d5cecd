//! The result of one measurement: figures, the latency distribution and the gap between the two CPU counts.
//! For summaries of several see [`crate::report`].

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::cpu::Usage;

/// Longest latency of a histogram; longer ones are clamped.
pub(crate) const LONGEST: Duration = Duration::from_mins(1);

/// Name, unit and direction of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Figure {
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// Whether larger or smaller values are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

impl Figure {
    pub(crate) const fn more(key: &'static str, title: &'static str, unit: &'static str) -> Self {
        Self { key, title, unit, better: Better::More }
    }

    pub(crate) const fn less(key: &'static str, title: &'static str, unit: &'static str) -> Self {
        Self { key, title, unit, better: Better::Less }
    }
}

const P50: Figure = Figure::less("p50", "p50", "µs");
const P99: Figure = Figure::less("p99", "p99", "µs");

/// Figure keys used by the report.
pub(crate) const CPU_MACHINE: &str = "cpu_machine";
pub(crate) const CPU_PROCESSES: &str = "cpu_processes";
pub(crate) const BUSY: &str = "busy";

/// The amount of work during a CPU count, and the units of the cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    units: f64,
    /// Factor applied to seconds.
    scale: f64,
    cpu_unit: &'static str,
    switches_unit: &'static str,
}

impl Work {
    pub(crate) fn bytes(count: u64) -> Self {
        Self { units: number(count) / 1e9, scale: 1.0, cpu_unit: "s/GB", switches_unit: "1/GB" }
    }

    pub(crate) fn connections(count: u64) -> Self {
        Self { units: number(count), scale: 1e6, cpu_unit: "µs/conn", switches_unit: "1/conn" }
    }

    pub(crate) fn round_trips(count: u64) -> Self {
        Self { units: number(count), scale: 1e6, cpu_unit: "µs/trip", switches_unit: "1/trip" }
    }
}

/// The result of one measurement of one system.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) figures: Vec<(Figure, f64)>,
    /// In nanoseconds; `None` if the load has no latency.
    pub(crate) latency: Option<Histogram<u64>>,
    /// See [`Usage::gap`]; `None` without a CPU count.
    pub(crate) gap: Option<f64>,
}

impl Sample {
    /// A sample with p99 as its headline, however few values there are.
    pub(crate) fn of_p99(latency: &Histogram<u64>) -> Self {
        Self::new(P99, number(latency.value_at_quantile(0.99)) / 1e3).with_latency(latency)
    }

    /// A sample with p50 as its headline, however few values there are.
    pub(crate) fn of_p50(latency: &Histogram<u64>) -> Self {
        Self::new(P50, number(latency.value_at_quantile(0.5)) / 1e3).with_latency(latency)
    }

    /// A sample with this headline figure.
    pub(crate) fn new(figure: Figure, value: f64) -> Self {
        Self { figures: vec![(figure, value)], ..Self::default() }
    }

    /// Adds a figure; an existing one is kept.
    pub(crate) fn and(mut self, figure: Figure, value: f64) -> Self {
        if !self.figures.iter().any(|(known, _)| *known == figure) {
            self.figures.push((figure, value));
        }
        self
    }

    /// Adds the quantiles that the number of values supports.
    pub(crate) fn with_latency(mut self, latency: &Histogram<u64>) -> Self {
        const QUANTILES: [(f64, Figure); 4] = [
            (0.5, P50),
            (0.9, Figure::less("p90", "p90", "µs")),
            (0.99, P99),
            (0.999, Figure::less("p99.9", "p99.9", "µs")),
        ];
        for (quantile, figure) in QUANTILES {
            if number(latency.len()) * (1.0 - quantile) >= 1.0 {
                self = self.and(figure, number(latency.value_at_quantile(quantile)) / 1e3);
            }
        }
        self = self.and(Figure::less("max", "max", "µs"), number(latency.max()) / 1e3);
        self.latency = Some(latency.clone());
        self
    }

    /// Adds how much of a core the proxy used: one whose only worker is not busy was not the limit.
    pub(crate) fn with_busy(self, usage: &Usage) -> Self {
        let busy = usage.proxy.map_or(0.0, |proxy| proxy.cpu / usage.wall * 100.0);
        self.and(Figure::more(BUSY, "worker busy", "%"), busy)
    }

    /// Adds CPU, context switches, peak memory and descriptors.
    pub(crate) fn with_usage(mut self, usage: &Usage, work: Work) -> Self {
        let cpu = |seconds: f64| seconds * work.scale / work.units;
        let unit = work.cpu_unit;
        self = self.and(Figure::less(CPU_MACHINE, "CPU by /proc/stat", unit), cpu(usage.machine));
        self = self.and(Figure::less(CPU_PROCESSES, "CPU of bench + proxy", unit), cpu(usage.processes));
        if let Some(proxy) = &usage.proxy {
            let each = proxy.switches / work.units;
            self = self
                .and(Figure::less("cpu_proxy", "CPU of proxy", unit), cpu(proxy.cpu))
                .and(Figure::less("cpu_user", "its user part", unit), cpu(proxy.user))
                .and(Figure::less("cpu_system", "its system part", unit), cpu(proxy.cpu - proxy.user))
                .and(Figure::less("switches", "context switches", work.switches_unit), each)
                .and(Figure::less("peak_rss", "peak RSS", "MiB"), proxy.peak_rss)
                .and(Figure::less("descriptors", "descriptors", ""), proxy.descriptors);
        }
        self.gap = Some(usage.gap());
        self
    }
}

/// An empty histogram of nanoseconds, exact to 0.1 %, without later allocations.
pub(crate) fn histogram() -> io::Result<Histogram<u64>> {
    let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
    Histogram::new_with_max(longest, 3).map_err(io::Error::other)
}

/// Records a time, clamped to the longest.
pub(crate) fn record(latency: &mut Histogram<u64>, time: Duration) {
    latency.saturating_record(u64::try_from(time.min(LONGEST).as_nanos()).unwrap_or(u64::MAX));
}

#[expect(clippy::cast_precision_loss, reason = "a measurement is not known to 53 bits")]
pub(crate) fn number(count: u64) -> f64 {
    count as f64
}
