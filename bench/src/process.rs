//! A running system: its processes, address and tables. For its configuration see [`crate::systems`].

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::hello::Job;
use crate::place::Place;
use crate::proc::family_of;
use crate::program::{Program, START};
use crate::stop::Stop;
use crate::systems::{Routes, System};

/// A running system, or the direct connection. Dropping it kills the processes.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    /// The main process and its descendants; empty for the direct connection.
    pub(crate) processes: Vec<u32>,
    /// `None` for the direct connection.
    program: Option<Program>,
}

impl Running {
    /// The direct connection to the backend.
    pub(crate) fn direct(backend: SocketAddr) -> Self {
        Self { address: backend, processes: Vec::new(), program: None }
    }

    /// Starts a system and waits until a connection to its last service reaches the backend through it.
    pub(crate) fn start(
        (system, program): (&dyn System, &Path),
        place: &Place,
        routes: Routes,
        patience: Duration,
        stop: &Stop,
    ) -> io::Result<Self> {
        let prepare = |directory: &Path| {
            write(directory, system.tables(directory, routes))?;
            system.command(program, directory, routes.listen)
        };
        let program = Program::start(prepare, |command| place.as_proxy(|| command.spawn()))?;
        let mut running = Self { address: routes.listen, processes: Vec::new(), program: Some(program) };
        running.wait_until_routing(place, routes.services - 1, patience, stop)?;
        running.look_for_processes();
        Ok(running)
    }

    /// Starts a system that is configured by `tables` to listen there, and waits until `reach` succeeds.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the system is not compared at that.
    pub(crate) fn start_for_task(
        (system, program): (&dyn System, &Path),
        listen: SocketAddr,
        tables: impl FnOnce(&Path) -> Result<Vec<(&'static str, String)>, String>,
        reach: impl FnMut() -> io::Result<()>,
        stop: &Stop,
    ) -> io::Result<Self> {
        let prepare = |directory: &Path| {
            let unsupported = |why| io::Error::new(io::ErrorKind::Unsupported, why);
            write(directory, tables(directory).map_err(unsupported)?)?;
            system.command(program, directory, listen)
        };
        let mut program = Program::start(prepare, Command::spawn)?;
        program.wait_until("serve", START, stop, reach)?;
        let processes = family_of(program.id());
        Ok(Self { address: listen, processes, program: Some(program) })
    }

    /// Replaces all tables; returns when the new ones became visible.
    pub(crate) fn publish(&self, system: &dyn System, routes: Routes) -> io::Result<Instant> {
        let Some(program) = &self.program else {
            return Err(io::Error::other("the direct connection has no tables"));
        };
        let directory = program.directory();
        let files: Vec<(PathBuf, PathBuf)> = system
            .tables(directory, routes)
            .into_iter()
            .map(|(name, text)| {
                let (path, beside) = (directory.join(name), directory.join(format!("{name}.new")));
                fs::write(&beside, text).map(|()| (beside, path))
            })
            .collect::<io::Result<_>>()?;
        let published = Instant::now();
        for (beside, path) in files {
            fs::rename(beside, path)?;
        }
        if let Some(sent) = system.reload_signal() {
            program.signal(sent);
        }
        Ok(published)
    }

    /// Waits until the system routes this service.
    ///
    /// # Errors
    /// If the system exits or does not route the service in time, with its last output.
    pub(crate) fn wait_until_routing(
        &mut self,
        place: &Place,
        service: u32,
        patience: Duration,
        stop: &Stop,
    ) -> io::Result<()> {
        let target = place.target(self.address);
        // Listening is not enough: some systems listen before they have loaded their routes.
        let reach = || place.as_client(|| target.open_service(Job::Once, service).map(drop));
        match &mut self.program {
            Some(program) => program.wait_until("route", patience, stop, reach),
            None => reach(),
        }
    }

    /// Lists the processes again, after a reload that may have replaced some.
    pub(crate) fn look_for_processes(&mut self) {
        self.processes = self.program.as_ref().map_or_else(Vec::new, |program| family_of(program.id()));
    }

    /// The last lines of the system's output.
    pub(crate) fn last_words(&self) -> String {
        self.program.as_ref().map_or_else(|| "not a program".into(), Program::last_words)
    }
}

fn write(directory: &Path, tables: Vec<(&str, String)>) -> io::Result<()> {
    tables.into_iter().try_for_each(|(name, text)| fs::write(directory.join(name), text))
}
