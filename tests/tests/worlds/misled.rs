//! A gateway with a hostile agent, or with an impostor in the agent's place: invalid resources are refused
//! and reported, the last good tables stay in use, and the returning agent is accepted. Row 15 of the
//! hazards.

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

/// A gateway under continuous calls.
struct Misled {
    east: Cluster,
    gateway: Gateway,
    traffic: Traffic,
    /// The gateway's memory before the attack.
    before: u64,
}

#[test]
fn hostile_agent_leaves_gateway_its_last_good_tables() {
    let mut east = Cluster::new("east");
    let one = endpoint(&east, Demands::Certificate, b"east-one");
    east.register("details.yaml", &service(DETAILS, &[&one], ""));
    east.start();
    let gateway = east.gateway("gw-1");
    let (caller, out) = (Caller::in_cluster(&east), outbound(&gateway));
    until("the service is reachable", || caller.call(out, DETAILS).is_ok());
    let traffic = caller.traffic(out, DETAILS, PACE);
    east.stop();
    let before = gateway.process().memory();
    let mut world = Misled { east, gateway, traffic, before };
    world.noise_is_refused();
    world.server_without_agent_identity_is_refused();
    let agent = Impostor::in_cluster(&world.east, "agent");
    until("the gateway follows the impostor", || world.agent()["connected"] == true);
    world.invalid_slices_are_refused_by_name_and_valid_one_is_accepted(&agent);
    world.oversized_messages_are_refused(&agent);
    drop(agent);
    world.real_agent_returns();
    let (calls, failures) = world.traffic.end();
    figure!("{calls} calls meanwhile, {} failed", failures.len());
    assert!(calls >= 50 && failures.is_empty(), "{calls} calls: {failures:#?}");
}

impl Misled {
    /// The agent's entry in the gateway's status.
    fn agent(&self) -> Value {
        self.gateway.admin("GET", "/status").json()["agent"].clone()
    }

    /// Waits until the agent's error contains this word.
    fn error(&self, word: &str) -> String {
        until_some(&format!("the error contains {word}"), || {
            Some(self.agent()["error"].as_str()?.to_owned()).filter(|error| error.contains(word))
        })
    }

    /// Asserts that several more calls succeed and exactly these services are in the tables.
    fn assert_services(&self, expected: &[&str]) {
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

    fn noise_is_refused(&self) {
        let noise = babbler(&self.east);
        until("the gateway has connected twice", || noise.accepted() > 1);
        let error = until_some("the status shows the error", || {
            let error = self.agent()["error"].as_str()?.to_owned();
            Some(error).filter(|error| !error.contains("refused"))
        });
        assert_eq!(self.agent()["connected"], false, "{error}");
        drop(noise);
        self.assert_services(&[DETAILS]);
    }

    fn server_without_agent_identity_is_refused(&self) {
        let other = Impostor::in_cluster(&self.east, "gw-2");
        let error = self.error("spiffe://east.example/isthmus/east/gateway/gw-2");
        assert!(other.streams() == 0 && self.agent()["connected"] == false, "{error}");
        drop(other);
        self.assert_services(&[DETAILS]);
    }

    fn invalid_slices_are_refused_by_name_and_valid_one_is_accepted(&self, agent: &Impostor) {
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
        assert!(!why.contains(RATINGS), "a valid slice is named: {why}");
        let shown = self.agent();
        assert_eq!(shown["refusals"], 3, "{shown}");
        assert!(shown["refusal"].as_str().unwrap().contains("cannot be decoded"), "{shown}");
        assert_eq!(self.gateway.metrics().sum("isthmus_agent_slices_refused_total", &[]), 3.0);
        self.assert_services(&[DETAILS, RATINGS]);
    }

    /// A message that is refused entirely, then one with a refused slice.
    fn oversized_messages_are_refused(&self, agent: &Impostor) {
        let streams = agent.streams();
        agent.say("huge", vec![resource("east/huge.bookinfo.svc.cluster.local", vec![7; 64 << 20])]);
        until("the gateway reconnects", || agent.streams() > streams);
        assert!(self.gateway.errors().iter().any(|line| line.contains("bytes is too large")));
        until("the gateway follows the impostor again", || self.agent()["connected"] == true);
        agent.say("large", vec![resource("east/large.bookinfo.svc.cluster.local", vec![7; 20 << 20])]);
        let why = agent.answer("large").expect("a refusal");
        assert!(why.contains("the limit is 16777216"), "{why}");
        self.assert_services(&[DETAILS, RATINGS]);
        let process = self.gateway.process();
        let more = |memory: u64| memory.saturating_sub(self.before) / MIB;
        let (now, peak) = (more(process.memory()), more(process.peak()));
        figure!("a hostile agent: gateway memory +{now} MiB, peak +{peak} MiB");
        assert!(peak <= 64, "{peak} MiB more");
    }

    /// The real agent returns with another service and without the impostor's slices.
    fn real_agent_returns(&mut self) {
        let file = fs::read_to_string(self.east.path("registry/details.yaml")).unwrap();
        self.east.register("reviews.yaml", &file.replace(DETAILS, REVIEWS).replace("src-0", "src-1"));
        self.east.start();
        until("the new service is known, and the impostor's is gone", || {
            let services = self.gateway.admin("GET", "/services").body;
            services.contains(REVIEWS) && !services.contains(RATINGS)
        });
        self.assert_services(&[DETAILS, REVIEWS]);
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
