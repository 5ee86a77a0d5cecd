//! Tests a delta server with clients under any order of changes, losses, refusals and restarts: once no message is in
//! flight, each client has what the server has of its subscription, except what it refused.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::client::{Client, Refused};
use super::server::Stream;
use super::view::View;
use isthmus_model::slice::version;
use isthmus_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

const TYPE: &str = "type.example/a";
const NAMES: u8 = 6;
/// Content that the client refuses.
const POISON: u8 = 7;

#[derive(Clone, Debug)]
enum Event {
    Set(u8, u8),
    Remove(u8),
    /// The client subscribes to these names, one bit each; no effect on a client of all.
    SetNames(u8),
    /// The server sends its next response.
    Speak,
    /// The client reads a response.
    Listen,
    /// The server reads a request.
    Hear,
    /// The stream is lost with all messages in flight.
    Lose,
    /// The server forgets removals that every stream has passed.
    Forget,
    /// The server restarts with the same resources and a new view.
    Restart,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..NAMES, 0..=POISON).prop_map(|(name, content)| Event::Set(name, content)),
        2 => (0..NAMES).prop_map(Event::Remove),
        2 => any::<u8>().prop_map(Event::SetNames),
        4 => Just(Event::Speak),
        4 => Just(Event::Listen),
        4 => Just(Event::Hear),
        1 => Just(Event::Lose),
        1 => Just(Event::Forget),
        1 => Just(Event::Restart),
    ]
}

struct World {
    /// The server's resources.
    truth: BTreeMap<String, u8>,
    view: View,
    stream: Stream,
    client: Client,
    /// Subscribed names. None: all.
    names: Option<BTreeSet<String>>,
    tables: BTreeMap<String, u8>,
    to_client: Vec<DeltaDiscoveryResponse>,
    to_server: Vec<DeltaDiscoveryRequest>,
}

impl World {
    fn new(client: Client, names: Option<BTreeSet<String>>) -> World {
        let first = client.first(&HashMap::new);
        World {
            truth: BTreeMap::new(),
            view: View::default(),
            stream: Stream::default(),
            client,
            names,
            tables: BTreeMap::new(),
            to_client: Vec::new(),
            to_server: first.into_iter().collect(),
        }
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Set(name, content) => {
                let name = format!("n{name}");
                self.view.set(&name, vec![*content]);
                self.truth.insert(name, *content);
            }
            Event::Remove(name) => {
                let name = format!("n{name}");
                self.view.remove(&name);
                self.truth.remove(&name);
            }
            Event::SetNames(bits) => self.set_names(*bits),
            // Small responses: most states need several.
            Event::Speak => self.to_client.extend(self.stream.response(TYPE, &self.view, 5)),
            Event::Listen => {
                if !self.to_client.is_empty() {
                    let response = self.to_client.remove(0);
                    self.listen(response);
                }
            }
            Event::Hear => {
                if !self.to_server.is_empty() {
                    let request = self.to_server.remove(0);
                    self.stream.request(&request, &self.view, &|_| true);
                }
            }
            Event::Lose => self.lose(),
            Event::Forget => self.view.forget(self.stream.position()),
            Event::Restart => {
                self.view = View::default();
                for (name, content) in &self.truth {
                    self.view.set(name, vec![*content]);
                }
                self.lose();
            }
        }
    }

    fn set_names(&mut self, bits: u8) {
        let Some(names) = &mut self.names else { return };
        *names = (0..NAMES).filter(|name| bits & (1 << name) != 0).map(|name| format!("n{name}")).collect();
        self.tables.retain(|name, _| names.contains(name));
        self.to_server.extend(self.client.set_names(names));
    }

    fn wants(&self, name: &str) -> bool {
        self.names.as_ref().is_none_or(|names| names.contains(name))
    }

    fn listen(&mut self, response: DeltaDiscoveryResponse) {
        let (update, mut refused) = self.client.read(response);
        for resource in &update.resources {
            let content = resource.bytes[0];
            assert_eq!(resource.version, version(&resource.bytes));
            if content == POISON {
                refused.push(Refused { name: resource.name.clone(), why: "poison".to_owned() });
            } else if self.wants(&resource.name) {
                self.tables.insert(resource.name.clone(), content);
            }
        }
        for name in &update.removed {
            self.tables.remove(name);
        }
        self.to_server.push(self.client.answer(&update, &refused));
    }

    fn lose(&mut self) {
        self.to_client.clear();
        self.stream = Stream::default();
        self.to_server = self.client.first(&HashMap::new).into_iter().collect();
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
    fn wildcard_client_converges_to_the_server(events in proptest::collection::vec(event(), 0..60)) {
        check(World::new(Client::new(TYPE, []), None), &events)?;
    }

    #[test]
    fn named_client_converges_to_its_subscription(events in proptest::collection::vec(event(), 0..60)) {
        check(World::new(Client::of_names(TYPE), Some(BTreeSet::new())), &events)?;
    }
}

fn check(mut world: World, events: &[Event]) -> Result<(), TestCaseError> {
    for event in events {
        world.happen(event);
    }
    world.quiet();
    // A stream without any request is never settled.
    let nothing = world.names.as_ref().is_some_and(BTreeSet::is_empty);
    prop_assert!(nothing || world.stream.is_settled(&world.view));
    for (name, content) in &world.truth {
        if !world.wants(name) {
            prop_assert_eq!(world.tables.get(name), None, "{} is not followed", name);
        } else if *content == POISON {
            // The last accepted content stays, if there was any.
            prop_assert_ne!(world.tables.get(name), Some(&POISON));
        } else {
            prop_assert_eq!(world.tables.get(name), Some(content), "{}", name);
        }
    }
    let extra: Vec<_> = world.tables.keys().filter(|name| !world.truth.contains_key(*name)).collect();
    prop_assert!(extra.is_empty(), "{:?}", extra);
    Ok(())
}
