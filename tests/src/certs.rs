//! Creates authorities with the `isthmus-certs` binary in a temporary directory, and rustls clients and
//! servers that trust their files. Everything is made by the command line or by a peer's own program, never
//! by the library.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use isthmus_certs::{Client, Peer, Server, SpiffeId, Trust, TrustFiles, VerifyError, peer_id};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binary;
use crate::client::dial;
use crate::wait::DEADLINE;

/// The certificate and key of east's intermediate.
pub const EAST: [&str; 2] = ["east/clusters/east/ca-cert.pem", "east/clusters/east/ca-key.pem"];
/// The certificate and key of west's intermediate.
pub const WEST: [&str; 2] = ["west/clusters/west/ca-cert.pem", "west/clusters/west/ca-key.pem"];

/// Several authorities, each in its own subdirectory.
#[derive(Debug)]
pub struct Sites(TempDir);

/// The exit code and the output of a program.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

impl Ran {
    fn from_output(output: Output) -> Ran {
        let ran = Ran {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).expect("UTF-8 on standard output"),
            err: String::from_utf8(output.stderr).expect("UTF-8 on standard error"),
        };
        assert!(!ran.err.contains("panicked"), "{ran:?}");
        ran
    }

    /// Standard output; panics unless the exit code is 0.
    #[track_caller]
    #[must_use]
    pub fn done(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out
    }

    /// Standard error; panics unless the exit code is 1.
    #[track_caller]
    #[must_use]
    pub fn refused(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        self.err
    }
}

impl Default for Sites {
    fn default() -> Self {
        Sites::new()
    }
}

impl Sites {
    /// Creates the directory, without authorities.
    #[must_use]
    pub fn new() -> Sites {
        Sites(tempfile::Builder::new().prefix("isthmus-sites-").tempdir().unwrap())
    }

    /// `east` and `west`, each with the leaf `direct` signed by its root, a cluster, and the leaf `below`
    /// signed by the cluster's intermediate; each trusts the other. Leaves have the DNS name `web.example`
    /// and the identity `/ns/test/sa/NAME` of their domain.
    #[must_use]
    pub fn federated() -> Sites {
        let sites = Sites::new();
        for site in ["east", "west"] {
            sites.found(site);
        }
        for (site, other) in [("east", "west"), ("west", "east")] {
            sites.done(other, &format!("bundle --for spiffe --out {other}.json"));
            sites.done(site, &format!("bundle add {other}.json --trust-domain {other}.example"));
        }
        sites
    }

    /// Creates one of these authorities, which trusts only itself.
    pub fn found(&self, site: &str) {
        self.done(site, &format!("init --trust-domain {site}.example"));
        self.leaf(site, "direct");
        self.done(site, &format!("intermediate --cluster {site}"));
        self.leaf(site, "below");
    }

    /// Issues a leaf certificate.
    pub fn leaf(&self, site: &str, name: &str) {
        let names = "--dns web.example --ip 127.0.0.1";
        self.done(site, &format!("issue --spiffe {} --name {name} {names}", id(site, name)));
    }

