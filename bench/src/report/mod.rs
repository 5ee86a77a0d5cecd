//! From samples to a report: medians, spread, ratios, and which count of the CPU to believe. The report is
//! what `--json` writes; [`table`] shows it to people. Measures nothing.

mod machine;
pub(crate) mod table;

use serde::Serialize;

pub(crate) use machine::Machine;

use crate::scenarios::{Case, Figure, Sample};
use crate::stats::Summary;

/// Changes when a reader of the JSON would have to change.
const SCHEMA: &str = "isthmus-bench/compare/1";
/// The system that ratios refer to.
const US: &str = "isthmus";
/// When the two counts of the CPU differ by more of the machine than this, the sampled one, which also has
/// others in it, is not believed.
const TOLERANCE: f64 = 0.03;

/// Everything that a run found out.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    pub(crate) bench_version: &'static str,
    pub(crate) machine: Machine,
    pub(crate) began_unix: u64,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    /// The part of the machine that was busy before anything ran, 0 to 1.
    pub(crate) busy_before: f64,
    pub(crate) systems: Vec<SystemInfo>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) cases: Vec<CaseReport>,
}

/// A system that took part.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SystemInfo {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) program: String,
}

/// A system that did not.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Skipped {
    pub(crate) name: &'static str,
    pub(crate) why: String,
}

/// One measurement as it was made: which system, and what came out or went wrong.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) case: Case,
    pub(crate) system: &'static str,
    pub(crate) outcome: Result<Sample, String>,
}

/// One case for all systems.
#[derive(Debug, Serialize)]
pub(crate) struct CaseReport {
    pub(crate) case: String,
    /// The least and the most that `cpu_machine` was above `cpu_processes` in any measurement of this
    /// case, as a part of the whole machine; none where no CPU was counted.
    pub(crate) cpu_gap: Option<(f64, f64)>,
    /// The key of the count of the machine's CPU to believe.
    pub(crate) cpu_headline: &'static str,
    pub(crate) systems: Vec<Row>,
}

/// One system's figures in one case.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) system: &'static str,
    pub(crate) figures: Vec<FigureReport>,
    pub(crate) failures: Vec<String>,
}

/// One figure over all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct FigureReport {
    pub(crate) key: &'static str,
    pub(crate) unit: &'static str,
    #[serde(flatten)]
    pub(crate) summary: Summary,
    pub(crate) samples: Vec<f64>,
    /// This median divided by ours.
    pub(crate) ratio_to_isthmus: Option<f64>,
}

impl Report {
    pub(crate) fn new(machine: Machine, rounds: usize, seconds: f64, busy_before: f64) -> Self {
        Self {
            schema: SCHEMA,
            bench_version: env!("CARGO_PKG_VERSION"),
            machine,
            began_unix: machine::unix_time(),
            rounds,
            seconds,
            busy_before,
            systems: Vec::new(),
            skipped: Vec::new(),
            cases: Vec::new(),
        }
    }

    /// Sums the measurements up, in the order of `cases` and of the systems that took part.
    pub(crate) fn summarise(&mut self, cases: &[Case], measurements: &[Measurement]) {
        let names: Vec<_> = self.systems.iter().map(|system| system.name).collect();
        self.cases = cases.iter().map(|case| case_report(*case, &names, measurements)).collect();
    }

    pub(crate) fn failures(&self) -> usize {
        self.cases.iter().flat_map(|case| &case.systems).map(|row| row.failures.len()).sum()
    }
}

fn case_report(case: Case, names: &[&'static str], all: &[Measurement]) -> CaseReport {
    let here = || all.iter().filter(move |measurement| measurement.case == case);
    let gaps: Vec<f64> = here().filter_map(|measurement| measurement.outcome.as_ref().ok()?.gap).collect();
    let cpu_gap = Summary::of(&gaps).map(|gaps| (gaps.min, gaps.max));
    let agreed = gaps.iter().all(|gap| gap.abs() <= TOLERANCE);
    let believed = if agreed { Figure::CpuMachine } else { Figure::CpuProcesses };
    let mut systems: Vec<Row> = names
        .iter()
        .map(|name| row(case, name, here().filter(|measurement| measurement.system == *name)))
        .filter(|row| !row.figures.is_empty() || !row.failures.is_empty())
        .collect();
    add_ratios(&mut systems);
    CaseReport { case: case.name(), cpu_gap, cpu_headline: believed.key(), systems }
}

fn row<'a>(case: Case, system: &'static str, own: impl Iterator<Item = &'a Measurement>) -> Row {
    let mut row = Row { system, figures: Vec::new(), failures: Vec::new() };
    let mut samples: Vec<(Figure, Vec<f64>)> = Vec::new();
    for measurement in own {
        match &measurement.outcome {
            Err(why) => row.failures.push(why.clone()),
            Ok(sample) => {
                for (figure, value) in &sample.figures {
                    match samples.iter_mut().find(|(known, _)| known == figure) {
                        Some((_, values)) => values.push(*value),
                        None => samples.push((*figure, vec![*value])),
                    }
                }
            }
        }
    }
    row.figures = samples
        .into_iter()
        .filter_map(|(figure, samples)| {
            let summary = Summary::of(&samples)?;
            let (key, unit) = (figure.key(), figure.unit(case));
            Some(FigureReport { key, unit, summary, samples, ratio_to_isthmus: None })
        })
        .collect();
    row
}

