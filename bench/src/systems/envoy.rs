//! Envoy with `tls_inspector` and a filter chain for the name: one worker, circuit breakers out of the way.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::{CONNECTIONS, Route, Search, System, write};

pub(super) struct Envoy;

impl System for Envoy {
    fn name(&self) -> &'static str {
        "envoy"
    }

    fn program(&self, search: &Search) -> Result<PathBuf, String> {
        search.find("envoy", "ISTHMUS_ENVOY")
    }

    fn configure(&self, program: &Path, directory: &Path, route: Route) -> io::Result<Command> {
        const TYPES: &str = "type.googleapis.com/envoy.extensions.filters";
        let address = |at: std::net::SocketAddr| json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } });
        let listener = json!({
            "name": "east_west",
            "address": address(route.listen),
            "listener_filters": [{
                "name": "tls",
                "typed_config": { "@type": format!("{TYPES}.listener.tls_inspector.v3.TlsInspector") },
            }],
            "filter_chains": [{
                "filter_chain_match": { "server_names": [route.name] },
                "filters": [{
                    "name": "tcp",
                    "typed_config": {
                        "@type": format!("{TYPES}.network.tcp_proxy.v3.TcpProxy"),
                        "stat_prefix": "bench",
                        "cluster": "service",
                    },
                }],
            }],
        });
        // The default breaker opens at 1024 connections.
        let breaker = json!({ "thresholds": [{ "max_connections": CONNECTIONS, "max_pending_requests": CONNECTIONS }] });
        let cluster = json!({
            "name": "service",
            "type": "STATIC",
            "connect_timeout": "5s",
            "circuit_breakers": breaker,
            "load_assignment": {
                "cluster_name": "service",
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(route.backend) } }] }],
            },
        });
        let bootstrap = json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } });
        let config = write(directory, "envoy.json", &bootstrap.to_string())?;
        let mut command = Command::new(program);
        command.arg("-c").arg(config);
        command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]);
        Ok(command)
    }
}
