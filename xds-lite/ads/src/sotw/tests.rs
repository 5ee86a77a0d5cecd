//! Tests state-of-the-world streams: a client gets its subscription in the latest version, whatever was in flight.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use isthmus_proto::google::rpc::Status;

const TYPE: &str = "type.example/a";

fn view(resources: &[(&str, &'static str)]) -> View {
    let mut view = View::default();
    for (name, content) in resources {
        view.set(name, *content);
    }
    view
}

fn ask(names: &[&str], version: &str, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        version_info: version.to_owned(),
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        type_url: TYPE.to_owned(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    }
}

/// The contents and version of the next response; the client ACKs it and subscribes to `names`.
fn next(stream: &mut Stream, view: &View, names: &[&str]) -> Option<(Vec<String>, String)> {
    let (response, _) = stream.response(TYPE, view, usize::MAX)?;
    stream.request(&ask(names, &response.version_info, &response.nonce), view);
    let contents = response.resources.iter().map(|any| String::from_utf8(any.value.clone()).unwrap());
    Some((contents.collect(), response.version_info))
}

fn contents(came: Option<(Vec<String>, String)>) -> Option<String> {
    came.map(|(contents, _)| contents.join(" "))
}

#[test]
fn sotw_whole_response_has_all_resources_without_removed_ones() {
    let mut view = view(&[("b", "b1"), ("a", "a1")]);
    let mut stream = Stream::new(Scope::Whole);
    stream.request(&ask(&[], "", ""), &view);
    assert_eq!(contents(next(&mut stream, &view, &[])).as_deref(), Some("a1 b1"));
    assert_eq!(next(&mut stream, &view, &[]), None);
    assert!(stream.is_settled(&view));
    view.set("a", "a2");
    assert!(!stream.is_settled(&view));
    let (response, renews) = stream.response(TYPE, &view, usize::MAX).unwrap();
    assert_eq!((response.resources.len(), renews), (2, vec!["a".to_owned()]), "only a is new in it");
    stream.request(&ask(&[], &response.version_info, &response.nonce), &view);
    view.remove("b");
    assert_eq!(contents(next(&mut stream, &view, &[])).as_deref(), Some("a2"));
    view.remove("a");
    assert_eq!(contents(next(&mut stream, &view, &[])).as_deref(), Some(""), "an empty state is sent");
}

#[test]
fn sotw_empty_first_state_is_sent() {
    let mut stream = Stream::new(Scope::Whole);
    stream.request(&ask(&[], "", ""), &View::default());
    assert_eq!(contents(next(&mut stream, &View::default(), &[])).as_deref(), Some(""));
    assert_eq!(next(&mut stream, &View::default(), &[]), None);
}

#[test]
fn sotw_named_response_has_changed_resources_only() {
    let mut view = view(&[("a", "a1"), ("b", "b1"), ("c", "c1")]);
    let mut stream = Stream::new(Scope::Named);
    stream.request(&ask(&["a", "b", "absent"], "", ""), &view);
    let wanted = ["a", "b", "absent"];
    assert_eq!(contents(next(&mut stream, &view, &wanted)).as_deref(), Some("a1 b1"));
    view.set("c", "c2");
    view.set("b", "b2");
    assert_eq!(contents(next(&mut stream, &view, &wanted)).as_deref(), Some("b2"));
    view.remove("b");
    assert_eq!(next(&mut stream, &view, &wanted), None, "a named response cannot tell a removal");
    view.set("absent", "x");
    assert_eq!(contents(next(&mut stream, &view, &["a", "c"])).as_deref(), Some("x"));
    assert_eq!(contents(next(&mut stream, &view, &["a", "c"])).as_deref(), Some("c2"), "newly subscribed");
    stream.resend(["a", "b"]);
    assert_eq!(contents(next(&mut stream, &view, &["c"])).as_deref(), Some("a1"));
    assert_eq!(contents(next(&mut stream, &view, &["c"])), None);
}

#[test]
fn sotw_resubscribed_name_is_sent_again() {
    let view = view(&[("a", "a1"), ("b", "b1")]);
    let mut stream = Stream::new(Scope::Named);
    stream.request(&ask(&["a", "b"], "", ""), &view);
    let (_, version) = next(&mut stream, &view, &["b"]).unwrap();
    assert_eq!(next(&mut stream, &view, &["b"]), None);
    stream.request(&ask(&["a", "b"], &version, "1"), &view);
    assert_eq!(contents(next(&mut stream, &view, &["a", "b"])).as_deref(), Some("a1"));
}

#[test]
fn sotw_name_unsubscribed_in_a_stale_request_is_sent_again() {
    let mut view = view(&[("a", "a1")]);
    let mut stream = Stream::new(Scope::Named);
    stream.request(&ask(&["a", "b"], "", ""), &view);
    assert_eq!(contents(next(&mut stream, &view, &["a", "b"])).as_deref(), Some("a1"));
    view.set("b", "b1");
    let (second, _) = stream.response(TYPE, &view, usize::MAX).unwrap();
    stream.request(&ask(&["b"], "", "1"), &view);
    stream.request(&ask(&["a", "b"], "", "1"), &view);
    stream.request(&ask(&["a", "b"], &second.version_info, &second.nonce), &view);
    assert_eq!(contents(next(&mut stream, &view, &["a", "b"])).as_deref(), Some("a1"));
    assert_eq!(next(&mut stream, &view, &["a", "b"]), None);
}

#[test]
fn sotw_reconnect_with_current_version_is_sent_nothing() {
    for (scope, names) in [(Scope::Whole, &[][..]), (Scope::Named, &["a", "b"])] {
        let mut view = view(&[("a", "a1"), ("b", "b1")]);
        let mut stream = Stream::new(scope);
        stream.request(&ask(names, "", ""), &view);
        let (_, version) = next(&mut stream, &view, names).unwrap();
        let mut again = Stream::new(scope);
        again.request(&ask(names, &version, ""), &view);
        assert_eq!(next(&mut again, &view, names), None);
        assert!(again.is_settled(&view));
        view.set("a", "a2");
        assert!(next(&mut again, &view, names).is_some());
        let mut late = Stream::new(scope);
        late.request(&ask(names, &version, ""), &view);
        assert_eq!(contents(next(&mut late, &view, names)).as_deref(), Some("a2 b1"));
    }
}

#[test]
fn sotw_stale_answer_is_ignored() {
    let mut view = view(&[("a", "a1")]);
    let mut stream = Stream::new(Scope::Whole);
    stream.request(&ask(&[], "", ""), &view);
    let (first, _) = stream.response(TYPE, &view, usize::MAX).unwrap();
    view.set("a", "a2");
    view.set("a", "a3");
    stream.request(&ask(&["nothing"], "", ""), &view);
    stream.request(&ask(&[], "", "77"), &view);
    assert_eq!(stream.response(TYPE, &view, usize::MAX), None, "one is in flight");
    stream.request(&ask(&[], "1", &first.nonce), &view);
    assert_eq!(contents(next(&mut stream, &view, &[])).as_deref(), Some("a3"));
    stream.request(&ask(&["nothing"], "1", &first.nonce), &view);
    view.set("b", "b1");
    assert_eq!(
        contents(next(&mut stream, &view, &[])).as_deref(),
        Some("a3 b1"),
        "a stale answer changes nothing"
    );
}

#[test]
fn sotw_names_replace_the_wildcard() {
    let mut view = view(&[("a", "a1"), ("b", "b1")]);
    let mut stream = Stream::new(Scope::Whole);
    stream.request(&ask(&["absent"], "", ""), &view);
    assert_eq!(contents(next(&mut stream, &view, &["b"])).as_deref(), Some(""));
    assert_eq!(contents(next(&mut stream, &view, &[])).as_deref(), Some("b1"));
    view.set("b", "b2");
    assert_eq!(next(&mut stream, &view, &[]), None, "it is subscribed to nothing");
    stream.request(&ask(&["*"], "", "2"), &view);
    assert_eq!(contents(next(&mut stream, &view, &["*"])).as_deref(), Some("a1 b2"));
}

#[test]
fn sotw_nack_is_recorded_and_not_resent() {
    let mut view = view(&[("a", "a1")]);
    let mut stream = Stream::new(Scope::Whole);
    stream.request(&ask(&[], "", ""), &view);
    let (first, _) = stream.response(TYPE, &view, usize::MAX).unwrap();
    let error = Some(Status { code: 3, message: "a: no port".to_owned(), ..Status::default() });
    stream.request(&DiscoveryRequest { error_detail: error.clone(), ..ask(&[], "", &first.nonce) }, &view);
    assert_eq!(stream.nacks(), (1, Some(&Nack { nonce: first.nonce, why: "a: no port".to_owned() })));
    assert_eq!(next(&mut stream, &view, &[]), None);
    view.set("a", "a2");
    assert!(next(&mut stream, &view, &[]).is_some());
    assert_eq!(stream.nacks(), (1, None));
}

#[test]
fn sotw_large_named_state_is_sent_in_parts() {
    let view = view(&[("a", "12345"), ("b", "12345"), ("c", "12345")]);
    let names = ["a", "b", "c"];
    let mut stream = Stream::new(Scope::Named);
    stream.request(&ask(&names, "", ""), &view);
    let mut versions = Vec::new();
    while let Some((response, _)) = stream.response(TYPE, &view, 6) {
        assert_eq!(response.resources.len(), 1);
        stream.request(&ask(&names, &response.version_info, &response.nonce), &view);
        versions.push(response.version_info);
    }
    let resent: Vec<_> = versions
        .iter()
        .map(|version| {
            let mut again = Stream::new(Scope::Named);
            again.request(&ask(&names, version, ""), &view);
            again.response(TYPE, &view, usize::MAX).map_or(0, |(response, _)| response.resources.len())
        })
        .collect();
    assert_eq!(resent, [3, 3, 0], "a part's version is not that of the whole");
}

/// An event between a client and its server.
#[derive(Clone, Debug)]
enum Event {
    Set(u8, u8),
    Remove(u8),
    /// The client subscribes to exactly these names, one bit each.
    Want(u8),
    Speak,
    Listen,
    Hear,
    Lose,
    Forget,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..4_u8, 0..4_u8).prop_map(|(name, content)| Event::Set(name, content)),
        2 => (0..4_u8).prop_map(Event::Remove),
        2 => (1..16_u8).prop_map(Event::Want),
        4 => Just(Event::Speak),
        4 => Just(Event::Listen),
        4 => Just(Event::Hear),
        1 => Just(Event::Lose),
        1 => Just(Event::Forget),
    ]
}

