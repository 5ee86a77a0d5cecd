//! Policies of traffic in a gateway's own file.

use super::*;

fn with_split(split: &str) -> String {
    with_listener(&format!(
        "services:\n- host: a.b\n  endpoints: [{{ address: '10.0.0.1:1', labels: {{ version: v1 }} }}]\n  traffic: {{ split: [{split}] }}\n"
    ))
}

#[test]
fn service_has_its_policy_and_shows_the_default_one() {
    let (settings, warnings) =
        super::super::read(&with_split("{ labels: { version: v1 }, weight: 1 }"), Path::new("g.yaml"))
            .unwrap();
    let policy = settings.live.services[0].traffic.as_ref().unwrap().to_string();
    assert_eq!(policy, "{ split: [{ labels: { version: \"v1\" }, weight: 1 }] }");
    assert!(warnings.is_empty(), "{warnings:?}");
    let shown = serde_json::to_value(good(&with_listener("services: [{ host: a.b }]\n"))).unwrap();
    let shown = &shown["services"][0]["traffic"];
    assert_eq!(
        (&shown["affinity"], &shown["panic"], &shown["sticky"]),
        (&"local".into(), &50.into(), &"off".into())
    );
}

#[test]
fn split_of_a_gateways_own_file_is_by_labels() {
    bad(
        &with_split("{ labels: { version: v1 }, weight: 1 }, { cluster: east, weight: 1 }"),
        &[
            "5:73: services[0].traffic.split[1].cluster: the endpoints of a gateway's own file are of no cluster; \
             write 'labels: { KEY: VALUE }', or the split in the agent's file",
        ],
    );
    let text = with_split("{ labels: { version: v1 }, weight: 1 }, { labels: { version: v2 }, weight: 1 }");
    let (_, warnings) = super::super::read(&text, Path::new("g.yaml")).unwrap();
    let [warning] = &warnings[..] else { panic!("{warnings:?}") };
    let expected = "services[0].traffic.split[1].labels: no endpoint of the service has version=v2";
    assert!(warning.to_string().contains(expected), "{warning}");
}
