//! Three clusters share exactly what both sides agreed to, by every rule for exports and imports.

use std::net::{Ipv4Addr, SocketAddr};

use isthmus_tests::cluster::{Cluster, outbound, until_status};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::netns::Star;
use isthmus_tests::skip;
use isthmus_tests::wait::{until, until_some};
use isthmus_tests::workload::{Caller, Demands, endpoint};
use isthmus_tests::world::{World, east_west};
use serde_json::Value;

use super::{
    BOOKINFO, DETAILS, OUTBOUND, PAYROLL, RATINGS, REVIEWS, held, imported, is_connected, restart, said_of,
    service,
};

/// The label by which east exports.
const FRONT: &str = "labels: { tier: front }, ";
/// The address to which east's gateway moves.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 78, 1, 2);

/// East exports, west and south import with consent; each has a gateway.
struct Three {
    east: Cluster,
    west: Cluster,
    south: Cluster,
    east_gateway: Gateway,
    west_gateway: Gateway,
    south_gateway: Gateway,
    from_west: Caller,
    from_south: Caller,
    one: Scripted,
    two: Scripted,
    net: Star,
}

fn west_imports(range: &str) -> String {
    let east = format!(
        "{{ cluster: east, hosts: [{BOOKINFO}, src-0.pxc, details.example], gatewayCIDRs: [{range}] }}"
    );
    format!("[{east}, {{ cluster: south, hosts: [{BOOKINFO}] }}]")
}

#[test]
fn three_clusters_share_only_what_both_sides_agreed_to() {
    let mut three = match World::peers(["east", "west", "south"]) {
        Ok(world) => Three::new(world),
        Err(why) => skip!("{why}"),
    };
    three.exports_are_imported_with_consent();
    three.endpoint_without_mtls_is_not_exported();
    three.service_of_two_clusters_survives_loss_of_a_gateway();
    three.moved_gateway_is_followed_within_allowed_range();
    three.reachability_overrides_consent();
    three.unexpected_trust_domain_receives_nothing();
}

impl Three {
    fn new(world: World<3>) -> Three {
        let World { clusters: [mut east, mut west, mut south], net } = world;
        east.set("exports", "[{ workspace: [bookinfo], labels: { tier: front }, instances: [db-0] }]");
        south.set("exports", &format!("[{{ hosts: [{REVIEWS}] }}]"));
        west.set("imports", &west_imports("10.78.1.1/32"));
        for cluster in [&mut east, &mut west, &mut south] {
            cluster.start();
        }
        Three {
            east_gateway: east.gateway("gw-1"),
            west_gateway: west.gateway("gw-1"),
            south_gateway: south.gateway("gw-1"),
            from_west: Caller::in_cluster(&west),
            from_south: Caller::in_cluster(&south),
            one: endpoint(&east, Demands::Certificate, b"east-one"),
            two: endpoint(&east, Demands::Certificate, b"east-two"),
            east,
            west,
            south,
            net,
        }
    }

    fn west_out(&self) -> SocketAddr {
        outbound(&self.west_gateway)
    }

    /// Makes a call from west, which must succeed.
    #[track_caller]
    fn call_from_west(&self, name: &str, what: &str) -> String {
        self.from_west
            .call(self.west_out(), name)
            .unwrap_or_else(|why| panic!("{name}: {what}: {why}"))
            .greeting
    }

    /// Asserts that the name is unknown to west and at east's gateway.
    #[track_caller]
    fn assert_unknown_outside_east(&self, name: &str) {
        assert!(self.from_west.is_unknown(self.west_out(), name), "{name} is not exported");
        let door = east_west(Star::address(1));
        assert!(self.from_west.is_unknown(door, name), "{name} is not exported at the gateway");
    }

