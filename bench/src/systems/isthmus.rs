//! The Isthmus gateway: one worker, no access log, defaults otherwise. It watches its file. There are two, so
//! that a build can be compared with an earlier one.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{BASELINE, CONNECTIONS, Routes, Search, System};
use crate::report::US;

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
        let mut text = format!(
            "workers: 1\n\
             listeners:\n\
             - address: {listen}\n  \
               max_connections: {CONNECTIONS}\n\
             limits: {{ connections: {CONNECTIONS} }}\n\
             admin: {{ address: 127.0.0.1:0 }}\n\
             metrics: {{ address: 127.0.0.1:0 }}\n\
             health: {{ address: 127.0.0.1:0 }}\n\
             access_log: {{ enabled: false }}\n\
             services:\n"
        );
        for (name, endpoints) in routes.iter() {
            let port = endpoints.first.port();
            let list: Vec<_> = endpoints.iter().map(|one| format!("{{ address: \"{one}\" }}")).collect();
            // Writing into a String cannot fail.
            let _ = writeln!(text, "- {{ host: {name}, port: {port}, endpoints: [{}] }}", list.join(", "));
        }
        vec![("gateway.yaml", text)]
    }

    fn command(&self, program: &Path, directory: &Path, _: Routes) -> io::Result<Command> {
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(directory.join("gateway.yaml"));
        Ok(command)
    }
}
