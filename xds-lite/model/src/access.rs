//! Access to a port of a service: the rules of all scopes together, and their decision about a caller. Any deny
//! refuses; where any allow exists, one must match; the order of rules means nothing. Who the caller is, and what
//! becomes of a refused one, is the gateway's part.

mod combine;
mod early;
mod project;
pub mod raw;
mod resolve;

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_certs::{IdPattern, SpiffeId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::problem::Plain;
use crate::slice::Tls;

pub use combine::{AccessError, Scopes, Workspace};
pub use early::RemoteAccess;
pub use resolve::{AccessRules, Callers, RuleSettings, rules};

/// Namespaces, and workspaces, that have rules.
pub const MAX_SCOPES: usize = 4_096;
/// Rules of one scope, `allow` and `deny` each.
pub const MAX_RULES: usize = 256;
/// Values of one condition of a rule.
pub const MAX_VALUES: usize = 256;
/// Identities of one rule, where namespaces and trust domains multiply.
pub const MAX_IDENTITIES: usize = 1_024;
/// Rules of all scopes that apply to one port, `allow` and `deny` each.
pub const MAX_COMBINED: usize = 2_048;
/// Bytes of all rules of one port in their message.
pub const MAX_BYTES: usize = 256 * 1024;

/// The access to one port, of all scopes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Access {
    pub(crate) unmatched: Unmatched,
    pub(crate) allow: Vec<Rule>,
    pub(crate) deny: Vec<Rule>,
}

/// What becomes of a caller that no rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unmatched {
    /// It may connect: no allow rule exists.
    Allowed,
    /// It is refused where its identity is seen: all allow rules are advisory.
    DeniedIfSeen,
    /// It is refused.
    Denied,
}

/// One rule: it matches a caller that meets every condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Rule {
    /// Where it is written.
    pub scope: RuleScope,
    /// Its name, or its place in the scope: `allow[0]`.
    pub name: String,
    /// Condition: the caller has one of these identities. Empty: none.
    pub identities: Vec<IdPattern>,
    /// Condition: the caller's address is in one of these ranges. Empty: none.
    pub sources: Vec<IpNet>,
    /// Condition: the caller asks for one of these ports. Empty: none.
    pub ports: Vec<u16>,
    /// Whether it is only reported, and decides nothing.
    pub dry_run: bool,
}

/// Where a rule is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleScope {
    /// At the service.
    Service,
    /// At its namespace.
    Namespace(String),
    /// At a workspace that has its namespace.
    Workspace(String),
    /// At the cluster.
    Cluster,
}

/// Who asks for a port.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// Its verified identity; `None` where TLS passes through and nobody sees it.
    pub identity: Option<&'a SpiffeId>,
    /// Its address.
    pub source: IpAddr,
    /// The port of the service.
    pub port: u16,
}

/// What is decided about a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Verdict {
    /// It may connect.
    Allowed,
    /// It is refused.
    Denied,
}

/// A decision with its reasons. Displays as a phrase for logs: `denied by service rule deny[0]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision<'a> {
    /// What is decided.
    pub verdict: Verdict,
    /// The rule that decided; `None`: no rule matches.
    pub rule: Option<&'a Rule>,
    /// Rules that match and only report.
    pub dry_run: Vec<DryRun<'a>>,
}

/// A rule that matches and only reports. Displays as the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DryRun<'a> {
    /// What the rule would decide by itself.
    pub verdict: Verdict,
    /// The rule.
    pub rule: &'a Rule,
}

impl Access {
    /// Access without rules: everybody may connect.
    #[must_use]
    pub fn open() -> Access {
        Access { unmatched: Unmatched::Allowed, allow: Vec::new(), deny: Vec::new() }
    }

    /// Access without rules where nothing is allowed by default.
    #[must_use]
    pub fn closed() -> Access {
        Access { unmatched: Unmatched::Denied, ..Access::open() }
    }

    /// Access to a port for which no rule is written.
    #[must_use]
    pub fn unwritten(tls: Tls) -> Access {
        if tls == Tls::Terminated { Access::closed() } else { Access::open() }
    }

    /// What becomes of a caller that no rule matches.
    #[must_use]
    pub fn unmatched(&self) -> Unmatched {
        self.unmatched
    }

    /// Whether a reader that does not know the rules would let somebody in whom they refuse.
    #[must_use]
    pub fn restricts(&self) -> bool {
        self.unmatched != Unmatched::Allowed || self.deny.iter().any(|rule| !rule.dry_run)
    }

    /// Decides about a caller.
    #[must_use]
    pub fn decide(&self, caller: &Caller<'_>) -> Decision<'_> {
        let caller = Caller { source: caller.source.to_canonical(), ..*caller };
        let mut dry_run = Vec::new();
        let deny = first(&self.deny, &caller, Verdict::Denied, &mut dry_run);
        let allow = first(&self.allow, &caller, Verdict::Allowed, &mut dry_run);
        let (verdict, rule) = match (deny, allow) {
            (Some(rule), _) => (Verdict::Denied, Some(rule)),
            (None, Some(rule)) => (Verdict::Allowed, Some(rule)),
            (None, None) => (self.unmatched.verdict(caller.identity), None),
        };
        Decision { verdict, rule, dry_run }
    }

    /// All rules.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.deny.iter().chain(&self.allow)
    }
}

/// The first rule of a list that matches a caller and decides; those that only report go to `dry_run`.
fn first<'a>(
    rules: impl IntoIterator<Item = &'a Rule>,
    caller: &Caller<'_>,
    verdict: Verdict,
    dry_run: &mut Vec<DryRun<'a>>,
) -> Option<&'a Rule> {
    let mut first = None;
    for rule in rules.into_iter().filter(|rule| rule.matches(caller)) {
        if rule.dry_run {
            dry_run.push(DryRun { verdict, rule });
        } else if first.is_none() {
            first = Some(rule);
        }
    }
    first
}

impl Unmatched {
    fn verdict(self, identity: Option<&SpiffeId>) -> Verdict {
        match (self, identity) {
            (Unmatched::Allowed, _) | (Unmatched::DeniedIfSeen, None) => Verdict::Allowed,
            (Unmatched::DeniedIfSeen, Some(_)) | (Unmatched::Denied, _) => Verdict::Denied,
        }
    }
}

impl Rule {
    fn matches(&self, caller: &Caller<'_>) -> bool {
        let is_one =
            || caller.identity.is_some_and(|id| self.identities.iter().any(|pattern| pattern.matches(id)));
        let is_from = || self.sources.iter().any(|range| range.contains(&caller.source));
        (self.ports.is_empty() || self.ports.contains(&caller.port))
            && (self.sources.is_empty() || is_from())
            && (self.identities.is_empty() || is_one())
    }
}

impl fmt::Display for RuleScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleScope::Service => f.write_str("service"),
            RuleScope::Namespace(name) => write!(f, "namespace {}", Plain(name)),
            RuleScope::Workspace(name) => write!(f, "workspace {}", Plain(name)),
            RuleScope::Cluster => f.write_str("cluster"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}", self.scope, Plain(&self.name))
    }
}

impl fmt::Display for DryRun<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rule.fmt(f)
    }
}

impl fmt::Display for Decision<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.verdict, self.rule) {
            (Verdict::Allowed, Some(rule)) => write!(f, "allowed by {rule}"),
            (Verdict::Denied, Some(rule)) => write!(f, "denied by {rule}"),
            (Verdict::Allowed, None) => f.write_str("allowed: no rule denies it"),
            (Verdict::Denied, None) => f.write_str("denied: no rule allows it"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
