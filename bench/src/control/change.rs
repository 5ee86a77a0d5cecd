//! Measures the time from an edit in east to connections in west: two clusters with an agent and a gateway
//! each, and a client in west that opens connections until one reaches the new endpoint.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Size;
use super::cluster::{Cluster, Gateway, HOSTS, Programs, free_address, until_read};
use super::registry::Registry;
use crate::hello::{Hello, Job};
use crate::program::Program;
use crate::progress::Progress;
use crate::stop::Stop;

/// An endpoint, identified by the byte that it answers.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Mark {
    A = b'a',
    B = b'b',
}

/// Number of services that change in turn, spread over the registry's files.
const TARGETS: u32 = 20;
/// Pause between connections: the resolution of the measurement.
const PAUSE: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(20);
/// Largest random pause between changes, so that they are not in step with the agent's polling.
const AT_MOST_APART_MS: u64 = 120;

/// Time until each change took effect.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// The endpoint of a service was replaced.
    pub(super) replaced: Vec<Duration>,
    /// A service was added.
    pub(super) added: Vec<Duration>,
}

struct World {
    registry: Registry,
    marks: [SocketAddr; 2],
    west: SocketAddr,
    hello: Arc<Hello>,
    _running: (Program, Program, Gateway, Gateway),
    _clusters: [Cluster; 2],
}

/// Measures this many changes of each kind.
pub(super) fn measure(
    programs: &Programs,
    size: Size,
    changes: u32,
    progress: &mut Progress,
    stop: &Stop,
) -> anyhow::Result<Times> {
    progress.step("change", "starting two clusters");
    let mut world = World::start(programs, size, stop)?;
    let mut times = Times::default();
    for turn in 0..changes {
        progress.step("change", &format!("edit {} of {changes}", turn + 1));
        world.pause();
        let mark = if (turn / TARGETS).is_multiple_of(2) { Mark::B } else { Mark::A };
        let service = target(turn % TARGETS, size.services);
        times.replaced.push(world.replace(service, mark, stop)?);
    }
    for turn in 0..changes {
        progress.step("change", &format!("new service {} of {changes}", turn + 1));
        world.pause();
        times.added.push(world.add(stop)?);
    }
    Ok(times)
}

/// The number of a changing service.
fn target(number: u32, services: u32) -> u32 {
    number * (services / TARGETS).max(1) % services
}

impl World {
    fn start(programs: &Programs, size: Size, stop: &Stop) -> anyhow::Result<Self> {
        let hello = Arc::new(Hello::new()?);
        let marks = [endpoint(Mark::A, Arc::clone(&hello))?, endpoint(Mark::B, Arc::clone(&hello))?];
        let (mut east, mut west) = (Cluster::new("east")?, Cluster::new("west")?);
        east.trust_cluster(&west)?;
        west.trust_cluster(&east)?;
        east.add_gateway("gw-1")?;
        west.add_gateway("gw-1")?;
        let real: BTreeMap<_, _> =
            (0..TARGETS).map(|number| (target(number, size.services), marks[0])).collect();
        let registry = Registry::fill(&east.registry(), (size.services, size.endpoints), real)?;
        let door = free_address()?;
        let (ip, port) = (door.ip(), door.port());
        let exporting = format!(
            "gateways: [{{ name: gw-1, address: {ip}, port: {port} }}]\nexports: [{{ hosts: ['{HOSTS}'] }}]\npeers: [{}]\n",
            west.as_peer()
        );
        let importing = format!(
            "gateways: [{{ name: gw-1 }}]\nimports: [{{ cluster: east, hosts: ['{HOSTS}'], gatewayCIDRs: [127.0.0.0/8] }}]\npeers: [{}]\n\
             limits: {{ peers: {{ slices: 1000000, bytes: 1GiB }} }}\n",
            east.as_peer()
        );
        let mut east_agent = east.start_agent(programs, &exporting, stop)?;
        until_read(&mut east_agent, stop)?;
        let west_agent = west.start_agent(programs, &importing, stop)?;
        let near = east.start_gateway(programs, ("gw-1", door), east.xds, stop)?;
        let far = west.start_gateway(programs, ("gw-1", free_address()?), west.xds, stop)?;
        for gateway in [&near, &far] {
            gateway.until_services(size.services, Duration::from_millis(50), stop)?;
        }
        let outbound = far.outbound()?;
        let world = Self {
            registry,
            marks,
            west: outbound,
            hello,
            _running: (east_agent, west_agent, near, far),
            _clusters: [east, west],
        };
        // The measurement starts once every target is reachable.
        for number in 0..TARGETS {
            world.until(target(number, size.services), Mark::A, Instant::now(), stop)?;
        }
        Ok(world)
    }

    fn pause(&self) {
        thread::sleep(Duration::from_millis(fastrand::u64(..AT_MOST_APART_MS)));
    }

    fn replace(&mut self, service: u32, mark: Mark, stop: &Stop) -> io::Result<Duration> {
        let [a, b] = self.marks;
        let endpoint = match mark {
            Mark::A => a,
            Mark::B => b,
        };
        let renamed = self.registry.lead(service, endpoint)?;
        self.until(service, mark, renamed, stop)
    }

    fn add(&mut self, stop: &Stop) -> io::Result<Duration> {
        let (service, renamed) = self.registry.add(Some(self.marks[0]))?;
        self.until(service, Mark::A, renamed, stop)
    }

    /// Time from `since` until a connection reaches this endpoint.
    fn until(&self, service: u32, mark: Mark, since: Instant, stop: &Stop) -> io::Result<Duration> {
        let hello = self.hello.for_service(Job::Once, service);
        loop {
            if answer(self.west, &hello)? == mark as u8 {
                return Ok(since.elapsed());
            }
            stop.check()?;
            if since.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("a change did not reach west within {PATIENCE:?}")));
            }
            thread::sleep(PAUSE);
        }
    }
}

/// The first byte of the answer to a hello: an endpoint's mark or an alert.
fn answer(gateway: SocketAddr, hello: &[u8]) -> io::Result<u8> {
    let mut stream = TcpStream::connect(gateway)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(hello)?;
    let mut first = 0;
    stream.read_exact(std::slice::from_mut(&mut first))?;
    Ok(first)
}

/// An endpoint that answers each hello with its mark, until this program exits.
fn endpoint(mark: Mark, hello: Arc<Hello>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        let mut received = vec![0; hello.len()];
        for mut stream in listener.incoming().map_while(Result::ok) {
            // A client may leave early.
            let _ = stream.read_exact(&mut received).and_then(|()| stream.write_all(&[mark as u8]));
        }
    });
    Ok(address)
}
