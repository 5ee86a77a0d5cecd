//! TLS 1.3 between two agents that do not know each other yet: each sends its chain with its roots and is
//! verified against a root of its own (`shown`). The token pins the root of the side that made it.

use std::io;
use std::sync::Arc;

use isthmus_certs::facts::Facts;
use isthmus_certs::trust::Trusted;
use isthmus_certs::{ChainJudge, ChainVerifier, KeyPin, Role, Trust, VerifyError};
use tokio::net::TcpStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::NoServerSessionStorage;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, ConnectionCommon, Error, OtherError,
    ServerConfig,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::presented::{self, MOST, PresentedAgent, PresentedError, Wanted};
use super::secret::{Session, TokenId};
use super::{Guest, Party, Token};
use isthmus_grpc::resolve;
use isthmus_model::address::{Ranges, Target};

/// The protocol and its version.
const ALPN: &[u8] = b"isthmus-join/1";
const LABEL: &[u8] = b"EXPORTER-isthmus-join";

/// Why a connection to the other agent failed.
#[derive(Debug, thiserror::Error)]
pub enum MeetError {
    /// The other side is not the expected agent.
    #[error(transparent)]
    Presented(#[from] PresentedError),
    /// This agent's certificate is unusable.
    #[error("this agent's certificate cannot be used: {0}")]
    Own(#[source] Error),
    /// The other side is unreachable.
    #[error(
        "connection failed: {0}; check that the agent there is running, that its configuration opens this endpoint, and that no firewall blocks it"
    )]
    Connect(#[source] io::Error),
    /// The TLS handshake failed.
    #[error("TLS handshake failed: {0}; check that the address is an agent's join endpoint")]
    Handshake(#[source] io::Error),
    /// The other side chose another protocol.
    #[error(
        "the other side does not speak this version of the join protocol; use the same release on both sides"
    )]
    Protocol,
}

/// A connection whose other side is identified.
#[derive(Debug)]
pub(super) struct Met<S> {
    pub(super) stream: S,
    pub(super) shown: PresentedAgent,
    pub(super) chain: Vec<CertificateDer<'static>>,
}

/// Accepts the TLS handshake of any agent.
pub(super) async fn accept(
    stream: TcpStream,
    trust: &Trust,
) -> Result<Met<server::TlsStream<TcpStream>>, MeetError> {
    let config = server_config(&trust.current())?;
    stream.set_nodelay(true).map_err(MeetError::Handshake)?;
    let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.map_err(refused)?;
    let (chain, shown) = met(stream.get_ref().1, Role::Client, None)?;
    Ok(Met { stream, shown, chain })
}

/// Connects to the agent that made a token, and no other.
pub(super) async fn connect(
    token: &Token,
    trust: &Trust,
) -> Result<Met<client::TlsStream<TcpStream>>, MeetError> {
    let wanted = Wanted { root: token.root, party: token.issuer.clone() };
    let config = client_config(&trust.current(), wanted.clone())?;
    let reached = reach(&token.address, Some(&Ranges::default())).await;
    let (stream, name) = reached.map_err(MeetError::Connect)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(refused)?;
    let (chain, shown) = met(stream.get_ref().1, Role::Server, Some(&wanted))?;
    Ok(Met { stream, shown, chain })
}

/// Connects to an address; TLS needs the name but does not verify it. The addresses of a name that another cluster gave
/// must be in `within`.
pub(super) async fn reach(
    address: &Target,
    within: Option<&Ranges>,
) -> io::Result<(TcpStream, ServerName<'static>)> {
    let name = match address {
        Target::Address(address) => ServerName::from(address.ip()),
        Target::Name { host, .. } => {
            ServerName::try_from(host.as_str().to_owned()).map_err(io::Error::other)?
        }
    };
    let addresses = resolve::addresses_within(address, within).await?;
    let stream = TcpStream::connect(&addresses[..]).await?;
    stream.set_nodelay(true)?;
    Ok((stream, name))
}

