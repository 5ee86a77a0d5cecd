//! Accepts the agent's bindings and callers, persists them for a restart, and puts them into the tables; and what identities
//! the gateway may have, which needs no listener. While the agent
//! is unreachable they stay as they are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use isthmus_ads::client::{Client, Refused, Resource, Update};
use isthmus_certs::SpiffeId;
use isthmus_model::allotment::MAX_NAMES;
use isthmus_model::binding::{Granted, LocalBinding, WireError, granted_name, is_granted_name};
use isthmus_model::slice::version;
use isthmus_proto::type_url::LOCAL_BINDING;
use isthmus_store::{Persistence, Record, Source};

use crate::control::Control;
use crate::snapshot::LearnedBindings;

/// The file in the state directory.
const FILE: &str = "bindings.db";
/// The kind of the store's keys.
const KIND: &str = "binding/";
/// Bindings of an agent: as many as it can allot, the callers, and the identities of this gateway.
const MOST: usize = MAX_NAMES + 2;

/// The accepted bindings, as a source for the store.
pub(super) struct Bindings(Mutex<Accepted>);

struct Accepted {
    control: Arc<Control>,
    /// The name of the list of identities of this gateway.
    own: String,
    /// All of the agent's bindings are needed by a listener.
    follows_all: bool,
    /// Encoded bindings by the names of their resources.
    all: BTreeMap<String, Vec<u8>>,
    persistence: Option<Persistence>,
    /// The versions were sent to an agent: bindings that it does not name are removed.
    are_versions_sent: bool,
}

/// What changes in the tables: a new or changed binding, or the name of one that is gone.
type Changes = Vec<(String, Option<LocalBinding>)>;

impl Bindings {
    /// Opens the store; bindings of the state directory, if any, are in use when this returns.
    pub(super) fn begin(control: Arc<Control>, own: &SpiffeId, state: Option<&Path>) -> Arc<Bindings> {
        let follows_all = control.process.fixed.follows_bindings;
        let accepted = Accepted {
            control,
            own: granted_name(own),
            follows_all,
            all: BTreeMap::new(),
            persistence: None,
            are_versions_sent: false,
        };
        let bindings = Arc::new(Bindings(Mutex::new(accepted)));
        let Some(folder) = state.filter(|_| follows_all) else { return bindings };
        let (mut persistence, records) = Persistence::open("bindings", folder, FILE);
        bindings.locked().restore(records, Some(&persistence));
        let source = Arc::<Bindings>::downgrade(&bindings);
        persistence.begin(source);
        bindings.locked().persistence = Some(persistence);
        bindings
    }

    fn locked(&self) -> MutexGuard<'_, Accepted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client of all bindings, or of this gateway's identities alone.
    pub(super) fn client(&self) -> Client {
        let accepted = self.locked();
        if accepted.follows_all {
            return Client::of_tables(LOCAL_BINDING);
        }
        let mut client = Client::of_names(LOCAL_BINDING);
        let _first = client.set_names(&BTreeSet::from([accepted.own.clone()]));
        client
    }

    /// Accepts what is valid of an update; of what is not, the last valid one stays.
    pub(super) fn apply(&self, update: &Update) -> Vec<Refused> {
        self.locked().apply(update)
    }

    /// Returns the versions of the accepted bindings, by name, for the first request of a stream.
    pub(super) fn versions(&self) -> HashMap<String, String> {
        let mut accepted = self.locked();
        accepted.are_versions_sent = true;
        accepted.all.iter().map(|(name, bytes)| (name.clone(), version(bytes))).collect()
    }
}

impl Source for Bindings {
    fn keys(&self) -> Vec<String> {
        self.locked().all.keys().map(|name| key(name)).collect()
    }

    fn values(&self, keys: &[String]) -> Vec<Option<Vec<u8>>> {
        let accepted = self.locked();
        keys.iter().map(|key| accepted.all.get(key.strip_prefix(KIND)?).cloned()).collect()
    }

