//! Real TLS through the gateway with rustls and OpenSSL at both ends. TLS is end to end: the service sees the
//! client certificate, and the gateway has no key.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use isthmus_tests::bulk::{receive, send};
use isthmus_tests::client::dial;
use isthmus_tests::endpoint::Endpoint;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::tls::{CLIENT_ID, HOST, Peer, Trust, openssl, python, python_client, python_server};
use isthmus_tests::{figure, skip};
use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned, SupportedProtocolVersion,
    version,
};

const SIZE: u64 = 1 << 20;
const VERSIONS: [(&str, &str, &SupportedProtocolVersion); 2] =
    [("TLSv1.2", "TLSv1_2", &version::TLS12), ("TLSv1.3", "TLSv1_3", &version::TLS13)];

fn gateway(endpoint: SocketAddr) -> Gateway {
    Setup::new(service(HOST, &[], &[endpoint])).start()
}

fn hex(hash: [u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The server's view: the client's ID and the hashes of sent and received bytes.
struct Served {
    id: String,
    sent: [u8; 32],
    got: [u8; 32],
}

/// Serves one rustls connection with the protocol of the Python peers.
fn serve(trust: &'static Trust, endpoint: Endpoint) -> JoinHandle<Served> {
    thread::spawn(move || {
        let mut tls = trust.server(endpoint.accept());
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            tls.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        assert_eq!(line, format!("{SIZE}\n").into_bytes());
        let got = receive(&mut tls, SIZE).unwrap();
        let sent = send(&mut tls, SIZE).unwrap();
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        Served { id: Trust::seen(&tls), sent, got }
    })
}

fn trust() -> &'static Trust {
    Box::leak(Box::new(Trust::new()))
}

fn talk(trust: &Trust, gateway: SocketAddr, version: &'static SupportedProtocolVersion) -> [[u8; 32]; 2] {
    let mut tls = trust.client(dial(gateway), version);
    tls.write_all(format!("{SIZE}\n").as_bytes()).unwrap();
    let sent = send(&mut tls, SIZE).unwrap();
    let got = receive(&mut tls, SIZE).unwrap();
    assert_eq!(tls.conn.protocol_version(), Some(version.version));
    [sent, got]
}

#[test]
fn tls_rustls_to_rustls() {
    let trust = trust();
    for (name, _, version) in VERSIONS {
        let endpoint = Endpoint::new();
        let gateway = gateway(endpoint.address());
        let server = serve(trust, endpoint);
        let [sent, got] = talk(trust, gateway.address(), version);
        let served = server.join().unwrap();
        assert_eq!((served.got, served.sent), (sent, got));
        assert_eq!(served.id, CLIENT_ID);
        let line = gateway.log().wait("the connection", |line| line.text("sni") == HOST);
        assert!(line.number("bytes_in") > SIZE && line.number("bytes_out") > SIZE, "{line:?}");
        assert_eq!(line.text("service"), "web.example:443");
        figure!("rustls to rustls, {name}: 1 MiB each way, the service saw {}", served.id);
    }
}

/// Serves one connection; returns the early data and the data after the handshake.
fn serve_early(endpoint: &Endpoint, config: &Arc<ServerConfig>) -> (Vec<u8>, Vec<u8>) {
    let mut stream = endpoint.accept();
    let mut tls = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut early = Vec::new();
    while tls.is_handshaking() {
        tls.complete_io(&mut stream).unwrap();
        if let Some(mut data) = tls.early_data() {
            data.read_to_end(&mut early).unwrap();
        }
    }
    let mut tls = StreamOwned::new(tls, stream);
    let mut late = Vec::new();
    tls.read_to_end(&mut late).unwrap();
    tls.write_all(b"thanks").unwrap();
    tls.conn.send_close_notify();
    tls.flush().unwrap();
    (early, late)
}

/// Makes one connection; returns whether its early data was accepted.
fn talk_early(gateway: SocketAddr, config: &Arc<ClientConfig>) -> bool {
    let tls = ClientConnection::new(Arc::clone(config), ServerName::try_from(HOST).unwrap()).unwrap();
    let mut tls = StreamOwned::new(tls, dial(gateway));
    if let Some(mut early) = tls.conn.early_data() {
        early.write_all(b"with the hello").unwrap();
    }
    tls.write_all(b"after it").unwrap();
    tls.conn.send_close_notify();
    let mut reply = Vec::new();
    tls.read_to_end(&mut reply).unwrap();
    assert_eq!(reply, b"thanks");
    tls.conn.is_early_data_accepted()
}

/// A resumed session with bytes after the hello, before the service's first byte.
#[test]
fn tls_early_data_reaches_the_service() {
    let (client, server) = trust().early();
    let endpoint = Endpoint::new();
    let gateway = gateway(endpoint.address());
    for resumed in [false, true, true] {
        let (served, taken) = thread::scope(|scope| {
            let served = scope.spawn(|| serve_early(&endpoint, &server));
            let taken = talk_early(gateway.address(), &client);
            (served.join().unwrap(), taken)
        });
        let early: &[u8] = if resumed { b"with the hello" } else { b"" };
        assert_eq!((served.0.as_slice(), served.1.as_slice()), (early, b"after it".as_slice()));
        assert_eq!(taken, resumed);
    }
    figure!("TLS 1.3 resumed twice, early data accepted both times");
}

#[test]
fn tls_openssl_to_rustls() {
    let Some(openssl) = python() else { skip!("python3 with ssl is not installed") };
    let trust = trust();
    for (name, python, _) in VERSIONS {
        let endpoint = Endpoint::new();
        let gateway = gateway(endpoint.address());
        let server = serve(trust, endpoint);
        let mut client = python_client(trust, gateway.address(), python, SIZE);
        let reply = client.line();
        let served = server.join().unwrap();
        assert_eq!(reply, format!("{name} {} {}", hex(served.got), hex(served.sent)));
        assert_eq!(served.id, CLIENT_ID);
        figure!("{openssl} to rustls, {name}: 1 MiB each way, the service saw {}", served.id);
    }
}

#[test]
fn tls_rustls_to_openssl() {
    let Some(openssl) = python() else { skip!("python3 with ssl is not installed") };
    let trust = trust();
    let (mut server, address) = python_server(trust);
    let gateway = gateway(address);
    for (name, _, version) in VERSIONS {
        let [sent, got] = talk(trust, gateway.address(), version);
        assert_eq!(server.line(), format!("{name} {CLIENT_ID}"));
        assert_eq!(server.line(), format!("{} {}", hex(got), hex(sent)));
        figure!("rustls to {openssl}, {name}: 1 MiB each way, the service saw {CLIENT_ID}");
    }
}

#[test]
fn tls_openssl_to_openssl() {
    let Some(openssl) = python() else { skip!("python3 with ssl is not installed") };
    let trust = trust();
    let (mut server, address) = python_server(trust);
    let gateway = gateway(address);
    for (name, python, _) in VERSIONS {
        let mut client = python_client(trust, gateway.address(), python, SIZE);
        assert_eq!(server.line(), format!("{name} {CLIENT_ID}"));
        let hashes = server.line();
        let (sent, got) = hashes.split_once(' ').unwrap();
        assert_eq!(client.line(), format!("{name} {got} {sent}"));
        figure!("{openssl} to itself, {name}: 1 MiB each way, the service saw {CLIENT_ID}");
    }
}

#[test]
fn tls_openssl_s_client_to_rustls() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let trust = trust();
    for (name, flag) in [("TLSv1.2", "-tls1_2"), ("TLSv1.3", "-tls1_3")] {
        let endpoint = Endpoint::new();
        let gateway = gateway(endpoint.address());
        let server = serve(trust, endpoint);
        let mut client = Peer::start(
            Command::new("openssl")
                .args(["s_client", "-quiet", "-verify_return_error", "-servername", HOST, flag])
                .args(["-connect", &gateway.address().to_string()])
                .arg("-CAfile")
                .arg(trust.file("root.crt"))
                .arg("-cert")
                .arg(trust.file("client.crt"))
                .arg("-key")
                .arg(trust.file("client.key")),
        );
        let mut bytes = format!("{SIZE}\n").into_bytes();
        bytes.extend(isthmus_tests::bulk::random(1 << 20));
        client.feed(&bytes);
        let got = client.rest();
        let served = server.join().unwrap();
        assert_eq!((served.id.as_str(), got.len() as u64), (CLIENT_ID, SIZE));
        assert_eq!(receive(&mut got.as_slice(), SIZE).unwrap(), served.sent);
        assert_eq!(receive(&mut &bytes[bytes.len() - (1 << 20)..], SIZE).unwrap(), served.got);
        figure!("openssl s_client {name}: 1 MiB each way, the service saw {CLIENT_ID}");
    }
}

#[test]
fn tls_rustls_to_openssl_s_server() {
    if !openssl() {
        skip!("openssl is not installed");
    }
    let trust = trust();
    for (name, _, version) in VERSIONS {
        let mut server = Peer::start(
            Command::new("openssl")
                .args(["s_server", "-accept", "127.0.0.1:0", "-Verify", "3", "-verify_return_error", "-www"])
                .arg("-CAfile")
                .arg(trust.file("root.crt"))
                .arg("-cert")
                .arg(trust.file("server.crt"))
                .arg("-key")
                .arg(trust.file("server.key")),
        );
        let address: SocketAddr = server.find("ACCEPT ").parse().unwrap();
        let gateway = gateway(address);
        let mut tls = trust.client(dial(gateway.address()), version);
        tls.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        // s_server closes without close_notify.
        let _end = tls.read_to_string(&mut page);
        assert!(page.contains(&format!("URI:{CLIENT_ID}")), "the server did not see the client: {page}");
        figure!("rustls to openssl s_server, {name}: the service saw {CLIENT_ID}");
    }
}
