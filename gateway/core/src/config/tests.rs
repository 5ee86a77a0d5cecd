//! Tests parsing from text to settings: each check with its place and message.

mod bindings;
mod fuzz;
mod names;
mod rendered;
mod traffic;
mod values;
mod xds;

use std::path::Path;
use std::time::{Duration, Instant};

use isthmus_model::problem::Report;
use isthmus_model::{registry_file, yaml};

use super::settings::{Balance, FirstToken, Known, ServiceTimeouts, Settings, Source, Target, Trusts};
use super::{Problems, load, parse, schema};

const DOCUMENT: &str = include_str!("../../../../docs/configuration.md");

fn read(text: &str) -> Result<Settings, Problems> {
    parse(text, Path::new("g.yaml"))
}

#[track_caller]
fn good(text: &str) -> Settings {
    match read(text) {
        Ok(settings) => settings,
        Err(problems) => panic!("{problems}"),
    }
}

/// Asserts that the problems are exactly these lines.
#[track_caller]
fn bad(text: &str, lines: &[&str]) {
    let problems = read(text).expect_err("the text is wrong");
    let found = problems.to_string();
    let found: Vec<&str> = found.lines().map(|line| line.strip_prefix("g.yaml:").unwrap_or(line)).collect();
    assert_eq!(found, lines);
}

/// One listener, then `rest` from line 2 on.
fn with_listener(rest: &str) -> String {
    format!("listeners: [{{address: 127.0.0.1:0}}]\n{rest}")
}

#[test]
fn minimal_file_gets_defaults() {
    let settings =
        good("listeners:\n- address: 0.0.0.0:15443\n- address: \"[::]:15443\"\nservices:\n- host: a.b\n");
    let (fixed, live) = (&settings.fixed, &settings.live);
    assert!(!fixed.node.id.is_empty());
    assert_eq!((fixed.node.cluster.as_str(), fixed.node.network.as_str()), ("default", ""));
    assert_eq!(fixed.workers, std::thread::available_parallelism().unwrap().get().min(256));
    let names: Vec<_> = fixed.binds.iter().map(|bind| bind.name.as_str()).collect();
    assert_eq!(names, ["east-west", "listener-2"]);
    assert!(fixed.binds.iter().all(|bind| bind.ipv6_only && bind.backlog == 4096));
    assert_eq!(fixed.admin.to_string(), "127.0.0.1:15000");
    assert_eq!(fixed.metrics.to_string(), "0.0.0.0:15020");
    assert_eq!(fixed.health.to_string(), "0.0.0.0:15021");
    assert_eq!((fixed.relay.pipe_size, fixed.relay.pipes, fixed.service_metrics), (1 << 20, 64, 1000));
    assert!(
        fixed.tcp.nodelay
            && fixed.access_log.enabled
            && !fixed.access_log.no_data
            && !fixed.access_log.probes
    );
    assert_eq!(fixed.tcp.keepalive_idle, Some(Duration::from_secs(180)));
    assert_eq!((fixed.tcp.keepalive_interval, fixed.tcp.keepalive_probes), (Duration::from_secs(180), 9));
    assert_eq!(
        (fixed.tcp.receive_buffer, fixed.tcp.send_buffer, fixed.access_log.buffer),
        (None, None, 1 << 20)
    );
    assert_eq!((fixed.dns.min_ttl, fixed.dns.max_ttl), (Duration::from_secs(1), Duration::from_secs(300)));
    assert!(fixed.dns.servers.is_empty());

    assert!(live.listeners.iter().all(|listener| listener.max_connections == 10_000));
    assert!(
        live.listeners.iter().all(|listener| listener.default.is_none() && listener.proxy_from.is_empty())
    );
    assert_eq!((live.limits.connections, live.limits.per_source), (50_000, None));
    assert_eq!((live.limits.hello_size, live.limits.hello_memory), (64 << 10, 64 << 20));
    assert_eq!(live.timeouts.hello, Duration::from_secs(5));
    assert_eq!((live.upstream.attempts, live.upstream.source_addresses.len()), (3, 0));
    let replay = &live.upstream.replay;
    assert_eq!((replay.ratio, replay.burst, replay.source_share), (0.2, 20, 0.5));
    let ejection = &live.upstream.ejection;
    assert_eq!((ejection.failures, ejection.max_percent), (5, 10));
    assert_eq!((ejection.base, ejection.max), (Duration::from_secs(30), Duration::from_secs(300)));
    assert_eq!(
        (live.drain.accept_for, live.drain.window),
        (Duration::from_secs(10), Duration::from_secs(15))
    );

    let service = &live.services[0];
    assert_eq!((service.port, service.default_port, service.balance), (443, true, Balance::RoundRobin));
    assert_eq!((service.max_connections, service.send_proxy, service.endpoints.len()), (None, false, 0));
    let general = ServiceTimeouts {
        connect: Duration::from_secs(3),
        connect_total: Duration::from_secs(15),
        idle: Some(Duration::from_hours(1)),
        half_closed: Some(Duration::from_mins(1)),
        first_byte: None,
        max_duration: None,
    };
    assert_eq!(service.timeouts, general);
}

