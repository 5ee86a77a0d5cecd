//! Rules for callers in a gateway's own file: who is let in, which rule says so, and what is only reported.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};

use isthmus_tests::audit::Audit;
use isthmus_tests::client::{End, alert, dial, dial_from, read_exactly, rest};
use isthmus_tests::endpoint::Endpoint;
use isthmus_tests::ends::{Domains, HOST, connect_to, id};
use isthmus_tests::gateway::run_to_end;
use isthmus_tests::hello::hello;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::until;

/// A source that rules name, and one that they do not.
const NAMED: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 9, 9));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Rules for `app` of east from [`OTHER`], whether they let it in, and what the log says.
const RULES: &[(&str, bool, &str)] = &[
    ("{}", false, "denied: no rule allows it"),
    ("{ allow: [] }", false, "denied: no rule allows it"),
    ("{ allow: [spiffe://east.example/ns/test/sa/app] }", true, "allowed by service rule allow[0]"),
    (
        "{ allow: [{ identities: ['spiffe://east.example/ns/test/*'] }] }",
        true,
        "allowed by service rule allow[0]",
    ),
    ("{ allow: [{ identities: ['spiffe://east.example/ns/tes/*'] }] }", false, "denied: no rule allows it"),
    (
        "{ allow: [{ name: peers, namespaces: [test], trust_domains: [west.example, east.example] }] }",
        true,
        "allowed by service rule peers",
    ),
    ("{ allow: [{ trust_domains: [west.example] }] }", false, "denied: no rule allows it"),
    (
        "{ allow: [{ trust_domains: [east.example], ports: [443] }] }",
        true,
        "allowed by service rule allow[0]",
    ),
    ("{ allow: [{ trust_domains: [east.example], ports: [3306] }] }", false, "denied: no rule allows it"),
    (
        "{ allow: [{ trust_domains: [east.example], sources: [127.0.9.0/24] }] }",
        false,
        "denied: no rule allows it",
    ),
    ("{ allow: [{ sources: [127.0.0.0/8] }] }", true, "allowed by service rule allow[0]"),
    (
        "{ allow: [{ sources: [127.0.0.0/8] }], deny: [{ name: app, namespaces: [test], trust_domains: [east.example] }] }",
        false,
        "denied by service rule app",
    ),
];

#[test]
fn access_of_a_terminated_service_is_what_its_rules_say() {
    let domains = Domains::new();
    domains.issue("east", "app");
    let backend = Endpoint::new();
    let files = domains.issue("east", "server").replace(", key", "\n  key");
    let host = |index| format!("s{index}.example");
    let services = RULES.iter().enumerate().map(|(index, (rules, ..))| {
        let access = format!("access: {rules}");
        service(&host(index), &["tls: terminate", &files, &access], &[backend.address()])
    });
    let east = Setup::new(services.collect::<String>()).with(&domains.trust_yaml()).start();
    for (index, (rules, is_allowed, log)) in RULES.iter().enumerate() {
        let mut tls = connect_to(&domains.client("east", "app"), &host(index), east.address());
        let peer = tls.sock.local_addr().unwrap();
        let sent = tls.write_all(b"hello");
        if *is_allowed {
            sent.unwrap();
            assert_eq!(read_exactly(&mut backend.accept(), 5), b"hello", "{rules}");
        } else {
            let seen = sent.and_then(|()| tls.read(&mut [0])).expect_err("a refusal").to_string();
            assert!(seen.contains("AccessDenied"), "{rules}: {seen}");
            assert!(backend.is_untouched(), "{rules}");
        }
        drop(tls);
        let line = east.log().line_of(peer);
        assert_eq!((line.text("access"), line.text("caller")), (*log, &*id("east", "app")), "{rules}");
        assert_eq!(line.reason() == "identity_denied", !is_allowed, "{rules}: {line:?}");
    }
}

fn said(gateway: SocketAddr, source: IpAddr) -> (SocketAddr, Vec<u8>, End) {
    let mut client = dial_from(source, gateway);
    client.write_all(&hello(HOST)).unwrap();
    let peer = client.local_addr().unwrap();
    let (bytes, end) = rest(&mut client);
    (peer, bytes, end)
}

