//! Finds the host and port that a virtual address or a listener's port stands for, and the agent's callers. Nothing else
//! leads anywhere: what two hosts claim belongs to neither.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use isthmus_model::HostName;
use isthmus_model::binding::{Binding, BoundPort, Callers};

/// The bindings of the file and those of the agent, and the agent's callers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings {
    hosts: BTreeMap<HostName, Arc<Binding>>,
    addresses: HashMap<IpAddr, Arc<Binding>>,
    listener_ports: HashMap<u16, (Arc<Binding>, u16)>,
    callers: Arc<Callers>,
    conflicts: Vec<String>,
}

/// What the agent has told; the file's bindings hide those of the same host.
#[derive(Debug, Default)]
pub(crate) struct LearnedBindings {
    pub(crate) hosts: BTreeMap<HostName, Arc<Binding>>,
    pub(crate) callers: Arc<Callers>,
}

impl Bindings {
    /// Indexes the file's bindings, and what the agent has told beside them.
    pub(crate) fn new(file: &[Arc<Binding>], learned: &LearnedBindings) -> Bindings {
        let of_file: BTreeMap<_, _> = file.iter().map(|own| (own.host.clone(), Arc::clone(own))).collect();
        let others = learned.hosts.iter().filter(|(host, _)| !of_file.contains_key(*host));
        let others: BTreeMap<_, _> = others.map(|(host, one)| (host.clone(), Arc::clone(one))).collect();
        let (mut addresses, mut listener_ports) = (Claims::default(), Claims::default());
        for bindings in [&of_file, &others] {
            for binding in bindings.values() {
                for address in binding.addresses() {
                    addresses.claim(address, Arc::clone(binding));
                }
                for BoundPort { port, listener_port } in &binding.ports {
                    if let Some(listener_port) = listener_port {
                        listener_ports.claim(*listener_port, (Arc::clone(binding), *port));
                    }
                }
            }
            // Nobody takes from the file what it has.
            addresses.settle();
            listener_ports.settle();
        }
        let mut conflicts: Vec<_> = addresses.disputed.iter().map(ToString::to_string).collect();
        conflicts.extend(listener_ports.disputed.iter().map(|port| format!("listener port {port}")));
        conflicts.sort();
        let hosts = of_file.into_iter().chain(others).collect();
        let callers = Arc::clone(&learned.callers);
        Bindings {
            hosts,
            addresses: addresses.owners,
            listener_ports: listener_ports.owners,
            callers,
            conflicts,
        }
    }

    /// Returns the host and port of a virtual address and its port.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<(&HostName, u16)> {
        let binding = self.addresses.get(&address.ip().to_canonical())?;
        let is_declared = binding.ports.iter().any(|bound| bound.port == address.port());
        is_declared.then_some((&binding.host, address.port()))
    }

    /// Returns the host and port that a port of a listener stands for.
    pub(crate) fn at_listener_port(&self, port: u16) -> Option<(&HostName, u16)> {
        self.listener_ports.get(&port).map(|(binding, port)| (&binding.host, *port))
    }

    /// Whether a virtual address has this IP: no endpoint may.
    pub(crate) fn have(&self, ip: IpAddr) -> bool {
        !self.addresses.is_empty() && self.addresses.contains_key(&ip.to_canonical())
    }

    /// Returns the binding of a host.
    pub(crate) fn get(&self, host: &str) -> Option<&Arc<Binding>> {
        self.hosts.get(host)
    }

    /// Returns every virtual address and port that leads somewhere.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = SocketAddr> {
        let each = self.addresses.iter();
        each.flat_map(|(ip, binding)| binding.ports.iter().map(|bound| SocketAddr::new(*ip, bound.port)))
    }

    /// Returns every listener's port that leads somewhere.
    pub(crate) fn listener_ports(&self) -> impl Iterator<Item = u16> {
        self.listener_ports.keys().copied()
    }

    /// Returns the agent's callers.
    pub(crate) fn callers(&self) -> &Callers {
        &self.callers
    }

    /// Number of bound hosts.
    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Returns the addresses and listener ports that several hosts claim, and therefore none has.
    pub(crate) fn conflicts(&self) -> &[String] {
        &self.conflicts
    }
}

