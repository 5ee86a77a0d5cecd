//! A system under comparison: found, started, verified, and started again for cases that need a fresh
//! process.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cases::Case;
use crate::check;
use crate::ends::{End, Way};
use crate::hello::Job;
use crate::lab::Lab;
use crate::place::Place;
use crate::process::Running;
use crate::program::START;
use crate::report::{DIRECT, SystemInfo};
use crate::systems::{Failover, Routes, Search, System, version};

/// A system under comparison.
#[derive(Debug)]
pub(crate) struct Contender {
    pub(crate) info: SystemInfo,
    near: Running,
    /// Its processes that end or begin TLS, once asked for.
    ends: BTreeMap<Way, Running>,
    /// How to start it again; `None` for the direct connection.
    source: Option<Source>,
}

struct Source {
    system: &'static dyn System,
    program: PathBuf,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Source").field("system", &self.system.name()).finish_non_exhaustive()
    }
}

impl Contender {
    /// The direct connection, without a proxy.
    pub(crate) fn direct(lab: &Lab) -> Self {
        let info = SystemInfo { name: DIRECT.into(), version: "no proxy".into(), program: String::new() };
        Self {
            info,
            near: Running::direct(lab.loopback.backend.address),
            ends: BTreeMap::new(),
            source: None,
        }
    }

    /// Finds a system, starts it on loopback, and verifies that it passes bytes through unchanged.
    ///
    /// # Errors
    /// If the system is missing, does not start or changes bytes.
    pub(crate) fn start(system: &'static dyn System, search: &Search, lab: &Lab) -> Result<Self, String> {
        let source = Source { system, program: system.program(search)? };
        let near = source
            .start_at(&lab.loopback, lab, 1, START)
            .map_err(|error| format!("cannot start: {error}"))?;
        check::passes_bytes_through(&lab.loopback.target(near.address)).map_err(|error| {
            format!("passthrough check failed: {error}; last output: {}", near.last_words())
        })?;
        let info = SystemInfo {
            name: system.name().into(),
            version: version(system, &source.program),
            program: source.program.display().to_string(),
        };
        Ok(Self { info, near, ends: BTreeMap::new(), source: Some(source) })
    }

    /// Starts and verifies its processes that end or begin TLS.
    ///
    /// # Errors
    /// The first that the system cannot do, and why. What works is kept.
    pub(crate) fn open_ends(&mut self, lab: &Lab) -> Result<(), String> {
        for way in Way::ALL {
            let started = self.start_ends(lab, way).and_then(|running| {
                let (world, end) = (lab.ends()?, way.end());
                check::carries(&world.verifying(end, running.address))?;
                if end == End::Terminate {
                    check::refuses_strangers(&world.stranger(running.address))?;
                }
                Ok(running)
            });
            let running = started.map_err(|error| format!("{}: {error}", way.end().name()))?;
            self.ends.insert(way, running);
        }
        Ok(())
    }

    /// Whether it can be measured in this case.
    pub(crate) fn can(&self, case: Case) -> bool {
        match case {
            Case::Ends { end, .. } => self.ends.contains_key(&end.way()),
            case => case.works_direct() || !self.is_direct(),
        }
    }

    /// The long-lived process that ends or begins TLS.
    pub(crate) fn ends(&self, way: Way) -> io::Result<&Running> {
        self.ends.get(&way).ok_or_else(|| io::Error::other("it has no such process"))
    }

    /// Starts another process that ends or begins TLS.
    pub(crate) fn start_ends(&self, lab: &Lab, way: Way) -> io::Result<Running> {
        let (source, world) = (self.source()?, lab.ends()?);
        let task = world.task(way)?;
        let target = world.target(task.end, task.listen);
        let reach = || target.open(Job::Once).map(drop);
        let tables = |directory: &Path| source.system.ends(directory, &task);
        Running::start_for_task((source.system, &source.program), task.listen, tables, reach, &lab.stop)
    }

    /// Starts another process for one service with the backend and an endpoint that will fail.
    pub(crate) fn start_failover(&self, lab: &Lab, failing: SocketAddr) -> io::Result<Running> {
        let source = self.source()?;
        let Routes { listen, backend: steady, .. } = lab.loopback.routes(1)?;
        let target = lab.loopback.target(listen);
        let reach = || target.open(Job::Once).map(drop);
        let tables =
            |directory: &Path| source.system.failover(directory, Failover { listen, steady, failing });
        Running::start_for_task((source.system, &source.program), listen, tables, reach, &lab.stop)
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.source.is_none()
    }

    /// The long-lived process on loopback, which routes one service.
    pub(crate) fn near(&self) -> &Running {
        &self.near
    }

    /// Starts a process across veth pairs.
    pub(crate) fn start_far(&self, lab: &Lab) -> io::Result<Running> {
        let place = lab.veth()?;
        match &self.source {
            Some(source) => source.start_at(place, lab, 1, START),
            None => Ok(Running::direct(place.routes(1)?.backend)),
        }
    }

    /// Starts another process on loopback.
    pub(crate) fn start_fresh(&self, lab: &Lab, services: u32) -> io::Result<Running> {
        self.start_patiently(lab, services, START)
    }

    /// Like `start_fresh`, with two services; the second one also has an endpoint that accepts and closes.
    pub(crate) fn start_beside_closing(&self, lab: &Lab, closing: SocketAddr) -> io::Result<Running> {
        let routes = Routes { closing: Some(closing), ..lab.loopback.routes(2)? };
        self.source()?.start(&lab.loopback, lab, routes, START)
    }

    pub(crate) fn start_patiently(
        &self,
        lab: &Lab,
        services: u32,
        patience: Duration,
    ) -> io::Result<Running> {
        self.source()?.start_at(&lab.loopback, lab, services, patience)
    }

    /// Replaces the tables of a process of this system; returns when they became visible to it.
    pub(crate) fn publish(&self, lab: &Lab, running: &Running, services: u32) -> io::Result<Instant> {
        let source = self.source()?;
        let routes = lab.loopback.routes(services)?;
        running.publish(source.system, Routes { listen: running.address, ..routes })
    }

    fn source(&self) -> io::Result<&Source> {
        self.source.as_ref().ok_or_else(|| io::Error::other("the direct connection has no process"))
    }
}

impl Source {
    fn start_at(&self, place: &Place, lab: &Lab, services: u32, patience: Duration) -> io::Result<Running> {
        self.start(place, lab, place.routes(services)?, patience)
    }

    fn start(&self, place: &Place, lab: &Lab, routes: Routes, patience: Duration) -> io::Result<Running> {
        Running::start((self.system, &self.program), place, routes, patience, &lab.stop)
    }
}
