//! Shows the progress of a comparison on standard error: one line redrawn in place on a terminal, plain lines
//! elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Counts and shows the steps.
#[derive(Debug)]
pub(crate) struct Progress {
    total: usize,
    done: usize,
    began: Instant,
    terminal: bool,
    /// The last line printed without a terminal.
    printed: String,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { total, done: 0, began: Instant::now(), terminal, printed: String::new() }
    }

    /// Shows the next step; `part` is a detail for terminals only.
    pub(crate) fn step(&mut self, what: &str, part: &str) {
        let left = self.left().map_or_else(String::new, |left| format!(", {} s left", left.as_secs()));
        let place = format!("{} of {}{left}", self.done + 1, self.total);
        self.done += 1;
        // Output errors do not stop the measurement.
        let _ = if self.terminal {
            write!(io::stderr(), "\r\x1b[K{place}: {what}: {part}")
        } else if self.printed == what {
            Ok(())
        } else {
            what.clone_into(&mut self.printed);
            writeln!(io::stderr(), "{place}: {what}")
        };
    }

    /// Prints a line that stays on the screen.
    pub(crate) fn say(&mut self, text: &str) {
        let start = if self.terminal { "\r\x1b[K" } else { "" };
        let _ = writeln!(io::stderr(), "{start}{text}");
    }

    /// Estimates the remaining time from the average of the steps so far.
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
