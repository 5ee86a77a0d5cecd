//! The systems that are compared: for each, where its program is and how it is told to route names to one
//! backend with one worker. One file a system. Nothing here is tuned beyond what each file says.

mod envoy;
mod haproxy;
mod isthmus;
mod nginx;
mod search;
mod traefik;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(crate) use search::Search;

use crate::backend::tls::TLS_NAME;
use crate::hello::service_name;

/// The same routes for every system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routes {
    pub(crate) listen: SocketAddr,
    /// So many services, each with this one endpoint.
    pub(crate) services: u32,
    pub(crate) backend: SocketAddr,
    /// A second endpoint of the last service: one that accepts and closes.
    pub(crate) closing: Option<SocketAddr>,
    /// The endpoint of one more, for whole handshakes.
    pub(crate) tls: SocketAddr,
}

impl Routes {
    /// Name and endpoints of each service.
    fn iter(self) -> impl Iterator<Item = (String, Endpoints)> {
        let second = move |number| self.closing.filter(|_| number + 1 == self.services);
        let plain = (0..self.services).map(move |number| {
            (service_name(number), Endpoints { first: self.backend, second: second(number) })
        });
        plain.chain([(TLS_NAME.to_owned(), Endpoints { first: self.tls, second: None })])
    }
}

/// Who serves a service.
#[derive(Clone, Copy, Debug)]
struct Endpoints {
    first: SocketAddr,
    second: Option<SocketAddr>,
}

impl Endpoints {
    fn iter(self) -> impl Iterator<Item = SocketAddr> {
        std::iter::once(self.first).chain(self.second)
    }
}

/// Connections that a system must be able to hold. Two descriptors for each stay below the 20 000 that a
/// process may often have, with room for pipes.
const CONNECTIONS: u32 = 8500;

/// A proxy that can be configured, started and given other tables.
pub(crate) trait System: Sync {
    fn name(&self) -> &'static str;

    /// The program, or why it was not found.
    fn program(&self, search: &Search) -> Result<PathBuf, String>;

    /// What to ask the program for, to learn its version.
    fn version_argument(&self) -> &'static str {
        "--version"
    }

    /// The files that hold the routes, by name, in the order in which they must change.
    fn tables(&self, directory: &Path, routes: Routes) -> Vec<(&'static str, String)>;

    /// The command that runs the program in the foreground on the tables in the directory.
    fn command(&self, program: &Path, directory: &Path, routes: Routes) -> io::Result<Command>;

    /// What makes the process read its tables again; none if it watches them.
    fn reload_signal(&self) -> Option<rustix::process::Signal> {
        None
    }
}

/// Every system but the direct connection, ours first.
pub(crate) const ALL: [&dyn System; 6] =
    [GATEWAY, &isthmus::Isthmus::Baseline, HAPROXY, &nginx::Nginx, &envoy::Envoy, &traefik::Traefik];

/// Ours.
pub(crate) const GATEWAY: &dyn System = &isthmus::Isthmus::This;

/// The peer that others need for something else too.
pub(crate) const HAPROXY: &dyn System = &haproxy::Haproxy;

/// The name of another build of our own gateway.
pub(crate) const BASELINE: &str = "baseline";

/// What a program says about its version: the first line that has a number in it.
pub(crate) fn version(system: &dyn System, program: &Path) -> String {
    let output = Command::new(program).arg(system.version_argument()).stdin(Stdio::null()).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        return "unknown version".into();
    };
    // nginx answers on stderr.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()));
    // Envoy begins with its path, which is in the report already.
    let line = line.unwrap_or("unknown version").trim();
    line.strip_prefix(&*program.to_string_lossy()).unwrap_or(line).trim().into()
}
