//! Rules as files write them; mistakes that would admit somebody are refused.

use std::path::Path;

use super::*;
use crate::services::{self, ClientCertificate, Service, ServiceTimeouts, Table, TlsMode};
use crate::yaml;

const CERTIFICATE: &str = "  certificate: c\n  key: k\n";

fn service(keys: &str) -> Result<Service, String> {
    #[derive(Default, serde::Deserialize)]
    struct File {
        services: Vec<At<services::raw::Service>>,
    }
    let text = format!("services:\n- host: a.example\n{keys}");
    let mut report = Report::new(Path::new("r.yaml"));
    let service = yaml::read::<File>(&text, &mut report).and_then(|file| {
        let table = Table::new(&mut report, &file.services, &ServiceTimeouts::default(), |_| None);
        table.into_services().next()
    });
    report.finish(service).map_err(|problems| problems.to_string())
}

fn written(access: &str) -> AccessRules {
    let service = service(&format!("  tls: terminate\n  access: {access}\n{CERTIFICATE}"));
    service.unwrap_or_else(|problems| panic!("{problems}")).access().unwrap().clone()
}

/// The only problem of this `access:`.
#[track_caller]
fn problem(access: &str) -> String {
    let text = format!("  tls: terminate\n  access: {access}\n{CERTIFICATE}");
    let problems = service(&text).expect_err("it is wrong");
    assert_eq!(problems.lines().count(), 1, "{problems}");
    problems
}

fn patterns(texts: &[&str]) -> Callers {
    Callers::Identities(texts.iter().map(|text| IdPattern::parse(text).unwrap()).collect())
}

#[test]
fn access_reads_every_key() {
    let rules = written(
        "{allow: [{name: Cart, identities: ['spiffe://east.example/ns/shop/sa/cart', 'spiffe://west.example/ns/*'], \
         sources: [10.0.0.0/8, '::ffff:192.0.2.1'], ports: [3306], dry_run: true}, {namespaces: [shop]}], \
         deny: [{namespaces: [a, b], trust_domains: [east.example]}, {trust_domains: [north.example]}], \
         mode: workspace, advisory: true}",
    );
    let rule = |name: &str, callers| RuleSettings {
        name: name.to_owned(),
        callers,
        sources: Vec::new(),
        ports: Vec::new(),
        dry_run: false,
    };
    let cart = RuleSettings {
        sources: vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.1/32".parse().unwrap()],
        ports: vec![3306],
        dry_run: true,
        ..rule("cart", patterns(&["spiffe://east.example/ns/shop/sa/cart", "spiffe://west.example/ns/*"]))
    };
    let shop = rule("allow[1]", Callers::OwnNamespaces(vec!["shop".to_owned()]));
    let namespaces = patterns(&["spiffe://east.example/ns/a/*", "spiffe://east.example/ns/b/*"]);
    let domain = rule("deny[1]", patterns(&["spiffe://north.example/*"]));
    assert_eq!(rules.allow, Some(vec![cart, shop]));
    assert_eq!(rules.deny, [rule("deny[0]", namespaces), domain]);
    assert!(rules.workspace && rules.advisory);
}

#[test]
fn access_rule_may_be_one_id() {
    let id = "spiffe://east.example/ns/shop/sa/cart";
    for list in [format!("[{id}]"), format!("['{id}']"), format!("[{{identities: [{id}]}}]")] {
        let rules = written(&format!("{{allow: {list}}}")).allow.unwrap();
        assert_eq!(rules[0].callers, patterns(&[id]), "{list}");
        assert_eq!((rules.len(), rules[0].name.as_str()), (1, "allow[0]"));
    }
    for wrong in ["spiffe://east.example/ns/*", "spiffe://east.example", "cart", "''"] {
        let problem = problem(&format!("{{deny: [{id}, {wrong}]}}"));
        assert!(problem.starts_with("r.yaml:4:"), "{problem}");
        assert!(problem.contains("deny[1]") && problem.contains("is not the SPIFFE ID"), "{problem}");
    }
    for wrong in ["7", "true", "~", "[]"] {
        let problem = problem(&format!("{{deny: [{wrong}]}}"));
        assert!(problem.contains("access.deny[0]"), "{problem}");
    }
    assert!(problem(&format!("{{deny: [{id}, {id}]}}")).contains("is the same rule as deny[0]"));
}

