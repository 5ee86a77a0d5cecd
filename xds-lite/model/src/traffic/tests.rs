//! Policies are read as written, refused with place and remedy, and shown as they could be written.

use std::path::Path;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::at::At;
use crate::problem::{Place, Problems, Report};
use crate::yaml;

#[derive(Debug, Default, Deserialize)]
struct File {
    traffic: Option<At<raw::Traffic>>,
}

fn read(policy: &str) -> Result<Traffic, Problems> {
    let mut report = Report::new(Path::new("t.yaml"));
    let file = yaml::read::<File>(&format!("traffic: {policy}\n"), &mut report).unwrap_or_default();
    let resolved =
        file.traffic.map(|raw| traffic(&mut report, Place::Root.key("traffic"), raw.value.policy()));
    report.finish(resolved)
}

#[track_caller]
fn good(policy: &str) -> Traffic {
    read(policy).unwrap_or_else(|problems| panic!("{problems}"))
}

fn labels(key: &str, value: &str) -> SplitTo {
    SplitTo::Labels(Labels::new([(key, value)]).unwrap())
}

fn cluster(name: &str) -> SplitTo {
    SplitTo::Cluster(name.parse().unwrap())
}

#[test]
fn traffic_without_keys_is_the_default() {
    assert_eq!(good("{}"), Traffic::default());
    assert_eq!(*Traffic::unwritten(), Traffic::default());
    assert_eq!(Traffic::default().to_string(), "default");
}

#[test]
fn traffic_is_read_as_written() {
    let policy = good(
        "{ affinity: remote, locality: region, overprovisioning: 200, panic: off, sticky: source, max_pending: 16, \
         max_connections_per_endpoint: 100, split: [{ cluster: east, weight: 90 }, \
         { labels: { version: v2 }, weight: 10, abort_if: failures > 5 % }] }",
    );
    let expected = Traffic {
        affinity: Affinity::Remote,
        locality: LocalityScope::Region,
        overprovisioning: 200,
        panic: None,
        split: vec![
            SplitPart { to: cluster("east"), weight: 90, abort_if: None },
            SplitPart { to: labels("version", "v2"), weight: 10, abort_if: Some(5) },
        ],
        sticky: true,
        breakers: Breakers { max_pending: Some(16), max_connections_per_endpoint: Some(100) },
    };
    assert_eq!(policy, expected);
    let shown = serde_json::to_value(&policy).unwrap();
    assert_eq!(
        (&shown["panic"], &shown["sticky"], &shown["max_pending"]),
        (&"off".into(), &"source".into(), &16.into())
    );
    assert_eq!(
        shown["split"][1],
        serde_json::json!({ "labels": { "version": "v2" }, "weight": 10, "abort_if": "failures > 5 %" })
    );
}

#[track_caller]
fn assert_refused(policy: &str, expected: &str) {
    let problems = read(policy).expect_err(policy);
    let [problem] = problems.list() else { panic!("{policy}: {problems}") };
    assert!(problem.to_string().contains(expected), "{problem}\n{expected}");
}

#[test]
fn traffic_out_of_range_is_refused_with_place_and_remedy() {
    for (policy, expected) in [
        (
            "{ affinity: near }",
            "1:22: traffic.affinity: unknown value 'near'; expected one of local, none, remote",
        ),
        (
            "{ locality: rack }",
            "1:22: traffic.locality: unknown value 'rack'; expected one of zone, region, off",
        ),
        (
            "{ overprovisioning: 99 }",
            "1:30: traffic.overprovisioning: '99' is out of range; write 100 to 1000",
        ),
        (
            "{ overprovisioning: 140% }",
            "1:30: traffic.overprovisioning: '140%' is not a whole number; write digits only",
        ),
        ("{ panic: 0 }", "1:19: traffic.panic: '0' is out of range; write 1 to 100"),
        ("{ panic: never }", "1:19: traffic.panic: 'never' is not a whole number; write digits only, or off"),
        ("{ max_pending: 0 }", "1:25: traffic.max_pending: '0' is out of range; write 1 to 10000000"),
        (
            "{ max_connections_per_endpoint: none }",
            "1:42: traffic.max_connections_per_endpoint: 'none' is not a whole number; write digits only, or off",
        ),
        ("{ sticky: client }", "1:20: traffic.sticky: unknown value 'client'; expected one of source, off"),
        (
            "{ sticky: source }",
            "1:20: traffic.sticky: has no effect without a split; add 'split: …', or remove it",
        ),
        ("{ spilt: [] }", "1:12: unknown key 'spilt' in traffic; did you mean 'split'?"),
    ] {
        assert_refused(policy, expected);
    }
}

