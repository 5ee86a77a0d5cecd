//! `run` and `demo`: the log, the signals, and what a started gateway says of itself.

use std::io::IsTerminal;
use std::sync::Arc;

use anyhow::Context;
use isthmus_gateway::config;
use isthmus_gateway::control::Control;
use isthmus_gateway::gateway::Gateway;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{LogFormat, RunOptions};

/// Runs until a drain is over, or a second signal.
pub(crate) fn run(options: &RunOptions) -> anyhow::Result<()> {
    start_log(options.log_format, "info");
    let settings = config::load(&options.config)?;
    let gateway = Gateway::start(settings, Some(options.config.clone()))?;
    for bound in gateway.bound() {
        eprintln!("listening {} address={}", bound.what.replacen("listener ", "listener=", 1), bound.address);
    }
    eprintln!("ready");
    tell_systemd(&NotifyState::Ready);
    follow_signals(Arc::clone(gateway.control()))?;
    gateway.wait().context("the gateway broke down")
}

pub(crate) fn demo(once: bool) -> anyhow::Result<()> {
    start_log(LogFormat::Text, "error");
    Ok(isthmus_gateway::demo::run(once)?)
}

fn start_log(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_env("ISTHMUS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
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
