//! Clusters that are apart: what one shows another and what it does not, what comes and goes without a failed call,
//! how one joins, and what a hostile one achieves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic anywhere"
)]

mod impostor;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use impostor::{Impostor, named, resource, slice};
use isthmus_certs::{Peer, Trust, TrustBundles, server_config, server_verifier};
use isthmus_tests::cluster::{Cluster, outbound, until_status};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::netns::{Star, inside};
use isthmus_tests::wait::{throughout, until, until_some, within};
use isthmus_tests::workload::{Caller, Demands, Traffic, echo, endpoint, endpoint_after, files};
use isthmus_tests::world::{World, east_west};
use isthmus_tests::{figure, skip};
use isthmus_xds::proto::isthmus::v1::Gateway as At;
use prost::Message as _;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConnection, StreamOwned};
use serde_json::Value;

const DETAILS: &str = "details.bookinfo.svc.cluster.local";
const REVIEWS: &str = "reviews.bookinfo.svc.cluster.local";
const RATINGS: &str = "ratings.bookinfo.svc.cluster.local";
const SLOW: &str = "slow.bookinfo.svc.cluster.local";
const PAYROLL: &str = "secret.payroll.svc.cluster.local";
const ALL: &str = "'*.bookinfo.svc.cluster.local'";
/// 50 calls a second.
const PACE: Duration = Duration::from_millis(20);
const MIB: u64 = 1 << 20;

/// A file of the registry with one service.
fn service(host: &str, endpoints: &[&Scripted], more: &str) -> String {
    let endpoint = |(place, one): (usize, &&Scripted)| {
        format!("{{ address: '{}', instance: db-{place}, aliases: [src-{place}.pxc] }}", one.address())
    };
    let endpoints: Vec<_> = endpoints.iter().enumerate().map(endpoint).collect();
    format!("services: [{{ host: {host}, {more}endpoints: [{}] }}]", endpoints.join(", "))
}

fn restart(cluster: &mut Cluster) {
    cluster.stop();
    cluster.start();
}

/// What became of a host that another cluster offers: none, it is let in.
fn held(cluster: &Cluster, from: &str, host: &str) -> Option<String> {
    let status = cluster.ask("/status");
    let all = status["imports"]["held_back"].as_array().unwrap();
    let one = all.iter().find(|one| one["cluster"] == from && one["host"] == host)?;
    Some(one["held"].as_str().unwrap().to_owned())
}

fn imported(cluster: &Cluster) -> Vec<String> {
    let status = cluster.ask("/status");
    let all = status["imports"]["imported"].as_array().unwrap();
    all.iter()
        .map(|one| format!("{}/{}", one["cluster"].as_str().unwrap(), one["host"].as_str().unwrap()))
        .collect()
}

fn is_connected(cluster: &Cluster, peer: &str) -> bool {
    cluster.ask("/status")["peers"][peer]["connected"] == true
}

/// A word on how it stands with a peer, once there is one.
fn said_of(cluster: &Cluster, peer: &str, key: &str, word: &str) -> String {
    until_status(cluster, &format!("{key} of {peer} says {word}"), |status| {
        Some(status["peers"][peer][key].as_str()?.to_owned()).filter(|said| said.contains(word))
    })
}

