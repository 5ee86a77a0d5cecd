//! `isthmus-certs inspect` and `verify`: the description of chains and endpoints and their first defect. For
//! agreement with others see `certs_openssl` and `certs_envoy`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs::{self};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::thread;

use isthmus_tests::certs::{EAST, Sites, WEST, id, like_ours, wrong};
use isthmus_tests::endpoint::{Scripted, closed};
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::skip;
use isthmus_tests::tls::{Peer, openssl};
use isthmus_tests::wait::until;
use serde_json::json;

/// An OpenSSL server; the arguments select its use of client certificates.
fn s_server(sites: &Sites, words: &str) -> (Peer, SocketAddr) {
    let leaf = "-cert east/leaves/below/tls.crt -key east/leaves/below/tls.key -cert_chain east/clusters/east/ca-cert.pem";
    let words = format!("--pdeathsig=KILL openssl s_server -accept 127.0.0.1:0 -rev {leaf} {words}");
    let mut server = Peer::start(sites.other("setpriv", &words).stderr(Stdio::null()));
    let address = server.find("ACCEPT ").parse().unwrap();
    (server, address)
}

#[test]
fn inspect_reads_live_endpoint_through_the_gateway() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let ours = sites.serve("east", "below", &id("east", "direct"));
    let mut services = service("ours.example", &[], &[ours.address]);
    let mut servers = Vec::new();
    let roots = "-CAfile east/roots/1/root-cert.pem -verify_return_error";
    let kinds = [("not_asked", ""), ("asked", "-verify 1"), ("demanded", "-Verify 1")];
    let versions = [("tls1_2", "TLSv1_2"), ("tls1_3", "TLSv1_3")];
    for (kind, words) in kinds {
        for (version, _) in versions {
            let (server, address) = s_server(&sites, &format!("{roots} {words} -{version}"));
            let host = format!("{}.{}.example", kind.replace('_', "-"), version.replace('_', "-"));
            services += &service(&host, &[], &[address]);
            servers.push(server);
        }
    }
    let gateway = Setup::new(services).start();
    let at = gateway.address();
    let inspect = |sni: &str| sites.json("", &format!("inspect {at} --sni {sni} --bundles east/bundles"));
    for (kind, _) in kinds {
        for (version, shown) in versions {
            let host = format!("{}.{}.example", kind.replace('_', "-"), version.replace('_', "-"));
            let seen = inspect(&host);
            let endpoint = json!({ "version": shown, "alpn": null, "client_certificate": kind });
            assert_eq!(seen["endpoint"], endpoint, "{host}");
            assert_eq!(seen["chain"][0]["uris"], json!([id("east", "below")]), "{host}");
            assert_eq!(
                (seen["chain"].as_array().unwrap().len(), &seen["objections"]),
                (2, &json!([])),
                "{host}"
            );
        }
    }
    assert_eq!(inspect("ours.example")["endpoint"]["client_certificate"], "demanded");
    let text = sites.done("", &format!("inspect {at} --sni ours.example --bundles west/bundles"));
    assert!(text.contains("TLSv1_3; the endpoint requires a client certificate"), "{text}");
    assert!(text.contains("accepts this chain"), "west trusts east: {text}");
    let text = sites.done("", &format!("inspect {at} --sni not-asked.tls1-2.example"));
    assert!(text.contains("does not ask for a client certificate: it accepts every client"), "{text}");

    let unknown = sites.refused("", &format!("inspect {at} --sni unknown.example"));
    assert!(
        unknown.contains(&at.to_string()) && unknown.contains("does it know this name (--sni)?"),
        "{unknown}"
    );
    let bad_name = sites.refused("", &format!("inspect {at} --sni a_b..c"));
    assert!(bad_name.contains("\"a_b..c\" is not a valid server name"), "{bad_name}");
}

