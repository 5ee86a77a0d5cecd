//! HAProxy in TCP mode: one thread, splice-auto, as its manual advises for bulk transfers, and one backend
//! per service, selected by a map. With a master process, as in distributions, so that it can be reloaded.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::{CONNECT_SECONDS, CONNECTIONS, Failover, Routes, Search, System};
use crate::ends::{End, Ends, NAME};

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
        let mut text = format!(
            "{}frontend east_west
    bind {listen}
    tcp-request inspect-delay 5s
    tcp-request content accept if {{ req.ssl_hello_type 1 }}
    use_backend %[req.ssl_sni,lower,map({folder}/services.map)]
",
            head()
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

    fn ends(&self, _: &Path, ends: &Ends<'_>) -> Result<Vec<(&'static str, String)>, String> {
        let (own, root) = (ends.own.both.display(), ends.root.display());
        let tls = format!("ssl crt {own} ca-file {root} verify required ssl-min-ver TLSv1.3");
        let (front, back) = match ends.end {
            End::Terminate => (tls, String::new()),
            End::Originate => (String::new(), format!("{tls} sni str({NAME}) verifyhost {NAME}")),
        };
        let Ends { listen, backend, .. } = ends;
        let text = format!(
            "{}frontend ends
    bind {listen} {front}
    default_backend service
backend service
    server endpoint {backend} {back}
",
            head()
        );
        Ok(vec![("haproxy.cfg", text)])
    }

    fn failover(&self, _: &Path, failover: Failover) -> Result<Vec<(&'static str, String)>, String> {
        let Failover { listen, steady, failing } = failover;
        // A failed server is replaced at the first retry, marked down after ten failed connects, and checked each second.
        let text = format!(
            "{}    timeout connect {CONNECT_SECONDS}s
    retries 3
    option redispatch 1
    default-server check inter 1s fall 2 rise 1 observe layer4 error-limit 10 on-error mark-down
frontend failover
    bind {listen}
    default_backend service
backend service
    server steady {steady}
    server failing {failing}
",
            head()
        );
        Ok(vec![("haproxy.cfg", text)])
    }

    fn command(&self, program: &Path, directory: &Path, _: SocketAddr) -> io::Result<Command> {
        let mut command = Command::new(program);
        command.args(["-W", "-f"]).arg(directory.join("haproxy.cfg"));
        Ok(command)
    }

    fn reload_signal(&self) -> Option<Signal> {
        Some(Signal::USR2)
    }
}

fn head() -> String {
    // Otherwise HAProxy reserves two pipe descriptors for every fourth connection.
    format!(
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
"
    )
}