#[test]
fn three_clusters_know_of_each_other_what_both_sides_agreed_to() {
    let World { clusters: [mut east, mut west, mut south], net } =
        match World::peers(["east", "west", "south"]) {
            Ok(world) => world,
            Err(why) => skip!("{why}"),
        };
    let first = Star::address(1);
    let second = Ipv4Addr::new(10, 78, 1, 2);
    let east_exports = "[{ workspace: [bookinfo], labels: { tier: front }, instances: [db-0] }]";
    let west_imports = |range: &str| {
        let names = format!("{ALL}, src-0.pxc, details.example");
        format!(
            "[{{ cluster: east, hosts: [{names}], gatewayCIDRs: [{range}] }}, {{ cluster: south, hosts: [{ALL}] }}]"
        )
    };
    east.set("exports", east_exports);
    south.set("exports", &format!("[{{ hosts: [{REVIEWS}] }}]"));
    west.set("imports", &west_imports("10.78.1.1/32"));
    for cluster in [&mut east, &mut west, &mut south] {
        cluster.start();
    }
    let mut old = east.gateway("gw-1");
    let (west_gateway, mut south_gateway) = (west.gateway("gw-1"), south.gateway("gw-1"));
    let (from_west, from_south) = (Caller::of(&west), Caller::of(&south));
    let (west_out, south_out) = (outbound(&west_gateway), outbound(&south_gateway));

    // What is exported comes in where it is consented to: the service, an instance, aliases.
    let closed = Demands::Certificate;
    let (one, two) = (endpoint(&east, closed, b"east-one"), endpoint(&east, closed, b"east-two"));
    let open = endpoint(&east, Demands::Nothing, b"open----");
    let front = "labels: { tier: front }, ";
    east.register(
        "details.yaml",
        &service(DETAILS, &[&one, &two], &format!("{front}aliases: [details.example, d.payroll], ")),
    );
    east.register("ratings.yaml", &service(RATINGS, &[&one], "").replace("src-0", "src-9"));
    east.register("payroll.yaml", &service(PAYROLL, &[&one], front).replace("src-0", "src-8"));
    until("west reaches it", || from_west.call(west_out, DETAILS).is_ok());
    let answer = from_west.call(west_out, DETAILS).unwrap();
    assert_eq!(answer.server, "spiffe://east.example/ns/bookinfo/sa/server", "mTLS is end to end");
    for name in [format!("db-0.{DETAILS}"), "src-0.pxc".to_owned()] {
        for _ in 0..3 {
            assert_eq!(from_west.call(west_out, &name).unwrap().greeting, "east-one", "{name}");
        }
    }
    assert!(from_west.call(west_out, "details.example").is_ok(), "an alias that was consented to");
    for name in [&*format!("db-1.{DETAILS}"), "src-1.pxc", "d.payroll", RATINGS, PAYROLL] {
        assert!(from_west.is_unknown(west_out, name), "{name}: not exported, or not consented to");
        assert!(from_west.is_unknown(east_west(first), name) || name == "d.payroll", "{name}: from outside");
    }
    let south_word = until_some("south was offered it", || held(&south, "east", DETAILS));
    assert!(south_word.contains("was not granted"), "{south_word}");
    assert!(from_south.is_unknown(south_out, DETAILS), "south did not consent");

    // An endpoint that lets anybody in is held back.
    east.register("ratings.yaml", &service(RATINGS, &[&open], front).replace("src-0", "src-9"));
    let why = until_status(&east, "it is held back", |status| {
        let all = status["exports"]["held_back"].as_array()?;
        let why = all.iter().find(|one| one["host"] == RATINGS)?["why"].as_str()?.to_owned();
        Some(why).filter(|why| why.contains("asks for no client certificate"))
    });
    assert!(why.starts_with("not_mtls"), "{why}");
    assert!(from_west.is_unknown(west_out, RATINGS) && from_west.is_unknown(east_west(first), RATINGS));

    // One service of two clusters; when the gateway of one dies, calls go to the other.
    let three = endpoint(&south, closed, b"south---");
    east.register(
        "reviews.yaml",
        &service(REVIEWS, &[&one], &format!("{front}merge: true, ")).replace("src-0", "src-7"),
    );
    south.register("reviews.yaml", &service(REVIEWS, &[&three], "merge: true, ").replace("src-0", "src-6"));
    for greeting in ["east-one", "south---"] {
        until(&format!("{greeting} answers"), || {
            from_west.call(west_out, REVIEWS).is_ok_and(|answer| answer.greeting == greeting)
        });
    }
    south_gateway.kill();
    for _ in 0..20 {
        assert_eq!(from_west.call(west_out, REVIEWS).unwrap().greeting, "east-one", "no call fails");
    }

    // A gateway that has moved to where west does not expect it is not followed; the last good address stays.
    net.adopt(1, second).unwrap();
    let moved = east.setup_on("gw-2", Some(second.into())).start();
    east.set("gateways", &format!("[{{ name: gw-1 }}, {{ name: gw-2, address: {second} }}]"));
    restart(&mut east);
    let refusal = said_of(&west, "east", "refusal", "outside of what `imports` allows");
    assert!(refusal.contains("10.78.1.2:15443") && refusal.contains("bookinfo"), "{refusal}");
    until_status(&east, "east sees that it was refused", |status| {
        let peers = status["nodes"]["peers"].as_array()?;
        let refuses =
            |one: &&Value| one["refusal"].as_str().is_some_and(|why| why.contains("outside of what"));
        peers.iter().find(refuses)?["peer"].as_str().filter(|peer| peer.contains("/west/agent/")).map(drop)
    });
    for _ in 0..5 {
        from_west.call(west_out, DETAILS).expect("by the gateway that was there before");
    }
    assert_eq!(reached(&moved, DETAILS), 0);
    west.set("imports", &west_imports("10.78.1.0/30"));
    restart(&mut west);
    until("new connections go to where the gateway is now", || {
        from_west.call(west_out, DETAILS).is_ok() && reached(&moved, DETAILS) > 0
    });
    old.kill();
    for _ in 0..10 {
        from_west.call(west_out, DETAILS).expect("the old gateway is not needed");
    }

    // South consents now, and is kept from it by its own reachability, then by nothing, then by east's.
    let south_gateway = south.gateway("gw-1");
    let south_out = outbound(&south_gateway);
    south.set("imports", &format!("[{{ cluster: east, hosts: [{ALL}], gatewayCIDRs: [10.78.1.0/24] }}]"));
    south.set("reachability", "[{ from: west-net, to: '*' }, { from: '*', to: south-net }]");
    restart(&mut south);
    until("south denies itself", || {
        held(&south, "east", DETAILS).is_some_and(|why| why.contains("may not reach"))
    });
    assert!(from_south.is_unknown(south_out, DETAILS));
    south.set("reachability", "[{ from: '*', to: '*' }]");
    restart(&mut south);
    until("south reaches it", || from_south.call(south_out, DETAILS).is_ok());
    east.set("reachability", "[{ from: west-net, to: '*' }, { from: east-net, to: '*' }]");
    restart(&mut east);
    until("east denies south", || from_south.is_unknown(south_out, DETAILS));
    assert!(imported(&south).is_empty() && held(&south, "east", DETAILS).is_none(), "it is not even told");
    until("east is back for west", || is_connected(&west, "east"));
    from_west.call(west_out, DETAILS).expect("west is not concerned");

    // Who expects another trust domain gets nothing.
    east.set("reachability", "[{ from: '*', to: '*' }]");
    restart(&mut east);
    until("south reaches it again", || from_south.call(south_out, DETAILS).is_ok());
    let peer = east.as_peer().replace("east.example", "north.example");
    south.set("peers", &format!("[{peer}]"));
    let fresh = south.path("fresh").display().to_string();
    south.set("state", &fresh);
    restart(&mut south);
    let error = said_of(&south, "east", "error", "spiffe://east.example/isthmus/east/agent/a");
    assert!(!is_connected(&south, "east") && imported(&south).is_empty(), "{error}");
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

/// East and west, each with a gateway, and a service in east that west calls at 50 a second.
struct Busy {
    traffic: Traffic,
    caller: Caller,
    out: SocketAddr,
    gateways: [Gateway; 2],
    _endpoints: [Scripted; 2],
}

fn busy(east: &mut Cluster, west: &mut Cluster) -> Busy {
    east.set("exports", "[{ workspace: [bookinfo] }]");
    west.set("imports", &format!("[{{ cluster: {}, hosts: [{ALL}] }}]", east.name()));
    east.start();
    west.start();
    let gateways = [east.gateway("gw-1"), west.gateway("gw-1")];
    let one = endpoint(east, Demands::Certificate, b"east-one");
    let two = endpoint(east, Demands::Certificate, b"east-two");
    east.register("details.yaml", &service(DETAILS, &[&one, &two], ""));
    let (caller, out) = (Caller::of(west), outbound(&gateways[1]));
    until("west reaches it", || caller.call(out, DETAILS).is_ok());
    let traffic = caller.traffic(out, DETAILS, PACE);
    Busy { traffic, caller, out, gateways, _endpoints: [one, two] }
}

impl Busy {
    /// Some more calls go by, and none has failed.
    #[track_caller]
    fn goes_on(&self) {
        let before = self.traffic.calls();
        until("there are more calls", || self.traffic.calls() >= before + 10);
        let failures = self.traffic.failures();
        assert!(failures.is_empty(), "{failures:#?}");
    }

    /// All calls so far went well, and the gateways say so, too.
    #[track_caller]
    fn end(self, at_least: usize) {
        let Busy { traffic, gateways, _endpoints, .. } = self;
        let (calls, failures) = traffic.end();
        figure!("{calls} calls meanwhile, {} failed", failures.len());
        assert!(failures.is_empty(), "{failures:#?}");
        assert!(calls >= at_least, "{calls} calls are not enough to say so");
        for gateway in gateways {
            let log = gateway.log().lines();
            let wrong: Vec<_> =
                log.iter().filter(|line| line.text("sni") == DETAILS && !is_good(line.reason())).collect();
            // Before the service was there, it was not known.
            assert!(wrong.iter().all(|line| line.reason() == "sni_unmatched"), "{wrong:#?}");
        }
    }
}

fn is_good(reason: &str) -> bool {
    matches!(reason, "client_closed" | "server_closed")
}

#[test]
fn agents_and_links_go_and_come_back_and_no_call_fails() {
    let World { clusters: [mut east, mut west, mut south], net } =
        match World::peers(["east", "west", "south"]) {
            Ok(world) => world,
            Err(why) => skip!("{why}"),
        };
    south.set("exports", "[{ workspace: [bookinfo] }]");
    east.set("imports", &format!("[{{ cluster: south, hosts: [{ALL}] }}]"));
    south.start();
    let south_gateway = south.gateway("gw-1");
    let three = endpoint(&south, Demands::Certificate, b"south---");
    south.register("reviews.yaml", &service(REVIEWS, &[&three], ""));
    let busy = busy(&mut east, &mut west);
    let mut long = busy.caller.open(busy.out, DETAILS).unwrap();
    let from_east = Caller::of(&east);
    let east_out = outbound(&busy.gateways[0]);
    until("east reaches south", || from_east.call(east_out, REVIEWS).is_ok());

    // One agent after the other, while calls go on: with what they kept, and without.
    for _ in 0..2 {
        for (who, cluster, other) in [("west", &mut west, "east"), ("east", &mut east, "west")] {
            restart(cluster);
            until(&format!("{who} has its peer again"), || is_connected(cluster, other));
            busy.goes_on();
            cluster.unset("state");
        }
    }
    let slow = endpoint_after(&east, Duration::from_millis(500), b"east-low");
    east.register("slow.yaml", &service(SLOW, &[&slow], "").replace("src-0", "src-7"));
    until("west reaches it", || busy.caller.call(busy.out, SLOW).is_ok());
    let patient = busy.caller.traffic(busy.out, SLOW, PACE);
    restart(&mut east);
    until("east has its peer again", || is_connected(&east, "west"));
    let before = patient.calls();
    until("there were calls", || patient.calls() >= before + 3);
    assert_eq!(patient.end().1, [""; 0], "nor does one whose endpoint takes long to prove itself");
    echo(&mut long).expect("a connection from before all that is whole");
    until("west has east again", || is_connected(&west, "east"));
    until("east has south again", || is_connected(&east, "south"));

    // South's cable is pulled; west's agent is away for 10 s, and east changes meanwhile.
    net.cut(3).unwrap();
    west.stop();
    let four = endpoint(&east, Demands::Certificate, b"east-new");
    east.register("ratings.yaml", &service(RATINGS, &[&four], "").replace("src-0", "src-9"));
    south.register(
        "payroll.yaml",
        &service(RATINGS.replace("ratings", "late").as_str(), &[&three], "").replace("src-0", "src-8"),
    );
    throughout(Duration::from_secs(10), "the last good tables serve, and nothing else", || {
        thread::sleep(Duration::from_millis(100));
        busy.traffic.failures().is_empty() && busy.caller.is_unknown(busy.out, RATINGS)
    });
    assert_eq!(busy.gateways[1].admin("GET", "/status").json()["agent"]["connected"], false);
    west.start();
    until("what changed meanwhile is caught up", || {
        busy.caller.call(busy.out, RATINGS).is_ok_and(|answer| answer.greeting == "east-new")
    });

    echo(&mut long).expect("a connection from before all that is whole");

    // A dead link is noticed, what came over it stays, and what changed behind it comes with it.
    assert!(within(Duration::from_secs(60), || !is_connected(&east, "south")), "the loss is noticed");
    assert_eq!(imported(&east), [format!("south/{REVIEWS}")], "what was imported stays");
    let known = busy.gateways[0].admin("GET", &format!("/services?name={REVIEWS}")).body;
    assert!(known.contains("10.78.3.1:15443"), "{known}");
    net.mend(3).unwrap();
    until("the peer is back", || is_connected(&east, "south"));
    until("what changed meanwhile is caught up", || imported(&east).len() == 2);
    from_east.call(east_out, REVIEWS).expect("it serves again");
    echo(&mut long).expect("a connection from before all that is whole");
    busy.end(500);
    drop(south_gateway);
}

#[test]
fn a_token_joins_once_in_its_time_and_with_its_maker_only() {
    // The third pretends to be the first.
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
        let said = cluster.command(&[&words[..], more].concat()).unwrap();
        serde_json::from_str::<Value>(&said).unwrap()["token"].as_str().unwrap().to_owned()
    };
    let is_untouched = |west: &Cluster| {
        !west.path("pki/bundles/east.example.json").exists()
            && west.ask("/status")["peers"] == Value::Object([].into_iter().collect())
    };

    let late = token(&east, &["--lifetime", "1s"]);
    until("it has expired", || east.command(&["token", "list"]).unwrap().contains("expired"));
    let why = west.command(&["join", &late]).unwrap_err();
    assert!(why.contains("expired") && is_untouched(&west), "{why}");

    // Somebody has taken the address that tokens say, with a certificate of his own for the very same name.
    let good = token(&east, &[]);
    net.usurp(3, 1).unwrap();
    let why = west.command(&["join", &good]).unwrap_err();
    figure!("a man in the middle: {why}");
    assert!(why.contains("the token is not used up") && is_untouched(&west), "{why}");
    net.restore(3, 1).unwrap();

    // With its maker it works, once, and what both share is exchanged.
    west.command(&["join", &good]).unwrap();
    let why = west.command(&["join", &good]).unwrap_err();
    assert!(why.contains("has been used"), "{why}");
    let gateways = [east.gateway("gw-1"), west.gateway("gw-1")];
    let one = endpoint(&east, Demands::Certificate, b"east-one");
    east.register("details.yaml", &service(DETAILS, &[&one], "").replace(", aliases: [src-0.pxc]", ""));
    let caller = Caller::of(&west);
    until("west reaches what east exports", || {
        caller.call(outbound(&gateways[1]), DETAILS).is_ok_and(|answer| answer.greeting == "east-one")
    });
}

