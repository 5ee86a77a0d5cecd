//! OpenSSL against `isthmus-certs`: verification of chains in files, both ends of live connections, and
//! requests signed by OpenSSL. All trust files are made by the command line.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::Write;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use isthmus_certs::{server_verifier, spiffe_bundle};
use isthmus_tests::certs::{Ran, Serving, Sites, ask, backwards, id, like_ours, only, why};
use isthmus_tests::skip;
use isthmus_tests::tls::{Peer, openssl};
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs::default_provider;

const VERSIONS: [&str; 2] = ["-tls1_2", "-tls1_3"];
const LINE: &str = "a line from one end to the other\n";

/// Writes `SITE-trust.pem`, the trust file of a site for OpenSSL programs.
fn trust_file(sites: &Sites, site: &str) -> String {
    let file = format!("{site}-trust.pem");
    sites.done(site, &format!("bundle --for openssl --out {file}"));
    file
}

/// OpenSSL's arguments to present a leaf, with its intermediate if there is one.
fn shows(site: &str, leaf: &str) -> String {
    let own = format!("-cert {site}/leaves/{leaf}/tls.crt -key {site}/leaves/{leaf}/tls.key");
    match leaf {
        "direct" => own,
        _ => format!("{own} -cert_chain {site}/clusters/{site}/ca-cert.pem"),
    }
}

/// An OpenSSL server that answers each line reversed.
fn s_server(sites: &Sites, words: &str) -> (Peer, SocketAddr) {
    let words = format!("--pdeathsig=KILL openssl s_server -accept 127.0.0.1:0 -rev {words}");
    let mut server = Peer::start(sites.other("setpriv", &words).stderr(Stdio::null()));
    let address = server.find("ACCEPT ").parse().unwrap();
    (server, address)
}

/// An OpenSSL client that sends the line and prints the answer.
fn s_client(sites: &Sites, to: SocketAddr, words: &str) -> Ran {
    let fixed = "--pdeathsig=KILL openssl s_client -quiet -servername web.example -verify_return_error";
    let mut command = sites.other("setpriv", &format!("{fixed} -connect {to} {words}"));
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut client = pipes.spawn().unwrap();
    // A refused client may exit before it reads this.
    let _sent = client.stdin.take().unwrap().write_all(LINE.as_bytes());
    let output = client.wait_with_output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    Ran { code: output.status.code(), out, err }
}

fn verifies(sites: &Sites, chain: &str, words: &str) -> Ran {
    sites.openssl(&format!("verify -x509_strict -untrusted {chain} {words} {chain}"))
}

/// OpenSSL's verification error.
#[track_caller]
fn objection(ran: Ran) -> String {
    assert_eq!(ran.code, Some(2), "{ran:?}");
    ran.err
}

#[test]
fn openssl_verifies_chains_of_2_and_3_with_every_kind_of_key() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::new();
    for kind in ["p256", "p384", "ed25519"] {
        sites.done(kind, &format!("init --trust-domain {kind}.example --key {kind}"));
        let names = format!("--key {kind} --dns web.example --dns *.web.example --ip 127.0.0.1 --ip ::1");
        for leaf in ["direct", "below"] {
            sites.done(kind, &format!("issue --spiffe {} --name {leaf} {names}", id(kind, leaf)));
            // Later leaves are signed by the intermediate.
            sites.done(kind, "intermediate --cluster only");
        }
        let roots = format!("-CAfile {kind}/roots/1/root-cert.pem");
        for leaf in ["direct", "below"] {
            let chain = format!("{kind}/leaves/{leaf}/tls.crt");
            let sent = sites.read(&chain).matches("BEGIN CERTIFICATE").count();
            assert_eq!(sent, if leaf == "direct" { 1 } else { 2 }, "the root is not sent");
            for purpose in ["sslserver", "sslclient"] {
                for name in [
                    "-verify_hostname web.example",
                    "-verify_hostname a.web.example",
                    "-verify_ip 127.0.0.1",
                    "-verify_ip ::1",
                ] {
                    let message =
                        verifies(&sites, &chain, &format!("{roots} -purpose {purpose} {name}")).done();
                    assert_eq!(message, format!("{chain}: OK\n"));
                }
            }
            for (wrong, why) in [
                ("-purpose timestampsign", "unsuitable certificate purpose"),
                ("-verify_hostname other.example", "hostname mismatch"),
                ("-verify_ip 127.0.0.2", "IP address mismatch"),
            ] {
                let message = objection(verifies(&sites, &chain, &format!("{roots} {wrong}")));
                assert!(message.contains(why), "{message}");
            }
        }
        let without = objection(sites.openssl(&format!("verify {roots} {kind}/leaves/below/tls.crt")));
        assert!(without.contains("unable to get local issuer certificate"), "{without}");
    }
}

