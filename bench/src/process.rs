//! A started system: its processes, its address, its end. Not its configuration: see [`crate::systems`].

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::hello::{Job, SERVER_NAME};
use crate::load::Target;
use crate::stop::Stop;
use crate::systems::{Route, System};

/// How long a system may take until it routes.
const START: Duration = Duration::from_secs(15);

/// How long a system may take to end by itself.
const GRACE: Duration = Duration::from_millis(500);

/// Something to connect to. Dropping it kills what was started.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    /// The process and its descendants; empty for the direct connection.
    pub(crate) processes: Vec<u32>,
    child: Option<Child>,
    directory: Option<TempDir>,
}

impl Running {
    /// No proxy: the backend itself.
    pub(crate) fn direct(backend: SocketAddr) -> Self {
        Self { address: backend, processes: Vec::new(), child: None, directory: None }
    }

    /// Starts a system and waits until a connection reaches the backend through it.
    pub(crate) fn start(
        system: &dyn System,
        program: &Path,
        backend: &Target,
        stop: &Stop,
    ) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("isthmus-bench-").tempdir()?;
        let listen = free_address()?;
        let route = Route { listen, name: SERVER_NAME, backend: backend.address };
        let mut command = system.configure(program, directory.path(), route)?;
        let output = File::create(directory.path().join("output"))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn()?;
        let mut running = Self {
            address: listen,
            processes: vec![child.id()],
            child: Some(child),
            directory: Some(directory),
        };
        running.wait_until_routing(&Target { address: listen, hello: Arc::clone(&backend.hello) }, stop)?;
        running.processes = running.child.as_ref().map_or_else(Vec::new, |child| family_of(child.id()));
        Ok(running)
    }

    fn wait_until_routing(&mut self, target: &Target, stop: &Stop) -> io::Result<()> {
        let deadline = Instant::now() + START;
        loop {
            // Listening is not enough: some listen before they have loaded their routes.
            let Err(error) = target.open(Job::Once) else { return Ok(()) };
            stop.check()?;
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                return Err(io::Error::other(format!("it ended at start, {status}: {}", self.last_words())));
            }
            if Instant::now() > deadline {
                let words = self.last_words();
                let what = format!("it did not route within {START:?}: {error}; it said: {words}");
                return Err(io::Error::other(what));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The end of what the system printed.
    pub(crate) fn last_words(&self) -> String {
        let path = self.directory.as_ref().map(|directory| directory.path().join("output"));
        let text = path.and_then(|path| fs::read(path).ok()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.reverse();
        if lines.is_empty() { "it printed nothing".into() } else { lines.join(" / ") }
    }
}

impl Drop for Running {
    /// Asks, so that nginx collects its workers; then kills what is left. A drain is not waited for: no
    /// connection is open that anybody would miss.
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        let family: Vec<_> = family_of(child.id()).into_iter().map(|pid| (pid, start_time(pid))).collect();
        signal(child.id(), Signal::TERM);
        let deadline = Instant::now() + GRACE;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        for (pid, started) in family {
            // Not if the number belongs to somebody else by now.
            if started.is_some() && start_time(pid) == started {
                signal(pid, Signal::KILL);
            }
        }
        let _ = child.wait();
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

/// When a process began, in ticks since boot: tells it from a later one of the same number.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

/// A port that was free a moment ago. Not every system can pick one by itself and tell.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// A process and all below it: nginx does its work in a child.
fn family_of(root: u32) -> Vec<u32> {
    let mut family = vec![root];
    let mut next = 0;
    while let Some(pid) = family.get(next) {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let children: Vec<u32> = tasks
            .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
            .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
            .collect();
        family.extend(children);
        next += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::Command;

    use super::*;

    #[test]
    fn grandchildren_belong_to_the_family_and_go_with_it() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 600 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let grandchild: u32 = line.trim().parse().unwrap();
        assert_eq!(family_of(child.id()), [child.id(), grandchild]);
        let address = "127.0.0.1:1".parse().unwrap();
        drop(Running { address, processes: Vec::new(), child: Some(child), directory: None });
        // Killed: gone, or a zombie that nobody has collected yet. The kernel takes a moment.
        let ended = || {
            let stat = fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z")
        };
        let deadline = Instant::now() + START;
        while !ended() {
            assert!(Instant::now() < deadline, "the grandchild still runs");
            std::thread::yield_now();
        }
    }
}
