//! Three clusters know of each other what both sides agreed to, by every rule that there is.

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

/// By this label east exports.
const FRONT: &str = "labels: { tier: front }, ";
/// Where east's gateway moves to.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 78, 1, 2);

/// East exports, west and south may consent; each has a gateway.
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
    three.what_is_exported_comes_in_where_it_is_consented_to();
    three.an_endpoint_that_lets_anybody_in_is_held_back();
    three.one_service_of_two_clusters_outlives_a_gateway();
    three.a_gateway_that_moved_is_followed_where_that_is_allowed();
    three.reachability_denies_what_was_consented_to();
    three.another_trust_domain_than_expected_gets_nothing();
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
            from_west: Caller::of(&west),
            from_south: Caller::of(&south),
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

    /// Somebody in west calls; it must not fail.
    #[track_caller]
    fn calls(&self, name: &str, what: &str) -> String {
        self.from_west
            .call(self.west_out(), name)
            .unwrap_or_else(|why| panic!("{name}: {what}: {why}"))
            .greeting
    }

    /// West and strangers hear that there is no such name.
    #[track_caller]
    fn stays_in_east(&self, name: &str) {
        assert!(self.from_west.is_unknown(self.west_out(), name), "{name} is not exported");
        let door = east_west(Star::address(1));
        assert!(self.from_west.is_unknown(door, name), "{name} is not, however it is asked for");
    }

    fn what_is_exported_comes_in_where_it_is_consented_to(&self) {
        let Three { east, from_west, one, two, .. } = self;
        let details =
            service(DETAILS, &[one, two], &format!("{FRONT}aliases: [details.example, d.payroll], "));
        east.register("details.yaml", &details);
        east.register("ratings.yaml", &service(RATINGS, &[one], "").replace("src-0", "src-9"));
        east.register("payroll.yaml", &service(PAYROLL, &[one], FRONT).replace("src-0", "src-8"));
        let from_east = Caller::of(east);
        for name in [DETAILS, RATINGS, PAYROLL] {
            let out = outbound(&self.east_gateway);
            until(&format!("local clients reach {name}"), || from_east.call(out, name).is_ok());
        }
        until("west reaches it", || from_west.call(self.west_out(), DETAILS).is_ok());
        let answer = from_west.call(self.west_out(), DETAILS).unwrap();
        assert_eq!(answer.server, "spiffe://east.example/ns/bookinfo/sa/server", "mTLS is end to end");
        for _ in 0..3 {
            assert_eq!(self.calls(&format!("db-0.{DETAILS}"), "an instance that is exported"), "east-one");
            assert_eq!(self.calls("src-0.pxc", "its alias"), "east-one");
        }
        let _either = self.calls("details.example", "an alias that was consented to");
        for name in [&*format!("db-1.{DETAILS}"), "src-1.pxc", RATINGS, PAYROLL] {
            self.stays_in_east(name);
        }
        assert!(from_west.is_unknown(self.west_out(), "d.payroll"), "an alias that was not consented to");
        let door = east_west(Star::address(1));
        assert!(from_west.call(door, "d.payroll").is_ok(), "east exports it all the same");
        let why = until_some("south was offered it", || held(&self.south, "east", DETAILS));
        assert!(why.contains("was not granted"), "{why}");
        let out = outbound(&self.south_gateway);
        assert!(self.from_south.is_unknown(out, DETAILS), "south did not consent");
    }

    fn an_endpoint_that_lets_anybody_in_is_held_back(&self) {
        let open = endpoint(&self.east, Demands::Nothing, b"open----");
        let ratings = service(RATINGS, &[&open], FRONT).replace("src-0", "src-9");
        self.east.register("ratings.yaml", &ratings);
        let why = until_status(&self.east, "it is held back", |status| {
            let all = status["exports"]["held_back"].as_array()?;
            let why = all.iter().find(|one| one["host"] == RATINGS)?["why"].as_str()?.to_owned();
            Some(why).filter(|why| why.contains("without asking for a client certificate"))
        });
        assert!(why.starts_with("not_mtls"), "{why}");
        self.stays_in_east(RATINGS);
    }

    fn one_service_of_two_clusters_outlives_a_gateway(&mut self) {
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
            assert_eq!(self.calls(REVIEWS, "another cluster has it, too"), "east-one");
        }
        self.south_gateway = self.south.gateway("gw-1");
    }

    fn a_gateway_that_moved_is_followed_where_that_is_allowed(&mut self) {
        self.net.adopt(1, SECOND).unwrap();
        let moved = self.east.setup_on("gw-2", Some(SECOND.into())).start();
        self.east.set("gateways", &format!("[{{ name: gw-1 }}, {{ name: gw-2, address: {SECOND} }}]"));
        restart(&mut self.east);
        let refusal = said_of(&self.west, "east", "refusal", "which `imports` does not allow");
        assert!(refusal.contains("10.78.1.2:15443") && refusal.contains("bookinfo"), "{refusal}");
        until_status(&self.east, "east sees that west refused it", |status| {
            let is_of_west = |one: &Value| one["peer"].as_str().unwrap().contains("/isthmus/west/agent/");
            let says = |one: &Value| {
                one["refusal"].as_str().is_some_and(|why| why.contains("`imports` does not allow"))
            };
            let peers = status["nodes"]["peers"].as_array()?;
            peers.iter().any(|one| is_of_west(one) && says(one)).then_some(())
        });
        for _ in 0..5 {
            let _either = self.calls(DETAILS, "the gateway that was there before serves it");
        }
        assert_eq!(reached(&moved, DETAILS), 0);
        self.west.set("imports", &west_imports("10.78.1.0/30"));
        restart(&mut self.west);
        until("new connections go to where the gateway is now", || {
            self.from_west.call(self.west_out(), DETAILS).is_ok() && reached(&moved, DETAILS) > 0
        });
        self.east_gateway.kill();
        for _ in 0..10 {
            let _either = self.calls(DETAILS, "the old gateway is not needed");
        }
        self.east_gateway = moved;
    }

    fn reachability_denies_what_was_consented_to(&mut self) {
        let out = outbound(&self.south_gateway);
        self.south.set(
            "imports",
            &format!("[{{ cluster: east, hosts: [{BOOKINFO}], gatewayCIDRs: [10.78.1.0/24] }}]"),
        );
        self.south.set("reachability", "[{ from: west-net, to: '*' }, { from: '*', to: south-net }]");
        restart(&mut self.south);
        until("south denies itself", || {
            held(&self.south, "east", DETAILS).is_some_and(|why| why.contains("may not reach"))
        });
        assert!(self.from_south.is_unknown(out, DETAILS));
        self.south.set("reachability", "[{ from: '*', to: '*' }]");
        restart(&mut self.south);
        until("south reaches it", || self.from_south.call(out, DETAILS).is_ok());
        self.east.set("reachability", "[{ from: west-net, to: '*' }, { from: east-net, to: '*' }]");
        restart(&mut self.east);
        until("east denies south", || self.from_south.is_unknown(out, DETAILS));
        let is_told = held(&self.south, "east", DETAILS).is_some();
        assert!(imported(&self.south).is_empty() && !is_told, "south is not even told");
        until("east is back for west", || is_connected(&self.west, "east"));
        let _either = self.calls(DETAILS, "west is not concerned");
        self.east.set("reachability", "[{ from: '*', to: '*' }]");
        restart(&mut self.east);
        until("south reaches it again", || self.from_south.call(out, DETAILS).is_ok());
    }

    fn another_trust_domain_than_expected_gets_nothing(&mut self) {
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

/// How many connections to a name a gateway has let through.
fn reached(gateway: &Gateway, name: &str) -> usize {
    gateway
        .log()
        .lines()
        .iter()
        .filter(|line| line.text("sni") == name && line.reason() == "client_closed")
        .count()
}