#[test]
fn intermediate_is_readable_by_istio_and_cert_manager() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let folder = "east/clusters/east";
    let text = |file: &str| sites.openssl(&format!("x509 -noout -text -in {folder}/{file}")).done();
    for file in ["ca-cert.pem", "tls.crt"] {
        let message = text(file);
        assert!(message.contains("CA:TRUE, pathlen:0") && message.contains("Certificate Sign"), "{message}");
        assert!(!message.contains("Name Constraints"), "{message}");
        assert!(message.contains("URI:spiffe://east.example\n"), "{message}");
    }
    for file in ["root-cert.pem", "ca.crt"] {
        let message = text(file);
        assert!(message.contains("CA:TRUE, pathlen:") && !message.contains("Name Constraints"), "{message}");
    }
    let [chain, intermediate, root] = ["cert-chain.pem", "ca-cert.pem", "root-cert.pem"]
        .map(|file| sites.read(&format!("{folder}/{file}")));
    assert_eq!(chain, intermediate + &root);
    for (key, certificate) in [("ca-key.pem", "ca-cert.pem"), ("tls.key", "tls.crt")] {
        let of_key = sites.openssl(&format!("pkey -in {folder}/{key} -pubout")).done();
        let of_certificate = sites.openssl(&format!("x509 -in {folder}/{certificate} -noout -pubkey")).done();
        assert_eq!(of_key, of_certificate);
    }
    // Like Istio: verifies its own chain against its own root.
    let verified =
        sites.openssl(&format!("verify -x509_strict -CAfile {folder}/root-cert.pem {folder}/cert-chain.pem"));
    assert!(verified.done().ends_with("OK\n"));
}

#[test]
fn openssl_trust_file_separates_federated_domains() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let file = trust_file(&sites, "east");
    let message = sites.read(&file);
    for promise in ["east.example may vouch for anything", "own domain only", "Not protected", "DNS names"] {
        assert!(message.contains(promise), "missing in the output: {promise}");
    }
    for chain in ["east/leaves/direct", "east/leaves/below", "west/leaves/direct"] {
        for purpose in ["sslserver", "sslclient"] {
            let words = format!("-CAfile {file} -purpose {purpose}");
            let _ok = verifies(&sites, &format!("{chain}/tls.crt"), &words).done();
        }
    }
    sites.forge(
        "forged",
        ["west/roots/1/root-cert.pem", "west/roots/1/root-key.pem"],
        &like_ours(&id("east", "below")),
    );
    sites.forge(
        "honest",
        ["west/roots/1/root-cert.pem", "west/roots/1/root-key.pem"],
        &like_ours(&id("west", "below")),
    );
    let _ok = verifies(&sites, "honest.crt", &format!("-CAfile {file}")).done();
    let why = objection(verifies(&sites, "forged.crt", &format!("-CAfile {file}")));
    assert!(why.contains("permitted subtree violation"), "{why}");
    // The reason for the file: in a common pool of roots, west could sign for east.
    sites.write(
        "pool.pem",
        sites.read("east/roots/1/root-cert.pem") + &sites.read("west/roots/1/root-cert.pem"),
    );
    let _ok = verifies(&sites, "forged.crt", "-CAfile pool.pem").done();
}

