//! The commands `token` and `join`: arguments and output. The caller turns the configuration into a [`Context`] and
//! creates the tokens for first certificates.

mod peers;

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{ArgGroup, Args, Subcommand};
use isthmus_certs::{SpiffeId, TrustDomain};
use isthmus_store::StoreError;
use serde_json::json;

use super::{
    Context, CreateError, JoinError, Party, RevokeError, Rfc3339, State, Token, TokenError, Tokens, create,
    join, text, unix_seconds,
};
use isthmus_model::address::Target;
use isthmus_model::file::AGENT;
use isthmus_model::slice::Cluster;

pub use peers::{ForgetArgs, PeersCommand};

/// Size limit of a token on standard input.
const LONGEST_INPUT: u64 = 4_096;

/// Examples of `isthmus-agent token create`, for its help.
pub const CREATE_HELP: &str = "\
Examples:
  isthmus-agent token create --for west --trust-domain west.example
  isthmus-agent token create --gateway gw-1
  isthmus-agent token create --config agent.yaml --workload spiffe://east.example/ns/db/sa/mysql

A holder of the token can join as that cluster, or become that gateway or workload, once. Run
this as the agent's user: the agent reads the token's record when the token is presented, and
needs no restart.";

/// Examples of `isthmus-agent token list`, for its help.
pub const LIST_HELP: &str = "\
Examples:
  isthmus-agent token list
  isthmus-agent token list --config agent.yaml --json

Tokens are deleted an hour after they expire. Secrets are neither stored nor shown.";

/// An example of `isthmus-agent token revoke`, for its help.
pub const REVOKE_HELP: &str = "\
Example:
  isthmus-agent token revoke 1f0c9a3e

Whoever presents the token from then on is refused. A token that was used is not undone: see
`isthmus-agent peers forget`, and `isthmus-certs deny` for certificates.";

/// Examples of `isthmus-agent join`, for its help.
pub const JOIN_HELP: &str = "\
Examples:
  isthmus-agent join isthmus1.AAAA…
  isthmus-agent join --config agent.yaml - < token.txt

Other users can see arguments in the process list, but not standard input. Both sides learn
each other's addresses and bundles. Run this as the agent's user; the running agents need no
restart.";

/// The `token` commands.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a one-time token for a cluster to join, or for the first certificate of a gateway or workload
    #[command(after_help = CREATE_HELP)]
    Create(CreateArgs),
    /// List tokens and their states
    #[command(after_help = LIST_HELP)]
    List(ListArgs),
    /// Revoke a token that was not used
    #[command(after_help = REVOKE_HELP)]
    Revoke(RevokeArgs),
}

/// The arguments of `token create`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whom").required(true).args(["guest", "gateway", "workload"])))]
pub struct CreateArgs {
    /// The configuration file (YAML)
    #[arg(long, value_name = "FILE", default_value = AGENT)]
    pub config: PathBuf,
    /// The cluster that may join with the token
    #[arg(long = "for", value_name = "CLUSTER", requires = "trust_domain")]
    pub guest: Option<Cluster>,
    /// The trust domain of that cluster
    #[arg(long, value_name = "NAME", conflicts_with_all = ["gateway", "workload"])]
    pub trust_domain: Option<TrustDomain>,
    /// The gateway whose first certificate the token is for: a name under `gateways:` in the configuration
    #[arg(long, value_name = "NAME")]
    pub gateway: Option<String>,
    /// The workload whose first certificate the token is for: spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT
    #[arg(long, value_name = "SPIFFE-ID")]
    pub workload: Option<SpiffeId>,
    /// The address for the token's holder, NAME:PORT or IP:PORT [default: from the configuration]
    #[arg(long, value_parser = text::target)]
    pub address: Option<Target>,
    /// The lifetime of the token, such as 15m; at most 24h
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = humantime::parse_duration)]
    pub lifetime: Duration,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `token list` and `peers list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The configuration file (YAML)
    #[arg(long, value_name = "FILE", default_value = AGENT)]
    pub config: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The arguments of `token revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The configuration file (YAML)
    #[arg(long, value_name = "FILE", default_value = AGENT)]
    pub config: PathBuf,
    /// The token's id in `token list`
    #[arg(value_name = "ID")]
    pub id: String,
}

