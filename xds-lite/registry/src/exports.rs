//! Decides which services are exported to other clusters and which names other clusters may use here: the
//! operator's rules, applied to one host. Pure. The mTLS check of endpoints is elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use isthmus_model::host::{HostName, HostPattern};
use isthmus_model::slice::Cluster;

/// An export rule: selects the services that meet every condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The namespaces of the service; empty: no condition.
    pub workspace: Vec<Namespaces>,
    /// The names of the service; empty: no condition.
    pub hosts: Vec<HostPattern>,
    /// Labels that the service must have.
    pub labels: BTreeMap<String, String>,
    /// The gateways to export on; empty: all.
    pub gateways: Vec<String>,
    /// The instances to export by name.
    pub instances: Instances,
}

/// The instances that are exported by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instances {
    /// Every instance.
    All,
    /// The instances with these names.
    Named(BTreeSet<HostName>),
}

impl Default for Instances {
    fn default() -> Instances {
        Instances::Named(BTreeSet::new())
    }
}

impl Instances {
    /// Whether the instance is selected.
    #[must_use]
    pub fn contains(&self, name: &HostName) -> bool {
        match self {
            Instances::All => true,
            Instances::Named(names) => names.contains(name),
        }
    }

    fn add(&mut self, more: &Instances) {
        match (&mut *self, more) {
            (Instances::Named(names), Instances::Named(more)) => names.extend(more.iter().cloned()),
            (_, Instances::All) => *self = Instances::All,
            (Instances::All, _) => {}
        }
    }
}

/// The namespaces of one name: in one cluster, or in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces {
    /// The cluster; `None` for all clusters, which form one workspace.
    pub cluster: Option<Cluster>,
    /// The name of the namespace.
    pub namespace: String,
}

/// The text is not a workspace entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a workspace entry")]
pub struct NoNamespaces;

impl Namespaces {
    /// `NAMESPACE` of the own cluster, `CLUSTER/NAMESPACE`, or `*/NAMESPACE`.
    ///
    /// # Errors
    /// The text has none of these forms.
    pub fn parse(text: &str, own: &Cluster) -> Result<Namespaces, NoNamespaces> {
        let (cluster, namespace) = match text.split_once('/') {
            None => (Some(own.clone()), text),
            Some(("*", namespace)) => (None, namespace),
            Some((cluster, namespace)) => {
                (Some(Cluster::from_str(cluster).map_err(|_| NoNamespaces)?), namespace)
            }
        };
        let name = HostName::parse(namespace).map_err(|_| NoNamespaces)?;
        if name.as_str().contains('.') {
            return Err(NoNamespaces);
        }
        Ok(Namespaces { cluster, namespace: name.as_str().to_owned() })
    }

    /// Whether it means namespaces of this cluster.
    pub(crate) fn is_of(&self, cluster: &Cluster) -> bool {
        self.cluster.as_ref().is_none_or(|own| own == cluster)
    }
}

/// How a host is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The gateways to export on; empty: all.
    pub gateways: BTreeSet<String>,
    /// The instances to export by name.
    pub instances: Instances,
}

/// A host that rules apply to.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its name.
    pub host: &'a HostPattern,
    /// The namespace from the registry, if it is set there.
    pub namespace: Option<&'a str>,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// How a host of the own cluster is exported; `None` if no rule selects it. Several rules add up.
#[must_use]
pub fn export(rules: &[Rule], own: &Cluster, subject: Subject<'_>) -> Option<Export> {
    let mut chosen = rules.iter().filter(|rule| rule.chooses(own, subject));
    let first = chosen.next()?;
    let mut export =
        Export { gateways: first.gateways.iter().cloned().collect(), instances: first.instances.clone() };
    for rule in chosen {
        if rule.gateways.is_empty() || export.gateways.is_empty() {
            export.gateways.clear();
        } else {
            export.gateways.extend(rule.gateways.iter().cloned());
        }
        export.instances.add(&rule.instances);
    }
    Some(export)
}

impl Rule {
    fn chooses(&self, own: &Cluster, subject: Subject<'_>) -> bool {
        let namespace = subject.namespace.or_else(|| namespace_of(subject.host));
        let belongs = self
            .workspace
            .iter()
            .any(|namespaces| namespaces.is_of(own) && namespace == Some(namespaces.namespace.as_str()));
        let named = self.hosts.iter().any(|pattern| covers(pattern, subject.host));
        let labelled = self
            .labels
            .iter()
            .all(|(label, value)| subject.labels.get(label).is_some_and(|has| has == value));
        (belongs || self.workspace.is_empty()) && (named || self.hosts.is_empty()) && labelled
    }
}

/// The workspaces that span all clusters, from which imports are accepted.
#[must_use]
pub fn shared(rules: &[Rule]) -> BTreeSet<String> {
    let parts = rules.iter().flat_map(|rule| &rule.workspace);
    parts.filter(|part| part.cluster.is_none()).map(|part| part.namespace.clone()).collect()
}