#[test]
fn access_without_a_list_is_not_an_empty_list() {
    assert_eq!(service("").unwrap().access(), None);
    assert_eq!(written("{}"), AccessRules::default());
    assert_eq!(written("{allow: []}").allow, Some(Vec::new()));
}

/// `allow:` alone could be meant as everybody or nobody; so could a condition.
#[test]
fn access_key_without_a_value_is_refused_with_its_place() {
    for (keys, place, line) in [
        ("  access:", "access", 6),
        ("  access:\n    allow:", "access.allow", 7),
        ("  access:\n    allow: ~", "access.allow", 7),
        ("  access:\n    allow:\n    # - spiffe://east.example/a", "access.allow", 7),
        ("  access:\n    deny:", "access.deny", 7),
        ("  access:\n    mode:", "access.mode", 7),
        ("  access:\n    advisory: null", "access.advisory", 7),
        ("  access:\n    deny:\n    - sources:", "access.deny[0].sources", 8),
    ] {
        let problems = service(&format!("  tls: terminate\n{CERTIFICATE}{keys}\n")).expect_err(keys);
        let what =
            format!("services[0].{place}: no value; write one, or remove the key; an empty list is []");
        let is_placed = problems.starts_with(&format!("r.yaml:{line}:"));
        assert!(is_placed && problems.ends_with(&what), "{keys}: {problems}");
    }
}

#[test]
fn access_unknown_key_is_refused_with_its_place() {
    assert_eq!(
        problem("{deny: [{identites: ['spiffe://east.example/x']}]}"),
        "r.yaml:4:20: unknown key 'identites' in services[0].access.deny[0]; did you mean 'identities'?"
    );
    assert!(problem("{alow: []}").contains("did you mean 'allow'?"));
    assert!(problem("{deny: [], deny: []}").contains("duplicate key 'deny'"));
    assert!(problem("{mode: workspaces}").contains("did you mean 'workspace'?"));
}

#[test]
fn access_rule_that_says_too_little_is_refused() {
    for (access, what) in [
        ("{allow: [{}]}", "services[0].access.allow[0]: has no condition; add identities"),
        ("{deny: [{dry_run: true}]}", "services[0].access.deny[0]: has no condition; add identities"),
        ("{deny: [{sources: []}]}", "deny[0].sources: an empty list matches nobody; add a value"),
        ("{allow: [{ports: [1], identities: []}]}", "allow[0].identities: an empty list matches nobody"),
    ] {
        let problem = problem(access);
        assert!(problem.starts_with("r.yaml:4:") && problem.contains(what), "{problem}");
    }
}

#[test]
fn access_wrong_values_are_refused_each_with_a_remedy() {
    for (rule, what) in [
        (
            "{identities: ['spiffe://east.example']}",
            "'spiffe://east.example' is not a SPIFFE ID or pattern; write spiffe://",
        ),
        ("{identities: ['spiffe://east.example/n*']}", "is not a SPIFFE ID or pattern"),
        ("{identities: ['*']}", "is not a SPIFFE ID or pattern"),
        ("{trust_domains: ['spiffe://east.example']}", "is not a trust domain; write the bare name"),
        ("{namespaces: ['a/b']}", "is not one DNS label"),
        ("{sources: [10.1.2.3/8]}", "has bits set after its prefix"),
        ("{ports: [0]}", "ports[0]: '0' is out of range"),
        ("{ports: [1, 1]}", "ports[1]: is listed twice; remove one of them"),
        ("{sources: [10.0.0.1, '::ffff:10.0.0.1']}", "sources[1]: is listed twice"),
        (
            "{identities: ['spiffe://a/b'], trust_domains: [a]}",
            "has identities beside namespaces or trust_domains",
        ),
    ] {
        let problem = problem(&format!("{{allow: [{rule}]}}"));
        assert!(problem.contains(what), "{problem}");
    }
}