#[test]
fn split_that_cannot_work_is_refused_with_place_and_remedy() {
    let part = "{ cluster: a, weight: 1 }";
    let many = format!("{{ split: [{}] }}", vec![part; MAX_PARTS + 1].join(", "));
    let labels: Vec<_> = (0..33).map(|number| format!("k{number}: v")).collect();
    let labelled = format!("{{ split: [{{ labels: {{ {} }}, weight: 1 }}] }}", labels.join(", "));
    for (policy, expected) in [
        (
            "{ split: [{ weight: 1 }] }",
            "1:20: traffic.split[0]: selects no endpoint; add 'cluster: NAME' or 'labels: { KEY: VALUE }'",
        ),
        (
            "{ split: [{ cluster: a, labels: { b: c }, weight: 1 }] }",
            "1:20: traffic.split[0]: has cluster and labels; keep one of them",
        ),
        (
            "{ split: [{ labels: {}, weight: 1 }] }",
            "1:30: traffic.split[0].labels: selects no endpoint; write 'KEY: VALUE'",
        ),
        ("{ split: [{ cluster: a }] }", "1:20: traffic.split[0] has no weight; add 'weight: …'"),
        (
            "{ split: [{ cluster: a, weight: 65536 }] }",
            "1:42: traffic.split[0].weight: '65536' is out of range; write 0 to 65535",
        ),
        (
            "{ split: [{ cluster: a/b, weight: 1 }] }",
            "1:31: traffic.split[0].cluster: 'a/b' cannot be used; a cluster name is 1 to 63 ASCII letters",
        ),
        (
            "{ split: [{ labels: { -a: b }, weight: 1 }] }",
            "1:30: traffic.split[0].labels: '-a' is not a label key; write NAME or PREFIX/NAME",
        ),
        (&labelled, "1:30: traffic.split[0].labels: has more than 32 labels; write fewer"),
        (&many, "traffic.split: has 33 parts; the limit is 32; write fewer parts"),
    ] {
        assert_refused(policy, expected);
    }
}

#[test]
fn abort_condition_has_one_form() {
    let condition = |text: &str| {
        read(&format!(
            "{{ split: [{{ cluster: a, weight: 1 }}, {{ cluster: b, weight: 1, abort_if: '{text}' }}] }}"
        ))
        .map(|policy| policy.split[1].abort_if)
    };
    for (text, share) in
        [("failures > 5 %", 5), ("failures>5%", 5), ("failures  >  0 %", 0), ("failures > 99 %", 99)]
    {
        assert_eq!(condition(text).unwrap(), Some(share), "{text}");
    }
    for text in [
        "",
        "5",
        "5 %",
        "failures > 5",
        "failures >= 5 %",
        "failures > 100 %",
        "failures > -1 %",
        "failures > +1 %",
        "failures > 0.5 %",
        "failures > %",
        "Failures > 5 %",
        "errors > 5 %",
        "failures > 5 % ",
        "failures > 999999999999999999999 %",
    ] {
        let problems = condition(text).unwrap_err().to_string();
        assert!(
            problems.contains("split[1].abort_if:") && problems.contains("write 'failures > 5 %'"),
            "{problems}"
        );
    }
}

pub(crate) fn policies() -> impl Strategy<Value = Traffic> {
    let part = (any::<u16>(), any::<bool>(), proptest::option::of(0..100_u8));
    let parts = proptest::collection::vec(part, 0..5);
    let keys = (0..3_usize, 0..3_usize, 100..=1_000_u16, proptest::option::of(1..=100_u8));
    let limit = || proptest::option::of(1..=10_000_000_u32);
    (keys, parts, any::<bool>(), limit(), limit()).prop_map(
        |((affinity, locality, overprovisioning, panic), parts, sticky, max_pending, per_endpoint)| {
            let split =
                parts.into_iter().enumerate().map(|(index, (weight, by_cluster, abort_if))| SplitPart {
                    to: if by_cluster {
                        cluster(&format!("c{index}"))
                    } else {
                        labels("version", &format!("v{index}"))
                    },
                    // One part always gets connections.
                    weight: if index == 0 { weight.max(1) } else { weight },
                    abort_if: abort_if.filter(|_| index > 0),
                });
            let split: Vec<_> = split.collect();
            Traffic {
                affinity: [Affinity::Local, Affinity::None, Affinity::Remote][affinity],
                locality: [LocalityScope::Zone, LocalityScope::Region, LocalityScope::Off][locality],
                overprovisioning,
                panic,
                sticky: sticky && !split.is_empty(),
                split,
                breakers: Breakers { max_pending, max_connections_per_endpoint: per_endpoint },
            }
        },
    )
}

proptest! {
    #[test]
    fn traffic_is_shown_as_it_could_be_written(policy in policies()) {
        let shown = policy.to_string();
        let written = if shown == "default" { "{}" } else { &shown };
        prop_assert_eq!(read(written).unwrap(), policy);
    }

    #[test]
    fn traffic_reader_is_total(text in "[a-z0-9:.,*&'\"\\[\\]{}>% ]{0,60}") {
        let _ = read(&text);
    }
}
