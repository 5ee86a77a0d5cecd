//! Connection loops, untrusted names in metrics and logs, and access to the admin pages. Rows 16, 17 and 18
//! of the hazards.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use isthmus_tests::client::{alert, read_exactly, rest, send};
use isthmus_tests::endpoint::{Endpoint, Scripted, free};
use isthmus_tests::gateway::{Gateway, run_to_end};
use isthmus_tests::hello::{Hello, hello, records, sni};
use isthmus_tests::netns::{Pair, inside, ip};
use isthmus_tests::setup::{Setup, service, service_of};
use isthmus_tests::wait::until;
use isthmus_tests::{figure, http, is_root, skip};

const HOST: &str = "web.example";

/// Runs `check` or `run` on a file; returns the exit code and the output.
fn command(name: &str, text: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    fs::write(&file, text).unwrap();
    let output = run_to_end(&[name, "--config", file.to_str().unwrap()]);
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(printed).unwrap())
}

#[test]
fn loop_endpoint_is_refused_at_load() {
    let port = free().port();
    for (listener, endpoint) in [
        (format!("127.0.0.1:{port}"), format!("127.0.0.1:{port}")),
        (format!("0.0.0.0:{port}"), format!("127.0.0.1:{port}")),
        (format!("0.0.0.0:{port}"), format!("127.0.0.77:{port}")),
        (format!("0.0.0.0:{port}"), format!("0.0.0.0:{port}")),
        (format!("127.0.0.1:{port}"), format!("0.0.0.0:{port}")),
        (format!("127.0.0.1:{port}"), format!("[::ffff:127.0.0.1]:{port}")),
        (format!("[::]:{port}"), format!("[::1]:{port}")),
        (format!("[::1]:{port}"), format!("[::1]:{port}")),
    ] {
        let services = service_of(HOST, &[], &[format!("{{address: \"{endpoint}\"}}")]);
        let text = Setup::new(services).listeners(&format!("- address: \"{listener}\"")).yaml();
        for name in ["check", "run"] {
            let (code, printed) = command(name, &text);
            assert_eq!(code, Some(2), "{name}: listener {listener}, endpoint {endpoint}: {printed}");
            let line = text.lines().position(|line| line.contains("endpoints:")).unwrap() + 1;
            assert!(printed.contains(&format!("gateway.yaml:{line}:")), "the location is missing: {printed}");
        }
    }
    for name in ["admin", "metrics", "health"] {
        let services = service(HOST, &[], &[([127, 0, 0, 1], port).into()]);
        let text = Setup::new(services).with(&format!("{name}: {{ address: \"127.0.0.1:{port}\" }}")).yaml();
        assert_eq!(command("check", &text).0, Some(2), "{name}");
    }
    // Another port of the same address is a different service.
    let other = service(HOST, &[], &[([127, 0, 0, 1], port ^ 1).into()]);
    let text = Setup::new(other).listeners(&format!("- address: \"127.0.0.1:{port}\"")).yaml();
    let (code, printed) = command("check", &text);
    assert_eq!(code, Some(0), "{printed}");
    figure!(
        "endpoints that are the gateway itself: refused by check and run with exit code 2, in 8 spellings"
    );
}

/// A name is refused only when it resolves to a listener.
#[test]
fn loop_through_resolved_name_is_refused() {
    let port = free().port();
    for listener in ["127.0.0.1", "0.0.0.0"] {
        let services = service_of(HOST, &[], &[format!("{{address: \"localhost:{port}\"}}")]);
        let gateway = Setup::new(services).listeners(&format!("- address: \"{listener}:{port}\"")).start();
        let mut client = send(([127, 0, 0, 1], port).into(), &hello(HOST));
        assert_eq!(rest(&mut client).0, alert(80));
        let line = gateway.log().line_of(client.local_addr().unwrap());
        // Refused at resolution, which leaves no endpoint, or when the connection comes back.
        assert!(["no_endpoint", "loop"].contains(&line.reason()), "listener {listener}: {line:?}");
        assert_eq!(gateway.metrics().sum("isthmus_connections_accepted_total", &[]), 1.0);
    }
}

