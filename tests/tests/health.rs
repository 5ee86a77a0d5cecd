//! Health: the gateway probes endpoints by itself, leaves out those that fail, tells why, and takes them back. No client
//! is needed for it, and none can bring it about.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use isthmus_model::admin::gateway::UnhealthyEndpoint;
use isthmus_tests::client::{alert, echo, read_exactly, send};
use isthmus_tests::cluster::{Cluster, east_west, outbound};
use isthmus_tests::endpoint::{BlackHole, Endpoint, Scripted, closed, free};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::until;

const HOST: &str = "web.example";
/// Down after two failures, a probe a second.
const TLS: &str = "health: { probe: tls, interval: 1s, timeout: 1s, down_after: 2 }";

/// Echoes behind a greeting while it is well, and closes without an answer otherwise.
fn moody(is_well: &Arc<AtomicBool>) -> Scripted {
    let is_well = Arc::clone(is_well);
    Scripted::new(move |mut stream, _| {
        if is_well.load(SeqCst) {
            let _gone = stream.write_all(b"+").and_then(|()| {
                let mut from = stream.try_clone()?;
                std::io::copy(&mut from, &mut stream)
            });
        }
    })
}

fn unhealthy(gateway: &Gateway) -> Vec<UnhealthyEndpoint> {
    gateway.status().endpoint_health.listed
}

#[track_caller]
fn until_unhealthy(gateway: &Gateway, expected: &[SocketAddr]) {
    let mut expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
    expected.sort();
    until(&format!("{expected:?} are unhealthy"), || {
        let mut now: Vec<_> = unhealthy(gateway).into_iter().map(|one| one.address).collect();
        now.sort();
        now == expected
    });
}

/// Makes a call that is answered, and returns the endpoint that served it.
#[track_caller]
fn call(gateway: &Gateway, host: &str) -> String {
    let mut client = send(gateway.address(), &hello(host));
    assert_eq!(read_exactly(&mut client, 1), b"+");
    client.shutdown(Shutdown::Write).unwrap();
    gateway.log().line_of(client.local_addr().unwrap()).text("endpoint").to_owned()
}

fn count(gateway: &Gateway, message: &str) -> usize {
    gateway.errors().iter().filter(|line| line.contains(message)).count()
}

#[test]
fn tls_probe_leaves_out_an_endpoint_until_it_answers_and_says_so_once() {
    let is_well = Arc::new(AtomicBool::new(false));
    let (ill, good) = (moody(&is_well), Scripted::echo(b"+"));
    let addresses = [ill.address(), good.address()];
    let mut gateway = Setup::new(service(HOST, &[TLS], &addresses)).start();
    until_unhealthy(&gateway, &[ill.address()]);
    let told = unhealthy(&gateway).remove(0);
    assert_eq!((told.service.as_str(), told.cluster), ("web.example:443", None));
    assert!(["tls probe: closed", "tls probe: reset"].contains(&told.why.as_str()), "{}", told.why);
    for _ in 0..6 {
        assert_eq!(call(&gateway, HOST), good.address().to_string());
    }
    assert_eq!(gateway.metrics().sum("isthmus_endpoints_unhealthy", &[]), 1.0);
    assert_eq!(gateway.metrics().sum("isthmus_endpoints_probed", &[]), 2.0);
    assert!(gateway.metrics().sum("isthmus_probes_total", &["probe=\"tls\"", "result=\"answered\""]) >= 1.0);
    // A swap keeps what is known.
    gateway.edit("services:\n", &format!("services:\n{}", service("other.example", &[], &addresses)));
    until("the edit is live", || gateway.status().tables.services == 2);
    assert_eq!(unhealthy(&gateway)[0].since, told.since);
    is_well.store(true, SeqCst);
    until_unhealthy(&gateway, &[]);
    until("it serves again", || call(&gateway, HOST) == ill.address().to_string());
    assert_eq!(count(&gateway, "endpoint unhealthy"), 1);
    assert_eq!(count(&gateway, "endpoint healthy again"), 1);
    gateway.kill();
}

