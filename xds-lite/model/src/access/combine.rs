//! Combines the rules of all scopes into the access to one service. What cannot be combined is an error: a rule is
//! never left out.

use isthmus_certs::{IdPattern, SpiffeIdError, TrustDomain};

use crate::services::TlsMode;

use super::{
    Access, AccessRules, Callers, MAX_BYTES, MAX_COMBINED, MAX_IDENTITIES, Rule, RuleScope, RuleSettings,
    Unmatched,
};

/// The rules that apply to one service.
#[derive(Clone, Copy, Debug)]
pub struct Scopes<'a> {
    /// The trust domain of the cluster, if it is known.
    pub own: Option<&'a TrustDomain>,
    /// Rules of the cluster.
    pub cluster: Option<&'a AccessRules>,
    /// The workspaces that have the service.
    pub workspaces: &'a [Workspace<'a>],
    /// Name and rules of the namespace.
    pub namespace: Option<(&'a str, &'a AccessRules)>,
    /// Rules of the service.
    pub service: Option<&'a AccessRules>,
}

/// A workspace that has the service.
#[derive(Clone, Copy, Debug)]
pub struct Workspace<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its rules.
    pub rules: Option<&'a AccessRules>,
    /// Its namespaces, each in a trust domain of its clusters.
    pub members: &'a [(TrustDomain, String)],
}

/// Why rules cannot be combined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// Rules about identities apply where nobody sees them.
    #[error(
        "access of the {0} has rules about identities, which nobody sees where TLS passes through; set \
         `tls: terminate` on the service, or `advisory: true` on the rules"
    )]
    Unseen(RuleScope),
    /// A rule means namespaces of the own trust domain, and none is known.
    #[error(
        "access of the {0} names namespaces, and no trust domain is the own one here; add `trust_domains` to the rule"
    )]
    NoDomain(RuleScope),
    /// There are too many rules.
    #[error(
        "access has {0} rules in all scopes; the limit is {MAX_COMBINED}; write fewer rules with several values"
    )]
    Rules(usize),
    /// A rule or a workspace has too many identities.
    #[error("access: {0} has {1} identities; the limit is {MAX_IDENTITIES}; split the rule or the workspace")]
    Identities(String, usize),
    /// The rules are too large.
    #[error("access has {0} bytes in all scopes; the limit is {MAX_BYTES}; write fewer rules")]
    Size(usize),
    /// A namespace cannot be part of an identity.
    #[error("access: namespace {0:?} cannot be part of a SPIFFE ID: {1}")]
    Namespace(String, SpiffeIdError),
}

