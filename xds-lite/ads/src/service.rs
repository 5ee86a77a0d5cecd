//! Serves discovery over gRPC: each stream follows the views that its client's identity may see. The protocols are
//! `server` and `sotw`, the types of a stream `stream`.

use std::pin::Pin;
use std::sync::Arc;

use isthmus_certs::SpiffeId;
use tokio::sync::mpsc;
use tokio_stream::Stream as Flow;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::session::Session;
use super::shared::Shared;
use super::stream::Stream;
use super::{server, sotw};
use crate::stubs::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use isthmus_grpc::budget::Account;
use isthmus_grpc::serve::Caller;
use isthmus_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

/// A first request names every resource that its client knows: 100 000 of them are some 15 MiB. Each client's budget
/// limits it further.
const MAX_REQUEST: usize = 32 << 20;
/// A stream has at most one response of each type in flight, and is served a few types.
const IN_FLIGHT: usize = 8;

/// Decides which view a client may see.
pub trait Directory: Send + Sync + 'static {
    /// The view of a type for a client.
    ///
    /// # Errors
    /// Why the client may not see it.
    fn view(&self, peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status>;

    /// The view of a type for a client whose first request names resources; by default the same view.
    ///
    /// # Errors
    /// Why the client may not see it.
    fn named(&self, peer: &SpiffeId, type_url: &str) -> Result<Arc<Shared>, Status> {
        self.view(peer, type_url)
    }

    /// Whether a client that follows this view would be given it now. If not, its stream ends: it comes back and gets
    /// the other one. Asked whenever the view moves.
    fn is_current(&self, _peer: &SpiffeId, _type_url: &str, _view: &Arc<Shared>) -> bool {
        true
    }
}

/// The discovery service over a directory.
pub struct Discovery<D>(Arc<D>);

impl<D: Directory> Discovery<D> {
    /// The tonic service.
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
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.serve::<sotw::Stream>(request)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.serve::<server::Stream>(request)
    }
}

impl<D: Directory> Discovery<D> {
    fn serve<S: Session>(
        &self,
        request: Request<Streaming<S::Request>>,
    ) -> Result<Response<Answers<S::Response>>, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        let account = request.extensions().get::<Account>().cloned();
        let (Some(Caller(peer)), Some(account)) = (caller, account) else {
            return Err(Status::unauthenticated("the client is not authenticated"));
        };
        let (sender, receiver) = mpsc::channel(IN_FLIGHT);
        let stream = Stream::<D, S>::new(Arc::clone(&self.0), peer, account, sender);
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
