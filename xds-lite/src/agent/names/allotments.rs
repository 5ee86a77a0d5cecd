//! What is allotted to names, and its stored form: addresses of the virtual ranges, and ports. Time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use isthmus_model::allotment::{Exhausted, Stored};
use isthmus_model::host::HostName;
use isthmus_model::port_allotment::{AllottedPorts, HostPort};
use isthmus_model::virtual_address::VirtualAddresses;
use isthmus_store::{Store, StoreError};

use super::shards::{Allotted, Shards};
use super::wanted::NameFacts;
use super::{Name, NamePort};
use crate::agent::config::NameRanges;

/// Dropped addresses and ports that are logged one by one.
const LOGGED: usize = 100;
/// Other processes that may write between two attempts of this one.
const ATTEMPTS: usize = 3;

/// What is allotted.
#[derive(Debug)]
pub(super) struct Allotments {
    ranges: NameRanges,
    addresses: VirtualAddresses,
    ports: Option<AllottedPorts>,
    /// None without a state directory.
    shards: Option<Shards>,
    /// The stored form was read.
    is_loaded: bool,
    /// Names that were wanted before a restart, and may be again once all slices are known.
    before: BTreeMap<HostName, NameFacts>,
}

/// What names have.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) names: BTreeMap<HostName, Arc<Name>>,
    /// Addresses and ports that names lack.
    pub(super) exhausted: Vec<Exhausted>,
    /// Why it could not be persisted.
    pub(super) unsaved: Option<StoreError>,
}

enum Persisted {
    Done,
    /// The stored form was read, because it had not been or another process has changed it.
    Reloaded,
}

impl Allotments {
    /// What a store has. One that cannot be read now is read later.
    pub(super) fn open(ranges: NameRanges, store: Option<Arc<dyn Store>>) -> Allotments {
        let mut allotments = Allotments {
            ranges,
            addresses: VirtualAddresses::default(),
            ports: None,
            shards: store.map(Shards::new),
            is_loaded: false,
            before: BTreeMap::new(),
        };
        allotments.restore(Allotted::default());
        // The store reports its own health.
        if allotments.load().is_ok() {
            allotments.before = allotments.wanted();
        }
        allotments
    }

    /// Gives each name its addresses and ports, those of before a restart included, and persists them.
    pub(super) fn settle(&mut self, names: &BTreeMap<HostName, NameFacts>, now: SystemTime) -> Settled {
        let mut settled = self.want(names.clone(), now);
        for _ in 0..ATTEMPTS {
            match self.persist() {
                Ok(Persisted::Done) => return settled,
                // What was stored goes before what was allotted just now.
                Ok(Persisted::Reloaded) => settled = self.want(names.clone(), now),
                Err(error) => {
                    settled.unsaved = Some(error);
                    return settled;
                }
            }
        }
        settled.unsaved = Some(StoreError::Conflict("names".to_owned()));
        settled
    }

    fn want(&mut self, mut names: BTreeMap<HostName, NameFacts>, now: SystemTime) -> Settled {
        for (name, facts) in &self.before {
            names.entry(name.clone()).or_insert_with(|| facts.clone());
        }
        let hosts: BTreeSet<HostName> = names.keys().cloned().collect();
        let mut exhausted = self.addresses.want(&hosts, now);
        if let Some(allotted) = &mut self.ports {
            let ports = names.iter().flat_map(|(host, facts)| {
                facts.ports.iter().map(|port| HostPort { host: host.clone(), port: *port })
            });
            exhausted.extend(allotted.want(&ports.collect(), now));
        }
        let name = |(host, facts): (HostName, NameFacts)| {
            let name = self.name(&host, facts);
            (host, Arc::new(name))
        };
        Settled { names: names.into_iter().map(name).collect(), exhausted, unsaved: None }
    }

    fn name(&self, host: &HostName, facts: NameFacts) -> Name {
        let listener_port = |port| {
            let key = HostPort { host: host.clone(), port };
            self.ports.as_ref().and_then(|ports| ports.get(&key))
        };
        let ports = facts.ports.into_iter();
        Name {
            aliases: facts.aliases.into_iter().collect(),
            addresses: self.addresses.get(host),
            ports: ports.map(|port| NamePort { port, listener_port: listener_port(port) }).collect(),
            is_own: facts.is_own,
        }
    }

    fn persist(&mut self) -> Result<Persisted, StoreError> {
        let all = self.allotted();
        let Some(shards) = &mut self.shards else { return Ok(Persisted::Done) };
        if self.is_loaded {
            match shards.save(&all) {
                Err(StoreError::Conflict(_)) => {}
                saved => return saved.map(|()| Persisted::Done),
            }
        }
        self.load()?;
        Ok(Persisted::Reloaded)
    }

    /// All slices are known: names of before a restart that have not returned are freed.
    pub(super) fn forget_before(&mut self) {
        self.before.clear();
    }

    fn load(&mut self) -> Result<(), StoreError> {
        let Some(shards) = &mut self.shards else { return Ok(()) };
        let stored = shards.load()?;
        self.is_loaded = true;
        self.restore(stored);
        Ok(())
    }

    fn restore(&mut self, stored: Allotted) {
        let (addresses, unfit) = VirtualAddresses::restored(self.ranges.addresses, stored.addresses);
        self.addresses = addresses;
        let mut dropped: Vec<String> = unfit.v6.iter().map(dropping).collect();
        dropped.extend(unfit.v4.iter().map(dropping));
        match self.ranges.ports {
            Some(range) => {
                let (ports, unfit) = AllottedPorts::restored(range, stored.ports);
                self.ports = Some(ports);
                dropped.extend(unfit.iter().map(dropping));
            }
            None => dropped.extend(stored.ports.iter().map(dropping)),
        }
        for what in dropped.iter().take(LOGGED) {
            tracing::warn!(
                "{what}, which is outside the configured ranges or taken; the name gets another one"
            );
        }
        if dropped.len() > LOGGED {
            tracing::warn!(
                dropped = dropped.len(),
                "dropped more stored addresses and ports than are logged"
            );
        }
    }

    fn allotted(&self) -> Allotted {
        let ports = self.ports.iter().flat_map(AllottedPorts::stored).collect();
        Allotted { addresses: self.addresses.stored(), ports }
    }

    /// The names that are wanted, as far as the stored form tells.
    fn wanted(&self) -> BTreeMap<HostName, NameFacts> {
        let hosts = self.addresses.wanted().into_iter();
        let mut names: BTreeMap<_, _> = hosts.map(|host| (host, NameFacts::default())).collect();
        for (key, _) in self.ports.iter().flat_map(AllottedPorts::wanted) {
            names.entry(key.host.clone()).or_default().ports.insert(key.port);
        }
        names
    }
}

fn dropping<N: fmt::Display, P: fmt::Display>(stored: &Stored<N, P>) -> String {
    format!("dropped {} of {}", stored.place, stored.name)
}
