//! The agent's command line: commands, output and exit codes.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use isthmus_agent::agent::{Agent, config, issuing, join_config};
use isthmus_agent::cli::ask::{Question, ask};
use isthmus_certs::Trust;
use isthmus_certs::causes::with_causes;
use isthmus_certs::output::{self, Output};
use isthmus_certs::signals::{self, GRACE, Signal, end_within};
use isthmus_model::Problems;
use isthmus_model::file::AGENT;
use isthmus_store::Embedded;
use isthmus_trust::enrolment;
use isthmus_trust::enrolment::cli::EnrolArgs;
use isthmus_trust::join::cli::{CreateArgs, JoinArgs, PeersCommand, TokenCommand};
use isthmus_trust::join::{self, Tokens};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tracing_subscriber::EnvFilter;

/// Exit code for an invalid configuration, the same as for invalid usage.
const WRONG: u8 = 2;

/// The agent of a cluster: watches the registry and configures the cluster's gateways
#[derive(Debug, Parser)]
#[command(name = "isthmus-agent", version, max_term_width = 100, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    #[command(after_help = "\
Example:
  isthmus-agent run --config /etc/isthmus/agent.yaml

The agent reloads the registry's files when they change, and on SIGHUP; of its own file it reads `traffic`
when it changes, and all other keys at start only. SIGTERM and SIGINT stop it: gateways keep their last tables and reconnect.")]
    Run {
        /// The configuration file (YAML)
        #[arg(long, value_name = "FILE", default_value = AGENT)]
        config: PathBuf,
    },
    /// Check a file: exit 0, or 2 with FILE:LINE:COLUMN, the problem and its remedy
    #[command(after_help = "\