/// The namespace in a host name: `NAME.NAMESPACE.svc.…`.
#[must_use]
pub fn namespace_of(host: &HostPattern) -> Option<&str> {
    let HostPattern::Exact(name) = host else { return None };
    let mut labels = name.as_str().split('.');
    let (_, namespace, svc) = (labels.next()?, labels.next()?, labels.next()?);
    (svc == "svc").then_some(namespace)
}

/// Whether `outer` matches every name that `inner` matches.
#[must_use]
pub fn covers(outer: &HostPattern, inner: &HostPattern) -> bool {
    let is_under = |name: &HostName, suffix: &HostName| {
        name.as_str().strip_suffix(suffix.as_str()).is_some_and(|front| front.ends_with('.'))
    };
    match (outer, inner) {
        (HostPattern::Suffix(suffix), HostPattern::Exact(name)) => is_under(name, suffix),
        (HostPattern::Suffix(suffix), HostPattern::Suffix(inner)) => {
            inner == suffix || is_under(inner, suffix)
        }
        (HostPattern::Exact(name), HostPattern::Exact(inner)) => name == inner,
        (HostPattern::Exact(_), HostPattern::Suffix(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    fn own() -> Cluster {
        "east".parse().unwrap()
    }

    fn chosen(rules: &[Rule], host: &str, labels: &[(&str, &str)]) -> Option<Export> {
        let labels = labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect();
        export(rules, &own(), Subject { host: &pattern(host), namespace: None, labels: &labels })
    }

    fn workspace(text: &str) -> Rule {
        Rule { workspace: vec![Namespaces::parse(text, &own()).unwrap()], ..Rule::default() }
    }

    #[test]
    fn export_needs_a_rule_that_selects_the_host() {
        assert_eq!(chosen(&[], "details.bookinfo.svc.cluster.local", &[]), None);
        for (text, host, expected) in [
            ("*/bookinfo", "details.bookinfo.svc.cluster.local", true),
            ("bookinfo", "details.bookinfo.svc.cluster.local", true),
            ("east/bookinfo", "details.bookinfo.svc.cluster.local", true),
            ("west/bookinfo", "details.bookinfo.svc.cluster.local", false),
            ("*/bookinfo", "details.shop.svc.cluster.local", false),
            ("*/bookinfo", "details.bookinfo", false),
            ("*/bookinfo", "*.bookinfo.svc.cluster.local", false),
        ] {
            assert_eq!(chosen(&[workspace(text)], host, &[]).is_some(), expected, "{text} {host}");
        }
    }

    #[test]
    fn export_rule_applies_only_if_all_its_conditions_hold() {
        let labels = BTreeMap::from([("app".to_owned(), "details".to_owned())]);
        let rule = Rule { labels, hosts: vec![pattern("*.svc.cluster.local")], ..workspace("*/bookinfo") };
        let host = "details.bookinfo.svc.cluster.local";
        assert!(chosen(std::slice::from_ref(&rule), host, &[("app", "details"), ("tier", "1")]).is_some());
        assert!(chosen(std::slice::from_ref(&rule), host, &[("app", "other")]).is_none());
        assert!(chosen(std::slice::from_ref(&rule), host, &[]).is_none());
        assert!(chosen(&[rule], "details.bookinfo.svc.other", &[("app", "details")]).is_none());
    }

    #[test]
    fn export_rules_add_up_and_one_without_gateways_selects_all() {
        let on = |name: &str| Rule { gateways: vec![name.to_owned()], ..workspace("*/a") };
        let named = |name: &str| Instances::Named(BTreeSet::from([HostName::parse(name).unwrap()]));
        let one = Rule { instances: named("db-0"), ..on("gw-1") };
        let two = Rule { instances: named("db-1"), ..on("gw-2") };
        let host = "x.a.svc.cluster.local";
        let both = chosen(&[one.clone(), two.clone()], host, &[]).unwrap();
        assert_eq!(both.gateways, BTreeSet::from(["gw-1".to_owned(), "gw-2".to_owned()]));
        assert!(both.instances.contains(&HostName::parse("db-1").unwrap()));
        let all = Rule { instances: Instances::All, ..workspace("*/a") };
        let all = chosen(&[one, all, two], host, &[]).unwrap();
        assert!(all.gateways.is_empty() && all.instances == Instances::All);
    }

    #[test]
    fn covered_pattern_is_never_wider() {
        let cases = [
            ("*.b.c", "a.b.c", true),
            ("*.b.c", "*.b.c", true),
            ("*.b.c", "*.a.b.c", true),
            ("*.b.c", "b.c", false),
            ("*.b.c", "ab.c", false),
            ("*.b.c", "*.c", false),
            ("b.c", "b.c", true),
            ("b.c", "*.b.c", false),
        ];
        for (outer, inner, expected) in cases {
            assert_eq!(covers(&pattern(outer), &pattern(inner)), expected, "{outer} {inner}");
        }
    }

    #[test]
    fn workspace_entry_has_three_forms() {
        for text in ["", "/", "a/", "*/", "*/a.b", "*", "a b/c", "a/b/c"] {
            assert!(Namespaces::parse(text, &own()).is_err(), "{text:?}");
        }
        assert_eq!(
            shared(&[workspace("*/a"), workspace("b"), workspace("west/c")]),
            BTreeSet::from(["a".to_owned()])
        );
    }
}
