//! Receives reports: of the cluster's own gateways only, one stream for each, at a limited pace. A stream without a sign
//! of life ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use isthmus_certs::SpiffeId;
use isthmus_grpc::budget::LARGEST_REPORT;
use isthmus_grpc::serve::Caller;
use isthmus_proto::isthmus::v1::{GatewayReport, ReportEnd};
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use crate::pace::Pace;
use crate::stubs::reports_server::{Reports, ReportsServer};
use crate::wire::Part;

/// Longest silence of a stream: a gateway sends something every few seconds.
const SILENCE: Duration = Duration::from_secs(30);

/// Takes the reports.
pub trait Inbox: Send + Sync + 'static {
    /// Whether a client is a gateway of the own cluster.
    fn is_gateway(&self, client: &SpiffeId) -> bool;

    /// Takes a message of a stream. Streams are numbered; false if a later one of this gateway has begun.
    fn accept(&self, gateway: &SpiffeId, stream: u64, part: Part) -> bool;

    /// A stream has ended.
    fn ended(&self, gateway: &SpiffeId, stream: u64);
}

/// The service over an inbox.
#[derive(Debug)]
pub struct Service<I> {
    inbox: Arc<I>,
    streams: AtomicU64,
}

impl<I: Inbox> Service<I> {
    /// The tonic service.
    pub fn new(inbox: Arc<I>) -> ReportsServer<Service<I>> {
        let largest = usize::try_from(LARGEST_REPORT).unwrap_or(usize::MAX);
        ReportsServer::new(Service { inbox, streams: AtomicU64::new(1) }).max_decoding_message_size(largest)
    }
}

/// Tells the inbox that a stream has ended, however it did.
struct Open<'a, I: Inbox> {
    inbox: &'a I,
    gateway: SpiffeId,
    stream: u64,
}

impl<I: Inbox> Drop for Open<'_, I> {
    fn drop(&mut self) {
        self.inbox.ended(&self.gateway, self.stream);
    }
}

impl<I: Inbox> Open<'_, I> {
    async fn receive(&self, mut messages: Streaming<GatewayReport>) -> Result<(), Status> {
        let mut pace = Pace::new(Instant::now());
        loop {
            let message = timeout(SILENCE, messages.message()).await.map_err(|_| {
                Status::deadline_exceeded(format!("no report within {} s", SILENCE.as_secs()))
            })?;
            let Some(message) = message? else { return Ok(()) };
            if !pace.admits(Instant::now()) {
                return Err(Status::resource_exhausted("too many reports; send at most two a second"));
            }
            let part =
                Part::try_from(message).map_err(|error| Status::invalid_argument(error.to_string()))?;
            if !self.inbox.accept(&self.gateway, self.stream, part) {
                return Err(Status::aborted("a later stream of this gateway has begun"));
            }
        }
    }
}

#[tonic::async_trait]
impl<I: Inbox> Reports for Service<I> {
    async fn report(
        &self,
        request: Request<Streaming<GatewayReport>>,
    ) -> Result<Response<ReportEnd>, Status> {
        let Some(Caller(gateway)) = request.extensions().get::<Caller>().cloned() else {
            return Err(Status::unauthenticated("the caller is not authenticated"));
        };
        if !self.inbox.is_gateway(&gateway) {
            return Err(Status::permission_denied(format!(
                "{gateway} is not one of this cluster's gateways, and only they report; list it under `gateways:` of this agent"
            )));
        }
        let open = Open { inbox: &*self.inbox, gateway, stream: self.streams.fetch_add(1, Relaxed) };
        let ended = open.receive(request.into_inner()).await;
        if let Err(status) = &ended {
            tracing::debug!(gateway = %open.gateway, code = ?status.code(), why = status.message(), "reports of a gateway ended");
        }
        ended.map(|()| Response::new(ReportEnd {}))
    }
}
