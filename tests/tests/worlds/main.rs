//! Separate clusters: exports and imports (`agreed`), outages without failed calls (`returning`), joining
//! (`joining`), and hostile parties: peers (`hostile`, `greedy`), a gateway's own agent (`misled`), strangers
//! (`strangers`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic anywhere"
)]

mod agreed;
mod busy;
mod greedy;
mod hostile;
mod impostor;
mod joining;
mod misled;
mod returning;
mod strangers;

use isthmus_tests::cluster::{Cluster, until_status};
use isthmus_tests::endpoint::Scripted;

const DETAILS: &str = "details.bookinfo.svc.cluster.local";
const REVIEWS: &str = "reviews.bookinfo.svc.cluster.local";
const RATINGS: &str = "ratings.bookinfo.svc.cluster.local";
const PAYROLL: &str = "secret.payroll.svc.cluster.local";
/// A host pattern for the whole namespace.
const BOOKINFO: &str = "'*.bookinfo.svc.cluster.local'";
/// The listener of a cluster's second gateway.
const OUTBOUND: &str = "- { name: outbound, address: '127.0.0.1:0', side: outbound }";
const MIB: u64 = 1 << 20;

/// A registry file with one service.
fn service(host: &str, endpoints: &[&Scripted], more: &str) -> String {
    let endpoint = |(place, one): (usize, &&Scripted)| {
        format!("{{ address: '{}', instance: db-{place}, aliases: [src-{place}.pxc] }}", one.address())
    };
    let endpoints: Vec<_> = endpoints.iter().enumerate().map(endpoint).collect();
    format!("services: [{{ host: {host}, {more}endpoints: [{}] }}]", endpoints.join(", "))
}

fn restart(cluster: &mut Cluster) {
    cluster.stop();
    cluster.start();
}

/// Why a host of another cluster is quarantined; `None` if it is imported.
fn held(cluster: &Cluster, from: &str, host: &str) -> Option<String> {
    let all = cluster.status().imports.held_back;
    all.into_iter().find(|slice| slice.cluster == from && slice.host == host)?.held
}

fn imported(cluster: &Cluster) -> Vec<String> {
    let all = cluster.status().imports.imported;
    all.iter().map(|slice| format!("{}/{}", slice.cluster, slice.host)).collect()
}

fn is_connected(cluster: &Cluster, peer: &str) -> bool {
    cluster.status().peers.get(peer).is_some_and(|peer| peer.connected)
}

/// Waits until a field of a peer's status contains this word.
fn said_of(cluster: &Cluster, peer: &str, key: &str, word: &str) -> String {
    until_status(cluster, &format!("{key} of {peer} says {word}"), |status| {
        Some(status["peers"][peer][key].as_str()?.to_owned()).filter(|text| text.contains(word))
    })
}