#[test]
fn empty_sections_count_as_absent() {
    let sections = "node:\nworkers:\nservices:\nlimits:\ntimeouts:\nupstream: {replay: , ejection: }\nrelay:\ntcp:\n\
                    drain:\nadmin:\nmetrics:\nhealth:\naccess_log:\ndns:\n";
    assert_eq!(good(&with_listener(sections)), good(&with_listener("")));
}

#[test]
fn documented_yaml_blocks_load() {
    let blocks: Vec<&str> =
        DOCUMENT.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 3);
    let mut blocks = blocks.into_iter().map(good);
    let every = blocks.nth(1).unwrap();
    let service = &every.live.services[0];
    assert!(service.default_port && service.send_proxy);
    assert_eq!(every.live.listeners[0].default, Some(1));
    assert_eq!(every.live.listeners[0].proxy_from, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(service.endpoints[0].instance.as_ref().unwrap().as_str(), "productpage-0");
    assert!(matches!(&service.endpoints[1].address, Target::Name { port: 9080, .. }));
    assert_eq!(every.fixed.node.locality.sub_zone, "rack-7");
    let xds = blocks.next().unwrap().fixed.xds.unwrap();
    let Source::ControlPlane(plane) = xds.source else { panic!("a control plane") };
    assert_eq!(plane.port, 15443);
    assert!(matches!(&plane.server, Known::Name(name) if name.as_str() == "istiod.istio-system.svc"));
    assert_eq!(plane.metadata["LABELS"]["istio"], "eastwestgateway");
}

#[test]
fn registry_file_means_same_services() {
    let full = DOCUMENT.split("```yaml\n").nth(2).unwrap().split("```").next().unwrap();
    let rest = &full[full.find("\nservices:").unwrap() + 1..];
    let end = rest
        .match_indices('\n')
        .map(|(at, _)| at + 1)
        .find(|at| rest[*at..].starts_with(char::is_alphabetic));
    let services = &rest[..end.unwrap()];
    // The last two have keys that an agent does not pass on yet.
    let services = &services[..services.find("- host: orders.shop").unwrap()];
    let offered =
        registry_file(services, Path::new("registry.yaml")).unwrap_or_else(|problems| panic!("{problems}"));
    let mut listed: Vec<_> =
        good(&with_listener(services)).live.services.iter().map(|one| (**one).clone()).collect();
    // A gateway also finds the parts of splits, and probes only where its own file says so.
    listed.iter_mut().flat_map(|one| &mut one.endpoints).for_each(|endpoint| endpoint.part = 0);
    for (listed, offered) in listed.iter_mut().zip(&offered) {
        listed.health = listed.health.take().or_else(|| offered.health.clone());
    }
    assert!(!listed.is_empty());
    assert_eq!(offered, listed);
}

