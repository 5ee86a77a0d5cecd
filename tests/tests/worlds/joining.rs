//! Two clusters join by a token, which is single-use, limited in time and valid at its maker only.

use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::netns::Star;
use isthmus_tests::wait::until;
use isthmus_tests::workload::{Caller, Demands, endpoint};
use isthmus_tests::world::World;
use isthmus_tests::{figure, skip};
use serde_json::Value;

use super::{DETAILS, service};

#[test]
fn join_token_works_once_in_time_and_only_with_its_maker() {
    // The third cluster impersonates the first.
    let World { clusters: [mut east, mut west, mut mallory], net } =
        match World::strangers(["east", "west", "east"]) {
            Ok(world) => world,
            Err(why) => skip!("{why}"),
        };
    for (cluster, leg) in [(&mut east, 1), (&mut west, 2), (&mut mallory, 3)] {
        let ip = Star::address(leg);
        cluster.set("exports", "[{ workspace: ['*/bookinfo'] }]");
        cluster.set("xds", &format!("{{ address: '{ip}:15012', advertise: '{ip}:15012' }}"));
        cluster.set("join", "{}");
        cluster.start();
    }
    let token = |cluster: &Cluster, more: &[&str]| -> String {
        let words = ["token", "create", "--for", "west", "--trust-domain", "west.example", "--json"];
        let printed = cluster.command(&[&words[..], more].concat()).unwrap();
        serde_json::from_str::<Value>(&printed).unwrap()["token"].as_str().unwrap().to_owned()
    };
    let is_untouched = |west: &Cluster| {
        !west.path("pki/bundles/east.example.json").exists()
            && west.ask("/status")["peers"] == Value::Object([].into_iter().collect())
    };

    let late = token(&east, &["--lifetime", "1s"]);
    until("the token has expired", || east.command(&["token", "list"]).unwrap().contains("expired"));
    let why = west.command(&["join", &late]).unwrap_err();
    assert!(why.contains("expired") && is_untouched(&west), "{why}");

    // An attacker has taken over the address in the token, with its own certificate for the same name.
    let good = token(&east, &[]);
    net.usurp(3, 1).unwrap();
    let why = west.command(&["join", &good]).unwrap_err();
    figure!("a man in the middle: {why}");
    assert!(why.contains("the token is still valid") && is_untouched(&west), "{why}");
    net.restore(3, 1).unwrap();

    // At its maker the token works once, and shared services are exchanged.
    west.command(&["join", &good]).unwrap();
    let why = west.command(&["join", &good]).unwrap_err();
    assert!(why.contains("has been used"), "{why}");
    let gateways = [east.gateway("gw-1"), west.gateway("gw-1")];
    let one = endpoint(&east, Demands::Certificate, b"east-one");
    east.register("details.yaml", &service(DETAILS, &[&one], "").replace(", aliases: [src-0.pxc]", ""));
    let caller = Caller::in_cluster(&west);
    until("west reaches east's service", || {
        caller.call(outbound(&gateways[1]), DETAILS).is_ok_and(|answer| answer.greeting == "east-one")
    });
}