/// The arguments of `join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The configuration file (YAML)
    #[arg(long, value_name = "FILE", default_value = AGENT)]
    pub config: PathBuf,
    /// The output of `token create` on the other side; `-` reads it from standard input
    #[arg(value_name = "TOKEN")]
    pub token: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The token has no holder.
    #[error(
        "name the token's holder: --for CLUSTER --trust-domain NAME, --gateway NAME or --workload SPIFFE-ID"
    )]
    Whom,
    /// The token cannot be created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The token cannot be revoked.
    #[error(transparent)]
    Revoke(#[from] RevokeError),
    /// The cluster has not joined.
    #[error("cluster {0} has not joined; `isthmus-agent peers list` shows those that have")]
    NotJoined(Cluster),
    /// The store failed.
    #[error("state: {0}")]
    Store(#[from] StoreError),
    /// The argument is not a token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Standard input is unreadable.
    #[error("cannot read standard input: {0}")]
    Input(io::Error),
    /// The join failed.
    #[error(transparent)]
    Join(#[from] JoinError),
}

/// The holder of a first certificate.
#[derive(Clone, Debug)]
pub enum First<'a> {
    /// A gateway of the cluster, by its name.
    Gateway(&'a str),
    /// A workload.
    Workload(&'a SpiffeId),
}

impl CreateArgs {
    /// The holder of the first certificate; `None` for a cluster that joins.
    #[must_use]
    pub fn first(&self) -> Option<First<'_>> {
        let gateway = self.gateway.as_deref().map(First::Gateway);
        gateway.or(self.workload.as_ref().map(First::Workload))
    }

    /// Creates a token for a cluster that joins at `address`, and returns the output.
    ///
    /// # Errors
    /// The token cannot be created.
    pub fn run(&self, context: &Context, address: Target) -> Result<String, CliError> {
        let named = self.guest.clone().zip(self.trust_domain.clone());
        let (cluster, trust_domain) = named.ok_or(CliError::Whom)?;
        let token = create(context, address, Party { cluster, trust_domain }, self.lifetime)?;
        Ok(self.render(&token))
    }

    /// The output for a token.
    #[must_use]
    pub fn render(&self, token: &Token) -> String {
        let (text, expires) = (token.reveal(), Rfc3339(token.expires).to_string());
        if self.json {
            let Token { address, guest, .. } = token;
            let json = json!({
                "token": text, "id": token.id().short(), "for": guest,
                "address": address.to_string(), "expires": expires,
            });
            return format!("{json:#}");
        }
        // Alone on its line, so that it can be piped.
        text
    }
}

impl ListArgs {
    /// Returns the output.
    ///
    /// # Errors
    /// The tokens cannot be read.
    pub fn run(&self, tokens: &Tokens) -> Result<String, CliError> {
        let now = unix_seconds(SystemTime::now());
        let mut rows = Vec::new();
        for (record, state) in tokens.list()? {
            let state = match state {
                State::Open if record.expires <= now => "expired".to_owned(),
                state => state.to_string(),
            };
            rows.push((record, state));
        }
        if self.json {
            let rows: Vec<_> = rows
                .iter()
                .map(|(record, state)| {
                    let expires = Rfc3339(record.expires).to_string();
                    json!({ "id": record.id.short(), "for": record.guest, "expires": expires, "state": state })
                })
                .collect();
            return Ok(format!("{:#}", json!(rows)));
        }
        if rows.is_empty() {
            return Ok("no tokens".to_owned());
        }
        let mut text = format!("{:<8}  {:<7}  {:<20}  FOR", "TOKEN", "STATE", "EXPIRES");
        for (record, state) in rows {
            let expires = Rfc3339(record.expires);
            let _infallible =
                write!(text, "\n{}  {state:<7}  {expires}  {}", record.id.short(), record.guest);
        }
        Ok(text)
    }
}

impl RevokeArgs {
    /// Revokes, and returns the output.
    ///
    /// # Errors
    /// The token cannot be revoked.
    pub fn run(&self, tokens: &Tokens) -> Result<String, CliError> {
        let record = tokens.revoke(&self.id)?;
        Ok(format!("revoked token {} for {}", record.id.short(), record.guest))
    }
}

impl JoinArgs {
    /// Joins, and returns the output.
    ///
    /// # Errors
    /// The argument is not a token, or the join failed.
    pub async fn run(&self, context: &Context) -> Result<String, CliError> {
        let token: Token = self.read(io::stdin().lock())?.parse()?;
        let peer = join(context, &token).await?;
        if self.json {
            return Ok(format!("{:#}", json!(peer)));
        }
        let introduction = &peer.introduction;
        Ok(format!("joined {}; its agent is at {}", introduction.party, introduction.address))
    }

    fn read(&self, input: impl io::Read) -> Result<String, CliError> {
        if self.token != "-" {
            return Ok(self.token.clone());
        }
        let mut bytes = Vec::new();
        input.take(LONGEST_INPUT).read_to_end(&mut bytes).map_err(CliError::Input)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_an_argument_or_standard_input() {
        let args = |token: &str| JoinArgs { config: PathBuf::new(), token: token.to_owned(), json: false };
        assert_eq!(args("isthmus1.x").read(io::empty()).unwrap(), "isthmus1.x");
        assert_eq!(args("-").read(&b"isthmus1.x\n"[..]).unwrap(), "isthmus1.x\n");
        let endless = args("-").read(io::repeat(b'x')).unwrap();
        assert_eq!(endless.parse::<Token>(), Err(TokenError::TooLong));
        assert_eq!(args("-").read(io::repeat(0xff)).unwrap().parse::<Token>(), Err(TokenError::TooLong));
    }
}
