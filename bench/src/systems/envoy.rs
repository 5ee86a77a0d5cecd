//! Envoy with `tls_inspector` and `tcp_proxy`: one worker, a filter chain and a cluster for each service, in
//! watched files of the form that control planes send.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{CONNECTIONS, Endpoints, Routes, Search, System};

const TYPES: &str = "type.googleapis.com/envoy";

pub(super) struct Envoy;

impl System for Envoy {
    fn name(&self) -> &'static str {
        "envoy"
    }

    fn program(&self, search: &Search) -> Result<PathBuf, String> {
        search.find("envoy", "ISTHMUS_ENVOY")
    }

    fn tables(&self, _: &Path, routes: Routes) -> Vec<(&'static str, String)> {
        let clusters: Vec<Value> = routes.iter().map(|(name, endpoints)| cluster(&name, endpoints)).collect();
        let chains: Vec<Value> = routes.iter().map(|(name, _)| chain(&name)).collect();
        let listener = json!({
            "@type": format!("{TYPES}.config.listener.v3.Listener"),
            "name": "east_west",
            "address": address(routes.listen),
            "listener_filters": [{
                "name": "tls",
                "typed_config": { "@type": format!("{TYPES}.extensions.filters.listener.tls_inspector.v3.TlsInspector") },
            }],
            "filter_chains": chains,
        });
        let version = routes.services.to_string();
        vec![
            ("clusters.json", json!({ "version_info": version, "resources": clusters }).to_string()),
            ("listeners.json", json!({ "version_info": version, "resources": [listener] }).to_string()),
        ]
    }

    fn command(&self, program: &Path, directory: &Path, _: Routes) -> io::Result<Command> {
        let from = |name: &str| json!({ "resource_api_version": "V3", "path_config_source": { "path": directory.join(name) } });
        let bootstrap = json!({
            "node": { "id": "bench", "cluster": "bench" },
            "dynamic_resources": { "cds_config": from("clusters.json"), "lds_config": from("listeners.json") },
        });
        let config = directory.join("envoy.json");
        fs::write(&config, bootstrap.to_string())?;
        let mut command = Command::new(program);
        command.arg("-c").arg(config);
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
        Ok(command)
    }
}

fn chain(name: &str) -> Value {
    json!({
        "name": name,
        "filter_chain_match": { "server_names": [name] },
        "filters": [{
            "name": "tcp",
            "typed_config": {
                "@type": format!("{TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": "bench",
                "cluster": name,
            },
        }],
    })
}

fn cluster(name: &str, endpoints: Endpoints) -> Value {
    let endpoints: Vec<Value> =
        endpoints.iter().map(|one| json!({ "endpoint": { "address": address(one) } })).collect();
    // The default circuit breaker opens at 1024 connections.
    let breaker =
        json!({ "thresholds": [{ "max_connections": CONNECTIONS, "max_pending_requests": CONNECTIONS }] });
    json!({
        "@type": format!("{TYPES}.config.cluster.v3.Cluster"),
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": breaker,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": endpoints }],
        },
    })
}

fn address(at: SocketAddr) -> Value {
    json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
}
