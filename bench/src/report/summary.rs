//! Summarizes measurements into a report: medians, spread, ratios, distributions, the more reliable CPU
//! figure, and results limited by the load generator.

use hdrhistogram::Histogram;

use super::{CaseReport, DIRECT, FigureReport, Point, Row, US};
use crate::cases::{Case, Scenario};
use crate::sample::{BUSY, Better, CPU_MACHINE, CPU_PROCESSES, Figure, Sample, number};
use crate::stats::Summary;

/// Largest difference of the two CPU counts, as a share of the machine. Beyond it the sampled one, which
/// includes other programs, is not used.
const TOLERANCE: f64 = 0.03;
/// A system with at least this share of the direct connection's speed was not the limit.
const NEAR_DIRECT: f64 = 0.9;
/// Percent of a core below which a proxy's only worker was not the limit.
const SATURATED: f64 = 90.0;

/// One measurement of one system, with its result or error.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) case: Case,
    pub(crate) system: String,
    pub(crate) outcome: Result<Sample, String>,
}

/// Summarizes one case for the systems in this order; `None` without measurements.
pub(crate) fn case_report(
    scenario: Scenario,
    case: Case,
    names: &[String],
    all: &[Measurement],
) -> Option<CaseReport> {
    let here: Vec<&Measurement> = all.iter().filter(|measurement| measurement.case == case).collect();
    let samples = || here.iter().filter_map(|measurement| measurement.outcome.as_ref().ok());
    let headline = samples().find_map(|sample| sample.figures.first())?.0.key;
    let gaps: Vec<f64> = samples().filter_map(|sample| sample.gap).collect();
    let agreed = gaps.iter().all(|gap| gap.abs() <= TOLERANCE);
    let mut systems: Vec<Row> = names
        .iter()
        .map(|name| row(name, here.iter().copied().filter(|measurement| measurement.system == *name)))
        .filter(|row| !row.figures.is_empty() || !row.failures.is_empty())
        .collect();
    compare(&mut systems, headline);
    Some(CaseReport {
        scenario: scenario.name(),
        title: case.title(),
        headline: headline.into(),
        cpu_gap: Summary::from_samples(&gaps).map(|gaps| (gaps.min, gaps.max)),
        cpu_headline: if agreed { CPU_MACHINE } else { CPU_PROCESSES }.into(),
        systems,
    })
}

fn row<'a>(system: &str, own: impl Iterator<Item = &'a Measurement>) -> Row {
    let mut figures: Vec<(Figure, Vec<f64>)> = Vec::new();
    let mut latency: Option<Histogram<u64>> = None;
    let mut failures = Vec::new();
    for measurement in own {
        let sample = match &measurement.outcome {
            Err(why) => {
                failures.push(why.clone());
                continue;
            }
            Ok(sample) => sample,
        };
        for (figure, value) in &sample.figures {
            match figures.iter_mut().find(|(known, _)| known == figure) {
                Some((_, values)) => values.push(*value),
                None => figures.push((*figure, vec![*value])),
            }
        }
        if let Some(times) = &sample.latency {
            match &mut latency {
                // All histograms have the same bounds, so that adding cannot fail.
                Some(all) => all.add(times).unwrap_or_default(),
                None => latency = Some(times.clone()),
            }
        }
    }
    let figures = figures.into_iter().filter_map(|(figure, samples)| {
        Some(FigureReport {
            key: figure.key.into(),
            title: figure.title.into(),
            unit: figure.unit.into(),
            more_is_better: figure.better == Better::More,
            summary: Summary::from_samples(&samples)?,
            samples,
            ratio_to_isthmus: None,
            ratio_to_direct: None,
        })
    });
    Row {
        system: system.into(),
        figures: figures.collect(),
        latency: latency.map_or_else(Vec::new, |latency| curve(&latency)),
        bounded_by_generator: false,
        failures,
    }
}

/// Ten points for each further digit of the quantile, up to the resolution of the values.
fn curve(latency: &Histogram<u64>) -> Vec<Point> {
    const STEPS: i32 = 10;
    let point =
        |quantile: f64| Point { quantile, microseconds: number(latency.value_at_quantile(quantile)) / 1e3 };
    let beyond = (0..).map(|step| 10_f64.powf(-f64::from(step) / f64::from(STEPS)));
    let bearable = beyond.take_while(|beyond| number(latency.len()) * beyond >= 1.0);
    bearable.map(|beyond| point(1.0 - beyond)).collect()
}

