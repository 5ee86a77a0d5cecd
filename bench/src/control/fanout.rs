//! Measures how long a change takes to reach the last of many simulated gateways and peers of one agent, and
//! how that grows with their number.

use std::thread;
use std::time::{Duration, Instant};

use super::Size;
use super::cluster::{Cluster, HOSTS, Programs, free_address, until_read};
use super::crowd::Crowd;
use super::registry::Registry;
use crate::hello::service_name;
use crate::proc::Process;
use crate::program::Program;
use crate::progress::Progress;
use crate::stop::Stop;

const SYNC: Duration = Duration::from_mins(3);
const PATIENCE: Duration = Duration::from_secs(30);
/// Number of changes at each number of gateways.
const CHANGES: u32 = 25;
/// Smallest pause between changes, so that their CPU times do not overlap.
const APART: Duration = Duration::from_millis(200);

/// Result at one number of gateways.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) gateways: usize,
    /// Number of receivers of a change.
    pub(super) members: usize,
    /// From the first join until all members are in sync.
    pub(super) joined: Duration,
    /// From the rename of the file until the last receiver has the change; ascending.
    pub(super) times: Vec<Duration>,
    /// The agent's CPU time for one change.
    pub(super) agent: Duration,
    /// The agent's RSS in KiB.
    pub(super) agent_rss: u64,
}

/// Measures with a quarter of the gateways, half of them and all of them.
pub(super) fn measure(
    programs: &Programs,
    size: Size,
    (gateways, peers): (usize, usize),
    progress: &mut Progress,
    stop: &Stop,
) -> anyhow::Result<Vec<Step>> {
    progress.step("fanout", "issuing identities");
    let mut cluster = Cluster::new("east")?;
    let names: Vec<String> = (0..gateways).map(|number| format!("gw-{number}")).collect();
    for name in &names {
        cluster.add_gateway(name)?;
        stop.check()?;
    }
    let others: Vec<Cluster> = (0..peers)
        .map(|number| {
            let mut peer = Cluster::new(&format!("peer-{number}"))?;
            peer.trust_cluster(&cluster)?;
            cluster.trust_cluster(&peer)?;
            Ok(peer)
        })
        .collect::<anyhow::Result<_>>()?;
    let mut registry =
        Registry::fill(&cluster.registry(), (size.services, size.endpoints), Default::default())?;
    let mut crowd = Crowd::new(&cluster, size.services)?;
    others.iter().try_for_each(|peer| crowd.answer_for(peer))?;
    let mut agent = cluster.start_agent(programs, &sections(&names, &others), stop)?;
    until_read(&mut agent, stop)?;
    let mut steps = Vec::new();
    let mut joined = 0;
    for part in [4, 2, 1] {
        let count = (gateways / part).max(1);
        progress.step("fanout", &format!("{count} gateways"));
        let began = Instant::now();
        if joined == 0 {
            others.iter().try_for_each(|peer| crowd.join(peer, "agent"))?;
        }
        for name in names.iter().take(count).skip(joined) {
            crowd.join(&cluster, name)?;
        }
        joined = count;
        crowd.until_full(SYNC, stop)?;
        let took = began.elapsed();
        steps.push(step(&crowd, &mut registry, &agent, (count, took), stop)?);
    }
    Ok(steps)
}

fn step(
    crowd: &Crowd,
    registry: &mut Registry,
    agent: &Program,
    (gateways, joined): (usize, Duration),
    stop: &Stop,
) -> anyhow::Result<Step> {
    let cpu = || Process::sum(&[agent.id()]).map(|process| process.ticked());
    // Lets the last members to join settle.
    thread::sleep(Duration::from_secs(2));
    let began = (Instant::now(), cpu()?);
    thread::sleep(Duration::from_secs(3));
    let idle = (cpu()? - began.1).div_f64(began.0.elapsed().as_secs_f64());
    let began = (Instant::now(), cpu()?);
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let service = change * 37 % 1_000;
        crowd.expect(&format!("east/{}", service_name(service)));
        let renamed = registry.lead(service, free_address()?)?;
        times.push(crowd.until_arrived(PATIENCE, stop)? - renamed);
        thread::sleep(APART + Duration::from_millis(fastrand::u64(..50)));
    }
    let used = (cpu()? - began.1).saturating_sub(idle.mul_f64(began.0.elapsed().as_secs_f64()));
    times.sort();
    let agent_rss = crate::proc::Holdings::read(&[agent.id()])?.rss;
    Ok(Step { gateways, members: crowd.members, joined, times, agent: used / CHANGES, agent_rss })
}

fn sections(gateways: &[String], peers: &[Cluster]) -> String {
    let gateways: String = gateways.iter().map(|name| format!("- {{ name: {name} }}\n")).collect();
    let exports = format!("exports: [{{ hosts: ['{HOSTS}'] }}]\n");
    let peers: String = peers.iter().map(|peer| format!("- {}\n", peer.as_peer())).collect();
    let peers = if peers.is_empty() { String::new() } else { format!("peers:\n{peers}") };
    format!("gateways:\n{gateways}{exports}{peers}")
}
