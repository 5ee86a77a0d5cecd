//! Measures one agent and one gateway with a large registry: the first sync, the memory of both, and the cost
//! of one added service, compared with a registry of a tenth of the size.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::Size;
use super::cluster::{Cluster, Gateway, Programs, free_address, until_read};
use super::registry::Registry;
use super::tap::Tap;
use crate::proc::{Holdings, Process};
use crate::program::Program;
use crate::progress::Progress;
use crate::stats::Summary;
use crate::stop::Stop;

/// Resolution of the first sync.
const PAUSE: Duration = Duration::from_millis(50);
/// Time for old tables to be freed.
const SETTLING: Duration = Duration::from_secs(4);
/// Services added in a window: several, as the kernel counts CPU time in steps of 10 ms.
const ADDED: u32 = 10;
const APART: Duration = Duration::from_millis(500);
/// Pause at the end of a window for the work after a change: old tables are freed within a second.
const AFTERWARDS: Duration = Duration::from_millis(1500);
/// Rounds of one window without and one with changes: the idle CPU time varies.
const ROUNDS: u32 = 5;

/// Result for one registry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Large {
    pub(super) size: Size,
    /// From the start of the agent until it has read the registry.
    pub(super) read: Duration,
    /// From the start of the gateway until it has all services.
    pub(super) first_sync: Duration,
    pub(super) first_sync_bytes: u64,
    /// In KiB.
    pub(super) agent_rss: u64,
    pub(super) agent_peak: u64,
    /// In KiB, without that of a gateway without services.
    pub(super) gateway_rss: u64,
    pub(super) gateway_peak: u64,
    pub(super) added: Added,
    /// The agent's CPU time per second without changes.
    pub(super) agent_idle: Duration,
}

/// Cost of one added service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Added {
    pub(super) bytes: u64,
    /// CPU time in ms: the difference of a window with changes to the one before it; negative if the noise is
    /// larger than the cost.
    pub(super) agent: Summary,
    pub(super) gateway: Summary,
    /// Whether each service was a separate change of the tables; merged changes make the costs too low.
    pub(super) is_each_alone: bool,
    /// Median time until the service is in the gateway's tables.
    pub(super) live: Duration,
}

/// Field order is drop order: the registry's files are removed last.
struct World {
    gateway: Gateway,
    agent: Program,
    tap: Tap,
    registry: Registry,
    _cluster: Cluster,
}

/// Starts the agent and the gateway, and measures.
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
    let mut world = World { gateway, agent, tap, registry, _cluster: cluster };
    let (added, agent_idle) = world.add(stop)?;
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
    fn add(&mut self, stop: &Stop) -> anyhow::Result<(Added, Duration)> {
        let (mut agent, mut gateway, mut idle) = (Vec::new(), Vec::new(), Vec::new());
        let (mut bytes, mut is_each_alone) = (0, true);
        for _ in 0..ROUNDS {
            let before = self.cpu()?;
            pause(APART * ADDED + AFTERWARDS, stop)?;
            let between = self.cpu()?;
            let (passed, swaps) = (self.tap.passed(), self.swaps()?);
            for _ in 0..ADDED {
                self.registry.add(None)?;
                pause(APART, stop)?;
            }
            pause(AFTERWARDS, stop)?;
            let after = self.cpu()?;
            bytes += self.tap.passed() - passed;
            is_each_alone &= self.swaps()? == swaps + usize::try_from(ADDED)?;
            let [agent_cost, gateway_cost] = cost(before, between, after);
            agent.push(agent_cost);
            gateway.push(gateway_cost);
            idle.push((between[0] - before[0]).div_f64((APART * ADDED + AFTERWARDS).as_secs_f64()));
        }
        idle.sort();
        let summary = |costs: &[f64]| Summary::from_samples(costs).context("no round was measured");
        let added = Added {
            bytes: bytes / u64::from(ADDED * ROUNDS),
            agent: summary(&agent)?,
            gateway: summary(&gateway)?,
            is_each_alone,
            live: self.live(stop)?,
        };
        Ok((added, idle.get(idle.len() / 2).copied().unwrap_or_default()))
    }

    /// How often the gateway has swapped its tables.
    fn swaps(&self) -> io::Result<usize> {
        let log = fs::read_to_string(self.gateway.program.directory().join("output"))?;
        Ok(log.matches("tables swapped").count())
    }

    /// Median time until an added service is live.
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

    /// CPU time of the agent and of the gateway since their start.
    fn cpu(&self) -> io::Result<[Duration; 2]> {
        let of = |pid| Process::sum(&[pid]).map(|process| process.ticked());
        Ok([of(self.agent.id())?, of(self.gateway.program.id())?])
    }
}

/// CPU time of each process for one added service, in ms. The three readings delimit a window without changes
/// and one with changes.
fn cost(before: [Duration; 2], between: [Duration; 2], after: [Duration; 2]) -> [f64; 2] {
    let seconds = |times: [Duration; 2]| times.map(|time| time.as_secs_f64());
    let (before, between, after) = (seconds(before), seconds(between), seconds(after));
    let of = |a: f64, b: f64, c: f64| ((c - b) - (b - a)) * 1e3 / f64::from(ADDED);
    let ([a, d], [b, e], [c, f]) = (before, between, after);
    [of(a, b, c), of(d, e, f)]
}

fn pause(time: Duration, stop: &Stop) -> io::Result<()> {
    thread::sleep(time);
    stop.check()
}

/// RSS in KiB of a gateway that follows an agent without services.
fn idle_gateway(programs: &Programs, stop: &Stop) -> anyhow::Result<u64> {
    let mut cluster = Cluster::new("east")?;
    cluster.add_gateway("gw-1")?;
    let _agent = cluster.start_agent(programs, "gateways: [{ name: gw-1 }]\n", stop)?;
    let gateway = cluster.start_gateway(programs, ("gw-1", free_address()?), cluster.xds, stop)?;
    thread::sleep(SETTLING);
    Ok(resident(&gateway.program)?)
}

fn resident(program: &Program) -> io::Result<u64> {
    Holdings::read(&[program.id()]).map(|holdings| holdings.rss)
}

fn peak(program: &Program) -> io::Result<u64> {
    Process::sum(&[program.id()]).map(|process| process.peak_kib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_cost_subtracts_idle_baseline_and_reports_noise() {
        let at = |agent, gateway| [Duration::from_millis(agent), Duration::from_millis(gateway)];
        // Ten services: 200 ms more than idle is 20 ms each; 50 ms less is −5 ms each, not 0.
        let costs = cost(at(1_000, 0), at(1_100, 100), at(1_400, 150));
        assert_eq!(costs.map(f64::round), [20.0, -5.0]);
    }
}
