//! The tables that connections read: services, their endpoints and the names that lead to them,
//! compiled from valid settings into one immutable value. Not the look-up itself (that is `route`) and
//! not what changes while connections live (that is `endpoint`).

mod group;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use isthmus_xds::{HostName, HostPattern, Locality};

use crate::config::settings::{self, Ejection, Live, Reach, Side, Target};
use crate::endpoint::{EndpointState, ServiceState};
use crate::socket::Millis;

pub(crate) use group::Group;

/// All tables of one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts the snapshots of this process, from 1.
    pub epoch: u64,
    /// What they were compiled from, but for the services: each of those has its own.
    pub live: Live,
    /// In the configuration's order.
    pub services: Vec<Arc<Service>>,
    /// Shared with the tables before, if they have the same.
    pub(crate) names: Arc<Names>,
}

/// The names that lead to services.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) exact: HashMap<HostName, Claims>,
    pub(crate) suffixes: HashMap<HostName, Claims>,
    /// Whole other names of instances.
    pub(crate) instances: HashMap<HostName, Claims>,
}

/// The services that answer to one name, by index, the most specific conditions first. One, nearly
/// always: 100 000 names should not carry a vector each.
#[derive(Debug)]
pub(crate) enum Claims {
    One(u32),
    Many(Vec<u32>),
}

impl Claims {
    pub(crate) fn indexes(&self) -> &[u32] {
        match self {
            Claims::One(index) => std::slice::from_ref(index),
            Claims::Many(indexes) => indexes,
        }
    }
}

/// One service, ready to be balanced.
#[derive(Debug)]
pub struct Service {
    /// `host:port`, as logs and labels show it.
    pub name: Box<str>,
    /// What the configuration says of it.
    pub settings: Arc<settings::Service>,
    /// With addresses resolved; the drained ones too. Those of one group stand together, the nearest first.
    pub endpoints: Box<[Endpoint]>,
    nearest: Group,
    further: Box<[Group]>,
    /// An address was left out because it is this gateway's own.
    pub leads_back: bool,
    /// Some endpoints are given by names: what they resolve to changes.
    pub(crate) is_named: bool,
    /// What is remembered of it.
    pub state: Arc<ServiceState>,
}

/// One address of a service.
#[derive(Debug)]
pub struct Endpoint {
    /// Where to connect to.
    pub address: SocketAddr,
    /// Its stable name.
    pub instance: Option<HostName>,
    /// 0 takes no new connections.
    pub weight: u32,
    /// Where it stands.
    pub locality: Locality,
    /// Who may end up here.
    pub reach: Reach,
    priority: u8,
    /// What is remembered of it.
    pub state: Arc<EndpointState>,
}

/// The addresses that host names of endpoints resolved to.
pub type Resolved = HashMap<HostName, Vec<std::net::IpAddr>>;

impl Snapshot {
    /// Compiles the tables. State is taken over from `before` by service and address, and services whose
    /// settings are the very same as they are: what is compiled anew is what changed. Names without an
    /// answer in `resolved` have no endpoint yet; addresses that `is_own` claims are left out, since a
    /// route to ourselves is a loop.
    #[must_use]
    pub fn compile(
        mut live: Live,
        resolved: &Resolved,
        before: Option<&Snapshot>,
        is_own: &dyn Fn(SocketAddr) -> bool,
    ) -> Snapshot {
        let mut place = 0;
        let compile = |settings| {
            let known = before.and_then(|before| before.known(&settings, &mut place));
            match known {
                Some(known) if known.stays(&settings) => Arc::clone(known),
                known => Arc::new(Service::compile(&settings, resolved, known.map(|known| &**known), is_own)),
            }
        };
        let services: Vec<_> = std::mem::take(&mut live.services).into_iter().map(compile).collect();
        let names = before.filter(|before| before.is_named_as(&services));
        let names = names.map_or_else(|| Arc::new(Names::of(&services)), |before| Arc::clone(&before.names));
        let epoch = before.map_or(1, |snapshot| snapshot.epoch + 1);
        Snapshot { epoch, live, services, names }
    }

    /// The service with the same host and port. Services mostly stand where they stood: `place` is where the
    /// next one is looked for first.
    fn known(&self, settings: &Arc<settings::Service>, place: &mut usize) -> Option<&Arc<Service>> {
        let is_it = |service: &Arc<Service>| Arc::ptr_eq(&service.settings, settings);
        let near = [*place, *place + 1].into_iter().find(|near| self.service(*near).is_some_and(is_it));
        let found = near.or_else(|| self.index(&settings.host, settings.port))?;
        *place = found + 1;
        self.service(found)
    }

