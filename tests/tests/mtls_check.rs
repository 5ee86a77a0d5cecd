//! The agent's mTLS check against a real nginx, which refuses a client without a certificate only at its request.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use isthmus_tests::cluster::{Cluster, until_status};
use isthmus_tests::endpoint::free;
use isthmus_tests::skip;
use isthmus_tests::wait::{until, until_some};

const HOST: &str = "web.shop";

/// nginx with the identity `server` of a cluster; its clients need a certificate of the cluster.
struct Nginx(Child);

impl Nginx {
    fn start(cluster: &Cluster, address: SocketAddr) -> Nginx {
        let leaf = cluster.path("pki/leaves/server").display().to_string();
        let root = cluster.path("pki/roots/1/root-cert.pem").display().to_string();
        let folder = cluster.path("nginx");
        fs::create_dir(&folder).unwrap();
        let at = |name: &str| folder.join(name).display().to_string();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {};\n", at(name)))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid {}; error_log {} warn;\nevents {{}}\nhttp {{ access_log off;\n{temporary}\
             server {{ listen {address} ssl; ssl_certificate {leaf}/tls.crt; ssl_certificate_key {leaf}/tls.key;\n\
             ssl_client_certificate {root}; ssl_verify_client on; ssl_verify_depth 3; location / {{ return 200 ok; }} }} }}\n",
            at("pid"),
            at("error.log"),
        );
        fs::write(folder.join("nginx.conf"), config).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "nginx", "-c", &at("nginx.conf"), "-e", &at("error.log")]);
        let nginx = Nginx(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        until("nginx listens", || TcpStream::connect(address).is_ok());
        nginx
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn mtls_check_of_nginx_that_refuses_the_request_names_the_key_to_set() {
    if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
        skip!("nginx is not installed");
    }
    let mut cluster = Cluster::new("east");
    cluster.set("exports", "[{ hosts: ['*.shop'] }]");
    cluster.start();
    let address = free();
    let _nginx = Nginx::start(&cluster, address);
    let register = |keys: &str| {
        cluster.register(
            "web.yaml",
            &format!("services: [{{ host: {HOST}, {keys}endpoints: [{{ address: '{address}' }}] }}]"),
        );
    };
    let why_held = |expected: &str| {
        until_status(&cluster, expected, |status| {
            let text = status.to_string();
            (text.contains("not_mtls") && text.contains(expected)).then_some(text)
        })
    };
    register("");
    why_held("asked for a client certificate and completed the TLS handshake without one (if it refuses");
    register("alpn: [http/1.1], ");
    let why = why_held("and answered HTTP 400 to a request without one");
    assert!(why.contains("set `client_certificate: declared`"), "{why}");
    let explained = cluster.ask(&format!("/explain?host={HOST}")).to_string();
    assert!(
        explained.contains("HTTP 400") && explained.contains("`client_certificate: declared`"),
        "{explained}"
    );
    register("alpn: [http/1.1], client_certificate: declared, ");
    until_some("the service is exported", || {
        let page = cluster.ask(&format!("/explain?host={HOST}"));
        page["offer"]["ports"][0]["exported"].as_bool().filter(|is_exported| *is_exported)
    });
}
