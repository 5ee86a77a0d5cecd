//! The policies of traffic that an agent's file has for hosts, own and imported ones: which of them applies to a host,
//! and how its slice tells gateways. Pure.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::slice::{Offer, Port, Slice};
use isthmus_model::traffic::Traffic;

/// Policies in the file's order: of those that have a host, the first applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficRules {
    policies: Vec<Arc<Traffic>>,
    /// The first policy of each name, and of each suffix.
    exact: HashMap<HostName, usize>,
    suffixes: HashMap<HostName, usize>,
}

impl TrafficRules {
    /// Adds a policy for these hosts, after all others.
    pub fn push(&mut self, hosts: impl IntoIterator<Item = HostPattern>, traffic: Traffic) {
        let place = self.policies.len();
        self.policies.push(Arc::new(traffic));
        for host in hosts {
            let (names, name) = match host {
                HostPattern::Exact(name) => (&mut self.exact, name),
                HostPattern::Suffix(name) => (&mut self.suffixes, name),
            };
            names.entry(name).or_insert(place);
        }
    }

    /// The policy of a host, and its place among all.
    #[must_use]
    pub fn find(&self, host: &HostPattern) -> Option<(usize, &Arc<Traffic>)> {
        let (name, same) = match host {
            HostPattern::Exact(name) => (name.as_str(), self.exact.get(name)),
            HostPattern::Suffix(name) => (name.as_str(), self.suffixes.get(name)),
        };
        let parents = name.match_indices('.').filter_map(|(dot, _)| name.get(dot + 1..));
        let wider = parents.filter_map(|parent| self.suffixes.get(parent));
        let place = *same.into_iter().chain(wider).min()?;
        Some((place, self.policies.get(place)?))
    }

    /// Whether a host has another policy by the other rules.
    #[must_use]
    pub fn differ(&self, other: &TrafficRules, host: &HostPattern) -> bool {
        let policy = |rules: &TrafficRules| rules.find(host).map(|(_, policy)| Arc::clone(policy));
        policy(self) != policy(other)
    }

    /// The slice as the cluster's own gateways get it: with the host's policy for ports that have none of their own.
    #[must_use]
    pub fn apply<'a>(&self, slice: &'a Slice) -> Cow<'a, Slice> {
        let Some((_, policy)) = self.find(&slice.key.host) else { return Cow::Borrowed(slice) };
        let Some(offer) = &slice.offer else { return Cow::Borrowed(slice) };
        if offer.ports.iter().all(|port| port.traffic.is_some()) {
            return Cow::Borrowed(slice);
        }
        let with_policy = |port: &Port| Port {
            traffic: port.traffic.clone().or_else(|| Some(Arc::clone(policy))),
            ..port.clone()
        };
        let ports = offer.ports.iter().map(with_policy).collect();
        let offer = Offer { ports, ..offer.clone() };
        Cow::Owned(Slice { offer: Some(offer), key: slice.key.clone(), order: slice.order })
    }
}

#[cfg(test)]
mod tests {
    use isthmus_model::slice::{Key, Order, Tls};
    use isthmus_model::traffic::Affinity;

    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    fn remote() -> Traffic {
        Traffic { affinity: Affinity::Remote, ..Traffic::default() }
    }

    fn rules(entries: &[&[&str]]) -> TrafficRules {
        let mut rules = TrafficRules::default();
        for hosts in entries {
            rules.push(hosts.iter().map(|host| pattern(host)), remote());
        }
        rules
    }

    #[test]
    fn first_rule_with_a_host_has_its_policy() {
        let rules = rules(&[&["a.b.c"], &["*.b.c", "x.y"], &["*.c", "*.y", "a.b.c"]]);
        for (host, place) in [
            ("a.b.c", Some(0)),
            ("z.b.c", Some(1)),
            ("z.a.b.c", Some(1)),
            ("b.c", Some(2)),
            ("x.y", Some(1)),
            ("y", None),
            ("c", None),
            ("bb.cc", None),
            ("*.b.c", Some(1)),
            ("*.a.b.c", Some(1)),
            ("*.c", Some(2)),
            ("*.d", None),
        ] {
            assert_eq!(rules.find(&pattern(host)).map(|(place, _)| place), place, "{host}");
        }
    }

    #[test]
    fn changed_rules_differ_for_the_hosts_that_they_concern() {
        let mut before = TrafficRules::default();
        before.push([pattern("a.b"), pattern("*.c")], remote());
        let mut after = TrafficRules::default();
        after.push([pattern("a.b")], Traffic::default());
        after.push([pattern("*.c")], remote());
        let concerned = |host: &str| after.differ(&before, &pattern(host));
        assert!(concerned("a.b"));
        // Its place has changed, not its policy.
        assert!(!concerned("x.c"));
        assert!(!concerned("z.z"));
    }

    #[test]
    fn policy_of_a_service_precedes_the_rule_of_its_host() {
        let own = Arc::new(Traffic { panic: None, ..Traffic::default() });
        let ports = vec![
            Port { traffic: Some(Arc::clone(&own)), ..Port::new(1, Tls::Mutual) },
            Port { default_port: false, ..Port::new(2, Tls::Mutual) },
        ];
        let slice = |host: &str| Slice {
            key: Key { cluster: "east".parse().unwrap(), host: pattern(host) },
            order: Order { incarnation: 1, revision: 1 },
            offer: Some(Offer::new("net", ports.clone())),
        };
        let rules = rules(&[&["a.b"]]);
        let with_rule = slice("a.b");
        let applied = rules.apply(&with_rule);
        let policies: Vec<_> =
            applied.offer.iter().flat_map(|offer| &offer.ports).map(|port| port.traffic.clone()).collect();
        assert_eq!(policies, [Some(own), Some(Arc::new(remote()))]);
        assert!(matches!(rules.apply(&slice("c.d")), Cow::Borrowed(_)));
    }
}