    fn restore(&self, records: Vec<Record>) {
        let mut accepted = self.locked();
        // The agent was told the versions without these and would never remove them. All are rewritten next.
        if !accepted.are_versions_sent {
            accepted.restore(records, None);
        }
    }
}

fn key(name: &str) -> String {
    format!("{KIND}{name}")
}

impl Accepted {
    /// Stores a valid binding; none if it is known.
    fn insert(&mut self, name: &str, bytes: &[u8]) -> Result<Option<LocalBinding>, String> {
        let binding = LocalBinding::decode(name, bytes).map_err(|error: WireError| error.to_string())?;
        if self.all.get(name).is_some_and(|known| known == bytes) {
            return Ok(None);
        }
        if !self.all.contains_key(name) && self.all.len() >= MOST {
            return Err(format!("is one of more than {MOST} bindings"));
        }
        self.all.insert(name.to_owned(), bytes.to_vec());
        Ok(Some(binding))
    }

    fn apply(&mut self, update: &Update) -> Vec<Refused> {
        let (mut changes, mut refused) = (Changes::new(), Vec::new());
        for Resource { name, bytes, version: _ } in &update.resources {
            match self.insert(name, bytes) {
                Ok(None) => {}
                Ok(Some(binding)) => changes.push((name.clone(), Some(binding))),
                Err(why) => {
                    tracing::warn!(binding = ?name, %why, "binding refused");
                    refused.push(Refused { name: name.clone(), why });
                }
            }
        }
        for name in &update.removed {
            if self.all.remove(name).is_some() {
                changes.push((name.clone(), None));
            }
        }
        if let Some(persistence) = &self.persistence {
            changes.iter().for_each(|(name, _)| persistence.changed(key(name)));
        }
        self.bind(changes);
        self.control.following.send_modify(|following| following.refused(&refused));
        refused
    }

    fn restore(&mut self, records: Vec<Record>, persistence: Option<&Persistence>) {
        let mut changes = Changes::new();
        for (key, bytes) in records {
            let name = key.strip_prefix(KIND).unwrap_or(&key);
            match self.insert(name, &bytes) {
                Ok(binding) => changes.extend(binding.map(|binding| (name.to_owned(), Some(binding)))),
                Err(why) => {
                    tracing::warn!(binding = ?name, %why, "ignoring an invalid persisted binding");
                    persistence.into_iter().for_each(|persistence| persistence.changed(key.clone()));
                }
            }
        }
        self.bind(changes);
    }

    fn bind(&self, changes: Changes) {
        let (granted, changes): (Changes, Changes) =
            changes.into_iter().partition(|(name, _)| is_granted_name(name));
        for (name, binding) in &granted {
            if let Some(LocalBinding::Granted(granted)) = binding.as_ref().filter(|_| *name == self.own) {
                self.give_up_all_but(granted);
            }
        }
        if changes.is_empty() {
            return;
        }
        tracing::debug!(changes = changes.len(), bindings = self.all.len(), "bindings changed");
        self.control.bind(|known| {
            for (name, binding) in changes {
                change(known, &name, binding);
            }
        });
    }

    /// Live connections that present another identity are ended by `recheck`.
    fn give_up_all_but(&self, granted: &Granted) {
        let tables = self.control.process.tables.load();
        for identity in tables.ends.issued.keep_granted(granted) {
            tracing::warn!(%identity, "certificate given up: the agent does not list the identity for this gateway any more");
        }
    }
}

fn change(known: &mut LearnedBindings, name: &str, binding: Option<LocalBinding>) {
    match binding {
        Some(LocalBinding::Name(binding)) => {
            known.hosts.insert(binding.host.clone(), Arc::new(binding));
        }
        Some(LocalBinding::Callers(callers)) => known.callers = Arc::new(callers),
        // It is in no table.
        Some(LocalBinding::Granted(_)) => {}
        None => match name.strip_prefix("name/") {
            Some(host) => _ = known.hosts.remove(host),
            None => known.callers = Arc::default(),
        },
    }
}
