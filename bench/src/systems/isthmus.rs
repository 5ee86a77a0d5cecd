//! Our gateway: one worker, no access log, else its defaults. It watches its file.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{CONNECTIONS, Routes, Search, System};

pub(super) struct Isthmus;

impl System for Isthmus {
    fn name(&self) -> &'static str {
        "isthmus"
    }

    fn program(&self, search: &Search) -> Result<PathBuf, String> {
        let path = search.gateway.clone();
        let remedy = "build it with `cargo build --release`, or name it with --gateway";
        if path.is_file() { Ok(path) } else { Err(format!("no program at {}; {remedy}", path.display())) }
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
        for (name, endpoint) in routes.iter() {
            let port = endpoint.port();
            // Writing into a String cannot fail.
            let _ = writeln!(
                text,
                "- {{ host: {name}, port: {port}, endpoints: [{{ address: \"{endpoint}\" }}] }}"
            );
        }
        vec![("gateway.yaml", text)]
    }

    fn command(&self, program: &Path, directory: &Path, _: Routes) -> io::Result<Command> {
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(directory.join("gateway.yaml"));
        Ok(command)
    }
}
