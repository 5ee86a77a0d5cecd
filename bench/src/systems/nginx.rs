//! nginx with the stream module and `ssl_preread`: one worker, default buffers (nginx cannot splice), and a
//! map from name to endpoint.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use super::{CONNECTIONS, Routes, Search, System};
use crate::ends::{End, Ends, NAME};

/// Directories in which distributions install the module when it is not compiled in.
const MODULES: [&str; 3] = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/etc/nginx/modules"];

pub(super) struct Nginx;

impl System for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn program(&self, search: &Search) -> Result<PathBuf, String> {
        search.find("nginx", "ISTHMUS_NGINX")
    }

    fn version_argument(&self) -> &'static str {
        "-v"
    }

    fn tables(&self, directory: &Path, routes: Routes) -> Vec<(&'static str, String)> {
        let (listen, buckets) = (routes.listen, (2 * routes.services).max(2048));
        let (mut map, mut groups) = (String::new(), String::new());
        for (name, endpoints) in routes.iter() {
            // Writing into a String cannot fail.
            if let Some(second) = endpoints.second {
                let _ = writeln!(
                    groups,
                    "    upstream {name} {{ server {}; server {second}; }}",
                    endpoints.first
                );
                let _ = writeln!(map, "        {name} {name};");
            } else {
                let _ = writeln!(map, "        {name} {};", endpoints.first);
            }
        }
        let text = format!(
            "{}stream {{
{groups}    map_hash_max_size {buckets};
    map_hash_bucket_size 128;
    map $ssl_preread_server_name $endpoint {{
{map}    }}
    server {{
        listen {listen} backlog=4096;
        ssl_preread on;
        proxy_pass $endpoint;
        proxy_connect_timeout 5s;
        proxy_timeout 1h;
    }}
}}
",
            head(directory)
        );
        vec![("nginx.conf", text)]
    }

    fn ends(&self, directory: &Path, ends: &Ends<'_>) -> Result<Vec<(&'static str, String)>, String> {
        let [certificate, key] = [&ends.own.certificate, &ends.own.key].map(|file| file.display());
        let root = ends.root.display();
        let (listen, tls) = match ends.end {
            End::Terminate => (
                "ssl ",
                format!(
                    "ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_client_certificate {root};
        ssl_verify_client on;
        ssl_protocols TLSv1.3;"
                ),
            ),
            End::Originate => (
                "",
                format!(
                    "proxy_ssl on;
        proxy_ssl_certificate {certificate};
        proxy_ssl_certificate_key {key};
        proxy_ssl_trusted_certificate {root};
        proxy_ssl_verify on;
        proxy_ssl_name {NAME};
        proxy_ssl_server_name on;
        proxy_ssl_protocols TLSv1.3;"
                ),
            ),
        };
        let text = format!(
            "{}stream {{
    server {{
        listen {} {listen}backlog=4096;
        {tls}
        proxy_pass {};
        proxy_connect_timeout 5s;
        proxy_timeout 1h;
    }}
}}
",
            head(directory),
            ends.listen,
            ends.backend
        );
        Ok(vec![("nginx.conf", text)])
    }

    fn command(&self, program: &Path, directory: &Path, _: SocketAddr) -> io::Result<Command> {
        let mut command = Command::new(program);
        command.arg("-c").arg(directory.join("nginx.conf")).args(["-e", "stderr"]);
        Ok(command)
    }

    fn reload_signal(&self) -> Option<Signal> {
        Some(Signal::HUP)
    }
}

/// Everything before the stream block.
fn head(directory: &Path) -> String {
    let module = MODULES.iter().map(|folder| Path::new(folder).join("ngx_stream_module.so"));
    let load = module.into_iter().find(|file| file.is_file());
    let load = load.map_or_else(String::new, |file| format!("load_module {};", file.display()));
    let (folder, sockets) = (directory.display(), 2 * CONNECTIONS + 100);
    format!(
        "{load}
daemon off;
worker_processes 1;
worker_rlimit_nofile {sockets};
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections {sockets}; }}
"
    )
}