/// The usual case: the federated leaf is signed by a cluster's intermediate.
#[test]
fn openssl_trust_file_accepts_federated_chains_of_3() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let file = trust_file(&sites, "east");
    let signer = ["west/clusters/west/ca-cert.pem", "west/clusters/west/ca-key.pem"];
    sites.forge("forged", signer, &like_ours(&id("east", "below")));
    sites.write("forged.crt", sites.read("forged.crt") + &sites.read("west/clusters/west/ca-cert.pem"));
    sites.write(
        "pool.pem",
        sites.read("east/roots/1/root-cert.pem") + &sites.read("west/roots/1/root-cert.pem"),
    );
    let _ok = verifies(&sites, "forged.crt", "-CAfile pool.pem").done();
    let why = objection(verifies(&sites, "forged.crt", &format!("-CAfile {file}")));
    assert!(why.contains("permitted subtree violation"), "{why}");
    for purpose in ["sslserver", "sslclient"] {
        let words = format!("-CAfile {file} -purpose {purpose}");
        let _ok = verifies(&sites, "west/leaves/below/tls.crt", &words).done();
    }
}

/// Trusting a domain's own roots does not imply trusting its federated domains, whatever a peer sends; and a
/// new trust file withdraws what an old one granted.
#[test]
fn openssl_trust_file_grants_trust_only_to_its_readers() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let file = trust_file(&sites, "east");
    sites.write("sent.pem", sites.read("west/clusters/west/ca-cert.pem") + &sites.read(&file));
    let leaf = "west/leaves/below/tls.crt";
    let _ok = verifies(&sites, leaf, &format!("-CAfile {file} -untrusted sent.pem")).done();
    let own = "east/leaves/below/ca.crt";
    let why = objection(verifies(&sites, leaf, &format!("-CAfile {own} -untrusted sent.pem")));
    assert!(why.contains("self-signed certificate in certificate chain"), "{why}");
    sites.done("east", "bundle remove --trust-domain west.example");
    sites.done("east", "bundle --for openssl --out later.pem");
    let _why = objection(verifies(&sites, leaf, "-CAfile later.pem -untrusted sent.pem"));
}

/// A rustls client and an OpenSSL server at these sites, with both TLS versions.
#[track_caller]
fn ours_to_openssl(sites: &Sites, [ours, theirs]: [(&str, &str); 2]) {
    let (site, leaf) = theirs;
    let trust = trust_file(sites, site);
    for version in VERSIONS {
        let words = format!(
            "{} -Verify 1 -verify_return_error -x509_strict -CAfile {trust} {version}",
            shows(site, leaf)
        );
        let (_server, address) = s_server(sites, &words);
        let config = sites.client(ours.0, ours.1, &id(site, leaf));
        let (who, answer) = ask(&config, address, "web.example", LINE).unwrap();
        assert_eq!((who, answer), (id(site, leaf), backwards(LINE)), "{ours:?} {theirs:?} {version}");
    }
}

/// An OpenSSL client and a rustls server.
#[track_caller]
fn openssl_to_ours(sites: &Sites, [theirs, ours]: [(&str, &str); 2]) {
    let (site, leaf) = theirs;
    let trust = trust_file(sites, site);
    let server = sites.serve(ours.0, ours.1, &id(site, leaf));
    for version in VERSIONS {
        let words = format!(
            "{} -x509_strict -verify_hostname web.example -CAfile {trust} {version}",
            shows(site, leaf)
        );
        let ran = s_client(sites, server.address, &words);
        assert_eq!(ran.out, backwards(LINE), "{theirs:?} {ours:?} {version}: {ran:?}");
        assert_eq!(server.next().unwrap(), (id(site, leaf), LINE.to_owned()));
    }
}

fn both_ways(pairs: &[[(&str, &str); 2]]) {
    let sites = Sites::federated();
    for pair in pairs {
        ours_to_openssl(&sites, *pair);
        openssl_to_ours(&sites, *pair);
    }
}

#[test]
fn openssl_and_rustls_talk_within_domain_in_chains_of_2_and_3() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let (direct, below) = (("east", "direct"), ("east", "below"));
    both_ways(&[[direct, direct], [direct, below], [below, direct], [below, below]]);
}

#[test]
fn openssl_and_rustls_talk_across_federated_domains_in_chains_of_2() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    both_ways(&[[("east", "direct"), ("west", "direct")], [("west", "direct"), ("east", "direct")]]);
}

