//! Envoy as the TLS peer: as server and as client it matches our SPIFFE IDs, with its SAN matchers and with
//! its SPIFFE validator, which separates trust domains. Chains have three certificates. For Envoy as a
//! gateway see `isthmus-bench compare`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::{fs, thread};

use isthmus_certs::{Identity, client_config, server_config};
use isthmus_tests::certs::{Serving, Sites, ask, backwards, envoy, id, like_ours, only, why};
use isthmus_tests::client::{dial, rest};
use isthmus_tests::wait::{DEADLINE, until_some};
use isthmus_tests::{http, skip};
use rustls::ClientConfig;
use serde_json::{Value, json};

const LINE: &str = "a line from one end to the other\n";
/// A line that must reach no application.
const NEVER: &str = "a line that does not arrive\n";
const TYPES: &str = "type.googleapis.com/envoy";

/// A running Envoy, killed when dropped.
struct Envoy {
    child: Child,
    admin: SocketAddr,
}

impl Envoy {
    /// Starts Envoy with these listeners and the single cluster `app`.
    fn start(program: PathBuf, sites: &Sites, listeners: &[Value], app: &Value) -> Envoy {
        let loopback = json!({ "socket_address": { "address": "127.0.0.1", "port_value": 0 } });
        let config = json!({
            "node": { "id": "test", "cluster": "test" },
            "admin": { "address": loopback },
            "static_resources": { "listeners": listeners, "clusters": [app] },
        });
        sites.write("envoy.json", config.to_string());
        // May be left from an earlier Envoy.
        let _absent = fs::remove_file(sites.path("envoy.admin"));
        let mut child = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(program)
            .args(["-c", "envoy.json", "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"])
            .args(["--admin-address-path", "envoy.admin"])
            .current_dir(sites.folder())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let admin = until_some("Envoy has written its admin address", || {
            assert!(child.try_wait().unwrap().is_none(), "Envoy ended; its file:\n{config:#}");
            fs::read_to_string(sites.path("envoy.admin")).ok()?.trim().parse().ok()
        });
        Envoy { child, admin }
    }

    /// The address of a listener.
    #[track_caller]
    fn at(&self, name: &str) -> SocketAddr {
        until_some("Envoy listens", || {
            let answer = http::ask(self.admin, "GET", "/listeners");
            let found = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("::"));
            found.map(|address| address.parse().unwrap())
        })
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A listener that forwards everything to `app`.
fn listener(name: &str, tls: Option<Value>) -> Value {
    let proxy = json!({
        "@type": format!("{TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": name,
        "cluster": "app",
    });
    let mut chain = json!({ "filters": [{ "name": "tcp", "typed_config": proxy }] });
    if let Some(mut tls) = tls {
        tls["@type"] = format!("{TYPES}.extensions.transport_sockets.tls.v3.DownstreamTlsContext").into();
        tls["require_client_certificate"] = true.into();
        chain["transport_socket"] = json!({ "name": "tls", "typed_config": tls });
    }
    let address = json!({ "socket_address": { "address": "127.0.0.1", "port_value": 0 } });
    json!({ "name": name, "address": address, "filter_chains": [chain] })
}

fn app(at: SocketAddr, tls: Option<Value>) -> Value {
    let address = json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } });
    let mut cluster = json!({
        "name": "app",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "app",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
        },
    });
    if let Some(mut tls) = tls {
        tls["@type"] = format!("{TYPES}.extensions.transport_sockets.tls.v3.UpstreamTlsContext").into();
        tls["sni"] = "web.example".into();
        cluster["transport_socket"] = json!({ "name": "tls", "typed_config": tls });
    }
    cluster
}

/// Envoy's TLS context: the leaf `below` of a site, and the validation of its peers.
fn context(site: &str, judge: &Value) -> Value {
    let leaf = |file: &str| json!({ "filename": format!("{site}/leaves/below/{file}") });
    json!({ "common_tls_context": {
        "tls_certificates": [{ "certificate_chain": leaf("tls.crt"), "private_key": leaf("tls.key") }],
        "validation_context": judge,
    } })
}