#[test]
fn inspect_reports_plaintext_and_unreachable_endpoints() {
    let http = Scripted::unread(|mut stream| {
        let _gone = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    let sites = Sites::new();
    let plain = http.address();
    let why = sites.refused("", &format!("inspect {plain} --sni web.example"));
    assert!(why.contains(&plain.to_string()) && why.contains("is it a TLS port"), "{why}");
    let nobody = closed();
    let why = sites.refused("", &format!("inspect {nobody}"));
    assert!(why.contains(&nobody.to_string()) && why.contains("cannot connect to"), "{why}");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hung_up = listener.local_addr().unwrap();
    let closing = thread::spawn(move || listener.incoming().take(2).for_each(drop));
    let why = sites.refused("", &format!("inspect {hung_up} --sni web.example"));
    assert!(why.contains("the TLS handshake failed"), "{why}");
    closing.join().unwrap();
}

#[test]
fn inspect_shows_negotiated_alpn_protocol() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let (_server, at) = s_server(&sites, "-alpn h2,test");
    let seen = sites.json("", &format!("inspect {at} --sni web.example --alpn nonsense,test"));
    assert_eq!(seen["endpoint"]["alpn"], "test");
    let text = sites.done("", &format!("inspect {at} --sni web.example --alpn h2"));
    assert!(text.contains("protocol h2; the endpoint"), "{text}");
}

// ---- verify

/// A leaf of east's intermediate with its chain and these extensions.
fn east_leaf(sites: &Sites, name: &str, extensions: &str) -> String {
    sites.forge(name, EAST, extensions);
    sites.write(&format!("{name}.pem"), sites.read(&format!("{name}.crt")) + &sites.read(EAST[0]));
    format!("{name}.pem")
}

#[test]
fn verify_accepts_valid_chain_as_client_and_server() {
    let sites = Sites::federated();
    for (chain, who) in
        [("east/leaves/below", id("east", "below")), ("west/leaves/direct", id("west", "direct"))]
    {
        for role in ["", "--role client", "--role server", "--role both"] {
            let words = format!("verify {chain}/tls.crt --bundles east/bundles {role}");
            assert_eq!(sites.json("", &words), json!({ "believed": true, "id": who }));
            assert_eq!(sites.done("", &words), format!("{chain}/tls.crt: OK ({who})\n"));
        }
    }
    let pin = sites.json("east", "intermediate --cluster east")["pin"].as_str().unwrap().to_owned();
    let expectations =
        format!("--expect spiffe://east.example/ns/test/* --expect spiffe://x.example/y --pin {pin}");
    let words = format!("verify east/leaves/below/tls.crt --bundles east/bundles {expectations}");
    assert_eq!(sites.json("", &words)["believed"], true);
}

#[test]
fn verify_reports_leaf_defects() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let good = like_ours(&id("east", "x"));
    let control = east_leaf(&sites, "good", &good);
    assert_eq!(sites.json("", &format!("verify {control} --bundles east/bundles"))["believed"], true);
    let uri = format!("URI:{}", id("east", "x"));
    for (name, from, to, reason) in [
        ("two-uris", &*uri, &*format!("{uri},URI:spiffe://east.example/y"), "uri_names"),
        ("no-uri", &*uri, "DNS:web.example", "uri_names"),
        ("https", &*uri, "URI:https://east.example/x", "not_spiffe"),
        ("upper-case", &*uri, "URI:spiffe://EAST.example/x", "not_spiffe"),
        ("dots", &*uri, "URI:spiffe://east.example/a/../b", "not_spiffe"),
        ("no-path", &*uri, "URI:spiffe://east.example", "no_path"),
        ("authority", "CA:FALSE", "CA:TRUE", "authority_as_leaf"),
        ("signs", "digitalSignature", "digitalSignature,keyCertSign", "authority_as_leaf"),
        ("no-signature", "digitalSignature", "keyAgreement", "key_usage"),
        ("client-only", "serverAuth,clientAuth", "clientAuth", "wrong_use"),
        ("mail-only", "serverAuth,clientAuth", "emailProtection", "wrong_use"),
        (
            "unknown",
            "serverAuth,clientAuth",
            "serverAuth,clientAuth\n1.2.3.4=critical,DER:0500",
            "critical_extension",
        ),
    ] {
        assert!(good.contains(from), "{from}");
        let chain = east_leaf(&sites, name, &good.replace(from, to));
        wrong(&sites, &chain, "", reason);
    }
    let client_only = "verify client-only.pem --bundles east/bundles --role";
    assert_eq!(sites.json("", &format!("{client_only} client"))["believed"], true, "valid as a client");
    wrong(&sites, "client-only.pem", "--role server", "wrong_use");
}

