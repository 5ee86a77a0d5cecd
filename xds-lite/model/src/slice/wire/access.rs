//! Encodes and decodes access rules. What an old reader would miss is named in `requires`.

use isthmus_certs::IdPattern;
use isthmus_proto::isthmus::v1 as pb;
use prost::Message as _;

use super::{MAX_LIST, Result, bounded, each, port_number, text, texts, within, wrong};
use crate::access::{Access, MAX_BYTES, MAX_COMBINED, MAX_IDENTITIES, Rule, RuleScope, Unmatched};
use crate::slice::Tls;

/// The word in `requires` of a slice whose rules refuse somebody.
pub(super) const WORD: &str = "access";

impl Access {
    /// The bytes of its message.
    pub(crate) fn encoded_len(&self) -> usize {
        self.to_message().encoded_len()
    }

    pub(super) fn to_message(&self) -> pb::Access {
        pb::Access {
            unmatched: match self.unmatched {
                Unmatched::Allowed => pb::Unmatched::Allowed,
                Unmatched::DeniedIfSeen => pb::Unmatched::DeniedIfSeen,
                Unmatched::Denied => pb::Unmatched::Denied,
            }
            .into(),
            allow: self.allow.iter().map(Rule::to_message).collect(),
            deny: self.deny.iter().map(Rule::to_message).collect(),
        }
    }

    /// The access of a port, also of one that says nothing about it.
    pub(super) fn of_port(message: Option<pb::Access>, tls: Tls) -> Result<Access> {
        let Some(message) = message else { return Ok(Access::unwritten(tls)) };
        let access = within(|| "access".to_owned(), Access::from_message(message))?;
        if tls == Tls::Terminated && access.unmatched() != Unmatched::Denied {
            return wrong("access.unmatched", "must be denied where TLS is terminated");
        }
        Ok(access)
    }

    pub(super) fn from_message(message: pb::Access) -> Result<Access> {
        let size = message.encoded_len();
        if size > MAX_BYTES {
            return wrong("access", format!("has {size} bytes; the limit is {MAX_BYTES}"));
        }
        bounded("allow", message.allow.len(), MAX_COMBINED)?;
        bounded("deny", message.deny.len(), MAX_COMBINED)?;
        let access = Access {
            unmatched: match pb::Unmatched::try_from(message.unmatched) {
                Ok(pb::Unmatched::Allowed) => Unmatched::Allowed,
                Ok(pb::Unmatched::DeniedIfSeen) => Unmatched::DeniedIfSeen,
                Ok(pb::Unmatched::Denied) => Unmatched::Denied,
                Ok(pb::Unmatched::Unspecified) | Err(_) => return wrong("unmatched", "has an unknown value"),
            },
            allow: each("allow", message.allow, Rule::from_message)?,
            deny: each("deny", message.deny, Rule::from_message)?,
        };
        let is_open = access.unmatched == Unmatched::Allowed;
        if is_open && access.allow.iter().any(|rule| !rule.dry_run) {
            return wrong("unmatched", "must not be allowed where an allow rule decides");
        }
        Ok(access)
    }
}

impl Rule {
    fn to_message(&self) -> pb::AccessRule {
        let (scope, scope_name) = match &self.scope {
            RuleScope::Service => (pb::RuleScope::Service, ""),
            RuleScope::Namespace(name) => (pb::RuleScope::Namespace, name.as_str()),
            RuleScope::Workspace(name) => (pb::RuleScope::Workspace, name.as_str()),
            RuleScope::Cluster => (pb::RuleScope::Cluster, ""),
        };
        pb::AccessRule {
            scope: scope.into(),
            scope_name: scope_name.to_owned(),
            name: self.name.clone(),
            identities: texts(&self.identities),
            sources: texts(&self.sources),
            ports: self.ports.iter().map(|port| u32::from(*port)).collect(),
            dry_run: self.dry_run,
        }
    }

    fn from_message(message: pb::AccessRule) -> Result<Rule> {
        bounded("identities", message.identities.len(), MAX_IDENTITIES)?;
        bounded("sources", message.sources.len(), MAX_LIST)?;
        bounded("ports", message.ports.len(), MAX_LIST)?;
        let name = text("scope_name", message.scope_name)?;
        Ok(Rule {
            scope: match pb::RuleScope::try_from(message.scope) {
                Ok(pb::RuleScope::Service) => RuleScope::Service,
                Ok(pb::RuleScope::Namespace) => RuleScope::Namespace(name),
                Ok(pb::RuleScope::Workspace) => RuleScope::Workspace(name),
                Ok(pb::RuleScope::Cluster) => RuleScope::Cluster,
                Ok(pb::RuleScope::Unspecified) | Err(_) => return wrong("scope", "has an unknown value"),
            },
            name: text("name", message.name)?,
            identities: each("identities", message.identities, |id| {
                IdPattern::parse(&id).or_else(|error| wrong("identity", error))
            })?,
            sources: each("sources", message.sources, |range| {
                range.parse().or_else(|error| wrong("range", error))
            })?,
            ports: each("ports", message.ports, port_number)?,
            dry_run: message.dry_run,
        })
    }
}
