//! A started system: its processes, its address, its tables, its end. Not its configuration: see
//! [`crate::systems`].

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::hello::Job;
use crate::place::Place;
use crate::proc::{family_of, start_time};
use crate::stop::Stop;
use crate::systems::{Routes, System};

/// How long a system may take until it routes.
pub(crate) const START: Duration = Duration::from_secs(15);

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

    /// Starts a system and waits until a connection to its last service reaches the backend through it.
    pub(crate) fn start(
        (system, program): (&dyn System, &Path),
        place: &Place,
        routes: Routes,
        patience: Duration,
        stop: &Stop,
    ) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("isthmus-bench-").tempdir()?;
        for (name, text) in system.tables(directory.path(), routes) {
            fs::write(directory.path().join(name), text)?;
        }
        let mut command = system.command(program, directory.path(), routes)?;
        let output = File::create(directory.path().join("output"))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Ctrl-C at the terminal is for this program; it ends the others.
        command.process_group(0);
        let child = place.as_proxy(|| command.spawn())?;
        let mut running = Self {
            address: routes.listen,
            processes: vec![child.id()],
            child: Some(child),
            directory: Some(directory),
        };
        running.wait_until_routing(place, routes.services - 1, patience, stop)?;
        running.look_for_processes();
        Ok(running)
    }

    /// Gives it other tables, all at once; gives the moment at which it could see them.
    pub(crate) fn publish(&self, system: &dyn System, routes: Routes) -> io::Result<Instant> {
        let (Some(directory), Some(child)) = (&self.directory, &self.child) else {
            return Err(io::Error::other("the direct connection has no tables"));
        };
        let files: Vec<(PathBuf, PathBuf)> = system
            .tables(directory.path(), routes)
            .into_iter()
            .map(|(name, text)| {
                let (path, beside) =
                    (directory.path().join(name), directory.path().join(format!("{name}.new")));
                fs::write(&beside, text).map(|()| (beside, path))
            })
            .collect::<io::Result<_>>()?;
        let published = Instant::now();
        for (beside, path) in files {
            fs::rename(beside, path)?;
        }
        if let Some(sent) = system.reload_signal() {
            signal(child.id(), sent);
        }
        Ok(published)
    }

    /// Waits until this service is reached through it.
    ///
    /// # Errors
    /// When it ended, or did not route in time, with what it said.
    pub(crate) fn wait_until_routing(
        &mut self,
        place: &Place,
        service: u32,
        patience: Duration,
        stop: &Stop,
    ) -> io::Result<()> {
        let target = place.target(self.address);
        let deadline = Instant::now() + patience;
        loop {
            // Listening is not enough: some listen before they have loaded their routes.
            let opened = place.as_client(|| target.open_service(Job::Once, service).map(drop));
            let Err(error) = opened else { return Ok(()) };
            stop.check()?;
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                return Err(io::Error::other(format!("it ended, {status}: {}", self.last_words())));
            }
            if Instant::now() > deadline {
                let words = self.last_words();
                let what = format!("it did not route within {patience:?}: {error}; it said: {words}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Has its processes counted anew, after a reload that replaced some.
    pub(crate) fn look_for_processes(&mut self) {
        self.processes = self.child.as_ref().map_or_else(Vec::new, |child| family_of(child.id()));
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
