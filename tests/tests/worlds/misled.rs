//! A gateway whose agent has turned against it, or somebody stands in the agent's place: what is wrong is refused and
//! shown, what was good serves on, and the agent that comes back is believed. Row 15 of the hazards.

use std::fs;

use isthmus_proto::isthmus::v1::{Endpoint, Health, ServiceSlice};
use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::figure;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::wait::{until, until_some};
use isthmus_tests::workload::{Caller, Demands, Traffic, endpoint};
use serde_json::Value;

use super::busy::PACE;
use super::hostile::babbler;
use super::impostor::{Impostor, named, resource, slice};
use super::{DETAILS, MIB, RATINGS, REVIEWS, service};

/// A gateway that is called all the time.
struct Misled {
    east: Cluster,
    gateway: Gateway,
    traffic: Traffic,
    /// The gateway's memory before anybody turned.
    before: u64,
}

#[test]
fn hostile_agent_leaves_gateway_its_last_good_tables() {
    let mut east = Cluster::new("east");
    let one = endpoint(&east, Demands::Certificate, b"east-one");
    east.register("details.yaml", &service(DETAILS, &[&one], ""));
    east.start();
    let gateway = east.gateway("gw-1");
    let (caller, out) = (Caller::of(&east), outbound(&gateway));
    until("it is called", || caller.call(out, DETAILS).is_ok());
    let traffic = caller.traffic(out, DETAILS, PACE);
    east.stop();
    let before = gateway.process().memory();
    let mut world = Misled { east, gateway, traffic, before };
    world.noise_is_no_protocol();
    world.who_is_no_agent_is_not_heard();
    let agent = Impostor::of(&world.east, "agent");
    until("it is followed", || world.agent()["connected"] == true);
    world.the_bad_are_refused_by_name_and_the_good_one_is_taken(&agent);
    world.too_much_at_once_is_refused(&agent);
    drop(agent);
    world.the_agent_is_back();
    let (calls, failures) = world.traffic.end();
    figure!("{calls} calls meanwhile, {} failed", failures.len());
    assert!(calls >= 50 && failures.is_empty(), "{calls} calls: {failures:#?}");
}

impl Misled {
    /// How it stands with the agent.
    fn agent(&self) -> Value {
        self.gateway.admin("GET", "/status").json()["agent"].clone()
    }

    /// What is wrong with the agent, once that has a word in it.
    fn error(&self, word: &str) -> String {
        until_some(&format!("the error says {word}"), || {
            Some(self.agent()["error"].as_str()?.to_owned()).filter(|error| error.contains(word))
        })
    }

    /// Some more calls go by, and none has failed; exactly these services stand.
    fn stands(&self, expected: &[&str]) {
        let before = self.traffic.calls();
        until("there are more calls", || self.traffic.calls() >= before + 10);
        assert_eq!(self.traffic.failures(), [""; 0]);
        let services = self.gateway.admin("GET", "/services").json();
        let mut names: Vec<_> = services["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one["service"].as_str().unwrap())
            .collect();
        names.sort_unstable();
        let expected: Vec<_> = expected.iter().map(|host| format!("{host}:443")).collect();
        assert_eq!(names, expected);
    }

    fn noise_is_no_protocol(&self) {
        let noise = babbler(&self.east);
        until("it is heard", || noise.accepted() > 1);
        let error = until_some("the noise is shown", || {
            let error = self.agent()["error"].as_str()?.to_owned();
            Some(error).filter(|error| !error.contains("refused"))
        });
        assert_eq!(self.agent()["connected"], false, "{error}");
        drop(noise);
        self.stands(&[DETAILS]);
    }

    fn who_is_no_agent_is_not_heard(&self) {
        let other = Impostor::of(&self.east, "gw-2");
        let error = self.error("spiffe://east.example/isthmus/east/gateway/gw-2");
        assert!(other.streams() == 0 && self.agent()["connected"] == false, "{error}");
        drop(other);
        self.stands(&[DETAILS]);
    }

    fn the_bad_are_refused_by_name_and_the_good_one_is_taken(&self, agent: &Impostor) {
        let good = own(RATINGS, u64::MAX, "east-net");
        let garbage: Vec<u8> = (0..=255).rev().cycle().take(4096).collect();
        agent.say(
            "many",
            vec![
                named(&own(DETAILS, 1, "east-net")),
                named(&own(REVIEWS, 1, "elsewhere")),
                named(&good),
                resource("east/noise.bookinfo.svc.cluster.local", garbage),
            ],
        );
        let why = agent.answer("many").expect("a refusal");
        for (name, word) in [
            ("east/details.bookinfo", "an old slice never replaces a newer one"),
            ("east/reviews.bookinfo", "is in network \"elsewhere\""),
            ("east/noise.bookinfo", "cannot be decoded"),
        ] {
            assert!(why.contains(name) && why.contains(word), "{name}: {why}");
        }
        assert!(!why.contains(RATINGS), "the good one is not named: {why}");
        let shown = self.agent();
        assert_eq!(shown["refusals"], 3, "{shown}");
        assert!(shown["refusal"].as_str().unwrap().contains("cannot be decoded"), "{shown}");
        assert_eq!(self.gateway.metrics().sum("isthmus_agent_slices_refused_total", &[]), 3.0);
        self.stands(&[DETAILS, RATINGS]);
    }

    /// A message that is refused whole, then one whose slice is.
    fn too_much_at_once_is_refused(&self, agent: &Impostor) {
        let streams = agent.streams();
        agent.say("huge", vec![resource("east/huge.bookinfo.svc.cluster.local", vec![7; 64 << 20])]);
        until("it comes back", || agent.streams() > streams);
        assert!(self.gateway.errors().iter().any(|line| line.contains("bytes is too large")));
        until("it is followed again", || self.agent()["connected"] == true);
        agent.say("large", vec![resource("east/large.bookinfo.svc.cluster.local", vec![7; 20 << 20])]);
        let why = agent.answer("large").expect("a refusal");
        assert!(why.contains("at most 16777216 are taken"), "{why}");
        self.stands(&[DETAILS, RATINGS]);
        let process = self.gateway.process();
        let more = |memory: u64| memory.saturating_sub(self.before) / MIB;
        let (now, peak) = (more(process.memory()), more(process.peak()));
        figure!("an agent that has turned: {now} MiB more in the gateway, {peak} MiB at most");
        assert!(peak <= 64, "{peak} MiB more");
    }

    /// It has another service by now, and knows nothing of what somebody said in its name.
    fn the_agent_is_back(&mut self) {
        let file = fs::read_to_string(self.east.path("registry/details.yaml")).unwrap();
        self.east.register("reviews.yaml", &file.replace(DETAILS, REVIEWS).replace("src-0", "src-1"));
        self.east.start();
        until("what is new is there, and what was never its word is gone", || {
            let services = self.gateway.admin("GET", "/services").body;
            services.contains(REVIEWS) && !services.contains(RATINGS)
        });
        self.stands(&[DETAILS, REVIEWS]);
    }
}

/// A slice of the gateway's own cluster, with an endpoint.
fn own(host: &str, revision: u64, network: &str) -> ServiceSlice {
    let mut slice = slice("east", host, revision, "127.0.0.1:1");
    slice.network = network.to_owned();
    let endpoint = Endpoint {
        address: "127.0.0.1:2".to_owned(),
        weight: 1,
        health: Health::Ready.into(),
        ..Endpoint::default()
    };
    slice.ports[0].endpoints.push(endpoint);
    slice
}
