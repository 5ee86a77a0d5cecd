//! Traefik with a TCP router on `HostSNI` and TLS passthrough. It has no workers; `GOMAXPROCS=1` gives it
//! one core at a time.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::{Route, Search, System, write};

pub(super) struct Traefik;

impl System for Traefik {
    fn name(&self) -> &'static str {
        "traefik"
    }

    fn program(&self, search: &Search) -> Result<PathBuf, String> {
        search.find("traefik", "ISTHMUS_TRAEFIK")
    }

    fn version_argument(&self) -> &'static str {
        "version"
    }

    fn configure(&self, program: &Path, directory: &Path, route: Route) -> io::Result<Command> {
        let router = json!({
            "entryPoints": ["east_west"],
            "rule": format!("HostSNI(`{}`)", route.name),
            "service": "service",
            "tls": { "passthrough": true },
        });
        let service = json!({ "loadBalancer": { "servers": [{ "address": route.backend.to_string() }] } });
        let dynamic =
            json!({ "tcp": { "routers": { "service": router }, "services": { "service": service } } });
        // JSON is YAML.
        let dynamic = write(directory, "dynamic.yaml", &dynamic.to_string())?;
        let main = json!({
            "global": { "checkNewVersion": false, "sendAnonymousUsage": false },
            "log": { "level": "ERROR" },
            "entryPoints": { "east_west": { "address": route.listen.to_string() } },
            "providers": { "file": { "filename": dynamic, "watch": false } },
        });
        let config = write(directory, "traefik.yaml", &main.to_string())?;
        let mut command = Command::new(program);
        command.arg(format!("--configFile={}", config.display())).env("GOMAXPROCS", "1");
        Ok(command)
    }
}