/// The address becomes local only after the load, so that the first connection reveals the loop.
#[test]
fn loop_connection_from_own_address_is_refused() {
    if !is_root() {
        skip!("namespaces require root");
    }
    let pair = match Pair::new() {
        Ok(pair) => pair,
        Err(why) => skip!("{why}"),
    };
    let port = 15_443;
    let services = service(HOST, &[], &[([10, 99, 0, 9], port).into()]);
    let gateway = Setup::new(services)
        .listeners(&format!("- address: \"0.0.0.0:{port}\""))
        .with("admin: { address: \"127.0.0.1:15000\" }\nmetrics: { address: \"127.0.0.1:15020\" }")
        .namespace(&pair.near)
        .start();
    ip(&format!("-n {} addr add 10.99.0.9/32 dev lo", pair.near)).unwrap();
    let started = Instant::now();
    let answer = inside(&pair.near, move || {
        let mut client = send(([127, 0, 0, 1], port).into(), &hello(HOST));
        rest(&mut client).0
    });
    let line = gateway.log().wait("a loop", |line| line.reason() == "loop");
    let accepted = inside(&pair.near, || http::ask(([127, 0, 0, 1], 15_020).into(), "GET", "/metrics").body);
    let accepted: f64 = accepted
        .lines()
        .filter(|line| line.starts_with("isthmus_connections_accepted_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    figure!(
        "a loop through an address that became local: {} after {:?}, {accepted} connections",
        line.reason(),
        started.elapsed()
    );
    assert!(accepted <= 4.0, "the connection looped {accepted} times");
    assert!(answer == alert(80) || answer.is_empty(), "{answer:?}");
}

/// Names that attack a log's reader.
fn hostile() -> Vec<Vec<u8>> {
    let mut flights: Vec<Vec<u8>> = [
        "a\nb.example",
        "a\r\n{\"reason\":\"client_closed\"}",
        "\u{1b}[2Jx",
        "\"},{\"",
        "a\\u000ab",
        "${jndi:ldap://x}",
        "a\u{2028}b",
        "%0a",
        "<script>",
        "\u{7f}",
        "a b",
        "'; drop table",
        "\u{0}",
    ]
    .iter()
    .map(|name| Hello::new(HOST).without(0).and(sni(name.as_bytes())).bytes())
    .collect();
    flights.push(Hello::new(HOST).without(0).and(sni(&[0xff, 0xfe, 0x80])).bytes());
    for protocol in ["h2\n", "\u{1b}[31m", "\"", "\\"] {
        let alpn = isthmus_tests::hello::alpn(&[protocol]);
        flights.push(Hello::new("unknown.example").and(alpn.clone()).bytes());
        flights.push(Hello::new(HOST).and(alpn).bytes());
    }
    let many: Vec<u8> = (0..120).flat_map(|_| [&[255], [b'\n'; 255].as_slice()].concat()).collect();
    let list = [&u16::try_from(many.len()).unwrap().to_be_bytes(), many.as_slice()].concat();
    flights.push(records(&Hello::new(HOST).and((16, list)).message(), 16_384));
    flights
}

#[test]
fn metric_series_stay_bounded_under_ten_thousand_names() {
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()])).start();
    // One connection of each other kind first, so that later series come from names only.
    drop(rest(&mut send(gateway.address(), b"GET /")));
    let before: std::collections::BTreeSet<String> = gateway.metrics().series().map(str::to_owned).collect();
    let mut random = fastrand::Rng::new();
    let count = 10_000;
    for number in 0..count {
        let length = random.usize(1..40);
        let label: String = (0..length)
            .map(|_| {
                random.choice(b"abcdefghijklmnopqrstuvwxyz0123456789-_").map(|b| char::from(*b)).unwrap()
            })
            .collect();
        let name = [
            format!("{label}.example"),
            format!("outbound_.{}_._.{label}.test", random.u16(..)),
            format!("{label}.{HOST}"),
        ][number % 3]
            .clone();
        let mut client = send(gateway.address(), &Hello::new(&name).bytes());
        let mut answer = [0; 7];
        let _read = std::io::Read::read(&mut client, &mut answer);
    }
    for flight in hostile() {
        let mut client = send(gateway.address(), &flight);
        let _closed = client.shutdown(std::net::Shutdown::Write);
        let _answer = rest(&mut client);
    }
    until("every connection is logged", || gateway.log().raw().len() > count + hostile().len());
    let after = gateway.metrics();
    let new: Vec<&str> = after.series().filter(|series| !before.contains(*series)).collect();
    let raw = gateway.log().raw();
    let longest = raw.iter().map(Vec::len).max().unwrap();
    figure!(
        "{count} random names: {} new series {new:?}; {} log lines, the longest {longest} bytes",
        new.len(),
        raw.len()
    );
    // hello_malformed and client_closed come from the hostile flights, as do the service's own counters.
    let names: Vec<&&str> = new
        .iter()
        .filter(|series| series.contains("example") && !series.contains("web.example:443"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
    let by_names = new.iter().filter(|series| {
        !series.contains("web.example:443")
            && !series.contains("hello_malformed")
            && !series.contains("client_closed")
    });
    assert!(by_names.count() <= 5, "{new:?}");
    assert_eq!(gateway.log().broken(), Vec::<String>::new());
    for line in &raw {
        assert!(line.iter().all(|byte| *byte >= 0x20 && *byte != 0x7f), "a raw control byte: {line:02x?}");
    }
    assert!(longest < 16_384, "untrusted text is unbounded: a line of {longest} bytes");
    let text = gateway.errors().join("\n");
    assert!(!text.contains('\u{1b}') || !text.contains("[2J"), "{text}");
    assert_eq!(gateway.metrics().sum("isthmus_access_log_dropped_total", &[]), 0.0);
}

/// Malformed names reach no endpoint, not even the listener's default.
#[test]
fn malformed_sni_is_refused() {
    let endpoint = Endpoint::new();
    let services = service(HOST, &[], &[endpoint.address()]);
    let gateway = Setup::new(services).listeners(&format!("- address: ADDRESS\n  default: {HOST}")).start();
    let odd: Vec<Vec<u8>> = (0..=255_u8)
        .filter(|byte| !(byte.is_ascii_alphanumeric() || b".-_".contains(byte)))
        .flat_map(|byte| [vec![byte], [b"web", [byte].as_slice(), b".example"].concat()])
        .chain([b"web.example\0.evil.example".to_vec(), b"web.example:443".to_vec()])
        .collect();
    let mut reasons = std::collections::BTreeMap::new();
    for name in &odd {
        let flight = Hello::new(HOST).without(0).and(sni(name)).bytes();
        let mut client = send(gateway.address(), &flight);
        let answer = rest(&mut client).0;
        let line = gateway.log().line_of(client.local_addr().unwrap());
        *reasons.entry(line.reason().to_owned()).or_insert(0) += 1;
        assert_eq!((line.reason(), answer), ("hello_malformed", alert(50)), "{name:02x?}");
        assert!(endpoint.is_untouched(), "{name:02x?} reached the endpoint");
    }
    figure!("{} names with an invalid byte, with a default: {reasons:?}, no endpoint contacted", odd.len());
}

/// Row 9 from outside: a removed service refuses within a second, and its open connections stay open.
#[test]
fn removed_service_refuses_soon_and_keeps_its_connections() {
    let server = Scripted::echo(b"+");
    let address = [server.address()];
    let rest_of_file = service("other.example", &[], &address);
    let removed = service(HOST, &[], &address);
    let gateway = Setup::new(format!("{removed}{rest_of_file}")).start();
    let with = fs::read_to_string(gateway.file()).unwrap();
    let without = with.replace(&removed, "");
    assert_ne!(with, without);
    let mut open: Vec<TcpStream> = (0..100).map(|_| open(&gateway)).collect();
    let flight = hello(HOST);
    let serves = || {
        let mut client = send(gateway.address(), &flight);
        let mut first = [0];
        std::io::Read::read_exact(&mut client, &mut first).unwrap();
        first == *b"+"
    };
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        for (text, wanted) in [(&without, false), (&with, true)] {
            let beside = gateway.file().with_extension("new");
            fs::write(&beside, text).unwrap();
            fs::rename(&beside, gateway.file()).unwrap();
            let edited = Instant::now();
            until("the edit is live", || serves() == wanted);
            slowest = slowest.max(edited.elapsed());
            for client in &mut open {
                isthmus_tests::client::echo(client, b"still here");
            }
        }
    }
    let mut client = send(gateway.address(), &hello("other.example"));
    assert_eq!(read_exactly(&mut client, 1), b"+");
    figure!(
        "10 edits, 100 connections of the removed and re-added service: unaffected; slowest edit {slowest:?}"
    );
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[test]
fn access_log_lines_have_every_field() {
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()])).start();
    let mut client = send(gateway.address(), &hello(HOST));
    assert_eq!(read_exactly(&mut client, 1), b"+");
    let served = client.local_addr().unwrap();
    drop(client);
    let mut client = send(gateway.address(), b"not TLS");
    let _answer = rest(&mut client);
    for peer in [served, client.local_addr().unwrap()] {
        let line = gateway.log().line_of(peer);
        for field in [
            "time",
            "listener",
            "peer",
            "sni",
            "alpn",
            "service",
            "endpoint",
            "cluster",
            "locality",
            "attempts",
            "bytes_in",
            "bytes_out",
            "hello_ms",
            "connect_ms",
            "first_byte_ms",
            "duration_ms",
            "reason",
        ] {
            assert!(line.0.get(field).is_some(), "{field} is missing: {line:?}");
        }
        assert_eq!(line.0.as_object().unwrap().len(), 17, "{line:?}");
    }
}

