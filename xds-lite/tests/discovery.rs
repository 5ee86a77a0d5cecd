//! Tests discovery over real mTLS connections: access, incremental updates, losses, refusals, strangers and limits.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic anywhere")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::{AGENT, ANY, Agent, GATEWAY, PEERS, World};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response};
use isthmus_ads::client::{Client, Refused, Update};
use isthmus_ads::service::{Directory, Discovery};
use isthmus_ads::shared::Shared;
use isthmus_ads::subscribe::{Answers, Contact, Retry, Subscription, Tables};
use isthmus_certs::{Client as TlsClient, SpiffeId};
use isthmus_grpc::budget::{Kind, Resource};
use isthmus_grpc::dial::Chain;
use isthmus_grpc::dial::dial;
use isthmus_proto::envoy::config::core::v3::Node;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower::Service as _;

const TYPE: &str = "type.googleapis.com/isthmus.v1.ServiceSlice";
const STRANGER: &str = "spiffe://east.example/ns/a/sa/b";

/// A gateway that follows an agent until its runtime is dropped.
fn gateway(world: &World, id: &str, server: &str, agent: &Agent, seen: &Seen) -> Runtime {
    subscribe(world.client(id, server), &[agent.at], seen)
}

fn subscribe(tls: Arc<TlsClient>, servers: &[SocketAddr], seen: &Seen) -> Runtime {
    let subscription = Subscription {
        servers: servers.iter().map(|at| at.to_string().parse().unwrap()).collect(),
        within: None,
        tls,
        node: Node { id: "g".to_owned(), ..Node::default() },
        answers: Answers::OF_OWN,
    };
    let mut seen = seen.clone();
    let runtime = Runtime::new().unwrap();
    runtime.spawn(async move { subscription.run(vec![Client::new(TYPE, [])], &mut seen).await });
    runtime
}

fn start<D: Directory>(world: &World, directory: &Arc<D>, at: SocketAddr) -> Agent {
    world.agent(Routes::new(Discovery::service(Arc::clone(directory))), at)
}

/// One view, for gateways.
struct One(Arc<Shared>);

impl Directory for One {
    fn view(&self, peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status> {
        match (peer.to_string().as_str(), type_url) {
            (GATEWAY, TYPE) => Ok(Arc::clone(&self.0)),
            (GATEWAY, _) => Err(Status::unimplemented("this type is not served")),
            _ => Err(Status::permission_denied("only listed gateways and peers are served")),
        }
    }
}

fn directory() -> Arc<One> {
    Arc::new(One(Arc::new(Shared::new(|_| true))))
}

/// What a gateway has received.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Given>>);

#[derive(Default)]
struct Given {
    tables: BTreeMap<String, Vec<u8>>,
    resources: usize,
    made: usize,
    lost: Vec<String>,
}

impl Tables for Seen {
    async fn apply(&mut self, update: &Update) -> Vec<Refused> {
        let mut given = self.0.lock().unwrap();
        given.resources += update.resources.len();
        let mut refused = Vec::new();
        for resource in &update.resources {
            if resource.bytes.starts_with(b"bad") {
                refused.push(Refused { name: resource.name.clone(), why: "is bad".to_owned() });
            } else {
                given.tables.insert(resource.name.clone(), resource.bytes.to_vec());
            }
        }
        for name in &update.removed {
            given.tables.remove(name);
        }
        refused
    }

    fn contact(&mut self, contact: Contact<'_>) {
        let mut given = self.0.lock().unwrap();
        match contact {
            Contact::Made(_) => given.made += 1,
            Contact::Lost(_, why) => given.lost.push(why.to_owned()),
        }
    }
}

impl Seen {
    fn has(&self, expected: &[(&str, &str)]) -> bool {
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec()))
            .collect();
        self.0.lock().unwrap().tables == expected
    }

    fn resources(&self) -> usize {
        self.0.lock().unwrap().resources
    }
}

#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("waited too long until {what}");
}

