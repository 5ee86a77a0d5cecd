//! Resolves the written rules of one scope. A rule that would match nobody or everybody by mistake is refused.

use std::collections::HashSet;
use std::hash::Hash;

use ipnet::IpNet;
use isthmus_certs::{IdPattern, TrustDomain};
use serde::Serialize;

use crate::at::{At, Spot};
use crate::identity::Identity;
use crate::problem::{Place, Quoted, Report};
use crate::units::Scalar;

use super::{MAX_IDENTITIES, MAX_RULES, MAX_VALUES, raw};

/// The rules of one scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AccessRules {
    /// `None`: no list; an empty list admits nobody.
    pub allow: Option<Vec<RuleSettings>>,
    /// Rules that refuse.
    pub deny: Vec<RuleSettings>,
    /// Whether the identities of the workspace are allowed.
    pub workspace: bool,
    /// Whether rules about identities may apply where TLS passes through.
    pub advisory: bool,
}

/// One rule of a scope.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RuleSettings {
    /// Its name, or its place in the scope.
    pub name: String,
    /// Condition: who calls.
    pub callers: Callers,
    /// Condition: the caller's address is in one of these ranges. Empty: none.
    pub sources: Vec<IpNet>,
    /// Condition: the caller asks for one of these ports. Empty: none.
    pub ports: Vec<u16>,
    /// Whether it is only reported.
    pub dry_run: bool,
}

/// The callers of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Callers {
    /// No condition.
    Any,
    /// These; at least one.
    Identities(Vec<IdPattern>),
    /// Those of namespaces in the cluster's own trust domain; at least one.
    OwnNamespaces(Vec<String>),
}

impl AccessRules {
    /// Whether a rule asks for the caller's identity.
    #[must_use]
    pub fn asks_for_identity(&self) -> bool {
        let mut rules = self.allow.iter().flatten().chain(&self.deny);
        self.workspace || rules.any(|rule| rule.callers != Callers::Any)
    }
}

/// Resolves `access:` of one scope; problems go to the report.
pub fn rules(report: &mut Report, place: Place<'_>, raw: &raw::Access) -> AccessRules {
    let mut names = HashSet::new();
    let mut list = |report: &mut Report, raw: &[At<raw::Entry>], key| {
        let rules = resolve(report, place.key(key), raw, key);
        for (index, rule) in raw.iter().enumerate() {
            let raw::Entry::Rule(raw::Rule { name: Some(raw), .. }) = &rule.value else { continue };
            if !names.insert(raw.value.text().to_ascii_lowercase()) {
                let what = format!("{}: is the name of two rules", place.key(key).item(index).key("name"));
                report.add(raw.spot, what, "give each rule its own name");
            }
        }
        rules
    };
    let rules = AccessRules {
        allow: raw.allow.as_deref().map(|raw| list(report, raw, "allow")),
        deny: list(report, raw.deny.as_deref().unwrap_or_default(), "deny"),
        workspace: raw.mode.as_ref().is_some_and(|mode| mode.value == raw::Mode::Workspace),
        advisory: raw.advisory.unwrap_or_default(),
    };
    warn_of_dry_run_alone(report, place, raw, &rules);
    rules
}

/// A list that only reports is as if absent, also where it takes the place of an empty one, which admits nobody.
fn warn_of_dry_run_alone(report: &mut Report, place: Place<'_>, raw: &raw::Access, rules: &AccessRules) {
    let first = raw.allow.as_deref().and_then(<[_]>::first);
    let Some((first, list)) = first.zip(rules.allow.as_deref()) else { return };
    if !rules.workspace && !list.is_empty() && list.iter().all(|rule| rule.dry_run) {
        let what = format_args!(
            "{}: has dry-run rules alone, which is as no list: it refuses nobody",
            place.key("allow")
        );
        report.warn(first.spot, what, "to admit nobody meanwhile, deny sources: [0.0.0.0/0, '::/0']");
    }
}

fn resolve(
    report: &mut Report,
    place: Place<'_>,
    list: &[At<raw::Entry>],
    key: &'static str,
) -> Vec<RuleSettings> {
    if let Some(first) = list.get(MAX_RULES) {
        let what = format_args!("{place}: has {} rules; the limit is {MAX_RULES}", list.len());
        report.add(first.spot, what, "write one rule with several values in place of several rules");
        return Vec::new();
    }
    let mut resolved: Vec<RuleSettings> = Vec::with_capacity(list.len());
    for (index, whole) in list.iter().enumerate() {
        let default_name = format!("{key}[{index}]");
        let settings = match &whole.value {
            raw::Entry::Rule(raw) => rule(report, place.item(index), (raw, whole.spot), default_name),
            raw::Entry::Identity(id) => one(report, place.item(index), (id, whole.spot), default_name),
        };
        let Some(settings) = settings else { continue };
        let is_same = |other: &&RuleSettings| {
            RuleSettings { name: settings.name.clone(), ..(*other).clone() } == settings
        };
        if let Some(other) = resolved.iter().find(is_same) {
            let what = format_args!("{}: is the same rule as {}", place.item(index), other.name);
            report.add(whole.spot, what, "remove one of them");
        }
        resolved.push(settings);
    }
    resolved
}