/// Each key of the schema is in the documentation's full example, and no object allows unknown keys.
#[test]
fn schema_is_closed_and_documented_completely() {
    let schema: serde_json::Value = serde_json::from_str(&schema()).unwrap();
    let definitions = schema["$defs"].as_object().unwrap().values().chain([&schema]);
    let mut keys = 0;
    for object in definitions.filter(|definition| definition["type"] == "object") {
        assert_eq!(object["additionalProperties"], false, "{object}");
        for (key, property) in object["properties"].as_object().unwrap() {
            keys += 1;
            assert!(DOCUMENT.contains(&format!("{key}:")), "{key} is not in the example");
            assert!(property.get("description").is_some() || key == "locality", "{key} has no description");
        }
    }
    assert!(keys > 70, "{keys}");
    assert_eq!(schema["required"], serde_json::json!(["listeners"]));
    assert_eq!(schema["$defs"]["Timeouts"]["properties"]["idle"]["default"], "1h");
    assert_eq!(schema["$defs"]["Endpoint"]["required"], serde_json::json!(["address"]));
    assert_eq!(schema["$defs"]["Endpoint"]["properties"]["weight"]["maximum"], 65_535);
}

#[test]
fn invalid_yaml_is_reported_with_place() {
    bad("", &["1:1: there are no listeners; add 'listeners:' with at least '- address: 0.0.0.0:15443'"]);
    bad(
        "listeners: []\n",
        &["1:12: there are no listeners; add 'listeners:' with at least '- address: 0.0.0.0:15443'"],
    );
    bad(
        "5",
        &[
            "1:1: the file: wrong kind of value; write keys and values: lines of 'key: value', or {key: value}",
        ],
    );
    bad("workers: 1\n  b: 2\n", &["2:4: not valid YAML: mapping values are not allowed in this context"]);
    bad("workers: 1\nworkers: 2\n", &["2:1: duplicate key 'workers'; remove one of them"]);
    bad("tcp: {nodelay: maybe}\n", &["1:16: tcp.nodelay: wrong kind of value; write true or false"]);
    bad("services:\n- host: [a]\n", &["2:9: services[0].host: wrong kind of value; write a single value"]);
    bad(
        "services:\n- host: a\n  aliases: b\n",
        &[
            "3:12: services[0].aliases: wrong kind of value; write a list: [a, b], or lines that begin with '- '",
        ],
    );
    bad(
        "services:\n- aliases: [~]\n",
        &["2:13: services[0].aliases[0]: no value; write one, or remove the entry"],
    );
    bad(
        "workers: 1\n---\nworkers: 2\n",
        &["3:1: the file has a second document; write one document, without --- or ... lines"],
    );
}