#[test]
fn gateway_announces_its_listening_addresses() {
    let gateway =
        Setup::new("").listeners("- address: ADDRESS\n- address: \"127.0.0.1:0\"\n  name: inner").start();
    let printed = gateway.errors();
    let lines: Vec<&String> = printed.iter().filter(|line| line.starts_with("listening ")).collect();
    let wanted = ["listener=east-west", "listener=inner", "admin", "metrics", "health"];
    assert_eq!(lines.len(), wanted.len(), "{lines:?}");
    for (line, name) in lines.iter().zip(wanted) {
        let address = line.strip_prefix(&format!("listening {name} address=127.0.0.1:"));
        assert!(address.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)), "{line}");
    }
    assert_eq!(printed.iter().filter(|line| *line == "ready").count(), 1);
    assert!(gateway.log().raw().is_empty(), "standard output has lines besides the access log");
}

const PAGES: [&str; 6] =
    ["/status", "/config", "/routes", "/services", "/connections", "/explain?sni=web.example"];

fn open(gateway: &Gateway) -> TcpStream {
    let mut client = send(gateway.address(), &hello(HOST));
    assert_eq!(read_exactly(&mut client, 1), b"+");
    client
}

#[test]
fn admin_refuses_other_machines_and_host_names() {
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()])).start();
    let _client = open(&gateway);
    let admin = gateway.at("admin");
    for page in PAGES {
        let answer = http::ask(admin, "GET", page);
        assert_eq!(answer.status, 200, "{page}: {}", answer.body);
        let _value = answer.json();
        assert!(!answer.body.contains("PRIVATE KEY"), "{page}");
        for host in ["evil.example", "127.0.0.1.evil.example", "evil.example:15000", "", "169.254.169.254"] {
            let answer = http::ask_as(admin, host, "GET", page);
            assert!(
                answer.is_ok_and(|answer| (400..500).contains(&answer.status)),
                "{page} for Host {host:?}"
            );
        }
        for host in ["localhost", &format!("localhost:{}", admin.port()), "127.0.0.1", "[::1]"] {
            let answer = http::ask_as(admin, host, "GET", page).unwrap();
            assert_eq!(answer.status, 200, "{page} for Host {host:?}");
        }
    }
    let foreign = http::ask_as(admin, "evil.example", "POST", "/drain").unwrap();
    assert!((400..500).contains(&foreign.status));
    assert!(gateway.is_ready(), "a request with a foreign Host has drained the gateway");
    for (name, allowed) in [("metrics", "/metrics"), ("health", "/healthz/live")] {
        let at = gateway.at(name);
        assert_eq!(http::ask(at, "GET", allowed).status, 200);
        for page in PAGES.iter().chain(&["/", "/drain", "/debug/pprof", "/../config"]) {
            assert_eq!(http::ask(at, "GET", page).status, 404, "{name} serves {page}");
        }
        assert!(http::ask(at, "POST", "/drain").status >= 400, "{name}");
    }
    assert!(gateway.is_ready());
}

