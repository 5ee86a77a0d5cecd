//! The agent of a cluster: it follows the cluster's registry and the agents of other clusters, and serves its gateways.
//! Read `agent` first. What it is made of stands in crates of its own, in the folders beside this one.

pub mod admin;
pub mod agent;
pub mod cli;
