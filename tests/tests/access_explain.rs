//! `explain --as --from` predicts what a gateway decides: over generated rules, callers and addresses, the prediction is
//! compared with what happens.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};

use isthmus_tests::client::{dial_from, rest};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::ends::{Domains, connect_over, id};
use isthmus_tests::gateway::{Gateway, run_to_end};
use isthmus_tests::hello::hello;
use isthmus_tests::log::Line;
use isthmus_tests::setup::{Setup, service};
use serde_json::Value;

const SOURCES: [&str; 2] = ["127.0.0.1", "127.0.9.9"];
const CALLERS: [(&str, &str); 4] = [("east", "app"), ("east", "other"), ("west", "app"), ("north", "app")];
/// What endpoints answer.
const ANSWER: &[u8; 4] = b"....";
/// Services of each kind.
const SERVICES: usize = 24;

/// A rule in YAML, of conditions that often match.
fn rule(random: &mut fastrand::Rng, by_identity: bool) -> String {
    let mut keys = Vec::new();
    if by_identity && random.bool() {
        let (domain, name) = CALLERS[random.usize(..3)];
        keys.push(match random.usize(..3) {
            0 => format!("identities: ['{}']", id(domain, name)),
            1 => format!("trust_domains: [{domain}.example]"),
            _ => format!("namespaces: [test, other], trust_domains: [{domain}.example]"),
        });
    }
    if random.bool() {
        keys.push(format!(
            "sources: [{}]",
            ["127.0.9.0/24", "127.0.0.0/16", "10.0.0.0/8"][random.usize(..3)]
        ));
    }
    if keys.is_empty() || random.u8(..4) == 0 {
        keys.push(format!("ports: [{}]", [443, 80][random.usize(..2)]));
    }
    if random.u8(..4) == 0 {
        keys.push("dry_run: true".to_owned());
    }
    format!("{{ {} }}", keys.join(", "))
}

fn rules(random: &mut fastrand::Rng, by_identity: bool) -> String {
    let mut lists = Vec::new();
    for (list, most) in [("allow", 5), ("deny", 2)] {
        // A rule that occurs twice is refused.
        let mut all: Vec<_> = (0..random.usize(..most)).map(|_| rule(random, by_identity)).collect();
        all.sort();
        all.dedup();
        if random.bool() || !all.is_empty() {
            lists.push(format!("{list}: [{}]", all.join(", ")));
        }
    }
    format!("access: {{ {} }}", lists.join(", "))
}

fn explained(gateway: &Gateway, query: &str) -> Value {
    let page = gateway.admin("GET", &format!("/explain?{query}")).json();
    assert!(page.get("error").is_none(), "{page}");
    page
}

/// The prediction must be what the line of the connection says: the reason, and the rule.
#[track_caller]
fn compare(page: &Value, line: &Line, is_served: bool) {
    let predicted = page["refused"].as_str();
    let reason = Some(line.reason()).filter(|_| !is_served);
    assert_eq!(predicted, reason, "{page}\n{line:?}");
    if reason != Some("tls_failed") {
        assert_eq!(page["access"].as_str().unwrap_or_default(), line.text("access"), "{page}\n{line:?}");
    }
    let verdict = page["decision"]["verdict"].as_str();
    assert_eq!(verdict == Some("denied"), predicted.is_some(), "{page}");
}

/// A gateway with generated rules: terminated services, services whose TLS passes through, and a listener for applications
/// without TLS in front of each terminated one.
struct Matrix {
    domains: Domains,
    gateway: Gateway,
    _backends: [Scripted; 2],
}

impl Matrix {
    fn new() -> Matrix {
        let domains = Domains::new();
        for (domain, name) in CALLERS {
            domains.issue(domain, name);
        }
        let greeting = Scripted::unread(|mut stream| drop(stream.write_all(ANSWER)));
        let answering = Scripted::echo(ANSWER);
        let mut random = fastrand::Rng::with_seed(7);
        let files = domains.issue("east", "server").replace(", key", "\n  key");
        let mut services = String::new();
        for index in 0..SERVICES {
            let door = ["tls: terminate", &files, &rules(&mut random, true)];
            services += &service(&door_host(index), &door, &[greeting.address()]);
            services += &service(&pass_host(index), &[&rules(&mut random, false)], &[answering.address()]);
        }
        let caller = |source: &str, name: &str| {
            let files = domains.files("east", name);
            format!("{{ sources: [{source}], identity: {}, {files} }}", id("east", name))
        };
        let callers = [caller(SOURCES[0], "app"), caller(SOURCES[1], "other")].join(", ");
        let originate = (0..SERVICES).map(|index| {
            format!(
                "\n- {{ name: app{index}, address: \"127.0.0.1:0\", side: outbound, mode: originate, service: {}, \
                 callers: [{callers}] }}",
                door_host(index)
            )
        });
        let listeners =
            format!("- {{ name: tls, address: \"127.0.0.1:0\" }}{}", originate.collect::<String>());
        let gateway = Setup::new(services).with(&domains.trust_yaml()).listeners(&listeners).start();
        Matrix { domains, gateway, _backends: [greeting, answering] }
    }

