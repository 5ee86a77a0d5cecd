//! Checks a registration against the other registrations and against other sources. Conflicts are refused by
//! name, so that no VM changes the meaning of a service for its clients.

use std::collections::{BTreeMap, HashSet};

use crate::exports::covers;
use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::services::{Endpoint, Service};

use super::attributes::Attribute;
use super::names;
use super::registration::Registration;
use super::{Identity, Refused, Registered, RegisteredInstance};

impl Registered {
    /// Checks a registration against the others, except the one that it replaces.
    pub(super) fn check(&self, new: &Registration, identity: &Identity) -> Result<(), Refused> {
        let others = |held: &&RegisteredInstance| held.registration.instance != new.instance;
        let same = self.ports.get(&(identity.host.clone(), identity.port));
        for held in same.into_iter().flat_map(BTreeMap::values).filter(others) {
            let other = &held.registration;
            let both = |attribute: &&&Attribute| other.said.iter().any(|said| said.key == attribute.key);
            let differ = |attribute: &&&Attribute| !(attribute.same)(&new.service, &other.service);
            if let Some(attribute) = new.said.iter().filter(both).find(differ) {
                return Err(contradicts(new, attribute.key, &held.identity().to_string()));
            }
            if other.address() == new.address() {
                return Err(Refused::Conflict(format!(
                    "{identity}: {} is already registered as {}; each instance needs its own address",
                    new.address(),
                    held.identity()
                )));
            }
        }
        let sayings = self.sayings(&identity.host, Some(identity));
        if let Some(own) = new.sni_port
            && let Some(said) = sayings.filter_map(|saying| saying.default_port).find(|said| *said != own)
        {
            return Err(means_already(identity, said));
        }
        match self.names.taken(&new.service) {
            Some((name, owner)) => Err(has_name(identity, name, owner)),
            None => Ok(()),
        }
    }

    /// Checks that the default port of the host stays the same. (It would change if the only port gets a
    /// second one beside it without an explicit default.)
    pub(super) fn check_bare(&self, new: &Registration, identity: &Identity) -> Result<(), Refused> {
        let others = self.sayings(&identity.host, Some(identity));
        let Some(before) = default_port(others.clone()) else { return Ok(()) };
        let own = Saying { port: identity.port, default_port: new.sni_port };
        if default_port(others.chain([own])) == Some(before) {
            return Ok(());
        }
        Err(means_already(identity, before))
    }

    /// The ports of a host as each instance declares them, except one instance.
    pub(super) fn sayings<'a>(
        &'a self,
        host: &HostPattern,
        but: Option<&'a Identity>,
    ) -> impl Iterator<Item = Saying> + Clone + use<'a> {
        let ports = self.ports.range((host.clone(), 0)..=(host.clone(), u16::MAX));
        ports.flat_map(move |((_, port), instances)| {
            let but = but.filter(|but| but.port == *port).map(|but| &but.instance);
            let others = instances.iter().filter(move |(instance, _)| Some(*instance) != but);
            others.map(|(_, held)| Saying { port: *port, default_port: held.registration.sni_port })
        })
    }
}

/// What one instance declares about the ports of its host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saying {
    /// The port that it serves.
    port: u16,
    /// The default port that it sets.
    default_port: Option<u16>,
}

/// The default port of a host: the declared one, or the only one.
pub(super) fn default_port(mut sayings: impl Iterator<Item = Saying> + Clone) -> Option<u16> {
    let declared = sayings.clone().find_map(|saying| saying.default_port);
    declared.or_else(|| {
        let first = sayings.next()?.port;
        sayings.all(|saying| saying.port == first).then_some(first)
    })
}

