//! Median and spread of a few rounds. Latencies use histograms instead.

use serde::{Deserialize, Serialize};

/// Summary of the rounds of one figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Summarizes the samples; `None` without samples.
    pub(crate) fn from_samples(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = *sorted.get(sorted.len().checked_sub(1)? / 2)?;
        Some(Self { median: f64::midpoint(lower, upper), min: *sorted.first()?, max: *sorted.last()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_middle_of_odd_count_and_mean_of_two_for_even() {
        let odd = Summary::from_samples(&[3.0, 1.0, 9.0]).unwrap();
        assert_eq!(odd, Summary { median: 3.0, min: 1.0, max: 9.0 });
        let even = Summary::from_samples(&[4.0, 1.0, 2.0, 100.0]).unwrap();
        assert_eq!(even, Summary { median: 3.0, min: 1.0, max: 100.0 });
    }

    #[test]
    fn median_of_one_sample_is_itself_and_of_none_is_none() {
        assert_eq!(Summary::from_samples(&[7.0]).unwrap(), Summary { median: 7.0, min: 7.0, max: 7.0 });
        assert_eq!(Summary::from_samples(&[]), None);
    }
}
