//! The commands `peers list` and `peers forget`: joined clusters.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use isthmus_store::Store;
use serde_json::json;

use super::{CliError, ListArgs};
use crate::join::{Peer, Rfc3339, forget, forget_lost, peers, unix_seconds};
use isthmus_model::file::AGENT;
use isthmus_model::slice::Cluster;

/// Examples of `isthmus-agent peers list`, for its help.
const LIST_HELP: &str = "\
Examples:
  isthmus-agent peers list
  isthmus-agent peers list --config agent.yaml --json

Peers that the agent's file lists under `peers:` are not shown; see `isthmus-agent status`.";

/// Examples of `isthmus-agent peers forget`, for its help.
const FORGET_HELP: &str = "\
Examples:
  isthmus-agent peers forget west
  isthmus-agent peers forget --lost

Restart the agent to stop following the cluster, and do the same on the other side. Its trust
bundle stays in the directory of bundles: remove it there to stop trusting the cluster.";

/// The `peers` commands.
#[derive(Debug, Subcommand)]
pub enum PeersCommand {
    /// List the clusters that have joined by a token, and lost records
    #[command(after_help = LIST_HELP)]
    List(ListArgs),
    /// Forget a cluster that has joined by a token
    #[command(after_help = FORGET_HELP)]
    Forget(ForgetArgs),
}

/// The arguments of `peers forget`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whom").required(true).args(["cluster", "lost"])))]
pub struct ForgetArgs {
    /// The configuration file (YAML)
    #[arg(long, value_name = "FILE", default_value = AGENT)]
    pub config: PathBuf,
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    pub cluster: Option<Cluster>,
    /// Forget all records that were damaged and are lost
    #[arg(long)]
    pub lost: bool,
}

impl ListArgs {
    /// Lists the joined clusters, and returns the output.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list_peers(&self, store: &dyn Store) -> Result<String, CliError> {
        let joined = peers(store)?;
        let name = |cluster: &Option<Cluster>| cluster.as_ref().map_or("?".to_owned(), ToString::to_string);
        if self.json {
            let lost = joined.lost.iter().map(
                |(cluster, why)| json!({ "cluster": cluster.as_ref().map(ToString::to_string), "why": why }),
            );
            return Ok(format!("{:#}", json!({ "peers": joined.peers, "lost": lost.collect::<Vec<_>>() })));
        }
        if joined.peers.is_empty() && joined.lost.is_empty() {
            return Ok("no cluster has joined".to_owned());
        }
        let mut text = format!("{:<15}  {:<20}  {:<20}  AGENT", "CLUSTER", "JOINED", "TRUST DOMAIN");
        for Peer { introduction, joined_at } in &joined.peers {
            let (party, joined) = (&introduction.party, Rfc3339(unix_seconds(*joined_at)).to_string());
            let (cluster, domain) = (party.cluster.as_str(), party.trust_domain.as_str());
            let _infallible =
                write!(text, "\n{cluster:<15}  {joined:<20}  {domain:<20}  {}", introduction.address);
        }
        for (cluster, why) in &joined.lost {
            let _infallible = write!(text, "\n{:<15}  lost: {why}", name(cluster));
        }
        Ok(text)
    }
}

impl ForgetArgs {
    /// Forgets, and returns the output.
    ///
    /// # Errors
    /// The cluster has not joined, or the store cannot be changed.
    pub fn run(&self, store: &dyn Store) -> Result<String, CliError> {
        let Some(cluster) = &self.cluster else {
            return Ok(match forget_lost(store)? {
                0 => "no record is lost".to_owned(),
                _ => "forgot the lost records".to_owned(),
            });
        };
        if !forget(store, cluster)? {
            return Err(CliError::NotJoined(cluster.clone()));
        }
        Ok(format!("forgot {cluster}; restart the agent to stop following it"))
    }
}