fn compare(systems: &mut [Row], headline: &str) {
    let medians = |name: &str| -> Vec<(String, f64)> {
        let row = systems.iter().find(|row| row.system == name);
        let figures = row.map_or(&[][..], |row| &row.figures).iter();
        figures.map(|figure| (figure.key.clone(), figure.summary.median)).collect()
    };
    let (ours, direct) = (medians(US), medians(DIRECT));
    let ratio = |figure: &FigureReport, to: &[(String, f64)]| {
        let base = to.iter().find(|(key, _)| *key == figure.key).map(|(_, median)| *median);
        base.filter(|base| *base > 0.0).map(|base| figure.summary.median / base)
    };
    for row in systems {
        for figure in &mut row.figures {
            figure.ratio_to_isthmus = ratio(figure, &ours).filter(|_| row.system != US);
            figure.ratio_to_direct = ratio(figure, &direct).filter(|_| row.system != DIRECT);
        }
        let is_idle = row.figure(BUSY).is_some_and(|busy| busy.summary.median < SATURATED);
        row.bounded_by_generator = row.figures.iter().any(|figure| {
            figure.key == headline
                && figure.more_is_better
                && (is_idle || figure.ratio_to_direct.is_some_and(|ratio| ratio >= NEAR_DIRECT))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Direction;
    use crate::sample::{histogram, record};

    const CASE: Case = Case::Bulk { direction: Direction::Down, connections: 4 };
    const RATE: Figure = Figure::more("rate", "rate", "1/s");
    const CPU: Figure = Figure::less(CPU_MACHINE, "CPU", "s");

    fn measured(system: &str, rate: f64, gap: f64) -> Measurement {
        let sample = Sample::new(RATE, rate).and(CPU, 2.0 / rate);
        Measurement { case: CASE, system: system.into(), outcome: Ok(Sample { gap: Some(gap), ..sample }) }
    }

    fn summed_up(measurements: &[Measurement]) -> CaseReport {
        let names = ["direct", "isthmus", "nginx"].map(String::from);
        case_report(Scenario::Bulk, CASE, &names, measurements).unwrap()
    }

    #[test]
    fn summary_compares_medians_to_isthmus_and_keeps_failures() {
        let failed = Measurement { case: CASE, system: "nginx".into(), outcome: Err("broken".into()) };
        let mut all: Vec<_> = [2.0, 4.0, 3.0].map(|value| measured("isthmus", value, 0.0)).into();
        all.extend([9.0, 6.0, 5.0].map(|value| measured("nginx", value, 0.01)));
        all.push(failed);
        let report = summed_up(&all);
        let [ours, theirs] = &report.systems[..] else { panic!("{report:?}") };
        assert_eq!((ours.system.as_str(), ours.figures[0].ratio_to_isthmus), ("isthmus", None));
        assert_eq!(theirs.figures[0].summary, Summary { median: 6.0, min: 5.0, max: 9.0 });
        assert_eq!(theirs.figures[0].ratio_to_isthmus, Some(2.0));
        assert_eq!(theirs.failures, ["broken"]);
        assert_eq!(report.headline, "rate");
        let other = Case::Mixed;
        assert!(case_report(Scenario::Mixed, other, &[], &all).is_none(), "a case without measurements");
    }

    #[test]
    fn summary_marks_direct_speed_as_generator_bound() {
        let all = [measured("direct", 10.0, 0.0), measured("isthmus", 9.1, 0.0), measured("nginx", 8.9, 0.0)];
        let report = summed_up(&all);
        let bounded: Vec<_> = report.systems.iter().map(|row| row.bounded_by_generator).collect();
        assert_eq!(bounded, [false, true, false]);
        assert_eq!(report.systems[2].figures[0].ratio_to_direct, Some(0.89));
    }

    #[test]
    fn summary_marks_rate_of_idle_worker_as_generator_bound() {
        let busy = Figure::more(BUSY, "worker busy", "%");
        let with_busy = |system: &str, percent| {
            let sample = Sample::new(RATE, 1.0).and(busy, percent);
            Measurement { case: CASE, system: system.into(), outcome: Ok(sample) }
        };
        let report = summed_up(&[with_busy("isthmus", 70.0), with_busy("nginx", 99.0)]);
        let bounded: Vec<_> = report.systems.iter().map(|row| row.bounded_by_generator).collect();
        assert_eq!(bounded, [true, false]);
    }

    #[test]
    fn summary_drops_machine_cpu_headline_after_one_noisy_measurement() {
        let quiet = summed_up(&[measured("isthmus", 2.0, 0.01), measured("nginx", 2.0, 0.02)]);
        assert_eq!(quiet.cpu_headline, CPU_MACHINE);
        let noisy = summed_up(&[measured("isthmus", 2.0, 0.01), measured("nginx", 2.0, 0.2)]);
        assert_eq!(noisy.cpu_headline, CPU_PROCESSES);
        assert_eq!(noisy.cpu_gap, Some((0.01, 0.2)));
        let missed = summed_up(&[measured("isthmus", 2.0, -0.15)]);
        assert_eq!(missed.cpu_headline, CPU_PROCESSES, "sampled too low");
    }

    #[test]
    fn summary_quantiles_match_known_round_times() {
        let round = |from: u64| {
            let mut times = histogram().unwrap();
            for microseconds in from..from + 5000 {
                record(&mut times, std::time::Duration::from_micros(microseconds));
            }
            let sample = Sample::new(RATE, 1.0).with_latency(&times);
            Measurement { case: CASE, system: "isthmus".into(), outcome: Ok(sample) }
        };
        // 1 to 10 000 µs, each once.
        let report = summed_up(&[round(1), round(5001)]);
        let curve = &report.systems[0].latency;
        for (quantile, microseconds) in [(0.0, 1.0), (0.9, 9000.0), (0.99, 9900.0), (0.999, 9990.0)] {
            let point = curve.iter().find(|point| (point.quantile - quantile).abs() < 1e-6).unwrap();
            assert!((point.microseconds - microseconds).abs() <= microseconds / 500.0 + 0.01, "{point:?}");
        }
        assert!(curve.last().unwrap().quantile < 0.99991, "10 000 values resolve at most 99.99 %");
        let p50 = report.systems[0].figure("p50").unwrap();
        assert!((p50.summary.min - 2500.0).abs() < 6.0 && (p50.summary.max - 7500.0).abs() < 16.0, "{p50:?}");
    }
}