    fn index(&self, host: &HostPattern, port: u16) -> Option<usize> {
        let claims = match host {
            HostPattern::Exact(name) => self.names.exact.get(name)?,
            HostPattern::Suffix(name) => self.names.suffixes.get(name)?,
        };
        let mut indexes = claims.indexes().iter().map(|index| *index as usize);
        let is_it = |service: &Arc<Service>| service.settings.host == *host && service.settings.port == port;
        indexes.find(|index| self.service(*index).is_some_and(is_it))
    }

    /// Whether the same names would lead to the same places.
    fn is_named_as(&self, services: &[Arc<Service>]) -> bool {
        let alike = |(one, other): (&Arc<Service>, &Arc<Service>)| {
            Arc::ptr_eq(one, other) || is_named_alike(&one.settings, &other.settings)
        };
        self.services.len() == services.len() && self.services.iter().zip(services).all(alike)
    }

    pub(crate) fn service(&self, index: usize) -> Option<&Arc<Service>> {
        self.services.get(index)
    }
}

impl Service {
    /// Its endpoints by priority, the nearest first.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(&self.nearest).chain(&self.further)
    }

    /// The name of an instance that has one of these names, for connections of a listener.
    pub(crate) fn instance(
        &self,
        side: Side,
        is_meant: impl Fn(&HostName, &[HostName]) -> bool,
    ) -> Option<&HostName> {
        self.settings.endpoints.iter().find_map(|endpoint| match &endpoint.reach {
            Reach::Beyond(beyond) if side == Side::Outbound => {
                let mut named = beyond.instances.iter();
                named.find(|named| is_meant(&named.name, &named.aliases)).map(|named| &named.name)
            }
            Reach::Beyond(_) => None,
            Reach::Inside | Reach::All { by_name: false } if side == Side::EastWest => None,
            Reach::All { .. } | Reach::Inside => {
                endpoint.instance.as_ref().filter(|name| is_meant(name, &endpoint.aliases))
            }
        })
    }

    /// Notes a connect that was refused or timed out; true when that ejects the endpoint. One may always
    /// be ejected, more of them up to the rule's share.
    pub(crate) fn failed(&self, endpoint: &Endpoint, now: Millis, rule: &Ejection) -> bool {
        let ejected = self.endpoints.iter().filter(|endpoint| !endpoint.state.healthy(now)).count();
        let allowed = (self.endpoints.len() * usize::from(rule.max_percent) / 100).max(1);
        endpoint.state.failed(now, rule, ejected < allowed)
    }

    /// These settings would make the same of it again. An address that has become this gateway's own is
    /// refused at connect.
    fn stays(&self, settings: &Arc<settings::Service>) -> bool {
        Arc::ptr_eq(&self.settings, settings) && !self.is_named && !self.leads_back
    }

    fn compile(
        settings: &Arc<settings::Service>,
        resolved: &Resolved,
        before: Option<&Service>,
        is_own: &dyn Fn(SocketAddr) -> bool,
    ) -> Service {
        let mut endpoints: Vec<Endpoint> = Vec::with_capacity(settings.endpoints.len());
        let mut leads_back = false;
        for endpoint in &settings.endpoints {
            for address in addresses(&endpoint.address, resolved) {
                if is_own(address) {
                    leads_back = true;
                    tracing::warn!(service = %settings.host, %address, "endpoint left out: it is this gateway itself");
                } else if !endpoints.iter().any(|known| known.address == address) {
                    let known = before
                        .and_then(|service| service.endpoints.iter().find(|known| known.address == address));
                    endpoints.push(Endpoint {
                        address,
                        instance: endpoint.instance.clone(),
                        weight: endpoint.weight,
                        locality: endpoint.locality.clone(),
                        reach: endpoint.reach.clone(),
                        priority: endpoint.priority,
                        state: known.map(|known| Arc::clone(&known.state)).unwrap_or_default(),
                    });
                }
            }
        }
        endpoints.sort_by_key(|endpoint| endpoint.priority);
        let mut groups = Group::of(&endpoints);
        let further = groups.split_off(groups.len().min(1)).into();
        let is_name = |endpoint: &settings::Endpoint| matches!(endpoint.address, Target::Name { .. });
        Service {
            is_named: settings.endpoints.iter().any(is_name),
            name: format!("{}:{}", settings.host, settings.port).into(),
            settings: Arc::clone(settings),
            nearest: groups.pop().unwrap_or(Group::NOBODY),
            further,
            endpoints: endpoints.into(),
            leads_back,
            state: before.map(|service| Arc::clone(&service.state)).unwrap_or_default(),
        }
    }
}

