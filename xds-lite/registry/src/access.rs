//! Combines the rules for callers of the scopes wider than a service with its own: which of them apply to a service,
//! and whom a workspace means. Pure.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_certs::TrustDomain;
use isthmus_model::access::{self, Access, AccessError, AccessRules, Scopes};
use isthmus_model::services::Service;
use isthmus_model::slice::Cluster;

use crate::exports::Namespaces;

/// The rules for callers of scopes wider than a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WiderRules {
    /// Of the cluster.
    pub cluster: Option<AccessRules>,
    /// Of namespaces, by name.
    pub namespaces: BTreeMap<String, AccessRules>,
    /// Of workspaces.
    pub workspaces: Vec<Workspace>,
}

/// Namespaces of one or several clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workspace {
    /// Its name.
    pub name: String,
    /// Its namespaces.
    pub namespaces: Vec<Namespaces>,
    /// Its rules.
    pub rules: Option<AccessRules>,
}

/// The trust domains of the own cluster and its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domains {
    cluster: Cluster,
    domains: BTreeMap<Cluster, TrustDomain>,
}

impl Domains {
    /// That of the own cluster.
    #[must_use]
    pub fn new(cluster: Cluster, domain: TrustDomain) -> Domains {
        let domains = BTreeMap::from([(cluster.clone(), domain)]);
        Domains { cluster, domains }
    }

    /// Adds a peer's. Returns whether it is new.
    pub fn add(&mut self, peer: Cluster, domain: TrustDomain) -> bool {
        peer != self.cluster && self.domains.insert(peer, domain.clone()).as_ref() != Some(&domain)
    }

    fn own(&self) -> Option<&TrustDomain> {
        self.domains.get(&self.cluster)
    }
}

impl WiderRules {
    /// The access to a service of the own cluster in a namespace, by the rules of all scopes.
    ///
    /// # Errors
    /// The rules cannot be enforced.
    pub fn access(
        &self,
        service: &Service,
        namespace: Option<&str>,
        domains: &Domains,
    ) -> Result<Access, AccessError> {
        let workspaces = self.workspaces.iter().filter(|workspace| workspace.has(namespace, domains));
        let workspaces: Vec<_> = workspaces.map(|one| (one, one.members(domains))).collect();
        let workspaces: Vec<_> = workspaces
            .iter()
            .map(|(workspace, members)| access::Workspace {
                name: &workspace.name,
                rules: workspace.rules.as_ref(),
                members,
            })
            .collect();
        let scopes = Scopes {
            own: domains.own(),
            cluster: self.cluster.as_ref(),
            workspaces: &workspaces,
            namespace: namespace.and_then(|name| Some((name, self.namespaces.get(name)?))),
            service: service.access(),
        };
        scopes.access(service.tls_mode())
    }
}

impl Workspace {
    /// Whether services of the own cluster in this namespace belong to it.
    fn has(&self, namespace: Option<&str>, domains: &Domains) -> bool {
        let mut own = self.namespaces.iter().filter(|one| one.is_of(&domains.cluster));
        namespace.is_some_and(|namespace| own.any(|one| one.namespace == namespace))
    }

