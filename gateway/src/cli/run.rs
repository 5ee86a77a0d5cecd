//! `run` and `demo`: the log, the signals, and what a started gateway says of itself.

use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;

use isthmus_gateway::config;
use isthmus_gateway::control::Control;
use isthmus_gateway::gateway::Gateway;
use isthmus_gateway::worker::Bound;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{LogFormat, RunOptions};

/// Runs until a drain is over, or a second signal.
pub(crate) fn run(options: &RunOptions) -> anyhow::Result<()> {
    start_log(options.log_format, "info");
    let settings = config::load(&options.config)?;
    let gateway = Gateway::start(settings, Some(options.config.clone()))?;
    // Before anybody is told: who reads `ready` may send SIGTERM at once.
    follow_signals(Arc::clone(gateway.control()))?;
    // Nobody reading standard error is no reason to stop serving.
    let _unread = announce(gateway.bound());
    tell_systemd(&NotifyState::Ready);
    Ok(gateway.wait()?)
}

fn announce(bound: &[Bound]) -> io::Result<()> {
    let mut out = io::stderr().lock();
    for bound in bound {
        let what = bound.what.replacen("listener ", "listener=", 1);
        writeln!(out, "listening {what} address={}", bound.address)?;
    }
    writeln!(out, "ready")
}

pub(crate) fn demo(once: bool) -> anyhow::Result<()> {
    start_log(LogFormat::Text, "error");
    Ok(isthmus_gateway::demo::run(once)?)
}

fn start_log(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_env("ISTHMUS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colour)
        // It would say so on standard error again, and panic: whoever collects the log may go first.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

/// A thread of its own: a signal is heard however busy the gateway is.
fn follow_signals(control: Arc<Control>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let guard = runtime.enter();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    drop(guard);
    let follow = async move {
        let mut asked = false;
        loop {
            tokio::select! {
                Some(()) = terminate.recv() => {}
                Some(()) = interrupt.recv() => {}
                Some(()) = hang_up.recv() => {
                    tracing::info!("SIGHUP: nothing to do, the configuration file is watched");
                    continue;
                }
                else => return,
            }
            if asked {
                tracing::warn!("second signal: ending at once");
                return control.end();
            }
            asked = true;
            tell_systemd(&NotifyState::Stopping);
            control.drain();
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(follow))?;
    Ok(())
}

fn tell_systemd(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::debug!(%error, "no systemd to tell");
    }
}