#[test]
fn changed_resource_is_sent_alone_and_refusal_is_reported() {
    let (world, directory, seen) = (World::new(), directory(), Seen::default());
    directory.0.change(|view| _ = view.set("a", "1"));
    let agent = start(&world, &directory, ANY);
    let _gateway = gateway(&world, GATEWAY, AGENT, &agent, &seen);
    until("the first state is there", || seen.has(&[("a", "1")]));
    directory.0.change(|view| _ = view.set("b", "1"));
    until("one more is there", || seen.has(&[("a", "1"), ("b", "1")]));
    assert_eq!(seen.resources(), 2, "an unchanged resource was not sent again");
    directory.0.change(|view| _ = view.set("b", "bad"));
    until("the refusal is known", || directory.0.all().iter().any(|one| one.refusal.is_some()));
    let follower = directory.0.all().remove(0);
    assert_eq!((follower.peer.as_str(), follower.refusals), (GATEWAY, 1));
    assert_eq!(follower.refusal.as_deref(), Some("b: is bad"));
    assert!(seen.has(&[("a", "1"), ("b", "1")]), "the last accepted resource stays");
    directory.0.change(|view| _ = view.remove("a"));
    until("one is gone", || seen.has(&[("b", "1")]));
}

#[test]
fn restarted_server_sends_only_what_differs() {
    let (world, old, seen) = (World::new(), directory(), Seen::default());
    for name in ["a", "b", "c"] {
        old.0.change(|view| _ = view.set(name, "1"));
    }
    let agent = start(&world, &old, ANY);
    let _gateway = gateway(&world, GATEWAY, AGENT, &agent, &seen);
    until("the first state is there", || seen.has(&[("a", "1"), ("b", "1"), ("c", "1")]));
    let at = agent.at;
    drop(agent);
    until("the loss is known", || !seen.0.lock().unwrap().lost.is_empty());
    assert!(seen.has(&[("a", "1"), ("b", "1"), ("c", "1")]), "the tables stay");
    let new = directory();
    for (name, content) in [("b", "1"), ("c", "2")] {
        new.0.change(|view| _ = view.set(name, content));
    }
    let before = seen.resources();
    let _agent = start(&world, &new, at);
    until("it has caught up", || seen.has(&[("b", "1"), ("c", "2")]));
    assert_eq!(seen.resources() - before, 1, "b was the same");
}

#[test]
fn client_fails_over_to_the_next_agent() {
    let (world, first, second, seen) = (World::new(), directory(), directory(), Seen::default());
    for one in [&first, &second] {
        one.0.change(|view| _ = view.set("a", "1"));
    }
    let (one, two) = (start(&world, &first, ANY), start(&world, &second, ANY));
    let servers = [one.at, two.at];
    let _gateway = subscribe(world.client(GATEWAY, AGENT), &servers, &seen);
    until("the first agent is followed", || seen.has(&[("a", "1")]) && first.0.all().len() == 1);
    assert!(second.0.all().is_empty(), "one agent at a time, and in order");
    drop(one);
    until("the second agent is followed", || second.0.all().len() == 1);
    second.0.change(|view| _ = view.set("b", "1"));
    until("its update is applied", || seen.has(&[("a", "1"), ("b", "1")]));
    assert_eq!(seen.resources(), 2, "a resource that both have was not sent again");
    let again = directory();
    for name in ["a", "b"] {
        again.0.change(|view| _ = view.set(name, "1"));
    }
    let _one = start(&world, &again, servers[0]);
    drop(two);
    until("the first agent is followed again", || again.0.all().len() == 1);
    assert!(seen.has(&[("a", "1"), ("b", "1")]) && seen.resources() == 2, "nothing had changed");
}

#[test]
fn strangers_are_refused_without_any_resource() {
    let (world, directory) = (World::new(), directory());
    directory.0.change(|view| _ = view.set("a", "1"));
    let agent = start(&world, &directory, ANY);
    let (stranger, deceived) = (Seen::default(), Seen::default());
    let _one = gateway(&world, STRANGER, AGENT, &agent, &stranger);
    let _two = gateway(&world, GATEWAY, STRANGER, &agent, &deceived);
    let lost = |seen: &Seen, word: &str| seen.0.lock().unwrap().lost.iter().any(|why| why.contains(word));
    until("it is told why", || lost(&stranger, "is neither one of this cluster's gateways"));
    until("it sees that this is not its agent", || lost(&deceived, "not expected here"));
    assert!(stranger.has(&[]) && deceived.has(&[]));
    assert_eq!(deceived.0.lock().unwrap().made, 0);
    assert!(directory.0.all().is_empty());
}