#[test]
fn access_duplicate_rules_and_names_are_refused() {
    let same = "{ports: [1]}, {ports: [2]}, {name: x, ports: [1]}";
    assert!(problem(&format!("{{deny: [{same}]}}")).contains("deny[2]: is the same rule as deny[0]"));
    let named = "{allow: [{name: x, ports: [1]}], deny: [{name: X, ports: [1]}]}";
    assert!(problem(named).contains("access.deny[0].name: is the name of two rules"));
}

#[test]
fn access_rules_and_values_are_limited() {
    let list =
        |count: usize, one: &dyn Fn(usize) -> String| (1..=count).map(one).collect::<Vec<_>>().join(", ");
    let rules = |count| format!("{{deny: [{}]}}", list(count, &|port| format!("{{ports: [{port}]}}")));
    assert_eq!(written(&rules(MAX_RULES)).deny.len(), MAX_RULES);
    assert!(problem(&rules(MAX_RULES + 1)).contains("has 257 rules; the limit is 256"));
    let values = |count| format!("{{deny: [{{ports: [{}]}}]}}", list(count, &|port| port.to_string()));
    assert_eq!(written(&values(MAX_VALUES)).deny[0].ports.len(), MAX_VALUES);
    assert!(problem(&values(MAX_VALUES + 1)).contains("has 257 values; the limit is 256"));
    let (names, domains) = (list(64, &|name| format!("n{name}")), list(17, &|name| format!("d{name}")));
    let product = format!("{{deny: [{{namespaces: [{names}], trust_domains: [{domains}]}}]}}");
    assert!(problem(&product).contains("make 1088 patterns; the limit is 1024"));
}

#[test]
fn access_by_identity_needs_termination_or_the_word_advisory() {
    for rules in ["mode: workspace", "allow: [{namespaces: [shop]}]", "deny: [{trust_domains: [x]}]"] {
        let problems = service(&format!("  access: {{{rules}}}\n")).unwrap_err();
        assert!(problems.contains("which nobody sees where TLS passes through"), "{problems}");
        assert!(problems.contains("add 'tls: terminate'"), "{problems}");
        assert!(service(&format!("  access: {{{rules}, advisory: true}}\n")).is_ok());
        assert!(service(&format!("  tls: terminate\n{CERTIFICATE}  access: {{{rules}}}\n")).is_ok());
    }
    assert!(service("  access: {deny: [{sources: [10.0.0.0/8]}]}\n").is_ok());
}

#[test]
fn client_certificate_has_an_older_name() {
    let read = |keys: &str| service(keys).map(|service| service.client_certificate());
    assert_eq!(read(""), Ok(ClientCertificate::Probed));
    assert_eq!(read("  allow_unauthenticated: true\n"), Ok(ClientCertificate::None));
    assert_eq!(read("  allow_unauthenticated: false\n"), Ok(ClientCertificate::Probed));
    assert_eq!(read("  client_certificate: declared\n"), Ok(ClientCertificate::Declared));
    assert_eq!(read("  client_certificate: none\n"), Ok(ClientCertificate::None));
    assert_eq!(
        read("  client_certificate: none\n  allow_unauthenticated: true\n"),
        Ok(ClientCertificate::None)
    );
    let problem = read("  client_certificate: probed\n  allow_unauthenticated: true\n").unwrap_err();
    assert!(problem.starts_with("r.yaml:4:26: services[0]: client_certificate contradicts"), "{problem}");
    assert!(read("  client_certificate: nobody\n").unwrap_err().contains("unknown value 'nobody'"));
}

#[test]
fn service_identities_are_whole_ids() {
    let ids = "  identities: ['spiffe://east.example/ns/shop/sa/cart']\n";
    let read = service(&format!("  tls: terminate\n{CERTIFICATE}{ids}")).unwrap();
    assert_eq!((read.identities().len(), read.tls_mode()), (1, TlsMode::Terminate));
    let problem = service("  identities: ['spiffe://east.example/ns/*']\n").unwrap_err();
    assert!(problem.contains("services[0].identities[0]"), "{problem}");
    assert!(problem.contains("is not the SPIFFE ID of a workload; write spiffe://"), "{problem}");
}
