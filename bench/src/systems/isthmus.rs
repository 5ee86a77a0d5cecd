//! The Isthmus gateway: one worker, no access log, defaults otherwise. It watches its file. There are two, so
//! that a build can be compared with an earlier one.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{BASELINE, CONNECT_SECONDS, CONNECTIONS, Failover, Routes, Search, System};
use crate::ends::{End, Ends, NAME};
use crate::hello::service_name;
use crate::report::US;

/// How long an endpoint may keep a call waiting, where it may hang. The other systems have no such limit for TCP.
const FIRST_BYTE: &str = "500ms";

/// A build of the gateway.
pub(super) enum Isthmus {
    /// The build under test.
    This,
    /// The build given with `--baseline`.
    Baseline,
}

impl System for Isthmus {
    fn name(&self) -> &'static str {
        match self {
            Self::This => US,
            Self::Baseline => BASELINE,
        }
    }

    fn program(&self, search: &Search) -> Result<PathBuf, String> {
        let path = match self {
            Self::This => search.gateway.clone(),
            Self::Baseline => search.baseline.clone().ok_or("no --baseline")?,
        };
        let remedy = "build it with `cargo build --release`, or give its path with --gateway";
        if path.is_file() { Ok(path) } else { Err(format!("{} does not exist; {remedy}", path.display())) }
    }

    fn tables(&self, _: &Path, routes: Routes) -> Vec<(&'static str, String)> {
        let listen = routes.listen;
        let mut text = head(listen, "");
        text.push_str("services:\n");
        for (name, endpoints) in routes.iter() {
            let port = endpoints.first.port();
            let list: Vec<_> = endpoints.iter().map(|one| format!("{{ address: \"{one}\" }}")).collect();
            // Writing into a String cannot fail.
            let _ = writeln!(text, "- {{ host: {name}, port: {port}, endpoints: [{}] }}", list.join(", "));
        }
        vec![("gateway.yaml", text)]
    }

    fn ends(&self, _: &Path, ends: &Ends<'_>) -> Result<Vec<(&'static str, String)>, String> {
        let (port, peer) = (ends.backend.port(), ends.peer);
        let [certificate, key] = [&ends.own.certificate, &ends.own.key].map(|file| file.display());
        let files = format!("certificate: {certificate}, key: {key}");
        let (mode, service) = match ends.end {
            End::Terminate => {
                (String::new(), format!("tls: terminate, {files}, access: {{ allow: [\"{peer}\"] }}"))
            }
            End::Originate => {
                let caller = format!("identity: \"{}\", {files}", ends.own.id);
                let mode =
                    format!("side: outbound, mode: originate, service: {NAME}, port: {port}, {caller}, ");
                (mode, format!("identities: [\"{peer}\"]"))
            }
        };
        let text = format!(
            "{}trust: {{ {files}, bundles: {} }}\nservices:\n\
             - {{ host: {NAME}, port: {port}, {service}, endpoints: [{{ address: \"{}\" }}] }}\n",
            head(ends.listen, &mode),
            ends.bundles.display(),
            ends.backend
        );
        Ok(vec![("gateway.yaml", text)])
    }

    fn failover(&self, _: &Path, failover: Failover) -> Result<Vec<(&'static str, String)>, String> {
        let Failover { listen, steady, failing } = failover;
        let text = format!(
            "{}services:\n- {{ host: {}, port: {}, timeouts: {{ connect: {CONNECT_SECONDS}s, first_byte: {FIRST_BYTE} }}, \
             endpoints: [{{ address: \"{steady}\" }}, {{ address: \"{failing}\" }}] }}\n",
            head(listen, ""),
            service_name(0),
            steady.port()
        );
        Ok(vec![("gateway.yaml", text)])
    }

    fn command(&self, program: &Path, directory: &Path, _: SocketAddr) -> io::Result<Command> {
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(directory.join("gateway.yaml"));
        Ok(command)
    }
}

/// Everything but the services; `mode` is what the listener has besides its address.
fn head(listen: SocketAddr, mode: &str) -> String {
    format!(
        "workers: 1\n\
         listeners: [{{ address: \"{listen}\", {mode}max_connections: {CONNECTIONS} }}]\n\
         limits: {{ connections: {CONNECTIONS} }}\n\
         admin: {{ address: 127.0.0.1:0 }}\n\
         metrics: {{ address: 127.0.0.1:0 }}\n\
         health: {{ address: 127.0.0.1:0 }}\n\
         access_log: {{ enabled: false }}\n"
    )
}
