//! Standard error of a long-running program. Lines go into a bounded queue that a thread of its own writes: no caller
//! waits for a slow reader, and lines that do not fit are dropped and counted. Not for access logs, nor for the output
//! of short commands, which waits for its reader.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

/// The most bytes in the queue.
const LIMIT: usize = 1 << 20;
/// Longest wait for the last lines to be written.
const LAST: Duration = Duration::from_millis(200);

static STDERR: OnceLock<&'static Output> = OnceLock::new();

/// A queue of whole lines, and the thread that writes them.
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

/// Standard error, written by a thread from the first call on. Panic messages go through it as well.
///
/// # Errors
/// The thread cannot be started.
pub fn stderr() -> io::Result<&'static Output> {
    if let Some(output) = STDERR.get() {
        return Ok(output);
    }
    let output = Output::start(io::stderr())?;
    panic::set_hook(Box::new(|panicked| output.line(&panic_text(panicked))));
    Ok(STDERR.get_or_init(|| output))
}

/// The message of a panic, as the standard library prints it.
fn panic_text(panicked: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let text = format!("thread '{}' {panicked}", thread.name().unwrap_or("<unnamed>"));
    let trace = Backtrace::capture();
    match trace.status() {
        BacktraceStatus::Captured => format!("{text}\n{trace}"),
        _ => text,
    }
}

/// Lines of standard error dropped because it was not read.
#[must_use]
pub fn lost() -> u64 {
    STDERR.get().map_or(0, |output| output.dropped.load(Relaxed))
}

/// Prints why the program ends: through the thread if it runs, without waiting long for a reader.
pub fn last_words(text: &str) {
    match STDERR.get() {
        Some(output) => {
            output.line(text);
            output.settle();
        }
        None => eprintln!("{text}"),
    }
}

/// Waits briefly until the queue is written.
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
                // The reader is gone: drop the lines and continue.
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

    /// Queues whole lines, or drops all of them.
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
        // A reader that is slower than this does not read.
        drop(self.emptied.wait_timeout_while(self.queue(), LAST, is_busy));
    }
}

/// For writers of one line with each call, such as `tracing`.
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
    fn output_without_reader_drops_whole_lines_and_continues_once_read() {
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
