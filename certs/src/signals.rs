//! Receives the signals of a long-running program on a thread of their own, so that it reacts however busy it is, and
//! ends even if a part of it hangs. The program decides what to do.

use std::io;
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

/// How long a program may take to end once it waits for nothing.
pub const GRACE: Duration = Duration::from_millis(950);

/// The meaning of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM or SIGINT: end.
    End,
    /// SIGHUP: reload.
    Reload,
    /// A signal of this name, which has no meaning here but by default would end the program.
    Unused(&'static str),
}

/// Calls `receive` for each signal from now on.
///
/// # Errors
/// The thread or the signal handlers cannot be set up.
pub fn listen(mut receive: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            receive(match signal {
                SIGHUP => Signal::Reload,
                SIGUSR1 => Signal::Unused("SIGUSR1"),
                SIGUSR2 => Signal::Unused("SIGUSR2"),
                _ => Signal::End,
            });
        }
    })?;
    Ok(())
}

/// Ends the process after this time unless it has ended before: waiting for a reader of its output, or for a disk,
/// could take for ever.
pub fn end_within(time: Duration) {
    let end = move || {
        thread::sleep(time);
        std::process::exit(0)
    };
    // Without a thread there is nothing to wait with.
    if thread::Builder::new().name("end".to_owned()).spawn(end).is_err() {
        std::process::exit(0)
    }
}
