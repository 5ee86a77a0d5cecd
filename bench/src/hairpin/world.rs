//! Builds the three sites, their links and their programs. Two routes lead from west to the service in east;
//! both enter east through its gateway, which is the only way into a cluster.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::ClientConfig;
use serde::Serialize;

use super::cost::Meters;
use super::find::Programs;
use super::service::Service;
use super::trust::{NAME, Trust};
use crate::netns::Namespace;
use crate::program::{Program, START};
use crate::stop::Stop;
use crate::wan::{End, Link, Shape};

/// Addresses of each link: the first-named site, then the other.
const WEST_CENTRE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 1, 1), Ipv4Addr::new(10, 77, 1, 2)];
const CENTRE_EAST: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 2, 1), Ipv4Addr::new(10, 77, 2, 2)];
const WEST_EAST: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 77, 3, 1), Ipv4Addr::new(10, 77, 3, 2)];
const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const GATEWAY_PORT: u16 = 15443;
const INGRESS_PORT: u16 = 443;

/// The shape of each link.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Shapes {
    pub(super) west_centre: Shape,
    pub(super) centre_east: Shape,
    pub(super) west_east: Shape,
}

/// A path from west to the service.
#[derive(Clone, Debug)]
pub(super) struct Route {
    pub(super) name: &'static str,
    pub(super) entry: SocketAddr,
    pub(super) config: Arc<ClientConfig>,
    /// The links on the path.
    pub(super) links: Vec<Shape>,
    /// Number of TLS connections on the path.
    pub(super) tls_connections: usize,
}

/// The running sites. Field order is drop order.
#[derive(Debug)]
pub(super) struct World {
    ingress: Program,
    gateway: Program,
    service: Service,
    links: [Link; 3],
    pub(super) west: Namespace,
    _centre: Namespace,
    _east: Namespace,
    pub(super) routes: [Route; 2],
    pub(super) client_id: String,
    /// TCP congestion control at each site.
    pub(super) congestion_control: String,
}

impl World {
    pub(super) fn start(shapes: Shapes, seed: u64, programs: &Programs, stop: &Stop) -> anyhow::Result<Self> {
        let (west, centre, east) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        for site in [&west, &centre, &east] {
            // Otherwise a connection starts with the metrics of an earlier one to the same address.
            site.inside(|| fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1"))?;
        }
        let trust = Trust::new()?;
        let (w, c, e) = ((&west, "west"), (&centre, "centre"), (&east, "east"));
        let links = [
            join([w, c], WEST_CENTRE, shapes.west_centre, seed)?,
            join([c, e], CENTRE_EAST, shapes.centre_east, seed.wrapping_add(1))?,
            join([w, e], WEST_EAST, shapes.west_east, seed.wrapping_add(2))?,
        ];
        let service = Service::start(&east, &trust.service)?;
        let entry = SocketAddr::from((WEST_EAST[1], GATEWAY_PORT));
        let gateway = start(&east, entry, stop, |directory| {
            gateway_command(&programs.gateway, directory, service.address)
        })?;
        let hub = SocketAddr::from((WEST_CENTRE[1], INGRESS_PORT));
        let ingress = start(&centre, hub, stop, |directory| {
            trust.write_for_ingress(directory)?;
            let next = SocketAddr::from((CENTRE_EAST[1], GATEWAY_PORT));
            ingress_command(&programs.haproxy, directory, hub, next)
        })?;
        let direct = Route {
            name: "direct",
            entry,
            config: trust.to_service,
            links: vec![shapes.west_east],
            tls_connections: 1,
        };
        let hairpin = Route {
            name: "hairpin",
            entry: hub,
            config: trust.to_ingress,
            links: vec![shapes.west_centre, shapes.centre_east],
            tls_connections: 2,
        };
        let congestion_control = east.inside(|| fs::read_to_string(CONGESTION_CONTROL))?.trim().to_owned();
        let client_id = trust.client_id.to_string();
        let routes = [direct, hairpin];
        Ok(Self {
            ingress,
            gateway,
            service,
            links,
            west,
            _centre: centre,
            _east: east,
            routes,
            client_id,
            congestion_control,
        })
    }

    pub(super) fn meters(&self) -> Meters<'_> {
        Meters { service: &self.service, gateway: self.gateway.id(), ingress: self.ingress.id() }
    }

    /// Packets dropped at full queues: west-centre, centre-east, west-east.
    pub(super) fn dropped(&self) -> [u64; 3] {
        self.links.each_ref().map(Link::dropped)
    }
}

/// Joins two sites; each device is named after the site at its other end.
fn join(
    [near, far]: [(&Namespace, &str); 2],
    [near_address, far_address]: [Ipv4Addr; 2],
    shape: Shape,
    seed: u64,
) -> io::Result<Link> {
    let ends = [
        End { namespace: near.0, device: far.1, address: near_address },
        End { namespace: far.0, device: near.1, address: far_address },
    ];
    Link::join(ends, shape, seed)
}

/// Starts a program at a site and waits until it accepts connections.
fn start(
    site: &Namespace,
    address: SocketAddr,
    stop: &Stop,
    prepare: impl FnOnce(&Path) -> io::Result<Command>,
) -> io::Result<Program> {
    let mut program = Program::start(prepare, |command| site.inside(|| command.spawn()))?;
    let connect = || site.inside(|| TcpStream::connect(address)).map(drop);
    program.wait_until(&format!("listen on {address}"), START, stop, connect)?;
    Ok(program)
}

/// The gateway: one worker, no access log, defaults otherwise.
fn gateway_command(program: &Path, directory: &Path, service: SocketAddr) -> io::Result<Command> {
    let file = directory.join("gateway.yaml");
    let text = format!(
        "workers: 1
listeners:
- address: 0.0.0.0:{GATEWAY_PORT}
admin: {{ address: 127.0.0.1:0 }}
metrics: {{ address: 127.0.0.1:0 }}
health: {{ address: 127.0.0.1:0 }}
access_log: {{ enabled: false }}
services:
- {{ host: {NAME}, port: 443, endpoints: [{{ address: \"{service}\" }}] }}
"
    );
    fs::write(&file, text)?;
    let mut command = Command::new(program);
    command.args(["run", "--config"]).arg(file);
    Ok(command)
}

/// HAProxy: one thread, mutual TLS on both sides, defaults otherwise. It keeps no connections to the service,
/// as connections cannot be shared in TCP mode.
fn ingress_command(
    program: &Path,
    directory: &Path,
    listen: SocketAddr,
    next: SocketAddr,
) -> io::Result<Command> {
    let file = directory.join("haproxy.cfg");
    let folder = directory.display();
    let tls = format!("ssl crt {folder}/ingress.pem ca-file {folder}/root.pem verify required");
    let text = format!(
        "global
    nbthread 1
    maxconn 1000
defaults
    mode tcp
    timeout connect 30s
    timeout client 1h
    timeout server 1h
frontend hub
    bind {listen} {tls}
    default_backend east
backend east
    server gateway {next} {tls} sni str({NAME})
"
    );
    fs::write(&file, text)?;
    let mut command = Command::new(program);
    command.args(["-db", "-f"]).arg(file);
    Ok(command)
}
