//! Registered VMs: each registration is one instance of a service, and lives as long as its heartbeats. Pure:
//! time and randomness are arguments. HTTP is in the agent, persistence in `records`.

mod attributes;
mod fit;
pub mod lease;
mod names;
pub mod records;
pub mod registrar;
pub mod registration;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::time::{Duration, Instant};

use crate::exports::covers;
use isthmus_model::address::Target;
use isthmus_model::admin::agent;
use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::services::Service;
use isthmus_model::units::show_duration;

use fit::{check_beside, default_port};
use lease::{Digest, LeaseId};
use names::Names;
use records::Unsaved;
use registrar::Registrar;
use registration::Registration;

/// Advised heartbeats per TTL: two may get lost.
const BEATS: u32 = 3;

/// The limits of registrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Registrations of all registrars together.
    pub all: usize,
    /// Registrations of one registrar.
    pub each: usize,
    /// Bytes of all registrations together, as stored.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { all: 10_000, each: 1_000, bytes: 32 << 20 }
    }
}

/// Identifies a registration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The host of the service.
    pub host: HostPattern,
    /// The port of the service.
    pub port: u16,
    /// The instance of the service.
    pub instance: HostName,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}:{}", self.instance, self.host, self.port)
    }
}

/// The answer to a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Sent to the first registrar, and to a registrar that shows it; required to move or end the
    /// registration.
    pub id: Option<LeaseId>,
    /// The registration ends after this time without a heartbeat.
    pub ttl: Duration,
}

impl Lease {
    /// The lease as the admin API answers it.
    #[must_use]
    pub fn page(&self) -> agent::Lease {
        agent::Lease {
            lease: self.id.as_ref().map(LeaseId::hex),
            ttl: show_duration(self.ttl),
            heartbeat_every: show_duration(self.ttl / BEATS),
        }
    }
}

/// Why a registration or a heartbeat is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The request is invalid; one line per error.
    #[error("{0}")]
    Wrong(String),
    /// The lease does not exist.
    #[error("unknown lease: it has ended or never existed; register again")]
    Unknown,
    /// The same instance is registered with another address.
    #[error(
        "{identity} is already registered at {held}; show its lease to move it, end that registration, or wait until it has sent no heartbeat for {}", show_duration(*ttl)
    )]
    Taken {
        /// The registration.
        identity: Box<Identity>,
        /// Its registered address.
        held: Box<Target>,
        /// Its TTL.
        ttl: Duration,
    },
    /// Another registrar has registered it.
    #[error(
        "{0} was registered by another user or token; show its lease to take it over, or wait until it ends"
    )]
    Anothers(Box<Identity>),
    /// The registrar has reached its limit.
    #[error("{0} already has {1} registrations; end some, or use another user or token")]
    FullShare(Registrar, usize),
    /// It contradicts other definitions of the service.
    #[error("{0}")]
    Conflict(String),
    /// The agent has reached its limit.
    #[error("the limit of {} registrations or {} MiB is reached; end some", .0.all, .0.bytes >> 20)]
    Full(Limits),
}

/// All registrations of an agent.
#[derive(Debug, Default)]
pub struct Registered {
    limits: Limits,
    ports: BTreeMap<(HostPattern, u16), BTreeMap<HostName, RegisteredInstance>>,
    leases: HashMap<Digest, Identity>,
    names: Names,
    /// The number of registrations by registrar.
    by: BTreeMap<Registrar, usize>,
    bytes: usize,
    /// No lease ends before this time.
    earliest: Option<Instant>,
    /// Changes since the last call of [`Registered::changed`]; heartbeats are not changes.
    unsaved: Unsaved,
    /// Hosts that changed since the last look.
    touched: BTreeSet<HostPattern>,
}

#[derive(Debug)]
struct RegisteredInstance {
    registration: Registration,
    lease: Digest,
    deadline: Instant,
}

