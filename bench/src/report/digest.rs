//! Condenses a report: for each case the headline figure and the machine's CPU of Isthmus against the best
//! peer. Also formats numbers. Shared by all human-readable forms.

use std::iter;
use std::time::{Duration, UNIX_EPOCH};

use super::{CaseReport, DIRECT, FigureReport, Report, Row, US};
use crate::stats::Summary;
use crate::systems::BASELINE;

/// Medians closer than this are even, however small the spread of the rounds.
const NOISE: f64 = 0.02;
/// The same for figures measured once.
const NOISE_OF_ONE: f64 = 0.05;

/// One figure of a case, as a row of the overview.
#[derive(Debug)]
pub(super) struct Line<'a> {
    /// The case's name in links.
    pub(super) name: String,
    pub(super) case: &'a CaseReport,
    pub(super) ours: &'a FigureReport,
    /// The peer with the best median.
    pub(super) best: Option<(&'a str, &'a FigureReport)>,
}

/// Isthmus compared with the best peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Better,
    /// The rounds overlap or the medians are nearly equal.
    Even,
    Worse,
}

impl Verdict {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Even => "even",
            Self::Worse => "worse",
        }
    }
}

/// The headline and the CPU figure of every case with Isthmus.
pub(super) fn lines(report: &Report) -> Vec<Line<'_>> {
    let both = |(name, case): (String, _)| {
        let case: &CaseReport = case;
        [&case.headline, &case.cpu_headline].map(|key| line(&name, case, key))
    };
    named(report).into_iter().flat_map(both).flatten().collect()
}

fn line<'a>(name: &str, case: &'a CaseReport, key: &str) -> Option<Line<'a>> {
    let figure = |row| Row::figure(row, key);
    let ours = case.systems.iter().find(|row| row.system == US).and_then(figure)?;
    let peers = case.systems.iter().filter(|row| ![US, BASELINE, DIRECT].contains(&row.system.as_str()));
    let figures = peers.filter_map(|row| Some((row.system.as_str(), figure(row)?)));
    let best = figures.reduce(|best, next| {
        let more = next.1.summary.median > best.1.summary.median;
        if more == ours.more_is_better { next } else { best }
    });
    Some(Line { name: name.into(), case, ours, best })
}

impl Line<'_> {
    /// Whether this is the headline figure of the case.
    pub(super) fn is_headline(&self) -> bool {
        self.ours.key == self.case.headline
    }

    /// The figure of Isthmus divided by the best peer's.
    pub(super) fn ratio(&self) -> Option<f64> {
        let (_, best) = self.best?;
        Some(self.ours.summary.median / best.summary.median).filter(|ratio| ratio.is_finite())
    }

    pub(super) fn verdict(&self) -> Option<Verdict> {
        let (ours, theirs) = (self.ours.summary, self.best?.1.summary);
        let overlap = ours.min <= theirs.max && theirs.min <= ours.max;
        let noise = if self.ours.samples.len() == 1 { NOISE_OF_ONE } else { NOISE };
        if overlap || (self.ratio()? - 1.0).abs() <= noise {
            return Some(Verdict::Even);
        }
        let more = ours.median > theirs.median;
        Some(if more == self.ours.more_is_better { Verdict::Better } else { Verdict::Worse })
    }
}

/// Median and half of the spread, with three significant digits.
pub(super) fn spread(summary: Summary) -> String {
    let Summary { median, min, max } = summary;
    let text = short(median);
    if max > min { format!("{text} ±{}", short((max - min) / 2.0)) } else { text }
}