#[test]
fn access_by_source_guards_what_passes_through() {
    let backend = Endpoint::new();
    for rules in ["{ deny: [{ sources: [127.0.9.9] }] }", "{ allow: [{ sources: [127.0.0.1] }] }"] {
        let gateway = Setup::new(service(HOST, &[&format!("access: {rules}")], &[backend.address()])).start();
        let (peer, bytes, _) = said(gateway.address(), NAMED);
        assert_eq!(bytes, alert(49), "{rules}");
        assert!(backend.is_untouched(), "{rules}");
        let line = gateway.log().line_of(peer);
        assert_eq!(line.reason(), "source_denied", "{line:?}");
        assert!(line.text("access").starts_with("denied"), "{line:?}");

        let (mut client, hello) = (dial_from(OTHER, gateway.address()), hello(HOST));
        client.write_all(&hello).unwrap();
        assert_eq!(read_exactly(&mut backend.accept(), hello.len()), hello);

        for (source, refused) in [(NAMED, "source_denied"), (OTHER, "")] {
            let page = gateway.admin("GET", &format!("/explain?sni={HOST}&from={source}")).json();
            assert_eq!(page["refused"].as_str().unwrap_or_default(), refused, "{page}");
            assert!(page["access"].is_string(), "{page}");
        }
    }
}

#[test]
fn access_dry_run_rule_is_reported_and_refuses_nobody() {
    let backend = Endpoint::new();
    let rules = "access: { deny: [{ name: soon, sources: [127.0.0.0/8], dry_run: true }] }";
    let gateway = Setup::new(service(HOST, &[rules], &[backend.address()])).start();
    let mut client = dial(gateway.address());
    let hello = hello(HOST);
    client.write_all(&hello).unwrap();
    assert_eq!(read_exactly(&mut backend.accept(), hello.len()), hello);
    let peer = client.local_addr().unwrap();
    drop(client);
    let line = gateway.log().line_of(peer);
    assert_eq!(line.text("access"), "allowed: no rule denies it", "{line:?}");
    assert_eq!(line.0["access_dry_run"], serde_json::json!(["service rule soon"]), "{line:?}");
}

/// Where TLS passes through, a gateway that originates sees the caller; others do not.
#[test]
fn access_advisory_rule_is_enforced_by_the_originating_gateway_alone() {
    let domains = Domains::new();
    let backend = Endpoint::new();
    let rules = format!("access: {{ deny: [{}], advisory: true }}", id("east", "app"));
    let west = domains.originating_with("app", &[&rules], &[backend.address()]).start();
    let mut app = dial(west.address());
    assert_eq!(rest(&mut app), (Vec::new(), End::Reset));
    let line = west.log().line_of(app.local_addr().unwrap());
    assert_eq!(line.reason(), "identity_denied", "{line:?}");
    assert_eq!(line.text("access"), "denied by service rule deny[0]");
    assert!(backend.is_untouched());
    let page = west.admin("GET", "/explain?from=127.0.0.1").json();
    assert_eq!(page["refused"], "identity_denied", "{page}");

    let other = Setup::new(service(HOST, &[&rules], &[backend.address()])).start();
    let (mut client, hello) = (dial(other.address()), hello(HOST));
    client.write_all(&hello).unwrap();
    assert_eq!(read_exactly(&mut backend.accept(), hello.len()), hello);
}