#[test]
fn distrusted_side_is_cut_off_and_reconnects_once_trusted() {
    let (world, stranger, directory, seen) = (World::new(), World::new(), directory(), Seen::default());
    directory.0.change(|view| _ = view.set("a", "1"));
    let (east, own) = (world.trust(AGENT), world.trust(GATEWAY));
    let agent = common::agent(east.clone(), Routes::new(Discovery::service(Arc::clone(&directory))), ANY);
    let _gateway = subscribe(common::client(own.clone(), AGENT), &[agent.at], &seen);
    until("the first state is there", || seen.has(&[("a", "1")]));
    let followers = || directory.0.all().len();
    for side in [&east, &own] {
        let before = (seen.0.lock().unwrap().made, side.current());
        // This side now trusts another authority of the domain; the streams are established.
        side.replace(Arc::clone(&before.1.identity), Arc::clone(&stranger.trust(AGENT).current().bundles));
        until("the stream is cut", || followers() == 0);
        assert!(seen.has(&[("a", "1")]), "the tables stay");
        side.replace(Arc::clone(&before.1.identity), Arc::clone(&before.1.bundles));
        until("it follows again", || followers() == 1 && seen.0.lock().unwrap().made > before.0);
    }
    let lost = seen.0.lock().unwrap().lost.clone();
    assert!(lost.iter().any(|why| why.contains("the server is no longer trusted")), "{lost:?}");
    assert_eq!(seen.resources(), 1, "nothing had changed");
}

#[test]
fn thousand_silent_connections_do_not_block_a_gateway() {
    let (world, directory, seen) = (World::new(), directory(), Seen::default());
    directory.0.change(|view| _ = view.set("a", "1"));
    let agent = start(&world, &directory, ANY);
    let silent: Vec<_> = (0..1_000).map(|_| TcpStream::connect(agent.at).unwrap()).collect();
    let _gateway = gateway(&world, GATEWAY, AGENT, &agent, &seen);
    until("the gateway is served", || seen.has(&[("a", "1")]));
    let mut first = silent.first().unwrap();
    first.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(first.read(&mut [0]).unwrap_or(0), 0, "the oldest silent connection is closed");
}

const OTHER: &str = "type.googleapis.com/example.Other";

/// A view of each of two types.
struct Two {
    lists: Arc<Shared>,
    items: Arc<Shared>,
}

impl Directory for Two {
    fn view(&self, _peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status> {
        Ok(Arc::clone(if type_url == TYPE { &self.lists } else { &self.items }))
    }
}

/// Resources of the first type name the resources of the other type to subscribe to.
#[derive(Clone, Default)]
struct Lists {
    named: BTreeSet<String>,
    lists: BTreeMap<String, String>,
    items: Seen,
}

impl Tables for Lists {
    async fn apply(&mut self, update: &Update) -> Vec<Refused> {
        if update.type_url == OTHER {
            return self.items.apply(update).await;
        }
        for resource in &update.resources {
            let text = String::from_utf8(resource.bytes.to_vec()).unwrap();
            self.lists.insert(resource.name.clone(), text);
        }
        self.lists.retain(|name, _| !update.removed.contains(name));
        self.named = self.lists.values().flat_map(|list| list.split(' ')).map(str::to_owned).collect();
        self.items.0.lock().unwrap().tables.retain(|name, _| self.named.contains(name));
        Vec::new()
    }

    fn names(&self, type_url: &str) -> Option<&BTreeSet<String>> {
        (type_url == OTHER).then_some(&self.named)
    }