#[test]
fn openssl_and_rustls_talk_across_federated_domains_in_chains_of_3() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    both_ways(&[[("east", "below"), ("west", "below")], [("west", "below"), ("east", "below")]]);
}

#[test]
fn openssl_and_rustls_refuse_each_others_wrong_identities() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let trust = trust_file(&sites, "east");
    for version in VERSIONS {
        let server =
            format!("{} -Verify 1 -verify_return_error -CAfile {trust} {version}", shows("east", "below"));
        let (_server, address) = s_server(&sites, &server);
        let message = why(&ask(&without_certificate(&sites), address, "web.example", LINE).unwrap_err());
        assert!(
            message.contains("CertificateRequired") || message.contains("HandshakeFailure"),
            "{version}: {message}"
        );
        let other = sites.client("east", "below", &id("east", "direct"));
        let message = why(&ask(&other, address, "web.example", LINE).unwrap_err());
        assert!(
            message.contains("which is not expected here") && message.contains("check the address"),
            "{message}"
        );

        let ours = sites.serve("east", "below", &id("east", "direct"));
        refused(&sites, &ours, &format!("-CAfile {trust} {version}"), "no certificate");
        let unexpected = format!("{} -CAfile {trust} {version}", shows("east", "below"));
        refused(&sites, &ours, &unexpected, "is not expected here");
        sites.forge(
            "forged",
            ["west/clusters/west/ca-cert.pem", "west/clusters/west/ca-key.pem"],
            &like_ours(&id("east", "direct")),
        );
        let forged = format!(
            "-cert forged.crt -key forged.key -cert_chain west/clusters/west/ca-cert.pem -CAfile {trust} {version}"
        );
        refused(&sites, &ours, &forged, "does not verify against the bundle of east.example");
        let fine =
            s_client(&sites, ours.address, &format!("{} -CAfile {trust} {version}", shows("east", "direct")));
        assert_eq!(fine.out, backwards(LINE), "the server refuses the expected client: {fine:?}");
        assert!(ours.next().is_ok());
    }
}