#[test]
fn admin_get_changes_nothing() {
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()])).start();
    let config = gateway.admin("GET", "/config").body;
    for page in PAGES.iter().chain(&["/drain", "/", "/quitquitquit"]) {
        for method in ["GET", "HEAD", "DELETE", "PUT"] {
            let _answer = http::ask_as(gateway.at("admin"), "localhost", method, page);
        }
    }
    assert!(gateway.is_ready());
    assert_eq!(gateway.admin("GET", "/config").body, config);
    let _client = open(&gateway);
}

/// The admin is not reachable through the gateway, and its pages answer beside a silent client.
#[test]
fn admin_is_not_reachable_through_the_listener() {
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()])).start();
    for name in ["admin", "localhost", "127.0.0.1", "metrics", "xds_cluster", "outbound_.15000_._.localhost"]
    {
        let mut client =
            send(gateway.address(), &Hello::new(HOST).without(0).and(sni(name.as_bytes())).bytes());
        let answer = rest(&mut client).0;
        assert!(answer == alert(112) || answer == alert(50), "{name}: {answer:?}");
    }
}

/// Health and metrics are open to all: idle connections there must not make the probes fail, or the gateway
/// would be killed.
#[test]
fn admin_pages_answer_beside_silent_connections() {
    let server = Scripted::echo(b"+");
    let gateway = Setup::new(service(HOST, &[], &[server.address()])).start();
    for (name, page) in [("health", "/healthz/ready"), ("metrics", "/metrics"), ("admin", "/status")] {
        let at = gateway.at(name);
        let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(at).unwrap()).collect();
        let slow: Vec<TcpStream> =
            (0..200).map(|_| send(at, b"GET / HTTP/1.1\r\nHost: localhost\r\n")).collect();
        let started = Instant::now();
        let status = http::ask(at, "GET", page).status;
        let took = started.elapsed();
        figure!("{name} beside 400 unfinished requests: {status} after {took:?}");
        assert_eq!(status, 200);
        assert!(took < Duration::from_secs(2), "{name} took {took:?} beside 400 unfinished requests");
        drop((silent, slow));
    }
}

#[test]
fn admin_pages_match_gateway_behaviour() {
    let endpoint = Endpoint::new();
    let gateway = Setup::new(service(HOST, &["sources: [127.0.0.0/8]"], &[endpoint.address()])).start();
    let explain = |query: &str| gateway.admin("GET", &format!("/explain?{query}")).body;
    assert!(explain("sni=web.example").contains(&endpoint.address().to_string()));
    assert!(explain("sni=other.example").contains("sni_unmatched"));
    assert!(explain("sni=web.example&from=10.0.0.1").contains("source_denied"));
    let client = send(gateway.address(), &hello(HOST));
    let (server, _) = endpoint.take();
    let peer = client.local_addr().unwrap().to_string();
    until("the page shows the connection", || gateway.admin("GET", "/connections").body.contains(&peer));
    drop((client, server));
    until("the page no longer shows the connection", || {
        !gateway.admin("GET", "/connections").body.contains(&peer)
    });
}
