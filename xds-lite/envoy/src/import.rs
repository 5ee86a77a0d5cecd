//! Imports the Listeners, Clusters and ClusterLoadAssignments of another control plane as a gateway's services. Pure:
//! resources in, services out. The protocol is `ads`; which control plane to trust is decided elsewhere.
//!
//! An unsupported field is refused by name, and the names of a refused filter chain have no route: if the chain were
//! merely omitted, its clients would get a less restrictive one.

mod assignment;
mod cluster;
mod fields;
mod filters;
mod listener;
mod matching;
mod node;
mod rbac;
mod state;
mod weights;

#[cfg(test)]
mod tests;

pub use node::{Asker, node};
pub use state::State;

/// Filter chains of one Listener, at most.
const MOST_CHAINS: usize = 20_000;
/// Items of a list in a filter chain, at most.
const MOST_ITEMS: usize = 1_000;
/// Combinations (names times protocols times sources) that one Listener matches, at most.
const MOST_WAYS: usize = 200_000;
/// Resources of one type, at most.
const MOST_RESOURCES: usize = 50_000;
/// Endpoints of one assignment, at most.
const MOST_ENDPOINTS: usize = 10_000;
/// Parts of a resource that a refusal names, at most.
const NAMED: usize = 8;

/// Quotes untrusted text: escaped, and truncated beyond the length of a name.
fn quoted(text: &str) -> String {
    let short: String = text.chars().take(300).collect();
    if short.len() == text.len() { format!("{short:?}") } else { format!("{short:?}…") }
}

/// The message name: the last part of a type URL.
fn message(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// Joins the first parts, with the number of the others.
fn listed(parts: &[String]) -> String {
    let mut text = parts.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if parts.len() > NAMED {
        text += &format!("; and {} more", parts.len() - NAMED);
    }
    text
}
