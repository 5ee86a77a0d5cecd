//! `isthmus-certs` on damaged files and on text with terminal escapes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs::{self};
use std::process::Stdio;

use isthmus_tests::certs::{EAST, Sites, like_ours};
use isthmus_tests::skip;
use isthmus_tests::tls::{Peer, openssl};
use serde_json::{Value, json};

#[test]
fn damaged_state_file_is_named_and_left_alone() {
    let sites = Sites::federated();
    let good = sites.read("east/authority.json");
    let bad = [1, good.len() / 3, good.len() / 2, good.len() - 3].map(|end| good.as_bytes()[..end].to_vec());
    let noise =
        [b"".to_vec(), b"null".to_vec(), b"\xff\xfe\x00".to_vec(), good.replace("p256", "rsa").into_bytes()];
    for text in bad.into_iter().chain(noise) {
        sites.write("east/authority.json", &text);
        for words in [
            "status",
            "rotate",
            "issue --spiffe spiffe://east.example/x",
            "bundle",
            "deny add 0a",
            "intermediate --cluster x",
        ] {
            let why = sites.refused("east", words);
            assert!(why.starts_with("east/authority.json: "), "{words}: {why}");
        }
        let again = sites.refused("east", "init --trust-domain east.example");
        assert!(again.contains("already"), "{again}");
        assert_eq!(fs::read(sites.path("east/authority.json")).unwrap(), text, "the file was changed");
    }
    sites.write("east/authority.json", &good);
    assert_eq!(sites.json("east", "rotate")["done"], json!([]), "restored, all is well");
}

#[test]
fn damaged_file_is_named() {
    let sites = Sites::federated();
    let noise = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    for (file, text, words) in [
        ("east/bundles/west.example.json", "{", "bundle"),
        ("east/bundles/west.example.json", "{}", "verify east/leaves/below/tls.crt --bundles east/bundles"),
        ("east/roots/1/root-cert.pem", "none", "intermediate --cluster new"),
        ("east/roots/1/root-cert.pem", "none", "rotate"),
        ("east/roots/1/root-key.pem", "none", "intermediate --cluster new"),
        ("east/clusters/east/ca-key.pem", "none", "issue --spiffe spiffe://east.example/x"),
        ("east/clusters/east/ca-cert.pem", noise, "issue --spiffe spiffe://east.example/x"),
        ("chain.pem", "none", "inspect chain.pem"),
        ("chain.pem", "none", "verify chain.pem --bundles east/bundles"),
        ("chain.pem", "-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n", "inspect chain.pem"),
    ] {
        let good = fs::read(sites.path(file)).ok();
        sites.write(file, text);
        let why = sites.refused("east", words);
        let named = file.rsplit_once('/').map_or(file, |(folder, _)| folder);
        assert!(why.contains(named), "{words}: {why}");
        if let Some(good) = good {
            sites.write(file, good);
        }
    }
    sites.write("malformed.pem", noise);
    wrong_form(&sites, "malformed.pem");
    assert_eq!(sites.json("east", "rotate")["problems"], json!([]), "restored, all is well");
}

#[track_caller]
fn wrong_form(sites: &Sites, chain: &str) {
    let ran = sites.run("", &format!("verify {chain} --bundles east/bundles --json"));
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["reason"], "malformed", "{ran:?}");
}

#[test]
fn unreadable_certificate_error_names_its_file() {
    let sites = Sites::new();
    sites.write("chain.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
    let why = sites.refused("", "inspect chain.pem");
    assert!(why.starts_with("chain.pem: "), "{why}");
}

/// Terminal escapes for every shown field: colour, bell and backspace.
const ESCAPES: &str = "\u{1b}[31mred\u{7}\u{8}";

/// Creates a root with terminal escapes in its names.
fn evil(sites: &Sites) {
    let request =
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout evil.key -out evil.pem -days 1";
    let names = format!(
        "-subj /CN=a{ESCAPES}/O=b{ESCAPES} -addext subjectAltName=URI:spiffe://c{ESCAPES},DNS:d{ESCAPES}"
    );
    let _made = sites.openssl(&format!("{request} {names}")).done();
}

#[track_caller]
fn assert_harmless(sites: &Sites, words: &str) {
    let ran = sites.run("east", words);
    for text in [&ran.out, &ran.err] {
        let raw: String = text.chars().filter(|c| c.is_control() && *c != '\n').collect();
        assert!(raw.is_empty(), "{words}: {:?}", text);
    }
    assert!(!(ran.out + &ran.err).is_empty());
}

#[test]
fn certificate_text_is_escaped_for_the_terminal() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    evil(&sites);
    let seen = sites.json("", "inspect evil.pem");
    let subject = seen["chain"][0]["subject"].as_str().unwrap();
    assert!(subject.contains("\\u{1b}[31mred\\u{7}"), "the escaped subject is missing: {seen}");
    sites.forge("leaf", EAST, &like_ours(&format!("spiffe://east.example/{ESCAPES}")));
    sites.write("leaf.pem", sites.read("leaf.crt") + &sites.read(EAST[0]));
    for json in ["", "--json"] {
        for words in [
            "inspect evil.pem",
            "verify evil.pem --bundles east/bundles",
            "inspect leaf.pem --bundles east/bundles",
            "verify leaf.pem --bundles east/bundles",
            "deny add evil.pem",
        ] {
            assert_harmless(&sites, &format!("{words} {json}"));
        }
    }
    let own = "-cert evil.pem -key evil.key";
    let words = format!("--pdeathsig=KILL openssl s_server -accept 127.0.0.1:0 -rev {own}");
    let mut server = Peer::start(sites.other("setpriv", &words).stderr(Stdio::null()));
    let address = server.find("ACCEPT ");
    assert_harmless(&sites, &format!("inspect {address} --sni web.example"));
}

#[test]
fn root_text_in_errors_is_escaped_for_the_terminal() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    evil(&sites);
    assert_harmless(&sites, "bundle add evil.pem --trust-domain north.example");
    assert_harmless(&sites, "bundle make evil.pem --trust-domain north.example");
    sites.write("east/bundles/north.example.pem", sites.read("evil.pem"));
    assert_harmless(&sites, "verify east/leaves/below/tls.crt --bundles east/bundles");
}
