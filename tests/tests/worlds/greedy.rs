//! A peer with a valid identity that uses ten times what each limit allows: the agent's memory stays bounded,
//! and changes of its own cluster still arrive. Row 21 of the hazards.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::Request;
use hyper::body::Frame;
use isthmus_ads::stubs::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_certs::{Client as Tls, Peer, Trust};
use isthmus_grpc::dial::dial;
use isthmus_model::address::Target;
use isthmus_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use isthmus_proto::isthmus::v1::ServiceSlice;
use isthmus_proto::type_url::SLICE;
use isthmus_tests::cluster::Cluster;
use isthmus_tests::netns::inside;
use isthmus_tests::wait::until;
use isthmus_tests::workload::{Demands, endpoint, files};
use isthmus_tests::world::World;
use isthmus_tests::{figure, skip};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio_stream::StreamExt as _;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service as _;

use super::hostile::Hostile;
use super::impostor::{Impostor, named, slice};
use super::{MIB, is_connected, service};

const GATEWAY: &str = "10.78.3.1:15443";
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Slices per message.
const BATCH: usize = 2_000;

#[test]
fn greedy_peer_at_ten_times_each_limit_costs_64_mib_and_delays_no_own_change() {
    let Hostile { busy, west, south, before, .. } = &match World::peers(["east", "west", "south"]) {
        Ok(world) => Hostile::new(world),
        Err(why) => skip!("{why}"),
    };
    let one = endpoint(west, Demands::Certificate, b"west-one");
    let greedy = Greedy::new(south, west);
    let slowest = thread::scope(|scope| {
        let flood = scope.spawn(|| greedy.exhaust_limits(west));
        let mut times = Vec::new();
        while !flood.is_finished() {
            let host = format!("own-{}.shop.svc.cluster.local", times.len());
            let began = Instant::now();
            west.register("own.yaml", &service(&host, &[&one], "").replace(", aliases: [src-0.pxc]", ""));
            until("an own change arrives", || busy.caller.call(busy.out, &host).is_ok());
            times.push(began.elapsed());
            thread::sleep(Duration::from_millis(100));
        }
        flood.join().unwrap();
        figure!("{} changes of the own cluster meanwhile", times.len());
        times.into_iter().max().unwrap()
    });
    let process = west.process();
    let more = |memory: u64| memory.saturating_sub(*before) / MIB;
    let (now, peak) = (more(process.memory()), more(process.peak()));
    figure!(
        "a greedy peer: agent memory +{now} MiB, peak +{peak} MiB; slowest change of the own cluster {slowest:?}"
    );
    assert!(peak <= 64, "{peak} MiB more");
    greedy.assert_reported(west);
    busy.goes_on();
}

/// South's agent, as server and as client.
struct Greedy {
    offers: Impostor,
    /// Its threads run in south's namespace.
    runtime: Runtime,
    at: Target,
    agent: Arc<Tls>,
    stranger: Arc<Tls>,
}

impl Greedy {
    fn new(south: &Cluster, west: &Cluster) -> Greedy {
        let tls = |leaf: &str| {
            let trust = Trust::load(&files(south, leaf)).unwrap();
            Arc::new(Tls::new(trust, Peer::Trusted, &[b"h2"]).unwrap())
        };
        let offers = Impostor::in_cluster(south, "agent");
        until("west follows south", || is_connected(west, "south"));
        Greedy {
            offers,
            runtime: inside(south.namespace().unwrap(), || Runtime::new().unwrap()),
            at: Target::Address(west.agent_address()),
            agent: tls("agent"),
            stranger: tls("client"),
        }
    }

    fn exhaust_limits(&self, west: &Cluster) {
        self.names(west);
        let kept = self.requests(west);
        self.slices();
        drop(kept);
    }

    /// 160 connections, of which 16 are accepted; 80 requests on these, 8 MiB each and never complete. Also
    /// 80 requests of an unserved client.
    fn requests(&self, west: &Cluster) -> Vec<Channel> {
        let (at, agent, stranger) = (self.at.clone(), Arc::clone(&self.agent), Arc::clone(&self.stranger));
        let kept = self.runtime.spawn(async move {
            let mut kept = Vec::new();
            for tls in [agent, stranger] {
                for number in 0..160 {
                    let Ok(channel) = dial(&at, &tls).await else { continue };
                    (0..if number < 10 { 8 } else { 0 }).for_each(|_| unfinished(channel.clone()));
                    kept.push(channel);
                }
            }
            kept
        });
        let kept = self.runtime.block_on(kept).unwrap();
        for resource in ["connections", "streams", "request_bytes"] {
            until(&format!("{resource} are exceeded"), || exceeded(west, resource) >= 1);
        }
        kept
    }

