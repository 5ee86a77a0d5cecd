//! Rules for callers across clusters: what an importer refuses early, what only the owner decides, and where the clusters
//! of a merged service disagree.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::skip;
use isthmus_tests::wait::until;
use isthmus_tests::workload::{Caller, Demands, endpoint};
use isthmus_tests::world::World;

const HOST: &str = "details.bookinfo.svc.cluster.local";

fn register(cluster: &Cluster, endpoint: &Scripted, rules: &str) {
    let text = format!(
        "services: [{{ host: {HOST}, merge: true, health: {{ probe: none }}, access: {rules}, endpoints: [{{ address: '{}' }}] }}]",
        endpoint.address()
    );
    cluster.register("details.yaml", &text);
}

#[test]
fn access_across_clusters_is_refused_early_or_by_the_owner() {
    let World { clusters: [mut east, mut west, mut north], net: _net } =
        match World::peers(["east", "west", "north"]) {
            Ok(world) => world,
            Err(why) => skip!("{why}"),
        };
    for cluster in [&mut east, &mut north] {
        cluster.set("exports", "[{ workspace: [bookinfo] }]");
    }
    let imports = |name: &str| format!("{{ cluster: {name}, hosts: ['*.bookinfo.svc.cluster.local'] }}");
    west.set("imports", &format!("[{}, {}]", imports("east"), imports("north")));
    for cluster in [&mut east, &mut west, &mut north] {
        cluster.start();
    }
    let [east_gateway, west_gateway, _north_gateway] = [&east, &west, &north].map(|one| one.gateway("gw-1"));
    let caller = Caller::in_cluster(&west);
    let call = || caller.call(outbound(&west_gateway), HOST).map(|answer| answer.greeting);
    let one = endpoint(&east, Demands::Certificate, b"of--east");
    register(&east, &one, "{}");
    until("west reaches the service", || call().is_ok());
    let line_of = |reason: &str| {
        let found = |log: &isthmus_tests::log::Log| log.count(|line| line.reason() == reason);
        (found(west_gateway.log()), found(east_gateway.log()))
    };

    // East's gateway sees the address of west's, and refuses; west lets everybody through.
    let west_address = west.ip();
    register(&east, &one, &format!("{{ deny: [{{ name: west, sources: [{west_address}] }}] }}"));
    until("east refuses west's address", || call().is_err_and(|why| why.contains("AccessDenied")));
    until("east's log has it", || line_of("source_denied") == (0, 1));
    let page = west_gateway.admin("GET", &format!("/explain?sni={HOST}&from={west_address}")).json();
    assert!(page.get("refused").is_none(), "west knows nothing of sources: {page}");

    // What refuses everybody is refused by west, and east is not asked.
    register(&east, &one, "{ deny: [{ name: all, ports: [443] }] }");
    until("west refuses early", || call().is_err() && line_of("source_denied").0 > 0);
    let (early, late) = line_of("source_denied");
    for _ in 0..3 {
        assert!(call().is_err());
    }
    until("west's log has them", || line_of("source_denied").0 >= early + 3);
    assert_eq!(line_of("source_denied").1, late, "east was asked");
    let page = west_gateway.admin("GET", &format!("/explain?sni={HOST}")).json();
    assert_eq!(
        (&page["refused"], &page["decision"]["rule"]["name"]),
        (&"source_denied".into(), &"all".into())
    );

    // Each cluster's rules guard its own endpoints.
    let other = endpoint(&north, Demands::Certificate, b"of-north");
    register(&north, &other, "{}");
    until("north serves whom east refuses", || call().as_deref() == Ok("of-north"));
    for _ in 0..10 {
        assert_eq!(call().as_deref(), Ok("of-north"));
    }

    // Rules about identities pass by those who cannot see them, and west's agent is served a view of its own.
    register(
        &east,
        &one,
        "{ advisory: true, deny: [spiffe://west.example/ns/bookinfo/sa/client], allow: [{ ports: [443] }] }",
    );
    until("west reaches east again", || call().as_deref() == Ok("of--east"));
    let page = |id: &str| east.ask(&format!("/explain?host={HOST}&as={id}"))["access"][0].clone();
    let denied = page("spiffe://west.example/ns/bookinfo/sa/client");
    assert_eq!((&denied["verdict"], &denied["rule"]["name"]), (&"denied".into(), &"deny[0]".into()));
    assert_eq!(page("spiffe://west.example/ns/bookinfo/sa/other")["verdict"], "allowed");
    assert_eq!(west.status().peers["east"].refusals, 0);
}
