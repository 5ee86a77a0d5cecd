//! Clusters on disk as agents have them, a join endpoint, and attackers: an independent joiner written from
//! docs/decisions/0022, and servers that act as they like.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use isthmus_certs::trust::Watch;
use isthmus_certs::{
    Authority, Bundle, DenyList, Identity, KeyKind, SpiffeId, Trust, TrustDomain, TrustFiles, spiffe_bundle,
};
use isthmus_model::address::Target;
use isthmus_trust::join::{Context, Folders, Guest, Introduction, Party, State, Token, create, serve};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const QUARTER: Duration = Duration::from_secs(15 * 60);

/// A cluster's agent: its authority, its files, and its join context.
pub(crate) struct Side {
    pub(crate) root: Authority,
    pub(crate) party: Party,
    pub(crate) dir: TempDir,
    pub(crate) files: TrustFiles,
    /// The trust of its running agent, which follows the files.
    pub(crate) trust: Trust,
    pub(crate) context: Arc<Context>,
    _watch: Watch,
}

impl Side {
    pub(crate) fn new(cluster: &str, domain: &str) -> Side {
        let root = Authority::generate(TrustDomain::new(domain).unwrap()).unwrap();
        Side::under(root, cluster, 1)
    }

    /// A cluster of an existing domain; its agent's certificate is signed by an intermediate.
    pub(crate) fn under(root: Authority, cluster: &str, sequence: u64) -> Side {
        let dir = tempfile::tempdir().unwrap();
        let domain = root.trust_domain().clone();
        let below = root.intermediate(cluster, KeyKind::P256, HOUR * 2).unwrap();
        let id = SpiffeId::agent(&domain, cluster, "a").unwrap();
        let written = below.issue(&id, &[], HOUR).unwrap().write_to(dir.path(), "tls").unwrap();
        let bundles = dir.path().join("bundles");
        fs::create_dir(&bundles).unwrap();
        fs::create_dir(dir.path().join("deny")).unwrap();
        let bundle = Bundle::new(&domain, sequence, [root.certificate()]).unwrap();
        fs::write(bundles.join(format!("{domain}.json")), spiffe_bundle::write(&bundle).unwrap()).unwrap();
        let deny = Some(dir.path().join("deny"));
        let files = TrustFiles {
            certificate: written.chain,
            key: written.key,
            bundles,
            deny,
            ..TrustFiles::default()
        };
        let party = Party { cluster: cluster.parse().unwrap(), trust_domain: domain };
        let trust = Trust::load(&files).unwrap();
        let watch = trust.watch(files.clone()).unwrap();
        let context = context(trust.clone(), &files, dir.path(), &party, "192.0.2.7:15012");
        Side { root, party, dir, files, trust, context, _watch: watch }
    }

    /// Another process on the same files.
    pub(crate) fn at_address(&self, address: &str) -> Arc<Context> {
        let trust = Trust::load(&self.files).unwrap();
        context(trust, &self.files, self.dir.path(), &self.party, address)
    }

    /// Denies an identity of its own domain, as `isthmus-certs deny` does.
    pub(crate) fn deny(&self, id: &str, sequence: u64) {
        let domain = self.party.trust_domain.as_str();
        let list = json!({ "trust_domain": domain, "sequence": sequence, "identities": [id] });
        let list: DenyList = serde_json::from_value(list).unwrap();
        let path = self.dir.path().join(format!("deny/{}.json", self.party.trust_domain));
        fs::write(path, list.sign(&self.root).unwrap()).unwrap();
    }

    /// Serves joiners, in a runtime of its own.
    pub(crate) fn serve(&self) -> Endpoint {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let at = listener.local_addr().unwrap();
        runtime.spawn(serve(listener, Arc::clone(&self.context)));
        Endpoint { at, runtime: Some(runtime) }
    }

    /// Creates a token as another process than the serving one does.
    pub(crate) fn token(&self, at: SocketAddr, guest: &Party) -> Token {
        create(&self.at_address("192.0.2.7:15012"), Target::Address(at), guest.clone(), QUARTER).unwrap()
    }

    pub(crate) fn states(&self) -> Vec<State> {
        self.context.tokens().list().unwrap().into_iter().map(|(_, state)| state).collect()
    }

    /// All files and records that joining writes, except tokens, by name.
    pub(crate) fn stored(&self) -> BTreeMap<PathBuf, String> {
        let mut kept = BTreeMap::new();
        for folder in ["bundles", "deny"] {
            let Ok(entries) = fs::read_dir(self.dir.path().join(folder)) else { continue };
            for path in entries.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with(".lock")) {
                let text = fs::read_to_string(&path).unwrap();
                kept.insert(path.strip_prefix(self.dir.path()).unwrap().to_owned(), text);
            }
        }
        let store = isthmus_trust::join::store(&self.dir.path().join("state"));
        for peer in isthmus_trust::join::peers(&store).unwrap().peers {
            let name = format!("peers/{}", peer.introduction.party.cluster).into();
            kept.insert(name, serde_json::to_string(&peer).unwrap());
        }
        kept
    }

    /// Whether its agent trusts another one, with its files loaded again.
    pub(crate) fn trusts(&self, other: &Side) -> bool {
        let trust = Trust::load(&self.files).unwrap();
        let chain = Trust::load(&other.files).unwrap().current().identity.chain().to_vec();
        trust.current().bundles.verify(&chain, isthmus_certs::Role::Server, UnixTime::now()).is_ok()
    }
}

