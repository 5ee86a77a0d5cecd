//! Follows one of several servers until dropped: connects, subscribes, applies updates, and reconnects with backoff
//! after a loss. One stream carries all types.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::Arc;

use hyper::{Request, Response};
use isthmus_certs::Client as Tls;
use isthmus_certs::causes::with_causes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::body::Body;
use tower::ServiceExt;

use super::backoff::Backoff;
use super::client::{Client, Refused, Update};
use crate::stubs::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use isthmus_grpc::dial::{Chain, dial_with_chain};
use isthmus_grpc::metered::Metered;
use isthmus_grpc::revocation_watch::until_distrusted;
use isthmus_model::address::{Ranges, Target};
use isthmus_proto::envoy::config::core::v3::Node;
use isthmus_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isthmus_proto::measure::{DELTA_RESPONSE, Rules};

/// Limits of a server's response. It sends parts of about 128 KiB, and a single resource as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Encoded size in bytes.
    longest: usize,
    /// Decoded size in bytes.
    decoded: u64,
}

impl Answers {
    /// Limits for the own agent or control plane: a single resource may be 16 MiB.
    pub const OF_OWN: Answers = Answers { longest: 24 << 20, decoded: 96 << 20 };
    /// Limits for another cluster's agent.
    pub const OF_PEERS: Answers = Answers { longest: 8 << 20, decoded: 16 << 20 };

    fn rules(self) -> Rules {
        Rules { shape: &DELTA_RESPONSE, longest: self.longest as u64, most: self.decoded }
    }
}

/// Receives the resources.
pub trait Tables: Send {
    /// Applies an update; returns the resources that it refuses. Work that takes long belongs on another thread: this
    /// runs where other streams do.
    fn apply(&mut self, update: &Update) -> impl Future<Output = Vec<Refused>> + Send;

    /// The names of a type to subscribe to, where not all; read after each update.
    fn names(&self, _type_url: &str) -> Option<&BTreeSet<String>> {
        None
    }

    /// Versions of the resources of a type, by name; for [`Client::of_tables`].
    fn versions(&self, _type_url: &str) -> HashMap<String, String> {
        HashMap::new()
    }

    /// The server's certificate chain, before contact is made.
    fn presented(&mut self, _chain: Chain) {}

    /// Completes when a refused resource is to be requested again. It may be dropped and called again.
    fn retry(&mut self) -> impl Future<Output = Retry> + Send {
        std::future::pending()
    }

    /// Contact was made with a server, or lost, and why.
    fn contact(&mut self, contact: Contact<'_>);
}

/// How a refused resource is requested again.
#[derive(Debug)]
pub enum Retry {
    /// Subscribe to these names of a type again.
    Names(&'static str, Vec<String>),
    /// Open a new stream, on which the server presents its current certificate; and why.
    Stream(String),
}

/// Contact with a server.
#[derive(Debug)]
pub enum Contact<'a> {
    /// The server answers.
    Made(&'a Target),
    /// The server does not answer, or no longer; and why.
    Lost(&'a Target, &'a str),
}

/// The servers to follow, and how.
#[derive(Debug)]
pub struct Subscription {
    /// Servers, in the order in which they are tried.
    pub servers: Vec<Target>,
    /// Allowed addresses of their names; none for names of the operator.
    pub within: Option<Ranges>,
    /// TLS, with the identities that servers must have.
    pub tls: Arc<Tls>,
    /// The node that the first request carries.
    pub node: Node,
    /// Limits of responses.
    pub answers: Answers,
}

impl Subscription {
    /// Follows until dropped: one client for each type, subscribed in this order. Without a server it waits forever.
    pub async fn run(self, clients: Vec<Client>, tables: &mut impl Tables) {
        self.follow_with(clients, tables, fastrand::f64).await;
    }

