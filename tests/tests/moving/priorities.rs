//! Two clusters that offer the same service: each tries its own endpoints first, then the other's gateway.

use std::net::SocketAddr;

use isthmus_tests::client::{End, alert, rest, send};
use isthmus_tests::cluster::{Cluster, east_west, outbound};
use isthmus_tests::endpoint::{Scripted, closed};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::wait::{until, until_some};

const HOST: &str = "details.bookinfo.svc.cluster.local";
/// Attempts see endpoints as they are, not as the gateway has learned them.
const FORGETFUL: &str = "upstream: { demotion: off, ejection: { failures: 0 } }";

struct World {
    east: Cluster,
    west: Cluster,
    east_gateway: Gateway,
    west_gateway: Gateway,
}

impl World {
    /// East has the service at one endpoint, west at others; both export and import it.
    fn new(east_endpoints: &[SocketAddr], west_endpoints: &[SocketAddr]) -> World {
        let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
        east.trust_cluster(&west);
        west.trust_cluster(&east);
        // The gateways' ports are known once they run, which requires their agents.
        let [east_gateway, west_gateway] = [&mut east, &mut west].map(|cluster| {
            cluster.start();
            let gateway = cluster.setup("gw-1").with(FORGETFUL).start();
            cluster.stop();
            let port = east_west(&gateway).port();
            cluster.set("gateways", &format!("[{{ name: gw-1, address: 127.0.0.1, port: {port} }}]"));
            cluster.set("exports", "[{ workspace: [bookinfo] }]");
            gateway
        });
        let (to_east, to_west) = (east.as_peer(), west.as_peer());
        east.set("peers", &format!("[{to_west}]"));
        west.set("peers", &format!("[{to_east}]"));
        for (cluster, other, endpoints) in
            [(&mut east, "west", east_endpoints), (&mut west, "east", west_endpoints)]
        {
            cluster.set(
                "imports",
                &format!("[{{ cluster: {other}, hosts: ['{HOST}'], gatewayCIDRs: [127.0.0.0/8] }}]"),
            );
            let endpoints: Vec<_> =
                endpoints.iter().map(|address| format!("{{ address: '{address}' }}")).collect();
            cluster.register(
                "details.yaml",
                &format!(
                    "services: [{{ host: {HOST}, merge: true, allow_unauthenticated: true, health: {{ probe: none }}, endpoints: [{}] }}]",
                    endpoints.join(", ")
                ),
            );
            cluster.start();
        }
        World { east, west, east_gateway, west_gateway }
    }
}

#[test]
fn priority_with_a_healthy_endpoint_gets_an_attempt_beyond_the_number_of_attempts() {
    let good = Scripted::echo(b"+");
    let dead = [(); 5].map(|()| closed());
    let world = World::new(&[good.address()], &dead);
    let served = until_some("west's call is served in east", || {
        let mut client = send(outbound(&world.west_gateway), &hello(HOST));
        let answer = isthmus_tests::client::read_exactly(&mut client, 1);
        let peer = client.local_addr().unwrap();
        drop(client);
        let line = world.west_gateway.log().line_of(peer);
        (answer == b"+").then_some(line)
    });
    assert_eq!((served.number("attempts"), served.text("cluster")), (4, "east"), "{served:?}");
    assert_eq!(world.west.status().peers["east"].refusals, 0);
    assert_eq!(world.east.status().peers["west"].refusals, 0);
}

/// istio#40709: a call goes from west to east, and never back.
#[test]
fn priority_of_another_cluster_ends_there_when_no_endpoint_is_left() {
    let world = World::new(&[closed()], &[closed()]);
    // East's own gateway may learn of the service a little later than west's.
    until("west's call is refused in east", || {
        let mut client = send(outbound(&world.west_gateway), &hello(HOST));
        rest(&mut client) == (alert(80), End::Fin)
            && world.east_gateway.log().count(|line| line.reason() == "connect_refused") > 0
    });
    let line = world
        .west_gateway
        .log()
        .wait("the call", |line| line.number("attempts") == 2 && line.number("bytes_out") == 7);
    assert_eq!((line.reason(), line.text("cluster")), ("upstream_rejected", "east"), "{line:?}");
    let at_east = world.east_gateway.log().wait("the call", |line| line.reason() == "connect_refused");
    assert_eq!(at_east.number("attempts"), 1, "{at_east:?}");
    let east_west = |gateway: &Gateway| gateway.log().count(|line| line.text("listener") == "east-west");
    assert_eq!(east_west(&world.west_gateway), 0, "the call does not come back");
}
