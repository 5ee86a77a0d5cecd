//! Resolves a written policy. A split that could give no connection to anybody is refused.

use std::collections::BTreeMap;

use crate::at::{At, Spot};
use crate::cluster::Cluster;
use crate::labels::Labels;
use crate::problem::{Place, Quoted, Report};
use crate::services::defaults::CONNECTION_COUNTS;

use super::raw::{self, Policy, Sticky};
use super::{
    Breakers, DEFAULT_OVERPROVISIONING, DEFAULT_PANIC, MAX_PARTS, OVERPROVISIONING, PANIC, SplitPart,
    SplitTo, Traffic, WEIGHTS,
};

/// Resolves the keys of a policy; problems go to the report.
pub fn traffic(report: &mut Report, place: Place<'_>, raw: Policy<'_>) -> Traffic {
    let overprovisioning = report.count(
        raw.overprovisioning,
        place.key("overprovisioning"),
        OVERPROVISIONING,
        DEFAULT_OVERPROVISIONING.into(),
    );
    let panic = match raw.panic {
        None => Some(DEFAULT_PANIC),
        written => {
            report.count_or_off(written, place.key("panic"), PANIC).and_then(|share| share.try_into().ok())
        }
    };
    let mut limit = |raw, key| report.count_or_off(raw, place.key(key), CONNECTION_COUNTS);
    let breakers = Breakers {
        max_pending: limit(raw.max_pending, "max_pending"),
        max_connections_per_endpoint: limit(raw.max_connections_per_endpoint, "max_connections_per_endpoint"),
    };
    Traffic {
        affinity: raw.affinity.unwrap_or_default(),
        locality: raw.locality.unwrap_or_default(),
        overprovisioning: overprovisioning.try_into().unwrap_or(DEFAULT_OVERPROVISIONING),
        panic,
        split: split(report, place.key("split"), raw.split),
        sticky: sticky(report, place, raw),
        breakers,
    }
}

fn sticky(report: &mut Report, place: Place<'_>, raw: Policy<'_>) -> bool {
    let Some(written) = raw.sticky.filter(|sticky| sticky.value == Sticky::Source) else { return false };
    if raw.split.is_empty() {
        let what = format_args!("{}: has no effect without a split", place.key("sticky"));
        report.add(written.spot, what, "add 'split: …', or remove it");
    }
    true
}

fn split(report: &mut Report, place: Place<'_>, raw: &[At<raw::SplitPart>]) -> Vec<SplitPart> {
    let Some(first) = raw.first() else { return Vec::new() };
    if let Some(beyond) = raw.get(MAX_PARTS) {
        let what = format_args!("{place}: has {} parts; the limit is {MAX_PARTS}", raw.len());
        report.add(beyond.spot, what, "write fewer parts");
        return Vec::new();
    }
    let mut parts: Vec<SplitPart> = Vec::with_capacity(raw.len());
    for (index, whole) in raw.iter().enumerate() {
        let Some(part) = part(report, place.item(index), whole) else { continue };
        if let Some(earlier) = parts.iter().position(|other| other.to == part.to) {
            let what = format_args!("{}: is the same part as an earlier one", place.item(index));
            report.add(
                whole.spot,
                what,
                format_args!("add its weight to {}, and remove it", place.item(earlier)),
            );
        }
        parts.push(part);
    }
    // A part that is wrong by itself is reported alone.
    if parts.len() == raw.len() {
        check(report, place, &parts, first.spot);
    }
    parts
}

fn part(report: &mut Report, place: Place<'_>, whole: &At<raw::SplitPart>) -> Option<SplitPart> {
    let raw = &whole.value;
    let to = match (&raw.cluster, &raw.labels) {
        (Some(cluster), None) => cluster_of(report, place.key("cluster"), cluster).map(SplitTo::Cluster),
        (None, Some(labels)) => labels_of(report, place.key("labels"), labels).map(SplitTo::Labels),
        (Some(_), Some(_)) => {
            report.add(whole.spot, format_args!("{place}: has cluster and labels"), "keep one of them");
            None
        }
        (None, None) => {
            let remedy = "add 'cluster: NAME' or 'labels: { KEY: VALUE }'";
            report.add(whole.spot, format_args!("{place}: selects no endpoint"), remedy);
            None
        }
    };
    report.required(raw.weight.as_ref(), whole, place, "weight")?;
    let weight = report.count(raw.weight.as_ref(), place.key("weight"), WEIGHTS, 0);
    let abort_if = report.value(raw.abort_if.as_ref(), place.key("abort_if"));
    Some(SplitPart { to: to?, weight: weight.try_into().ok()?, abort_if })
}

fn cluster_of(report: &mut Report, place: Place<'_>, written: &At<String>) -> Option<Cluster> {
    let cluster = written.value.parse::<Cluster>();
    if let Err(error) = &cluster {
        report.add(written.spot, format_args!("{place}: {} cannot be used", Quoted(&written.value)), error);
    }
    cluster.ok()
}

fn labels_of(
    report: &mut Report,
    place: Place<'_>,
    written: &At<BTreeMap<String, String>>,
) -> Option<Labels> {
    let labels = Labels::read(report, place, written)?;
    if labels.is_empty() {
        report.add(written.spot, format_args!("{place}: selects no endpoint"), "write 'KEY: VALUE'");
    }
    Some(labels)
}

/// Checks the parts together.
fn check(report: &mut Report, place: Place<'_>, parts: &[SplitPart], spot: Spot) {
    if parts.iter().all(|part| part.weight == 0) {
        let what = format_args!("{place}: the weights add up to 0, so that nobody could connect");
        report.add(spot, what, "give one part a weight");
    } else if parts.iter().all(|part| part.weight == 0 || part.abort_if.is_some()) {
        let what = format_args!("{place}: every part may be taken out, so that nobody could connect");
        report.add(spot, what, "remove 'abort_if' from the part that shall stay");
    }
}