fn add_ratios(systems: &mut [Row]) {
    let Some(us) = systems.iter().find(|row| row.system == US) else { return };
    let ours: Vec<_> = us.figures.iter().map(|figure| (figure.key, figure.summary.median)).collect();
    for figure in systems.iter_mut().filter(|row| row.system != US).flat_map(|row| &mut row.figures) {
        let base = ours.iter().find(|(key, _)| *key == figure.key).map(|(_, median)| *median);
        figure.ratio_to_isthmus = base.filter(|base| *base > 0.0).map(|base| figure.summary.median / base);
    }
}

impl Figure {
    fn key(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Rate => "rate",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::CpuMachine => "cpu_machine",
            Self::CpuProcesses => "cpu_processes",
            Self::CpuProxy => "cpu_proxy",
            Self::RestRss => "rest_rss",
            Self::RestPss => "rest_pss",
            Self::PerConnection => "per_connection",
            Self::Pipes => "pipe_ends",
        }
    }

    fn unit(self, case: Case) -> &'static str {
        match self {
            Self::Throughput => "GB/s",
            Self::Rate => "conn/s",
            Self::P50 | Self::P99 => "µs",
            Self::RestRss | Self::RestPss => "MiB",
            Self::PerConnection => "KiB",
            Self::Pipes => "",
            Self::CpuMachine | Self::CpuProcesses | Self::CpuProxy => match case {
                Case::Bulk => "s/GB",
                Case::Short => "µs/conn",
                Case::Pingpong { .. } | Case::Mixed | Case::Idle => "µs/trip",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(system: &'static str, machine: f64, gap: f64) -> Measurement {
        let figures = vec![(Figure::CpuMachine, machine), (Figure::CpuProcesses, machine / 2.0)];
        Measurement { case: Case::Bulk, system, outcome: Ok(Sample { figures, gap: Some(gap) }) }
    }

    fn summed_up(measurements: &[Measurement]) -> Report {
        let mut report = Report::new(Machine::read(), 3, 1.0, 0.0);
        report.systems = ["direct", "isthmus", "nginx"]
            .map(|name| SystemInfo { name, version: String::new(), program: String::new() })
            .into();
        report.summarise(&[Case::Bulk, Case::Short], measurements);
        report
    }

    #[test]
    fn medians_are_compared_to_ours_and_what_failed_is_kept() {
        let failed = Measurement { case: Case::Bulk, system: "nginx", outcome: Err("broken".into()) };
        let mut all: Vec<_> = [2.0, 4.0, 3.0].map(|value| measured("isthmus", value, 0.0)).into();
        all.extend([9.0, 6.0, 5.0].map(|value| measured("nginx", value, 0.01)));
        all.push(failed);
        let report = summed_up(&all);
        let [ours, theirs] = &report.cases[0].systems[..] else { panic!("{report:?}") };
        assert_eq!((ours.system, ours.figures[0].ratio_to_isthmus), ("isthmus", None));
        assert_eq!(theirs.figures[0].summary, Summary { median: 6.0, min: 5.0, max: 9.0 });
        assert_eq!(theirs.figures[0].ratio_to_isthmus, Some(2.0));
        assert_eq!(theirs.failures, ["broken"]);
        assert_eq!(report.failures(), 1);
        assert!(report.cases[1].systems.is_empty(), "nothing was measured there");
    }

    #[test]
    fn one_noisy_measurement_takes_the_machines_count_out_of_the_headline_for_all() {
        let quiet = summed_up(&[measured("isthmus", 2.0, 0.01), measured("nginx", 2.0, 0.02)]);
        assert_eq!(quiet.cases[0].cpu_headline, "cpu_machine");
        let noisy = summed_up(&[measured("isthmus", 2.0, 0.01), measured("nginx", 2.0, 0.2)]);
        assert_eq!(noisy.cases[0].cpu_headline, "cpu_processes");
        assert_eq!(noisy.cases[0].cpu_gap, Some((0.01, 0.2)));
        let missed = summed_up(&[measured("isthmus", 2.0, -0.15)]);
        assert_eq!(missed.cases[0].cpu_headline, "cpu_processes", "sampled too low is no better");
    }
}