    fn exports_are_imported_with_consent(&self) {
        let Three { east, from_west, one, two, .. } = self;
        let details =
            service(DETAILS, &[one, two], &format!("{FRONT}aliases: [details.example, d.payroll], "));
        east.register("details.yaml", &details);
        east.register("ratings.yaml", &service(RATINGS, &[one], "").replace("src-0", "src-9"));
        east.register("payroll.yaml", &service(PAYROLL, &[one], FRONT).replace("src-0", "src-8"));
        let from_east = Caller::in_cluster(east);
        for name in [DETAILS, RATINGS, PAYROLL] {
            let out = outbound(&self.east_gateway);
            until(&format!("local clients reach {name}"), || from_east.call(out, name).is_ok());
        }
        until("west reaches the service", || from_west.call(self.west_out(), DETAILS).is_ok());
        let answer = from_west.call(self.west_out(), DETAILS).unwrap();
        assert_eq!(answer.server, "spiffe://east.example/ns/bookinfo/sa/server", "mTLS is end to end");
        for _ in 0..3 {
            assert_eq!(self.call_from_west(&format!("db-0.{DETAILS}"), "an exported instance"), "east-one");
            assert_eq!(self.call_from_west("src-0.pxc", "an alias of the instance"), "east-one");
        }
        let _either = self.call_from_west("details.example", "an alias that was consented to");
        for name in [&*format!("db-1.{DETAILS}"), "src-1.pxc", RATINGS, PAYROLL] {
            self.assert_unknown_outside_east(name);
        }
        assert!(from_west.is_unknown(self.west_out(), "d.payroll"), "an alias without consent");
        let door = east_west(Star::address(1));
        assert!(from_west.call(door, "d.payroll").is_ok(), "east does not export the alias");
        let why = until_some("south has received the offer", || held(&self.south, "east", DETAILS));
        assert!(why.contains("was not granted"), "{why}");
        let out = outbound(&self.south_gateway);
        assert!(self.from_south.is_unknown(out, DETAILS), "south imports without consent");
    }

    fn endpoint_without_mtls_is_not_exported(&self) {
        let open = endpoint(&self.east, Demands::Nothing, b"open----");
        let ratings = service(RATINGS, &[&open], FRONT).replace("src-0", "src-9");
        self.east.register("ratings.yaml", &ratings);
        let why = until_status(&self.east, "the service is not exported", |status| {
            let all = status["exports"]["held_back"].as_array()?;
            let why = all.iter().find(|one| one["host"] == RATINGS)?["why"].as_str()?.to_owned();
            Some(why).filter(|why| why.contains("without asking for a client certificate"))
        });
        assert!(why.starts_with("not_mtls"), "{why}");
        self.assert_unknown_outside_east(RATINGS);
    }

    fn service_of_two_clusters_survives_loss_of_a_gateway(&mut self) {
        let three = endpoint(&self.south, Demands::Certificate, b"south---");
        let of_east = service(REVIEWS, &[&self.one], &format!("{FRONT}merge: true, "));
        self.east.register("reviews.yaml", &of_east.replace("src-0", "src-7"));
        let of_south = service(REVIEWS, &[&three], "merge: true, ");
        self.south.register("reviews.yaml", &of_south.replace("src-0", "src-6"));
        for greeting in ["east-one", "south---"] {
            until(&format!("{greeting} answers"), || {
                let answer = self.from_west.call(self.west_out(), REVIEWS);
                answer.is_ok_and(|answer| answer.greeting == greeting)
            });
        }
        self.south_gateway.kill();
        for _ in 0..20 {
            assert_eq!(self.call_from_west(REVIEWS, "another cluster has the service as well"), "east-one");
        }
        self.south_gateway = self.south.gateway("gw-1");
    }

