//! Dials gRPC over mTLS: the server is authenticated before any request is sent.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use isthmus_certs::{Client, VerifyError};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, DnsName, ServerName};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::resolve;
use isthmus_model::address::{Ranges, Target};

/// Timeout of connect and handshake, for each address.
const CONNECT: Duration = Duration::from_secs(5);
/// The most addresses of a name that are tried.
const ADDRESSES: usize = 8;
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects once. A lost connection is not re-established.
///
/// # Errors
/// The server is unreachable, or not the one that `tls` expects.
pub async fn dial(address: &Target, tls: &Arc<Client>) -> Result<Channel, tonic::transport::Error> {
    dial_with_chain(address, tls, None).await.map(|(channel, _)| channel)
}

/// A certificate chain, leaf first.
pub type Chain = Vec<CertificateDer<'static>>;

/// [`dial`] that also returns the chain of the server. The addresses of a name that another cluster gave must be in
/// `within`.
///
/// # Errors
/// As for [`dial`].
pub async fn dial_with_chain(
    address: &Target,
    tls: &Arc<Client>,
    within: Option<&Ranges>,
) -> Result<(Channel, Chain), tonic::transport::Error> {
    let name = tls.name().cloned();
    let tls = Arc::clone(tls);
    dial_as_with_chain(address, within, move || tls.config(), name).await
}

/// [`dial`] with a TLS configuration of the caller, and the name that the server must have, if it is verified by name.
pub async fn dial_as(
    address: &Target,
    config: impl Fn() -> Arc<ClientConfig> + Send + 'static,
    name: Option<DnsName<'static>>,
) -> Result<Channel, tonic::transport::Error> {
    dial_as_with_chain(address, None, config, name).await.map(|(channel, _)| channel)
}

async fn dial_as_with_chain(
    address: &Target,
    within: Option<&Ranges>,
    config: impl Fn() -> Arc<ClientConfig> + Send + 'static,
    name: Option<DnsName<'static>>,
) -> Result<(Channel, Chain), tonic::transport::Error> {
    let (address, within) = (address.clone(), within.cloned());
    let presented = Arc::new(Mutex::new(Chain::new()));
    let seen = Arc::clone(&presented);
    let connect = service_fn(move |_| {
        let (address, within, config, name) = (address.clone(), within.clone(), config(), name.clone());
        let seen = Arc::clone(&seen);
        async move {
            let stream = handshake(&address, within.as_ref(), &config, name).await?;
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            *seen.lock().unwrap_or_else(PoisonError::into_inner) =
                chain.iter().map(|one| one.clone().into_owned()).collect();
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_static("http://agent.isthmus")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(connect)
        .await?;
    let chain = std::mem::take(&mut *presented.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((channel, chain))
}

/// Tries the addresses of a name one after the other, each until its timeout.
async fn handshake(
    target: &Target,
    within: Option<&Ranges>,
    config: &Arc<ClientConfig>,
    name: Option<DnsName<'static>>,
) -> io::Result<TlsStream<TcpStream>> {
    let addressed = match target {
        Target::Address(address) => ServerName::from(address.ip()),
        Target::Name { host, .. } => {
            ServerName::try_from(host.as_str().to_owned()).map_err(io::Error::other)?
        }
    };
    let name = name.map_or(addressed, ServerName::DnsName);
    let mut refused = io::Error::from(io::ErrorKind::NotFound);
    for address in resolve::addresses_within(target, within).await?.into_iter().take(ADDRESSES) {
        match timeout(CONNECT, handshake_at(address, Arc::clone(config), name.clone())).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => refused = error,
            Err(late) => refused = late.into(),
        }
    }
    Err(refused)
}

async fn handshake_at(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
        let refused = error.get_ref().and_then(|error| error.downcast_ref()).and_then(VerifyError::find_in);
        // The verifier's own error, which has the remedy.
        refused.map(|why| io::Error::other(why.clone())).unwrap_or(error)
    })
}