    /// As [`Subscription::follow`], with the given randomness in 0..1.
    pub async fn follow_with(
        self,
        mut clients: Vec<Client>,
        tables: &mut impl Tables,
        mut random: impl FnMut() -> f64 + Send,
    ) {
        let mut backoff = Backoff::default();
        loop {
            for server in &self.servers {
                let (made, why) = self.stream(server, &mut clients, tables).await;
                tables.contact(Contact::Lost(server, &why));
                let lasted = made.map(|since| since.elapsed());
                tokio::time::sleep(backoff.next(lasted, random())).await;
            }
            if self.servers.is_empty() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Runs one stream: returns when it was established, if it was, and why it ended.
    async fn stream(
        &self,
        server: &Target,
        clients: &mut [Client],
        tables: &mut impl Tables,
    ) -> (Option<Instant>, String) {
        let (channel, standing) = match dial_with_chain(server, &self.tls, self.within.as_ref()).await {
            Ok((channel, chain)) => {
                let standing = self.tls.standing(&chain);
                tables.presented(chain);
                (channel, standing)
            }
            Err(error) => return (None, with_causes(&error)),
        };
        let rules = self.answers.rules();
        let metered = ServiceExt::<Request<Body>>::map_response(channel, move |response: Response<Body>| {
            response.map(|body| Metered::new(body, rules, None))
        });
        let mut ads =
            AggregatedDiscoveryServiceClient::new(metered).max_decoding_message_size(self.answers.longest);
        let (sender, sent) = mpsc::channel(clients.len().max(4));
        let mut requests = Requests { sender, node: Some(self.node.clone()) };
        for client in clients.iter() {
            let first = client.first(&|| tables.versions(client.type_url()));
            let Some(first) = first else { continue };
            if requests.send(first).await.is_err() {
                return (None, ENDED.to_owned());
            }
        }
        let mut responses = match ads.delta_aggregated_resources(ReceiverStream::new(sent)).await {
            Ok(response) => response.into_inner(),
            Err(status) => return (None, status_text(&status)),
        };
        tables.contact(Contact::Made(server));
        let made = Some(Instant::now());
        let mut distrusted = pin!(until_distrusted(standing));
        loop {
            let due = tokio::select! {
                why = &mut distrusted => return (made, format!("the server is no longer trusted: {why}")),
                message = responses.message() => match message {
                    Ok(Some(response)) => accept(response, clients, tables).await,
                    Ok(None) => return (made, "the server ended the stream".to_owned()),
                    Err(status) => return (made, status_text(&status)),
                },
                again = tables.retry() => match again {
                    Retry::Names(type_url, names) => ask_again(type_url, names, clients),
                    Retry::Stream(why) => return (made, why),
                },
            };
            for request in due {
                if requests.send(request).await.is_err() {
                    return (made, ENDED.to_owned());
                }
            }
        }
    }
}

/// Applies a response; returns its answer and changed subscriptions.
async fn accept(
    response: DeltaDiscoveryResponse,
    clients: &mut [Client],
    tables: &mut impl Tables,
) -> Vec<DeltaDiscoveryRequest> {
    // A response of a type that was not requested is ignored.
    let Some(client) = clients.iter_mut().find(|client| client.type_url() == response.type_url) else {
        return Vec::new();
    };
    let (update, mut refused) = client.read(response);
    refused.extend(tables.apply(&update).await);
    let answer = client.answer(&update, &refused);
    let moved = clients.iter_mut().filter_map(|client| {
        let names = tables.names(client.type_url())?;
        client.set_names(names)
    });
    std::iter::once(answer).chain(moved.collect::<Vec<_>>()).collect()
}

fn ask_again(type_url: &str, names: Vec<String>, clients: &[Client]) -> Vec<DeltaDiscoveryRequest> {
    let client = clients.iter().find(|client| client.type_url() == type_url);
    client.map(|client| client.resend_request(names)).into_iter().collect()
}

const ENDED: &str = "the stream has ended";

/// The requests of one stream; the first carries the node.
struct Requests {
    sender: mpsc::Sender<DeltaDiscoveryRequest>,
    node: Option<Node>,
}

impl Requests {
    async fn send(
        &mut self,
        mut request: DeltaDiscoveryRequest,
    ) -> Result<(), mpsc::error::SendError<DeltaDiscoveryRequest>> {
        request.node = self.node.take();
        self.sender.send(request).await
    }
}

fn status_text(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