    fn moved_gateway_is_followed_within_allowed_range(&mut self) {
        self.net.adopt(1, SECOND).unwrap();
        let moved = self.east.setup_on("gw-2", Some(SECOND.into())).start();
        self.east.set("gateways", &format!("[{{ name: gw-1 }}, {{ name: gw-2, address: {SECOND} }}]"));
        restart(&mut self.east);
        let refusal = said_of(&self.west, "east", "refusal", "which `imports` does not allow");
        assert!(refusal.contains("10.78.1.2:15443") && refusal.contains("bookinfo"), "{refusal}");
        until_status(&self.east, "east sees west's refusal", |status| {
            let is_of_west = |one: &Value| one["peer"].as_str().unwrap().contains("/isthmus/west/agent/");
            let says = |one: &Value| {
                one["refusal"].as_str().is_some_and(|why| why.contains("`imports` does not allow"))
            };
            let peers = status["nodes"]["peers"].as_array()?;
            peers.iter().any(|one| is_of_west(one) && says(one)).then_some(())
        });
        for _ in 0..5 {
            let _either = self.call_from_west(DETAILS, "the gateway that was there before serves it");
        }
        assert_eq!(reached(&moved, DETAILS), 0);
        self.west.set("imports", &west_imports("10.78.1.0/30"));
        restart(&mut self.west);
        until("new connections go to the gateway's new address", || {
            self.from_west.call(self.west_out(), DETAILS).is_ok() && reached(&moved, DETAILS) > 0
        });
        self.east_gateway.kill();
        for _ in 0..10 {
            let _either = self.call_from_west(DETAILS, "the old gateway is not needed");
        }
        self.east_gateway = moved;
    }

    fn reachability_overrides_consent(&mut self) {
        let out = outbound(&self.south_gateway);
        self.south.set(
            "imports",
            &format!("[{{ cluster: east, hosts: [{BOOKINFO}], gatewayCIDRs: [10.78.1.0/24] }}]"),
        );
        self.south.set("reachability", "[{ from: west-net, to: '*' }, { from: '*', to: south-net }]");
        restart(&mut self.south);
        until("south's own rule denies", || {
            held(&self.south, "east", DETAILS).is_some_and(|why| why.contains("may not reach"))
        });
        assert!(self.from_south.is_unknown(out, DETAILS));
        self.south.set("reachability", "[{ from: '*', to: '*' }]");
        restart(&mut self.south);
        until("south reaches the service", || self.from_south.call(out, DETAILS).is_ok());
        self.east.set("reachability", "[{ from: west-net, to: '*' }, { from: east-net, to: '*' }]");
        restart(&mut self.east);
        until("east's rule denies south", || self.from_south.is_unknown(out, DETAILS));
        let is_told = held(&self.south, "east", DETAILS).is_some();
        assert!(imported(&self.south).is_empty() && !is_told, "south received the slice");
        until("west is connected to east again", || is_connected(&self.west, "east"));
        let _either = self.call_from_west(DETAILS, "west is not concerned");
        self.east.set("reachability", "[{ from: '*', to: '*' }]");
        restart(&mut self.east);
        until("south reaches the service again", || self.from_south.call(out, DETAILS).is_ok());
    }

    fn unexpected_trust_domain_receives_nothing(&mut self) {
        let peer = self.east.as_peer().replace("east.example", "north.example");
        self.south.set("peers", &format!("[{peer}]"));
        let state = self.south.path("fresh").display().to_string();
        self.south.set("state", &state);
        restart(&mut self.south);
        let error = said_of(&self.south, "east", "error", "spiffe://east.example/isthmus/east/agent/a");
        assert!(!is_connected(&self.south, "east") && imported(&self.south).is_empty(), "{error}");
        let fresh = self.south.setup("gw-2").listeners(OUTBOUND).start();
        assert!(self.from_south.is_unknown(outbound(&fresh), DETAILS), "{error}");
    }
}

/// Number of connections to a name that a gateway has forwarded.
fn reached(gateway: &Gateway, name: &str) -> usize {
    gateway
        .log()
        .lines()
        .iter()
        .filter(|line| line.text("sni") == name && line.reason() == "client_closed")
        .count()
}