    /// Its namespaces in the trust domains of its clusters; those of unknown clusters are nobody's.
    fn members(&self, domains: &Domains) -> Vec<(TrustDomain, String)> {
        let of = |one: &Namespaces| {
            let clusters = domains.domains.iter().filter(|(cluster, _)| one.is_of(cluster));
            let name = one.namespace.clone();
            clusters.map(move |(_, domain)| (domain.clone(), name.clone())).collect::<Vec<_>>()
        };
        // Clusters may share a trust domain.
        let members: BTreeSet<_> = self.namespaces.iter().flat_map(of).collect();
        members.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use isthmus_certs::SpiffeId;
    use isthmus_model::access::{Caller, Verdict};
    use isthmus_model::registry_file;

    use super::*;

    fn service(keys: &str) -> Service {
        let text = format!("services: [{{ host: a.shop.svc.example, {keys} }}]");
        registry_file(&text, Path::new("r.yaml")).unwrap().remove(0)
    }

    /// The rules of `access:` in YAML.
    fn rules(text: &str) -> AccessRules {
        service(&format!("access: {text}")).access().unwrap().clone()
    }

    fn domains() -> Domains {
        let domain = |name| TrustDomain::new(name).unwrap();
        let mut domains = Domains::new("east".parse().unwrap(), domain("east.example"));
        assert!(domains.add("west".parse().unwrap(), domain("west.example")));
        assert!(domains.add("north".parse().unwrap(), domain("east.example")), "it shares a trust domain");
        assert!(!domains.add("north".parse().unwrap(), domain("east.example")));
        assert!(
            !domains.add("east".parse().unwrap(), domain("west.example")),
            "nobody else names the own one"
        );
        domains
    }

    fn workspace(namespaces: &[&str], rules: Option<AccessRules>) -> Workspace {
        let own = "east".parse().unwrap();
        let namespaces = namespaces.iter().map(|text| Namespaces::parse(text, &own).unwrap());
        Workspace { name: "store".to_owned(), namespaces: namespaces.collect(), rules }
    }

    fn admits(wider: &WiderRules, namespace: &str, id: &str) -> bool {
        let access = wider.access(&service("access: { advisory: true }"), Some(namespace), &domains());
        let id = SpiffeId::parse(id).unwrap();
        let caller = Caller { identity: Some(&id), source: "192.0.2.1".parse().unwrap(), port: 443 };
        access.unwrap().decide(&caller).verdict == Verdict::Allowed
    }

    #[test]
    fn workspace_mode_admits_its_namespaces_in_the_domains_of_its_clusters() {
        let mode = || Some(rules("{ mode: workspace, advisory: true }"));
        let wider = |namespaces: &[&str]| WiderRules {
            workspaces: vec![workspace(namespaces, mode())],
            ..WiderRules::default()
        };
        let some = wider(&["shop", "west/cart"]);
        for (id, is_admitted) in [
            ("spiffe://east.example/ns/shop/sa/a", true),
            ("spiffe://west.example/ns/cart/sa/a", true),
            ("spiffe://west.example/ns/shop/sa/a", false),
            ("spiffe://east.example/ns/cart/sa/a", false),
            ("spiffe://south.example/ns/shop/sa/a", false),
        ] {
            assert_eq!(admits(&some, "shop", id), is_admitted, "{id}");
        }
        let everywhere = wider(&["*/shop"]);
        assert!(admits(&everywhere, "shop", "spiffe://west.example/ns/shop/sa/a"));
        assert!(!admits(&everywhere, "shop", "spiffe://south.example/ns/shop/sa/a"));
        // A service in none of its namespaces is not its own.
        assert!(admits(&some, "cart", "spiffe://south.example/ns/x/sa/a"));
        let unknown = wider(&["shop", "south/shop"]);
        assert!(!admits(&unknown, "shop", "spiffe://south.example/ns/shop/sa/a"));
    }

    #[test]
    fn wider_rules_apply_to_their_namespace_and_to_the_cluster() {
        let deny = |id: &str| Some(rules(&format!("{{ deny: ['{id}'], advisory: true }}")));
        let bad = "spiffe://east.example/ns/x/sa/bad";
        let worse = "spiffe://east.example/ns/x/sa/worse";
        let wider = WiderRules {
            cluster: deny(bad),
            namespaces: BTreeMap::from([("shop".to_owned(), deny(worse).unwrap())]),
            workspaces: Vec::new(),
        };
        assert!(!admits(&wider, "shop", bad) && !admits(&wider, "cart", bad));
        assert!(!admits(&wider, "shop", worse) && admits(&wider, "cart", worse));
        let wider = WiderRules { cluster: Some(rules("{ deny: [{ sources: [10.0.0.0/8] }] }")), ..wider };
        assert!(matches!(
            WiderRules { cluster: Some(AccessRules { advisory: false, ..deny(bad).unwrap() }), ..wider }
                .access(&service("port: 1"), None, &domains()),
            Err(AccessError::Unseen(access::RuleScope::Cluster))
        ));
    }
}
