//! Requests certificates from another control plane, such as istiod, over the same API. The client
//! authenticates with a token file that is replaced from outside, such as a Kubernetes service account token.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_certs::causes::with_causes;
use isthmus_certs::{Peer, SpiffeId, TrustBundles, TrustDomain, TrustFiles, input, server_verifier};
use tokio::time::timeout;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::DnsName;
use tokio_rustls::rustls::{self, ClientConfig};
use tonic::metadata::{AsciiMetadataValue, MetadataMap};

use super::{DEADLINE, EnrolError, Granted, ask, too_slow};
use isthmus_grpc::dial::dial_as;
use isthmus_model::address::Target;

/// Size limit of a token file.
const LONGEST_TOKEN: u64 = 64 << 10;

/// How a client without a certificate recognizes the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// By its SPIFFE ID.
    Identity(SpiffeId),
    /// By a DNS name, in a certificate signed under the only known trust domain.
    Name(DnsName<'static>),
}

/// A control plane that issues certificates.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// Its addresses, tried in this order.
    pub addresses: Vec<Target>,
    /// How it is recognized.
    pub server: Known,
    /// The directory of bundles that verify it and its certificates.
    pub bundles: PathBuf,
    /// The file with the token; read for each request.
    pub token_file: PathBuf,
    /// The cluster of the token, as the control plane names it.
    pub cluster: Option<String>,
}

impl ControlPlane {
    /// Requests a certificate from the first address that issues one.
    ///
    /// # Errors
    /// The error of the last address, or of the local configuration.
    pub async fn certificate(&self) -> Result<Granted, EnrolError> {
        let mut outcome = Err(EnrolError::Setup("no address of the control plane is configured".to_owned()));
        for at in &self.addresses {
            let silent = || EnrolError::Broken { at: at.clone(), why: too_slow() };
            outcome = timeout(DEADLINE, self.request(at)).await.unwrap_or_else(|_| Err(silent()));
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    async fn request(&self, at: &Target) -> Result<Granted, EnrolError> {
        let files = TrustFiles { bundles: self.bundles.clone(), ..TrustFiles::default() };
        let bundles = files.bundles_only().map_err(|error| EnrolError::Setup(error.to_string()))?;
        let bundles = Arc::new(bundles);
        let (peer, name) = self.peer(&bundles)?;
        let config =
            config(Arc::clone(&bundles), peer).map_err(|error| EnrolError::Setup(error.to_string()))?;
        // Read before connecting, sent only to a verified server.
        let metadata = self.metadata()?;
        let dialled = dial_as(at, move || Arc::clone(&config), name).await;
        let channel =
            dialled.map_err(|error| EnrolError::Dial { at: at.clone(), why: with_causes(&error) })?;
        let (request, response) = ask(at, channel, metadata, None).await?;
        Granted::verified(&request, &response, &bundles)
            .map_err(|cause| EnrolError::Answer { at: at.clone(), cause: Box::new(cause) })
    }

    fn peer(&self, bundles: &TrustBundles) -> Result<(Peer, Option<DnsName<'static>>), EnrolError> {
        match &self.server {
            Known::Identity(id) => Ok((Peer::Ids(vec![id.clone()]), None)),
            Known::Name(name) => {
                let mut domains = bundles.iter().map(|(domain, _)| domain.clone());
                let only: Option<TrustDomain> = domains.next().filter(|_| domains.next().is_none());
                let domain = only.ok_or_else(|| {
                    let folder = self.bundles.display();
                    EnrolError::Setup(format!("{folder}: a server with a DNS name is verified by the roots of one trust domain; leave one bundle there"))
                })?;
                Ok((Peer::Name { domain, name: name.clone() }, Some(name.clone())))
            }
        }
    }

    fn metadata(&self) -> Result<MetadataMap, EnrolError> {
        let unread = |why: String| EnrolError::Setup(format!("{}: {why}", self.token_file.display()));
        let token = token(&self.token_file).map_err(|error| unread(error.to_string()))?;
        let value = |text: &str| AsciiMetadataValue::try_from(text);
        let mut metadata = MetadataMap::new();
        let bearer = value(&format!("Bearer {}", token.trim()));
        metadata.insert("authorization", bearer.map_err(|_| unread("is not a valid token".to_owned()))?);
        if let Some(cluster) = &self.cluster {
            let cluster = value(cluster)
                .map_err(|_| EnrolError::Setup("the cluster's name is not ASCII".to_owned()))?;
            metadata.insert("clusterid", cluster);
        }
        Ok(metadata)
    }
}

/// Reads a token file.
///
/// # Errors
/// The file is unreadable or empty.
pub fn token(path: &Path) -> io::Result<String> {
    let text = input::read_text(path, LONGEST_TOKEN)?;
    match text.trim() {
        "" => Err(io::Error::other("is empty")),
        _ => Ok(text),
    }
}

/// A client configuration without a certificate.
fn config(bundles: Arc<TrustBundles>, peer: Peer) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(bundles, peer))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
