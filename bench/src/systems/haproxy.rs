//! HAProxy in TCP mode: one thread, splice-auto, as its manual advises for bulk transfers, and one backend
//! per service, selected by a map. With a master process, as in distributions, so that it can be reloaded.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::{CONNECTIONS, Routes, Search, System};

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

    fn tables(&self, directory: &Path, routes: Routes) -> Vec<(&'static str, String)> {
        let (listen, folder) = (routes.listen, directory.display());
        // Otherwise HAProxy reserves two pipe descriptors for every fourth connection.
        let mut text = format!(
            "global
    nbthread 1
    maxconn {CONNECTIONS}
    maxpipes 500
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
    use_backend %[req.ssl_sni,lower,map({folder}/services.map)]
"
        );
        let mut map = String::new();
        for (name, endpoints) in routes.iter() {
            // Writing into a String cannot fail.
            let _ = writeln!(map, "{name} {name}");
            let _ = writeln!(text, "backend {name}");
            for (number, endpoint) in endpoints.iter().enumerate() {
                let _ = writeln!(text, "    server endpoint{number} {endpoint}");
            }
        }
        vec![("services.map", map), ("haproxy.cfg", text)]
    }

    fn command(&self, program: &Path, directory: &Path, _: Routes) -> io::Result<Command> {
        let mut command = Command::new(program);
        command.args(["-W", "-f"]).arg(directory.join("haproxy.cfg"));
        Ok(command)
    }

    fn reload_signal(&self) -> Option<Signal> {
        Some(Signal::USR2)
    }
}