    fn dial(&self, listener: &str, source: &str) -> TcpStream {
        dial_from(source.parse::<IpAddr>().unwrap(), self.gateway.at(&format!("listener {listener}")))
    }

    /// Returns whether a TLS client is served by a terminated service.
    fn through_the_door(&self, index: usize, source: &str, (domain, name): (&str, &str)) -> bool {
        let host = door_host(index);
        let query = format!("listener=tls&sni={host}&from={source}&as={}", id(domain, name));
        let page = explained(&self.gateway, &query);
        let stream = self.dial("tls", source);
        let client = stream.local_addr().unwrap();
        let mut tls = connect_over(&self.domains.client(domain, name), &host, stream);
        let is_served = tls.read_exact(&mut [0; ANSWER.len()]).is_ok();
        drop(tls);
        compare(&page, &self.gateway.log().line_of(client), is_served);
        is_served
    }

    /// Likewise where TLS passes through: nobody sees who calls, whoever the question names.
    fn passing_through(&self, index: usize, source: &str) -> bool {
        let host = pass_host(index);
        let query = format!("listener=tls&sni={host}&from={source}&as={}", id("east", "app"));
        let page = explained(&self.gateway, &query);
        let mut stream = self.dial("tls", source);
        stream.write_all(&hello(&host)).unwrap();
        let mut answer = [0; ANSWER.len()];
        let is_served = stream.read_exact(&mut answer).is_ok() && answer == *ANSWER;
        let client = stream.local_addr().unwrap();
        drop(stream);
        compare(&page, &self.gateway.log().line_of(client), is_served);
        is_served
    }

    /// Likewise for an application without TLS.
    fn without_tls(&self, index: usize, source: &str) -> bool {
        let page = explained(&self.gateway, &format!("listener=app{index}&from={source}"));
        let mut stream = self.dial(&format!("app{index}"), source);
        let is_served = rest(&mut stream).0 == ANSWER;
        let client = stream.local_addr().unwrap();
        drop(stream);
        compare(&page, &self.gateway.log().line_of(client), is_served);
        is_served
    }
}

fn door_host(index: usize) -> String {
    format!("door{index}.example")
}

fn pass_host(index: usize) -> String {
    format!("pass{index}.example")
}

#[test]
fn access_explained_is_what_happens() {
    let matrix = Matrix::new();
    let mut outcomes = Vec::new();
    for index in 0..SERVICES {
        for source in SOURCES {
            outcomes.extend(CALLERS.map(|caller| matrix.through_the_door(index, source, caller)));
            outcomes.push(matrix.passing_through(index, source));
            outcomes.push(matrix.without_tls(index, source));
        }
    }
    let served = outcomes.iter().filter(|is_served| **is_served).count();
    assert!(served > 20 && outcomes.len() - served > 20, "{served} of {} are served", outcomes.len());
    let asked = format!("listener=app0&from={}&as={}", SOURCES[0], id("east", "other"));
    let page = explained(&matrix.gateway, &asked);
    assert_eq!(page["refused"], "identity_denied");
    assert!(page["decision"]["cause"].as_str().unwrap().contains("has the identity"), "{page}");
}

#[test]
fn access_explain_command_names_the_cause() {
    let matrix = Matrix::new();
    let admin = matrix.gateway.at("admin").to_string();
    let asked = ["explain", &door_host(0), "--as", &id("north", "app"), "--admin", &admin];
    let text = String::from_utf8(run_to_end(&asked).stdout).unwrap();
    for part in ["refused: tls_failed", "access: there is no bundle of north.example"] {
        assert!(text.contains(part), "{text}");
    }
}
