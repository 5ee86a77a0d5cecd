//! Certificates that the agent issues for callers and for services whose TLS ends here, and the TLS made of them. They are
//! in memory alone: a gateway that starts without an agent has none. `enrol` requests them.

mod wanted;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use isthmus_certs::facts::Facts;
use isthmus_certs::home::renew_at;
use isthmus_certs::trust::Expiry;
use isthmus_certs::{Identity, Peer, Server, SpiffeId, Trust, TrustBundles};
use isthmus_model::HostPattern;
use isthmus_model::binding::Granted;

pub use wanted::Wanted;

use crate::clients::{Clients, NoCertificate, bytes};

/// TLS servers that are kept; with more, all are made anew, and sessions are not resumed.
const MAX_MADE: usize = 4_096;
const TAKEN_BACK: &str = "the agent does not list it in `identities` of this gateway any more";

/// A service and everything that its configuration depends on.
type Door = (HostPattern, u16, SpiffeId, Vec<String>);

/// The issued certificates.
#[derive(Debug, Default)]
pub struct Issued(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<SpiffeId, Entry>,
    servers: HashMap<Door, Arc<Server>>,
    clients: HashMap<SpiffeId, Arc<Clients>>,
    /// Changes of identities that are gone or taken back.
    ended: u64,
}

/// One identity that is needed.
#[derive(Debug, Default)]
struct Entry {
    installed: Option<Installed>,
    /// Why it has no certificate, or no new one.
    problem: Option<String>,
    /// The gateway had the right to it, and has it no more.
    is_taken_back: bool,
}

impl Entry {
    fn changes(&self) -> u64 {
        self.installed.as_ref().map_or(0, |installed| installed.trust.current().epoch)
    }
}

#[derive(Debug)]
struct Installed {
    trust: Trust,
    until: SystemTime,
    due: SystemTime,
}

/// The state of one identity, for pages and metrics.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// The identity.
    pub(crate) identity: SpiffeId,
    /// When its certificate expires.
    pub(crate) until: Option<SystemTime>,
    /// When it is renewed.
    pub(crate) due: Option<SystemTime>,
    /// Why there is no certificate, or no new one.
    pub(crate) problem: Option<String>,
}

impl Report {
    /// Whether connections that need the certificate are refused.
    pub(crate) fn is_missing(&self, now: SystemTime) -> bool {
        self.until.is_none_or(|until| until <= now)
    }
}

