//! Turns SIGINT and SIGTERM into a flag that every loop checks, so that all started programs are stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use isthmus_certs::signals::{self, Signal};

/// The stop flag.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Installs the signal handlers. A second signal has no further effect: loops see the first within a
    /// tick.
    pub(crate) fn on_signals() -> io::Result<Self> {
        let stop = Self::default();
        let asked = stop.clone();
        signals::listen(move |signal| match signal {
            Signal::End => asked.request(),
            Signal::Reload => say_ignored("SIGHUP"),
            Signal::Unused(name) => say_ignored(name),
        })?;
        Ok(stop)
    }

    pub(crate) fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Returns an error once a stop was requested.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.requested() { Err(io::Error::other("stopped by a signal")) } else { Ok(()) }
    }
}

fn say_ignored(name: &str) {
    eprintln!("{name}: ignored; SIGINT and SIGTERM end the measurement");
}
