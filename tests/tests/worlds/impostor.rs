//! A simulated hostile agent: it has a valid identity, and the test decides what it sends.

use std::net::TcpListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use isthmus_ads::stubs::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use isthmus_certs::{Peer, Server, Trust};
use isthmus_grpc::budget::Principal;
use isthmus_grpc::serve::serve;
use isthmus_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use isthmus_proto::isthmus::v1::{Gateway, Port, Ready, ServiceSlice, Staleness, Timeouts, Tls, staleness};
use isthmus_proto::type_url::SLICE;
use isthmus_tests::cluster::Cluster;
use isthmus_tests::netns;
use isthmus_tests::wait::until_some;
use isthmus_tests::workload::files;
use prost::Message as _;
use prost_types::Any;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

type Answers<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;
type Sender = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

/// An agent under control of a test.
pub(crate) struct Impostor {
    runtime: Option<Runtime>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    streams: Mutex<Vec<Sender>>,
    requests: Mutex<Vec<DeltaDiscoveryRequest>>,
}

impl Impostor {
    /// Starts in place of a cluster's agent, with an identity of the cluster.
    pub(crate) fn in_cluster(cluster: &Cluster, leaf: &str) -> Impostor {
        let listener = in_the_place_of_the_agent(cluster);
        listener.set_nonblocking(true).unwrap();
        let trust = Trust::load(&files(cluster, leaf)).unwrap();
        let tls = Arc::new(Server::new(trust, Peer::Trusted, &[b"h2"]).unwrap());
        let seen = Arc::new(Seen::default());
        let routes = Routes::new(AggregatedDiscoveryServiceServer::new(Script(Arc::clone(&seen))));
        let runtime = Runtime::new().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            serve(&listener, tls, routes, Arc::new(|id| Some(Principal::Gateway(id.clone())))).await;
        });
        Impostor { runtime: Some(runtime), seen }
    }

    /// Number of streams opened by clients.
    pub(crate) fn streams(&self) -> usize {
        self.seen.streams.lock().unwrap().len()
    }

    /// Sends slices on the newest stream.
    pub(crate) fn say(&self, nonce: &str, resources: Vec<Resource>) {
        self.say_of(SLICE, nonce, resources);
    }

    /// Sends resources of a type on the newest stream.
    pub(crate) fn say_of(&self, type_url: &str, nonce: &str, resources: Vec<Resource>) {
        let response = DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: nonce.to_owned(),
            resources,
            ..DeltaDiscoveryResponse::default()
        };
        let stream = until_some("a client follows", || self.seen.streams.lock().unwrap().last().cloned());
        stream.blocking_send(Ok(response)).unwrap();
    }

    /// Waits for the answer to a response: the NACK's message, or `None` for an ACK.
    pub(crate) fn answer(&self, nonce: &str) -> Option<String> {
        until_some(&format!("{nonce} is answered"), || {
            let requests = self.seen.requests.lock().unwrap();
            let answer = requests.iter().find(|request| request.response_nonce == nonce)?;
            Some(answer.error_detail.as_ref().map(|error| error.message.clone()))
        })
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A listener at the agent's address.
pub(crate) fn in_the_place_of_the_agent(cluster: &Cluster) -> TcpListener {
    let at = cluster.agent_address();
    match cluster.namespace() {
        Some(namespace) => netns::inside(namespace, move || TcpListener::bind(at).unwrap()),
        None => TcpListener::bind(at).unwrap(),
    }
}

struct Script(Arc<Seen>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("agents speak delta"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (sender, receiver) = mpsc::channel(4);
        self.0.streams.lock().unwrap().push(sender);
        let (seen, mut requests) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await {
                seen.requests.lock().unwrap().push(request);
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A valid slice.
pub(crate) fn slice(cluster: &str, host: &str, revision: u64, gateway: &str) -> ServiceSlice {
    let timeouts = Timeouts { connect: 3_000, connect_total: 15_000, ..Timeouts::default() };
    let port = Port {
        number: 443,
        bare: true,
        tls: Tls::Mutual.into(),
        balance: 1,
        exported: true,
        ready: vec![Ready { ready: 1, ..Ready::default() }],
        timeouts: Some(timeouts),
        ..Port::default()
    };
    ServiceSlice {
        cluster: cluster.to_owned(),
        host: host.to_owned(),
        incarnation: 1,
        revision,
        network: format!("{cluster}-net"),
        ports: vec![port],
        gateways: vec![Gateway { address: gateway.to_owned(), ..Gateway::default() }],
        staleness: Some(Staleness { rule: Some(staleness::Rule::Keep(true)) }),
        ..ServiceSlice::default()
    }
}

/// A slice as a resource with its own name.
pub(crate) fn named(slice: &ServiceSlice) -> Resource {
    resource(&format!("{}/{}", slice.cluster, slice.host), slice.encode_to_vec())
}

/// A slice resource with any name and bytes.
pub(crate) fn resource(name: &str, value: Vec<u8>) -> Resource {
    resource_of(SLICE, name, value)
}

/// The same with a type.
pub(crate) fn resource_of(type_url: &str, name: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.to_owned(),
        version: "1".to_owned(),
        resource: Some(Any { type_url: type_url.to_owned(), value }),
        ..Resource::default()
    }
}
