//! Tests the admin, metrics and health ports of a running gateway: access rules, answers, and that GET changes
//! nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use isthmus_core::config;
use isthmus_core::gateway::Gateway;
use isthmus_core::metrics::collect;
use isthmus_model::admin::Index;
use serde_json::Value;

const CONFIG: &str = "
workers: 1
listeners: [{ address: '127.0.0.1:0', name: east-west, proxy_protocol: { from: [192.0.2.9/32] } }]
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
    ask_with(address, method, path, &format!("Host: {host}\r\n"))
}

fn ask_with(address: SocketAddr, method: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").unwrap();
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
fn admin_pages_show_state_and_explain() {
    let gateway = start();
    let admin = address(&gateway, "admin");
    let status = page(admin, "/status");
    assert_eq!(status["phase"], "serving");
    assert_eq!(status["tables"]["services"], 1);
    assert_eq!(status["listeners"][0]["address"], address(&gateway, "listener east-west").to_string());
    assert_eq!(status["listeners"][0]["accepted"], 0);
    let config = page(admin, "/config");
    assert_eq!(config["services"][0]["host"], "productpage.example");
    assert_eq!(config["listeners"][0]["proxy_protocol"]["from"][0], "192.0.2.9/32");
    assert_eq!(config["admin"]["address"], "127.0.0.1:0", "as written in the file");
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
    let (status, nowhere) = get(admin, "/nowhere");
    let index: Index = serde_json::from_str(&nowhere).unwrap();
    assert!(status == 404 && index.get.iter().any(|path| path == "/schema") && index.post == ["/drain"]);
    assert_eq!(get(admin, "/metrics").0, 404);
    gateway.end();
    gateway.wait().unwrap();
}

#[test]
fn admin_refuses_foreign_origins_and_get_changes_nothing() {
    let gateway = start();
    let (admin, health) = (address(&gateway, "admin"), address(&gateway, "health"));
    for host in ["evil.example", "evil.example:15000", "10.0.0.1"] {
        assert_eq!(ask(admin, "GET", "/status", host).0, 403, "{host}");
        assert_eq!(ask(admin, "POST", "/drain", host).0, 403, "{host}");
    }
    // A foreign page may POST with the gateway's name as Host; its browser sends its Origin.
    let host = format!("Host: {admin}\r\n");
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1", "https://evil.example", ""] {
        let headers = format!("{host}Origin: {origin}\r\n");
        assert_eq!(ask_with(admin, "POST", "/drain", &headers).0, 403, "{origin}");
    }
    assert_eq!(ask_with(admin, "GET", "/status", &format!("{host}Origin: http://{admin}\r\n")).0, 200);
    assert_eq!(ask_with(admin, "GET", "/status", "").0, 403, "no Host");
    for (what, target, headers) in [
        ("two Hosts", "", format!("{host}Host: evil.example\r\n")),
        ("two Hosts, the first elsewhere", "", format!("Host: evil.example\r\n{host}")),
        ("two Hosts alike", "", format!("{host}{host}")),
        ("a target of another authority", "http://evil.example", host.clone()),
        ("our target, another Host", &*format!("http://{admin}"), "Host: evil.example\r\n".to_owned()),
    ] {
        assert_eq!(ask_with(admin, "GET", &format!("{target}/status"), &headers).0, 403, "{what}");
        assert_eq!(ask_with(admin, "POST", &format!("{target}/drain"), &headers).0, 403, "{what}");
    }
    assert_eq!(ask_with(admin, "GET", &format!("http://{admin}/status"), &host).0, 200, "our own target");
    assert_eq!(get(admin, "/drain").0, 405);
    assert_eq!(ask(admin, "POST", "/nowhere", &admin.to_string()).0, 404);
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

/// Service metrics appear with the first connection, trust metrics with `trust:` (trust.rs), agent metrics with `xds:`
/// (tests/tests/agent.rs), state metrics with `xds.state`, those of another cluster's gateway with its first probe
/// (tests/tests/matrix.rs).
const NEEDS_MORE: [&str; 11] = [
    "service_",
    "certificate_",
    "trust_",
    "agent_",
    "stale_",
    "state_",
    "matrix_up",
    "matrix_rtt",
    "matrix_jitter",
    "matrix_loss",
    "matrix_class",
];

#[test]
fn metrics_port_exports_every_metric_and_nothing_else() {
    let gateway = start();
    let metrics = address(&gateway, "metrics");
    let (status, text) = get(metrics, "/metrics");
    assert_eq!(status, 200);
    let needs_more = |name: &str| NEEDS_MORE.iter().any(|of| name.contains(&format!("isthmus_{of}")));
    for metric in collect::ALL {
        let exported = text.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind));
        assert_eq!(exported, !needs_more(metric.name), "{}", metric.name);
    }
    for path in ["/", "/status", "/drain", "/healthz/ready"] {
        assert_eq!(get(metrics, path).0, 404, "{path}");
        let health = address(&gateway, "health");
        assert!(path == "/healthz/ready" || get(health, path).0 == 404, "{path}");
    }
    gateway.end();
    gateway.wait().unwrap();
}

