//! Certificates issued by the agent: a new gateway needs its agent's address and a token, a VM only a token;
//! both renew with their certificate. Tokens are single-use, limited in time, for one identity and valid at
//! their maker only.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic anywhere"
)]

use std::fs;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use isthmus_certs::home::Home;
use isthmus_certs::{Peer, Trust, TrustFiles, server_config};
use isthmus_proto::istio::v1::auth::IstioCertificateRequest;
use isthmus_tests::cluster::{Cluster, outbound, until_status};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::gateway::{Gateway, run_to_end};
use isthmus_tests::setup::Setup;
use isthmus_tests::wait::{until, until_some};
use isthmus_tests::workload::{Caller, Demands, endpoint};
use isthmus_tests::{binary, figure};
use isthmus_trust::enrolment::{EnrolError, Folder, by_token, first};
use isthmus_trust::join::Token;
use isthmus_trust::join::enrolment::meet;
use isthmus_trust::stubs::istio_certificate_service_client::IstioCertificateServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use rustls::{ServerConnection, StreamOwned};
use serde_json::Value;
use tokio::runtime::Runtime;

const HOST: &str = "db.pxc.svc.cluster.local";
const MYSQL: &str = "spiffe://east.example/ns/db/sa/mysql";
const MIB: u64 = 1 << 20;

/// A cluster whose agent issues certificates of at most this lifetime.
fn issuing(longest: &str) -> Cluster {
    let mut cluster = Cluster::new("east");
    cluster.issue(longest);
    cluster.set("gateways", "[{ name: gw-1 }, { name: gw-2 }]");
    cluster.start();
    cluster
}

/// Creates a token whose record is in this directory of the cluster.
fn create_in(cluster: &mut Cluster, state: &str, words: &[&str]) -> String {
    let state = cluster.path(state).display().to_string();
    cluster.set("state", &state);
    cluster.token(words).unwrap()
}

/// A gateway configured with only its agent's address and a token.
fn minimal_setup(cluster: &Cluster, folder: &Path, token: &str) -> Setup {
    Setup::new("")
        .listeners("- { name: outbound, address: '127.0.0.1:0', side: outbound }")
        .with(&format!("trust: {{ directory: '{}', {token} }}", folder.display()))
        .with(&format!("xds: {{ agents: ['{}'] }}", cluster.agent_address()))
}

fn service(address: SocketAddr) -> String {
    format!("services: [{{ host: {HOST}, endpoints: [{{ address: '{address}' }}] }}]")
}

/// The exit code and the output of a gateway that exits.
fn run_to_exit(setup: &Setup, folder: &Path) -> (Option<i32>, String) {
    let file = folder.join("gateway.yaml");
    fs::create_dir_all(folder).unwrap();
    fs::write(&file, setup.yaml()).unwrap();
    let output = run_to_end(&["run", "--config", file.to_str().unwrap()]);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn status(gateway: &Gateway) -> Value {
    serde_json::from_str(&gateway.admin("GET", "/status").body).unwrap()
}

fn serial(gateway: &Gateway) -> String {
    status(gateway)["trust"]["certificates"][0]["serial"].as_str().unwrap_or_default().to_owned()
}

/// All files below a directory.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn gateway_enrols_with_agent_address_and_token_alone() {
    let cluster = issuing("1h");
    let server = endpoint(&cluster, Demands::Certificate, b"greeting");
    cluster.register("db.yaml", &service(server.address()));
    let folder = cluster.path("gateway/trust");
    let token = cluster.token(&["--gateway", "gw-1"]).unwrap();
    let setup = minimal_setup(&cluster, &folder, &format!("token: {token}"));
    let gateway = setup.start();
    until("the gateway is ready", || gateway.is_ready());
    let caller = Caller::in_cluster(&cluster);
    assert_eq!(caller.call(outbound(&gateway), HOST).unwrap().greeting, "greeting");

    let status = status(&gateway);
    assert_eq!(status["trust"]["identity"], "spiffe://east.example/isthmus/east/gateway/gw-1");
    assert_eq!(status["node"]["cluster"], "east", "the cluster is taken from the identity");
    let mode = |name: &str| fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("tls.key"), mode("tls.crt")), (0o600, 0o644));
    // The signing key stays with the agent, and no page or log shows a secret.
    let key = fs::read_to_string(cluster.path("pki/clusters/east/ca-key.pem")).unwrap();
    let line = key.lines().nth(1).unwrap();
    for file in files(&folder) {
        assert!(!fs::read_to_string(&file).unwrap().contains(line), "{}", file.display());
    }
    let pages = ["/status", "/config"].map(|page| gateway.admin("GET", page).body).concat();
    let printed = [gateway.errors().join("\n"), cluster.log_lines().join("\n"), pages].concat();
    assert!(!printed.contains(&token) && !printed.contains("PRIVATE KEY") && !printed.contains(line));
    assert_eq!(cluster.ask("/status")["issuing"]["signed"], 1);

    // With a certificate the token no longer matters: it may be used up or missing.
    drop(gateway);
    assert!(cluster.command(&["token", "list"]).unwrap().contains("used "));
    for setup in [setup, minimal_setup(&cluster, &folder, "deny: null")] {
        let gateway = setup.start();
        until("the gateway is ready again", || gateway.is_ready());
    }
}

