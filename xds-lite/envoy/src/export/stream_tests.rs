//! Tests Envoy's tables on a stream: clusters before listeners, endpoints after their clusters, in both protocols.

use std::sync::Arc;

use isthmus_ads::service::Directory;
use isthmus_ads::session::Session;
use isthmus_ads::shared::Shared;
use isthmus_ads::stream::Stream;
use isthmus_ads::{server, sotw};
use isthmus_certs::SpiffeId;
use isthmus_grpc::budget::{Amounts, Budgets, Limits, Places, Principal};
use isthmus_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use isthmus_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER};
use tokio::sync::mpsc;
use tonic::Status;

use super::Adapter;
use super::tests::{simple, slice};

const A: &str = "outbound_.443_._.a.b";
const C: &str = "outbound_.443_._.c.d";

struct One(Adapter);

impl Directory for One {
    fn view(&self, _peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status> {
        self.0.view(type_url).ok_or_else(|| Status::unimplemented("not served"))
    }

    fn named(&self, peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status> {
        let view = self.view(peer, type_url)?;
        Ok(self.0.named(type_url).unwrap_or(view))
    }
}

/// Tables with `a.b`, and a stream before its first request.
fn begin<S: Session>() -> (Arc<One>, Stream<One, S>) {
    let adapter = Adapter::new("east".parse().unwrap(), Vec::new(), "0.0.0.0:15443".parse().unwrap());
    adapter.change(&[simple("east/a.b", "10.0.0.1:443")]);
    let directory = Arc::new(One(adapter));
    (Arc::clone(&directory), another(&directory))
}

fn another<S: Session>(directory: &Arc<One>) -> Stream<One, S> {
    let peer = SpiffeId::parse("spiffe://east.example/isthmus/east/gateway/g").unwrap();
    let account = Arc::new(Budgets::default()).account(Principal::Gateway(peer.clone()));
    Stream::new(Arc::clone(directory), peer, account, mpsc::channel(1).0)
}

fn ask(type_url: &str, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn accept(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..ask(&response.type_url, &[]) }
}

/// Types, with the names sent and removed.
fn said(responses: &[DeltaDiscoveryResponse]) -> Vec<(&str, Vec<&str>, Vec<&str>)> {
    let mut said = Vec::new();
    for response in responses {
        let kind = match response.type_url.as_str() {
            CLUSTER => "CDS",
            ENDPOINTS => "EDS",
            LISTENER => "LDS",
            other => other,
        };
        let come = response.resources.iter().map(|sent| sent.name.as_str()).collect();
        said.push((kind, come, response.removed_resources.iter().map(String::as_str).collect()));
    }
    said
}

fn accept_all(stream: &mut Stream<One, server::Stream>, responses: &[DeltaDiscoveryResponse]) {
    for response in responses {
        stream.hear(&accept(response)).unwrap();
    }
}

/// A stream in Envoy's order: clusters, their endpoints, listeners.
fn followed() -> (Arc<One>, Stream<One, server::Stream>) {
    let (directory, mut stream) = begin::<server::Stream>();
    for (request, expected) in [
        (ask(CLUSTER, &[]), ("CDS", vec![A], vec![])),
        (ask(ENDPOINTS, &[A]), ("EDS", vec![A], vec![])),
        (ask(LISTENER, &[]), ("LDS", vec!["isthmus-east-west"], vec![])),
    ] {
        stream.hear(&request).unwrap();
        let responses = stream.speak();
        assert_eq!(said(&responses), [expected]);
        accept_all(&mut stream, &responses);
    }
    (directory, stream)
}

#[tokio::test]
async fn listener_is_held_until_its_clusters_are_acked() {
    let (directory, mut stream) = followed();
    directory.0.change(&[simple("east/c.d", "10.0.0.2:443")]);
    let clusters = stream.speak();
    assert_eq!(said(&clusters), [("CDS", vec![C], vec![])], "without the Listener that uses it");
    stream.hear(&ask(ENDPOINTS, &[C])).unwrap();
    let endpoints = stream.speak();
    assert_eq!(said(&endpoints), [("EDS", vec![C], vec![])], "before clusters are answered");
    accept_all(&mut stream, &endpoints);
    assert!(stream.speak().is_empty());
    accept_all(&mut stream, &clusters);
    assert_eq!(said(&stream.speak()), [("LDS", vec!["isthmus-east-west"], vec![])]);
}

#[tokio::test]
async fn cluster_update_is_followed_by_its_endpoints_unrequested() {
    let (directory, mut stream) = followed();
    let mut changed = simple("east/a.b", "10.0.0.1:443");
    changed.offer.as_mut().unwrap().ports[0].max_connections = Some(7);
    directory.0.change(std::slice::from_ref(&changed));
    assert_eq!(said(&stream.speak()), [("CDS", vec![A], vec![]), ("EDS", vec![A], vec![])]);

    // Reconnected after a loss, with unchanged endpoints and a changed cluster.
    let mut stream = another::<server::Stream>(&directory);
    stream.hear(&ask(CLUSTER, &[])).unwrap();
    assert_eq!(said(&stream.speak()), [("CDS", vec![A], vec![])]);
    let version = directory.0.view(ENDPOINTS).unwrap().view().get(A).unwrap().version.to_string();
    let mut request = ask(ENDPOINTS, &[A]);
    request.initial_resource_versions.insert(A.to_owned(), version);
    stream.hear(&request).unwrap();
    assert_eq!(said(&stream.speak()), [("EDS", vec![A], vec![])]);
}

#[tokio::test]
async fn retired_cluster_is_removed_once_every_envoy_has_the_new_listener() {
    let (directory, mut stream) = followed();
    directory.0.change(&[simple("east/c.d", "10.0.0.2:443")]);
    let clusters = stream.speak();
    accept_all(&mut stream, &clusters);
    let listener = stream.speak();
    accept_all(&mut stream, &listener);
    directory.0.change(&[slice("east/a.b", None)]);
    let listener = stream.speak();
    assert_eq!(said(&listener), [("LDS", vec!["isthmus-east-west"], vec![])], "and nothing else yet");
    assert!(directory.0.view(CLUSTER).unwrap().view().get(A).is_some());
    accept_all(&mut stream, &listener);
    assert_eq!(said(&stream.speak()), [("CDS", vec![], vec![A]), ("EDS", vec![], vec![A])]);

    // A closed stream is not waited for.
    directory.0.change(&[simple("east/a.b", "10.0.0.1:443"), slice("east/c.d", None)]);
    assert!(directory.0.view(CLUSTER).unwrap().view().get(C).is_some());
    drop(stream);
    assert!(directory.0.view(CLUSTER).unwrap().view().get(C).is_none());
}

#[tokio::test]
async fn sotw_stream_has_the_same_order_of_types() {
    let (directory, mut stream) = begin::<sotw::Stream>();
    let ask = |type_url: &str, names: &[&str], last: Option<&DiscoveryResponse>| DiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        version_info: last.map(|response| response.version_info.clone()).unwrap_or_default(),
        response_nonce: last.map(|response| response.nonce.clone()).unwrap_or_default(),
        ..DiscoveryRequest::default()
    };
    let mut last = Vec::new();
    for (type_url, names) in [(CLUSTER, &[][..]), (ENDPOINTS, &[A]), (LISTENER, &[])] {
        stream.hear(&ask(type_url, names, None)).unwrap();
        let response = stream.speak().pop().unwrap();
        assert_eq!(response.type_url, type_url);
        stream.hear(&ask(type_url, names, Some(&response))).unwrap();
        last.push(response);
    }
    let counted = |responses: &[DiscoveryResponse]| -> Vec<_> {
        responses.iter().map(|response| (response.type_url.clone(), response.resources.len())).collect()
    };
    let mut changed = simple("east/a.b", "10.0.0.1:443");
    changed.offer.as_mut().unwrap().ports[0].max_connections = Some(7);
    directory.0.change(&[changed, simple("east/c.d", "10.0.0.2:443")]);
    let responses = stream.speak();
    // All clusters, and the endpoints of the one that changed.
    assert_eq!(counted(&responses), [(CLUSTER.to_owned(), 2), (ENDPOINTS.to_owned(), 1)]);
    stream.hear(&ask(ENDPOINTS, &[A, C], Some(&responses[1]))).unwrap();
    assert_eq!(counted(&stream.speak()), [(ENDPOINTS.to_owned(), 1)]);
    stream.hear(&ask(CLUSTER, &[], Some(&responses[0]))).unwrap();
    assert_eq!(counted(&stream.speak()), [(LISTENER.to_owned(), 1)]);
}

#[tokio::test]
async fn unserved_type_ends_the_stream_with_its_status() {
    let (_directory, mut stream) = begin::<server::Stream>();
    let refused = stream.hear(&ask("type.example/other", &[])).unwrap_err();
    assert_eq!(refused.message(), "not served");
}

/// The response to a first request for Listeners.
fn listeners<S: Session>(request: &S::Request) -> S::Response {
    let (_directory, mut stream) = begin::<S>();
    stream.hear(request).unwrap();
    stream.speak().pop().unwrap()
}

#[tokio::test]
async fn listener_requested_by_name_is_a_grpc_clients() {
    let named = |names: &[&str]| {
        let sent = listeners::<server::Stream>(&ask(LISTENER, names)).resources;
        sent.into_iter().map(|sent| sent.name).collect::<Vec<_>>()
    };
    assert_eq!(named(&["a.b:443", "x.y:443"]), ["a.b:443"]);
    assert_eq!(named(&[]), ["isthmus-east-west"]);
    assert_eq!(named(&["*"]), ["isthmus-east-west"]);
    assert_eq!(named(&["a.b:443", "*"]), ["isthmus-east-west"], "the wildcard is Envoy's");

    let states = |names: &[&str]| {
        let resource_names = names.iter().map(|&name| name.to_owned()).collect();
        let type_url = LISTENER.to_owned();
        let request = DiscoveryRequest { type_url, resource_names, ..DiscoveryRequest::default() };
        listeners::<sotw::Stream>(&request).resources.len()
    };
    assert_eq!((states(&["a.b:443"]), states(&["x.y:443"])), (1, 0), "an absent name is answered");
    assert_eq!((states(&[]), states(&["*"])), (1, 1));
    assert_eq!(states(&["isthmus-east-west"]), 0, "Envoy's Listener is for the wildcard only");
}

#[tokio::test]
async fn retired_cluster_stays_until_grpc_client_has_dropped_its_listener() {
    let (directory, mut stream) = begin::<sotw::Stream>();
    let ask = |nonce: &str| DiscoveryRequest {
        type_url: LISTENER.to_owned(),
        resource_names: vec!["a.b:443".to_owned()],
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    };
    stream.hear(&ask("")).unwrap();
    let first = stream.speak().pop().unwrap();
    stream.hear(&ask(&first.nonce)).unwrap();
    directory.0.change(&[slice("east/a.b", None)]);
    let clusters = || directory.0.view(CLUSTER).unwrap().view().iter().count();
    let second = stream.speak().pop().unwrap();
    assert_eq!((second.resources.len(), clusters()), (0, 1));
    stream.hear(&ask(&second.nonce)).unwrap();
    assert_eq!(clusters(), 0);
}

/// A peer that may subscribe to six names on all streams, and so to three on one.
fn narrow() -> Arc<Budgets> {
    let peer = Amounts { names: 6, ..Limits::default().peer };
    Arc::new(Budgets::new(Limits { peer, ..Limits::default() }, Places::default()))
}

fn of_peer<S: Session>(directory: &Arc<One>, budgets: &Arc<Budgets>) -> Stream<One, S> {
    let peer = SpiffeId::parse("spiffe://west.example/isthmus/west/agent/a").unwrap();
    let account = budgets.account(Principal::Peer("west".parse().unwrap()));
    Stream::new(Arc::clone(directory), peer, account, mpsc::channel(1).0)
}

fn names_of(budgets: &Budgets) -> u64 {
    budgets.report()["peers"]["west"]["names"].used
}

#[tokio::test]
async fn delta_names_beyond_the_limit_are_refused_before_they_are_stored() {
    let ((directory, _), budgets) = (begin::<server::Stream>(), narrow());
    let mut streams = [(); 2].map(|()| of_peer::<server::Stream>(&directory, &budgets));
    let [one, two] = &mut streams;
    one.hear(&ask(ENDPOINTS, &["a", "b"])).unwrap();
    let error = one.hear(&ask(ENDPOINTS, &["c", "d"])).unwrap_err();
    assert_eq!(error.code(), tonic::Code::ResourceExhausted);
    assert!(error.message().contains("may subscribe to 3 names"), "{error}");
    assert_eq!(names_of(&budgets), 2, "none of it is stored");
    one.hear(&ask(ENDPOINTS, &["a", "b", "c"])).unwrap();
    two.hear(&ask(ENDPOINTS, &["a", "b", "c"])).unwrap();
    let mut third = of_peer::<server::Stream>(&directory, &budgets);
    let error = third.hear(&ask(ENDPOINTS, &["a"])).unwrap_err();
    assert!(error.message().contains("peer west may have 6 subscribed names at once"), "{error}");
    drop(streams);
    assert_eq!(names_of(&budgets), 0, "a stream's end frees its names");
    third.hear(&ask(ENDPOINTS, &["a"])).unwrap();
    let leave =
        DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["a".to_owned()], ..ask(ENDPOINTS, &[]) };
    third.hear(&leave).unwrap();
    assert_eq!(names_of(&budgets), 0, "and so does unsubscribing");
}

