//! Which networks may know of services in which others. It limits what is told, not who can connect. Pure.

use std::collections::BTreeMap;

/// Rules, each from clients to services; without any rule every network may know of every other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reachability {
    /// Labels of networks, by name.
    pub networks: BTreeMap<String, BTreeMap<String, String>>,
    /// What is allowed; none: everything.
    pub rules: Option<Vec<Rule>>,
}

/// Clients in one network may know of services in another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where clients stand.
    pub from: Networks,
    /// Where services stand.
    pub to: Networks,
}

/// Some networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Networks {
    /// Every one.
    All,
    /// The one of this name.
    Named(String),
    /// Those that have these labels.
    Labelled(BTreeMap<String, String>),
}

impl Reachability {
    /// Whether clients in one network may know of services in another. One without a name is in no rule
    /// but those for all.
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
    fn without_rules_all_is_allowed_and_with_rules_only_what_they_say() {
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
        assert!(!reachability.allows(None, Some("east")), "who has no name is in no rule");
        reachability.rules = Some(Vec::new());
        assert!(!reachability.allows(Some("west"), Some("east")));
    }
}
