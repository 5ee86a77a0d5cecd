//! A program inside a namespace, with its files in a directory of its own. Both go when the value goes.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::stop::Stop;

/// How long a program may take until it listens.
const START: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(20);

/// A running program.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    directory: TempDir,
}

impl Program {
    /// Starts it and waits until it accepts connections at this address. `prepare` writes its files into
    /// the directory it is given, and makes the command.
    pub(super) fn start(
        namespace: &Namespace,
        address: SocketAddr,
        stop: &Stop,
        prepare: impl FnOnce(&Path) -> anyhow::Result<Command>,
    ) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("isthmus-hairpin-").tempdir()?;
        let mut command = prepare(directory.path())?;
        let name = command.get_program().to_owned();
        let output = File::create(directory.path().join("output"))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Ctrl-C at the terminal is for us; we end it.
        command.process_group(0);
        let child = namespace.inside(|| command.spawn());
        let child = child.with_context(|| format!("cannot start {}", name.display()))?;
        let mut program = Self { child, directory };
        program.wait_until_listening(namespace, address, stop).with_context(|| name.display().to_string())?;
        Ok(program)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_listening(
        &mut self,
        namespace: &Namespace,
        address: SocketAddr,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let Err(why) = namespace.inside(|| TcpStream::connect(address)) else { return Ok(()) };
            stop.check()?;
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status}: {}", self.said()?);
            }
            if Instant::now() > deadline {
                bail!("did not listen on {address} within {} s: {why}; {}", START.as_secs(), self.said()?);
            }
            thread::sleep(PAUSE);
        }
    }

    /// The last lines of what it printed.
    fn said(&self) -> io::Result<String> {
        let output = fs::read_to_string(self.directory.path().join("output"))?;
        let lines: Vec<&str> = output.lines().collect();
        Ok(lines.get(lines.len().saturating_sub(5)..).unwrap_or_default().join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_instead_of_listening_is_told_with_its_last_words() {
        let namespace = match Namespace::new() {
            Ok(namespace) => namespace,
            Err(why) => {
                assert!(std::env::var_os("ISTHMUS_REQUIRE_PEERS").is_none(), "{why}");
                println!("SKIPPED: {why}");
                return;
            }
        };
        let failing = Program::start(&namespace, ([127, 0, 0, 1], 1).into(), &Stop::default(), |_| {
            let mut command = Command::new("sh");
            command.args(["-c", "echo no such key >&2; exit 3"]);
            Ok(command)
        });
        let why = format!("{:#}", failing.unwrap_err());
        assert!(why.contains("sh: ended with exit status: 3: no such key"), "{why}");
    }
}
