//! nginx with the stream module and `ssl_preread`: one worker, default buffers (it cannot splice).

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{CONNECTIONS, Route, Search, System, write};

/// Where distributions put the module when it is not compiled in.
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

    fn configure(&self, program: &Path, directory: &Path, route: Route) -> io::Result<Command> {
        let Route { listen, name, backend } = route;
        let module = MODULES.iter().map(|folder| Path::new(folder).join("ngx_stream_module.so"));
        let load = module.into_iter().find(|file| file.is_file());
        let load = load.map_or_else(String::new, |file| format!("load_module {};", file.display()));
        let (folder, sockets) = (directory.display(), 2 * CONNECTIONS + 100);
        let text = format!(
            "{load}
daemon off;
worker_processes 1;
worker_rlimit_nofile {sockets};
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections {sockets}; }}
stream {{
    map $ssl_preread_server_name $endpoint {{ {name} {backend}; }}
    server {{
        listen {listen} backlog=4096;
        ssl_preread on;
        proxy_pass $endpoint;
        proxy_connect_timeout 5s;
        proxy_timeout 1h;
    }}
}}
"
        );
        let config = write(directory, "nginx.conf", &text)?;
        let mut command = Command::new(program);
        command.arg("-c").arg(config).args(["-e", "stderr"]);
        Ok(command)
    }
}