/// An alert shows that a TLS server is there; it may well dislike a hello without a certificate.
#[test]
fn tls_probe_takes_an_alert_for_an_answer() {
    let (touchy, dead) = (Scripted::alerting(80), closed());
    let gateway = Setup::new(service(HOST, &[TLS], &[touchy.address(), dead])).start();
    until_unhealthy(&gateway, &[dead]);
    assert_eq!(unhealthy(&gateway)[0].why, "tls probe: unreached");
    assert!(gateway.metrics().sum("isthmus_probes_total", &["result=\"alert\""]) >= 2.0);
}

/// A server that takes requests, and answers each with a status.
struct Requests {
    server: Scripted,
    status: Arc<AtomicU16>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Requests {
    fn new() -> Requests {
        let (status, heads) = (Arc::new(AtomicU16::new(204)), Arc::new(Mutex::new(Vec::new())));
        let (answer, seen) = (Arc::clone(&status), Arc::clone(&heads));
        let server = Scripted::unread(move |mut stream| {
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            seen.lock().unwrap().push(head.join("\n"));
            let status = answer.load(SeqCst);
            let _gone = write!(stream, "HTTP/1.1 {status} Status\r\ncontent-length: 2\r\n\r\nhi");
        });
        Requests { server, status, heads }
    }

    fn port(&self) -> u16 {
        self.server.address().port()
    }
}

#[test]
fn http_probe_goes_by_the_status_of_its_own_port() {
    let (requests, endpoint) = (Requests::new(), Scripted::echo(b"+"));
    let keys = format!(
        "health: {{ probe: http, port: {}, path: '/ready?deep=1', interval: 1s, down_after: 1 }}",
        requests.port()
    );
    let gateway = Setup::new(service(HOST, &[&keys], &[endpoint.address()])).start();
    for (status, is_healthy) in [(503, false), (302, true), (404, false), (200, true)] {
        requests.status.store(status, SeqCst);
        let expected: &[SocketAddr] = if is_healthy { &[] } else { &[endpoint.address()] };
        until_unhealthy(&gateway, expected);
        if !is_healthy {
            assert_eq!(unhealthy(&gateway)[0].why, "http probe: bad_status");
        }
        // Nobody else is there: it is still tried.
        assert_eq!(call(&gateway, HOST), endpoint.address().to_string());
    }
    let heads = requests.heads.lock().unwrap();
    let head = heads.first().unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /ready?deep=1 http/1.1\n") && head.contains("host: web.example"), "{head}");
}

#[test]
fn http_probe_of_a_server_without_http_fails_by_what_it_says() {
    let talker = Scripted::unread(|mut stream| {
        let _gone = stream.write_all(b"220 mail.example ESMTP\r\n");
        let _end = stream.read(&mut [0; 512]);
    });
    let endless = Scripted::unread(|mut stream| {
        let _gone = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"x-more: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n").is_ok() {}
    });
    let hole = BlackHole::new();
    let silent = Scripted::unread(|mut stream| {
        let _end = stream.read_to_end(&mut Vec::new());
    });
    let addresses = [talker.address(), endless.address(), hole.address(), silent.address()];
    let one = |address: &SocketAddr| {
        let port = address.port();
        let keys =
            format!("health: {{ probe: http, port: {port}, interval: 1s, timeout: 500ms, down_after: 1 }}");
        service(&format!("s-{port}.example"), &[&keys], &[*address])
    };
    let gateway = Setup::new(addresses.iter().map(one).collect::<String>()).start();
    until_unhealthy(&gateway, &addresses);
    let why = |address: SocketAddr| {
        let one = unhealthy(&gateway).into_iter().find(|one| one.address == address.to_string());
        one.unwrap().why
    };
    assert_eq!(why(talker.address()), "http probe: bad_status");
    assert_eq!(why(endless.address()), "http probe: bad_status");
    assert_eq!(why(hole.address()), "http probe: unreached");
    assert_eq!(why(silent.address()), "http probe: silent");
}

