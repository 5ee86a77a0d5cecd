//! One agent and one gateway with a large registry: how long the first sync takes, what both hold, and what one
//! added service costs, against the same in a registry of a tenth.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::Size;
use super::cluster::{Cluster, Gateway, Programs, free_address, until_read};
use super::registry::Registry;
use super::tap::Tap;
use crate::proc::{Holdings, Process};
use crate::program::Program;
use crate::progress::Progress;
use crate::stop::Stop;

/// How exactly the first sync is timed.
const PAUSE: Duration = Duration::from_millis(50);
/// Until old tables are freed.
const SETTLING: Duration = Duration::from_secs(4);
/// Services that are added while work is counted: the kernel tells CPU time in steps of 10 ms.
const ADDED: u32 = 10;
const APART: Duration = Duration::from_millis(700);

/// What one registry came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Large {
    pub(super) size: Size,
    /// From the agent's start until it has read the registry.
    pub(super) read: Duration,
    /// From the gateway's start until it has all services.
    pub(super) first_sync: Duration,
    pub(super) first_sync_bytes: u64,
    /// KiB.
    pub(super) agent_rss: u64,
    pub(super) agent_peak: u64,
    /// KiB, beyond those of a gateway without services.
    pub(super) gateway_rss: u64,
    pub(super) gateway_peak: u64,
    pub(super) added: Added,
    /// CPU of the agent in a second in which nothing changes.
    pub(super) agent_idle: Duration,
}

/// What one added service costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Added {
    pub(super) bytes: u64,
    pub(super) agent: Duration,
    pub(super) gateway: Duration,
    /// Until it is in the gateway's tables, the median.
    pub(super) live: Duration,
}

struct World {
    cluster: Cluster,
    agent: Program,
    gateway: Gateway,
    tap: Tap,
    registry: Registry,
}

/// Starts both, and measures.
pub(super) fn measure(
    programs: &Programs,
    size: Size,
    progress: &mut Progress,
    stop: &Stop,
) -> anyhow::Result<Large> {
    let about = format!("{} services", size.services);
    progress.step("large", &about);
    let idle = idle_gateway(programs, stop)?;
    let mut cluster = Cluster::new("east")?;
    cluster.add_gateway("gw-1")?;
    let registry = Registry::fill(&cluster.registry(), (size.services, size.endpoints), Default::default())?;
    let began = Instant::now();
    let mut agent = cluster.start_agent(programs, "gateways: [{ name: gw-1 }]\n", stop)?;
    until_read(&mut agent, stop)?;
    let read = began.elapsed();
    let tap = Tap::before(cluster.xds)?;
    progress.step("large", &format!("{about}: first sync"));
    let began = Instant::now();
    let gateway = cluster.start_gateway(programs, ("gw-1", free_address()?), tap.address, stop)?;
    gateway.until_services(size.services, PAUSE, stop)?;
    let (first_sync, first_sync_bytes) = (began.elapsed(), tap.passed());
    thread::sleep(SETTLING);
    let (agent_rss, gateway_rss) = (resident(&agent)?, resident(&gateway.program)?);
    let (agent_peak, gateway_peak) = (peak(&agent)?, peak(&gateway.program)?);
    progress.step("large", &format!("{about}: added services"));
    let mut world = World { cluster, agent, gateway, tap, registry };
    let (added, agent_idle) = world.add(stop)?;
    drop(world.cluster);
    Ok(Large {
        size,
        read,
        first_sync,
        first_sync_bytes,
        agent_rss,
        agent_peak,
        gateway_rss: gateway_rss.saturating_sub(idle),
        gateway_peak: gateway_peak.saturating_sub(idle),
        added,
        agent_idle,
    })
}

impl World {
    fn add(&mut self, stop: &Stop) -> io::Result<(Added, Duration)> {
        let wall = SETTLING + APART * ADDED;
        let before = self.cpu()?;
        pause(wall, stop)?;
        let between = self.cpu()?;
        let passed = self.tap.passed();
        for _ in 0..ADDED {
            self.registry.add(None)?;
            pause(APART, stop)?;
        }
        pause(SETTLING, stop)?;
        let after = self.cpu()?;
        let each = |of: fn(&[Duration; 2]) -> Duration| {
            (of(&after) - of(&between)).saturating_sub(of(&between) - of(&before)) / ADDED
        };
        let bytes = (self.tap.passed() - passed) / u64::from(ADDED);
        let idle = (between[0] - before[0]).div_f64(wall.as_secs_f64());
        let added =
            Added { bytes, agent: each(|cpu| cpu[0]), gateway: each(|cpu| cpu[1]), live: self.live(stop)? };
        Ok((added, idle))
    }

    /// The median of a few.
    fn live(&mut self, stop: &Stop) -> io::Result<Duration> {
        let mut times = Vec::new();
        for _ in 0..5 {
            let (number, renamed) = self.registry.add(None)?;
            self.gateway.until_services(number + 1, Duration::from_millis(2), stop)?;
            times.push(renamed.elapsed());
            pause(APART, stop)?;
        }
        times.sort();
        Ok(times.get(2).copied().unwrap_or_default())
    }

    /// Of the agent and of the gateway since they began.
    fn cpu(&self) -> io::Result<[Duration; 2]> {
        let of = |pid| Process::sum(&[pid]).map(|process| process.ticked());
        Ok([of(self.agent.id())?, of(self.gateway.program.id())?])
    }
}

fn pause(time: Duration, stop: &Stop) -> io::Result<()> {
    thread::sleep(time);
    stop.check()
}

/// Resident KiB of a gateway that follows an agent without services.
fn idle_gateway(programs: &Programs, stop: &Stop) -> anyhow::Result<u64> {
    let mut cluster = Cluster::new("east")?;
    cluster.add_gateway("gw-1")?;
    let _agent = cluster.start_agent(programs, "gateways: [{ name: gw-1 }]\n", stop)?;
    let gateway = cluster.start_gateway(programs, ("gw-1", free_address()?), cluster.xds, stop)?;
    thread::sleep(SETTLING);
    Ok(resident(&gateway.program)?)
}

fn resident(program: &Program) -> io::Result<u64> {
    Holdings::of(&[program.id()]).map(|holdings| holdings.rss)
}

fn peak(program: &Program) -> io::Result<u64> {
    Process::sum(&[program.id()]).map(|process| process.peak_kib)
}
