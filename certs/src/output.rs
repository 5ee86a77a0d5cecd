//! Standard error of a program that stays. What is said goes into a bounded queue that a thread of its own empties:
//! nobody waits for whoever reads it, and what does not fit is counted. Not an access log, and not the output of
//! commands that end: those wait for their reader.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes that wait to be written, at most.
const LIMIT: usize = 1 << 20;
/// How long the last lines may take to be written.
const LAST: Duration = Duration::from_millis(200);

static STDERR: OnceLock<&'static Output> = OnceLock::new();

/// A queue of whole lines, and who writes them.
#[derive(Debug, Default)]
pub struct Output {
    queue: Mutex<Queue>,
    filled: Condvar,
    emptied: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    is_writing: bool,
}

/// Standard error, written by a thread from the first call on. What a panic says goes there, too.
///
/// # Errors
/// The system gives no thread.
pub fn stderr() -> io::Result<&'static Output> {
    if let Some(output) = STDERR.get() {
        return Ok(output);
    }
    let output = Output::start(io::stderr())?;
    panic::set_hook(Box::new(|panicked| output.line(&told(panicked))));
    Ok(STDERR.get_or_init(|| output))
}

/// As the standard library has it.
fn told(panicked: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let text = format!("thread '{}' {panicked}", thread.name().unwrap_or("<unnamed>"));
    let trace = Backtrace::capture();
    match trace.status() {
        BacktraceStatus::Captured => format!("{text}\n{trace}"),
        _ => text,
    }
}

/// Lines of standard error that were lost because nobody read it.
#[must_use]
pub fn lost() -> u64 {
    STDERR.get().map_or(0, |output| output.dropped.load(Relaxed))
}

/// Says why a program ends: by the thread where there is one, and without waiting long for a reader.
pub fn last_words(text: &str) {
    match STDERR.get() {
        Some(output) => {
            output.line(text);
            output.settle();
        }
        None => eprintln!("{text}"),
    }
}

/// Waits for what was said to be written, but not long.
pub fn settle() {
    if let Some(output) = STDERR.get() {
        output.settle();
    }
}

impl Output {
    /// Starts the thread, which lives as long as the process.
    fn start(mut out: impl Write + Send + 'static) -> io::Result<&'static Output> {
        let output: &'static Output = Box::leak(Box::default());
        thread::Builder::new().name("stderr".to_owned()).spawn(move || {
            loop {
                let bytes = output.next();
                // Nobody reads it any more: the lines are lost, the program is not.
                if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                    output.dropped.fetch_add(1, Relaxed);
                }
                output.queue().is_writing = false;
                output.emptied.notify_all();
            }
        })?;
        Ok(output)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Vec<u8> {
        let is_empty = |queue: &mut Queue| queue.bytes.is_empty();
        let queue = self.filled.wait_while(self.queue(), is_empty);
        let mut queue = queue.unwrap_or_else(PoisonError::into_inner);
        queue.is_writing = true;
        std::mem::take(&mut queue.bytes)
    }

    /// Queues a line.
    pub fn line(&self, text: &str) {
        self.push(format!("{text}\n").as_bytes());
    }

    /// Whole lines, or nothing of them.
    fn push(&self, lines: &[u8]) {
        let mut queue = self.queue();
        if queue.bytes.len().saturating_add(lines.len()) > LIMIT {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        queue.bytes.extend_from_slice(lines);
        drop(queue);
        self.filled.notify_one();
    }

    fn settle(&self) {
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.bytes.is_empty();
        // Whoever has not read by then does not read.
        drop(self.emptied.wait_timeout_while(self.queue(), LAST, is_busy));
    }
}

/// For whoever writes a line with each call, as `tracing` does.
impl Write for &Output {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.push(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn output_that_nobody_reads_drops_whole_lines_and_goes_on_when_somebody_does() {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = Output::start(writer).unwrap();
        let line = "x".repeat(999);
        // Twice as much as the queue and any pipe of 1 MiB hold.
        for _ in 0..4 * LIMIT / 1_000 {
            output.line(&line);
        }
        output.settle();
        let dropped = output.dropped.load(Relaxed);
        assert!(dropped > 0);
        let mut read = vec![0; 1_000];
        for _ in dropped..4 * (LIMIT as u64) / 1_000 {
            reader.read_exact(&mut read).unwrap();
            assert_eq!(read.strip_suffix(b"\n"), Some(line.as_bytes()));
        }
        output.line("again");
        let mut last = [0; 6];
        reader.read_exact(&mut last).unwrap();
        assert_eq!(&last, b"again\n");
        assert_eq!(output.dropped.load(Relaxed), dropped);
    }
}