/// Without `health`, and with `tcp` only by choice: a server that counts connects without a login sees none.
#[test]
fn endpoint_is_not_touched_unless_its_service_says_so() {
    let (quiet, asked) = (Endpoint::new(), Endpoint::new());
    let services = service("quiet.example", &[], &[quiet.address()])
        + &service("none.example", &["health: { probe: none, slow_start: 10s }"], &[quiet.address()])
        + &service("asked.example", &["health: { probe: tcp, interval: 1s }"], &[asked.address()]);
    let gateway = Setup::new(services).start();
    for _ in 0..3 {
        let mut connection = asked.accept();
        assert_eq!(connection.read(&mut [0]).unwrap(), 0, "a connect and nothing more");
    }
    assert!(quiet.is_untouched());
    assert_eq!(gateway.metrics().sum("isthmus_endpoints_probed", &[]), 1.0);
}

#[test]
fn hanging_endpoint_has_one_probe_at_a_time() {
    let (open, most) = (Arc::new(AtomicU16::new(0)), Arc::new(AtomicU16::new(0)));
    let (now, seen) = (Arc::clone(&open), Arc::clone(&most));
    let silent = Scripted::unread(move |mut stream| {
        seen.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
        let _end = stream.read_to_end(&mut Vec::new());
        now.fetch_sub(1, SeqCst);
    });
    let keys = "health: { probe: tls, interval: 1s, timeout: 4s, down_after: 2 }";
    let gateway = Setup::new(service(HOST, &[keys], &[silent.address()])).start();
    until_unhealthy(&gateway, &[silent.address()]);
    assert_eq!(unhealthy(&gateway)[0].why, "tls probe: silent");
    // The next one may begin before this side has seen the end of the last.
    assert!(most.load(SeqCst) <= 2, "{} at once", most.load(SeqCst));
}

/// envoy#14968: all of them take connects and fail their probes.
#[test]
fn service_whose_endpoints_all_fail_their_probes_is_spread_over_all() {
    let endpoints: Vec<_> = (0..3).map(|_| Scripted::echo(b"+")).collect();
    let (requests, addresses) =
        (Requests::new(), endpoints.iter().map(Scripted::address).collect::<Vec<_>>());
    requests.status.store(500, SeqCst);
    let keys = format!("health: {{ probe: http, port: {}, interval: 1s, down_after: 1 }}", requests.port());
    let gateway = Setup::new(service(HOST, &[&keys], &addresses)).start();
    until_unhealthy(&gateway, &addresses);
    let mut served: Vec<_> = (0..12).map(|_| call(&gateway, HOST)).collect();
    served.sort();
    served.dedup();
    assert_eq!(served.len(), 3, "{served:?}");
}

fn open(gateway: &Gateway, ill: &Scripted, count: usize) -> Vec<TcpStream> {
    let mut open = Vec::new();
    while open.len() < count {
        let mut client = send(gateway.address(), &hello(HOST));
        assert_eq!(read_exactly(&mut client, 1), b"+");
        let peer = client.local_addr().unwrap().to_string();
        let page = gateway.admin("GET", "/connections").json();
        let items = page["items"].as_array().unwrap();
        let own = items.iter().find(|one| one["peer"] == peer).unwrap();
        if own["endpoint"] == ill.address().to_string() {
            open.push(client);
        }
    }
    open
}

#[test]
fn connections_of_an_unhealthy_endpoint_are_kept_unless_they_are_to_be_closed() {
    for window in ["off", "2s"] {
        let is_well = Arc::new(AtomicBool::new(true));
        let (ill, good) = (moody(&is_well), Scripted::echo(b"+"));
        let keys = format!(
            "health: {{ probe: tls, interval: 1s, timeout: 1s, down_after: 1, close_on_unhealthy: {window} }}"
        );
        let gateway = Setup::new(service(HOST, &[&keys], &[ill.address(), good.address()])).start();
        let mut clients = open(&gateway, &ill, 4);
        is_well.store(false, SeqCst);
        until_unhealthy(&gateway, &[ill.address()]);
        if window == "off" {
            clients.iter_mut().for_each(|client| echo(client, b"still here"));
            continue;
        }
        for client in &mut clients {
            assert_eq!(client.read(&mut [0]).unwrap(), 0, "closed in order");
            let line = gateway.log().line_of(client.local_addr().unwrap());
            assert_eq!(line.reason(), "endpoint_unhealthy");
        }
        assert_eq!(call(&gateway, HOST), good.address().to_string());
    }
}

