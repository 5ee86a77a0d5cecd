//! Serves one type on one state-of-the-world stream. Listeners and clusters are sent as a whole, and an absent one is
//! removed; other types are sent by subscribed name, and only changed resources. One response is in flight at a time;
//! a resource that changes meanwhile is sent once, in its latest version.

use std::collections::BTreeSet;

use prost_types::Any;

use super::session::{Nack, NameUsage, Refusals};
use super::view::{Position, View};
use isthmus_model::slice::version;
use isthmus_proto::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use isthmus_proto::type_url::{CLUSTER, LISTENER};

/// The name that subscribes to all resources.
pub(super) const WILDCARD: &str = "*";

/// Which resources a response holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All subscribed ones; a first request without names subscribes to all.
    Whole,
    /// Some of the subscribed ones, by name.
    Named,
}

impl Scope {
    /// The scope of a type: the specification sends listeners and clusters as a whole.
    #[must_use]
    pub fn for_type(type_url: &str) -> Scope {
        match type_url {
            LISTENER | CLUSTER => Scope::Whole,
            _ => Scope::Named,
        }
    }
}

/// One type on one stream.
#[derive(Debug)]
pub struct Stream {
    scope: Scope,
    has_begun: bool,
    subscription: Subscription,
    /// Names unsubscribed in a stale request, which was ignored: subscribed again, they count as new.
    let_go: BTreeSet<String>,
    /// The view's changes up to here are sent or owed.
    position: Position,
    /// Names that the next response must hold, changed or not.
    owed: BTreeSet<String>,
    /// A response is owed, even one without new or changed resources.
    due: bool,
    /// The nonce of the last response; empty before the first.
    nonce: String,
    in_flight: bool,
    sent: u64,
    refusals: Refusals,
    kept: NameUsage,
}

#[derive(Debug, Default)]
enum Subscription {
    #[default]
    Nothing,
    All,
    Names(BTreeSet<String>),
}

impl Subscription {
    fn wants(&self, name: &str) -> bool {
        match self {
            Subscription::Nothing => false,
            Subscription::All => true,
            Subscription::Names(names) => names.contains(name),
        }
    }
}

impl Stream {
    /// A stream before its first request.
    #[must_use]
    pub fn new(scope: Scope) -> Stream {
        Stream {
            scope,
            has_begun: false,
            subscription: Subscription::default(),
            let_go: BTreeSet::new(),
            position: 0,
            owed: BTreeSet::new(),
            due: false,
            nonce: String::new(),
            in_flight: false,
            sent: 0,
            refusals: Refusals::default(),
            kept: NameUsage::default(),
        }
    }

    /// Memory of the client's names.
    pub(super) fn name_usage(&self) -> NameUsage {
        self.kept
    }

    /// An upper bound of that memory after this request, which names the whole subscription.
    pub(super) fn kept_with(&self, request: &DiscoveryRequest, _view: &View) -> NameUsage {
        if self.is_late(request) { self.kept } else { request.resource_names.iter().collect() }
    }

