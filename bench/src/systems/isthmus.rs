//! Our gateway: one worker, no access log, else its defaults.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{CONNECTIONS, Route, Search, System, write};

pub(super) struct Isthmus;

impl System for Isthmus {
    fn name(&self) -> &'static str {
        "isthmus"
    }

    fn program(&self, search: &Search) -> Result<PathBuf, String> {
        let path = search.gateway.clone();
        if path.is_file() { Ok(path) } else { Err(format!("no program at {} (--gateway)", path.display())) }
    }

    fn configure(&self, program: &Path, directory: &Path, route: Route) -> io::Result<Command> {
        let Route { listen, name, backend } = route;
        let port = backend.port();
        let text = format!(
            "workers: 1\n\
             listeners:\n\
             - address: {listen}\n  \
               max_connections: {CONNECTIONS}\n\
             services:\n\
             - host: {name}\n  \
               port: {port}\n  \
               endpoints:\n  \
               - address: {backend}\n\
             limits: {{ connections: {CONNECTIONS} }}\n\
             admin: {{ address: 127.0.0.1:0 }}\n\
             metrics: {{ address: 127.0.0.1:0 }}\n\
             health: {{ address: 127.0.0.1:0 }}\n\
             access_log: {{ enabled: false }}\n"
        );
        let config = write(directory, "gateway.yaml", &text)?;
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(config);
        Ok(command)
    }
}