/// Decision 0009: refusals eject; what answers again is found by a trial, not at the end of its ejection.
#[test]
fn ejected_endpoint_returns_by_a_trial_and_no_call_fails() {
    let (address, good) = (free(), Scripted::echo(b"+"));
    let ejection = "upstream: { demotion: off, ejection: { failures: 1, base: 10m, max: 20m } }";
    let gateway = Setup::new(service(HOST, &[], &[address, good.address()])).with(ejection).start();
    until("the endpoint is ejected", || {
        call(&gateway, HOST);
        !unhealthy(&gateway).is_empty()
    });
    assert_eq!(unhealthy(&gateway)[0].why, "connect_refused");
    // At least one trial fails, which no client notices.
    let failed = || gateway.metrics().sum("isthmus_attempts_failed_total", &["reason=\"connect_refused\""]);
    until("a trial has failed", || {
        call(&gateway, HOST);
        failed() >= 2.0
    });
    let back = Scripted::echo_at(Endpoint::at(address), b"+");
    until("the endpoint is back", || {
        call(&gateway, HOST);
        unhealthy(&gateway).is_empty()
    });
    until("it serves", || call(&gateway, HOST) == address.to_string());
    assert!(back.accepted() >= 1);
    assert_eq!(count(&gateway, "endpoint unhealthy"), 1);
}

/// kuma#8297 and one service of two: what the far gateway does not serve is found by probes through it, and the other
/// service behind the same gateway loses nothing.
#[test]
fn service_that_fails_behind_a_gateway_loses_only_itself() {
    let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
    east.trust_cluster(&west);
    west.trust_cluster(&east);
    // The gateway's port is known once it runs, which requires its agent.
    east.start();
    let far = east.gateway("gw-1");
    east.stop();
    west.start();
    let far_address = east_west(&far);
    let port = far_address.port();
    east.set("gateways", &format!("[{{ name: gw-1, address: 127.0.0.1, port: {port} }}]"));
    east.set("exports", "[{ workspace: [shop] }]");
    east.set("peers", &format!("[{}]", west.as_peer()));
    west.set("peers", &format!("[{}]", east.as_peer()));
    west.set("imports", "[{ cluster: east, hosts: ['*.shop.example'], gatewayCIDRs: [127.0.0.0/8] }]");
    west.stop();
    let (healthy, ill) = (Scripted::echo(b"+"), Scripted::echo(b"+"));
    let offer = |host: &str, address: SocketAddr| {
        format!(
            "services: [{{ host: {host}, namespace: shop, allow_unauthenticated: true, endpoints: [{{ address: '{address}' }}] }}]"
        )
    };
    let (a, b) = ("a.shop.example", "b.shop.example");
    east.register("a.yaml", &offer(a, ill.address()));
    east.register("b.yaml", &offer(b, healthy.address()));
    east.start();
    west.start();
    let near = west.gateway("gw-1");
    let ask = |host: &str| {
        let mut client = send(outbound(&near), &hello(host));
        let mut first = [0; 7];
        let length = client.read(&mut first).unwrap_or_default();
        first[..length].to_vec()
    };
    until("both are reached", || ask(a) == b"+" && ask(b) == b"+");
    until("both are probed", || near.metrics().sum("isthmus_endpoints_probed", &[]) == 2.0);
    drop(ill);
    until("a is known not to be served there", || {
        assert_eq!(ask(b), b"+");
        !unhealthy(&near).is_empty()
    });
    let [told] = &unhealthy(&near)[..] else { panic!("{:?}", unhealthy(&near)) };
    assert_eq!((told.service.as_str(), told.cluster.as_deref()), ("a.shop.example:443", Some("east")));
    assert_eq!(
        (told.address.as_str(), told.why.as_str()),
        (&*far_address.to_string(), "tls probe: not_served")
    );
    assert_eq!(ask(a), alert(80));
    assert_eq!(ask(b), b"+");
    until("its own cluster's gateway knows it, too", || !unhealthy(&far).is_empty());
}