/// Who has what.
struct Claims<K, V> {
    owners: HashMap<K, V>,
    /// Claimed once since the last settlement.
    fresh: HashMap<K, V>,
    disputed: HashSet<K>,
}

impl<K, V> Default for Claims<K, V> {
    fn default() -> Claims<K, V> {
        Claims { owners: HashMap::new(), fresh: HashMap::new(), disputed: HashSet::new() }
    }
}

impl<K: Hash + Eq + Copy, V> Claims<K, V> {
    fn claim(&mut self, key: K, owner: V) {
        if self.owners.contains_key(&key) || self.disputed.contains(&key) || self.fresh.remove(&key).is_some()
        {
            self.disputed.insert(key);
        } else {
            self.fresh.insert(key, owner);
        }
    }

    fn settle(&mut self) {
        self.owners.extend(self.fresh.drain());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(host: &str, address: &str, ports: &[(u16, Option<u16>)]) -> Arc<Binding> {
        let mut addresses = isthmus_model::virtual_address::NameAddresses::default();
        addresses.insert(address.parse().unwrap()).unwrap();
        let ports = ports
            .iter()
            .map(|(port, listener_port)| BoundPort { port: *port, listener_port: *listener_port });
        Arc::new(Binding { host: HostName::parse(host).unwrap(), addresses, ports: ports.collect() })
    }

    fn learned(all: &[Arc<Binding>]) -> LearnedBindings {
        let hosts = all.iter().map(|one| (one.host.clone(), Arc::clone(one))).collect();
        LearnedBindings { hosts, callers: Arc::default() }
    }

    fn at(bindings: &Bindings, address: &str) -> Option<String> {
        bindings.at(address.parse().unwrap()).map(|(host, port)| format!("{host}:{port}"))
    }

    /// As istio#39080: another port of the address leads to no other service.
    #[test]
    fn binding_leads_from_declared_ports_alone() {
        let own = [binding("orders.shop", "240.15.0.7", &[(3306, Some(20_001))])];
        let bindings = Bindings::new(&own, &LearnedBindings::default());
        assert_eq!(at(&bindings, "240.15.0.7:3306").as_deref(), Some("orders.shop:3306"));
        assert_eq!(at(&bindings, "[::ffff:240.15.0.7]:3306").as_deref(), Some("orders.shop:3306"));
        for other in ["240.15.0.7:80", "240.15.0.7:20001", "240.15.0.8:3306"] {
            assert_eq!(at(&bindings, other), None, "{other}");
        }
        let port = |port| bindings.at_listener_port(port).map(|(host, port)| format!("{host}:{port}"));
        assert_eq!((port(20_001).as_deref(), port(3306)), (Some("orders.shop:3306"), None));
    }

    #[test]
    fn binding_of_two_hosts_leads_nowhere_and_the_files_own_stays() {
        let (one, two) = (
            binding("a", "240.15.0.1", &[(1, Some(5)), (2, None)]),
            binding("b", "240.15.0.1", &[(1, Some(5))]),
        );
        let bindings = Bindings::new(&[], &learned(&[Arc::clone(&one), Arc::clone(&two)]));
        assert_eq!((at(&bindings, "240.15.0.1:1"), bindings.at_listener_port(5)), (None, None));
        assert_eq!(bindings.conflicts(), ["240.15.0.1", "listener port 5"]);
        assert!(!bindings.have("240.15.0.1".parse().unwrap()));
        let bindings = Bindings::new(&[one], &learned(&[two]));
        assert_eq!(at(&bindings, "240.15.0.1:1").as_deref(), Some("a:1"));
        assert_eq!(bindings.at_listener_port(5).map(|(host, _)| host.as_str()), Some("a"));
        assert_eq!(bindings.conflicts().len(), 2);
    }

    #[test]
    fn binding_of_the_file_hides_the_agents_for_its_host() {
        let (own, other) =
            (binding("a", "240.15.0.1", &[(1, None)]), binding("a", "240.15.0.2", &[(1, None)]));
        let bindings = Bindings::new(&[own], &learned(&[other]));
        assert_eq!(at(&bindings, "240.15.0.1:1").as_deref(), Some("a:1"));
        assert_eq!((at(&bindings, "240.15.0.2:1"), bindings.len()), (None, 1));
    }
}