struct World {
    scope: Scope,
    view: View,
    stream: Stream,
    wants: BTreeSet<String>,
    tables: BTreeMap<String, Vec<u8>>,
    accepted: String,
    nonce: String,
    to_client: Vec<DiscoveryResponse>,
    to_server: Vec<DiscoveryRequest>,
}

impl World {
    fn new(scope: Scope) -> World {
        let mut world = World {
            scope,
            view: View::default(),
            stream: Stream::new(scope),
            wants: BTreeSet::from(["n0".to_owned()]),
            tables: BTreeMap::new(),
            accepted: String::new(),
            nonce: String::new(),
            to_client: Vec::new(),
            to_server: Vec::new(),
        };
        world.say();
        world
    }

    fn say(&mut self) {
        let names: Vec<_> = self.wants.iter().map(String::as_str).collect();
        self.to_server.push(ask(&names, &self.accepted, &self.nonce));
    }

    fn happen(&mut self, event: &Event) {
        match event {
            // A resource carries its name, as Envoy's do.
            Event::Set(name, content) => _ = self.view.set(&format!("n{name}"), vec![*name, *content]),
            Event::Remove(name) => _ = self.view.remove(&format!("n{name}")),
            Event::Want(bits) => {
                self.wants =
                    (0..4).filter(|bit| bits & (1 << bit) != 0).map(|bit| format!("n{bit}")).collect();
                let wants = &self.wants;
                self.tables.retain(|name, _| wants.contains(name));
                self.say();
            }
            Event::Speak => {
                self.to_client.extend(self.stream.response(TYPE, &self.view, 3).map(|(said, _)| said))
            }
            Event::Listen if !self.to_client.is_empty() => {
                let response = self.to_client.remove(0);
                self.listen(response);
            }
            Event::Hear if !self.to_server.is_empty() => {
                let request = self.to_server.remove(0);
                self.stream.request(&request, &self.view);
            }
            Event::Listen | Event::Hear => {}
            Event::Lose => {
                self.to_client.clear();
                self.to_server.clear();
                self.nonce.clear();
                // A client that lacks a resource reconnects without a version.
                if self.wants.iter().any(|name| !self.tables.contains_key(name)) {
                    self.accepted.clear();
                }
                self.stream = Stream::new(self.scope);
                self.say();
            }
            Event::Forget => self.view.forget(self.stream.position()),
        }
    }