/// The rule that stands for one ID.
fn one(
    report: &mut Report,
    place: Place<'_>,
    (id, spot): (&Identity, Spot),
    name: String,
) -> Option<RuleSettings> {
    match id.read() {
        Ok(id) => Some(RuleSettings {
            name,
            callers: Callers::Identities(vec![IdPattern::Exactly(id)]),
            sources: Vec::new(),
            ports: Vec::new(),
            dry_run: false,
        }),
        Err(wrong) => {
            let what = format_args!("{place}: {} {}", Quoted(id.text()), wrong.what);
            report.add(spot, what, wrong.remedy);
            None
        }
    }
}

fn rule(
    report: &mut Report,
    place: Place<'_>,
    (raw, spot): (&raw::Rule, Spot),
    default_name: String,
) -> Option<RuleSettings> {
    let name = report.value(raw.name.as_ref(), place.key("name"));
    let callers = callers(report, place, (raw, spot));
    let sources = values(report, (raw.sources.as_deref(), spot), place.key("sources"));
    let ports = ports(report, place, (raw, spot));
    let is_conditional = raw.identities.is_some()
        || raw.namespaces.is_some()
        || raw.trust_domains.is_some()
        || raw.sources.is_some()
        || raw.ports.is_some();
    if !is_conditional {
        report.add(
            spot,
            format_args!("{place}: has no condition"),
            "add identities, namespaces, trust_domains, sources or ports; sources: [0.0.0.0/0, '::/0'] is everybody",
        );
    }
    Some(RuleSettings {
        name: name.map_or(default_name, |name| name.as_str().to_owned()),
        callers: callers?,
        sources,
        ports,
        dry_run: raw.dry_run.unwrap_or_default(),
    })
}

fn callers(report: &mut Report, place: Place<'_>, (raw, spot): (&raw::Rule, Spot)) -> Option<Callers> {
    let identities: Vec<IdPattern> =
        values(report, (raw.identities.as_deref(), spot), place.key("identities"));
    let namespaces = values(report, (raw.namespaces.as_deref(), spot), place.key("namespaces"));
    let domains: Vec<TrustDomain> =
        values(report, (raw.trust_domains.as_deref(), spot), place.key("trust_domains"));
    let namespaces: Vec<String> = namespaces.iter().map(|name| name.as_str().to_owned()).collect();
    let first = raw.identities.as_deref().and_then(<[_]>::first);
    if let (Some(first), true) = (first, raw.namespaces.is_some() || raw.trust_domains.is_some()) {
        let what = format_args!("{place}: has identities beside namespaces or trust_domains");
        report.add(first.spot, what, "an ID names its domain and namespace; write two rules to match either");
        return None;
    }
    let first = raw.namespaces.as_deref().and_then(<[_]>::first);
    let count = namespaces.len().saturating_mul(domains.len());
    if let (Some(first), true) = (first, count > MAX_IDENTITIES) {
        let what = format_args!(
            "{place}: namespaces and trust_domains make {count} patterns; the limit is {MAX_IDENTITIES}"
        );
        report.add(first.spot, what, "write several rules");
        return None;
    }
    Some(match (identities.is_empty(), namespaces.is_empty(), domains.is_empty()) {
        (false, ..) => Callers::Identities(identities),
        (true, true, true) => Callers::Any,
        (true, true, false) => {
            Callers::Identities(domains.iter().map(|domain| IdPattern::Below(domain.id())).collect())
        }
        (true, false, true) => Callers::OwnNamespaces(namespaces),
        (true, false, false) => {
            let pairs = domains.iter().flat_map(|domain| namespaces.iter().map(move |name| (domain, name)));
            let patterns: Result<_, _> =
                pairs.map(|(domain, name)| IdPattern::namespace(domain, name)).collect();
            Callers::Identities(patterns.ok()?)
        }
    })
}

fn ports(report: &mut Report, place: Place<'_>, (raw, spot): (&raw::Rule, Spot)) -> Vec<u16> {
    let list = raw.ports.as_deref();
    let place = place.key("ports");
    let items = list.unwrap_or_default().iter().enumerate();
    let ports: Vec<u16> =
        items.filter_map(|(index, port)| report.port(Some(port), place.item(index))).collect();
    check(report, (list, spot), place, &ports);
    ports
}

fn values<S: Scalar<Value: Eq + Hash + Clone>>(
    report: &mut Report,
    (list, rule): (Option<&[At<S>]>, Spot),
    place: Place<'_>,
) -> Vec<S::Value> {
    let items = list.unwrap_or_default().iter().enumerate();
    let values: Vec<_> =
        items.filter_map(|(index, item)| report.value(Some(item), place.item(index))).collect();
    check(report, (list, rule), place, &values);
    values
}

/// A condition has one value or more, each once.
fn check<S: Scalar, T: Eq + Hash>(
    report: &mut Report,
    (list, rule): (Option<&[At<S>]>, Spot),
    place: Place<'_>,
    values: &[T],
) {
    let Some(list) = list else { return };
    let Some(first) = list.first() else {
        report.add(
            rule,
            format_args!("{place}: an empty list matches nobody"),
            "add a value, or remove the key",
        );
        return;
    };
    if list.len() > MAX_VALUES {
        let what = format_args!("{place}: has {} values; the limit is {MAX_VALUES}", list.len());
        report.add(first.spot, what, "write several rules");
    } else if values.len() == list.len() {
        let mut seen = HashSet::new();
        for (index, (raw, value)) in list.iter().zip(values).enumerate() {
            if !seen.insert(value) {
                report.add(
                    raw.spot,
                    format_args!("{}: is listed twice", place.item(index)),
                    "remove one of them",
                );
            }
        }
    }
}

#[cfg(test)]
mod tests;
