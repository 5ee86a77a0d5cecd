//! Serves one type on one delta stream: the client's subscription, its position in the view, and the names it is still
//! owed. One response is in flight at a time; a resource that changes meanwhile is sent once, in its latest version.

use std::collections::{BTreeMap, BTreeSet};

use prost_types::Any;

use super::session::{Nack, NameUsage, Refusals};
use super::view::{Position, View};
use isthmus_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Sent,
};

const WILDCARD: &str = "*";

/// One type on one stream.
#[derive(Debug, Default)]
pub struct Stream {
    has_begun: bool,
    wildcard: bool,
    names: BTreeSet<String>,
    /// The view's changes up to here are sent or owed.
    position: Position,
    /// The same for priority changes, which are sent ahead of others.
    priority_position: Position,
    /// The last response had priority changes only.
    was_priority: bool,
    /// Names that must be sent, changed or not.
    owed: BTreeSet<String>,
    /// Names of the client that the view does not have, and that may not be known yet.
    unsure: BTreeSet<String>,
    /// A client of all that knows nothing gets a first response even if it is empty: Envoy waits for it.
    greets: bool,
    in_flight: Option<String>,
    sent: u64,
    refusals: Refusals,
    /// Memory of the subscribed names.
    kept: NameUsage,
    /// Memory of owed and unsure names that the client claims to know and the view does not have.
    claimed: NameUsage,
}

/// Whether a name that a client claims to know and the view does not have is gone, or only not known yet.
pub type IsGone<'a> = &'a dyn Fn(&str) -> bool;

impl Stream {
    /// Memory of the client's names.
    pub(super) fn name_usage(&self) -> NameUsage {
        self.kept.plus(self.claimed)
    }

    /// An upper bound of that memory after this request.
    pub(super) fn kept_with(&self, request: &DeltaDiscoveryRequest, view: &View) -> NameUsage {
        let subscribes = request.resource_names_subscribe.iter();
        let more: NameUsage = subscribes.filter(|name| !self.names.contains(*name)).collect();
        let claimed = if self.has_begun {
            NameUsage::default()
        } else {
            request.initial_resource_versions.keys().filter(|name| view.get(name).is_none()).collect()
        };
        self.name_usage().plus(more).plus(claimed)
    }