#[test]
fn access_that_a_gateway_cannot_enforce_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    for (rules, problem) in [
        ("{ deny: [spiffe://east.example/a] }", "which nobody sees where TLS passes through"),
        ("{ allow: [{ namespaces: [shop] }], advisory: true }", "add `trust_domains` to the rule"),
        ("{ mode: workspace, advisory: true }", "knows no workspaces"),
    ] {
        let access = format!("access: {rules}");
        let services = service(HOST, &[&access], &[]);
        fs::write(&file, format!("listeners: [{{ address: \"127.0.0.1:0\" }}]\nservices:\n{services}"))
            .unwrap();
        let checked = run_to_end(&["check", "--config", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert!(!checked.status.success() && said.contains(problem), "{rules}: {said}");
        assert!(said.contains("services[0].access"), "{said}");
    }
}

/// istio#20442: a rule with an unknown key is not read as one without that condition.
#[test]
fn access_edit_with_an_unknown_key_keeps_the_old_rules() {
    let backend = Endpoint::new();
    let rules = "access: { deny: [{ sources: [127.0.9.9] }] }";
    let gateway = Setup::new(service(HOST, &[rules], &[backend.address()])).start();
    let text = fs::read_to_string(gateway.file()).unwrap();
    fs::write(gateway.file(), text.replace("{ sources: [127.0.9.9] }", "{ source: [127.0.9.8] }")).unwrap();
    until("the edit is refused", || {
        let refused = gateway.admin("GET", "/status").json()["last_refused_edit"].to_string();
        refused.contains("unknown key 'source'")
    });
    let (_, bytes, _) = said(gateway.address(), NAMED);
    assert_eq!(bytes, alert(49));
    assert!(backend.is_untouched());
}

#[test]
fn access_check_warns_of_a_list_that_only_reports() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    let said = |rules: &str| {
        let services = service(HOST, &[&format!("access: {rules}")], &[]);
        fs::write(&file, format!("listeners: [{{ address: \"127.0.0.1:0\" }}]\nservices:\n{services}"))
            .unwrap();
        let checked = run_to_end(&["check", "--config", file.to_str().unwrap()]);
        assert!(checked.status.success());
        String::from_utf8_lossy(&checked.stderr).into_owned()
    };
    let warning = said("{ allow: [{ sources: [10.0.0.0/8], dry_run: true }] }");
    assert!(warning.contains("services[0].access.allow: has dry-run rules alone"), "{warning}");
    assert_eq!(said("{ allow: [] }"), "");
    assert_eq!(said("{ allow: [{ sources: [10.0.0.0/8], dry_run: true }, { ports: [443] }] }"), "");
}

#[test]
fn access_audit_log_has_a_line_for_each_decision() {
    let domains = Domains::new();
    for (domain, name) in [("east", "app"), ("east", "other"), ("north", "app")] {
        domains.issue(domain, name);
    }
    let (audit, backend) = (Audit::new(), Endpoint::new());
    let files = domains.issue("east", "server").replace(", key", "\n  key");
    let rules = format!(
        "access: {{ allow: [{{ name: apps, identities: [{0}] }}], deny: [{{ name: soon, identities: [{0}], dry_run: true }}] }}",
        id("east", "app")
    );
    let services = service(HOST, &["tls: terminate", &files, &rules], &[backend.address()]);
    let east = Setup::new(services).with(&domains.trust_yaml()).with(&audit.yaml()).start();
    for (domain, name, reason) in
        [("east", "app", ""), ("east", "other", "identity_denied"), ("north", "app", "tls_failed")]
    {
        let mut tls = connect_to(&domains.client(domain, name), HOST, east.address());
        let source = tls.sock.local_addr().unwrap().to_string();
        let _refused =
            tls.write_all(b"hello").and_then(|()| if reason.is_empty() { Ok(0) } else { tls.read(&mut [0]) });
        let line = audit.wait("the decision", |line| line.text("source") == source);
        assert_eq!(line.reason(), reason, "{line:?}");
        let expected = if reason.is_empty() { "allowed" } else { "denied" };
        assert_eq!((line.text("verdict"), line.text("service")), (expected, HOST), "{line:?}");
        if reason != "tls_failed" {
            assert_eq!(line.text("caller"), id(domain, name), "{line:?}");
        }
        if reason.is_empty() {
            assert_eq!(line.0["rule"], serde_json::json!({ "scope": "service", "name": "apps" }));
            assert_eq!(line.0["dry_run"][0]["verdict"], "denied");
            assert_eq!(line.0["dry_run"][0]["name"], "soon");
        }
        assert!(line.number("port") == 443 && line.number("connection") > 0);
    }

    // Both identities where the gateway originates, and the far side's refusal.
    let (audit, app) = (Audit::new(), id("east", "app"));
    for (caller, is_allowed) in [("app", true), ("other", false)] {
        let west = domains.originating(caller, &[east.address()]).with(&audit.yaml()).start();
        let mut client = dial(west.address());
        client.write_all(b"hello").unwrap();
        let source = client.local_addr().unwrap().to_string();
        let line = audit.wait("the server", |line| line.text("source") == source);
        assert_eq!(line.text("server"), id("east", "server"), "{line:?}");
        if is_allowed {
            assert_eq!((line.text("verdict"), line.text("caller")), ("allowed", app.as_str()));
        } else {
            let line = audit.wait("the refusal", |line| {
                line.text("source") == source && line.text("verdict") == "denied"
            });
            assert_eq!(line.reason(), "identity_denied", "{line:?}");
            assert!(line.text("cause").contains("AccessDenied"), "{line:?}");
        }
    }
}