#[test]
fn enrolment_token_is_single_use_time_limited_and_for_one_gateway() {
    let mut cluster = issuing("1h");
    let folder = |name: &str| cluster.path("gateways").join(name);
    let used = cluster.token(&["--gateway", "gw-1"]).unwrap();
    let gateway = minimal_setup(&cluster, &folder("first"), &format!("token: {used}")).start();
    until("the gateway is ready", || gateway.is_ready());

    let late = cluster.token(&["--gateway", "gw-2", "--lifetime", "1s"]).unwrap();
    until("the token has expired", || cluster.command(&["token", "list"]).unwrap().contains("expired"));
    // Also removes the file, the other source of the token.
    let file = cluster.path("token");
    fs::write(&file, format!("{late}\n")).unwrap();
    let late = format!("token_file: '{}'", file.display());
    let workload = cluster.token(&["--workload", MYSQL]).unwrap();
    let other = cluster.token(&["--gateway", "gw-2"]).unwrap();
    let damaged = other.replace("isthmus1.A", "isthmus1.B");
    for (what, name, token, code, why) in [
        ("used", "second", format!("token: {used}"), 1, "the token has been used; make a new one"),
        ("late", "third", late, 1, "the token has expired; make a new one"),
        ("another's directory", "first", format!("token: {other}"), 1, "use another directory"),
        ("no token", "fourth", "deny: null".to_owned(), 1, "isthmus-agent token create --gateway NAME"),
        ("damaged", "fifth", format!("token: {damaged}"), 2, "the token is damaged or incomplete"),
        ("a workload's", "sixth", format!("token: {workload}"), 2, "not for a gateway"),
    ] {
        let folder = folder(name);
        let (ended, printed) = run_to_exit(&minimal_setup(&cluster, &folder, &token), &cluster.path("ends"));
        assert_eq!(ended, Some(code), "{what}: {printed}");
        assert!(printed.contains(why), "{what}: {printed}");
        assert!(name == "first" || !folder.join("tls.key").exists(), "{what}");
    }

    // A gateway that is no longer listed gets no certificate, even with a token; the token stays valid.
    cluster.stop();
    cluster.set("gateways", "[{ name: gw-1 }]");
    cluster.start();
    let setup = minimal_setup(&cluster, &cluster.path("gateways/seventh"), &format!("token: {other}"));
    let (code, printed) = run_to_exit(&setup, &cluster.path("ends"));
    assert!(
        code == Some(1) && printed.contains("in the policy of the issuer; the token is still valid"),
        "{printed}"
    );
    assert!(cluster.token(&["--gateway", "gw-2"]).unwrap_err().contains("list it under `gateways:`"));
    let west = "spiffe://west.example/ns/db/sa/mysql";
    assert!(
        cluster.token(&["--workload", west]).unwrap_err().contains("not a workload of this trust domain")
    );
    let mut strict = Cluster::new("north");
    strict.start();
    assert!(strict.token(&["--gateway", "gw-1"]).unwrap_err().contains("add `issuing:"));
    cluster.set("gateways", "[{ name: gw-1 }, { name: gw-2 }]");
    cluster.stop();
    cluster.start();
    let gateway = setup.start();
    until("the same token is accepted", || gateway.is_ready());
}

