//! Runs `run` and `demo`: sets up the log and the signals and announces the bound addresses.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use isthmus_certs::output::{self, Output};
use isthmus_certs::signals::{self, GRACE, Signal, end_within};
use isthmus_core::config;
use isthmus_core::control::Control;
use isthmus_core::gateway::Gateway;
use isthmus_core::worker::Bound;
use sd_notify::NotifyState;
use tracing_subscriber::EnvFilter;

use super::{LogFormat, RunOptions};

/// Runs until a drain has finished or a second signal arrives.
pub(crate) fn run(options: &RunOptions) -> anyhow::Result<()> {
    let log = start_log(options.log_format, "info")?;
    let settings = config::load(&options.config)?;
    let gateway = Gateway::start(settings, Some(options.config.clone()))?;
    // Before `ready` is printed: its reader may send SIGTERM at once.
    follow_signals(Arc::clone(gateway.control()))?;
    log.line(&announcement(gateway.bound()));
    tell_systemd(&NotifyState::Ready);
    Ok(gateway.wait()?)
}

fn announcement(bound: &[Bound]) -> String {
    let lines = bound.iter().map(|bound| {
        let what = bound.what.replacen("listener ", "listener=", 1);
        format!("listening {what} address={}\n", bound.address)
    });
    lines.chain(["ready".to_owned()]).collect()
}

#[cfg(feature = "demo")]
pub(crate) fn demo(once: bool) -> anyhow::Result<()> {
    start_log(LogFormat::Text, "error")?;
    Ok(crate::demo::run(once)?)
}

fn start_log(format: LogFormat, level: &str) -> io::Result<&'static Output> {
    let out = output::stderr()?;
    let filter = EnvFilter::try_from_env("ISTHMUS_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || out)
        .with_ansi(colour)
        // Otherwise it writes to standard error itself, and blocks on its reader.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(out)
}

fn follow_signals(control: Arc<Control>) -> io::Result<()> {
    let mut was_asked = false;
    signals::listen(move |heard| match heard {
        Signal::Reload => {
            tracing::info!("SIGHUP: re-reading the configuration file");
            control.recheck_file();
        }
        Signal::Unused(name) => {
            tracing::info!("{name}: ignored; SIGTERM drains, SIGHUP re-reads the configuration file");
        }
        Signal::End if was_asked => {
            tracing::warn!("second signal: exiting at once");
            end_within(GRACE);
            control.end();
        }
        Signal::End => {
            was_asked = true;
            end_within(control.longest_drain().saturating_add(GRACE));
            tell_systemd(&NotifyState::Stopping);
            control.drain();
        }
    })
}

fn tell_systemd(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::debug!(%error, "cannot notify systemd");
    }
}
