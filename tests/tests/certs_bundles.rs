//! `isthmus-certs bundle` and `deny`: trusted domains, deny-lists, and protection against old and forged
//! ones.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use isthmus_tests::certs::{Sites, id, serial, snapshot, wrong};
use serde_json::{Value, json};

#[test]
fn bundle_export_add_show_and_remove_work() {
    let sites = Sites::new();
    for site in ["east", "west"] {
        sites.found(site);
    }
    let made = "bundle make west/roots/1/root-cert.pem --trust-domain west.example --sequence 7";
    let document: Value = serde_json::from_str(&sites.done("", made)).unwrap();
    assert_eq!((&document["spiffe_sequence"], &document["keys"][0]["use"]), (&json!(7), &json!("x509-svid")));
    assert_eq!(
        (&document["keys"][0]["kty"], document["keys"][0]["x5c"].as_array().unwrap().len()),
        (&json!("EC"), 1)
    );
    let text = sites.done("", &format!("{made} --out west.json"));
    assert_eq!(text, "wrote the bundle to west.json\n");
    let added = sites.json("east", "bundle add west.json --trust-domain west.example");
    assert_eq!((&added["trust_domain"], &added["sequence"]), (&json!("west.example"), &json!(7)));
    let text = sites.done("east", "bundle add west.json --trust-domain west.example");
    assert_eq!(
        text, "trusts 1 root(s) of west.example, sequence 7\n",
        "repeating the command changes nothing"
    );

    let both = sites.json("east", "bundle");
    let domains: Vec<&Value> =
        both["bundles"].as_array().unwrap().iter().map(|one| &one["trust_domain"]).collect();
    assert_eq!(domains, ["east.example", "west.example"], "own domain first");
    let text = sites.done("east", "bundle");
    assert!(text.contains("TRUST DOMAIN") && text.contains("west.example  7"), "{text}");
    let one = sites.json("east", "bundle --trust-domain west.example");
    assert_eq!(one["bundles"].as_array().unwrap().len(), 1);
    assert_eq!(
        sites.done("east", "bundle --for pem --trust-domain west.example"),
        sites.read("west/roots/1/root-cert.pem")
    );
    assert_eq!(sites.done("east", "bundle --for pem"), sites.read("east/roots/1/root-cert.pem"));
    let spiffe = sites.json("east", "bundle --for spiffe --trust-domain west.example");
    assert_eq!((&spiffe["spiffe_sequence"], &spiffe["keys"]), (&json!(7), &document["keys"]));

    let removed = sites.json("east", "bundle remove --trust-domain west.example");
    assert_eq!(removed, json!({ "removed": "west.example" }));
    let again = sites.refused("east", "bundle remove --trust-domain west.example");
    assert!(again.contains("no bundle of west.example"), "{again}");
    let text = {
        sites.done("east", "bundle add west/roots/1/root-cert.pem --trust-domain west.example");
        sites.done("east", "bundle remove --trust-domain west.example")
    };
    assert_eq!(text, "no longer trusts west.example\n");
}

#[test]
fn bundle_sequence_rises_and_older_bundle_is_refused() {
    let sites = Sites::federated();
    let sequence = || sites.json("east", "bundle --for spiffe")["spiffe_sequence"].as_u64().unwrap();
    let first = sequence();
    sites.done("east", "rotate");
    assert_eq!(sequence(), first, "nothing changed");
    sites.done("east", "rotate --root");
    assert!(sequence() > first, "a new root raises the sequence");

    let make =
        "bundle make west/roots/1/root-cert.pem --trust-domain west.example --out made.json --sequence";
    sites.done("", &format!("{make} 99999999999"));
    sites.done("east", "bundle add made.json --trust-domain west.example");
    sites.done("", &format!("{make} 99999999998"));
    let before = snapshot(&sites.path("east"));
    let why = sites.refused("east", "bundle add made.json --trust-domain west.example");
    assert!(why.contains("99999999998") && why.contains("99999999999 is here"), "{why}");
    assert!(why.contains("`bundle remove`"), "{why}");
    let pem = sites.refused("east", "bundle add west/roots/1/root-cert.pem --trust-domain west.example");
    assert!(pem.contains("sequence 0"), "a PEM file has sequence 0, the oldest: {pem}");
    assert!(snapshot(&sites.path("east")) == before, "a file has changed");
}