    /// A response is unanswered.
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Handles a request of the client.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest, view: &View, is_gone: IsGone<'_>) {
        if self.in_flight.as_ref().is_some_and(|nonce| *nonce == request.response_nonce) {
            self.in_flight = None;
            self.refusals.answered(&request.response_nonce, request.error_detail.as_ref());
        }
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        let subscribes = &request.resource_names_subscribe;
        if is_first && (subscribes.is_empty() || subscribes.iter().any(|name| name == WILDCARD)) {
            self.wildcard = true;
            self.position = view.last();
            self.owe_what_differs(&request.initial_resource_versions, view, is_gone);
        }
        for name in subscribes.iter().filter(|name| *name != WILDCARD) {
            if self.names.insert(name.clone()) {
                self.kept.add(name);
            }
            let known = request.initial_resource_versions.get(name).filter(|_| is_first);
            let has_it = known.is_some_and(|known| view.get(name).is_some_and(|now| *known == *now.version));
            if !has_it {
                let is_certain = view.get(name).is_some() || is_gone(name);
                if is_certain { &mut self.owed } else { &mut self.unsure }.insert(name.clone());
            }
        }
        if is_first && !self.wildcard {
            self.position = view.last();
        }
        if !is_first && !self.wildcard && subscribes.iter().any(|name| name == WILDCARD) {
            self.wildcard = true;
            self.owe_what_differs(&Default::default(), view, is_gone);
        }
        for name in &request.resource_names_unsubscribe {
            self.unsubscribe(name);
        }
        self.greets |= is_first && self.wildcard && request.initial_resource_versions.is_empty();
    }

    fn owe_what_differs(
        &mut self,
        known: &std::collections::HashMap<String, String>,
        view: &View,
        is_gone: IsGone<'_>,
    ) {
        let differs =
            view.iter().filter(|(name, now)| known.get(&***name).is_none_or(|known| **known != *now.version));
        self.owed.extend(differs.map(|(name, _)| name.to_string()));
        for name in known.keys().filter(|name| view.get(name).is_none()) {
            self.claimed.add(name);
            if is_gone(name) { &mut self.owed } else { &mut self.unsure }.insert(name.clone());
        }
    }

    /// Owes names of the client that are known to be gone by now.
    pub fn recheck(&mut self, view: &View, is_gone: IsGone<'_>) {
        // What the view has got meanwhile is sent as a change of the view.
        self.unsure.retain(|name| view.get(name).is_none());
        self.owed.extend(self.unsure.extract_if(.., |name| is_gone(name)));
    }

    fn unsubscribe(&mut self, name: &str) {
        if name == WILDCARD {
            self.wildcard = false;
            self.owed.retain(|name| self.names.contains(name));
            self.unsure.retain(|name| self.names.contains(name));
        } else {
            if self.names.remove(name) {
                self.kept.remove(name);
            }
            if !self.wildcard {
                self.owed.remove(name);
                self.unsure.remove(name);
            }
        }
    }

    /// Owes these names again, changed or not, where they are subscribed to.
    pub fn resend<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        let wanted: Vec<_> = names.into_iter().filter(|name| self.wants(name)).map(str::to_owned).collect();
        self.owed.extend(wanted);
    }

    fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// The next response of about `most` bytes, if anything is owed and none is in flight.
    pub fn response(&mut self, type_url: &str, view: &View, most: usize) -> Option<DeltaDiscoveryResponse> {
        if self.in_flight.is_some() || !self.has_begun {
            return None;
        }
        let mut batch = Batch { most, ..Batch::default() };
        let mut priority = view.priority_after(self.priority_position.max(self.position));
        while !batch.is_full()
            && let Some((position, name)) = priority.next()
        {
            self.priority_position = position;
            if self.wants(name) {
                self.owed.remove(&**name);
                batch.add(name, type_url, view);
            }
        }
        // Priority changes are sent alone, but never twice in a row: they must not starve the others.
        self.was_priority = !batch.names.is_empty() && !self.was_priority;
        if !self.was_priority {
            while !batch.is_full()
                && let Some(name) = self.owed.pop_first()
            {
                batch.add(&name, type_url, view);
            }
            if self.owed.is_empty() && self.unsure.is_empty() {
                self.claimed = NameUsage::default();
            }
            let mut changes = view.after(self.position).peekable();
            while !batch.is_full()
                && let Some((position, name, _)) = changes.next()
            {
                self.position = position;
                let was_sent = position <= self.priority_position && view.is_priority(position);
                if !was_sent && self.wants(name) {
                    batch.add(name, type_url, view);
                }
            }
        }
        let (resources, removed) = batch.done();
        if resources.is_empty() && removed.is_empty() && !self.greets {
            return None;
        }
        self.greets = false;
        self.sent += 1;
        let nonce = self.sent.to_string();
        self.in_flight = Some(nonce.clone());
        Some(DeltaDiscoveryResponse {
            system_version_info: self.position.to_string(),
            resources,
            type_url: type_url.to_owned(),
            nonce,
            removed_resources: removed,
            control_plane: None,
        })
    }

    /// The position in the view; removals up to it need not be remembered for this stream.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// Everything is sent and answered.
    #[must_use]
    pub fn is_settled(&self, view: &View) -> bool {
        self.has_begun
            && self.in_flight.is_none()
            && !self.greets
            && self.owed.is_empty()
            && self.position == view.last()
    }

    /// The number of NACKs, and the last one unless the client has ACKed since.
    #[must_use]
    pub fn nacks(&self) -> (u64, Option<&Nack>) {
        self.refusals.nacks()
    }
}

