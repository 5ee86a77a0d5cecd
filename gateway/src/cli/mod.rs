//! The words of the command line and their help. What they do is in the modules below.

pub(crate) mod ask;
mod changes;
pub(crate) mod check;
pub(crate) mod run;

use std::io::{self, Write as _};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// TLS passthrough by SNI: reads the name, picks an endpoint, splices the bytes untouched.
#[derive(Debug, Parser)]
#[command(name = "isthmus-gateway", version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a gateway on one file, which is watched
    #[command(after_help = "\
Examples:
  isthmus-gateway run --config /etc/isthmus/gateway.yaml
  ISTHMUS_LOG=debug isthmus-gateway run --config gateway.yaml --log-format json

SIGTERM and SIGINT drain: not ready at once, accepting for drain.accept_for more, then closing over
drain.window. A second signal ends at once. SIGHUP looks at the file again. The access log goes to
standard output, all else to standard error; nobody waits for whoever reads them.")]
    Run(RunOptions),
    /// Check a file: exit 0, or 2 with FILE:LINE:COLUMN, what is wrong and what would be right
    #[command(after_help = "\
Examples:
  isthmus-gateway check --config gateway.yaml
  isthmus-gateway check --config gateway.yaml --against 127.0.0.1:15000
  isthmus-gateway check --schema > gateway.schema.json")]
    Check(CheckOptions),
    #[cfg(feature = "demo")]
    /// Two clusters join by a token and call each other's services over mTLS; an endpoint dies, no call fails
    #[command(after_help = "\
Examples:
  isthmus-gateway demo
  isthmus-gateway demo --once      # exit 1 if any promise was broken")]
    Demo {
        /// Run to the end and exit, instead of staying up to be tried
        #[arg(long)]
        once: bool,
    },
    #[command(flatten)]
    Ask(Question),
    /// Print a completion script
    #[command(
        after_help = "Example:\n  isthmus-gateway completions bash > /etc/bash_completion.d/isthmus-gateway"
    )]
    Completions {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RunOptions {
    /// The configuration file (YAML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// How the log on standard error is written
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
    /// The configuration file (YAML)
    #[arg(long, value_name = "FILE", required_unless_present = "schema")]
    pub(crate) config: Option<PathBuf>,
    /// Show what the file would change on the gateway with this admin address
    #[arg(long, value_name = "ADDRESS", requires = "config")]
    pub(crate) against: Option<String>,
    /// Print the JSON Schema of the file
    #[arg(long, conflicts_with_all = ["config", "against"])]
    pub(crate) schema: bool,
    /// JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Where {
    /// The admin address of the gateway to ask
    #[arg(long, value_name = "ADDRESS", env = "ISTHMUS_ADMIN", default_value = "127.0.0.1:15000")]
    pub(crate) admin: String,
    /// JSON for machines instead of a table for people
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Page {
    /// Only those whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,
    /// Skip this many
    #[arg(long, default_value_t = 0)]
    pub(crate) offset: usize,
    /// Show at most this many (1 to 1000)
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Question {
    /// How a running gateway is
    #[command(after_help = "Example:\n  isthmus-gateway status --admin 127.0.0.1:15000 --json")]
    Status {
        #[command(flatten)]
        at: Where,
    },
    /// Which names lead where
    #[command(after_help = "Example:\n  isthmus-gateway routes --name bookinfo")]
    Routes {
        #[command(flatten)]
        at: Where,
        #[command(flatten)]
        page: Page,
    },
    /// Services and their endpoints, with health and connections
    #[command(after_help = "Example:\n  isthmus-gateway services --name productpage")]
    Services {
        #[command(flatten)]
        at: Where,
        #[command(flatten)]
        page: Page,
    },
    /// What would happen to a ClientHello: route and endpoints in order, or the refusal
    #[command(after_help = "\
Examples:
  isthmus-gateway explain productpage.bookinfo
  isthmus-gateway explain db.example --from 192.0.2.7 --alpn h2,http/1.1")]
    Explain {
        /// The name that the client asks for
        sni: String,
        /// The client's address
        #[arg(long, value_name = "IP")]
        from: Option<String>,
        /// The protocols that the client offers, separated by commas
        #[arg(long, value_name = "PROTOCOLS")]
        alpn: Option<String>,
        /// The listener that it reaches [default: the first]
        #[arg(long, value_name = "NAME")]
        listener: Option<String>,
        #[command(flatten)]
        at: Where,
    },
    /// What is open now
    #[command(after_help = "Example:\n  isthmus-gateway connections --name db.example --limit 20")]
    Connections {
        #[command(flatten)]
        at: Where,
        #[command(flatten)]
        page: Page,
    },
    /// Take a running gateway out of service, as SIGTERM does
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

/// Prints a text. A reader that has seen enough (`| head`) is no error, and no panic.
pub(crate) fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        said => said.context("cannot write to standard output"),
    }
}