#[test]
fn bundle_of_own_or_wrong_domain_is_refused() {
    let sites = Sites::federated();
    sites.done("east", "bundle --for spiffe --out own.json");
    for words in
        ["bundle add own.json --trust-domain east.example", "bundle remove --trust-domain east.example"]
    {
        let why = sites.refused("east", words);
        assert!(why.contains("east.example is this authority's own domain"), "{why}");
    }
    let before = snapshot(&sites.path("east"));
    for file in ["west.json", "west/roots/1/root-cert.pem"] {
        let why = sites.refused("east", &format!("bundle add {file} --trust-domain north.example"));
        assert!(
            why.contains(&format!("{file}: ")) && why.contains("says that it is of spiffe://west.example"),
            "{why}"
        );
    }
    let leaf = sites.refused("east", "bundle add west/leaves/direct/tls.crt --trust-domain west.example");
    assert!(
        leaf.contains("west/leaves/direct/tls.crt: ") && leaf.contains("give the root, not a leaf"),
        "{leaf}"
    );
    let made = sites.refused("", "bundle make west/roots/1/root-cert.pem --trust-domain north.example");
    assert!(made.contains("says that it is of spiffe://west.example"), "{made}");
    for (name, text, what) in [
        ("empty.json", "", "no certificate"),
        ("half.json", "{\"keys\": [", "not a SPIFFE bundle"),
        ("none.json", "{\"keys\": []}", "no X.509 authority"),
        ("key.pem", &*sites.read("west/roots/1/root-key.pem"), "no certificate"),
        ("noise.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
    ] {
        sites.write(name, text);
        let why = sites.refused("east", &format!("bundle add {name} --trust-domain north.example"));
        assert!(why.contains(&format!("{name}: ")) && why.contains(what), "{why}");
    }
    assert!(snapshot(&sites.path("east")) == before, "a file has changed");
}

// ---- deny-lists

#[test]
fn deny_refuses_identities_outside_the_domain() {
    let sites = Sites::federated();
    for (words, expected) in [
        (id("west", "below"), "only its own domain can deny it"),
        ("spiffe://west.example/*".to_owned(), "only its own domain can deny it"),
        ("west/leaves/below/tls.crt".to_owned(), "is not of east.example"),
        ("spiffe://east.example".to_owned(), "write spiffe://east.example/*"),
        ("east/roots/1/root-cert.pem".to_owned(), "this is a root certificate"),
    ] {
        let why = sites.refused("east", &format!("deny add {words}"));
        assert!(why.contains(expected), "{words}: {why}");
    }
    assert!(!sites.path("east/deny/east.example.json").exists());
}

#[test]
fn deny_adds_and_removes_identities_and_serial_numbers() {
    let sites = Sites::federated();
    let leaf = "east/leaves/below/tls.crt";
    let number = serial(&sites, leaf);
    let mut last = 0;
    let mut rises = |list: &Value| {
        let sequence = list["sequence"].as_u64().unwrap();
        assert!(sequence > last, "{list}");
        last = sequence;
    };
    let list = sites.json("east", &format!("deny add {} {leaf}", id("east", "gone")));
    assert_eq!(list["identities"], json!([id("east", "gone")]));
    assert_eq!(list["serials"][0]["serial"], json!(number));
    let ends = sites.json("", &format!("inspect {leaf}"))["chain"][0]["not_after"].clone();
    assert_eq!(list["serials"][0]["until"], ends, "the entry ends with the certificate");
    rises(&list);
    let list = sites.json("east", "deny add spiffe://east.example/ns/bad/* 4F:1B");
    assert_eq!(list["serials"].as_array().unwrap().len(), 2);
    assert!(list["serials"].to_string().contains("4f1b"), "not in the form of inspect: {list}");
    rises(&list);
    wrong(&sites, leaf, "--deny east/deny", "denied");
    sites.done("east", "issue --spiffe spiffe://east.example/ns/bad/sa/x --name bad");
    wrong(&sites, "east/leaves/bad/tls.crt", "--deny east/deny", "denied");
    let text = sites.done("east", "deny");
    for shown in
        ["spiffe://east.example/ns/bad/*", &*id("east", "gone"), &*format!("serial {number}"), "serial 4f1b"]
    {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    let lists = sites.json("east", "deny --trust-domain east.example");
    assert_eq!((lists["lists"].as_array().unwrap().len(), &lists["lists"][0]), (1, &list));

    let renewed = sites.json("east", "rotate");
    assert!(
        renewed["done"].to_string().contains("\"leaf\":\"below\""),
        "a denied serial is replaced: {renewed}"
    );
    assert_ne!(serial(&sites, leaf), number);
    assert_eq!(
        sites.json("", &format!("verify {leaf} --bundles east/bundles --deny east/deny"))["believed"],
        true
    );

    let text = sites.done("east", "deny remove 4f1b spiffe://east.example/ns/bad/*");
    assert!(text.contains("1 identities and 1 serial numbers"), "{text}");
    let before = snapshot(&sites.path("east/deny"));
    let why = sites.refused("east", "deny remove 4f1b");
    assert!(why.contains("not on the deny-list: 4f1b"), "{why}");
    assert!(snapshot(&sites.path("east/deny")) == before);
}

#[test]
fn federated_deny_list_is_accepted_if_signed_by_its_domain_and_not_older() {
    let sites = Sites::federated();
    sites.done("west", &format!("deny add {}", id("west", "below")));
    sites.write("first.json", sites.read("west/deny/west.example.json"));
    sites.done("west", "deny add 0a0b");
    sites.write("second.json", sites.read("west/deny/west.example.json"));
    let take = |file: &str| format!("deny take {file} --trust-domain west.example");
    assert_eq!(sites.json("", "verify west/leaves/below/tls.crt --bundles east/bundles")["believed"], true);
    sites.done("east", &take("first.json"));
    wrong(&sites, "west/leaves/below/tls.crt", "--deny east/deny", "denied");
    let list = sites.json("east", &take("second.json"));
    assert_eq!(
        (&list["identities"], &list["serials"][0]["serial"]),
        (&json!([id("west", "below")]), &json!("0a0b"))
    );

    let before = snapshot(&sites.path("east"));
    let old = sites.refused("east", &take("first.json"));
    assert!(old.contains("an old list never replaces a newer one"), "{old}");
    sites.done("east", "deny add 0c");
    sites.write("ours.json", sites.read("east/deny/east.example.json"));
    let forged = sites.refused("east", &take("ours.json"));
    assert!(forged.contains("not signed by an authority of its bundle"), "{forged}");
    let altered = sites.read("second.json").replacen("\"payload\": \"ey", "\"payload\": \"eZ", 1);
    assert_ne!(altered, sites.read("second.json"));
    sites.write("altered.json", altered);
    let forged = sites.refused("east", &take("altered.json"));
    assert!(forged.contains("not signed by an authority of its bundle"), "{forged}");
    sites.write("noise.json", "{\"payloadType\": 1");
    let noise = sites.refused("east", &take("noise.json"));
    assert!(noise.contains("deny-list cannot be read"), "{noise}");
    let own = sites.refused("east", "deny take ours.json --trust-domain east.example");
    assert!(own.contains("own domain"), "{own}");
    let unknown = sites.refused("east", "deny take second.json --trust-domain north.example");
    assert!(unknown.contains("no bundle of north.example"), "{unknown}");
    let list = sites.path("east/deny/west.example.json");
    assert_eq!(snapshot(&sites.path("east"))[&list], before[&list], "the newer list was replaced");
}

#[test]
fn removed_domain_leaves_no_file_that_breaks_verification() {
    let sites = Sites::federated();
    sites.done("west", "deny add 0a");
    sites.done("east", "deny take west/deny/west.example.json --trust-domain west.example");
    sites.done("east", "bundle remove --trust-domain west.example");
    let own = sites.json("", "verify east/leaves/below/tls.crt --bundles east/bundles --deny east/deny");
    assert_eq!(own["believed"], true);
}

#[test]
fn pem_bundle_trusts_every_root_or_error_names_file() {
    let sites = Sites::new();
    let [one, two] = ["one", "two"].map(|site| {
        sites.done("", &format!("init --trust-domain west.example --out {site}"));
        sites.read(&format!("{site}/roots/1/root-cert.pem"))
    });
    let of = "--trust-domain west.example";
    let roots = |files: &str| {
        let made: Value =
            serde_json::from_str(&sites.done("", &format!("bundle make {files} {of}"))).unwrap();
        made["keys"].as_array().unwrap().len()
    };
    let cut = one.trim_end();
    sites.write("one.pem", cut);
    sites.write("two.pem", &two);
    assert_eq!(roots("one.pem two.pem"), 2, "the first has no final newline");
    let indented: String = one.lines().map(|line| format!("  {line}\n")).collect();
    let old = one.replace(" CERTIFICATE", " X509 CERTIFICATE");
    for text in [format!("{cut}{two}"), format!("\u{feff}{one}{two}"), indented + &two, old + &two] {
        sites.write("joined.pem", &text);
        assert_eq!(roots("joined.pem"), 2, "{text}");
    }
    sites.write("latin1.pem", [b"Soci\xe9t\xe9\n", two.as_bytes()].concat());
    assert_eq!(roots("one.pem latin1.pem"), 2);
    sites.write("trusted.pem", one.replace(" CERTIFICATE", " TRUSTED CERTIFICATE") + &two);
    for words in ["bundle make two.pem trusted.pem", "bundle add trusted.pem --dir one"] {
        let why = sites.refused("", &format!("{words} {of}"));
        assert!(why.contains("trusted.pem: line 1: TRUSTED CERTIFICATE"), "{why}");
    }
}
