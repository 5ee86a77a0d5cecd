//! Sites whose applications speak no TLS and know only names: a cluster with its agent, and a gateway that gets certificates,
//! services and names from it. In a network namespace `capture` leads the applications to both.

use std::fmt::Write as _;
use std::process::{Command, Output};

use isthmus_model::admin::gateway::{Issued, Trust};

use crate::binary;
use crate::cluster::Cluster;
use crate::gateway::Gateway;
use crate::netns::{Star, ip};
use crate::setup::Setup;

/// A listener for every virtual address.
pub const LISTENER: &str = "- { name: apps, address: '[::]:15001', ipv6_only: false, side: outbound, mode: originate, \
                            original_destination: redirect }";
/// What is captured: the addresses below, and questions to any name server.
pub const CAPTURE: &str =
    "capture: { ranges: [240.15.0.0/16, 'fd00:15::/64'], dns: ['127.0.0.1:15053'], exclude_users: [nobody] }";
/// A name server of the agent that answers for its own names alone.
pub const DNS: &str = "{ listen: '127.0.0.1:15053', upstreams: off }";

/// What the tests of captured applications need, or what is missing.
///
/// # Errors
/// The program that is missing.
pub fn requirements(programs: &[&str]) -> Result<(), String> {
    for program in programs.iter().chain([&"nft"]) {
        Command::new(program).arg("--version").output().map_err(|error| format!("{program}: {error}"))?;
    }
    Ok(())
}

/// A cluster on a leg of a star; its agent issues certificates of at most this lifetime.
#[must_use]
pub fn cluster(name: &str, (star, leg): (&Star, usize), longest: &str) -> Cluster {
    let mut cluster = Cluster::new(name).inside(star.leg(leg)).at(Star::address(leg).into());
    cluster.issue(longest);
    cluster
}

/// Leads virtual IPv4 addresses to where everything else is: `connect` needs some route.
///
/// # Errors
/// What `ip` says.
pub fn route(star: &Star, leg: usize, via: usize) -> Result<(), String> {
    ip(&format!("-n {} route add default via {}", star.leg(leg), Star::address(via)))
}

/// A gateway that enrols with a token and gets the rest from its agent.
#[must_use]
pub fn managed(cluster: &Cluster, setup: Setup) -> Setup {
    let token = cluster.token(&["--gateway", "gw-1"]).unwrap();
    let trust = cluster.path("gateway-trust").display().to_string();
    let mut keys = format!("trust: {{ directory: {trust}, token: {token} }}\n");
    writeln!(keys, "node: {{ cluster: {} }}", cluster.name()).unwrap();
    write!(keys, "xds: {{ agents: ['{}'] }}", cluster.agent_address()).unwrap();
    match cluster.namespace() {
        Some(namespace) => setup.with(&keys).namespace(namespace),
        None => setup.with(&keys),
    }
}

/// Loads the rules that lead a site's applications to its gateway and agent.
#[track_caller]
pub fn capture(cluster: &Cluster, gateway: &Gateway) {
    let namespace = cluster.namespace().expect("a namespace of its own");
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(binary::gateway());
    command.args(["capture", "apply", "--config"]).arg(gateway.file());
    let output: Output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The certificates that a gateway has of its agent.
#[must_use]
pub fn issued(gateway: &Gateway) -> Vec<Issued> {
    match gateway.status().trust {
        Some(Trust::Loaded(trust)) => trust.issued,
        _ => Vec::new(),
    }
}