#[test]
fn verify_reports_chain_defects() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    let leaf = like_ours(&id("east", "x"));
    sites.forge("forged", WEST, &leaf);
    sites.write("forged.pem", sites.read("forged.crt") + &sites.read(WEST[0]));
    wrong(&sites, "forged.pem", "", "unknown_issuer");

    let whole = sites.read("east/leaves/below/tls.crt");
    let end = whole.find("-----END").unwrap();
    sites.write("alone.pem", &whole[..end + "-----END CERTIFICATE-----\n".len()]);
    wrong(&sites, "alone.pem", "", "unknown_issuer");
    wrong(&sites, EAST[0], "", "authority_as_leaf");

    let authority =
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nsubjectKeyIdentifier=hash\n";
    let below = |name: &str, signer: [&str; 2], extensions: &str| {
        // A unique subject, so that issuers are not confused.
        sites.write(&format!("{name}.ext"), extensions);
        let request = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        let _made =
            sites.openssl(&format!("{request} -subj /CN={name} -keyout {name}.key -out {name}.csr")).done();
        let sign = format!("x509 -req -in {name}.csr -CA {} -CAkey {} -days 1", signer[0], signer[1]);
        let _made = sites.openssl(&format!("{sign} -extfile {name}.ext -out {name}.crt")).done();
    };
    below("sub", EAST, authority);
    sites.forge("deep", ["sub.crt", "sub.key"], &leaf);
    sites.write("deep.pem", sites.read("deep.crt") + &sites.read("sub.crt") + &sites.read(EAST[0]));
    wrong(&sites, "deep.pem", "", "path_length");

    below("no-authority", EAST, &leaf);
    sites.forge("by-leaf", ["no-authority.crt", "no-authority.key"], &leaf);
    sites.write(
        "by-leaf.pem",
        sites.read("by-leaf.crt") + &sites.read("no-authority.crt") + &sites.read(EAST[0]),
    );
    wrong(&sites, "by-leaf.pem", "", "issuer_not_authority");

    let root = ["east/roots/1/root-cert.pem", "east/roots/1/root-key.pem"];
    below("constrained", root, &format!("{authority}nameConstraints=critical,permitted;URI:east.example\n"));
    sites.forge("within", ["constrained.crt", "constrained.key"], &leaf);
    sites.write("within.pem", sites.read("within.crt") + &sites.read("constrained.crt"));
    wrong(&sites, "within.pem", "", "name_constraints");

    sites.done("east", "bundle remove --trust-domain west.example");
    wrong(&sites, "west/leaves/below/tls.crt", "", "no_bundle");
}