    fn listen(&mut self, response: DiscoveryResponse) {
        if self.scope == Scope::Whole {
            self.tables.clear();
        }
        for any in response.resources {
            let name = format!("n{}", any.value[0]);
            if self.wants.contains(&name) {
                self.tables.insert(name, any.value);
            }
        }
        (self.accepted, self.nonce) = (response.version_info, response.nonce);
        self.say();
    }

    fn quiet(&mut self) {
        loop {
            let before = (self.to_client.len(), self.to_server.len());
            for event in [Event::Hear, Event::Speak, Event::Listen] {
                self.happen(&event);
            }
            if before == (0, 0) && self.to_client.is_empty() && self.to_server.is_empty() {
                return;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn sotw_client_converges_to_its_subscription(
        whole in any::<bool>(),
        events in proptest::collection::vec(event(), 0..60),
    ) {
        let mut world = World::new(if whole { Scope::Whole } else { Scope::Named });
        for event in &events {
            world.happen(event);
        }
        world.quiet();
        prop_assert!(world.stream.is_settled(&world.view));
        for name in &world.wants {
            let truth = world.view.get(name).map(|resource| resource.bytes.to_vec());
            // A named response cannot tell a removal.
            if whole || truth.is_some() {
                prop_assert_eq!(world.tables.get(name), truth.as_ref(), "{}", name);
            }
        }
    }
}