    fn contact(&mut self, contact: Contact<'_>) {
        self.items.contact(contact);
    }
}

#[test]
fn subscription_follows_names_in_resources_of_another_type() {
    let (world, seen) = (World::new(), Seen::default());
    let shared = || Arc::new(Shared::new(|_| true));
    let directory = Arc::new(Two { lists: shared(), items: shared() });
    directory.lists.change(|view| _ = view.set("l", "a b"));
    for name in ["a", "b", "c"] {
        directory.items.change(|view| _ = view.set(name, "1"));
    }
    let agent = start(&world, &directory, ANY);
    let subscription = Subscription {
        servers: vec![agent.at.to_string().parse().unwrap()],
        within: None,
        tls: world.client(GATEWAY, AGENT),
        node: Node::default(),
        answers: Answers::OF_OWN,
    };
    let mut lists = Lists { items: seen.clone(), ..Lists::default() };
    let runtime = Runtime::new().unwrap();
    let clients = vec![Client::new(TYPE, []), Client::of_names(OTHER)];
    runtime.spawn(async move { subscription.run(clients, &mut lists).await });
    until("the named resources are there", || seen.has(&[("a", "1"), ("b", "1")]));
    directory.lists.change(|view| _ = view.set("l", "b c"));
    until("the newly named resources are there", || seen.has(&[("b", "1"), ("c", "1")]));
    directory.items.change(|view| _ = view.set("a", "2"));
    directory.items.change(|view| _ = view.set("c", "2"));
    until("a change of a named resource arrives", || seen.has(&[("b", "1"), ("c", "2")]));
    let at = agent.at;
    drop(agent);
    until("the loss is known", || !seen.0.lock().unwrap().lost.is_empty());
    directory.items.change(|view| _ = view.set("b", "2"));
    let before = seen.resources();
    let _agent = start(&world, &directory, at);
    until("it has caught up", || seen.has(&[("b", "2"), ("c", "2")]));
    assert_eq!(seen.resources() - before, 1, "c was the same");
}

/// A discovery request whose first message has a given length and is never finished. Counts the bytes that the server
/// takes, and receives the answer.
struct Unfinished {
    sent: Arc<AtomicUsize>,
    answer: JoinHandle<Result<Response<Body>, tonic::transport::Error>>,
}

const CHUNK: usize = 16 << 10;

impl Unfinished {
    fn begin(mut channel: Channel, length: u32) -> Unfinished {
        let sent = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&sent);
        let mut prefix = vec![0];
        prefix.extend(length.to_be_bytes());
        // The beginning of a name of 7 MiB.
        prefix.extend([3 << 3 | 2, 0x80, 0x80, 0xc0, 0x03]);
        let chunks = (0..length as usize / CHUNK).map(move |_| {
            counter.fetch_add(CHUNK, SeqCst);
            Bytes::from_static(&[b'x'; CHUNK])
        });
        let frames =
            std::iter::once(Bytes::from(prefix)).chain(chunks).map(|data| Ok::<_, Status>(Frame::data(data)));
        let body = Body::new(StreamBody::new(tokio_stream::iter(frames).chain(tokio_stream::pending())));
        let request =
            Request::post("/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources")
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(body)
                .unwrap();
        let answer = tokio::spawn(async move {
            std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            channel.call(request).await
        });
        Unfinished { sent, answer }
    }

    /// The final status.
    async fn status(self) -> Status {
        let response = self.answer.await.unwrap().unwrap();
        if let Some(status) = Status::from_header_map(response.headers()) {
            return status;
        }
        let body = response.into_body().collect().await.unwrap();
        Status::from_header_map(body.trailers().unwrap()).unwrap()
    }
}