#[test]
fn verify_reports_wrong_identity_and_revocation() {
    let sites = Sites::federated();
    let chain = "east/leaves/below/tls.crt";
    wrong(&sites, chain, "--expect spiffe://east.example/ns/test/sa/other", "unexpected");
    wrong(&sites, chain, "--expect spiffe://east.example/ns/tes/*", "unexpected");
    wrong(&sites, chain, "--expect spiffe://east.example/ns/test/sa/below/*", "unexpected");
    sites.done("east", "intermediate --cluster second");
    let other = sites.json("east", "intermediate --cluster second")["pin"].as_str().unwrap().to_owned();
    wrong(&sites, chain, &format!("--pin {other}"), "pin");
    let own = sites.json("", &format!("inspect {chain}"))["chain"][0]["pin"].as_str().unwrap().to_owned();
    wrong(&sites, chain, &format!("--pin {own}"), "pin");

    sites.done("east", &format!("deny add {}", id("east", "below")));
    wrong(&sites, chain, "--deny east/deny", "denied");
    assert_eq!(
        sites.json("", &format!("verify {chain} --bundles east/bundles"))["believed"],
        true,
        "without the list"
    );
    sites.done("east", &format!("deny remove {}", id("east", "below")));
    assert_eq!(
        sites.json("", &format!("verify {chain} --bundles east/bundles --deny east/deny"))["believed"],
        true
    );

    sites.done("east", "issue --spiffe spiffe://east.example/short --name short --ttl 1s --cluster east");
    let short = "verify east/leaves/short/tls.crt --bundles east/bundles";
    until("the leaf has expired", || sites.run("", short).code == Some(1));
    wrong(&sites, "east/leaves/short/tls.crt", "", "expired");
}

/// Configuration of `openssl ca`.
const CA: &str = "[ca]\ndefault_ca=own\n[own]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\n\
                  unique_subject=no\npolicy=any\ncrlnumber=crlnumber\n[any]\ncommonName=optional\n";

#[test]
fn verify_reads_openssl_revocation_lists() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    sites.write("ca.cnf", CA);
    sites.write("index", "");
    sites.write("serial", "0a0b");
    sites.write("crlnumber", "01");
    fs::create_dir(sites.path("crls")).unwrap();
    let ca = format!("ca -batch -config ca.cnf -cert {} -keyfile {}", EAST[0], EAST[1]);
    let list = |words: &str| {
        sites.write("crls/east.example.pem", "");
        let _made = sites.openssl(&format!("{ca} -gencrl {words} -out crls/east.example.pem")).done();
    };
    let chain = "east/leaves/below/tls.crt";
    let verify = format!("verify {chain} --bundles east/bundles --crls crls");
    list("-crldays 7");
    assert_eq!(sites.json("", &verify)["believed"], true, "nothing is revoked yet");
    let budget = sites.refused("", &format!("{verify} --outage-budget 8days"));
    assert!(budget.contains("crls/east.example.pem: ") && budget.contains("is valid for 7days"), "{budget}");
    assert!(budget.contains("a later nextUpdate, or lower the outage budget"), "{budget}");
    assert_eq!(sites.json("", &format!("{verify} --outage-budget 6days"))["believed"], true);

    let _revoked = sites.openssl(&format!("{ca} -revoke {chain}")).done();
    list("-crldays 7");
    wrong(&sites, chain, "--crls crls", "revoked");
    let other = "verify east/leaves/direct/tls.crt --bundles east/bundles --crls crls";
    assert_eq!(sites.json("", other)["believed"], true, "no revocations without a list");

    list("-crlsec 1");
    until("the list is stale", || sites.run("", &format!("{verify} --json")).out.contains("crl_stale"));
    wrong(&sites, chain, "--crls crls", "crl_stale");
    wrong(&sites, chain, "--crls crls --stale-crl accept", "revoked");

    sites.write("crls/east.example.pem", "no list\n");
    let why = sites.refused("", &verify);
    assert!(why.contains("crls/east.example.pem: ") && why.contains("X509 CRL"), "{why}");
}

#[test]
fn verify_reports_leaf_not_yet_valid() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let sites = Sites::federated();
    sites.write("ca.cnf", CA);
    sites.write("index", "");
    sites.write("serial", "0a0b");
    sites.forge("later", EAST, &like_ours(&id("east", "x")));
    let dates = "-startdate 20980101000000Z -enddate 20990101000000Z";
    let ca = format!("ca -batch -notext -config ca.cnf -cert {} -keyfile {}", EAST[0], EAST[1]);
    let _made =
        sites.openssl(&format!("{ca} -in later.csr -out later.crt -extfile later.ext {dates}")).done();
    sites.write("later.pem", sites.read("later.crt") + &sites.read(EAST[0]));
    wrong(&sites, "later.pem", "", "not_yet_valid");
}