#[test]
fn a_hostile_peer_is_refused_by_name_and_disturbs_nobody() {
    let World { clusters: [mut east, mut west, south], net: _net } =
        match World::peers(["east", "west", "south"]) {
            Ok(world) => world,
            Err(why) => skip!("{why}"),
        };
    // West alone listens to south.
    let peer = west.as_peer();
    east.set("peers", &format!("[{peer}]"));
    let busy = busy(&mut east, &mut west);
    west.set(
        "imports",
        &format!("[{{ cluster: east, hosts: [{ALL}] }}, {{ cluster: south, hosts: [{ALL}], gatewayCIDRs: [10.78.3.0/24] }}]"),
    );
    restart(&mut west);
    until("west has east", || is_connected(&west, "east"));
    let before = west.process().memory();

    // South's agent proves who it is, and speaks no protocol at all.
    let noise = babbler(&south);
    let error = until_status(&west, "it hears the noise", |status| {
        let error = status["peers"]["south"]["error"].as_str()?.to_owned();
        Some(error).filter(|error| !error.contains("Connection refused"))
    });
    figure!("noise: {error}");
    assert!(error.len() < 4096 && !is_connected(&west, "south"), "{error}");
    drop(noise);
    busy.goes_on();

    // Somebody in its place who is of its cluster, but no agent.
    let other = Impostor::of(&south, "gw-1");
    let error = said_of(&west, "south", "error", "spiffe://south.example/isthmus/south/gateway/gw-1");
    assert!(other.streams() == 0 && !is_connected(&west, "south"), "{error}");
    drop(other);
    busy.goes_on();

    let hostile = Impostor::of(&south, "agent");
    until("west follows it", || is_connected(&west, "south"));
    let gateway = "10.78.3.1:15443";
    let good = slice("south", RATINGS, 5, gateway);
    let outside = slice("south", "outside.bookinfo.svc.cluster.local", 1, "10.78.1.1:15443");
    let mut mixed = slice("south", "mixed.bookinfo.svc.cluster.local", 1, gateway);
    mixed.gateways.push(At { address: "127.0.0.1:15014".to_owned(), ..At::default() });
    let foreign = slice("east", DETAILS, u64::MAX, gateway);
    let garbage: Vec<u8> =
        (0..4096_u32).map(|place| (place.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    hostile.say(
        "many",
        vec![
            named(&outside),
            named(&mixed),
            named(&foreign),
            named(&good),
            resource("south/noise.bookinfo.svc.cluster.local", garbage),
            resource("south/other.bookinfo.svc.cluster.local", good.encode_to_vec()),
        ],
    );
    let why = hostile.answer("many").expect("a refusal");
    for (name, word) in [
        ("south/outside.bookinfo", "10.78.1.1:15443, which is outside of what `imports` allows"),
        ("south/mixed.bookinfo", "127.0.0.1:15014, which is outside"),
        ("east/details.bookinfo", "south speaks for itself alone"),
        ("south/noise.bookinfo", "cannot be decoded"),
        ("south/other.bookinfo", "is the slice of south/ratings"),
    ] {
        assert!(why.contains(name) && why.contains(word), "{name}: {why}");
    }
    assert!(!why.contains("south/ratings.bookinfo.svc.cluster.local: "), "the good one is not named: {why}");
    let mut known = vec![format!("east/{DETAILS}"), format!("south/{RATINGS}")];
    known.sort();
    let is_calm = || {
        busy.goes_on();
        let mut now = imported(&west);
        now.sort();
        now == known
    };
    assert!(is_calm(), "the good one is in, and nothing else has changed: {:?}", imported(&west));
    assert_eq!(west.ask("/status")["peers"]["south"]["refusals"], 5);

    let old = slice("south", RATINGS, 4, "10.78.3.9:15443");
    hostile.say("old", vec![named(&old)]);
    let why = hostile.answer("old").expect("a refusal");
    assert!(why.contains("an old slice never replaces a newer one"), "{why}");
    assert!(said_of(&west, "south", "refusal", "of revision 1.4").contains(RATINGS));

    // These are its own to say, and nobody's to believe.
    hostile.say(
        "names",
        vec![named(&slice("south", PAYROLL, 1, gateway)), named(&slice("south", DETAILS, 1, gateway))],
    );
    assert_eq!(hostile.answer("names"), None);
    assert!(held(&west, "south", PAYROLL).unwrap().contains("was not granted"));
    assert!(held(&west, "south", DETAILS).unwrap().contains("has the name of a service of east"));

    // A name without an end is neither logged, shown nor sent back in full.
    let name = format!("south/\u{1b}[31m\n{}", "x".repeat(1 << 20));
    hostile.say("name", vec![resource(&name, Vec::new())]);
    let answer = hostile.answer("name").expect("a refusal");
    busy.goes_on();
    let shown = west.ask("/status")["peers"]["south"]["refusal"].as_str().unwrap().to_owned();
    let logged = west.said().iter().map(String::len).max().unwrap();
    assert!(
        answer.len() < 4096 && shown.len() < 4096 && logged < 8192,
        "{}, {}, {logged}",
        answer.len(),
        shown.len()
    );
    assert!(!shown.contains('\u{1b}') && !shown.contains('\n'), "{shown:?}");

    assert!(is_calm(), "{:?}", imported(&west));

    // Too much at once: of a message that is refused as a whole, then of one slice.
    let streams = hostile.streams();
    hostile.say("huge", vec![resource("south/huge.bookinfo.svc.cluster.local", vec![7; 64 << 20])]);
    until("west comes back", || hostile.streams() > streams);
    until("west follows it again", || is_connected(&west, "south"));
    hostile.say("large", vec![resource("south/large.bookinfo.svc.cluster.local", vec![7; 24 << 20])]);
    let why = hostile.answer("large").expect("a refusal");
    assert!(why.contains("at most 16777216 are taken"), "{why}");

    let process = west.process();
    let (now, peak) =
        (process.memory().saturating_sub(before) / MIB, process.peak().saturating_sub(before) / MIB);
    figure!("memory of the agent: {} MiB before, {now} more now, {peak} more at most", before / MIB);
    assert!(peak <= 64, "{peak} MiB more at most");
    assert!(is_calm(), "{:?}", imported(&west));
    busy.end(50);
}

/// In the place of an agent, with its identity: what it says after the handshake is noise.
fn babbler(cluster: &Cluster) -> Scripted {
    let at = cluster.agent_address();
    let endpoint = inside(cluster.namespace().unwrap(), move || Endpoint::at(at));
    let trust = Trust::load(&files(cluster, "agent")).unwrap().current();
    let mut config = server_config(&trust.identity, Arc::clone(&trust.bundles), Peer::Trusted).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    Scripted::unread_at(endpoint, move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        let _gone = tls.write_all(&[0xa5; 65_536]).and_then(|()| tls.flush());
    })
}

#[test]
fn a_thousand_strangers_keep_no_gateway_waiting() {
    let World { clusters: [mut east, outside], net: _net } = match World::strangers(["east", "outside"]) {
        Ok(world) => world,
        Err(why) => skip!("{why}"),
    };
    east.start();
    let gateway = east.gateway("gw-1");
    let one = endpoint(&east, Demands::Certificate, b"east-one");
    let file = |host: &str| service(host, &[&one], "").replace(", aliases: [src-0.pxc]", "");
    east.register("details.yaml", &file(DETAILS));
    let (caller, out) = (Caller::of(&east), outbound(&gateway));
    until("it is there", || caller.call(out, DETAILS).is_ok());
    let traffic = caller.traffic(out, DETAILS, PACE);
    let (agent, before) = (east.agent_address(), east.process().memory());

    let silent: Vec<TcpStream> = inside(outside.namespace().unwrap(), move || {
        (0..1_000).map(|_| TcpStream::connect(agent).unwrap()).collect()
    });
    let fresh = east
        .setup_on("gw-2", Some(Star::address(1).into()))
        .listeners("- { name: outbound, address: '127.0.0.1:0', side: outbound }")
        .start();
    until("a new gateway is ready", || fresh.is_ready());
    caller.call(outbound(&fresh), DETAILS).expect("it has its tables");
    east.register("ratings.yaml", &file(RATINGS));
    until("changes arrive", || {
        caller.call(out, RATINGS).is_ok() && caller.call(outbound(&fresh), RATINGS).is_ok()
    });
    assert_eq!(silent.len(), 1_000);
    drop(silent);

    let bundles = Arc::clone(&Trust::load(&files(&east, "client")).unwrap().current().bundles);
    let refused = inside(outside.namespace().unwrap(), move || {
        (0..1_000).filter(|_| is_refused(agent, &bundles)).count()
    });
    assert_eq!(refused, 1_000, "who shows no certificate is refused");
    east.register("reviews.yaml", &file(REVIEWS));
    until("changes arrive", || caller.call(out, REVIEWS).is_ok());
    let process = east.process();
    let (now, peak) =
        (process.memory().saturating_sub(before) / MIB, process.peak().saturating_sub(before) / MIB);
    figure!(
        "memory of the agent: {} MiB before, {now} more now, {peak} more at most; {} descriptors",
        before / MIB,
        process.descriptors()
    );
    assert!(peak <= 64, "{peak} MiB more at most");
    let (calls, failures) = traffic.end();
    assert!(calls >= 25 && failures.is_empty(), "{calls} calls: {failures:#?}");
}

/// Whether an agent refuses a client that shows no certificate.
fn is_refused(agent: SocketAddr, bundles: &Arc<TrustBundles>) -> bool {
    let provider = Arc::new(default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(Arc::clone(bundles), Peer::Trusted))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let server = ServerName::try_from("agent.example").unwrap();
    let stream = TcpStream::connect(agent).unwrap();
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), server).unwrap(), stream);
    let asked =
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").and_then(|()| tls.flush());
    let mut bytes = Vec::new();
    asked.and_then(|()| tls.read_to_end(&mut bytes)).is_err() && bytes.is_empty()
}
