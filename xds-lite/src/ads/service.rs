//! The discovery service: each stream of a client follows the views that its identity may see. The protocol
//! itself is in `server`; this moves its messages.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::SpiffeId;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream as Flow, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::server::Stream;
use super::shared::Shared;
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::serve::Asker;

/// A response has about this many bytes, so that a first state of any size arrives in parts.
const PART: usize = 1 << 20;
/// A first request names every resource that its client knows: 100 000 of them are some 15 MiB.
const MAX_REQUEST: usize = 32 << 20;
/// A stream ends after this, up to half as long again: load spreads over agents that came back.
const AGE: Duration = Duration::from_secs(30 * 60);

/// Who may see what.
pub trait Directory: Send + Sync + 'static {
    /// The view of a type for a peer.
    ///
    /// # Errors
    /// It may not see any, and why.
    fn view(&self, peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status>;
}

/// The service over a directory.
pub struct Discovery<D>(Arc<D>);

impl<D: Directory> Discovery<D> {
    /// As a server takes it.
    pub fn service(directory: Arc<D>) -> AggregatedDiscoveryServiceServer<Discovery<D>> {
        AggregatedDiscoveryServiceServer::new(Discovery(directory)).max_decoding_message_size(MAX_REQUEST)
    }
}

impl<D> std::fmt::Debug for Discovery<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Discovery")
    }
}

type Answers<M> = Pin<Box<dyn Flow<Item = Result<M, Status>> + Send>>;

#[tonic::async_trait]
impl<D: Directory> AggregatedDiscoveryService for Discovery<D> {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world is not served here; use DELTA_GRPC"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let asker = request.extensions().get::<Asker>().cloned();
        let Asker(peer) = asker.ok_or_else(|| Status::unauthenticated("who asks is not known"))?;
        // One response a type is in flight; this is for those types.
        let (sender, receiver) = mpsc::channel(8);
        let delta = Delta { directory: Arc::clone(&self.0), peer, sender, types: HashMap::new() };
        tokio::spawn(delta.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// One delta stream of a client.
struct Delta<D> {
    directory: Arc<D>,
    peer: SpiffeId,
    sender: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    types: HashMap<String, mpsc::Sender<DeltaDiscoveryRequest>>,
}

impl<D: Directory> Delta<D> {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let end = Instant::now() + AGE.mul_f64(1.0 + fastrand::f64() / 2.0);
        loop {
            let request = tokio::select! {
                request = requests.next() => request,
                () = tokio::time::sleep_until(end) => Some(Err(Status::unavailable("the stream is old; come again"))),
            };
            let refused = match request {
                Some(Ok(request)) => self.take(request).await.err(),
                Some(Err(status)) => Some(status),
                None => return,
            };
            if let Some(status) = refused {
                // It may be gone already.
                let _ = self.sender.send(Err(status)).await;
                return;
            }
        }
    }

    /// Each type has a task of its own: none waits for another.
    async fn take(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let type_url = request.type_url.clone();
        if !self.types.contains_key(&type_url) {
            let shared = self.directory.view(&self.peer, &type_url)?;
            let (requests, taken) = mpsc::channel(16);
            let kind = Kind { type_url: type_url.clone(), peer: self.peer.to_string(), shared };
            tokio::spawn(kind.follow(taken, self.sender.clone()));
            self.types.insert(type_url.clone(), requests);
        }
        let Some(requests) = self.types.get(&type_url) else { return Ok(()) };
        requests.send(request).await.map_err(|_| Status::unavailable("the stream has ended"))
    }
}

/// One type on a stream.
struct Kind {
    type_url: String,
    peer: String,
    shared: Arc<Shared>,
}

impl Kind {
    async fn follow(
        self,
        mut requests: mpsc::Receiver<DeltaDiscoveryRequest>,
        sender: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let seat = self.shared.follow(&self.peer);
        let mut moved = self.shared.moved();
        let mut stream = Stream::default();
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => stream.request(&request, &self.shared.view(), &|name| self.shared.is_gone(name)),
                    None => return,
                },
                changed = moved.changed() => if changed.is_err() { return },
            }
            let response = stream.response(&self.type_url, &self.shared.view(), PART);
            seat.note(&stream);
            if let Some(response) = response
                && sender.send(Ok(response)).await.is_err()
            {
                return;
            }
        }
    }
}
