//! Probes a live TLS endpoint: which chain it presents, and whether it requires a client certificate. The chain is not
//! verified; only that the endpoint holds its key.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ClientConnection, SignatureScheme, StreamOwned};
use serde::Serialize;

use crate::bundle::Role;
use crate::crypto;
use crate::tls::{ChainJudge, ChainVerifier};

/// How long to wait for the alert of a server that asked for a certificate and got none: in TLS 1.3 it comes after the
/// handshake is complete for the client.
const OBJECTION: Duration = Duration::from_secs(1);

/// Bytes of `HTTP/1.1 400`.
const STATUS_LINE: usize = 12;

/// What an endpoint presents to a client without a certificate.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its chain, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The TLS version, such as `TLSv1_3`.
    pub version: Option<String>,
    /// The protocol (ALPN) that it chose.
    pub alpn: Option<String>,
    /// Whether it requires a client certificate.
    pub client_certificate: ClientCertificate,
    /// Its HTTP status for a request without a certificate, if it was sent one.
    pub status: Option<u16>,
}

/// Whether an endpoint requires client certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificate {
    /// It does not ask for one.
    NotAsked,
    /// It asks for one and accepts clients without.
    Asked,
    /// It refuses clients without one, by an alert.
    Demanded,
    /// It asks for one and closed the connection without an alert.
    Unclear,
}

/// Why a probe failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Not a valid server name.
    #[error("{0:?} is not a valid server name; write a DNS name")]
    Name(String, #[source] InvalidDnsNameError),
    /// It does not speak TLS, refuses the name, or closes the connection.
    #[error("the TLS handshake failed: {0}; is it a TLS port, and does it know this name (--sni)?")]
    Handshake(#[source] io::Error),
    /// The TLS client could not be created.
    #[error("cannot create a TLS client")]
    Client(#[source] rustls::Error),
}

/// The ClientHello of a client without a certificate, as it would be sent.
pub fn hello(sni: &str, alpn: &[&[u8]]) -> Result<Vec<u8>, ProbeError> {
    let mut wire = Vec::new();
    client(&Arc::default(), sni, alpn)?.write_tls(&mut wire).map_err(ProbeError::Handshake)?;
    Ok(wire)
}

fn client(witness: &Arc<Witness>, sni: &str, alpn: &[&[u8]]) -> Result<ClientConnection, ProbeError> {
    let name = ServerName::try_from(sni.to_owned())
        .map_err(|error| ProbeError::Name(sni.chars().take(253).collect(), error))?;
    ClientConnection::new(Arc::new(config(witness, alpn)?), name).map_err(ProbeError::Client)
}

/// Makes a handshake over a connection. The caller sets its timeouts.
pub fn inspect(stream: TcpStream, sni: &str, alpn: &[&[u8]]) -> Result<Seen, ProbeError> {
    inspect_then(stream, sni, alpn, |_| None)
}

/// As [`inspect`]. If the server asked for a certificate, accepted that there was none, and chose HTTP/1.1, it is also sent a
/// request (`HEAD /`): some servers refuse only that.
pub fn inspect_and_request(stream: TcpStream, sni: &str, alpn: &[&[u8]]) -> Result<Seen, ProbeError> {
    inspect_then(stream, sni, alpn, |stream| {
        (stream.conn.alpn_protocol() == Some(b"http/1.1")).then(|| request(stream, sni)).flatten()
    })
}

fn inspect_then(
    stream: TcpStream,
    sni: &str,
    alpn: &[&[u8]],
    then: impl FnOnce(&mut Stream) -> Option<u16>,
) -> Result<Seen, ProbeError> {
    let witness = Arc::new(Witness::default());
    let mut client = client(&witness, sni, alpn)?;
    let mut socket = &stream;
    let handshake = loop {
        if !client.is_handshaking() && !client.wants_write() {
            break Ok(());
        }
        if let Err(error) = client.complete_io(&mut socket) {
            break Err(error);
        }
    };
    let chain = witness.chain.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let was_asked = witness.was_asked.load(Relaxed);
    let version = client.protocol_version().and_then(|version| version.as_str().map(str::to_owned));
    let alpn = client.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
    let mut status = None;
    let client_certificate = match handshake {
        // TLS 1.2 sends the alert within the handshake, after the server's certificate.
        Err(error) if was_asked && is_alert(&error) => ClientCertificate::Demanded,
        Err(error) => return Err(ProbeError::Handshake(error)),
        Ok(()) if !was_asked => ClientCertificate::NotAsked,
        Ok(()) => {
            let mut stream = StreamOwned::new(client, stream);
            let answer = answer(&mut stream);
            if answer == ClientCertificate::Asked {
                status = then(&mut stream);
            }
            answer
        }
    };
    Ok(Seen { chain, version, alpn, client_certificate, status })
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Sends a request and reads the status line of its answer.
fn request(stream: &mut Stream, host: &str) -> Option<u16> {
    write!(stream, "HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").ok()?;
    stream.flush().ok()?;
    let mut line = [0; STATUS_LINE];
    stream.read_exact(&mut line).ok()?;
    let status = line.strip_prefix(b"HTTP/1.1 ").or(line.strip_prefix(b"HTTP/1.0 "))?;
    std::str::from_utf8(status).ok()?.parse().ok()
}

/// How a server that asked for a certificate treats a client without one.
fn answer(stream: &mut Stream) -> ClientCertificate {
    if stream.sock.set_read_timeout(Some(OBJECTION)).is_err() {
        return ClientCertificate::Unclear;
    }
    match stream.read(&mut [0]) {
        Ok(0) => ClientCertificate::Unclear,
        Ok(_) => ClientCertificate::Asked,
        Err(error) if is_alert(&error) => ClientCertificate::Demanded,
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientCertificate::Asked,
            _ => ClientCertificate::Unclear,
        },
    }
}

fn is_alert(error: &io::Error) -> bool {
    let error = error.get_ref().and_then(|error| error.downcast_ref());
    matches!(error, Some(rustls::Error::AlertReceived(_)))
}

fn config(witness: &Arc<Witness>, alpn: &[&[u8]]) -> Result<ClientConfig, ProbeError> {
    let mut config = ClientConfig::builder_with_provider(crypto::provider())
        .with_safe_default_protocol_versions()
        .map_err(ProbeError::Client)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ChainVerifier(Arc::clone(witness))))
        .with_client_cert_resolver(Arc::clone(witness) as Arc<dyn ResolvesClientCert>);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Records what the server presents and whether it asks for a certificate.
#[derive(Debug, Default)]
struct Witness {
    chain: Mutex<Vec<CertificateDer<'static>>>,
    was_asked: AtomicBool,
}

impl ResolvesClientCert for Witness {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.was_asked.store(true, Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

impl ChainJudge for Arc<Witness> {
    fn judge(&self, chain: &[CertificateDer<'_>], _role: Role, _now: UnixTime) -> Result<(), rustls::Error> {
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) =
            chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Ok(())
    }
}