impl Endpoint {
    /// Whether connections of a listener may end up here.
    pub(crate) fn takes(&self, side: Side) -> bool {
        side == Side::Outbound || matches!(self.reach, Reach::All { .. })
    }

    /// Whether it is, or leads to, this instance, for connections of a listener.
    pub(crate) fn is_instance(&self, name: &HostName, side: Side) -> bool {
        match &self.reach {
            Reach::Beyond(beyond) => beyond.instances.iter().any(|named| named.name == *name),
            Reach::All { by_name: false } if side == Side::EastWest => false,
            Reach::All { .. } | Reach::Inside => self.instance.as_ref() == Some(name),
        }
    }

    /// The cluster that it stands in, if that is another.
    #[must_use]
    pub fn cluster(&self) -> Option<&str> {
        match &self.reach {
            Reach::Beyond(beyond) => Some(beyond.cluster.as_str()),
            Reach::All { .. } | Reach::Inside => None,
        }
    }
}

fn addresses(target: &Target, resolved: &Resolved) -> Vec<SocketAddr> {
    match target {
        Target::Address(address) => vec![*address],
        Target::Name { host, port } => {
            let addresses = resolved.get(host).map(Vec::as_slice).unwrap_or_default();
            addresses.iter().map(|ip| SocketAddr::new(*ip, *port)).collect()
        }
    }
}

type Table = HashMap<HostName, Claims>;

impl Names {
    fn of(services: &[Arc<Service>]) -> Names {
        let mut exact = Table::with_capacity(services.len());
        let (mut suffixes, mut instances) = (Table::new(), Table::new());
        for (index, service) in (0_u32..).zip(services) {
            for pattern in std::iter::once(&service.settings.host).chain(&service.settings.aliases) {
                match pattern {
                    HostPattern::Exact(name) => claim(&mut exact, name, index),
                    HostPattern::Suffix(name) => claim(&mut suffixes, name, index),
                }
            }
            for name in service.settings.endpoints.iter().flat_map(whole_names) {
                claim(&mut instances, name, index);
            }
        }
        for claims in exact.values_mut().chain(suffixes.values_mut()).chain(instances.values_mut()) {
            if let Claims::Many(indexes) = claims {
                indexes.sort_by_key(|index| {
                    let service = services.get(*index as usize);
                    service.map(|service| std::cmp::Reverse(specificity(&service.settings)))
                });
            }
        }
        Names { exact, suffixes, instances }
    }
}

/// Other names of the instances that an endpoint is, or leads to.
fn whole_names(endpoint: &settings::Endpoint) -> impl Iterator<Item = &HostName> {
    let beyond = match &endpoint.reach {
        Reach::Beyond(beyond) => &beyond.instances[..],
        Reach::All { .. } | Reach::Inside => &[],
    };
    endpoint.aliases.iter().chain(beyond.iter().flat_map(|named| &named.aliases))
}

fn is_named_alike(one: &settings::Service, other: &settings::Service) -> bool {
    let whole = |service: &'_ settings::Service| -> Vec<HostName> {
        service.endpoints.iter().flat_map(whole_names).cloned().collect()
    };
    one.host == other.host
        && one.aliases == other.aliases
        && specificity(one) == specificity(other)
        && whole(one) == whole(other)
}

fn claim(table: &mut Table, name: &HostName, index: u32) {
    table
        .entry(name.clone())
        .and_modify(|claims| {
            if !claims.indexes().contains(&index) {
                *claims = Claims::Many([claims.indexes(), &[index]].concat());
            }
        })
        .or_insert(Claims::One(index));
}

