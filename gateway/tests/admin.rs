//! The admin, metrics and health ports of a running gateway: who may ask, what is answered, and that
//! asking changes nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use isthmus_gateway::config;
use isthmus_gateway::gateway::Gateway;
use isthmus_gateway::metrics::collect;
use serde_json::Value;

const CONFIG: &str = "
workers: 1
listeners: [{ address: '127.0.0.1:0', name: east-west }]
admin: { address: '127.0.0.1:0' }
metrics: { address: '127.0.0.1:0' }
health: { address: '127.0.0.1:0' }
access_log: { enabled: false }
drain: { accept_for: 1h, window: 1s }
services:
- host: productpage.example
  aliases: [productpage]
  sources: [192.0.2.0/24]
  endpoints:
  - { address: '127.0.0.1:1', instance: p-0 }
  - { address: '127.0.0.1:2', weight: 0 }
";

fn start() -> Gateway {
    Gateway::start(config::parse(CONFIG, Path::new("test.yaml")).unwrap(), None).unwrap()
}

fn address(gateway: &Gateway, what: &str) -> SocketAddr {
    gateway.bound().iter().find(|bound| bound.what == what).unwrap().address
}

fn ask(address: SocketAddr, method: &str, path: &str, host: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    ask(address, "GET", path, &address.to_string())
}

fn page(address: SocketAddr, path: &str) -> Value {
    let (status, body) = get(address, path);
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn the_pages_tell_what_is_and_what_would_be() {
    let gateway = start();
    let admin = address(&gateway, "admin");
    let status = page(admin, "/status");
    assert_eq!(status["phase"], "serving");
    assert_eq!(status["tables"]["services"], 1);
    assert_eq!(status["listeners"][0]["address"], address(&gateway, "listener east-west").to_string());
    assert_eq!(page(admin, "/config")["services"][0]["host"], "productpage.example");
    assert_eq!(page(admin, "/routes?name=outbound")["total"], 1);
    assert_eq!(page(admin, "/services")["items"][0]["endpoints"][1]["weight"], 0);
    assert_eq!(page(admin, "/connections")["total"], 0);

    let matched = page(admin, "/explain?sni=P-0.ProductPage.&from=192.0.2.7");
    assert_eq!(matched["service"], "productpage.example:443");
    assert_eq!(matched["instance"], "p-0");
    assert_eq!(matched["endpoints"][0]["address"], "127.0.0.1:1");
    assert_eq!(matched["endpoints"].as_array().unwrap().len(), 1);
    assert_eq!(page(admin, "/explain?sni=productpage&from=10.0.0.1")["refused"], "source_denied");
    let unknown = page(admin, "/explain?sni=admin.example");
    assert_eq!((&unknown["refused"], &unknown["alert"]), (&"sni_unmatched".into(), &112.into()));
    assert_eq!(get(admin, "/explain?sni=a%00b").0, 400);
    assert_eq!(get(admin, "/explain?sni=a&from=nowhere").0, 400);
    assert_eq!(get(admin, "/nowhere").0, 404);
    assert_eq!(get(admin, "/metrics").0, 404);
    gateway.end();
    gateway.wait().unwrap();
}

#[test]
fn foreign_pages_may_not_ask_and_reading_changes_nothing() {
    let gateway = start();
    let (admin, health) = (address(&gateway, "admin"), address(&gateway, "health"));
    for host in ["evil.example", "evil.example:15000", "10.0.0.1"] {
        assert_eq!(ask(admin, "GET", "/status", host).0, 403, "{host}");
        assert_eq!(ask(admin, "POST", "/drain", host).0, 403, "{host}");
    }
    assert_eq!(get(admin, "/drain").0, 405);
    assert_eq!(ask(admin, "POST", "/status", &admin.to_string()).0, 405);
    assert_eq!(ask(admin, "DELETE", "/services", &admin.to_string()).0, 405);
    assert_eq!(get(health, "/healthz/ready").0, 200);
    assert_eq!(page(admin, "/status")["phase"], "serving");

    assert_eq!(ask(admin, "POST", "/drain", &admin.to_string()).0, 202);
    let mut phase = gateway.control().phase.subscribe();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { phase.wait_for(|phase| phase.word() == "draining").await.map(drop) }).unwrap();
    assert_eq!(get(health, "/healthz/ready").0, 503);
    assert_eq!(get(health, "/healthz/live").0, 200);
    gateway.end();
    gateway.wait().unwrap();
}

#[test]
fn every_metric_is_exported_and_nothing_else_is_served_there() {
    let gateway = start();
    let metrics = address(&gateway, "metrics");
    let (status, text) = get(metrics, "/metrics");
    assert_eq!(status, 200);
    let per_service = |name: &str| name.starts_with("isthmus_service_");
    for metric in collect::ALL {
        let exported = text.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind));
        assert_eq!(exported, !per_service(metric.name), "{}", metric.name);
    }
    for path in ["/", "/status", "/drain", "/healthz/ready"] {
        assert_eq!(get(metrics, path).0, 404, "{path}");
        let health = address(&gateway, "health");
        assert!(path == "/healthz/ready" || get(health, path).0 == 404, "{path}");
    }
    gateway.end();
    gateway.wait().unwrap();
}