/// Checks a registration against other sources: it may join their services only where they allow it, and
/// must not take any of their names.
pub(super) fn check_beside<'a>(
    new: &Registration,
    files: impl Iterator<Item = &'a Service> + Clone,
) -> Result<(), Refused> {
    const THEIRS: &str = "the registry's other sources";
    let identity = new.identity();
    let of_host = || files.clone().filter(|service| service.host == new.service.host);
    let bare = of_host().find(|service| service.default_port).map(|service| service.port);
    if new.sni_port.is_some() && of_host().next().is_some() && new.sni_port != bare {
        return Err(contradicts(new, "sni_port", THEIRS));
    }
    if of_host().next().is_some() && !of_host().any(|service| service.port == new.service.port) {
        return Err(Refused::Conflict(format!(
            "{identity}: the registry's files define this host without port {}; add the port there, \
             with `registered: true`",
            identity.port
        )));
    }
    for service in of_host().filter(|service| service.port == new.service.port) {
        if !service.takes_registrations() {
            return Err(Refused::Conflict(format!(
                "{identity}: a registry file defines this service without `registered: true`; add that \
                 there to let VMs register",
            )));
        }
        let differ = |attribute: &&&Attribute| !(attribute.same)(&new.service, service);
        if let Some(attribute) = new.said.iter().find(differ) {
            return Err(contradicts(new, attribute.key, THEIRS));
        }
        for endpoint in &service.endpoints {
            let named = endpoint.instance.as_ref() == Some(&new.instance);
            if named || endpoint.address == *new.address() {
                return Err(Refused::Conflict(format!(
                    "{identity}: another source of the registry already has this {}; remove it from one \
                     of them",
                    if named { "instance" } else { "address" },
                )));
            }
        }
    }
    let mine: HashSet<_> = names::all(&new.service).collect();
    let instances: Vec<_> = mine.iter().map(|name| (*name, as_instance(name))).collect();
    let others = files.clone().filter(|service| service.host != new.service.host);
    for other in others {
        if let Some(name) = names::all(other).find(|name| mine.contains(name)) {
            return Err(has_name(&identity, name, &other.host));
        }
        let closed = |_: &&HostPattern| !other.takes_registrations();
        let over = |wide: &&HostPattern| mine.iter().any(|name| covers(wide, name));
        if let Some(wildcard) = names::all(other).filter(closed).find(over) {
            return Err(Refused::Conflict(format!(
                "{identity}: a registry file defines {wildcard} without `registered: true`; add that there to let VMs \
                 register names under it"
            )));
        }
        if let Some((name, _)) =
            instances.iter().find(|(name, parts)| has_instance(other, name, parts.as_ref()))
        {
            return Err(has_name(&identity, name, &other.host));
        }
    }
    Ok(())
}

/// A name as that of an instance of another host: its first label, and the rest.
fn as_instance(name: &HostPattern) -> Option<(HostName, HostPattern)> {
    let HostPattern::Exact(name) = name else { return None };
    let (label, host) = name.as_str().split_once('.')?;
    Some((HostName::parse(label).ok()?, HostPattern::parse(host).ok()?))
}

/// Whether a name is that of one endpoint of a service; `parts` are the name's as an instance.
fn has_instance(service: &Service, name: &HostPattern, parts: Option<&(HostName, HostPattern)>) -> bool {
    let label = parts.filter(|(_, host)| service.host == *host).map(|(label, _)| label);
    let is_alias = |alias: &HostName| matches!(name, HostPattern::Exact(name) if name == alias);
    let is_meant = |endpoint: &Endpoint| {
        (label.is_some() && endpoint.instance.as_ref() == label) || endpoint.aliases.iter().any(is_alias)
    };
    service.endpoints.iter().any(is_meant)
}

fn has_name(identity: &Identity, name: &HostPattern, owner: &HostPattern) -> Refused {
    Refused::Conflict(format!("{identity}: {name} is already a name of {owner}; choose another"))
}

fn means_already(identity: &Identity, port: u16) -> Refused {
    let host = &identity.host;
    Refused::Conflict(format!(
        "{identity}: {host} without a port already means port {port}; set \"sni_port\": {port}"
    ))
}

fn contradicts(new: &Registration, key: &str, who: &str) -> Refused {
    let identity = new.identity();
    Refused::Conflict(format!("{identity}: {key} differs from that of {who}; use the same value, or omit it"))
}
