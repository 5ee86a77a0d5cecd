//! The agent of a cluster: watches the cluster's registry, exchanges slices with other clusters' agents and configures
//! the cluster's gateways. Read `agent` first; its parts are crates of their own, in the folders beside this one.

pub mod admin;
pub mod agent;
pub mod cli;
pub mod dns;
