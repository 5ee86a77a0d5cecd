//! TLS clients and servers: rustls, and OpenSSL through its command and through Python.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::{Authority, Identity, SpiffeId, TrustDomain, peer_id};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};
use tempfile::TempDir;

/// The DNS name in the service's certificate.
pub const HOST: &str = "web.example";
/// The client's identity.
pub const CLIENT_ID: &str = "spiffe://east.example/ns/test/sa/client";

/// An authority with the identities of a client and a service, also as files.
#[derive(Debug)]
pub struct Trust {
    authority: Authority,
    client: Identity,
    server: Identity,
    folder: TempDir,
}

/// A TLS connection of the client.
pub type ClientStream = StreamOwned<ClientConnection, TcpStream>;
/// A TLS connection of the server.
pub type ServerStream = StreamOwned<ServerConnection, TcpStream>;

impl Default for Trust {
    fn default() -> Self {
        Trust::new()
    }
}

impl Trust {
    /// Creates the authority and both identities.
    #[must_use]
    pub fn new() -> Trust {
        let domain = TrustDomain::new("east.example").unwrap();
        let authority = Authority::generate(domain).unwrap();
        let issue = |account| {
            let id = SpiffeId::workload(authority.trust_domain(), "test", account).unwrap();
            authority.issue(&id, &[HOST], Duration::from_secs(3600)).unwrap()
        };
        let (client, server) = (issue("client"), issue("server"));
        let folder = tempfile::tempdir().unwrap();
        client.write_to(folder.path(), "client").unwrap();
        server.write_to(folder.path(), "server").unwrap();
        std::fs::write(folder.path().join("root.crt"), authority.certificate_pem()).unwrap();
        Trust { authority, client, server, folder }
    }

    /// The path of `root.crt`, `client.crt`, `client.key`, `server.crt` or `server.key`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate().clone()).unwrap();
        Arc::new(roots)
    }

    /// A rustls client with a certificate and a single TLS version.
    #[must_use]
    pub fn client(&self, stream: TcpStream, version: &'static SupportedProtocolVersion) -> ClientStream {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(self.client.chain().to_vec(), self.client.key().clone_key())
            .unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
    }

    /// A rustls server that requires a client certificate.
    #[must_use]
    pub fn server(&self, stream: TcpStream) -> ServerStream {
        let provider = Arc::new(default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), Arc::clone(&provider));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(self.server.chain().to_vec(), self.server.key().clone_key())
            .unwrap();
        StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), stream)
    }

    /// Configurations of both ends without client certificates and resumption.
    #[must_use]
    pub fn ends(&self) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        let provider = Arc::new(default_provider());
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.server.chain().to_vec(), self.server.key().clone_key())
            .unwrap();
        server.send_tls13_tickets = 0;
        (Arc::new(client), Arc::new(server))
    }

    /// Configurations of both ends for early data, which uses a ticket of an earlier connection.
    #[must_use]
    pub fn early(&self) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
        let provider = Arc::new(default_provider());
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        client.enable_early_data = true;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.server.chain().to_vec(), self.server.key().clone_key())
            .unwrap();
        server.max_early_data_size = 16 * 1024;
        (Arc::new(client), Arc::new(server))
    }

    /// The client's SPIFFE ID after the handshake.
    #[must_use]
    pub fn seen(stream: &ServerStream) -> String {
        peer_id(stream.conn.peer_certificates().expect("a client certificate")).unwrap().to_string()
    }
}

/// The OpenSSL version of Python's `ssl` module; `None` if it is not installed.
#[must_use]
pub fn python() -> Option<String> {
    let output =
        Command::new("python3").args(["-c", "import ssl; print(ssl.OPENSSL_VERSION)"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Whether the `openssl` command is installed.
#[must_use]
pub fn openssl() -> bool {
    Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success())
}

/// A program at one end, killed when dropped.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Peer {
    /// Starts the program.
    #[must_use]
    pub fn start(command: &mut Command) -> Peer {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Peer { child, lines }
    }

    /// Reads its next line.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).unwrap() > 0, "the peer exited");
        line.trim_end().to_owned()
    }

    /// Reads lines up to one with this word; returns the rest of that line.
    #[track_caller]
    pub fn find(&mut self, word: &str) -> String {
        loop {
            let line = self.line();
            if let Some((_, rest)) = line.split_once(word) {
                return rest.to_owned();
            }
        }
    }

    /// Reads its remaining output.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.lines.read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Writes to its standard input, then closes it.
    pub fn feed(&mut self, bytes: &[u8]) {
        let mut input = self.child.stdin.take().unwrap();
        input.write_all(bytes).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// An OpenSSL server in Python: prints its port, and the version and the SPIFFE ID of each client; then
/// receives and sends as many bytes as the client's first line says, as `SIZE\n`.
#[must_use]
pub fn python_server(trust: &Trust) -> (Peer, SocketAddr) {
    let mut peer =
        Peer::start(
            Command::new("setpriv")
                .args(["--pdeathsig=KILL", "python3", "-u", "-c", PYTHON, "server"])
                .args([trust.file("server.crt"), trust.file("server.key"), trust.file("root.crt")]),
        );
    let port: u16 = peer.line().parse().unwrap();
    (peer, SocketAddr::from(([127, 0, 0, 1], port)))
}

/// An OpenSSL client in Python: sends and receives `size` bytes, prints the version and both hashes.
#[must_use]
pub fn python_client(trust: &Trust, gateway: SocketAddr, version: &str, size: u64) -> Peer {
    Peer::start(
        Command::new("setpriv")
            .args(["--pdeathsig=KILL", "python3", "-u", "-c", PYTHON, "client"])
            .args([trust.file("client.crt"), trust.file("client.key"), trust.file("root.crt")])
            .args([gateway.port().to_string(), version.to_owned(), size.to_string()]),
    )
}

const PYTHON: &str = r#"
import hashlib, os, socket, ssl, sys, threading
role, cert, key, root = sys.argv[1:5]
socket.setdefaulttimeout(60)

def receive(tls, size):
    got = hashlib.sha256()
    while size:
        part = tls.recv(min(size, 65536))
        if not part:
            raise SystemExit("%d bytes short" % size)
        got.update(part)
        size -= len(part)
    return got.hexdigest()

if role == "server":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(root)
    context.load_cert_chain(cert, key)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1])
    while True:
        tls = context.wrap_socket(listener.accept()[0], server_side=True)
        names = [name for kind, name in tls.getpeercert()["subjectAltName"] if kind == "URI"]
        print(tls.version(), names[0])
        size = b""
        while not size.endswith(b"\n"):
            size += tls.recv(1)
        size = int(size)
        got = receive(tls, size)
        data = os.urandom(size)
        tls.sendall(data)
        print(hashlib.sha256(data).hexdigest(), got)
        try:
            tls.unwrap()
        except (OSError, ssl.SSLError):
            pass
        tls.close()
else:
    port, version, size = int(sys.argv[5]), sys.argv[6], int(sys.argv[7])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.load_verify_locations(root)
    context.load_cert_chain(cert, key)
    tls = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="web.example")
    data = os.urandom(size)
    tls.sendall(b"%d\n" % size)
    tls.sendall(data)
    got = receive(tls, size)
    print(tls.version(), hashlib.sha256(data).hexdigest(), got)
"#;