Examples:
  isthmus-agent check --config agent.yaml
  isthmus-agent check --schema > agent.schema.json")]
    Check {
        /// The configuration file (YAML)
        #[arg(long, value_name = "FILE", default_value = AGENT)]
        config: PathBuf,
        /// Print the JSON Schema of the file
        #[arg(long, conflicts_with = "config")]
        schema: bool,
    },
    /// Create, list and revoke tokens: for clusters to join, for gateways and workloads to get a first certificate
    #[command(subcommand)]
    Token(TokenCommand),
    /// List and forget clusters that have joined by a token
    #[command(subcommand)]
    Peers(PeersCommand),
    /// Join the cluster that made a token
    #[command(after_help = join::cli::JOIN_HELP)]
    Join(JoinArgs),
    /// Get a workload's first certificate with a token, and renew it
    #[command(after_help = enrolment::cli::HELP)]
    Enrol(EnrolArgs),
    #[command(flatten)]
    Ask(Question),
    /// Print a shell completion script
    #[command(
        after_help = "Example:\n  isthmus-agent completions bash > /etc/bash_completion.d/isthmus-agent"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run { config } => run(&config),
        Command::Check { schema: true, .. } => say(&config::schema()),
        Command::Check { config, schema: false } => check(&config),
        Command::Token(TokenCommand::Create(args)) => create(&args),
        Command::Token(TokenCommand::List(args)) => {
            with_store(&args.config, |store, state| Ok(args.run(&Tokens::new(Arc::new(store), state))?))
        }
        Command::Token(TokenCommand::Revoke(args)) => {
            with_store(&args.config, |store, state| Ok(args.run(&Tokens::new(Arc::new(store), state))?))
        }
        Command::Peers(PeersCommand::List(args)) => {
            with_store(&args.config, |store, _| Ok(args.list_peers(&store)?))
        }
        Command::Peers(PeersCommand::Forget(args)) => {
            with_store(&args.config, |store, _| Ok(args.run(&store)?))
        }
        Command::Join(args) => joined(&args),
        Command::Enrol(args) => enrol(&args),
        Command::Ask(question) => {
            ask(&question).map_err(Into::into).and_then(|answer| say(question.render(&answer)?.trim_end()))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "isthmus-agent", &mut script);
            say(String::from_utf8_lossy(&script).trim_end())
        }
    };
    match outcome {
        Ok(()) => {
            output::settle();
            ExitCode::SUCCESS
        }
        Err(error) if error.is::<Problems>() => {
            output::last_words(&error.to_string());
            ExitCode::from(WRONG)
        }
        Err(error) => {
            output::last_words(&format!("isthmus-agent: {}", with_causes(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

fn check(file: &Path) -> anyhow::Result<()> {
    let settings = config::load_argument(file)?;
    config::check_beside_registry(&settings)?;
    for warning in &settings.warnings {
        eprintln!("warning: {warning}");
    }
    let gateways = settings.gateways.len();
    let plural = if gateways == 1 { "" } else { "s" };
    say(&format!("{}: OK (cluster {}, {gateways} gateway{plural})", file.display(), settings.cluster))
}

/// The settings in an agent's file, with the trust files loaded.
fn loaded(file: &Path) -> anyhow::Result<(config::Settings, Trust)> {
    let settings = config::load_argument(file)?;
    let trust = Trust::load(&settings.trust).context("trust")?;
    Ok((settings, trust))
}

fn create(args: &CreateArgs) -> anyhow::Result<()> {
    let (settings, trust) = loaded(&args.config)?;
    if let Some(whom) = args.first() {
        let token = issuing::token(&settings, &trust, &whom, args.address.clone(), args.lifetime)?;
        return say(&args.render(&token));
    }
    let address = args.address.clone().map_or_else(|| join_config::meeting_place(&settings), Ok)?;
    let store = join::store(join_config::state(&settings)?);
    let said = args.run(&join_config::context(&settings, trust, Arc::new(store.clone()))?, address);
    warn_of_damage(&store);
    say(&said?)
}

fn joined(args: &JoinArgs) -> anyhow::Result<()> {
    let (settings, trust) = loaded(&args.config)?;
    let store = join::store(join_config::state(&settings)?);
    let context = join_config::context(&settings, trust, Arc::new(store.clone()))?;
    let said = Runtime::new()?.block_on(args.run(&context));
    warn_of_damage(&store);
    say(&said?)
}

/// Prints what `work` says of the store in an agent's state directory.
fn with_store(
    file: &Path,
    work: impl FnOnce(Embedded, &Path) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let settings = config::load_argument(file)?;
    let state = join_config::state(&settings)?;
    let store = join::store(state);
    let said = work(store.clone(), state);
    warn_of_damage(&store);
    say(&said?)
}

/// Tells the user of damage that a command has found: it has no log.
fn warn_of_damage(store: &Embedded) {
    let report = store.report();
    if let Some(why) = report.damage {
        let aside = report.set_aside.map(|aside| format!("; set aside as {aside}"));
        let (file, aside) = (report.file, aside.unwrap_or_default());
        eprintln!("warning: {file} is damaged: {why}{aside}; using what can be read");
    }
}

fn enrol(args: &EnrolArgs) -> anyhow::Result<()> {
    start_log()?;
    let stop =
        follow_signals(|| tracing::info!("SIGHUP: ignored; the certificate is renewed when it is due"))?;
    until_stopped(&stop, async {
        let enrolled = args.run().await?;
        let shown = enrolled.report();
        // A reader that never reads standard output must not keep the program from ending.
        tokio::task::spawn_blocking(move || say(&shown)).await??;
        if args.follow {
            enrolled.run().await?;
        }
        Ok(())
    })
}

fn run(file: &Path) -> anyhow::Result<()> {
    let log = start_log()?;
    let settings = config::load(file)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    let reload = Arc::new(Notify::new());
    let notifier = Arc::clone(&reload);
    let stop = follow_signals(move || {
        tracing::info!("SIGHUP: reloading the registry; of the agent's own file only `traffic` is live");
        notifier.notify_one();
    })?;
    until_stopped(&stop, async {
        let agent = Agent::bind(settings).await?.following(file.to_owned());
        let mut listening = String::new();
        for (name, address) in agent.addresses()? {
            writeln!(listening, "listening {name} address={address}")?;
        }
        log.line(&format!("{listening}ready"));
        Ok(agent.run_looking(reload).await?)
    })
}

/// Runs `work` until it ends or SIGTERM or SIGINT arrives. Does not wait for blocking tasks that a disk holds up.
fn until_stopped(stop: &Notify, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = Runtime::new()?;
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = work => ended,
            () = stop.notified() => Ok(()),
        }
    });
    runtime.shutdown_background();
    ended
}

/// Handles signals: the returned `Notify` fires when the program is to end, SIGHUP calls `look_again`.
fn follow_signals(look_again: impl Fn() + Send + 'static) -> io::Result<Arc<Notify>> {
    let stop = Arc::new(Notify::new());
    let tell = Arc::clone(&stop);
    signals::listen(move |heard| match heard {
        Signal::End => {
            end_within(GRACE);
            tell.notify_one();
        }
        Signal::Reload => look_again(),
        Signal::Unused(name) => tracing::info!("{name}: ignored; SIGTERM ends the program"),
    })?;
    Ok(stop)
}

fn start_log() -> io::Result<&'static Output> {
    let out = output::stderr()?;
    let filter = EnvFilter::try_from_env("ISTHMUS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(move || out).with_ansi(colour);
    // Reporting an error would write to standard error directly, and block on whoever reads it.
    log.log_internal_errors(false).init();
    Ok(out)
}

/// Prints a text. A closed pipe (`| head`) is neither an error nor a panic.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