#[test]
fn gateway_waits_for_its_agent_and_reports_it() {
    let mut cluster = issuing("1h");
    let token = cluster.token(&["--gateway", "gw-1"]).unwrap();
    let setup = minimal_setup(&cluster, &cluster.path("gateway"), &format!("token: {token}"));
    cluster.stop();
    let gateway = setup.start();
    let problem = until_some("the status says why the gateway waits", || {
        status(&gateway)["trust"]["problem"].as_str().map(str::to_owned)
    });
    assert!(
        problem.contains("connection failed") && problem.contains("the token is still valid"),
        "{problem}"
    );
    assert!(!gateway.is_ready());
    cluster.start();
    until("the gateway has its certificate and its agent", || gateway.is_ready());
    assert_eq!(status(&gateway)["trust"]["renewal"]["problem"], Value::Null);
}

#[test]
fn certificate_renewal_interrupts_no_call() {
    let mut cluster = issuing("6s");
    let server = endpoint(&cluster, Demands::Certificate, b"greeting");
    cluster.register("db.yaml", &service(server.address()));
    let token = cluster.token(&["--gateway", "gw-1"]).unwrap();
    let gateway = minimal_setup(&cluster, &cluster.path("gateway"), &format!("token: {token}")).start();
    until("the gateway is ready", || gateway.is_ready());
    let traffic = Caller::in_cluster(&cluster).traffic(outbound(&gateway), HOST, Duration::from_millis(20));
    let first = serial(&gateway);
    let second = until_some("another certificate", || Some(serial(&gateway)).filter(|one| *one != first));
    // Another intermediate signs from now on, without a restart.
    let folder = cluster.path("pki/clusters/east");
    let before = cluster.ask("/status")["issuing"]["serial"].clone();
    fs::remove_file(folder.join("ca-cert.pem")).unwrap();
    until_status(&cluster, "the agent reports the problem", |status| {
        Some(status["issuing"]["problem"].as_str()?.to_owned()).filter(|why| why.contains("cannot be read"))
    });
    let mut home = Home::open(&cluster.path("pki")).unwrap();
    home.rotate(time::OffsetDateTime::now_utc());
    drop(home);
    until_status(&cluster, "another intermediate signs", |status| {
        (status["issuing"]["serial"] != before && status["issuing"]["problem"].is_null()).then_some(())
    });
    until("a third, by it", || ![&first, &second].contains(&&serial(&gateway)));
    assert!(gateway.is_ready());
    let (calls, failures) = traffic.end();
    figure!("{calls} calls during two renewals");
    assert!(calls > 100 && failures.is_empty(), "{failures:?}");
    // Without an agent the old certificate stays in use, and the reason is reported.
    cluster.stop();
    let problem = until_some("the status says why the certificate is not renewed", || {
        status(&gateway)["trust"]["renewal"]["problem"].as_str().map(str::to_owned)
    });
    assert!(problem.contains(&cluster.agent_address().to_string()), "{problem}");
}

