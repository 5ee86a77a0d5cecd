//! Clusters that are apart: what one shows another and what it does not (`agreed`), what comes and goes without a
//! failed call (`returning`), how one joins (`joining`), and what hostile ones achieve: peers (`hostile`, `greedy`), a gateway's
//! own agent (`misled`), strangers (`strangers`).

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
/// All of the namespace, as a list of names has it.
const BOOKINFO: &str = "'*.bookinfo.svc.cluster.local'";
/// What a second gateway of a cluster listens on.
const OUTBOUND: &str = "- { name: outbound, address: '127.0.0.1:0', side: outbound }";
const MIB: u64 = 1 << 20;

/// A file of the registry with one service.
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

/// What became of a host that another cluster offers: none, it is let in.
fn held(cluster: &Cluster, from: &str, host: &str) -> Option<String> {
    let status = cluster.ask("/status");
    let all = status["imports"]["held_back"].as_array().unwrap();
    let one = all.iter().find(|one| one["cluster"] == from && one["host"] == host)?;
    Some(one["held"].as_str().unwrap().to_owned())
}

fn imported(cluster: &Cluster) -> Vec<String> {
    let status = cluster.ask("/status");
    let all = status["imports"]["imported"].as_array().unwrap();
    all.iter()
        .map(|one| format!("{}/{}", one["cluster"].as_str().unwrap(), one["host"].as_str().unwrap()))
        .collect()
}

fn is_connected(cluster: &Cluster, peer: &str) -> bool {
    cluster.ask("/status")["peers"][peer]["connected"] == true
}

/// A word on how it stands with a peer, once there is one.
fn said_of(cluster: &Cluster, peer: &str, key: &str, word: &str) -> String {
    until_status(cluster, &format!("{key} of {peer} says {word}"), |status| {
        Some(status["peers"][peer][key].as_str()?.to_owned()).filter(|said| said.contains(word))
    })
}