/// Extracts the identity that the handshake verified.
fn met(
    connection: &CommonState,
    role: Role,
    wanted: Option<&Wanted>,
) -> Result<(Vec<CertificateDer<'static>>, PresentedAgent), MeetError> {
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(MeetError::Protocol);
    }
    let chain = connection.peer_certificates().unwrap_or_default().to_vec();
    let shown = presented::prove(&chain, role, wanted, UnixTime::now())?;
    Ok((chain, shown))
}

/// What both proofs cover.
pub(super) fn session<D>(
    connection: &ConnectionCommon<D>,
    id: TokenId,
    issuer: &Party,
    guest: &Guest,
) -> Result<Session, Error> {
    let context = Token::context(id, issuer, guest);
    connection.export_keying_material([0; 32], LABEL, Some(&context)).map(Session)
}

/// The key of the root that tokens pin.
pub(super) fn root(trusted: &Trusted) -> Result<KeyPin, PresentedError> {
    let roots = roots(trusted, Role::Server)?;
    let pin = roots.first().and_then(|root| Facts::read(root).ok()).map(|facts| facts.pin);
    pin.ok_or(PresentedError::NoRoot)
}

/// The roots that vouch for this agent's chain: several during a roll-over.
fn roots(trusted: &Trusted, role: Role) -> Result<Vec<CertificateDer<'static>>, PresentedError> {
    let id = trusted.identity.id();
    let bundle = trusted.bundles.get(id.trust_domain());
    let bundle = bundle.ok_or_else(|| VerifyError::NoBundle(id.clone()))?;
    let (mut found, mut refused) = (Vec::new(), PresentedError::NoRoot);
    for root in bundle.roots() {
        let chain: Vec<_> = trusted.identity.chain().iter().chain([root]).cloned().collect();
        match presented::prove(&chain, role, None, UnixTime::now()) {
            Ok(_) => found.push(root.clone()),
            Err(error) => refused = error,
        }
    }
    if found.is_empty() { Err(refused) } else { Ok(found) }
}

/// This agent's chain with its roots.
pub(super) fn showing(trusted: &Trusted, role: Role) -> Result<Vec<CertificateDer<'static>>, PresentedError> {
    let chain = trusted.identity.chain().iter().cloned();
    Ok(chain.chain(roots(trusted, role)?).take(MOST).collect())
}

fn server_config(trusted: &Trusted) -> Result<ServerConfig, MeetError> {
    let chain = showing(trusted, Role::Server)?;
    let verifier = Arc::new(ChainVerifier(AgentJudge(None)));
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .and_then(|builder| {
            let builder = builder.with_client_cert_verifier(verifier);
            builder.with_single_cert(chain, trusted.identity.key().clone_key())
        })
        .map_err(MeetError::Own)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(trusted: &Trusted, wanted: Wanted) -> Result<ClientConfig, MeetError> {
    let chain = showing(trusted, Role::Client)?;
    let verifier = Arc::new(ChainVerifier(AgentJudge(Some(wanted))));
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .and_then(|builder| {
            let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
            builder.with_client_auth_cert(chain, trusted.identity.key().clone_key())
        })
        .map_err(MeetError::Own)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Explains a failed handshake.
pub(super) fn refused(error: io::Error) -> MeetError {
    match error.get_ref().and_then(|error| error.downcast_ref::<Error>()) {
        Some(
            Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol),
        ) => MeetError::Protocol,
        Some(tls) => shown_error(tls).map_or(MeetError::Handshake(error), MeetError::Presented),
        None => MeetError::Handshake(error),
    }
}

fn tls_error(why: PresentedError) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(why))))
}

fn shown_error(error: &Error) -> Option<PresentedError> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(why))) => why.downcast_ref().cloned(),
        _ => None,
    }
}

/// Accepts the agent that a token names, or any agent under any root that it sends.
#[derive(Debug)]
pub(super) struct AgentJudge(pub(super) Option<Wanted>);

impl ChainJudge for AgentJudge {
    fn judge(&self, chain: &[CertificateDer<'_>], role: Role, now: UnixTime) -> Result<(), Error> {
        presented::prove(chain, role, self.0.as_ref(), now).map(drop).map_err(tls_error)
    }
}