    /// 20 requests with 8 000 names and more each, delta and state-of-the-world: many times the total limit.
    /// Half of them exceed the limit of one stream.
    fn names(&self, west: &Cluster) {
        let (at, agent) = (self.at.clone(), Arc::clone(&self.agent));
        let asked = self.runtime.spawn(async move {
            let names =
                |count: usize| (0..count).map(|number| format!("south/name-{number}.example")).collect();
            let channel = dial(&at, &agent).await.unwrap();
            let mut kept = Vec::new();
            let mut refused = 0;
            for round in 0..20 {
                let mut ads = AggregatedDiscoveryServiceClient::new(channel.clone());
                let (type_url, resource_names) = (SLICE.to_owned(), names(8_000 + round % 2 * 4_000));
                if round % 4 < 2 {
                    let request = DeltaDiscoveryRequest {
                        type_url,
                        resource_names_subscribe: resource_names,
                        ..DeltaDiscoveryRequest::default()
                    };
                    let stream = tokio_stream::once(request).chain(tokio_stream::pending());
                    match ads.delta_aggregated_resources(stream).await {
                        Ok(mut response) => match response.get_mut().message().await {
                            Ok(_) => kept.push(response),
                            Err(_) => refused += 1,
                        },
                        Err(_) => refused += 1,
                    }
                } else {
                    let request =
                        DiscoveryRequest { type_url, resource_names, ..DiscoveryRequest::default() };
                    let stream = tokio_stream::once(request).chain(tokio_stream::pending());
                    let asked = ads.stream_aggregated_resources(stream).await;
                    let answered = async { asked?.into_inner().message().await };
                    let answered = tokio::time::timeout(Duration::from_secs(5), answered).await;
                    refused += usize::from(matches!(answered, Ok(Err(_))));
                }
            }
            (kept.len(), refused)
        });
        let (kept, refused) = self.runtime.block_on(asked).unwrap();
        figure!("of 20 streams with 8 000 names and more {kept} were served, {refused} refused");
        assert!(refused >= 10, "{refused}");
        until("names are exceeded", || exceeded(west, "names") >= 1);
    }

    /// 100 000 slices, then 80 MiB of slices, then as many names without consent.
    fn slices(&self) {
        let of = |number: usize| slice("south", &format!("s{number}.bookinfo.svc.cluster.local"), 1, GATEWAY);
        for first in (0..100_000).step_by(BATCH) {
            self.say(&format!("many-{first}"), (first..first + BATCH).map(of));
        }
        for first in (0..400).step_by(20) {
            self.say(
                &format!("large-{first}"),
                (first..first + 20).map(|number| ServiceSlice {
                    revision: 2,
                    aliases: (0..1_000)
                        .map(|alias| format!("n{number}-{alias}.{}.bookinfo.svc.cluster.local", label()))
                        .collect(),
                    ..of(number)
                }),
            );
        }
        for first in (0..100_000).step_by(BATCH) {
            let never = |number: usize| slice("south", &format!("s{number}.never.example"), 1, GATEWAY);
            self.say(&format!("never-{first}"), (first..first + BATCH).map(never));
        }
    }

    fn say(&self, nonce: &str, slices: impl Iterator<Item = ServiceSlice>) {
        self.offers.say(nonce, slices.map(|slice| named(&slice)).collect());
        self.offers.answer(nonce);
    }

    /// Asserts that status, metrics and log name the exceeded limits.
    fn assert_reported(&self, west: &Cluster) {
        let status = west.ask("/status");
        let offers = &status["peers"]["south"]["offers"];
        let number = |value: &Value| value.as_u64().unwrap();
        for resource in ["slices", "bytes", "names"] {
            let Value::Object(usage) = &offers[resource] else { panic!("{offers}") };
            assert!(number(&usage["used"]) <= number(&usage["limit"]), "{resource}: {offers}");
        }
        assert_eq!(number(&offers["slices"]["used"]), 8_000, "{offers}");
        assert!(number(&offers["slices"]["exceeded"]) >= 90_000, "{offers}");
        assert_eq!((&offers["not_granted"], &offers["not_granted_unlisted"]), (&1_000.into(), &true.into()));
        let metrics = west.metrics();
        for line in [
            "isthmus_agent_limits_exceeded_total{kind=\"peer\",resource=\"connections\"}",
            "isthmus_agent_peer_slices{cluster=\"south\"} 8000",
        ] {
            assert!(metrics.contains(line), "{line}: {metrics}");
        }
        let lines = west.log_lines();
        assert!(
            lines.iter().any(|line| line.contains("limit exceeded") && line.contains("south")),
            "{lines:#?}"
        );
        figure!("{} log lines", lines.len());
        assert!(lines.len() < 5_000, "{} lines", lines.len());
    }
}

/// A long label, for long names.
fn label() -> String {
    "l".repeat(60)
}

fn exceeded(west: &Cluster, resource: &str) -> u64 {
    west.ask("/status")["budgets"]["peers"]["south"][resource]["exceeded"].as_u64().unwrap_or_default()
}

/// Begins a request of 8 MiB that never ends.
fn unfinished(mut channel: Channel) {
    let prefix = [&[0], &(8_u32 << 20).to_be_bytes()[..], &[3 << 3 | 2, 0xfa, 0xff, 0xff, 0x03]].concat();
    let chunks = (0..511).map(|_| Bytes::from_static(&[b'x'; 16 << 10]));
    let frames = std::iter::once(Bytes::from(prefix)).chain(chunks);
    let frames = tokio_stream::iter(frames.map(|data| Ok::<_, std::io::Error>(Frame::data(data))));
    let request = Request::post(DELTA)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(StreamBody::new(frames.chain(tokio_stream::pending()))))
        .unwrap();
    tokio::spawn(async move {
        std::future::poll_fn(|context| channel.poll_ready(context)).await?;
        let answer = channel.call(request).await;
        // The request is held as long as its connection.
        if answer.is_ok() {
            std::future::pending::<()>().await;
        }
        answer.map(|_| ())
    });
}
