//! The systems that are compared: for each, where its program is and how it is told to route one name to
//! one backend with one worker. One file a system. Nothing here is tuned beyond what each file says.

mod envoy;
mod haproxy;
mod isthmus;
mod nginx;
mod search;
mod traefik;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub(crate) use search::Search;

/// The same route for every system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) listen: SocketAddr,
    pub(crate) name: &'static str,
    pub(crate) backend: SocketAddr,
}

/// Connections that a system must be able to hold. Two descriptors for each, and pipes for some (HAProxy
/// reserves them at start), stay below the 20 000 that a process may often have.
const CONNECTIONS: u32 = 6000;

/// A proxy that can be configured and started.
pub(crate) trait System: Sync {
    fn name(&self) -> &'static str;

    /// The program, or why it was not found.
    fn program(&self, search: &Search) -> Result<PathBuf, String>;

    /// What to ask the program for, to learn its version.
    fn version_argument(&self) -> &'static str {
        "--version"
    }

    /// Writes the configuration into the directory; gives the command that runs it in the foreground.
    fn configure(&self, program: &Path, directory: &Path, route: Route) -> io::Result<Command>;
}

/// Every system but the direct connection, ours first.
pub(crate) const ALL: [&dyn System; 5] =
    [&isthmus::Isthmus, &haproxy::Haproxy, &nginx::Nginx, &envoy::Envoy, &traefik::Traefik];

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

fn write(directory: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    let path = directory.join(name);
    fs::write(&path, text)?;
    Ok(path)
}
