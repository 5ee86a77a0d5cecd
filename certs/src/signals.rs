//! The signals of a program that stays, on a thread of their own: they are heard however busy the program is, and it
//! ends though a part of it hangs. What a program does about them is its own affair.

use std::io;
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

/// How long a program may take to end once nothing is to be waited for.
pub const GRACE: Duration = Duration::from_millis(950);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// SIGTERM or SIGINT: the end.
    End,
    /// SIGHUP: to look again at what is followed.
    LookAgain,
    /// One of this name, which would end a program that does not take it over, and asks for nothing.
    Useless(&'static str),
}

/// Tells of each signal from now on.
///
/// # Errors
/// The system gives no thread, or no signals.
pub fn follow(mut heard: impl FnMut(Heard) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            heard(match signal {
                SIGHUP => Heard::LookAgain,
                SIGUSR1 => Heard::Useless("SIGUSR1"),
                SIGUSR2 => Heard::Useless("SIGUSR2"),
                _ => Heard::End,
            });
        }
    })?;
    Ok(())
}

/// Ends the process after this long, unless it has ended before: whoever was asked to end and waits for a reader of its
/// output, or for a disk, would wait for ever.
pub fn end_within(time: Duration) {
    let end = move || {
        thread::sleep(time);
        std::process::exit(0)
    };
    // Without a thread to be had nothing is left to wait with.
    if thread::Builder::new().name("end".to_owned()).spawn(end).is_err() {
        std::process::exit(0)
    }
}