/// Services with conditions are asked before those without: source first, then protocol.
fn specificity(service: &settings::Service) -> (bool, bool) {
    (!service.sources.is_empty(), !service.alpn.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn live(text: &str) -> Live {
        crate::config::parse(text, Path::new("test.yaml")).unwrap().live
    }

    const ONE: &str = "listeners: [{ address: '127.0.0.1:0' }]\nservices:\n\
        - { host: a.example, endpoints: [{ address: '10.0.0.1:80' }, { address: '10.0.0.2:80' }] }\n";

    #[test]
    fn state_survives_a_swap_by_service_and_address() {
        let before = Snapshot::compile(live(ONE), &Resolved::new(), None, &|_| false);
        let after = ONE.replace("{ address: '10.0.0.1:80' }, ", "{ address: '10.0.0.3:80' }, ");
        let after = Snapshot::compile(live(&after), &Resolved::new(), Some(&before), &|_| false);
        let (old, new) = (&before.services[0], &after.services[0]);
        assert_eq!(after.epoch, before.epoch + 1);
        assert!(Arc::ptr_eq(&old.state, &new.state));
        assert!(Arc::ptr_eq(&old.endpoints[1].state, &new.endpoints[1].state));
        assert!(!Arc::ptr_eq(&old.endpoints[0].state, &new.endpoints[0].state));
    }

    #[test]
    fn what_did_not_change_is_not_compiled_again() {
        let text = ONE.to_owned() + "- { host: b.example, endpoints: [{ address: '10.0.0.3:80' }] }\n";
        let text = text + "- { host: c.example, endpoints: [{ address: 'd.example:80' }] }\n";
        let settings = live(&text);
        fn compile(settings: &Live, before: Option<&Snapshot>) -> Snapshot {
            Snapshot::compile(settings.clone(), &Resolved::new(), before, &|_| false)
        }
        let before = compile(&settings, None);
        let mut edit = settings.clone();
        let edited = Arc::make_mut(&mut edit.services[1]);
        edited.endpoints[0].weight = 7;
        let after = compile(&edit, Some(&before));
        let same: Vec<_> =
            before.services.iter().zip(&after.services).map(|(a, b)| Arc::ptr_eq(a, b)).collect();
        assert_eq!(same, [true, false, false], "what a name leads to may have changed");
        assert!(Arc::ptr_eq(&before.services[1].state, &after.services[1].state));
        assert!(Arc::ptr_eq(&before.names, &after.names));
        let mut renamed = edit.clone();
        Arc::make_mut(&mut renamed.services[1]).aliases.push(HostPattern::parse("e.example").unwrap());
        let named = compile(&renamed, Some(&after));
        assert!(!Arc::ptr_eq(&after.names, &named.names) && named.names.exact.len() == 4);
        // One goes and one comes, at either end and between.
        for gone in 0..3 {
            let mut fewer = settings.clone();
            fewer.services.remove(gone);
            let fewer = compile(&fewer, Some(&before));
            assert_eq!((fewer.services.len(), fewer.names.exact.len()), (2, 2));
            let again = compile(&settings, Some(&fewer));
            assert_eq!(again.names.exact.len(), 3);
            let kept = again.services.iter().filter(|service| !service.is_named);
            let kept = kept.filter(|one| fewer.services.iter().any(|other| Arc::ptr_eq(one, other)));
            assert_eq!(kept.count(), if gone == 2 { 2 } else { 1 }, "{gone}");
        }
    }

    #[test]
    fn names_become_all_their_addresses_and_own_addresses_are_left_out() {
        let text = ONE.replace("'10.0.0.1:80'", "'db.example:3306'");
        let unresolved = Snapshot::compile(live(&text), &Resolved::new(), None, &|_| false);
        assert_eq!(unresolved.services[0].endpoints.len(), 1);
        let name = HostName::parse("db.example").unwrap();
        let ips = ["10.1.0.1", "10.1.0.2", "2001:db8::1"].map(|ip| ip.parse().unwrap());
        let resolved = Resolved::from([(name, ips.to_vec())]);
        let is_own = |address: SocketAddr| address.ip() == ips[1];
        let tables = Snapshot::compile(live(&text), &resolved, None, &is_own);
        let addresses: Vec<_> = tables.services[0].endpoints.iter().map(|e| e.address.to_string()).collect();
        assert_eq!(addresses, ["10.1.0.1:3306", "[2001:db8::1]:3306", "10.0.0.2:80"]);
        assert!(tables.services[0].leads_back);
    }

    #[test]
    fn huge_weights_are_scaled_to_one_schedule() {
        let text = ONE.replace("'10.0.0.1:80'", "'10.0.0.1:80', weight: 65535");
        let tables = Snapshot::compile(live(&text), &Resolved::new(), None, &|_| false);
        let schedule = tables.services[0].nearest.schedule.as_ref().unwrap();
        assert!(schedule.len() <= 4100, "{}", schedule.len());
        assert_eq!(schedule.iter().filter(|index| **index == 1).count(), 1);
    }
}
