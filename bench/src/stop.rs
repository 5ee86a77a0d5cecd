//! Ctrl-C, SIGTERM and a terminal that closes, as a flag that every loop looks at, so that what was started is also stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Whether the user wants this program to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Takes the signals over. A second one does no more than the first: the loops see it within a tick.
    pub(crate) fn on_signals() -> io::Result<Self> {
        let stop = Self::default();
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&stop.0))?;
        }
        Ok(stop)
    }

    pub(crate) fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// For loops that return a result: an error once the user wants the end.
    pub(crate) fn check(&self) -> io::Result<()> {
        if self.requested() { Err(io::Error::other("stopped by a signal")) } else { Ok(()) }
    }
}