impl Issued {
    /// Returns the TLS server of a service with an identity's certificate.
    ///
    /// # Errors
    /// There is no usable certificate.
    pub(crate) fn server(
        &self,
        (host, port): (&HostPattern, u16),
        identity: &SpiffeId,
        alpn: &[String],
    ) -> Result<Arc<Server>, NoCertificate> {
        let mut state = self.lock();
        let trust = state.trust(identity, SystemTime::now())?;
        let key: Door = (host.clone(), port, identity.clone(), alpn.to_vec());
        if let Some(known) = state.servers.get(&key) {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(Server::gated(trust, Peer::Trusted, &bytes(alpn)).map_err(Arc::new)?);
        make_room(&mut state.servers);
        state.servers.insert(key, Arc::clone(&made));
        Ok(made)
    }

    /// Returns the TLS clients of a caller.
    ///
    /// # Errors
    /// There is no usable certificate.
    pub(crate) fn clients(&self, caller: &SpiffeId) -> Result<Arc<Clients>, NoCertificate> {
        let mut state = self.lock();
        let trust = state.trust(caller, SystemTime::now())?;
        if let Some(known) = state.clients.get(caller) {
            return Ok(Arc::clone(known));
        }
        let made = Arc::new(Clients::new(trust));
        state.clients.insert(caller.clone(), Arc::clone(&made));
        Ok(made)
    }

    /// Grows with each change of trust by which handshakes are judged.
    pub(crate) fn trust_changes(&self) -> u64 {
        let state = self.lock();
        state.ended + state.entries.values().map(Entry::changes).sum::<u64>()
    }

    /// Whether the gateway has shown this identity and may not any more.
    pub(crate) fn is_taken_back(&self, id: &SpiffeId) -> bool {
        self.lock().entries.get(id).is_some_and(|entry| entry.is_taken_back)
    }

    /// Gives up the certificates that the gateway may not have any more, whatever they are valid for; returns their
    /// identities.
    pub(crate) fn keep_granted(&self, granted: &Granted) -> Vec<SpiffeId> {
        let mut state = self.lock();
        let State { entries, servers, clients, ended } = &mut *state;
        let mut given_up = Vec::new();
        for (id, entry) in entries.iter_mut() {
            if granted.covers(id) || entry.installed.is_none() {
                continue;
            }
            *ended += 1 + entry.changes();
            *entry = Entry { problem: Some(TAKEN_BACK.to_owned()), is_taken_back: true, installed: None };
            given_up.push(id.clone());
        }
        servers.retain(|(_, _, identity, _), _| !given_up.contains(identity));
        clients.retain(|caller, _| !given_up.contains(caller));
        given_up
    }

    /// Returns the state of each identity.
    pub(crate) fn report(&self) -> Vec<Report> {
        let state = self.lock();
        let report = |(identity, entry): (&SpiffeId, &Entry)| Report {
            identity: identity.clone(),
            until: entry.installed.as_ref().map(|installed| installed.until),
            due: entry.installed.as_ref().map(|installed| installed.due),
            problem: entry.problem.clone(),
        };
        state.entries.iter().map(report).collect()
    }

    /// Returns the expiry of each certificate.
    pub(crate) fn expiries(&self) -> Vec<Expiry> {
        let state = self.lock();
        let installed = state.entries.values().filter_map(|entry| entry.installed.as_ref());
        installed.flat_map(|installed| installed.trust.expiries()).collect()
    }

    /// Forgets identities that are not needed any more, and lists new ones.
    pub(crate) fn keep_only<'a>(&self, needed: impl Iterator<Item = &'a SpiffeId>) {
        let mut state = self.lock();
        let mut before = std::mem::take(&mut state.entries);
        state.entries = needed.map(|id| (id.clone(), before.remove(id).unwrap_or_default())).collect();
        state.ended += before.values().map(Entry::changes).sum::<u64>();
        let State { entries, servers, clients, .. } = &mut *state;
        servers.retain(|(_, _, identity, _), _| entries.contains_key(identity));
        clients.retain(|caller, _| entries.contains_key(caller));
    }

    /// When the certificate of an identity is renewed; none: there is none.
    pub(crate) fn due(&self, id: &SpiffeId) -> Option<SystemTime> {
        self.lock().entries.get(id)?.installed.as_ref().map(|installed| installed.due)
    }

    /// Uses a new certificate for new connections, and keeps the sessions of neither side.
    pub(crate) fn accept(&self, identity: Identity, bundles: &Arc<TrustBundles>) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(identity.id()) else { return };
        let Some(facts) = identity.chain().first().and_then(|leaf| Facts::read(leaf).ok()) else { return };
        let (until, due) = (facts.not_after.into(), renew_at(&facts).into());
        let trust = match entry.installed.take() {
            Some(Installed { trust, .. }) => {
                trust.replace(identity, Arc::clone(bundles));
                trust
            }
            None => Trust::new(identity, Arc::clone(bundles)),
        };
        let installed = Some(Installed { trust, until, due });
        *entry = Entry { installed, problem: None, is_taken_back: false };
    }

    /// Records why an identity has no new certificate; true if that is news.
    pub(crate) fn failed(&self, id: &SpiffeId, why: String) -> bool {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(id) else { return false };
        entry.problem.replace(why.clone()) != Some(why)
    }

    /// Verifies peers by these bundles from now on.
    pub(crate) fn use_bundles(&self, bundles: &Arc<TrustBundles>) {
        let state = self.lock();
        for installed in state.entries.values().filter_map(|entry| entry.installed.as_ref()) {
            let current = installed.trust.current();
            if !Arc::ptr_eq(&current.bundles, bundles) {
                installed.trust.replace(Arc::clone(&current.identity), Arc::clone(bundles));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn trust(&self, identity: &SpiffeId, now: SystemTime) -> Result<Trust, NoCertificate> {
        let entry = self.entries.get(identity);
        let why = entry.and_then(|entry| entry.problem.clone());
        match entry.and_then(|entry| entry.installed.as_ref()) {
            Some(installed) if installed.until > now => Ok(installed.trust.clone()),
            Some(_) => Err(NoCertificate::Expired { identity: identity.clone(), why }),
            None => Err(NoCertificate::NotIssued { identity: identity.clone(), why }),
        }
    }
}

fn make_room<K, V>(made: &mut HashMap<K, V>) {
    if made.len() >= MAX_MADE {
        made.clear();
    }
}
