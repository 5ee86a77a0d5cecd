//! Measures how long the pages of an agent and of its gateway take while both are busy: 100 000 slices arrive from a
//! peer, and a large registry file is read.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::Size;
use super::cluster::{Cluster, Gateway, HOSTS, Programs, admin_of, free_address, get, until_read};
use super::registry::Registry;
use crate::program::Program;
use crate::progress::Progress;
use crate::stop::Stop;

/// Pause between two requests of a page.
const PAUSE: Duration = Duration::from_millis(50);
/// Resolution of the end of the work.
const RESOLUTION: Duration = Duration::from_millis(200);
/// Size of the registry file.
const FILE: usize = 64 << 20;
const PAGES: [&str; 3] = ["/healthz/ready", "/metrics", "/status"];

/// Times of one page during one kind of work.
#[derive(Clone, Debug)]
pub(super) struct Page {
    /// What kept the programs busy.
    pub(super) work: &'static str,
    pub(super) program: &'static str,
    pub(super) path: &'static str,
    /// Ascending.
    pub(super) times: Vec<Duration>,
}

/// Where a page is.
#[derive(Clone, Copy)]
struct Place {
    program: &'static str,
    path: &'static str,
    address: SocketAddr,
}

/// Measures during both kinds of work.
pub(super) fn measure(
    programs: &Programs,
    size: Size,
    progress: &mut Progress,
    stop: &Stop,
) -> anyhow::Result<Vec<Page>> {
    progress.step("pages", &format!("{} slices arrive", size.services));
    let mut pages = slices(programs, size, stop)?;
    progress.step("pages", "a registry file of 64 MiB is read");
    pages.extend(file(programs, size, stop)?);
    Ok(pages)
}

/// Slices arrive from a peer.
fn slices(programs: &Programs, size: Size, stop: &Stop) -> anyhow::Result<Vec<Page>> {
    let (mut east, mut west) = (Cluster::new("east")?, Cluster::new("west")?);
    east.trust_cluster(&west)?;
    west.trust_cluster(&east)?;
    east.add_gateway("gw-1")?;
    west.add_gateway("gw-1")?;
    let _registry = Registry::fill(&east.registry(), (size.services, size.endpoints), Default::default())?;
    let door = free_address()?;
    let exporting = format!(
        "gateways: [{{ name: gw-1, address: {}, port: {} }}]\nexports: [{{ hosts: ['{HOSTS}'] }}]\npeers: [{}]\n",
        door.ip(),
        door.port(),
        west.as_peer()
    );
    let importing = format!(
        "gateways: [{{ name: gw-1 }}]\nimports: [{{ cluster: east, hosts: ['{HOSTS}'], gatewayCIDRs: [127.0.0.0/8] }}]\npeers: [{}]\n\
         limits: {{ peers: {{ slices: 1000000, bytes: 1GiB }} }}\n",
        east.as_peer()
    );
    let mut owner = east.start_agent(programs, &exporting, stop)?;
    until_read(&mut owner, stop)?;
    let gateway = west.start_gateway(programs, ("gw-1", free_address()?), west.xds, stop)?;
    let agent = west.start_agent(programs, &importing, stop)?;
    poll("slices arrive", &places(&agent, &gateway)?, || {
        gateway.until_services(size.services, RESOLUTION, stop)
    })
}

/// A large registry file is read.
fn file(programs: &Programs, size: Size, stop: &Stop) -> anyhow::Result<Vec<Page>> {
    let mut cluster = Cluster::new("east")?;
    cluster.add_gateway("gw-1")?;
    let mut registry = Registry::fill(&cluster.registry(), (1, size.endpoints), Default::default())?;
    let mut agent = cluster.start_agent(programs, "gateways: [{ name: gw-1 }]\n", stop)?;
    until_read(&mut agent, stop)?;
    let gateway = cluster.start_gateway(programs, ("gw-1", free_address()?), cluster.xds, stop)?;
    gateway.until_services(1, RESOLUTION, stop)?;
    poll("a file is read", &places(&agent, &gateway)?, || {
        let services = registry.add_large_file(size.services, FILE)?;
        gateway.until_services(services, RESOLUTION, stop)
    })
}

fn places(agent: &Program, gateway: &Gateway) -> anyhow::Result<Vec<Place>> {
    let admin = admin_of(agent)?;
    let of_agent = PAGES.map(|path| Place { program: "agent", path, address: admin });
    let addresses = [gateway.address("health")?, gateway.address("metrics")?, gateway.address("admin")?];
    let of_gateway =
        PAGES.into_iter().zip(addresses).map(|(path, address)| Place { program: "gateway", path, address });
    Ok(of_agent.into_iter().chain(of_gateway).collect())
}

/// Requests each page again and again while `work` runs.
fn poll(
    work: &'static str,
    places: &[Place],
    run: impl FnOnce() -> io::Result<()>,
) -> anyhow::Result<Vec<Page>> {
    let is_over = AtomicBool::new(false);
    let (ran, polled) = thread::scope(|scope| {
        let pollers: Vec<_> = places.iter().map(|place| scope.spawn(|| times(*place, &is_over))).collect();
        let ran = run();
        is_over.store(true, Relaxed);
        let panicked = || Err(io::Error::other("a thread that requests pages panicked"));
        let polled: Vec<_> =
            pollers.into_iter().map(|poller| poller.join().unwrap_or_else(|_| panicked())).collect();
        (ran, polled)
    });
    ran?;
    let pages = places.iter().zip(polled).map(|(Place { program, path, .. }, times)| {
        let mut times = times?;
        times.sort();
        Ok(Page { work, program, path, times })
    });
    pages.collect()
}

fn times(place: Place, is_over: &AtomicBool) -> io::Result<Vec<Duration>> {
    let mut times = Vec::new();
    while !is_over.load(Relaxed) {
        let began = Instant::now();
        let answer = get(place.address, place.path)?;
        times.push(began.elapsed());
        // A program that has not started to serve is not ready, and says so.
        if !answer.starts_with("HTTP/1.1 200 ") && !answer.starts_with("HTTP/1.1 503 ") {
            let first = answer.lines().next().unwrap_or_default();
            return Err(io::Error::other(format!("{} of the {}: {first}", place.path, place.program)));
        }
        thread::sleep(PAUSE);
    }
    Ok(times)
}