#[test]
fn stranger_gets_a_status_and_its_request_is_not_read() {
    let (world, directory) = (World::new(), directory());
    let agent = start(&world, &directory, ANY);
    let (at, stranger) = (agent.at.to_string().parse().unwrap(), world.client(STRANGER, AGENT));
    Runtime::new().unwrap().block_on(async {
        let channel = dial(&at, &stranger).await.unwrap();
        let request = Unfinished::begin(channel.clone(), 30 << 20);
        let sent = Arc::clone(&request.sent);
        let status = request.status().await;
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains("list it under `gateways:` or `peers:`"), "{status}");
        let sent = sent.load(SeqCst);
        println!("a stranger sent {sent} bytes of 31457280");
        assert!(sent <= 128 << 10, "{sent} bytes");
    });
    assert_eq!(agent.budgets.totals(Kind::Stranger, Resource::RequestBytes), (0, 0));
    until("its connection is closed", || agent.budgets.totals(Kind::Stranger, Resource::Connections).0 == 0);
}

#[test]
fn strangers_do_not_use_the_connections_of_gateways() {
    let (world, directory, seen) = (World::new(), directory(), Seen::default());
    let agent = start(&world, &directory, ANY);
    let at = agent.at.to_string().parse().unwrap();
    let stranger = world.client(STRANGER, AGENT);
    let runtime = Runtime::new().unwrap();
    let kept = runtime.block_on(async {
        let mut kept = Vec::new();
        for _ in 0..70 {
            kept.extend(dial(&at, &stranger).await);
        }
        kept
    });
    let exceeded = || agent.budgets.totals(Kind::Stranger, Resource::Connections).1;
    until("connections over the limit are refused", || exceeded() > 0);
    let _gateway = gateway(&world, GATEWAY, AGENT, &agent, &seen);
    directory.0.change(|view| _ = view.set("east/a", "1"));
    until("a gateway is served beside them", || seen.has(&[("east/a", "1")]));
    drop(kept);
}

#[test]
fn request_bytes_of_a_peer_are_bounded_over_all_its_connections() {
    let (world, directory, seen) = (World::new(), directory(), Seen::default());
    directory.0.change(|view| _ = view.set("a", "1"));
    let agent = start(&world, &directory, ANY);
    let at = agent.at.to_string().parse().unwrap();
    let usage = |resource: &str| agent.budgets.report()["peers"]["west"][resource];
    Runtime::new().unwrap().block_on(async {
        let mut requests = Vec::new();
        for id in PEERS {
            let channel = dial(&at, &world.client(id, AGENT)).await.unwrap();
            requests.extend((0..4).map(|_| Unfinished::begin(channel.clone(), (7 << 20) + 100)));
        }
        let sent: Vec<_> = requests.iter().map(|request| Arc::clone(&request.sent)).collect();
        let (tell, mut told) = mpsc::channel(8);
        for request in requests {
            let tell = tell.clone();
            tokio::spawn(async move { tell.send(request.status().await).await });
        }
        for _ in 0..6 {
            let status = told.recv().await.unwrap();
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            assert!(status.message().contains("peer west may have 16777216 bytes of requests"), "{status}");
        }
        let used = usage("request_bytes");
        assert!(used.used <= 16 << 20 && used.exceeded == 6, "{used:?}");
        let sent: usize = sent.iter().map(|sent| sent.load(SeqCst)).sum();
        println!("8 requests of a peer, 7 MiB each: {sent} bytes were taken");
        assert!(sent <= 19 << 20, "{sent} bytes");
        let long = dial(&at, &world.client(PEERS[0], AGENT)).await.unwrap();
        let status = Unfinished::begin(long, (8 << 20) + 1).status().await;
        assert!(status.message().contains("8388609 bytes is too large; the limit is 8388608"), "{status}");
    });
    let _gateway = gateway(&world, GATEWAY, AGENT, &agent, &seen);
    until("a gateway is served", || seen.has(&[("a", "1")]));
    until("the budget is free again", || usage("request_bytes").used == 0 && usage("streams").used == 0);
}