fn run(arguments: &[&str], out: Stdio) -> Output {
    Command::new(env!("CARGO_BIN_EXE_isthmus-gateway")).args(arguments).stdout(out).output().unwrap()
}

fn said(arguments: &[&str]) -> String {
    let output = run(arguments, Stdio::piped());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The address of a server that answers one request with this JSON.
fn answering(json: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        let _request = client.read(&mut [0; 4_096]).unwrap();
        write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{json}", json.len()).unwrap();
    });
    address
}

#[test]
fn cli_queries_running_gateway() {
    let text = CONFIG.replace("name: east-west", "name: east-west, default: spare.example")
        + "- { host: spare.example, endpoints: [{ address: 'nowhere.invalid:443' }] }\n";
    let gateway = Gateway::start(config::parse(&text, Path::new("test.yaml")).unwrap(), None).unwrap();
    let admin = address(&gateway, "admin").to_string();
    let at = ["--admin", &admin];
    let ask = |words: &[&str]| said(&[words, &at].concat());
    assert!(ask(&["status"]).lines().any(|line| line.starts_with("phase ") && line.ends_with(" serving")));
    let routes = ask(&["routes"]);
    assert!(routes.contains("listener east-west: unmatched names go to spare.example:443"), "{routes}");
    assert!(ask(&["services"]).contains("nowhere.invalid does not resolve"));
    assert!(ask(&["connections"]).starts_with(" ID "));
    let explained = ask(&["explain", "productpage", "--from", "10.0.0.1"]);
    assert!(explained.starts_with("refused: source_denied: "), "{explained}");
    let explained: Value =
        serde_json::from_str(&ask(&["explain", "p-0.productpage", "--json", "--from", "192.0.2.7"])).unwrap();
    assert_eq!(explained["endpoints"][0]["instance"], "p-0");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        said(&["check", "--config", file.to_str().unwrap(), "--against", &admin])
    };
    assert_eq!(check(&text), "no change\n");
    assert_eq!(
        check(&text.replace("default: spare", "default: productpage").replace("weight: 0", "weight: 7")),
        "~ listener east-west: default spare.example:443 → productpage.example:443\n\
         ~ service productpage.example:443: endpoint 127.0.0.1:2: weight 0 → 7\n"
    );

    let agent = answering(r#"{"version": "\u001b[31m", "cluster": "east"}"#);
    let wrong = run(&["status", "--admin", &agent], Stdio::piped());
    let why = String::from_utf8_lossy(&wrong.stderr);
    assert!(wrong.status.code() == Some(1) && why.contains("missing field `node`"), "{why}");

    // A closed pipe, as with `routes | head`, must not cause a panic.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = run(&["routes", "--admin", &admin], writer.into());
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");

    let wrong = run(&["explain", "a b", "--admin", &admin], Stdio::piped());
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("hello_malformed"), "{wrong:?}");
    assert_eq!(run(&["explain"], Stdio::piped()).status.code(), Some(2));
    said(&["drain", "--admin", &admin]);
    let mut phase = gateway.control().phase.subscribe();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { phase.wait_for(|phase| phase.word() == "draining").await.map(drop) }).unwrap();
    gateway.end();
    gateway.wait().unwrap();
    let gone = run(&["status", "--admin", &admin], Stdio::piped());
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("is it running"), "{gone:?}");
}

/// The log collector may end first: the gateway keeps serving, handles signals and drains.
#[test]
fn gateway_with_unread_logs_keeps_serving() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    let text = CONFIG.replace("accept_for: 1h", "accept_for: 0s").replace("enabled: false", "enabled: true");
    std::fs::write(&file, text).unwrap();
    let mut gateway = Command::new(env!("CARGO_BIN_EXE_isthmus-gateway"))
        .args(["run", "--config", file.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut admin = None;
    for line in BufReader::new(gateway.stderr.take().unwrap()).lines().map(Result::unwrap) {
        if let Some(address) = line.strip_prefix("listening admin address=") {
            admin = Some(address.parse().unwrap());
        }
        if line == "ready" {
            break;
        }
    }
    let pid = rustix::process::Pid::from_child(&gateway);
    let refused = format!("{CONFIG}surprise: 1\n");
    std::fs::write(&file, refused).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while page(admin.unwrap(), "/status")["last_refused_edit"].is_null() {
        assert!(Instant::now() < deadline, "the edit was not noticed");
    }
    for signal in [rustix::process::Signal::HUP, rustix::process::Signal::TERM] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    assert_eq!(gateway.wait().unwrap().code(), Some(0));
}
