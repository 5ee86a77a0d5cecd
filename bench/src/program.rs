//! A program that this one started, with its files in a directory of its own. Both go when the value goes.
//! Not what it is or when it is ready: whoever starts it knows that.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::proc::{family_of, start_time};
use crate::stop::Stop;

/// How long a program may take to be ready, as a rule.
pub(crate) const START: Duration = Duration::from_secs(15);

/// How long a program may take to end by itself.
const GRACE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(2);

/// A running program.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    directory: TempDir,
}

impl Program {
    /// `prepare` writes its files into the directory it is given, and makes the command; `spawn` starts that
    /// in the network where it belongs.
    pub(crate) fn start(
        prepare: impl FnOnce(&Path) -> io::Result<Command>,
        spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("isthmus-bench-").tempdir()?;
        let mut command = prepare(directory.path())?;
        let output = File::create(directory.path().join("output"))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Ctrl-C at the terminal is for this program; it ends the others.
        command.process_group(0);
        let child = spawn(&mut command).map_err(|error| {
            let name = command.get_program().display();
            io::Error::new(error.kind(), format!("cannot start {name}: {error}"))
        })?;
        Ok(Self { child, directory })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Tries until it succeeds: that is what the program should do by then, in a word or two.
    ///
    /// # Errors
    /// When the program ended, or did not do it in time, with what it said.
    pub(crate) fn wait_until(
        &mut self,
        what: &str,
        patience: Duration,
        stop: &Stop,
        mut attempt: impl FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let Err(error) = attempt() else { return Ok(()) };
            stop.check()?;
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("ended with {status}: {}", self.last_words())));
            }
            if Instant::now() > deadline {
                let words = self.last_words();
                let why = format!("it did not {what} within {patience:?}: {error}; it said: {words}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            thread::sleep(PAUSE);
        }
    }

    pub(crate) fn signal(&self, sent: Signal) {
        signal(self.child.id(), sent);
    }

    /// The end of what it printed.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read(self.directory.path().join("output")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.reverse();
        if lines.is_empty() { "it printed nothing".into() } else { lines.join(" / ") }
    }
}

impl Drop for Program {
    /// Asks, so that nginx collects its workers; then kills what is left. A drain is not waited for: no
    /// connection is open that anybody would miss.
    fn drop(&mut self) {
        let family: Vec<_> =
            family_of(self.child.id()).into_iter().map(|pid| (pid, start_time(pid))).collect();
        self.signal(Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        for (pid, started) in family {
            // Not if the number belongs to somebody else by now.
            if started.is_some() && start_time(pid) == started {
                signal(pid, Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        let prepare = |_: &Path| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            Ok(command)
        };
        Program::start(prepare, Command::spawn).unwrap()
    }

    #[test]
    fn program_family_includes_grandchildren_and_stops_them() {
        let mut program = shell("sleep 600 & echo $!; wait");
        let output = program.directory().join("output");
        let mut grandchild = 0;
        let told = || {
            let line = fs::read_to_string(&output)?;
            grandchild = line.trim().parse::<u32>().map_err(io::Error::other)?;
            Ok(())
        };
        program.wait_until("say who it is", START, &Stop::default(), told).unwrap();
        assert_eq!(family_of(program.id()), [program.id(), grandchild]);
        drop(program);
        // Killed: gone, or a zombie that nobody has collected yet. The kernel takes a moment.
        let ended = || {
            let stat = fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z")
        };
        let deadline = Instant::now() + START;
        while !ended() {
            assert!(Instant::now() < deadline, "the grandchild still runs");
            thread::yield_now();
        }
    }

    #[test]
    fn program_exit_before_ready_is_reported_with_its_last_output() {
        let mut program = shell("echo no such key >&2; exit 3");
        let never = || Err(io::Error::other("not ready"));
        let why = program.wait_until("listen", START, &Stop::default(), never).unwrap_err().to_string();
        assert!(why.contains("ended with exit status: 3: no such key"), "{why}");
        let nothing =
            Program::start(|_| Ok(Command::new("/no/such/program")), Command::spawn).unwrap_err().to_string();
        assert!(nothing.contains("cannot start /no/such/program"), "{nothing}");
    }
}
