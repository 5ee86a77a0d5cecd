//! Makes a metric of a sample.

use prometheus::proto::{self, LabelPair, MetricType};

use super::Sample;

pub(super) fn metric(kind: MetricType, (labels, value): Sample<'_>) -> proto::Metric {
    let label = |(name, value): (&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    let mut metric = proto::Metric::from_label(labels.into_iter().map(label).collect());
    if kind == MetricType::COUNTER {
        let mut counter = proto::Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}
