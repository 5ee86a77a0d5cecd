//! HAProxy in TCP mode: one thread, splicing where it sees fit, as its manual advises for bulk.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{CONNECTIONS, Route, Search, System, write};

pub(super) struct Haproxy;

impl System for Haproxy {
    fn name(&self) -> &'static str {
        "haproxy"
    }

    fn program(&self, search: &Search) -> Result<PathBuf, String> {
        search.find("haproxy", "ISTHMUS_HAPROXY")
    }

    fn version_argument(&self) -> &'static str {
        "-v"
    }

    fn configure(&self, program: &Path, directory: &Path, route: Route) -> io::Result<Command> {
        let Route { listen, name, backend } = route;
        let text = format!(
            "global
    nbthread 1
    maxconn {CONNECTIONS}
defaults
    mode tcp
    option splice-auto
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend east_west
    bind {listen}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    use_backend service if {{ req.ssl_sni -i {name} }}
backend service
    server endpoint {backend}
"
        );
        let config = write(directory, "haproxy.cfg", &text)?;
        let mut command = Command::new(program);
        // In the foreground, whatever the file says.
        command.args(["-db", "-f"]).arg(config);
        Ok(command)
    }
}