/// Formats with three significant digits.
pub(super) fn short(value: f64) -> String {
    let digits = match value.abs() {
        small if small < 10.0 => 2,
        middle if middle < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// A figure's title with its unit.
pub(super) fn heading(figure: &FigureReport) -> String {
    if figure.unit.is_empty() { figure.title.clone() } else { format!("{}, {}", figure.title, figure.unit) }
}

/// Formats a time in UTC, if it is in the supported range.
pub(super) fn date(unix: u64) -> String {
    const YEAR_10_000: u64 = 253_402_300_800;
    let when = UNIX_EPOCH.checked_add(Duration::from_secs(unix)).filter(|_| unix < YEAR_10_000);
    when.map_or_else(|| "unknown date".into(), |when| humantime::format_rfc3339_seconds(when).to_string())
}

/// Each case with a unique name for files and links.
pub(super) fn named(report: &Report) -> Vec<(String, &CaseReport)> {
    let mut named: Vec<(String, &CaseReport)> = Vec::new();
    for case in &report.cases {
        let slug = slug(&case.title);
        let others = (2_usize..).map(|number| format!("{slug}-{number}"));
        let free = |name: &String| named.iter().all(|(taken, _)| taken != name);
        let name = iter::once(slug.clone()).chain(others).find(free);
        named.extend(name.map(|name| (name, case)));
    }
    named
}

/// A non-empty name of letters, digits and dashes, short enough for a file.
pub(super) fn slug(text: &str) -> String {
    const MOST: usize = 100;
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let mut slug = words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-");
    slug.truncate(MOST);
    if slug.is_empty() { "unnamed".into() } else { slug }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::report::Point;

    /// A case with one figure, given as median, minimum and maximum of each system.
    pub(in crate::report) fn case(more_is_better: bool, systems: &[(&str, [f64; 3])]) -> CaseReport {
        let row = |(system, [median, min, max]): &(&str, [f64; 3])| Row {
            system: (*system).into(),
            figures: vec![FigureReport {
                key: "rate".into(),
                title: "rate".into(),
                unit: "1/s".into(),
                more_is_better,
                summary: Summary { median: *median, min: *min, max: *max },
                samples: vec![*min, *median, *max],
                ratio_to_isthmus: None,
                ratio_to_direct: None,
            }],
            latency: vec![
                Point { quantile: 0.0, microseconds: *min },
                Point { quantile: 0.99, microseconds: *max },
            ],
            bounded_by_generator: false,
            failures: Vec::new(),
        };
        CaseReport {
            scenario: "short".into(),
            title: "a case".into(),
            headline: "rate".into(),
            cpu_gap: None,
            cpu_headline: "cpu_machine".into(),
            systems: systems.iter().map(row).collect(),
        }
    }

    fn verdict(more_is_better: bool, systems: &[(&str, [f64; 3])]) -> (Option<String>, Option<Verdict>) {
        let case = case(more_is_better, systems);
        let line = line("name", &case, "rate").unwrap();
        (line.best.map(|(name, _)| name.to_owned()), line.verdict())
    }

    #[test]
    fn digest_compares_with_best_peer_except_direct_and_isthmus() {
        let systems = [
            ("direct", [99.0, 99.0, 99.0]),
            ("isthmus", [10.0, 9.5, 10.5]),
            ("baseline", [98.0, 98.0, 98.0]),
            ("nginx", [8.0, 7.0, 9.0]),
            ("envoy", [5.0, 5.0, 5.0]),
        ];
        assert_eq!(verdict(true, &systems), (Some("nginx".into()), Some(Verdict::Better)));
        assert_eq!(verdict(false, &systems), (Some("envoy".into()), Some(Verdict::Worse)));
        assert_eq!(verdict(true, &systems[..3]), (None, None), "no peer");
    }

    #[test]
    fn digest_calls_overlapping_rounds_even() {
        let overlapping = [("isthmus", [10.0, 8.0, 12.0]), ("nginx", [11.0, 10.0, 11.5])];
        assert_eq!(verdict(true, &overlapping).1, Some(Verdict::Even));
        let near = [("isthmus", [10.0; 3]), ("nginx", [10.1; 3])];
        assert_eq!(verdict(true, &near).1, Some(Verdict::Even));
        let apart = [("isthmus", [10.0; 3]), ("nginx", [10.4; 3])];
        assert_eq!(verdict(true, &apart).1, Some(Verdict::Worse));
        let mut once = case(true, &apart);
        once.systems.iter_mut().for_each(|row| row.figures[0].samples.truncate(1));
        assert_eq!(
            line("name", &once, "rate").unwrap().verdict(),
            Some(Verdict::Even),
            "one sample needs a wider margin"
        );
        let broken = [("isthmus", [10.0; 3]), ("nginx", [0.0; 3])];
        assert_eq!(verdict(true, &broken).1, None, "no ratio to zero");
    }

    #[test]
    fn digest_numbers_are_short_and_slugs_are_safe() {
        assert_eq!([0.123, 12.34, 1234.5].map(short), ["0.12", "12.3", "1234"]);
        assert_eq!(spread(Summary { median: 12.34, min: 12.0, max: 13.0 }), "12.3 ±0.50");
        assert_eq!([slug("日本"), slug(&"w".repeat(400))], ["unnamed".into(), "w".repeat(100)]);
        assert_eq!([0, u64::MAX].map(date), ["1970-01-01T00:00:00Z", "unknown date"]);
        assert_eq!(slug("../Round trips of 64 B, \"1\" <x>"), "round-trips-of-64-b-1-x");
    }
}
