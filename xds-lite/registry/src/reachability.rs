//! Decides which networks may know services of which others. Limits what is announced, not who can connect.
//! Pure.

use std::collections::BTreeMap;

/// Rules from client networks to service networks; without rules every network may know every other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reachability {
    /// Labels of networks, by name.
    pub networks: BTreeMap<String, BTreeMap<String, String>>,
    /// The rules; `None` allows everything.
    pub rules: Option<Vec<Rule>>,
}

/// Clients in one network may know services in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The networks of clients.
    pub from: Networks,
    /// The networks of services.
    pub to: Networks,
}

/// A selection of networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Networks {
    /// Every network.
    All,
    /// The network with this name.
    Named(String),
    /// The networks with these labels.
    Labelled(BTreeMap<String, String>),
}

impl Reachability {
    /// Whether clients in one network may know services in another. A network without a name matches only
    /// rules for all.
    #[must_use]
    pub fn allows(&self, from: Option<&str>, to: Option<&str>) -> bool {
        let means = |networks: &Networks, name| self.means(networks, name);
        self.rules
            .as_ref()
            .is_none_or(|rules| rules.iter().any(|rule| means(&rule.from, from) && means(&rule.to, to)))
    }

    fn means(&self, networks: &Networks, name: Option<&str>) -> bool {
        match (networks, name) {
            (Networks::All, _) => true,
            (_, None) => false,
            (Networks::Named(known), Some(name)) => known == name,
            (Networks::Labelled(labels), Some(name)) => self.networks.get(name).is_some_and(|has| {
                !labels.is_empty() && labels.iter().all(|(label, value)| has.get(label) == Some(value))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(label: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(label.to_owned(), value.to_owned())])
    }

    #[test]
    fn reachability_without_rules_allows_all_and_with_rules_only_their_networks() {
        assert!(Reachability::default().allows(None, None));
        let named = |name: &str| Networks::Named(name.to_owned());
        let mut reachability = Reachability {
            networks: BTreeMap::from([
                ("west".to_owned(), labels("env", "prod")),
                ("lab".to_owned(), labels("env", "test")),
            ]),
            rules: Some(vec![
                Rule { from: named("west"), to: named("east") },
                Rule { from: Networks::Labelled(labels("env", "test")), to: Networks::All },
            ]),
        };
        let allowed = |from, to| reachability.allows(Some(from), Some(to));
        assert!(allowed("west", "east") && !allowed("east", "west") && !allowed("west", "lab"));
        assert!(allowed("lab", "east") && !allowed("unknown", "east"));
        assert!(!reachability.allows(None, Some("east")), "no rule matches a network without a name");
        reachability.rules = Some(Vec::new());
        assert!(!reachability.allows(Some("west"), Some("east")));
    }
}
