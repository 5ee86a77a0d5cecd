//! A client that follows one of several servers for as long as it lives: it connects, says what it knows,
//! applies what comes, and comes back after a loss, sooner at first and later as it goes on. One stream carries
//! all the types that it follows.

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
use isthmus_grpc::dial::{Chain, meet};
use isthmus_grpc::metered::Metered;
use isthmus_grpc::revocation_watch::until_disbelieved;
use isthmus_model::address::Target;
use isthmus_proto::envoy::config::core::v3::Node;
use isthmus_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use isthmus_proto::measure::{DELTA_RESPONSE, Rules};

/// How much a server may say at once. It sends parts of about 1 MiB, and one resource whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The bytes of one answer.
    longest: usize,
    /// What it takes once it is decoded.
    decoded: u64,
}

impl Answers {
    /// Of one's own agent or control plane: a single resource may be 16 MiB.
    pub const OF_OWN: Answers = Answers { longest: 24 << 20, decoded: 96 << 20 };
    /// Of another cluster's agent.
    pub const OF_PEERS: Answers = Answers { longest: 8 << 20, decoded: 16 << 20 };

    fn rules(self) -> Rules {
        Rules { shape: &DELTA_RESPONSE, longest: self.longest as u64, most: self.decoded }
    }
}

/// What takes the resources.
pub trait Tables: Send {
    /// Applies an update as a whole, but for what it refuses.
    fn apply(&mut self, update: &Update) -> Vec<Refused>;

    /// Which names of a type it follows, where it does not follow all; asked after each update.
    fn names(&self, _type_url: &str) -> Option<&BTreeSet<String>> {
        None
    }

    /// What it has of a type, by name, with versions; for a client that leaves this to it.
    fn versions(&self, _type_url: &str) -> HashMap<String, String> {
        HashMap::new()
    }

    /// What the server has shown of itself, before contact is made.
    fn shown(&mut self, _chain: Chain) {}

    /// Ends when something is to be heard once more that was refused before. It may be dropped and asked again.
    fn again(&mut self) -> impl Future<Output = Again> + Send {
        std::future::pending()
    }

    /// Contact was made with a server, or lost, and why.
    fn contact(&mut self, contact: Contact<'_>);
}

/// How something is heard once more.
#[derive(Debug)]
pub enum Again {
    /// These names of a type are asked for again.
    Names(&'static str, Vec<String>),
    /// A new stream, so that the server shows its present certificate; and why.
    Stream(String),
}

/// Whether there is a server.
#[derive(Debug)]
pub enum Contact<'a> {
    /// This one answers.
    Made(&'a Target),
    /// This one does not, or no longer.
    Lost(&'a Target, &'a str),
}

/// Whom to follow.
#[derive(Debug)]
pub struct Subscription {
    /// Servers, in the order in which they are tried.
    pub servers: Vec<Target>,
    /// Who they must be.
    pub tls: Arc<Tls>,
    /// What this client says of itself.
    pub node: Node,
    /// What is taken of them.
    pub answers: Answers,
}

impl Subscription {
    /// Follows until it is dropped: one client for each type, asked in this order. With no server it waits for
    /// ever.
    pub async fn follow(self, clients: Vec<Client>, tables: &mut impl Tables) {
        self.follow_with(clients, tables, fastrand::f64).await;
    }

    /// The same with given randomness, in 0..1.
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

    /// One stream to its end: when it was made, if it was, and why it ended.
    async fn stream(
        &self,
        server: &Target,
        clients: &mut [Client],
        tables: &mut impl Tables,
    ) -> (Option<Instant>, String) {
        let (channel, standing) = match meet(server, &self.tls).await {
            Ok((channel, chain)) => {
                let standing = self.tls.standing(&chain);
                tables.shown(chain);
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
            Err(status) => return (None, said(&status)),
        };
        tables.contact(Contact::Made(server));
        let made = Some(Instant::now());
        let mut disbelieved = pin!(until_disbelieved(standing));
        loop {
            let said = tokio::select! {
                why = &mut disbelieved => return (made, format!("the server is not believed any longer: {why}")),
                message = responses.message() => match message {
                    Ok(Some(response)) => take(response, clients, tables),
                    Ok(None) => return (made, "the server ended the stream".to_owned()),
                    Err(status) => return (made, said(&status)),
                },
                again = tables.again() => match again {
                    Again::Names(type_url, names) => ask_again(type_url, names, clients),
                    Again::Stream(why) => return (made, why),
                },
            };
            for request in said {
                if requests.send(request).await.is_err() {
                    return (made, ENDED.to_owned());
                }
            }
        }
    }
}

/// Applies a response: what is answered, and asked for next.
fn take(
    response: DeltaDiscoveryResponse,
    clients: &mut [Client],
    tables: &mut impl Tables,
) -> Vec<DeltaDiscoveryRequest> {
    // Of a type that nobody asked for: there is nobody to answer it.
    let Some(client) = clients.iter_mut().find(|one| one.type_url() == response.type_url) else {
        return Vec::new();
    };
    let (update, mut refused) = client.read(response);
    refused.extend(tables.apply(&update));
    let answer = client.answer(&update, &refused);
    let moved = clients.iter_mut().filter_map(|client| {
        let names = tables.names(client.type_url())?;
        client.follow(names)
    });
    std::iter::once(answer).chain(moved.collect::<Vec<_>>()).collect()
}

fn ask_again(type_url: &str, names: Vec<String>, clients: &[Client]) -> Vec<DeltaDiscoveryRequest> {
    clients.iter().find(|one| one.type_url() == type_url).map(|one| one.again(names)).into_iter().collect()
}

const ENDED: &str = "the stream has ended";

/// What is said on one stream; the first request says by whom.
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

fn said(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
