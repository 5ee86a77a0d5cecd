//! gRPC over mTLS, the client's side: the server has proven who it is before any request is sent.

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
use isthmus_model::address::Target;

/// To one address, and the handshake with it.
const CONNECT: Duration = Duration::from_secs(5);
/// Of a name with more addresses, these many are tried.
const ADDRESSES: usize = 8;
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects, once; a connection that is lost is not made again by itself.
///
/// # Errors
/// Nobody is there, or somebody else than `tls` expects.
pub async fn dial(address: &Target, tls: &Arc<Client>) -> Result<Channel, tonic::transport::Error> {
    meet(address, tls).await.map(|(channel, _)| channel)
}

/// The chain that somebody has shown, leaf first.
pub type Chain = Vec<CertificateDer<'static>>;

/// The same, and what the server has shown of itself.
///
/// # Errors
/// As for [`dial`].
pub async fn meet(address: &Target, tls: &Arc<Client>) -> Result<(Channel, Chain), tonic::transport::Error> {
    let name = tls.name().cloned();
    let tls = Arc::clone(tls);
    meet_as(address, move || tls.config(), name).await
}

/// The same as [`dial`] with a configuration that is made elsewhere, and the name that the server must have, if it is
/// known by one.
pub async fn dial_as(
    address: &Target,
    config: impl Fn() -> Arc<ClientConfig> + Send + 'static,
    name: Option<DnsName<'static>>,
) -> Result<Channel, tonic::transport::Error> {
    meet_as(address, config, name).await.map(|(channel, _)| channel)
}

async fn meet_as(
    address: &Target,
    config: impl Fn() -> Arc<ClientConfig> + Send + 'static,
    name: Option<DnsName<'static>>,
) -> Result<(Channel, Chain), tonic::transport::Error> {
    let address = address.clone();
    let shown = Arc::new(Mutex::new(Chain::new()));
    let seen = Arc::clone(&shown);
    let connect = service_fn(move |_| {
        let (address, config, name) = (address.clone(), config(), name.clone());
        let seen = Arc::clone(&seen);
        async move {
            let stream = handshake(&address, &config, name).await?;
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
    let chain = std::mem::take(&mut *shown.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((channel, chain))
}

/// Tries the addresses of a name one after the other, each for as long as one may take.
async fn handshake(
    target: &Target,
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
    for address in resolve::addresses(target).await?.into_iter().take(ADDRESSES) {
        match timeout(CONNECT, shake_at(address, Arc::clone(config), name.clone())).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => refused = error,
            Err(late) => refused = late.into(),
        }
    }
    Err(refused)
}

async fn shake_at(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| {
        let refused = error.get_ref().and_then(|error| error.downcast_ref()).and_then(VerifyError::of);
        // In its own words, which name the remedy.
        refused.map(|why| io::Error::other(why.clone())).unwrap_or(error)
    })
}
