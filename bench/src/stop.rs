//! Ctrl-C and SIGTERM, as a flag that every loop looks at, so that what was started is also stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use isthmus_certs::signals::{self, Heard};

/// Whether the user wants this program to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Takes the signals over. A second one does no more than the first: the loops see it within a tick.
    pub(crate) fn on_signals() -> io::Result<Self> {
        let stop = Self::default();
        let asked = stop.clone();
        signals::follow(move |heard| match heard {
            Heard::End => asked.request(),
            Heard::LookAgain => say_ignored("SIGHUP"),
            Heard::Useless(name) => say_ignored(name),
        })?;
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

fn say_ignored(name: &str) {
    eprintln!("{name}: ignored; SIGINT and SIGTERM end the measurement");
}