/// A client with east's trust and no certificate.
fn without_certificate(sites: &Sites) -> Arc<ClientConfig> {
    let bundles = Arc::new(sites.trust_files("east", "below").bundles_only().unwrap());
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().dangerous();
    let verifier = server_verifier(bundles, only(&id("east", "below")));
    Arc::new(builder.with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[track_caller]
fn refused(sites: &Sites, ours: &Serving, words: &str, why: &str) {
    let ran = s_client(sites, ours.address, words);
    assert_eq!(ran.out, "", "a refused client got an answer");
    assert!(ran.err.contains("alert"), "no alert: {ran:?}");
    // Only the server knows the reason; the line did not arrive.
    let message = ours.next().unwrap_err();
    assert!(message.contains(why), "{message}");
}

#[test]
fn openssl_csr_contributes_its_key_but_no_name() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    for (name, key) in [
        ("ec", "ec -pkeyopt ec_paramgen_curve:P-256"),
        ("p384", "ec -pkeyopt ec_paramgen_curve:P-384"),
        ("ed25519", "ed25519"),
        ("rsa2048", "rsa:2048"),
    ] {
        let wish = "subjectAltName=URI:spiffe://east.example/ns/admin/sa/root,URI:spiffe://west.example/x,\
                    DNS:admin.example,IP:10.0.0.1,email:root@admin.example";
        let request = format!("req -new -newkey {key} -nodes -subj /CN=admin.example/O=admin -addext {wish}");
        let _made = sites.openssl(&format!("{request} -keyout {name}.key -out {name}.csr")).done();
        let id = id("east", name);
        let issued =
            sites.json("east", &format!("issue --spiffe {id} --csr {name}.csr --out {name}.pem --ttl 1h"));
        assert_eq!(
            (issued["id"].as_str(), issued["file"].as_str()),
            (Some(&*id), Some(&*format!("{name}.pem")))
        );
        let names = sites.openssl(&format!("x509 -in {name}.pem -noout -subject -ext subjectAltName")).done();
        let names: Vec<&str> = names.lines().map(str::trim).collect();
        assert_eq!(names, ["subject=", "X509v3 Subject Alternative Name: critical", &format!("URI:{id}")]);
        let of = |words: String| sites.openssl(&words).done();
        assert_eq!(
            of(format!("pkey -in {name}.key -pubout")),
            of(format!("x509 -in {name}.pem -noout -pubkey"))
        );

        let chain = format!("-cert {name}.pem -key {name}.key -cert_chain east/clusters/east/ca-cert.pem");
        let trust = trust_file(&sites, "east");
        let (_server, address) =
            s_server(&sites, &format!("{chain} -Verify 1 -verify_return_error -CAfile {trust}"));
        let client = sites.client("west", "direct", &id);
        assert_eq!(ask(&client, address, "web.example", LINE).unwrap(), (id, backwards(LINE)), "{name}");
    }
    let with_dns =
        sites.done("east", &format!("issue --spiffe {} --csr ec.csr --dns web.example", id("east", "ec")));
    sites.write("dns.pem", with_dns);
    let names = sites.openssl("x509 -in dns.pem -noout -ext subjectAltName").done();
    assert!(names.ends_with(&format!("URI:{}, DNS:web.example\n", id("east", "ec"))), "{names}");
}

#[test]
fn csr_without_proof_or_of_another_domain_is_refused_with_reason() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let issue =
        |file: &str| sites.refused("east", &format!("issue --spiffe {} --csr {file}", id("east", "x")));
    let _made = sites
        .openssl("req -new -newkey ed25519 -nodes -subj /CN=x -outform DER -keyout a.key -out a.csr")
        .done();
    let mut altered = std::fs::read(sites.path("a.csr")).unwrap();
    *altered.last_mut().unwrap() ^= 1;
    sites.write("altered.csr", altered);
    let why = issue("altered.csr");
    assert!(why.starts_with("altered.csr: ") && why.contains("not signed by its own key"), "{why}");
    sites.write("text.csr", "no request\n");
    let why = issue("text.csr");
    assert!(why.starts_with("text.csr: ") && why.contains("CERTIFICATE REQUEST"), "{why}");
    let why = issue("absent.csr");
    assert!(why.starts_with("absent.csr: ") && why.contains("No such file"), "{why}");
    // Policy: an authority signs for its own domain only.
    let foreign = sites.refused("east", &format!("issue --spiffe {} --csr a.csr", id("west", "x")));
    assert!(
        foreign.contains("is not of trust domain east.example; ask the authority of west.example"),
        "{foreign}"
    );
    let domain = sites.refused("east", "issue --spiffe spiffe://east.example --csr a.csr");
    assert!(domain.contains("has no path"), "{domain}");
}

#[test]
fn csr_with_weak_or_unknown_key_error_lists_accepted_keys() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::new();
    sites.found("east");
    for (key, what) in [
        ("rsa:1024", "RSA of 1024 bits"),
        ("ec -pkeyopt ec_paramgen_curve:secp256k1", "the request's key is"),
    ] {
        let request = format!("req -new -newkey {key} -nodes -subj /CN=x -keyout weak.key -out weak.csr");
        let _made = sites.openssl(&request).done();
        let why = sites.refused("east", &format!("issue --spiffe {} --csr weak.csr", id("east", "x")));
        assert!(why.starts_with("weak.csr: ") && why.contains(what), "{why}");
        assert!(why.contains("use P-256, P-384, Ed25519, or RSA of at least 2048 bits"), "{why}");
    }
}

#[test]
fn openssl_reads_the_roots_of_a_bundle() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    sites.write("west.pem", sites.done("east", "bundle --for pem --trust-domain west.example"));
    let printed = sites.openssl("x509 -in west.pem -noout -fingerprint -sha256").done();
    let given = sites.openssl("x509 -in west/roots/1/root-cert.pem -noout -fingerprint -sha256").done();
    assert_eq!(printed, given);
    let text = sites.done("east", "bundle --for spiffe --trust-domain west.example");
    let bundle =
        spiffe_bundle::read(&isthmus_certs::TrustDomain::new("west.example").unwrap(), &text).unwrap();
    assert_eq!(bundle.roots().len(), 1);
}