/// `isthmus-agent enrol` with these arguments.
fn enrol(words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL").arg(binary::agent()).arg("enrol").args(words);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

struct Followed(Child);

impl Drop for Followed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn enrol_follow_survives_non_terminating_signals() {
    let cluster = issuing("6s");
    let token = cluster.token(&["--workload", MYSQL]).unwrap();
    let certificate = cluster.path("vm/tls.crt");
    let out = cluster.path("vm");
    let mut followed =
        Followed(enrol(&[&token, "--out", out.to_str().unwrap(), "--follow"]).spawn().unwrap());
    until("the first certificate", || certificate.exists());
    let first = fs::read_to_string(&certificate).unwrap();
    let pid = Pid::from_child(&followed.0);
    for signal in [Signal::HUP, Signal::USR1, Signal::USR2] {
        kill_process(pid, signal).unwrap();
    }
    until("another certificate", || fs::read_to_string(&certificate).unwrap() != first);
    kill_process(pid, Signal::TERM).unwrap();
    assert!(followed.0.wait().unwrap().success());
}

/// An endpoint with the certificate of a directory.
fn workload(folder: &Path) -> Scripted {
    let files = TrustFiles {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        bundles: folder.join("bundles"),
        ..TrustFiles::default()
    };
    let trust = Trust::load(&files).unwrap().current();
    let config = Arc::new(server_config(&trust.identity, Arc::clone(&trust.bundles), Peer::Trusted).unwrap());
    Scripted::unread_at(Endpoint::at("127.0.0.1:0".parse().unwrap()), move |stream| {
        use std::io::Write as _;
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        let mut word = [0; 4];
        let _gone = tls
            .write_all(b"greeting")
            .and_then(|()| tls.read_exact(&mut word))
            .and_then(|()| tls.write_all(&word));
        let _gone = tls.read(&mut word);
    })
}

#[test]
fn vm_enrols_renews_and_is_reachable_through_the_gateway() {
    let cluster = issuing("6s");
    let token = cluster.token(&["--workload", MYSQL]).unwrap();
    let folder = cluster.path("vm");
    let out = folder.to_str().unwrap();
    let output = enrol(&[&token, "--out", out]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && printed.contains(MYSQL), "{output:?}");
    let first = fs::read_to_string(folder.join("tls.crt")).unwrap();

    let again = enrol(&[&token, "--out", cluster.path("other").to_str().unwrap()]).output().unwrap();
    let printed = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && printed.contains("the token has been used"), "{printed}");
    let empty = enrol(&["--out", cluster.path("other").to_str().unwrap()]).output().unwrap();
    let printed = String::from_utf8_lossy(&empty.stderr).into_owned();
    assert!(!empty.status.success() && printed.contains("give a token"), "{printed}");

    // No token: the certificate is enough.
    let _followed = Followed(enrol(&["--out", out, "--follow"]).spawn().unwrap());
    until("another certificate", || fs::read_to_string(folder.join("tls.crt")).unwrap() != first);
    let server = workload(&folder);
    cluster.register("db.yaml", &service(server.address()));
    let gateway = cluster.gateway("gw-1");
    until("the gateway is ready", || gateway.is_ready());
    let answer =
        until_some("the VM is reached", || Caller::in_cluster(&cluster).call(outbound(&gateway), HOST).ok());
    assert_eq!(answer.server, MYSQL);

    // A gateway cannot enrol as a VM.
    let (code, printed) = run_to_exit(&minimal_setup(&cluster, &folder, "deny: null"), &cluster.path("ends"));
    assert!(code == Some(1) && printed.contains("which is not a gateway identity"), "{printed}");

    // Files of other origin are not overwritten.
    let taken = cluster.path("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("tls.key"), "mine").unwrap();
    let token = cluster.token(&["--workload", MYSQL]).unwrap();
    let output = enrol(&[&token, "--out", taken.to_str().unwrap()]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && printed.contains("was not written by Isthmus"), "{printed}");
    assert_eq!(fs::read_to_string(taken.join("tls.key")).unwrap(), "mine");
    assert!(cluster.command(&["token", "list"]).unwrap().contains("open "), "the token was used up");
}

#[test]
fn client_of_another_root_receives_nothing() {
    let cluster = issuing("1h");
    // The same names under another root, which the attacker presents.
    let mallory = Cluster::new("east");
    let trust =
        |cluster: &Cluster| Trust::load(&isthmus_tests::workload::files(cluster, "agent")).unwrap().current();
    let his = trust(&mallory);
    let root = his.bundles.get(his.identity.id().trust_domain()).unwrap().roots()[0].clone();
    let chain: Vec<_> = his.identity.chain().iter().cloned().chain([root]).collect();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, his.identity.key().clone_key())
        .unwrap();
    config.alpn_protocols = vec![isthmus_trust::join::enrolment::ALPN.to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let (sender, received) = mpsc::channel();
    thread::spawn(move || {
        let mut tls =
            StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), listener.accept().unwrap().0);
        let mut bytes = Vec::new();
        let ended = tls.read_to_end(&mut bytes).map_err(|error| error.to_string());
        sender.send((bytes, ended)).unwrap();
    });
    let words = ["token", "create", "--workload", MYSQL, "--address", &at];
    let token = cluster.command(&words).unwrap();
    let output = enrol(&[token.trim(), "--out", cluster.path("vm").to_str().unwrap()]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    figure!("a man in the middle: {}", printed.trim());
    assert!(
        printed.contains("another server answers at this address") && printed.contains("still valid"),
        "{printed}"
    );
    let (bytes, ended) = received.recv().unwrap();
    assert!(bytes.is_empty() && ended.is_err(), "the attacker received {bytes:?}, {ended:?}");
}

