//! Helpers of the TLS tests: two federated domains, ends that present any chain, and real handshakes in memory.

use std::io::{Read, Write};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConnection, ServerConnection, SupportedProtocolVersion};

use super::*;
use crate::Authority;

pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const REQUEST: &[u8] = b"a request";
pub(super) const REPLY: &[u8] = b"a reply that did not wait";

pub(super) struct World {
    pub(super) east: Authority,
    pub(super) west: Authority,
    pub(super) bundles: Arc<TrustBundles>,
    pub(super) server: Identity,
    pub(super) client: Identity,
}

impl World {
    /// Two federated domains; the server is of east, the client of west.
    pub(super) fn new() -> Self {
        let [east, west] = ["east.example", "west.example"].map(authority);
        let bundles = bundles(&[&east, &west]);
        let server = east.issue(&workload(&east, "reviews"), &["reviews.example"], HOUR).unwrap();
        let client = west.issue(&workload(&west, "productpage"), &[], HOUR).unwrap();
        Self { east, west, bundles, server, client }
    }

    pub(super) fn server_config(&self, identity: &Identity) -> ServerConfig {
        let allowed = Peer::Domain(self.west.trust_domain().clone());
        server_config(identity, Arc::clone(&self.bundles), allowed).unwrap()
    }

    pub(super) fn client_config(&self, identity: &Identity) -> ClientConfig {
        let expected = Peer::Ids(vec![self.server.id().clone()]);
        client_config(identity, Arc::clone(&self.bundles), expected).unwrap()
    }

    /// Why the server refuses this client.
    pub(super) fn refusal_of(&self, client: &Identity) -> VerifyError {
        server_refusal(connect(self.client_config(client), self.server_config(&self.server)))
    }
}

pub(super) fn authority(domain: &str) -> Authority {
    Authority::generate(TrustDomain::new(domain).unwrap()).unwrap()
}

pub(super) fn workload(authority: &Authority, account: &str) -> SpiffeId {
    SpiffeId::workload(authority.trust_domain(), "bookinfo", account).unwrap()
}

pub(super) fn bundles(authorities: &[&Authority]) -> Arc<TrustBundles> {
    let mut bundles = TrustBundles::new();
    for authority in authorities {
        bundles.add_root(authority.trust_domain().clone(), authority.certificate()).unwrap();
    }
    Arc::new(bundles)
}

/// A client of one TLS version that presents any chain, even one that rustls would refuse to load.
pub(super) fn showing_client(
    chain: &[CertificateDer<'static>],
    identity: &Identity,
    bundles: &Arc<TrustBundles>,
    expected: Peer,
    version: &'static SupportedProtocolVersion,
) -> ClientConfig {
    ClientConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(Arc::clone(bundles), expected))
        .with_client_cert_resolver(resolver(chain, identity))
}

/// A server of one TLS version that presents any chain.
pub(super) fn showing_server(
    chain: &[CertificateDer<'static>],
    identity: &Identity,
    bundles: &Arc<TrustBundles>,
    allowed: Peer,
    version: &'static SupportedProtocolVersion,
) -> ServerConfig {
    let judge = PeerJudge { bundles: Arc::clone(bundles), peer: allowed, lifetime: Arc::default() };
    ServerConfig::builder_with_provider(crypto::provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_client_cert_verifier(Arc::new(ChainVerifier(judge)))
        .with_cert_resolver(resolver(chain, identity))
}

fn resolver(chain: &[CertificateDer<'static>], identity: &Identity) -> Arc<SingleCertAndKey> {
    let key = crypto::provider().key_provider.load_private_key(identity.key.clone_key()).unwrap();
    Arc::new(CertifiedKey::new(chain.to_vec(), key).into())
}

/// The outcome of a connection on which both ends send as early as possible.
pub(super) struct Outcome {
    pub(super) client: Result<ClientConnection, rustls::Error>,
    pub(super) server: Result<ServerConnection, rustls::Error>,
    /// What the server's application could read.
    pub(super) received: Vec<u8>,
    /// What the client's application could read.
    pub(super) answered: Vec<u8>,
}

pub(super) fn connect(client: impl Into<Arc<ClientConfig>>, server: impl Into<Arc<ServerConfig>>) -> Outcome {
    let name = ServerName::try_from("any.name.at.all").unwrap();
    let mut client = ClientConnection::new(client.into(), name).unwrap();
    let mut server = ServerConnection::new(server.into()).unwrap();
    client.writer().write_all(REQUEST).unwrap();
    server.writer().write_all(REPLY).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    while client.wants_write() || server.wants_write() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut flight = flight.as_slice();
        while !flight.is_empty() && server_error.is_none() {
            server.read_tls(&mut flight).unwrap();
            server_error = server.process_new_packets().err();
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        let mut flight = flight.as_slice();
        while !flight.is_empty() && client_error.is_none() {
            client.read_tls(&mut flight).unwrap();
            client_error = client.process_new_packets().err();
        }
    }
    let (mut received, mut answered) = (Vec::new(), Vec::new());
    // Reading ends with WouldBlock: the connection stays open.
    let _ = server.reader().read_to_end(&mut received);
    let _ = client.reader().read_to_end(&mut answered);
    Outcome {
        client: client_error.map_or(Ok(client), Err),
        server: server_error.map_or(Ok(server), Err),
        received,
        answered,
    }
}

impl Outcome {
    /// The error of a server that refuses the client.
    pub(super) fn server_error(self) -> rustls::Error {
        self.assert_silent();
        assert!(matches!(self.client, Err(rustls::Error::AlertReceived(_))), "the client must get an alert");
        self.server.unwrap_err()
    }

    /// The error of a client that refuses the server.
    pub(super) fn client_error(self) -> rustls::Error {
        self.assert_silent();
        assert!(matches!(self.server, Err(rustls::Error::AlertReceived(_))), "the server must get an alert");
        self.client.unwrap_err()
    }

    pub(super) fn assert_silent(&self) {
        assert_eq!(self.received, b"", "the server's application must see nothing");
        assert_eq!(self.answered, b"", "the client's application must see nothing");
    }
}

pub(super) fn server_refusal(outcome: Outcome) -> VerifyError {
    VerifyError::find_in(&outcome.server_error()).unwrap().clone()
}

pub(super) fn client_refusal(outcome: Outcome) -> VerifyError {
    VerifyError::find_in(&outcome.client_error()).unwrap().clone()
}

pub(super) fn chain_error(refusal: VerifyError) -> webpki::Error {
    match refusal {
        VerifyError::Chain { cause, .. } => cause,
        other => panic!("{other}"),
    }
}
