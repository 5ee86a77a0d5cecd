//! Abstracts one type on one stream over both protocols, which are `server` (delta) and `sotw` (state of the world).

use super::server::{self, IsGone};
use super::sotw::{self, WILDCARD};
use super::view::{Position, View};
use isthmus_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use isthmus_proto::google::rpc::Status;

/// A client's refusal of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// The nonce of the response, which was refused in part or as a whole.
    pub nonce: String,
    /// The client's message, truncated.
    pub why: String,
}

/// NACKs on a stream.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    count: u64,
    last: Option<Nack>,
}

impl Refusals {
    /// Records the answer to a response.
    pub(super) fn answered(&mut self, nonce: &str, error: Option<&Status>) {
        self.last = error.map(|error| {
            self.count += 1;
            Nack { nonce: nonce.to_owned(), why: error.message.chars().take(1024).collect() }
        });
    }

    /// The number of NACKs, and the last one unless the client has ACKed since.
    pub(super) fn nacks(&self) -> (u64, Option<&Nack>) {
        (self.count, self.last.as_ref())
    }
}

/// A response, and the resources that it renews.
#[derive(Debug)]
pub struct Outgoing<M> {
    /// The response.
    pub message: M,
    /// Names of new or changed resources in it.
    pub renews: Vec<String>,
}

/// Memory that a client's names take in the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameUsage {
    /// The number of names.
    pub names: u64,
    /// The bytes of the names, and 64 more for each.
    pub bytes: u64,
}

/// Overhead of a stored name, in bytes.
const NAME: u64 = 64;

impl NameUsage {
    pub(super) fn add(&mut self, name: &str) {
        self.names += 1;
        self.bytes += NAME + name.len() as u64;
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.names = self.names.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(NAME + name.len() as u64);
    }

    pub(super) fn plus(self, other: NameUsage) -> NameUsage {
        NameUsage { names: self.names + other.names, bytes: self.bytes + other.bytes }
    }
}

impl<'a> FromIterator<&'a String> for NameUsage {
    fn from_iter<I: IntoIterator<Item = &'a String>>(names: I) -> NameUsage {
        let mut kept = NameUsage::default();
        names.into_iter().for_each(|name| kept.add(name));
        kept
    }
}

/// One type on one stream.
pub trait Session: Send + Sync + 'static {
    /// The protocol's request.
    type Request: Send + 'static;
    /// The protocol's response.
    type Response: Send + 'static;

    /// A session before its first request.
    fn new(type_url: &str) -> Self;
    /// The type of a request.
    fn type_of(request: &Self::Request) -> &str;
    /// Whether a request, the first of its type, names resources instead of subscribing to all.
    fn is_by_name(request: &Self::Request) -> bool;
    /// Memory of the client's names.
    fn name_usage(&self) -> NameUsage;
    /// An upper bound of that memory after this request.
    fn kept_with(&self, request: &Self::Request, view: &View) -> NameUsage;
    /// A response is unanswered.
    fn is_in_flight(&self) -> bool;
    /// Handles a request of the client.
    fn request(&mut self, request: &Self::Request, view: &View, is_gone: IsGone<'_>);
    /// Owes names of the client that are known to be gone by now.
    fn recheck(&mut self, view: &View, is_gone: IsGone<'_>);
    /// Owes these names again, changed or not, where they are subscribed to.
    fn resend<'a>(&mut self, names: impl IntoIterator<Item = &'a str>);
    /// The next response of about `most` bytes, if anything is owed and none is in flight.
    fn response(&mut self, type_url: &str, view: &View, most: usize) -> Option<Outgoing<Self::Response>>;
    /// The position in the view; removals up to it need not be remembered for this stream.
    fn position(&self) -> Position;
    /// Everything is sent and answered.
    fn is_settled(&self, view: &View) -> bool;
    /// The number of NACKs, and the last one unless the client has ACKed since.
    fn nacks(&self) -> (u64, Option<&Nack>);
}

fn are_names(requested: &[String]) -> bool {
    !requested.is_empty() && requested.iter().all(|name| name != WILDCARD)
}

impl Session for server::Stream {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn new(_type_url: &str) -> server::Stream {
        server::Stream::default()
    }

    fn type_of(request: &DeltaDiscoveryRequest) -> &str {
        &request.type_url
    }

    fn is_by_name(request: &DeltaDiscoveryRequest) -> bool {
        are_names(&request.resource_names_subscribe)
    }

    fn name_usage(&self) -> NameUsage {
        self.name_usage()
    }

    fn kept_with(&self, request: &DeltaDiscoveryRequest, view: &View) -> NameUsage {
        self.kept_with(request, view)
    }

    fn is_in_flight(&self) -> bool {
        self.is_in_flight()
    }

    fn request(&mut self, request: &DeltaDiscoveryRequest, view: &View, is_gone: IsGone<'_>) {
        self.request(request, view, is_gone);
    }

    fn recheck(&mut self, view: &View, is_gone: IsGone<'_>) {
        self.recheck(view, is_gone);
    }

    fn resend<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        self.resend(names);
    }

    fn response(
        &mut self,
        type_url: &str,
        view: &View,
        most: usize,
    ) -> Option<Outgoing<DeltaDiscoveryResponse>> {
        let message = self.response(type_url, view, most)?;
        let renews = message.resources.iter().map(|sent| sent.name.clone()).collect();
        Some(Outgoing { message, renews })
    }

    fn position(&self) -> Position {
        self.position()
    }

    fn is_settled(&self, view: &View) -> bool {
        self.is_settled(view)
    }

    fn nacks(&self) -> (u64, Option<&Nack>) {
        self.nacks()
    }
}

impl Session for sotw::Stream {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn new(type_url: &str) -> sotw::Stream {
        sotw::Stream::new(sotw::Scope::for_type(type_url))
    }

    fn type_of(request: &DiscoveryRequest) -> &str {
        &request.type_url
    }

    fn is_by_name(request: &DiscoveryRequest) -> bool {
        are_names(&request.resource_names)
    }

    fn name_usage(&self) -> NameUsage {
        self.name_usage()
    }

    fn kept_with(&self, request: &DiscoveryRequest, view: &View) -> NameUsage {
        self.kept_with(request, view)
    }

    fn is_in_flight(&self) -> bool {
        self.is_in_flight()
    }

    fn request(&mut self, request: &DiscoveryRequest, view: &View, _is_gone: IsGone<'_>) {
        self.request(request, view);
    }

    /// A response lists all that there is: what it lacks is gone.
    fn recheck(&mut self, _view: &View, _is_gone: IsGone<'_>) {}

    fn resend<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        self.resend(names);
    }

    fn response(&mut self, type_url: &str, view: &View, most: usize) -> Option<Outgoing<DiscoveryResponse>> {
        let (message, renews) = self.response(type_url, view, most)?;
        Some(Outgoing { message, renews })
    }

    fn position(&self) -> Position {
        self.position()
    }

    fn is_settled(&self, view: &View) -> bool {
        self.is_settled(view)
    }

    fn nacks(&self) -> (u64, Option<&Nack>) {
        self.nacks()
    }
}
