//! Traefik with TCP routers on `HostSNI` and TLS passthrough, in a watched file. It has no workers;
//! `GOMAXPROCS=1` limits it to one core at a time.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Map, Value, json};

use super::{Routes, Search, System};

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

    fn tables(&self, _: &Path, routes: Routes) -> Vec<(&'static str, String)> {
        let (mut routers, mut services) = (Map::new(), Map::new());
        for (name, endpoints) in routes.iter() {
            let key = name.replace('.', "-");
            let router = json!({
                "entryPoints": ["east_west"],
                "rule": format!("HostSNI(`{name}`)"),
                "service": key,
                "tls": { "passthrough": true },
            });
            routers.insert(key.clone(), router);
            let servers: Vec<Value> =
                endpoints.iter().map(|one| json!({ "address": one.to_string() })).collect();
            let service = json!({ "loadBalancer": { "servers": servers } });
            services.insert(key, service);
        }
        let tables: Value = json!({ "tcp": { "routers": routers, "services": services } });
        // JSON is YAML.
        vec![("dynamic.yaml", tables.to_string())]
    }

    fn command(&self, program: &Path, directory: &Path, listen: SocketAddr) -> io::Result<Command> {
        let main = json!({
            "global": { "checkNewVersion": false, "sendAnonymousUsage": false },
            "log": { "level": "ERROR" },
            "entryPoints": { "east_west": { "address": listen.to_string() } },
            // The default throttles changes to one in 2 s.
            "providers": {
                "providersThrottleDuration": "0s",
                "file": { "filename": directory.join("dynamic.yaml"), "watch": true },
            },
        });
        let config = directory.join("traefik.yaml");
        fs::write(&config, main.to_string())?;
        let mut command = Command::new(program);
        command.arg(format!("--configFile={}", config.display())).env("GOMAXPROCS", "1");
        Ok(command)
    }
}
