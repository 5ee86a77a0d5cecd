//! Defines the command line and its help; the modules below run the commands.

pub(crate) mod ask;
pub(crate) mod capture;
mod changes;
pub(crate) mod check;
pub(crate) mod run;
mod status;
mod text;

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// TLS passthrough gateway: routes connections by SNI and forwards the encrypted bytes unchanged.
#[derive(Debug, Parser)]
#[command(name = "isthmus-gateway", version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a gateway, following edits of its configuration file
    #[command(after_help = "\
Examples:
  isthmus-gateway run --config /etc/isthmus/gateway.yaml
  ISTHMUS_LOG=debug isthmus-gateway run --config gateway.yaml --log-format json

SIGTERM and SIGINT drain: readiness fails at once, new connections are accepted for
drain.accept_for, then connections are closed over drain.window. A second signal exits at once.
SIGHUP re-reads the file. The access log goes to standard output, everything else to standard
error; a slow reader of either does not slow the gateway.")]
    Run(RunOptions),
    /// Check a configuration file: exit 0, or 2 with FILE:LINE:COLUMN, the problem and the remedy
    #[command(after_help = "\
Examples:
  isthmus-gateway check --config gateway.yaml
  isthmus-gateway check --config gateway.yaml --against 127.0.0.1:15000
  isthmus-gateway check --schema > gateway.schema.json")]
    Check(CheckOptions),
    #[cfg(feature = "demo")]
    /// Run two clusters on loopback: they join by token, call over mTLS and survive the loss of an endpoint
    #[command(after_help = "\
Examples:
  isthmus-gateway demo
  isthmus-gateway demo --once      # exits 1 if a promise is broken")]
    Demo {
        /// Exit at the end instead of staying up
        #[arg(long)]
        once: bool,
    },
    /// Send virtual addresses and DNS queries to the gateway and the agent, by nftables rules
    #[command(subcommand)]
    Capture(CaptureCommand),
    #[command(flatten)]
    Ask(Question),
    /// Print a shell completion script
    #[command(
        after_help = "Example:\n  isthmus-gateway completions bash > /etc/bash_completion.d/isthmus-gateway"
    )]
    Completions {
        /// Shell to generate the script for
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Format of the log on standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE", required_unless_present = "schema")]
    pub(crate) config: Option<PathBuf>,
    /// Show what the file would change on the running gateway at this admin address
    #[arg(long, value_name = "ADDRESS", requires = "config")]
    pub(crate) against: Option<String>,
    /// Print the JSON Schema of the file
    #[arg(long, conflicts_with_all = ["config", "against"])]
    pub(crate) schema: bool,
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaptureCommand {
    /// Print the rules of the file's `capture` section
    #[command(after_help = "Example:\n  isthmus-gateway capture print --config gateway.yaml | nft -c -f -")]
    Print(CaptureOptions),
    /// Load the rules into the kernel in place of earlier ones; needs root
    #[command(after_help = "Example:\n  isthmus-gateway capture apply --config /etc/isthmus/gateway.yaml")]
    Apply(CaptureOptions),
    /// Remove the rules from the kernel; needs root
    #[command(after_help = "Example:\n  isthmus-gateway capture remove --config /etc/isthmus/gateway.yaml")]
    Remove(CaptureOptions),
}

#[derive(Debug, Args)]
pub(crate) struct CaptureOptions {
    /// Configuration file of the gateway (YAML)
    #[arg(long, value_name = "FILE", default_value = "/etc/isthmus/gateway.yaml")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Where {
    /// Admin address of the gateway
    #[arg(long, value_name = "ADDRESS", env = "ISTHMUS_ADMIN", default_value = "127.0.0.1:15000")]
    pub(crate) admin: String,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Page {
    /// Show only entries whose name contains this text
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,
    /// Skip this many entries
    #[arg(long, default_value_t = 0)]
    pub(crate) offset: usize,
    /// Show at most this many entries (1 to 1000)
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Question {
    /// Show the status of a running gateway
    #[command(after_help = "Example:\n  isthmus-gateway status --admin 127.0.0.1:15000 --json")]
    Status {
        #[command(flatten)]
        at: Where,
    },
    /// List SNI names and the services they lead to
    #[command(after_help = "Example:\n  isthmus-gateway routes --name bookinfo")]
    Routes {
        #[command(flatten)]
        at: Where,
        #[command(flatten)]
        page: Page,
    },
    /// List services and their endpoints, with health and connections
    #[command(after_help = "Example:\n  isthmus-gateway services --name productpage")]
    Services {
        #[command(flatten)]
        at: Where,
        #[command(flatten)]
        page: Page,
    },
    /// Explain how a ClientHello would be routed: service and endpoints in order, or the refusal
    #[command(after_help = "\
Examples:
  isthmus-gateway explain productpage.bookinfo
  isthmus-gateway explain db.example --from 192.0.2.7 --alpn h2,http/1.1
  isthmus-gateway explain db.example --as spiffe://east.example/ns/shop/sa/cart --from 10.1.2.3")]
    Explain {
        /// Server name in the ClientHello (SNI)
        sni: String,
        /// Client address [default: 127.0.0.1]
        #[arg(long, value_name = "IP")]
        from: Option<String>,
        /// Client identity, for services whose rules ask for it [default: unknown until the handshake]
        #[arg(long = "as", value_name = "SPIFFE-ID")]
        identity: Option<String>,
        /// Protocols that the client offers, separated by commas
        #[arg(long, value_name = "PROTOCOLS")]
        alpn: Option<String>,
        /// Listener that the client connects to [default: each listener]
        #[arg(long, value_name = "NAME")]
        listener: Option<String>,
        #[command(flatten)]
        at: Where,
    },
    /// Show how this gateway reaches the gateways of other clusters: round trip, jitter, loss, state
    #[command(after_help = "Example:\n  isthmus-gateway matrix --json")]
    Matrix {
        #[command(flatten)]
        at: Where,
    },
    /// List open connections
    #[command(after_help = "Example:\n  isthmus-gateway connections --name db.example --limit 20")]
    Connections {
        #[command(flatten)]
        at: Where,
        #[command(flatten)]
        page: Page,
    },
    /// Drain a running gateway, as SIGTERM does
    #[command(after_help = "Example:\n  isthmus-gateway drain --admin 127.0.0.1:15000")]
    Drain {
        #[command(flatten)]
        at: Where,
    },
}

pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "isthmus-gateway", &mut script);
    say(String::from_utf8_lossy(&script).trim_end())
}

/// Prints a text. A closed pipe (`| head`) is not an error.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("cannot write to standard output"),
    }
}
