//! Tests the gateway's identity and trust: loaded at start, followed, shown with their expiries; an invalid file is
//! reported and changes nothing else.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic anywhere")]

#[expect(dead_code, reason = "this test needs only part of what the others share")]
mod common;

use std::fs;
use std::path::Path;

use common::{World, until};
use isthmus_certs::causes::with_causes;
use isthmus_certs::home::{Home, LeafRecord, Plan};
use isthmus_certs::{KeyKind, Leaf, SpiffeId, TrustDomain, pem};
use isthmus_core::admin::status::status;
use isthmus_core::config;
use isthmus_core::gateway::{Error, Gateway};
use isthmus_core::metrics::collect;
use serde_json::Value;
use tempfile::TempDir;

const LEAF: &str = "leaves/gw/tls.crt";
const KEY: &str = "leaves/gw/tls.key";

fn gateway_leaf() -> LeafRecord {
    let east = TrustDomain::new("east.example").unwrap();
    LeafRecord {
        leaf: Leaf {
            id: SpiffeId::gateway(&east, "east", "gw-1").unwrap(),
            dns: Vec::new(),
            ips: Vec::new(),
            lifetime: std::time::Duration::from_secs(3600),
        },
        key: KeyKind::P256,
        cluster: None,
        folder: None,
    }
}

fn authority() -> (TempDir, Home) {
    let directory = tempfile::tempdir().unwrap();
    let plan = Plan::new(TrustDomain::new("east.example").unwrap());
    let mut home = Home::create(directory.path(), &plan).unwrap();
    home.keep("gw", gateway_leaf()).unwrap();
    (directory, home)
}

fn start(directory: &Path) -> Result<Gateway, Error> {
    let at = |name: &str| directory.join(name).display().to_string();
    let file = format!(
        "workers: 1
listeners: [{{ address: '127.0.0.1:0' }}]
admin: {{ address: '127.0.0.1:0' }}
metrics: {{ address: '127.0.0.1:0' }}
health: {{ address: '127.0.0.1:0' }}
access_log: {{ enabled: false }}
trust: {{ certificate: '{}', key: '{}', bundles: '{}' }}
",
        at(LEAF),
        at(KEY),
        at("bundles")
    );
    Gateway::start(config::parse(&file, Path::new("test.yaml")).unwrap(), None)
}

fn trust(world: &World) -> Value {
    serde_json::to_value(status(world.gateway().control()).trust).unwrap()
}

fn metric<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.starts_with(start)).collect()
}

#[test]
fn trust_shows_expiries_and_follows_new_leaf() {
    let (directory, mut home) = authority();
    let world = World::around(start(directory.path()).unwrap());
    let shown = trust(&world);
    assert_eq!(shown["identity"], "spiffe://east.example/isthmus/east/gateway/gw-1");
    assert_eq!(shown["certificates"].as_array().unwrap().len(), 2, "{shown}");
    let text = collect::text(world.gateway().control());
    let ends = metric(&text, "isthmus_certificate_expiry_seconds{");
    assert_eq!(ends.len(), 2, "{text}");
    let leaf = ends.iter().find(|line| line.contains("kind=\"leaf\"")).unwrap();
    let left: f64 = leaf.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((0.0..=3600.0).contains(&left), "{leaf}");
    assert_eq!(metric(&text, "isthmus_trust_refused"), ["isthmus_trust_refused 0"]);
    assert!(!format!("{shown}").contains("PRIVATE"), "the page contains a key");

    let serial = shown["certificates"][0]["serial"].clone();
    home.keep("gw", gateway_leaf()).unwrap();
    until("the new leaf is in use", || trust(&world)["certificates"][0]["serial"] != serial);
}

#[test]
fn trust_refuses_bad_file_and_keeps_previous() {
    let (directory, _home) = authority();
    let world = World::around(start(directory.path()).unwrap());
    let before = trust(&world);
    let key = fs::read(directory.path().join(KEY)).unwrap();
    fs::write(directory.path().join(KEY), "no key").unwrap();
    until("it is refused", || !trust(&world)["refused"].as_array().unwrap().is_empty());
    let now = trust(&world);
    assert!(now["refused"][0].as_str().unwrap().contains(KEY), "{now}");
    assert_eq!(now["certificates"], before["certificates"]);
    let text = collect::text(world.gateway().control());
    assert_eq!(metric(&text, "isthmus_trust_refused"), ["isthmus_trust_refused 1"]);
    fs::write(directory.path().join(KEY), key).unwrap();
    until("the refusal is cleared", || trust(&world)["refused"].as_array().unwrap().is_empty());
}

#[test]
fn trust_without_own_bundle_fails_start() {
    let (directory, _home) = authority();
    fs::remove_file(directory.path().join("bundles/east.example.json")).unwrap();
    let error = start(directory.path()).unwrap_err().to_string();
    assert!(error.contains("tls.crt") && error.contains("add the bundle of east.example"), "{error}");
}

/// Returns the start error as the program prints it.
fn said(directory: &Path) -> String {
    with_causes(&start(directory).unwrap_err())
}

#[test]
fn trust_error_names_file_and_format_once() {
    let (directory, _home) = authority();
    let at = |name: &str| directory.path().join(name);
    let [key, chain] = [KEY, LEAF].map(|name| fs::read(at(name)).unwrap());
    let der = pem::key(&key).unwrap().secret_der().to_vec();
    let encrypted = String::from_utf8(key.clone()).unwrap().replace(" PRIVATE", " ENCRYPTED PRIVATE");
    let cut = chain.trim_ascii_end().strip_suffix(b"-----END CERTIFICATE-----").unwrap().to_vec();
    for (file, content, words) in [
        (KEY, b"x".to_vec(), "there is no private key in it"),
        (KEY, der, "it is DER, not PEM; convert it: `openssl pkey -inform DER"),
        (KEY, encrypted.into_bytes(), "the private key is encrypted"),
        (LEAF, cut, "has no END line"),
        (LEAF, b"x".to_vec(), "there is no certificate in it"),
    ] {
        let good = fs::read(at(file)).unwrap();
        fs::write(at(file), content).unwrap();
        let said = said(directory.path());
        assert_eq!((said.matches(words).count(), said.matches(file).count()), (1, 1), "{said}");
        assert!(!said.contains("[4") && !said.contains("[6"), "the error prints bytes as numbers: {said}");
        fs::write(at(file), good).unwrap();
    }
    for (file, content) in [(KEY, &key), (LEAF, &chain)] {
        fs::write(at(file), [b"Soci\xe9t\xe9\n", &content[..]].concat()).unwrap();
    }
    World::around(start(directory.path()).unwrap());
}
