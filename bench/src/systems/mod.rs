//! The systems under comparison: where each one's binary is and how it is configured to route names to one
//! backend with one worker. One file per system; nothing is tuned beyond what each file says.

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
use crate::ends::Ends;
use crate::hello::service_name;

/// The same routes for every system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routes {
    pub(crate) listen: SocketAddr,
    /// Number of services, each with the one endpoint `backend`.
    pub(crate) services: u32,
    pub(crate) backend: SocketAddr,
    /// A second endpoint of the last service, which accepts and closes.
    pub(crate) closing: Option<SocketAddr>,
    /// The endpoint of one more service, for full handshakes.
    pub(crate) tls: SocketAddr,
}

impl Routes {
    /// The name and the endpoints of each service.
    fn iter(self) -> impl Iterator<Item = (String, Endpoints)> {
        let second = move |number| self.closing.filter(|_| number + 1 == self.services);
        let plain = (0..self.services).map(move |number| {
            (service_name(number), Endpoints { first: self.backend, second: second(number) })
        });
        plain.chain([(TLS_NAME.to_owned(), Endpoints { first: self.tls, second: None })])
    }
}

/// One service with two endpoints, of which one will fail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failover {
    pub(crate) listen: SocketAddr,
    pub(crate) steady: SocketAddr,
    pub(crate) failing: SocketAddr,
}

/// Seconds that a system waits for an endpoint to accept, where an endpoint fails.
const CONNECT_SECONDS: u32 = 1;

/// The endpoints of a service.
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

/// Connections that a system must hold. Two descriptors each stay below the common limit of 20 000 per
/// process, with room for pipes.
const CONNECTIONS: u32 = 8500;

/// A proxy that can be configured, started and reconfigured.
pub(crate) trait System: Sync {
    fn name(&self) -> &'static str;

    /// The path of the binary, or the reason why there is none.
    fn program(&self, search: &Search) -> Result<PathBuf, String>;

    /// The argument that prints the version.
    fn version_argument(&self) -> &'static str {
        "--version"
    }

    /// The names and contents of the route files, in the order in which they must be replaced.
    fn tables(&self, directory: &Path, routes: Routes) -> Vec<(&'static str, String)>;

    /// The same for a process that begins or ends TLS for one service; or why the system is not compared at that.
    fn ends(&self, _directory: &Path, _ends: &Ends<'_>) -> Result<Vec<(&'static str, String)>, String> {
        Err(format!("{} is not compared where TLS begins or ends in the proxy", self.name()))
    }

    /// The same for a process that moves calls from an endpoint that fails, as well as its documentation tells; or why the
    /// system is not compared at that.
    fn failover(
        &self,
        _directory: &Path,
        _failover: Failover,
    ) -> Result<Vec<(&'static str, String)>, String> {
        Err(format!("{} is not compared where an endpoint fails", self.name()))
    }

    /// The command that runs the program in the foreground on the tables in the directory.
    fn command(&self, program: &Path, directory: &Path, listen: SocketAddr) -> io::Result<Command>;

    /// The signal that reloads the tables; `None` if the process watches them.
    fn reload_signal(&self) -> Option<rustix::process::Signal> {
        None
    }
}

/// Every system except the direct connection, Isthmus first.
pub(crate) const ALL: [&dyn System; 6] =
    [GATEWAY, &isthmus::Isthmus::Baseline, HAPROXY, &nginx::Nginx, &envoy::Envoy, &traefik::Traefik];

/// The gateway under test.
pub(crate) const GATEWAY: &dyn System = &isthmus::Isthmus::This;

/// HAProxy, which `hairpin` also uses as its ingress.
pub(crate) const HAPROXY: &dyn System = &haproxy::Haproxy;

/// Name of the `--baseline` build of the gateway.
pub(crate) const BASELINE: &str = "baseline";

/// A program's version: the first line of its output with a digit.
pub(crate) fn version(system: &dyn System, program: &Path) -> String {
    let output = Command::new(program).arg(system.version_argument()).stdin(Stdio::null()).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        return "unknown version".into();
    };
    // nginx prints its version on stderr.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()));
    // Envoy's line begins with its path, which is in the report already.
    let line = line.unwrap_or("unknown version").trim();
    line.strip_prefix(&*program.to_string_lossy()).unwrap_or(line).trim().into()
}