impl Scopes<'_> {
    /// The access to a service of this mode.
    ///
    /// # Errors
    /// The rules are too many, too large, or cannot be enforced.
    pub fn access(&self, tls: TlsMode) -> Result<Access, AccessError> {
        let mut access = if tls == TlsMode::Terminate { Access::closed() } else { Access::open() };
        for (scope, rules) in self.scopes() {
            if rules.asks_for_identity() && tls == TlsMode::Passthrough && !rules.advisory {
                return Err(AccessError::Unseen(scope));
            }
            if rules.allow.as_ref().is_some_and(Vec::is_empty) {
                access.unmatched = Unmatched::Denied;
            }
            let allow = rules.allow.iter().flatten().map(|rule| self.rule(&scope, rule));
            let mut allow = allow.collect::<Result<Vec<_>, _>>()?;
            if rules.workspace {
                allow.extend(self.members(&scope)?);
                access.tighten(Unmatched::of_identities(rules));
            }
            for rule in allow.iter().filter(|rule| !rule.dry_run) {
                let asks = !rule.identities.is_empty();
                access.tighten(if asks { Unmatched::of_identities(rules) } else { Unmatched::Denied });
            }
            access.allow.extend(allow);
            for rule in &rules.deny {
                access.deny.push(self.rule(&scope, rule)?);
            }
        }
        access.within_limits()
    }

    fn scopes(&self) -> impl Iterator<Item = (RuleScope, &AccessRules)> {
        let service = self.service.map(|rules| (RuleScope::Service, rules));
        let namespace = self.namespace.map(|(name, rules)| (RuleScope::Namespace(name.to_owned()), rules));
        let workspaces = self.workspaces.iter().filter_map(|workspace| {
            Some((RuleScope::Workspace(workspace.name.to_owned()), workspace.rules?))
        });
        let cluster = self.cluster.map(|rules| (RuleScope::Cluster, rules));
        service.into_iter().chain(namespace).chain(workspaces).chain(cluster)
    }

    fn rule(&self, scope: &RuleScope, rule: &RuleSettings) -> Result<Rule, AccessError> {
        let identities = match &rule.callers {
            Callers::Any => Vec::new(),
            Callers::Identities(identities) => identities.clone(),
            Callers::OwnNamespaces(names) => {
                let own = self.own.ok_or_else(|| AccessError::NoDomain(scope.clone()))?;
                names.iter().map(|name| namespace(own, name)).collect::<Result<_, _>>()?
            }
        };
        Ok(Rule {
            scope: scope.clone(),
            name: rule.name.clone(),
            identities,
            sources: rule.sources.clone(),
            ports: rule.ports.clone(),
            dry_run: rule.dry_run,
        })
    }

    /// One allow rule for each workspace with members: of the scope's own, otherwise of all that have the service.
    fn members(&self, scope: &RuleScope) -> Result<Vec<Rule>, AccessError> {
        let is_meant = |workspace: &&Workspace<'_>| match scope {
            RuleScope::Workspace(name) => workspace.name == name,
            RuleScope::Service | RuleScope::Namespace(_) | RuleScope::Cluster => true,
        };
        let mut rules = Vec::new();
        for workspace in
            self.workspaces.iter().filter(is_meant).filter(|workspace| !workspace.members.is_empty())
        {
            let members = workspace.members.iter().map(|(domain, name)| namespace(domain, name));
            rules.push(Rule {
                scope: scope.clone(),
                name: format!("workspace {}", workspace.name),
                identities: members.collect::<Result<_, _>>()?,
                sources: Vec::new(),
                ports: Vec::new(),
                dry_run: false,
            });
        }
        Ok(rules)
    }
}

impl Unmatched {
    /// What an allow rule about identities means for callers that it does not match.
    fn of_identities(rules: &AccessRules) -> Unmatched {
        if rules.advisory { Unmatched::DeniedIfSeen } else { Unmatched::Denied }
    }
}

impl Access {
    fn tighten(&mut self, unmatched: Unmatched) {
        self.unmatched = match (self.unmatched, unmatched) {
            (Unmatched::Denied, _) | (_, Unmatched::Denied) => Unmatched::Denied,
            (Unmatched::DeniedIfSeen, _) | (_, Unmatched::DeniedIfSeen) => Unmatched::DeniedIfSeen,
            (Unmatched::Allowed, Unmatched::Allowed) => Unmatched::Allowed,
        };
    }

    fn within_limits(self) -> Result<Access, AccessError> {
        let most = self.allow.len().max(self.deny.len());
        if most > MAX_COMBINED {
            return Err(AccessError::Rules(most));
        }
        if let Some(rule) = self.rules().find(|rule| rule.identities.len() > MAX_IDENTITIES) {
            return Err(AccessError::Identities(rule.to_string(), rule.identities.len()));
        }
        match self.encoded_len() {
            size if size > MAX_BYTES => Err(AccessError::Size(size)),
            _ => Ok(self),
        }
    }
}

fn namespace(domain: &TrustDomain, name: &str) -> Result<IdPattern, AccessError> {
    IdPattern::namespace(domain, name).map_err(|error| AccessError::Namespace(name.to_owned(), error))
}
