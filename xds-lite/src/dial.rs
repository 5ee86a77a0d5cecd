//! gRPC over mTLS, the client's side: the server has proven who it is before any request is sent.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use isthmus_certs::{Client, VerifyError};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::config::address::Target;

const CONNECT: Duration = Duration::from_secs(5);
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
    let (address, tls) = (address.clone(), Arc::clone(tls));
    let shown = Arc::new(Mutex::new(Chain::new()));
    let seen = Arc::clone(&shown);
    let connect = service_fn(move |_| {
        let (address, tls, seen) = (address.clone(), Arc::clone(&tls), Arc::clone(&seen));
        async move {
            let stream = timeout(CONNECT, shake(&address, &tls)).await??;
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

async fn shake(address: &Target, tls: &Client) -> io::Result<TlsStream<TcpStream>> {
    let (stream, addressed) = match address {
        Target::Address(address) => (TcpStream::connect(address).await?, ServerName::from(address.ip())),
        Target::Name { host, port } => {
            let server = ServerName::try_from(host.as_str().to_owned()).map_err(io::Error::other)?;
            (TcpStream::connect((host.as_str(), *port)).await?, server)
        }
    };
    stream.set_nodelay(true)?;
    let name = tls.name().map_or(addressed, |name| ServerName::DnsName(name.clone()));
    TlsConnector::from(tls.config()).connect(name, stream).await.map_err(|error| {
        let refused = error.get_ref().and_then(|error| error.downcast_ref()).and_then(VerifyError::of);
        // In its own words, which name the remedy.
        refused.map(|why| io::Error::other(why.clone())).unwrap_or(error)
    })
}