    /// The directory of all authorities.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    /// The path of a file, relative to that directory.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder().join(name)
    }

    /// Reads a file.
    #[must_use]
    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Creates or replaces a file.
    #[track_caller]
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Builds an `isthmus-certs` command for the authority in the directory `site`, or for none if it is
    /// empty. Arguments are separated by spaces, and paths are relative to [`Sites::folder`].
    #[must_use]
    pub fn command(&self, site: &str, words: &str) -> Command {
        let mut command = Command::new(binary::certs());
        command.args(words.split_whitespace()).env_remove("ISTHMUS_CERTS_DIR");
        if !site.is_empty() {
            command.env("ISTHMUS_CERTS_DIR", site);
        }
        command.current_dir(self.folder()).stdin(Stdio::null());
        command
    }

    /// Runs `isthmus-certs` to its end.
    #[must_use]
    pub fn run(&self, site: &str, words: &str) -> Ran {
        Ran::from_output(self.command(site, words).output().unwrap())
    }

    /// Runs a command that must succeed; returns its text output.
    #[track_caller]
    pub fn done(&self, site: &str, words: &str) -> String {
        self.run(site, words).done()
    }

    /// Runs a command that must succeed; returns its JSON output.
    #[track_caller]
    pub fn json(&self, site: &str, words: &str) -> Value {
        let parsed = self.run(site, &format!("{words} --json")).done();
        serde_json::from_str(&parsed).unwrap_or_else(|error| panic!("{words}: {error}\n{parsed}"))
    }

    /// Runs a command that must fail; returns its error, which is the same as text and as JSON.
    #[track_caller]
    #[must_use]
    pub fn refused(&self, site: &str, words: &str) -> String {
        let why = self.run(site, words).refused();
        let json = self.run(site, &format!("{words} --json")).refused();
        let json: Value = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
        let text =
            why.trim_end().strip_prefix("isthmus-certs: ").expect("errors start with the program's name");
        assert_eq!(json["error"], text, "{words}");
        text.to_owned()
    }

    /// Builds a command of another program in the same directory.
    #[must_use]
    pub fn other(&self, program: &str, words: &str) -> Command {
        let mut command = Command::new(program);
        command.args(words.split_whitespace()).current_dir(self.folder());
        command
    }

    /// Runs `openssl` to its end.
    #[must_use]
    pub fn openssl(&self, words: &str) -> Ran {
        Ran::from_output(self.other("openssl", words).stdin(Stdio::null()).output().unwrap())
    }

    /// Creates a leaf with OpenSSL: a new P-256 key in `NAME.key`, and in `NAME.crt` a certificate with these
    /// extensions, signed by this certificate and key.
    pub fn forge(&self, name: &str, [certificate, key]: [&str; 2], extensions: &str) {
        self.write(&format!("{name}.ext"), extensions);
        let request = "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /";
        let _made = self.openssl(&format!("{request} -keyout {name}.key -out {name}.csr")).done();
        let sign = format!("x509 -req -in {name}.csr -CA {certificate} -CAkey {key} -days 1");
        let _made = self.openssl(&format!("{sign} -extfile {name}.ext -out {name}.crt")).done();
    }

    /// The certificate, key and bundle files of a leaf.
    #[must_use]
    pub fn trust_files(&self, site: &str, leaf: &str) -> TrustFiles {
        let site = self.path(site);
        TrustFiles {
            certificate: site.join(format!("leaves/{leaf}/tls.crt")),
            key: site.join(format!("leaves/{leaf}/tls.key")),
            bundles: site.join("bundles"),
            ..TrustFiles::default()
        }
    }

    /// The identity and the bundles of a leaf.
    #[must_use]
    #[track_caller]
    pub fn trust(&self, site: &str, leaf: &str) -> Trust {
        Trust::load(&self.trust_files(site, leaf)).unwrap()
    }

    /// A client with this leaf that expects an identity.
    #[must_use]
    #[track_caller]
    pub fn client(&self, site: &str, leaf: &str, expected: &str) -> Arc<ClientConfig> {
        Client::new(self.trust(site, leaf), only(expected), &[]).unwrap().config()
    }

    /// A server on loopback with this leaf that accepts one client identity.
    #[must_use]
    #[track_caller]
    pub fn serve(&self, site: &str, leaf: &str, allowed: &str) -> Serving {
        Serving::new(Server::new(self.trust(site, leaf), only(allowed), &[]).unwrap().config())
    }
}

/// The `x509` extension file of a leaf like ours, with this identity.
#[must_use]
pub fn like_ours(id: &str) -> String {
    format!(
        "subjectAltName=critical,URI:{id}\nbasicConstraints=critical,CA:FALSE\n\
         keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n\
         subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    )
}

/// The identity of a leaf of [`Sites::leaf`].
#[must_use]
pub fn id(site: &str, name: &str) -> String {
    format!("spiffe://{site}.example/ns/test/sa/{name}")
}

/// A peer with exactly this identity.
#[must_use]
pub fn only(id: &str) -> Peer {
    Peer::Ids(vec![SpiffeId::parse(id).unwrap()])
}

/// The result of a connection to a [`Serving`].
#[derive(Debug)]
pub struct Served {
    /// The client's identity and the line that it sent, or the error.
    pub result: Result<(String, String), String>,
}

/// A rustls server that answers the first line of each connection with the line reversed.
#[derive(Debug)]
pub struct Serving {
    /// Its address.
    pub address: SocketAddr,
    served: Receiver<Served>,
}

impl Serving {
    /// Starts a server with this configuration.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>) -> Serving {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, served) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let result = answer(connection, stream).map_err(|error| why(&error));
                if tell.send(Served { result }).is_err() {
                    return;
                }
            }
        });
        Serving { address, served }
    }

    /// Waits for the result of the next connection.
    #[track_caller]
    pub fn next(&self) -> Result<(String, String), String> {
        self.served.recv_timeout(DEADLINE).expect("a connection ends").result
    }
}

