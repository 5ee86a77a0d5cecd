//! Makes a family of metrics of its samples.

use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

use super::Control;
use super::{Definition, Sample, Value};

pub(super) fn family(definition: &Definition, control: &Control) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(definition.name.to_owned());
    family.set_help(definition.help.to_owned());
    family.set_field_type(match definition.kind {
        "counter" => MetricType::COUNTER,
        "histogram" => MetricType::HISTOGRAM,
        _ => MetricType::GAUGE,
    });
    family.set_metric(
        (definition.read)(control).into_iter().map(|sample| metric(definition, sample)).collect(),
    );
    family
}

fn metric(definition: &Definition, Sample(labels, value): Sample) -> proto::Metric {
    let pairs = definition.labels.iter().zip(labels).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value);
        pair
    });
    let mut metric = proto::Metric::from_label(pairs.collect());
    match value {
        Value::Histogram(histogram) => metric.set_histogram(histogram),
        Value::Number(number) if definition.kind == "counter" => {
            let mut counter = proto::Counter::default();
            counter.set_value(number);
            metric.set_counter(counter);
        }
        Value::Number(number) => {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(number);
            metric.set_gauge(gauge);
        }
    }
    metric
}