#[test]
fn enrolment_strangers_use_bounded_memory_and_block_nobody() {
    const UNKNOWN_CALLERS: usize = 1_000;
    let mut cluster = issuing("1h");
    let good: Token = cluster.token(&["--workload", MYSQL]).unwrap().parse().unwrap();
    // Made with the agent's identity but unknown to it: the record is in another directory.
    let unknown: Token = create_in(&mut cluster, "elsewhere", &["--workload", MYSQL]).parse().unwrap();
    let other: Token = create_in(&mut cluster, "state", &["--gateway", "gw-2"]).parse().unwrap();
    let before = cluster.process().memory();
    let folder = Folder::new(cluster.path("meanwhile"));
    Runtime::new().unwrap().block_on(async {
        let mut all = tokio::task::JoinSet::new();
        let turns = Arc::new(tokio::sync::Semaphore::new(200));
        for _ in 0..UNKNOWN_CALLERS {
            let (unknown, turns) = (unknown.clone(), Arc::clone(&turns));
            all.spawn(async move {
                let _turn = turns.acquire_owned().await.unwrap();
                by_token(&unknown).await.map(drop)
            });
        }
        // A client with a valid token comes in between.
        let meanwhile = tokio::spawn(async move { first(&other, &folder, |_| ()).await });
        let mut refused = 0;
        while let Some(ended) = all.join_next().await {
            let error = ended.unwrap().unwrap_err();
            // Beyond the limit, the oldest connection is closed.
            refused += usize::from(matches!(error, EnrolError::Refused { .. }) && error.is_final());
        }
        figure!("{refused} of {UNKNOWN_CALLERS} strangers received a refusal");
        assert!(refused > 0);
        meanwhile.await.unwrap().unwrap();
    });
    let more = cluster.process().memory().saturating_sub(before);
    figure!("{} KiB more for {UNKNOWN_CALLERS} strangers", more >> 10);
    assert!(more < 64 * MIB, "{more} bytes more");
    assert_eq!(cluster.ask("/status")["issuing"]["signed"], 1, "only the client with a token");

    // A malformed request does not use up the token.
    Runtime::new().unwrap().block_on(async {
        for csr in ["", "garbage", &"x".repeat(1 << 20)] {
            let meeting = meet(&good).await.unwrap();
            let mut once = Some(meeting.stream);
            let connect = tower::service_fn(move |_| {
                let stream = once.take().map(hyper_util::rt::TokioIo::new);
                async move { stream.ok_or_else(|| std::io::Error::other("over")) }
            });
            let http = tonic::transport::Endpoint::from_static("http://x");
            let channel = http.connect_with_connector(connect).await.unwrap();
            let message =
                IstioCertificateRequest { csr: csr.to_owned(), ..IstioCertificateRequest::default() };
            let mut request = tonic::Request::new(message);
            let bearer = format!("Bearer {}", meeting.bearer).parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
            let mut client = IstioCertificateServiceClient::new(channel);
            let status = client.create_certificate(request).await.unwrap_err();
            let is_explained =
                status.message().contains("must hold one -----BEGIN CERTIFICATE REQUEST----- block")
                    && status.message().contains("still valid");
            assert!(is_explained || csr.len() > 1_000, "{status}");
        }
        assert_eq!(by_token(&good).await.unwrap().identity.id().to_string(), MYSQL);
    });
}