fn answer(connection: ServerConnection, stream: TcpStream) -> io::Result<(String, String)> {
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut tls = StreamOwned::new(connection, stream);
    let line = read_line(&mut tls)?;
    let id = peer_id(tls.conn.peer_certificates().unwrap_or_default()).map_err(io::Error::other)?;
    tls.write_all(backwards(&line).as_bytes())?;
    tls.conn.send_close_notify();
    tls.flush()?;
    // Waits for the client's close, so that a reset does not lose the answer.
    let _end = tls.read(&mut [0; 64]);
    Ok((id.to_string(), line))
}

/// The error of a connection; the verification error if this side refused the peer.
#[must_use]
pub fn why(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    tls.and_then(VerifyError::find_in).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The line reversed, with its newline at the end, as `openssl s_server -rev` answers.
#[must_use]
pub fn backwards(line: &str) -> String {
    line.trim_end().chars().rev().chain(['\n']).collect()
}

fn read_line(from: &mut impl Read) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        from.read_exact(&mut byte)?;
        line.extend(byte);
    }
    String::from_utf8(line).map_err(io::Error::other)
}

/// Sends a line over TLS and reads one; also returns the server's identity.
pub fn ask(
    config: &Arc<ClientConfig>,
    to: SocketAddr,
    sni: &str,
    line: &str,
) -> io::Result<(String, String)> {
    let name = ServerName::try_from(sni.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut tls = StreamOwned::new(connection, dial(to));
    tls.write_all(line.as_bytes())?;
    let answer = read_line(&mut tls)?;
    tls.conn.send_close_notify();
    tls.flush()?;
    let id = peer_id(tls.conn.peer_certificates().unwrap_or_default()).map_err(io::Error::other)?;
    Ok((id.to_string(), answer))
}

/// Finds Envoy: at `ISTHMUS_ENVOY`, where `tests/run` installs it, or in PATH.
#[must_use]
pub fn envoy() -> Option<PathBuf> {
    let installed = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/bin/envoy");
    let places = [std::env::var_os("ISTHMUS_ENVOY"), Some(installed.into()), Some(OsString::from("envoy"))];
    let runs = |place: &PathBuf| {
        Command::new(place).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    places.into_iter().flatten().map(PathBuf::from).find(runs)
}

/// The serial number of a certificate file.
#[must_use]
#[track_caller]
pub fn serial(sites: &Sites, file: &str) -> String {
    sites.json("", &format!("inspect {file}"))["chain"][0]["serial"].as_str().unwrap().to_owned()
}

/// The modes, file contents and link targets of everything below a directory except `.lock`.
#[must_use]
pub fn snapshot(folder: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let content = if kind.is_dir() {
            found.extend(snapshot(&path));
            Vec::new()
        } else if kind.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            fs::read(&path).unwrap()
        };
        found.insert(path, (entry.metadata().unwrap().mode(), content));
    }
    found.retain(|path, _| !path.ends_with(".lock"));
    found
}

/// Verifies, as text and as JSON, that a chain is refused with this reason.
#[track_caller]
pub fn wrong(sites: &Sites, chain: &str, words: &str, reason: &str) {
    let words = format!("verify {chain} --bundles east/bundles {words}");
    let ran = sites.run("", &format!("{words} --json"));
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let parsed: Value = serde_json::from_str(&ran.out).unwrap_or_else(|_| panic!("{words}: {ran:?}"));
    assert_eq!((&parsed["believed"], &parsed["reason"]), (&json!(false), &json!(reason)), "{parsed}");
    let text = sites.run("", &words);
    assert_eq!(text.code, Some(1));
    let sentence = text.out.trim_end();
    assert!(sentence.starts_with(&format!("{chain}: ")), "{sentence}");
    let says_how =
        ["; ", " must ", "a SPIFFE ID starts with", " needs "].iter().any(|how| sentence.contains(how));
    assert!(says_how, "no remedy: {sentence}");
}