#[tokio::test]
async fn delta_versions_of_unknown_names_are_counted() {
    let ((directory, _), budgets) = (begin::<server::Stream>(), narrow());
    let claims = |names: &[&str]| DeltaDiscoveryRequest {
        initial_resource_versions: names.iter().map(|name| ((*name).to_owned(), String::new())).collect(),
        ..ask(CLUSTER, &[])
    };
    let mut stream = of_peer::<server::Stream>(&directory, &budgets);
    assert!(stream.hear(&claims(&["w", "x", "y", "z"])).is_err());
    let mut stream = of_peer::<server::Stream>(&directory, &budgets);
    stream.hear(&claims(&["x", "y", A])).unwrap();
    assert_eq!(names_of(&budgets), 2, "a name that the view has is not counted");
    let [response] = &stream.speak()[..] else { panic!("removed names are sent") };
    assert_eq!(response.removed_resources, ["x", "y"]);
    stream.hear(&accept(response)).unwrap();
    assert_eq!(names_of(&budgets), 0, "sent, and no longer stored");
}

#[tokio::test]
async fn sotw_names_beyond_the_limit_are_refused_before_they_are_stored() {
    let ((directory, _), budgets) = (begin::<sotw::Stream>(), narrow());
    let ask = |names: &[&str]| DiscoveryRequest {
        type_url: ENDPOINTS.to_owned(),
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..DiscoveryRequest::default()
    };
    let mut stream = of_peer::<sotw::Stream>(&directory, &budgets);
    stream.hear(&ask(&["a", "b", "c"])).unwrap();
    let error = stream.hear(&ask(&["a", "b", "c", "d"])).unwrap_err();
    assert_eq!(error.code(), tonic::Code::ResourceExhausted, "{error}");
    assert_eq!(names_of(&budgets), 3);
    stream.hear(&ask(&["d"])).unwrap();
    assert_eq!(names_of(&budgets), 1, "it replaces the earlier names");
    drop(stream);
    assert_eq!(names_of(&budgets), 0);
}