#[test]
fn connection_limit_of_a_peer_does_not_affect_gateways() {
    let (world, directory, seen) = (World::new(), directory(), Seen::default());
    directory.0.change(|view| _ = view.set("a", "1"));
    let agent = start(&world, &directory, ANY);
    let at = agent.at.to_string().parse().unwrap();
    let runtime = Runtime::new().unwrap();
    let usage = || agent.budgets.report()["peers"]["west"]["connections"];
    let kept = runtime.block_on(async {
        let mut kept = Vec::new();
        for number in 0..160 {
            kept.extend(dial(&at, &world.client(PEERS[number % 2], AGENT)).await);
        }
        kept
    });
    until("all were admitted or refused", || usage().used + usage().exceeded >= 160);
    // Channels reconnect by themselves, and are refused again.
    assert!(usage().used == 16 && usage().exceeded >= 144, "{:?}", usage());
    let _gateway = gateway(&world, GATEWAY, AGENT, &agent, &seen);
    until("a gateway is served", || seen.has(&[("a", "1")]));
    drop((kept, runtime));
    until("the connections are released", || usage().used == 0);
}

/// Refuses the first update, requests its names again, and then a new stream.
#[derive(Clone, Default)]
struct Hesitant {
    seen: Seen,
    /// Updates and requests so far.
    steps: usize,
    seen_to_have_it: Arc<AtomicBool>,
    chains: Arc<Mutex<Vec<Chain>>>,
}

impl Tables for Hesitant {
    async fn apply(&mut self, update: &Update) -> Vec<Refused> {
        self.steps += 1;
        if self.steps == 1 {
            let refused = update.resources.iter();
            return refused
                .map(|one| Refused { name: one.name.clone(), why: "not now".to_owned() })
                .collect();
        }
        self.seen.apply(update).await
    }

    fn presented(&mut self, chain: Chain) {
        self.chains.lock().unwrap().push(chain);
    }

    async fn retry(&mut self) -> Retry {
        match self.steps {
            1 => {
                self.steps = 2;
                Retry::Names(TYPE, vec!["a".to_owned()])
            }
            3 => {
                while !self.seen_to_have_it.load(SeqCst) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                self.steps = 4;
                Retry::Stream("its certificate is wanted".to_owned())
            }
            _ => std::future::pending().await,
        }
    }

    fn contact(&mut self, contact: Contact<'_>) {
        self.seen.contact(contact);
    }
}

#[test]
fn refused_resource_is_requested_again_and_its_acceptance_reported() {
    let world = World::new();
    let directory = directory();
    directory.0.change(|view| _ = view.set("a", "1"));
    let accepted: Arc<Mutex<Vec<(String, u64)>>> = Arc::default();
    let hesitant = Hesitant::default();
    let (told, seen_to_have_it) = (Arc::clone(&accepted), Arc::clone(&hesitant.seen_to_have_it));
    directory.0.when_accepted(move |peer, view| {
        told.lock().unwrap().push((peer.to_owned(), view.last()));
        seen_to_have_it.store(true, SeqCst);
    });
    let agent = start(&world, &directory, ANY);
    let subscription = Subscription {
        servers: vec![agent.at.to_string().parse().unwrap()],
        within: None,
        tls: world.client(GATEWAY, AGENT),
        node: Node { id: "g".to_owned(), ..Node::default() },
        answers: Answers::OF_OWN,
    };
    let (seen, chains, runtime) =
        (hesitant.seen.clone(), Arc::clone(&hesitant.chains), Runtime::new().unwrap());
    let mut tables = hesitant;
    runtime.spawn(async move { subscription.run(vec![Client::new(TYPE, [])], &mut tables).await });
    until("it is accepted, and a new stream has begun", || seen.0.lock().unwrap().made == 2);
    assert!(seen.has(&[("a", "1")]));
    assert_eq!(seen.0.lock().unwrap().lost, ["its certificate is wanted"]);
    let own = chains
        .lock()
        .unwrap()
        .iter()
        .map(|chain| isthmus_certs::peer_id(chain).unwrap().to_string())
        .collect::<Vec<_>>();
    assert_eq!(own, [AGENT, AGENT], "the server presents its certificate on each stream");
    until("both streams are known to have it", || accepted.lock().unwrap().len() == 2);
    assert_eq!(*accepted.lock().unwrap(), [(GATEWAY.to_owned(), 1), (GATEWAY.to_owned(), 1)]);
    let follower = directory.0.all();
    assert!(follower.iter().all(|one| one.settled && one.refusal.is_none()), "{follower:?}");
}