fn context(trust: Trust, files: &TrustFiles, dir: &Path, party: &Party, address: &str) -> Arc<Context> {
    let introduction = Introduction {
        party: party.clone(),
        network: format!("{}-net", party.cluster),
        address: address.parse().unwrap(),
        gateways: vec![format!("gw.{}:15443", party.trust_domain).parse().unwrap()],
    };
    let folders =
        Folders { state: dir.join("state"), bundles: files.bundles.clone(), deny: files.deny.clone() };
    let store = Arc::new(isthmus_trust::join::store(&folders.state));
    Arc::new(Context::new(trust, introduction, folders, store).unwrap())
}

/// A server that stops on drop.
pub(crate) struct Endpoint {
    pub(crate) at: SocketAddr,
    runtime: Option<Runtime>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// A server that handles each connection with `act`.
pub(crate) fn somebody<F, T>(act: F) -> Endpoint
where
    F: Fn(TcpStream) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let at = listener.local_addr().unwrap();
    runtime.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(act(stream));
        }
    });
    Endpoint { at, runtime: Some(runtime) }
}

/// A chain followed by roots, with a key that may be another's.
pub(crate) fn showing(identity: &Identity, roots: &[&Authority], key: &Identity) -> Arc<CertifiedKey> {
    let roots = roots.iter().map(|root| root.certificate().clone());
    let chain = identity.chain().iter().cloned().chain(roots).collect();
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(key.key()).unwrap();
    Arc::new(CertifiedKey::new(chain, key))
}

/// TLS of a join server that accepts any client certificate.
pub(crate) fn acceptor(shown: Arc<CertifiedKey>) -> TlsAcceptor {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AcceptAny))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![b"isthmus-join/1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

pub(crate) fn connector(shown: Arc<CertifiedKey>, alpn: &str) -> TlsConnector {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    TlsConnector::from(Arc::new(config))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A joiner that sends any messages.
pub(crate) struct Raw {
    pub(crate) stream: TlsStream<TcpStream>,
}

impl Raw {
    pub(crate) async fn connect(at: SocketAddr, shown: Arc<CertifiedKey>) -> Raw {
        let stream = TcpStream::connect(at).await.unwrap();
        let name = ServerName::from(at.ip());
        let stream = connector(shown, "isthmus-join/1").connect(name, stream).await.unwrap();
        Raw { stream }
    }

    /// As the agent of a side, with its own root.
    pub(crate) async fn connect_as(side: &Side, at: SocketAddr) -> Raw {
        let trusted = Trust::load(&side.files).unwrap().current();
        Raw::connect(at, showing(&trusted.identity, &[&side.root], &trusted.identity)).await
    }

    /// The first message: the token's ID and the proof, according to docs/decisions/0022.
    pub(crate) fn proof(&self, token: &Token) -> Value {
        let bytes = URL_SAFE_NO_PAD.decode(token.reveal().strip_prefix("isthmus1.").unwrap()).unwrap();
        let secret = &bytes[40..56];
        let id = mac(secret, b"isthmus-join id")[..16].to_vec();
        let mut context = id.clone();
        let Guest::Cluster(guest) = &token.guest else { panic!("{token:?}") };
        for party in [&token.issuer, guest] {
            for text in [party.cluster.as_str(), party.trust_domain.as_str()] {
                context.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
                context.extend(text.as_bytes());
            }
        }
        let (_, tls) = self.stream.get_ref();
        let session =
            tls.export_keying_material([0_u8; 32], b"EXPORTER-isthmus-join", Some(&context)).unwrap();
        let joiner = mac(secret, b"isthmus-join joiner");
        let mask = mac(&Sha256::digest(&joiner), &session);
        let proof: Vec<u8> = joiner.iter().zip(mask).map(|(one, other)| one ^ other).collect();
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        json!({ "message": "prove", "token": id, "proof": URL_SAFE_NO_PAD.encode(proof) })
    }

    pub(crate) async fn say(&mut self, message: &Value) {
        self.bytes(&framed(message.to_string().as_bytes())).await;
    }

    pub(crate) async fn bytes(&mut self, bytes: &[u8]) {
        // The other side may have closed already; its last message is read next.
        let _sent = self.stream.write_all(bytes).await;
        let _sent = self.stream.flush().await;
    }

    /// The next message; nothing once the other side has closed.
    pub(crate) async fn hear(&mut self) -> Option<Value> {
        heard(&mut self.stream).await
    }
}

pub(crate) fn framed(content: &[u8]) -> Vec<u8> {
    [&u32::try_from(content.len()).unwrap().to_be_bytes()[..], content].concat()
}

pub(crate) async fn heard<R: AsyncRead + Unpin>(from: &mut R) -> Option<Value> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await.ok()?;
    let mut content = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    from.read_exact(&mut content).await.ok()?;
    Some(serde_json::from_slice(&content).unwrap())
}

pub(crate) async fn copy<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(from: &mut R, to: &mut W) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..read]).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    let _closed = to.shutdown().await;
}

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

/// Accepts any certificate.
#[derive(Debug)]
struct AcceptAny;

macro_rules! accept_any_signature {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    accept_any_signature!();
}

impl ClientCertVerifier for AcceptAny {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    accept_any_signature!();
}
