//! A foreign control plane's Listeners, Clusters and ClusterLoadAssignments, as a gateway's services. Pure: it
//! takes resources and answers what they come to. Not the protocol (`ads`), and not whom to believe.
//!
//! What is set but not supported is refused by name, and the names of a refused filter chain lead nowhere: a
//! chain that was merely left out would leave its clients to a less particular one.

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

/// Filter chains of one Listener.
const MOST_CHAINS: usize = 20_000;
/// Of each kind of list in a filter chain.
const MOST_ITEMS: usize = 1_000;
/// Ways to meet the matches of one Listener: names times protocols times sources.
const MOST_WAYS: usize = 200_000;
/// Resources of one type.
const MOST_RESOURCES: usize = 50_000;
/// Endpoints of one assignment.
const MOST_ENDPOINTS: usize = 10_000;
/// A refusal names so many of a resource's parts; there may be more.
const NAMED: usize = 8;

/// Untrusted text as it is shown: escaped, and not longer than a name can be.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(300).collect();
    if short.len() == text.len() { format!("{short:?}") } else { format!("{short:?}…") }
}

/// The last part of a type's URL: the name of the message.
fn message(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// The first of them, and how many more there are.
fn listed(parts: &[String]) -> String {
    let mut text = parts.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    if parts.len() > NAMED {
        text += &format!("; and {} more", parts.len() - NAMED);
    }
    text
}