#[tokio::test(start_paused = true)]
async fn follower_that_never_answers_is_cut_off_and_the_view_forgets_what_is_gone() {
    let shared = Arc::new(Shared::new(|_| true));
    struct Alone(Arc<Shared>);
    impl Directory for Alone {
        fn view(&self, _peer: &SpiffeId, _type_url: &str) -> Result<Arc<Shared>, Status> {
            Ok(Arc::clone(&self.0))
        }
    }
    let peer = SpiffeId::parse("spiffe://east.example/isthmus/east/gateway/g").unwrap();
    let account = Arc::new(Budgets::default()).account(Principal::Gateway(peer.clone()));
    let (sender, mut answers) = mpsc::channel(8);
    let (requests, heard) = mpsc::channel(8);
    let stream =
        Stream::<Alone, server::Stream>::new(Arc::new(Alone(Arc::clone(&shared))), peer, account, sender);
    let running = tokio::spawn(stream.run(tokio_stream::wrappers::ReceiverStream::new(heard)));
    shared.change(|view| _ = view.set("a", "1"));
    requests.send(Ok(ask("type.example/a", &[]))).await.unwrap();
    assert_eq!(answers.recv().await.unwrap().unwrap().resources.len(), 1);
    for number in 0..1_000 {
        shared.change(|view| _ = view.set(&number.to_string(), "1"));
        shared.change(|view| _ = view.remove(&number.to_string()));
    }
    assert!(shared.view().after(0).count() > 1_000, "removals are remembered for the stream");
    let error = answers.recv().await.unwrap().unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded, "{error}");
    running.await.unwrap();
    shared.change(|view| _ = view.set("b", "1"));
    assert_eq!(shared.view().after(0).count(), 2, "removals are forgotten once no stream needs them");
}
