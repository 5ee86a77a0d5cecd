//! Starts a program with its files in a temporary directory; dropping the value stops the program and removes
//! the directory. The caller decides when the program is ready.

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

/// Usual time limit for a program to become ready.
pub(crate) const START: Duration = Duration::from_secs(15);

/// Time for a program to exit before it is killed.
const GRACE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(2);

/// A running program.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    directory: TempDir,
}

impl Program {
    /// `prepare` writes the files into the given directory and builds the command; `spawn` starts the command
    /// in the right network namespace.
    pub(crate) fn start(
        prepare: impl FnOnce(&Path) -> io::Result<Command>,
        spawn: impl FnOnce(&mut Command) -> io::Result<Child>,
    ) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("isthmus-bench-").tempdir()?;
        let mut command = prepare(directory.path())?;
        let output = File::create(directory.path().join("output"))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Ctrl-C at the terminal goes to this program, which stops the others.
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

    /// Retries `attempt` until it succeeds; `what` names in a few words what the program should do by then.
    ///
    /// # Errors
    /// If the program exits or is not ready in time, with its last output.
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
                return Err(io::Error::other(format!("exited with {status}: {}", self.last_words())));
            }
            if Instant::now() > deadline {
                let words = self.last_words();
                let why = format!("did not {what} within {patience:?}: {error}; last output: {words}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            thread::sleep(PAUSE);
        }
    }

    pub(crate) fn signal(&self, sent: Signal) {
        signal(self.child.id(), sent);
    }

    /// The last lines of the program's output.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read(self.directory.path().join("output")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.reverse();
        if lines.is_empty() { "no output".into() } else { lines.join(" / ") }
    }
}

impl Drop for Program {
    /// Sends SIGTERM, so that nginx collects its workers, then kills the rest. A drain is not awaited: no
    /// connection is in use.
    fn drop(&mut self) {
        let family: Vec<_> =
            family_of(self.child.id()).into_iter().map(|pid| (pid, start_time(pid))).collect();
        self.signal(Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        for (pid, started) in family {
            // The process ID may belong to another process by now.
            if started.is_some() && start_time(pid) == started {
                signal(pid, Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have exited by itself.
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
        let announced = || {
            let line = fs::read_to_string(&output)?;
            grandchild = line.trim().parse::<u32>().map_err(io::Error::other)?;
            Ok(())
        };
        program.wait_until("print its child's process ID", START, &Stop::default(), announced).unwrap();
        assert_eq!(family_of(program.id()), [program.id(), grandchild]);
        drop(program);
        // A killed process is gone or a zombie; the kernel takes a moment.
        let ended = || {
            let stat = fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z")
        };
        let deadline = Instant::now() + START;
        while !ended() {
            assert!(Instant::now() < deadline, "the grandchild is still running");
            thread::yield_now();
        }
    }

    #[test]
    fn program_exit_before_ready_is_reported_with_its_last_output() {
        let mut program = shell("echo no such key >&2; exit 3");
        let never = || Err(io::Error::other("not ready"));
        let why = program.wait_until("listen", START, &Stop::default(), never).unwrap_err().to_string();
        assert!(why.contains("exited with exit status: 3: no such key"), "{why}");
        let nothing =
            Program::start(|_| Ok(Command::new("/no/such/program")), Command::spawn).unwrap_err().to_string();
        assert!(nothing.contains("cannot start /no/such/program"), "{nothing}");
    }
}