/// A response being built: each name once, in its latest version.
#[derive(Default)]
struct Batch {
    most: usize,
    size: usize,
    names: BTreeMap<String, Option<Sent>>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.size >= self.most
    }

    fn add(&mut self, name: &str, type_url: &str, view: &View) {
        if self.names.contains_key(name) {
            return;
        }
        let sent = view.get(name).map(|resource| Sent {
            version: resource.version.to_string(),
            resource: Some(Any { type_url: type_url.to_owned(), value: resource.bytes.to_vec() }),
            name: name.to_owned(),
            ..Sent::default()
        });
        self.size += name.len() + view.get(name).map_or(0, |resource| resource.bytes.len());
        self.names.insert(name.to_owned(), sent);
    }

    fn done(self) -> (Vec<Sent>, Vec<String>) {
        let mut removed = Vec::new();
        let mut resources = Vec::new();
        for (name, sent) in self.names {
            match sent {
                Some(sent) => resources.push(sent),
                None => removed.push(name),
            }
        }
        (resources, removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_proto::google::rpc::Status;

    const TYPE: &str = "type.example/a";

    fn request() -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: TYPE.to_owned(), ..DeltaDiscoveryRequest::default() }
    }

    fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        DeltaDiscoveryRequest { resource_names_subscribe: names, ..request() }
    }

    fn knows(known: &[(&str, &str)]) -> DeltaDiscoveryRequest {
        let known = known
            .iter()
            .map(|(name, content)| ((*name).to_owned(), isthmus_model::slice::version(content.as_bytes())));
        DeltaDiscoveryRequest { initial_resource_versions: known.collect(), ..request() }
    }

    fn view(resources: &[(&str, &'static str)]) -> View {
        let mut view = View::default();
        for (name, content) in resources {
            view.set(name, *content);
        }
        view
    }

    /// Names sent and names removed by the next response, which is then ACKed.
    fn next(stream: &mut Stream, view: &View) -> Option<(Vec<String>, Vec<String>)> {
        let response = stream.response(TYPE, view, usize::MAX)?;
        let answer = DeltaDiscoveryRequest { response_nonce: response.nonce, ..request() };
        stream.request(&answer, view, &|_| true);
        Some((response.resources.into_iter().map(|sent| sent.name).collect(), response.removed_resources))
    }

    fn came(names: &[&str]) -> Option<(Vec<String>, Vec<String>)> {
        Some((names.iter().map(|&name| name.to_owned()).collect(), Vec::new()))
    }

    #[test]
    fn delta_first_request_without_names_subscribes_to_all() {
        let view = view(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let mut stream = Stream::default();
        stream.request(&knows(&[("a", "1"), ("b", "old"), ("gone", "x")]), &view, &|_| true);
        let expected = (vec!["b".to_owned(), "c".to_owned()], vec!["gone".to_owned()]);
        assert_eq!(next(&mut stream, &view), Some(expected));
        assert_eq!(next(&mut stream, &view), None);
        assert!(stream.is_settled(&view));
    }

    #[test]
    fn delta_name_not_known_yet_is_not_removed() {
        let view = view(&[("east/a", "1")]);
        let mut stream = Stream::default();
        let known = knows(&[("east/a", "1"), ("west/b", "2"), ("east/c", "3")]);
        stream.request(&known, &view, &|name| name.starts_with("east/"));
        assert_eq!(next(&mut stream, &view), Some((vec![], vec!["east/c".to_owned()])));
    }

    #[test]
    fn delta_name_is_removed_once_it_is_known_to_be_gone() {
        let mut view = view(&[]);
        let mut stream = Stream::default();
        let known = knows(&[("west/a", "1"), ("west/b", "2"), ("north/c", "3")]);
        stream.request(&known, &view, &|_| false);
        assert_eq!(next(&mut stream, &view), None);
        view.set("west/b", "2");
        stream.recheck(&view, &|name| name.starts_with("west/"));
        let expected = (vec!["west/b".to_owned()], vec!["west/a".to_owned()]);
        assert_eq!(next(&mut stream, &view), Some(expected));
        stream.recheck(&view, &|_| true);
        assert_eq!(next(&mut stream, &view), Some((vec![], vec!["north/c".to_owned()])));
        assert_eq!((stream.name_usage(), next(&mut stream, &view)), (NameUsage::default(), None));
    }

    #[test]
    fn delta_changes_during_a_response_in_flight_are_sent_once() {
        let mut view = view(&[("a", "1")]);
        let mut stream = Stream::default();
        stream.request(&request(), &view, &|_| true);
        let first = stream.response(TYPE, &view, usize::MAX).unwrap();
        view.set("a", "2");
        view.set("a", "3");
        view.set("b", "1");
        view.remove("b");
        assert_eq!(stream.response(TYPE, &view, usize::MAX), None, "one is in flight");
        let stale = DeltaDiscoveryRequest { response_nonce: "99".to_owned(), ..request() };
        stream.request(&stale, &view, &|_| true);
        assert_eq!(stream.response(TYPE, &view, usize::MAX), None, "the nonce is another response's");
        stream.request(&DeltaDiscoveryRequest { response_nonce: first.nonce, ..request() }, &view, &|_| true);
        let second = stream.response(TYPE, &view, usize::MAX).unwrap();
        assert_eq!(second.resources.len(), 1);
        assert_eq!(second.resources[0].resource.as_ref().unwrap().value, b"3");
        assert_eq!(second.removed_resources, ["b"], "harmless to a client that never had it");
    }

    #[test]
    fn delta_large_state_is_sent_in_parts() {
        let view = view(&[("a", "12345"), ("b", "12345"), ("c", "12345")]);
        let mut stream = Stream::default();
        stream.request(&request(), &view, &|_| true);
        let mut parts = Vec::new();
        while let Some(response) = stream.response(TYPE, &view, 6) {
            parts.push(response.resources.len());
            stream.request(
                &DeltaDiscoveryRequest { response_nonce: response.nonce, ..request() },
                &view,
                &|_| true,
            );
        }
        assert_eq!(parts, [1, 1, 1]);
    }

    #[test]
    fn delta_priority_change_overtakes_others_and_is_sent_once() {
        let mut view = view(&[("owed", "12345")]);
        let mut stream = Stream::default();
        stream.request(&request(), &view, &|_| true);
        let mut part = |view: &View| {
            let response = stream.response(TYPE, view, 6)?;
            let answer = DeltaDiscoveryRequest { response_nonce: response.nonce, ..request() };
            stream.request(&answer, view, &|_| true);
            Some(response.resources.into_iter().map(|sent| sent.name).collect::<Vec<_>>().join(" "))
        };
        view.set("a", "12345");
        view.set("b", "12345");
        view.set_priority("own", "12345");
        view.set("c", "12345");
        let mut parts = vec![part(&view), part(&view)];
        view.set_priority("own", "67890");
        view.set_priority("own-too", "12345");
        view.set("own-too", "67890");
        parts.extend(std::iter::repeat_with(|| part(&view)).take(6));
        let sent: Vec<_> = parts.iter().flatten().map(String::as_str).collect();
        assert_eq!(sent, ["own", "owed", "own", "a", "b", "c", "own-too"], "own-too lost its priority");
        assert_eq!(parts.last(), Some(&None));
        assert!(stream.is_settled(&view));
    }

    #[test]
    fn delta_resubscribe_resends_name() {
        let mut view = view(&[("a", "1"), ("b", "1")]);
        let mut stream = Stream::default();
        stream.request(&subscribe(&["a", "absent"]), &view, &|_| true);
        assert_eq!(next(&mut stream, &view), Some((vec!["a".to_owned()], vec!["absent".to_owned()])));
        view.set("b", "2");
        assert_eq!(next(&mut stream, &view), None, "b is not subscribed to");
        stream.request(&subscribe(&["a"]), &view, &|_| true);
        assert_eq!(next(&mut stream, &view), came(&["a"]), "subscribed again, sent again");
        view.set("absent", "1");
        assert_eq!(next(&mut stream, &view), came(&["absent"]));
        let leave = DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["a".to_owned()], ..request() };
        stream.request(&leave, &view, &|_| true);
        view.set("a", "2");
        assert_eq!(next(&mut stream, &view), None);
        stream.resend(["a", "absent"]);
        assert_eq!(next(&mut stream, &view), came(&["absent"]));
    }

    #[test]
    fn delta_later_request_without_names_does_not_subscribe_to_all() {
        let view = view(&[("a", "1")]);
        let mut stream = Stream::default();
        stream.request(&subscribe(&["b"]), &view, &|_| false);
        stream.request(&request(), &view, &|_| true);
        assert_eq!(next(&mut stream, &view), None);
        stream.request(&subscribe(&["*"]), &view, &|_| true);
        assert_eq!(next(&mut stream, &view), came(&["a"]));
        let leave = DeltaDiscoveryRequest { resource_names_unsubscribe: vec!["*".to_owned()], ..request() };
        let mut nothing = Stream::default();
        nothing.request(
            &DeltaDiscoveryRequest { resource_names_subscribe: vec!["*".to_owned()], ..leave },
            &view,
            &|_| true,
        );
        assert_eq!(next(&mut nothing, &view), None, "subscribed to nothing");
    }

    #[test]
    fn delta_empty_view_is_answered_once() {
        let view = view(&[]);
        let mut stream = Stream::default();
        stream.request(&request(), &view, &|_| true);
        assert!(!stream.is_settled(&view));
        assert_eq!(next(&mut stream, &view), Some((vec![], vec![])));
        assert_eq!(next(&mut stream, &view), None);
        assert!(stream.is_settled(&view));
    }

    #[test]
    fn delta_nack_is_kept_until_the_next_ack() {
        let mut view = view(&[("a", "1")]);
        let mut stream = Stream::default();
        stream.request(&request(), &view, &|_| true);
        let nonce = stream.response(TYPE, &view, usize::MAX).unwrap().nonce;
        let error = Status { code: 3, message: "a: no port".to_owned(), ..Status::default() };
        let refusal =
            DeltaDiscoveryRequest { response_nonce: nonce.clone(), error_detail: Some(error), ..request() };
        stream.request(&refusal, &view, &|_| true);
        assert_eq!(stream.nacks(), (1, Some(&Nack { nonce, why: "a: no port".to_owned() })));
        assert_eq!(next(&mut stream, &view), None, "a refused resource is not sent again unchanged");
        view.set("a", "2");
        assert_eq!(next(&mut stream, &view), came(&["a"]));
        assert_eq!(stream.nacks(), (1, None));
    }
}
