//! Envoy with `tls_inspector` and `tcp_proxy`: one worker, a filter chain and a cluster for each service, in
//! watched files of the form that control planes send.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{CONNECT_SECONDS, CONNECTIONS, Endpoints, Failover, Routes, Search, System};
use crate::ends::{End, Ends, NAME};
use crate::hello::service_name;

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
        watched(routes.services, &clusters, &listener(routes.listen, &chains))
    }

    fn ends(&self, _: &Path, ends: &Ends<'_>) -> Result<Vec<(&'static str, String)>, String> {
        let mut chain = json!({ "filters": [tcp_proxy(NAME)] });
        let mut cluster = cluster(NAME, Endpoints { first: ends.backend, second: None });
        let (at, name, mut tls) = match ends.end {
            End::Terminate => {
                (&mut chain, "DownstreamTlsContext", json!({ "require_client_certificate": true }))
            }
            End::Originate => (&mut cluster, "UpstreamTlsContext", json!({ "sni": NAME })),
        };
        let inside = [
            ("@type", json!(format!("{TYPES}.extensions.transport_sockets.tls.v3.{name}"))),
            ("common_tls_context", tls_context(ends)),
        ];
        inside.into_iter().for_each(|(key, value)| set(&mut tls, key, value));
        set(at, "transport_socket", json!({ "name": "tls", "typed_config": tls }));
        let listener = json!({
            "@type": format!("{TYPES}.config.listener.v3.Listener"),
            "name": "ends",
            "address": address(ends.listen),
            "filter_chains": [chain],
        });
        Ok(watched(1, &[cluster], &listener))
    }

    fn failover(&self, _: &Path, failover: Failover) -> Result<Vec<(&'static str, String)>, String> {
        let name = service_name(0);
        let endpoints = Endpoints { first: failover.steady, second: Some(failover.failing) };
        let (mut cluster, mut chain) = (cluster(&name, endpoints), chain(&name));
        let ejection = json!({
            "split_external_local_origin_errors": true,
            "consecutive_local_origin_failure": 5,
            "interval": "1s",
            "max_ejection_percent": 50,
        });
        let check = json!({
            "timeout": "1s",
            "interval": "1s",
            "unhealthy_threshold": 2,
            "healthy_threshold": 1,
            "tcp_health_check": {},
        });
        set(&mut cluster, "connect_timeout", json!(format!("{CONNECT_SECONDS}s")));
        set(&mut cluster, "outlier_detection", ejection);
        set(&mut cluster, "health_checks", json!([check]));
        let mut proxy = tcp_proxy(&name);
        if let Some(config) = proxy.get_mut("typed_config") {
            set(config, "max_connect_attempts", json!(3));
        }
        set(&mut chain, "filters", json!([proxy]));
        Ok(watched(1, &[cluster], &listener(failover.listen, &[chain])))
    }

    fn command(&self, program: &Path, directory: &Path, _: SocketAddr) -> io::Result<Command> {
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

/// The files that it watches.
fn watched(version: u32, clusters: &[Value], listener: &Value) -> Vec<(&'static str, String)> {
    let version = version.to_string();
    vec![
        ("clusters.json", json!({ "version_info": version, "resources": clusters }).to_string()),
        ("listeners.json", json!({ "version_info": version, "resources": [listener] }).to_string()),
    ]
}

/// A listener that goes by the SNI.
fn listener(listen: SocketAddr, chains: &[Value]) -> Value {
    json!({
        "@type": format!("{TYPES}.config.listener.v3.Listener"),
        "name": "east_west",
        "address": address(listen),
        "listener_filters": [{
            "name": "tls",
            "typed_config": { "@type": format!("{TYPES}.extensions.filters.listener.tls_inspector.v3.TlsInspector") },
        }],
        "filter_chains": chains,
    })
}

fn chain(name: &str) -> Value {
    json!({
        "name": name,
        "filter_chain_match": { "server_names": [name] },
        "filters": [tcp_proxy(name)],
    })
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "tcp",
        "typed_config": {
            "@type": format!("{TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": "bench",
            "cluster": cluster,
        },
    })
}

/// Its certificate, and the only peer that it accepts.
fn tls_context(ends: &Ends<'_>) -> Value {
    let file = |path: &Path| json!({ "filename": path });
    json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{
            "certificate_chain": file(&ends.own.certificate),
            "private_key": file(&ends.own.key),
        }],
        "validation_context": {
            "trusted_ca": file(ends.root),
            "match_typed_subject_alt_names": [
                { "san_type": "URI", "matcher": { "exact": ends.peer.to_string() } },
            ],
        },
    })
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
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
