//! The written form of `access:`. Its comments are the descriptions in the JSON Schema. Values are resolved in
//! [`super::rules`].

use std::fmt;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::address::{Cidr, Label};
use crate::at::At;
use crate::identity::{DomainName, Identity, IdentityPattern};
use crate::units::Count;
use crate::yaml::present;

/// Rules for callers. In all scopes (service, namespace, workspace, cluster) any `deny` refuses; where any `allow`
/// exists, one must match.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Access {
    /// Callers that may connect. An empty list admits nobody. Default: no list; services with `tls: terminate`
    /// admit nobody without one, others everybody.
    #[serde(default, deserialize_with = "present")]
    pub(super) allow: Option<Vec<At<Entry>>>,
    /// Callers that are refused, whatever allows them. Default: none.
    #[serde(default, deserialize_with = "present")]
    pub(super) deny: Option<Vec<At<Entry>>>,
    /// `workspace` allows the identities of the workspace's namespaces, in the trust domains of its clusters.
    #[serde(default, deserialize_with = "present")]
    #[schemars(extend("default" = "rules"))]
    pub(super) mode: Option<At<Mode>>,
    /// Rules about identities may stand at services whose TLS passes through: only gateways that originate TLS
    /// see the caller and enforce them.
    #[serde(default, deserialize_with = "present")]
    #[schemars(extend("default" = false))]
    pub(super) advisory: Option<bool>,
}

/// Who is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum Mode {
    /// The rules say.
    Rules,
    /// The rules say, and the workspace's own identities.
    Workspace,
}

/// An entry of a list: a rule, or one SPIFFE ID in place of a rule for it.
#[derive(Debug, JsonSchema)]
#[serde(untagged)]
pub(super) enum Entry {
    /// A rule.
    Rule(Rule),
    /// The caller with this ID.
    Identity(Identity),
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entry, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

/// Reads a text as an ID and a mapping as a rule; serde's own untagged enums would lose the place of a mistake.
struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a SPIFFE ID or a rule")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Entry, E> {
        Ok(Entry::Identity(Identity::written(text)))
    }

    fn visit_map<A: MapAccess<'de>>(self, keys: A) -> Result<Entry, A::Error> {
        Rule::deserialize(MapAccessDeserializer::new(keys)).map(Entry::Rule)
    }
}

/// A rule matches a caller that meets all of its conditions. It has at least one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    /// Its name in audit and `explain`, one DNS label, unique in the scope. Default: its place, such as `allow[0]`.
    #[serde(default, deserialize_with = "present")]
    pub(super) name: Option<At<Label>>,
    /// Condition: the caller has one of these SPIFFE IDs. `/*` at the end stands for every ID under whole path
    /// segments.
    #[serde(default, deserialize_with = "present")]
    pub(super) identities: Option<Vec<At<IdentityPattern>>>,
    /// Condition: the caller's ID is under `/ns/NAMESPACE` of one of these namespaces, in `trust_domains` or else
    /// the cluster's own one.
    #[serde(default, deserialize_with = "present")]
    pub(super) namespaces: Option<Vec<At<Label>>>,
    /// Condition: the caller is of one of these trust domains.
    #[serde(default, deserialize_with = "present")]
    pub(super) trust_domains: Option<Vec<At<DomainName>>>,
    /// Condition: the caller's address is in one of these ranges.
    #[serde(default, deserialize_with = "present")]
    pub(super) sources: Option<Vec<At<Cidr>>>,
    /// Condition: the caller asks for one of these ports.
    #[serde(default, deserialize_with = "present")]
    pub(super) ports: Option<Vec<At<Count>>>,
    /// Only report a match: the rule neither allows nor denies.
    #[serde(default, deserialize_with = "present")]
    #[schemars(extend("default" = false))]
    pub(super) dry_run: Option<bool>,
}
