//! A stock Envoy and `pick` divide the connections of the same assignments alike.

use super::assignments::{CASES, Case, of_case, shares_of};
use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use isthmus_tests::certs::envoy;
use isthmus_tests::wait::until_some;
use isthmus_tests::{http, skip};
use serde_json::{Value, json};

/// Connections of a case through Envoy, which draws priorities at random.
const CONNECTIONS: usize = 2_000;
/// Standard deviations that a share of so many draws may differ by: less than once in a hundred million.
const DEVIATIONS: f64 = 6.0;
const TYPES: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";

/// The loopback address of an endpoint of a case.
fn address(case: usize, endpoint: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 77, u8::try_from(case).unwrap(), u8::try_from(endpoint + 1).unwrap())
}

/// Accepts at every loopback address, and counts.
struct Servers {
    port: u16,
    counts: Arc<Mutex<BTreeMap<Ipv4Addr, usize>>>,
}

impl Servers {
    fn start() -> Servers {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let counts = Arc::new(Mutex::new(BTreeMap::new()));
        let counted = Arc::clone(&counts);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Ok(SocketAddr::V4(reached)) = stream.local_addr() {
                    *counted.lock().unwrap().entry(*reached.ip()).or_default() += 1;
                }
            }
        });
        Servers { port, counts }
    }
}

fn cluster(index: usize, case: &Case, port: u16) -> Value {
    let mut next = 0;
    let priorities = case.priorities.iter().enumerate().map(|(priority, (healthy, all))| {
        let endpoints: Vec<_> = (0..*all)
            .map(|place| {
                let address = address(index, next);
                next += 1;
                json!({
                    "endpoint": { "address": { "socket_address": { "address": address, "port_value": port } } },
                    "health_status": if place < *healthy { "HEALTHY" } else { "UNHEALTHY" },
                })
            })
            .collect();
        json!({ "priority": priority, "locality": { "zone": format!("z{priority}") }, "lb_endpoints": endpoints })
    });
    json!({
        "name": format!("case{index}"),
        "type": "STATIC",
        "connect_timeout": "5s",
        "common_lb_config": { "healthy_panic_threshold": { "value": case.panic } },
        "load_assignment": {
            "cluster_name": format!("case{index}"),
            "endpoints": priorities.collect::<Vec<_>>(),
            "policy": { "overprovisioning_factor": case.overprovisioning },
        },
    })
}

fn listener(index: usize) -> Value {
    let name = format!("case{index}");
    let proxy = json!({ "@type": TYPES, "stat_prefix": name, "cluster": name });
    json!({
        "name": name,
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } },
        "filter_chains": [{ "filters": [{ "name": "envoy.filters.network.tcp_proxy", "typed_config": proxy }] }],
    })
}

/// An Envoy with a listener for each case, killed when dropped.
struct Envoy {
    child: Child,
    listeners: Vec<SocketAddr>,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Envoy {
    fn start(program: &Path, port: u16) -> Envoy {
        let folder = tempfile::tempdir().unwrap();
        let clusters: Vec<_> =
            CASES.iter().enumerate().map(|(index, case)| cluster(index, case, port)).collect();
        let config = json!({
            "admin": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 0 } } },
            "static_resources": { "listeners": (0..CASES.len()).map(listener).collect::<Vec<_>>(), "clusters": clusters },
        });
        fs::write(folder.path().join("envoy.json"), config.to_string()).unwrap();
        let mut child = Command::new(program)
            .args(["-c", "envoy.json", "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"])
            .args(["--admin-address-path", "admin"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let admin: SocketAddr = until_some("Envoy has written its admin address", || {
            assert!(child.try_wait().unwrap().is_none(), "Envoy ended");
            fs::read_to_string(folder.path().join("admin")).ok()?.trim().parse().ok()
        });
        let listeners = until_some("Envoy listens", || {
            let page = http::ask(admin, "GET", "/listeners").body;
            let of_case = |index| {
                let prefix = format!("case{index}::");
                page.lines().find_map(|line| line.strip_prefix(&prefix)?.parse().ok())
            };
            (0..CASES.len()).map(of_case).collect::<Option<Vec<SocketAddr>>>()
        });
        Envoy { child, listeners }
    }
}

#[test]
fn shares_are_those_of_a_stock_envoy() {
    let Some(program) = envoy() else { skip!("Envoy is not installed; tests/run installs it") };
    let servers = Servers::start();
    let running = Envoy::start(&program, servers.port);
    for (index, case) in CASES.iter().enumerate() {
        for _ in 0..CONNECTIONS {
            // The server closes at once, and with it Envoy.
            let mut client = TcpStream::connect(running.listeners[index]).unwrap();
            let _closed = client.read(&mut [0]);
        }
        let service = of_case(case, Balance::RoundRobin);
        let ours = shares_of(&service, 10_000);
        let counts = servers.counts.lock().unwrap().clone();
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let theirs: Vec<f64> = (0..ours.len())
            .map(|place| counts.get(&address(index, place)).copied().unwrap_or_default() as f64)
            .map(|count| count / CONNECTIONS as f64)
            .collect();
        for (place, (own, other)) in ours.iter().zip(&theirs).enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let deviation = (own * (1.0 - own) / CONNECTIONS as f64).sqrt();
            let bound = DEVIATIONS * deviation + 0.005;
            assert!(
                (own - other).abs() <= bound,
                "{case:?}: endpoint {place} has {own:.3} here and {other:.3} with Envoy\nhere:  {ours:?}\nEnvoy: {theirs:?}"
            );
        }
    }
}