#[test]
fn unknown_key_is_refused_with_suggestion() {
    bad(
        &with_listener(
            "services:\n- host: a\n  endpoints:\n  - address: 10.0.0.1:80\n  - adress: 10.0.0.2:80\n",
        ),
        &["6:5: unknown key 'adress' in services[0].endpoints[1]; did you mean 'address'?"],
    );
    bad("listener: []\n", &["1:1: unknown key 'listener'; did you mean 'listeners'?"]);
    bad("admin: {port: 1}\n", &["1:9: unknown key 'port' in admin; expected one of address"]);
    bad("admin: {value: 1}\n", &["1:9: unknown key 'value' in admin; expected one of address"]);
    bad(
        "node: {locality: {regoin: x}}\n",
        &["1:19: unknown key 'regoin' in node.locality; did you mean 'region'?"],
    );
    bad(
        "services:\n- balance: roundrobin\n",
        &["2:12: services[0].balance: unknown value 'roundrobin'; did you mean 'round_robin'?"],
    );
    bad(
        "services:\n- proxy_protocol: v1\n",
        &["2:19: services[0].proxy_protocol: unknown value 'v1'; did you mean 'v2'?"],
    );
    bad(
        "\"x\\n\\e[2J\": 1\n",
        &[
            "1:1: unknown key 'x\\n\\u{1b}[2J'; expected one of node, workers, listeners, services, bindings, capture, limits, timeouts, \
         upstream, relay, tcp, drain, admin, metrics, health, access_log, audit_log, trust, xds, dns",
        ],
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    bad(
        "workers: 0\nlisteners:\n- name: a b\n  adress_is_missing_here: 1\n",
        &[
            "4:3: unknown key 'adress_is_missing_here' in listeners[0]; expected one of name, address, side, mode, service, \
           port, ports, original_destination, virtual_addresses, identity, sources, certificate, key, callers, ipv6_only, backlog, max_connections, default, proxy_protocol",
        ],
    );
    bad(
        "workers: 0\nlisteners:\n- name: a b\n- address: here\ntimeouts:\n  hello: 5\n  idle: 0s\n",
        &[
            "1:10: workers: '0' is out of range; write 1 to 256",
            "3:3: listeners[0] has no address; add 'address: …'",
            "3:9: listeners[0].name: 'a b' cannot be used; write 1 to 63 ASCII letters, digits, '-', '_' or '.'",
            "4:12: listeners[1].address: 'here' is not an address to listen on; write IP:PORT or [IPV6]:PORT, such as \
             0.0.0.0:15443",
            "6:10: timeouts.hello: '5' is not a duration; write a whole number and its unit: 500ms, 5s, 3m or 1h",
            "7:9: timeouts.idle: '0s' would let nothing succeed; write more than zero",
        ],
    );
}

#[test]
fn unreadable_files_report_why() {
    let directory = tempfile::tempdir().unwrap();
    let missing = load(&directory.path().join("none.yaml")).unwrap_err().to_string();
    assert!(missing.contains("none.yaml: cannot be read: No such file"), "{missing}");
    let path = directory.path().join("latin1.yaml");
    std::fs::write(&path, b"workers: 1\n# \xc3\xa9\xe9\n").unwrap();
    let latin1 = load(&path).unwrap_err().to_string();
    assert!(latin1.ends_with("latin1.yaml:2:4: not UTF-8; save the file as UTF-8"), "{latin1}");
    std::fs::write(&path, "listeners: [{address: 127.0.0.1:0}]\n").unwrap();
    assert!(load(&path).is_ok());
    std::fs::File::options().write(true).open(&path).unwrap().set_len((256 << 20) + 1).unwrap();
    let large = load(&path).unwrap_err().to_string();
    assert!(large.ends_with("is larger than 256 MiB; split it between gateways"), "{large}");
}

#[test]
fn hundred_thousand_services_load() {
    let mut text = with_listener("services:\n");
    for number in 0..100_000 {
        let [a, b] = [number / 250, number % 250];
        text.push_str(&format!(
            "- host: service-{number}.shop.svc.cluster.local\n  port: 8080\n  aliases: [service-{number}.shop]\n  \
             endpoints:\n  - address: 10.{}.{}.{b}:15443\n    instance: pod-0\n    locality: {{region: r}}\n  \
             - address: 11.{}.{}.{b}:8080\n",
            a / 250,
            a % 250,
            a / 250,
            a % 250,
        ));
    }
    let mut report = Report::new(Path::new("g.yaml"));
    let start = Instant::now();
    let raw = yaml::read(&text, &mut report).unwrap();
    let read = start.elapsed();
    let start = Instant::now();
    let settings = super::resolve::resolve(&mut report, raw);
    println!("{} MB: YAML {read:?}, resolved in {:?}", text.len() / 1_000_000, start.elapsed());
    let settings = report.finish(settings).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(settings.live.services.len(), 100_000);
}