    /// A response is unanswered.
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight
    }

    /// A stale request: it does not answer the last response.
    fn is_late(&self, request: &DiscoveryRequest) -> bool {
        self.has_begun && request.response_nonce != self.nonce
    }

    /// Handles a request of the client. A stale one is ignored, except for the names that it unsubscribes: the client
    /// will answer the last response, too, with its whole subscription.
    pub fn request(&mut self, request: &DiscoveryRequest, view: &View) {
        if self.is_late(request) {
            self.let_go_of_all_but(&request.resource_names);
            return;
        }
        if std::mem::take(&mut self.in_flight) {
            self.refusals.answered(&self.nonce, request.error_detail.as_ref());
        }
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let subscription = self.subscribe(&request.resource_names);
        self.kept = match &subscription {
            Subscription::Names(names) => names.iter().collect(),
            Subscription::Nothing | Subscription::All => NameUsage::default(),
        };
        let before = std::mem::replace(&mut self.subscription, subscription);
        if is_first {
            self.position = view.last();
            if request.version_info == self.version(view) {
                return;
            }
        } else {
            // Only unsubscribed names are no longer owed.
            let subscription = &self.subscription;
            self.owed.retain(|name| subscription.wants(name));
        }
        self.owe_what_is_new(&before, view);
        self.due |= is_first;
    }

    fn subscribe(&self, names: &[String]) -> Subscription {
        let is_whole = self.scope == Scope::Whole;
        let may_be_all = !matches!(self.subscription, Subscription::Names(_));
        if is_whole && (names.iter().any(|name| name == WILDCARD) || names.is_empty() && may_be_all) {
            return Subscription::All;
        }
        Subscription::Names(names.iter().cloned().collect())
    }

    /// Notes unsubscribed names; not for whole responses, which hold the whole subscription in any case.
    fn let_go_of_all_but(&mut self, names: &[String]) {
        if let (Scope::Named, Subscription::Names(wanted)) = (self.scope, &self.subscription) {
            let names: BTreeSet<_> = names.iter().collect();
            self.let_go.extend(wanted.iter().filter(|name| !names.contains(name)).cloned());
        }
    }

    /// Owes newly subscribed names; where responses are whole, also a response that an absent name is absent from.
    fn owe_what_is_new(&mut self, before: &Subscription, view: &View) {
        let (owed, due, let_go) = (&mut self.owed, &mut self.due, std::mem::take(&mut self.let_go));
        let mut owe = |name: &str| {
            *due |= self.scope == Scope::Whole;
            if view.get(name).is_some() {
                owed.insert(name.to_owned());
            }
        };
        match &self.subscription {
            Subscription::Nothing => {}
            Subscription::All => {
                view.iter().filter(|(name, _)| !before.wants(name)).for_each(|(name, _)| owe(name));
            }
            Subscription::Names(names) => {
                let is_new = |name: &&String| !before.wants(name) || let_go.contains(*name);
                names.iter().filter(is_new).for_each(|name| owe(name));
            }
        }
    }

    /// Owes these names again, changed or not, where they are subscribed to.
    pub fn resend<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        let wanted = names.into_iter().filter(|name| self.subscription.wants(name)).map(str::to_owned);
        self.owed.extend(wanted.collect::<Vec<_>>());
    }

    /// The next response and the resources that it renews, if anything is owed and none is in flight. A named response
    /// has about `most` bytes; a whole one has any size.
    pub fn response(
        &mut self,
        type_url: &str,
        view: &View,
        most: usize,
    ) -> Option<(DiscoveryResponse, Vec<String>)> {
        if self.in_flight || !self.has_begun {
            return None;
        }
        self.catch_up(view);
        let names = match self.scope {
            Scope::Whole if self.owed.is_empty() && !self.due => return None,
            Scope::Whole => self.wanted(view),
            Scope::Named => self.part(view, most),
        };
        if self.scope == Scope::Named && names.is_empty() {
            self.due = false;
            return None;
        }
        let renews = match self.scope {
            Scope::Whole => std::mem::take(&mut self.owed).into_iter().collect(),
            Scope::Named => names.clone(),
        };
        self.due = false;
        self.sent += 1;
        self.nonce = self.sent.to_string();
        self.in_flight = true;
        let resources = names
            .iter()
            .filter_map(|name| view.get(name))
            .map(|resource| Any { type_url: type_url.to_owned(), value: resource.bytes.to_vec() });
        // The version of a part differs from that of the whole: after a loss the client is sent all of it again.
        let part = if self.owed.is_empty() { "" } else { "-in-parts" };
        let message = DiscoveryResponse {
            version_info: self.version(view) + part,
            resources: resources.collect(),
            type_url: type_url.to_owned(),
            nonce: self.nonce.clone(),
            control_plane: None,
        };
        Some((message, renews))
    }

    fn catch_up(&mut self, view: &View) {
        for (_, name, resource) in view.after(self.position) {
            if !self.subscription.wants(name) {
                continue;
            }
            match (self.scope, resource.is_some()) {
                (_, true) => _ = self.owed.insert(name.to_string()),
                (Scope::Whole, false) => self.due = true,
                (Scope::Named, false) => {}
            }
            if resource.is_none() {
                self.owed.remove(&**name);
            }
        }
        self.position = view.last();
    }

    fn wanted(&self, view: &View) -> Vec<String> {
        let mut names: Vec<_> = match &self.subscription {
            Subscription::Nothing => Vec::new(),
            Subscription::All => view.iter().map(|(name, _)| name.to_string()).collect(),
            Subscription::Names(names) => {
                names.iter().filter(|name| view.get(name).is_some()).cloned().collect()
            }
        };
        names.sort_unstable();
        names
    }

    fn part(&mut self, view: &View, most: usize) -> Vec<String> {
        let (mut names, mut size) = (Vec::new(), 0);
        while size < most
            && let Some(name) = self.owed.pop_first()
        {
            let Some(resource) = view.get(&name) else { continue };
            size += name.len() + resource.bytes.len();
            names.push(name);
        }
        names
    }

    /// The version of the whole subscription: a client that reconnects with it lacks nothing.
    fn version(&self, view: &View) -> String {
        let mut text = String::new();
        for name in self.wanted(view) {
            if let Some(resource) = view.get(&name) {
                text += &format!("{name}\n{}\n", resource.version);
            }
        }
        version(text.as_bytes())
    }

    /// The position in the view; removals up to it need not be remembered for this stream.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Everything is sent and answered.
    #[must_use]
    pub fn is_settled(&self, view: &View) -> bool {
        let is_all_sent = self.owed.is_empty() && !self.due && self.position == view.last();
        self.has_begun && !self.in_flight && is_all_sent
    }

    /// The number of NACKs, and the last one unless the client has ACKed since.
    #[must_use]
    pub fn nacks(&self) -> (u64, Option<&Nack>) {
        self.refusals.nacks()
    }
}

#[cfg(test)]
mod tests;
