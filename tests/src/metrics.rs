//! Parses Prometheus text.

use std::collections::BTreeMap;

/// A scrape: all series with their values.
#[derive(Debug)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// Parses a metrics page.
    ///
    /// # Panics
    /// A line is not a metric.
    #[must_use]
    pub fn parse(text: &str) -> Metrics {
        Metrics(
            text.lines()
                .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
                .map(|line| {
                    let (series, value) =
                        line.rsplit_once(' ').unwrap_or_else(|| panic!("metric line {line:?}"));
                    (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("metric line {line:?}")))
                })
                .collect(),
        )
    }

    /// The sum of the series of a metric with all of these labels, each as `name="value"`.
    #[must_use]
    pub fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        self.0
            .iter()
            .filter(|(series, _)| series.split('{').next() == Some(metric))
            .filter(|(series, _)| labels.iter().all(|label| series.contains(label)))
            .map(|(_, value)| value)
            .sum()
    }

    /// Whether the metric has any series.
    #[must_use]
    pub fn has(&self, metric: &str) -> bool {
        self.0.keys().any(|series| series.split('{').next() == Some(metric))
    }

    /// All series.
    pub fn series(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}