/// Validation of exactly this SPIFFE ID, under the roots beside the leaf.
fn exactly(site: &str, id: &str) -> Value {
    json!({
        "trusted_ca": { "filename": format!("{site}/leaves/below/ca.crt") },
        "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": id } }],
    })
}

/// Envoy's SPIFFE validator with the bundles of both domains.
fn spiffe_validator(sites: &Sites) -> Value {
    let domains = ["east", "west"].map(|site| {
        let (name, file) = (format!("{site}.example"), format!("{site}-bundle.pem"));
        sites.done("east", &format!("bundle --for pem --trust-domain {name} --out {file}"));
        json!({ "name": name, "trust_bundle": { "filename": file } })
    });
    json!({ "custom_validator_config": {
        "name": "envoy.tls.cert_validator.spiffe",
        "typed_config": {
            "@type": format!("{TYPES}.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"),
            "trust_domains": domains,
        },
    } })
}

/// A plaintext application behind Envoy: answers a line reversed, and reports the line of each connection.
fn plain_app() -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, received) = mpsc::channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            let _end = BufReader::new(stream.try_clone().unwrap()).read_line(&mut line);
            let _answer = stream.write_all(backwards(&line).as_bytes());
            let _end = stream.read(&mut [0]);
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    (address, received)
}

/// The line of the next connection with data: Envoy may connect before it has verified its client.
#[track_caller]
fn next_line(received: &Receiver<String>) -> String {
    let mut lines = std::iter::from_fn(|| Some(received.recv_timeout(DEADLINE).expect("a connection ends")));
    lines.find(|line| !line.is_empty()).unwrap()
}

/// The error of a client that Envoy must refuse.
fn refusal(client: &Arc<ClientConfig>, envoy: SocketAddr) -> String {
    match ask(client, envoy, "web.example", NEVER) {
        Ok(answer) => panic!("the client was accepted: {answer:?}"),
        Err(error) => why(&error),
    }
}

/// The identity of east's `below`, signed by west's intermediate.
fn forged(sites: &Sites) -> Identity {
    let signer = ["west/clusters/west/ca-cert.pem", "west/clusters/west/ca-key.pem"];
    sites.forge("forged", signer, &like_ours(&id("east", "below")));
    let chain = sites.read("forged.crt") + &sites.read(signer[0]);
    Identity::from_pem(&chain, sites.read("forged.key")).unwrap()
}

#[test]
fn envoy_server_matches_our_identities_exactly() {
    let Some(program) = envoy() else { skip!("envoy is not installed (tests/run installs it)") };
    let sites = Sites::federated();
    sites.leaf("east", "caller");
    sites.leaf("east", "other");
    let (address, received) = plain_app();
    let listeners = [listener("exact", Some(context("east", &exactly("east", &id("east", "caller")))))];
    let envoy = Envoy::start(program, &sites, &listeners, &app(address, None));

    let server = id("east", "below");
    let caller = sites.client("east", "caller", &server);
    let answer = ask(&caller, envoy.at("exact"), "web.example", LINE).unwrap();
    assert_eq!(answer, (server.clone(), backwards(LINE)));
    assert_eq!(next_line(&received), LINE);

    let other = sites.client("east", "other", &server);
    let message = refusal(&other, envoy.at("exact"));
    assert!(message.contains("received fatal alert: CertificateUnknown"), "{message}");
    let foreign = sites.client("west", "below", &server);
    let message = refusal(&foreign, envoy.at("exact"));
    assert!(message.contains("received fatal alert"), "{message}");
    // Our client refuses Envoy if it expects another identity.
    let elsewhere = sites.client("east", "caller", &id("east", "other"));
    let message = refusal(&elsewhere, envoy.at("exact"));
    assert!(message.contains("is not expected here"), "{message}");
    let again = ask(&caller, envoy.at("exact"), "web.example", LINE).unwrap();
    assert_eq!(again.0, server, "Envoy is unaffected");
    assert_eq!(next_line(&received), LINE, "the application received data of refused clients");
}