impl Registered {
    /// Adds a registration, or takes it as a heartbeat if it exists. The same instance may change its
    /// attributes, and with its lease also its address. `files` are the services of other sources, and
    /// `fresh` is the lease for a new registration.
    ///
    /// # Errors
    /// It contradicts another registration or `files`, or a limit is reached. Nothing has changed then.
    pub fn register<'a>(
        &mut self,
        registration: Registration,
        by: &Registrar,
        files: impl IntoIterator<Item = &'a Service, IntoIter: Clone>,
        fresh: LeaseId,
        now: Instant,
    ) -> Result<Lease, Refused> {
        self.expire(now);
        let registration = registration.owned_by(by.clone())?;
        let identity = registration.identity();
        let ttl = registration.ttl;
        let shown = registration.lease;
        let held = self.held(&identity);
        let proven = shown.filter(|shown| held.is_some_and(|held| held.lease == shown.digest()));
        if let Some(held) = held
            && held.registration.address() != registration.address()
            && proven.is_none()
        {
            let (held, ttl) = (Box::new(held.registration.address().clone()), held.registration.ttl);
            return Err(Refused::Taken { identity: Box::new(identity), held, ttl });
        }
        let owner = held.and_then(|held| held.registration.by.as_ref());
        if owner.is_some_and(|owner| owner != by) && proven.is_none() {
            return Err(Refused::Anothers(Box::new(identity)));
        }
        let (id, lease) = match held {
            Some(held) => (proven, held.lease),
            None => (Some(fresh), fresh.digest()),
        };
        if held.is_none_or(|held| held.registration.text != registration.text) {
            self.check(&registration, &identity)?;
            self.check_bare(&registration, &identity)?;
            check_beside(&registration, files.into_iter())?;
            self.insert(registration, identity, lease, now)?;
        } else {
            self.beat(&identity, now);
        }
        Ok(Lease { id, ttl })
    }

    /// Renews a registration.
    ///
    /// # Errors
    /// The lease does not exist.
    pub fn heartbeat(&mut self, id: &LeaseId, now: Instant) -> Result<Lease, Refused> {
        self.expire(now);
        let identity = self.leases.get(&id.digest()).cloned().ok_or(Refused::Unknown)?;
        let ttl = self.beat(&identity, now).ok_or(Refused::Unknown)?;
        Ok(Lease { id: Some(*id), ttl })
    }

    /// Ends a registration, and returns its identity.
    ///
    /// # Errors
    /// The lease does not exist.
    pub fn deregister(&mut self, id: &LeaseId) -> Result<Identity, Refused> {
        let identity = self.leases.get(&id.digest()).cloned().ok_or(Refused::Unknown)?;
        self.remove(&identity);
        Ok(identity)
    }

    /// Ends registrations without heartbeats. Returns whether there were any.
    pub fn expire(&mut self, now: Instant) -> bool {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return false;
        }
        let all = || self.ports.values().flat_map(BTreeMap::values);
        let ended: Vec<_> =
            all().filter(|held| held.deadline <= now).map(RegisteredInstance::identity).collect();
        self.earliest = all().map(|held| held.deadline).filter(|deadline| *deadline > now).min();
        for identity in &ended {
            self.remove(identity);
        }
        !ended.is_empty()
    }

    /// Ends registrations without heartbeats; returns the hosts that changed since the last look,
    /// if any.
    pub fn poll(&mut self, now: Instant) -> Option<BTreeSet<HostPattern>> {
        self.expire(now);
        let touched = std::mem::take(&mut self.touched);
        (!touched.is_empty()).then_some(touched)
    }

    /// When [`Registered::look`] is due without another call; none: there is no registration.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.earliest
    }

    /// The number of registrations.
    #[must_use]
    pub fn count(&self) -> usize {
        self.leases.len()
    }

    /// The number of registrations by registrar.
    #[must_use]
    pub fn registrars(&self) -> &BTreeMap<Registrar, usize> {
        &self.by
    }

    /// Registered hosts under a wildcard; none if the pattern is not a wildcard.
    pub fn under(&self, wildcard: &HostPattern) -> impl Iterator<Item = &HostPattern> {
        let is_wildcard = matches!(wildcard, HostPattern::Suffix(_));
        let hosts = is_wildcard.then(|| self.ports.keys()).into_iter().flatten();
        hosts.map(|(host, _)| host).filter(move |host| covers(wildcard, host))
    }

    /// The resulting services: each host and port once, with all of its instances.
    #[must_use]
    pub fn services(&self) -> Vec<Service> {
        self.made_of(self.ports.iter())
    }

    /// The resulting services of one host.
    #[must_use]
    pub fn services_for(&self, host: &HostPattern) -> Vec<Service> {
        self.made_of(self.ports.range((host.clone(), 0)..=(host.clone(), u16::MAX)))
    }

    fn made_of<'a>(
        &self,
        ports: impl Iterator<Item = (&'a (HostPattern, u16), &'a BTreeMap<HostName, RegisteredInstance>)>,
    ) -> Vec<Service> {
        let mut services = Vec::new();
        for ((host, port), instances) in ports {
            let mut all = instances.values().map(|held| &held.registration);
            let Some(first) = all.next() else { continue };
            let mut service = first.service.clone();
            for other in all {
                for attribute in &other.said {
                    (attribute.take)(&mut service, &other.service);
                }
                service.endpoints.extend(other.service.endpoints.iter().cloned());
            }
            service.default_port = default_port(self.sayings(host, None)) == Some(*port);
            services.push(service);
        }
        services
    }

    fn held(&self, identity: &Identity) -> Option<&RegisteredInstance> {
        self.ports.get(&(identity.host.clone(), identity.port))?.get(&identity.instance)
    }

    fn beat(&mut self, identity: &Identity, now: Instant) -> Option<Duration> {
        let instances = self.ports.get_mut(&(identity.host.clone(), identity.port))?;
        let held = instances.get_mut(&identity.instance)?;
        held.deadline = now + held.registration.ttl;
        Some(held.registration.ttl)
    }

    fn insert(
        &mut self,
        registration: Registration,
        identity: Identity,
        lease: Digest,
        now: Instant,
    ) -> Result<(), Refused> {
        let before = self.held(&identity).map(|held| &held.registration);
        let bytes = self.bytes - before.map_or(0, |before| before.text.len()) + registration.text.len();
        if bytes > self.limits.bytes || (before.is_none() && self.count() >= self.limits.all) {
            return Err(Refused::Full(self.limits));
        }
        if let Some(by) = &registration.by
            && before.is_none_or(|before| before.by.as_ref() != Some(by))
            && self.by.get(by).is_some_and(|count| *count >= self.limits.each)
        {
            return Err(Refused::FullShare(by.clone(), self.limits.each));
        }
        let owner = before.and_then(|before| before.by.clone());
        self.count_out(owner.as_ref());
        if let Some(by) = &registration.by {
            *self.by.entry(by.clone()).or_default() += 1;
        }
        let before = self.held(&identity).map(|held| &held.registration);
        let before = before.map(|before| before.service.clone());
        self.names.replace(before.as_ref(), Some(&registration.service));
        let deadline = now + registration.ttl;
        self.bytes = bytes;
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        self.unsaved.insert(lease);
        self.touched.insert(identity.host.clone());
        self.leases.insert(lease, identity.clone());
        let instances = self.ports.entry((identity.host, identity.port)).or_default();
        instances.insert(identity.instance, RegisteredInstance { registration, lease, deadline });
        Ok(())
    }

    fn count_out(&mut self, by: Option<&Registrar>) {
        let Some(count) = by.and_then(|by| self.by.get_mut(by)) else { return };
        *count -= 1;
        if *count == 0 {
            self.by.retain(|_, count| *count > 0);
        }
    }

    fn remove(&mut self, identity: &Identity) {
        let key = (identity.host.clone(), identity.port);
        let Some(instances) = self.ports.get_mut(&key) else { return };
        let Some(held) = instances.remove(&identity.instance) else { return };
        if instances.is_empty() {
            self.ports.remove(&key);
        }
        self.leases.remove(&held.lease);
        self.count_out(held.registration.by.as_ref());
        self.names.replace(Some(&held.registration.service), None);
        self.bytes -= held.registration.text.len();
        self.unsaved.insert(held.lease);
        self.touched.insert(identity.host.clone());
    }
}

impl RegisteredInstance {
    fn identity(&self) -> Identity {
        self.registration.identity()
    }
}

#[cfg(test)]
mod tests;
