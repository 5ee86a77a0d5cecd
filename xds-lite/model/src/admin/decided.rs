//! What rules say about a caller, as pages and the audit log show it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::{Decision, DryRun, Rule, RuleScope, Verdict};
use crate::problem::Plain;

/// What is decided about a caller, and by which rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Decided {
    /// The verdict.
    pub verdict: Verdict,
    /// The rule that decides; none: no rule matches.
    pub rule: Option<RuleName>,
    /// Dry-run rules that match, and what each would decide by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dry_run: Vec<WouldDecide>,
    /// The cause of a refusal, where it is no rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// A rule by its scope and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleName {
    /// `service`, `namespace`, `workspace` or `cluster`.
    pub scope: String,
    /// The name of the namespace or workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// The name of the rule, or its place in the scope.
    pub name: String,
}

/// A dry-run rule, and what it would decide by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WouldDecide {
    /// The verdict.
    pub verdict: Verdict,
    /// The rule.
    #[serde(flatten)]
    pub rule: RuleName,
}

impl From<&Decision<'_>> for Decided {
    fn from(decision: &Decision<'_>) -> Decided {
        Decided {
            verdict: decision.verdict,
            rule: decision.rule.map(RuleName::from),
            dry_run: decision.dry_run.iter().map(WouldDecide::from).collect(),
            cause: None,
        }
    }
}

impl From<&Rule> for RuleName {
    fn from(rule: &Rule) -> RuleName {
        let (scope, of) = match &rule.scope {
            RuleScope::Service => ("service", None),
            RuleScope::Namespace(name) => ("namespace", Some(Plain(name).to_string())),
            RuleScope::Workspace(name) => ("workspace", Some(Plain(name).to_string())),
            RuleScope::Cluster => ("cluster", None),
        };
        RuleName { scope: scope.to_owned(), of, name: Plain(&rule.name).to_string() }
    }
}

impl From<&DryRun<'_>> for WouldDecide {
    fn from(dry_run: &DryRun<'_>) -> WouldDecide {
        WouldDecide { verdict: dry_run.verdict, rule: dry_run.rule.into() }
    }
}
