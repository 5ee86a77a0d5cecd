//! How far a comparison is, on standard error: one line that is drawn again on a terminal, plain lines
//! elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Counts steps.
#[derive(Debug)]
pub(crate) struct Progress {
    total: usize,
    done: usize,
    began: Instant,
    terminal: bool,
    /// The last line that was printed where lines stay.
    printed: String,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { total, done: 0, began: Instant::now(), terminal, printed: String::new() }
    }

    /// A step begins: what it is about, and which part of that.
    pub(crate) fn step(&mut self, what: &str, part: &str) {
        let left = self.left().map_or_else(String::new, |left| format!(", {} s left", left.as_secs()));
        let place = format!("{} of {}{left}", self.done + 1, self.total);
        self.done += 1;
        // A progress that cannot be shown is no reason to stop.
        let _ = if self.terminal {
            write!(io::stderr(), "\r\x1b[K{place}: {what}: {part}")
        } else if self.printed == what {
            Ok(())
        } else {
            what.clone_into(&mut self.printed);
            writeln!(io::stderr(), "{place}: {what}")
        };
    }

    /// Something to be kept on the screen.
    pub(crate) fn say(&mut self, text: &str) {
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(io::stderr(), "{start}{text}");
    }

    /// As long as the steps so far took on average.
    fn left(&self) -> Option<Duration> {
        let done = u32::try_from(self.done).ok().filter(|done| *done > 0)?;
        let to_do = u32::try_from(self.total.saturating_sub(self.done)).ok()?;
        Some(self.began.elapsed() / done * to_do)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
