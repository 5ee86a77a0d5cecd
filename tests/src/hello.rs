//! ClientHellos: real ones by rustls, and hand-built ones with one defect.

use std::io::Read;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion, version};

/// The first flight of a rustls client with the default, post-quantum key exchange.
#[must_use]
pub fn hello(sni: &str) -> Vec<u8> {
    hello_of(Some(sni), &[], &[&version::TLS13, &version::TLS12])
}

/// The first flight of a rustls client; without a name it has no SNI.
#[must_use]
pub fn hello_of(sni: Option<&str>, alpn: &[&str], versions: &[&'static SupportedProtocolVersion]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = sni.is_some();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(sni.unwrap_or("none.example").to_owned()).unwrap();
    let mut flight = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut flight).unwrap();
    flight
}

/// A builder of hellos.
#[derive(Clone, Debug)]
pub struct Hello {
    /// `legacy_version`.
    pub version: u16,
    /// Its extensions in order.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

/// Extension 0 with one host name.
#[must_use]
pub fn sni(name: &[u8]) -> (u16, Vec<u8>) {
    let mut entry = vec![0];
    entry.extend(sized(name));
    (0, sized(&entry))
}

/// Extension 16.
#[must_use]
pub fn alpn(names: &[&str]) -> (u16, Vec<u8>) {
    let list: Vec<u8> =
        names.iter().flat_map(|name| [&[name.len() as u8], name.as_bytes()].concat()).collect();
    (16, sized(&list))
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

impl Hello {
    /// A small TLS 1.3 hello with this name.
    #[must_use]
    pub fn new(name: &str) -> Hello {
        let share = [&[0, 0x1d, 0, 32], [9; 32].as_slice()].concat();
        Hello {
            version: 0x0303,
            extensions: vec![
                (0x0a0a, Vec::new()),
                sni(name.as_bytes()),
                (10, sized(&[0, 0x1d])),
                (13, sized(&[4, 3])),
                (43, vec![2, 3, 4]),
                (51, sized(&share)),
            ],
        }
    }

    /// Adds an extension.
    #[must_use]
    pub fn and(mut self, extension: (u16, Vec<u8>)) -> Hello {
        self.extensions.push(extension);
        self
    }

    /// Removes the extensions of this type.
    #[must_use]
    pub fn without(mut self, kind: u16) -> Hello {
        self.extensions.retain(|(own, _)| *own != kind);
        self
    }

    /// Pads the handshake message to this size with a padding extension.
    #[must_use]
    pub fn padded_to(self, size: usize) -> Hello {
        let padding = size - self.message().len() - 4;
        self.and((21, vec![0; padding]))
    }

    /// The handshake message.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        let mut body = self.version.to_be_bytes().to_vec();
        body.extend([7; 32]);
        body.extend([32]);
        body.extend([8; 32]);
        body.extend([0, 4, 0x13, 1, 0x13, 2]);
        body.extend([1, 0]);
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), sized(data)].concat())
            .collect();
        body.extend(sized(&extensions));
        let mut message = vec![1];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        message
    }

    /// Encodes in records of at most this size.
    #[must_use]
    pub fn records(&self, most: usize) -> Vec<u8> {
        records(&self.message(), most)
    }

    /// Encodes in as few records as possible.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.records(16_384)
    }
}

/// Splits a handshake message into records of at most `most` bytes.
#[must_use]
pub fn records(message: &[u8], most: usize) -> Vec<u8> {
    message.chunks(most).flat_map(|part| [vec![22, 3, 1], sized(part)].concat()).collect()
}

/// Reads exactly one hello, in any number of records.
pub fn read_hello(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut raw = Vec::new();
    let mut message = Vec::new();
    loop {
        let mut header = [0; 5];
        stream.read_exact(&mut header)?;
        let mut body = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
        stream.read_exact(&mut body)?;
        raw.extend(header);
        raw.extend(&body);
        message.extend(body);
        if let [_, a, b, c, rest @ ..] = message.as_slice()
            && rest.len() >= u32::from_be_bytes([0, *a, *b, *c]) as usize
        {
            return Ok(raw);
        }
    }
}