#[test]
fn envoy_client_matches_our_identities_exactly() {
    let Some(program) = envoy() else { skip!("envoy is not installed (tests/run installs it)") };
    let sites = Sites::federated();
    sites.leaf("east", "server");
    let ours = sites.serve("east", "server", &id("east", "below"));
    let right = context("east", &exactly("east", &id("east", "server")));
    let envoy =
        Envoy::start(program.clone(), &sites, &[listener("in", None)], &app(ours.address, Some(right)));
    assert_eq!(through(&envoy), backwards(LINE));
    assert_eq!(ours.next().unwrap(), (id("east", "below"), LINE.to_owned()), "Envoy's identity and its line");
    drop(envoy);

    let wrong = context("east", &exactly("east", &id("east", "another")));
    let envoy = Envoy::start(program, &sites, &[listener("in", None)], &app(ours.address, Some(wrong)));
    assert_eq!(through(&envoy), "");
    assert_no_line(&ours);
}

/// Sends the line to a plaintext listener of Envoy and reads to the end.
fn through(envoy: &Envoy) -> String {
    let mut stream = dial(envoy.at("in"));
    stream.write_all(LINE.as_bytes()).unwrap();
    String::from_utf8(rest(&mut stream).0).unwrap()
}

/// Asserts that all connections so far ended without a line; Envoy retries.
#[track_caller]
fn assert_no_line(ours: &Serving) {
    let message = ours.next().unwrap_err();
    assert!(message.contains("received fatal alert"), "{message}");
}

#[test]
fn envoy_spiffe_validator_accepts_our_bundles_and_separates_domains() {
    let Some(program) = envoy() else { skip!("envoy is not installed (tests/run installs it)") };
    let sites = Sites::federated();
    let judge = spiffe_validator(&sites);
    let (address, received) = plain_app();
    let mut pooled = exactly("east", &id("east", "below"));
    let roots = sites.read("east-bundle.pem") + &sites.read("west-bundle.pem");
    pooled["trusted_ca"] = json!({ "inline_string": roots });
    let listeners = [
        listener("spiffe", Some(context("east", &judge))),
        listener("pooled", Some(context("east", &pooled))),
    ];
    let envoy = Envoy::start(program, &sites, &listeners, &app(address, None));
    let server = id("east", "below");
    for (site, leaf) in [("east", "below"), ("west", "below"), ("west", "direct")] {
        let client = sites.client(site, leaf, &server);
        let answer = ask(&client, envoy.at("spiffe"), "web.example", LINE).unwrap();
        assert_eq!(answer, (server.clone(), backwards(LINE)), "{site} {leaf}");
        assert_eq!(next_line(&received), LINE);
    }
    let bundles = Arc::clone(&sites.trust("east", "below").current().bundles);
    let forged = Arc::new(client_config(&forged(&sites), bundles, only(&server)).unwrap());
    let message = refusal(&forged, envoy.at("spiffe"));
    assert!(message.contains("received fatal alert"), "{message}");
    // In a common pool of roots, west could sign for east.
    let answer = ask(&forged, envoy.at("pooled"), "web.example", LINE).unwrap();
    assert_eq!(answer, (server, backwards(LINE)));
    assert_eq!(next_line(&received), LINE, "the application received earlier data");
}

#[test]
fn envoy_spiffe_validator_refuses_server_signed_by_another_domain() {
    let Some(program) = envoy() else { skip!("envoy is not installed (tests/run installs it)") };
    let sites = Sites::federated();
    let judge = spiffe_validator(&sites);
    let west = sites.serve("west", "below", &id("east", "below"));
    let start = |program, at| {
        Envoy::start(program, &sites, &[listener("in", None)], &app(at, Some(context("east", &judge))))
    };
    let envoy = start(program.clone(), west.address);
    assert_eq!(through(&envoy), backwards(LINE), "across domains, with chains of 3");
    assert_eq!(west.next().unwrap(), (id("east", "below"), LINE.to_owned()));
    drop(envoy);

    let bundles = Arc::clone(&sites.trust("west", "below").current().bundles);
    let config = server_config(&forged(&sites), bundles, only(&id("east", "below"))).unwrap();
    let forger = Serving::new(Arc::new(config));
    let envoy = start(program, forger.address);
    assert_eq!(through(&envoy), "");
    assert_no_line(&forger);
}
