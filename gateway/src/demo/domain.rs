//! Sets up a trust domain of the demo: an authority's directory as `isthmus-certs init` makes it, and identities
//! that follow their files, so that bundles from a join take effect without a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::home::{Home, LeafRecord, Plan};
use isthmus_certs::trust::Watch;
use isthmus_certs::{
    Client, KeyKind, Leaf, Peer, Server, SpiffeId, Trust, TrustBundles, TrustDomain, TrustFiles,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::Broken;

const LIFETIME: Duration = Duration::from_hours(24);

/// Returns the server configuration for the next handshake.
pub(super) type ServerTls = Box<dyn Fn() -> Arc<ServerConfig> + Send + Sync>;
/// Returns the client configuration for the next handshake.
pub(super) type ClientTls = Box<dyn Fn() -> Arc<ClientConfig> + Send + Sync>;

/// A trust domain with its authority.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) name: TrustDomain,
    home: Home,
}

/// An identity of the domain. It follows its files while it lives.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: SpiffeId,
    trust: Trust,
    _watch: Watch,
}

impl Domain {
    /// Creates an authority in `folder`.
    pub(super) fn new(name: &str, folder: &Path) -> Result<Domain, Broken> {
        let name = TrustDomain::new(name).map_err(Broken::cannot("name a trust domain"))?;
        let home = Home::create(folder, &Plan::new(name.clone()));
        Ok(Domain { name, home: home.map_err(Broken::cannot("make an authority"))? })
    }

    /// Issues a certificate with its own key. The DNS names are for curl and browsers; the demo's clients check the
    /// SPIFFE ID.
    pub(super) fn issue(&mut self, name: &str, id: SpiffeId, dns: Vec<String>) -> Result<TrustFiles, Broken> {
        let leaf = Leaf { id, dns, ips: Vec::new(), lifetime: LIFETIME };
        let kept = LeafRecord { leaf, key: KeyKind::P256, cluster: None, folder: None };
        let folder = self.home.folder_of(name, &kept);
        self.home.keep(name, kept).map_err(Broken::cannot("issue a certificate"))?;
        Ok(TrustFiles {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            bundles: self.home.bundle_folder(),
            ..TrustFiles::default()
        })
    }

    /// Returns the SPIFFE ID of a workload.
    pub(super) fn workload(&self, namespace: &str, account: &str) -> Result<SpiffeId, Broken> {
        SpiffeId::workload(&self.name, namespace, account).map_err(Broken::cannot("make a SPIFFE ID"))
    }

    /// Returns the path of its root certificate (PEM).
    pub(super) fn root_file(&self) -> PathBuf {
        self.home.folder().join("roots/1/root-cert.pem")
    }

    /// Returns its root certificate.
    pub(super) fn root(&self) -> Result<CertificateDer<'static>, Broken> {
        let root = self.home.root(1).map_err(Broken::cannot("read the root certificate"))?;
        Ok(root.certificate().clone())
    }
}

impl Member {
    /// Loads an identity and follows its files.
    pub(super) fn load(files: TrustFiles) -> Result<Member, Broken> {
        let trust = Trust::load(&files).map_err(Broken::cannot("load an identity"))?;
        let watch = trust.watch(files).map_err(Broken::cannot("follow the files of an identity"))?;
        Ok(Member { id: trust.current().identity.id().clone(), trust, _watch: watch })
    }

    pub(super) fn leaf(&self) -> CertificateDer<'static> {
        let identity = &self.trust.current().identity;
        identity.chain().first().cloned().unwrap_or_else(|| CertificateDer::from(Vec::new()))
    }

    /// Returns a server that requires a client certificate of the domain `callers`; until its bundle is trusted,
    /// it accepts no client.
    pub(super) fn server(self, callers: &TrustDomain) -> Result<ServerTls, Broken> {
        let server = Server::new(self.trust.clone(), Peer::Domain(callers.clone()), &[])
            .map_err(Broken::cannot("configure the TLS of an endpoint"))?;
        Ok(Box::new(move || {
            let _followed = &self;
            server.config()
        }))
    }

    /// Returns a server that requests no client certificate.
    pub(super) fn open_server(self) -> Result<ServerTls, Broken> {
        let identity = Arc::clone(&self.trust.current().identity);
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| {
                let (chain, key) = (identity.chain().to_vec(), identity.key().clone_key());
                config.with_no_client_auth().with_single_cert(chain, key)
            });
        let config = Arc::new(config.map_err(Broken::cannot("configure the TLS of an endpoint"))?);
        Ok(Box::new(move || Arc::clone(&config)))
    }

    /// Returns a client that accepts these servers; the demo checks for each call that it was the right one.
    pub(super) fn client(self, servers: Peer) -> Result<ClientTls, Broken> {
        let client = Client::new(self.trust.clone(), servers, &[])
            .map_err(Broken::cannot("configure the client's TLS"))?;
        Ok(Box::new(move || {
            let _followed = &self;
            client.config()
        }))
    }
}

/// Returns a client without a certificate that checks DNS names, as browsers do.
pub(super) fn stranger(root: CertificateDer<'static>) -> Result<ClientTls, Broken> {
    let mut roots = RootCertStore::empty();
    roots.add(root).map_err(Broken::cannot("trust an authority as a browser does"))?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(Broken::cannot("configure the stranger's TLS"))?;
    let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
    Ok(Box::new(move || Arc::clone(&config)))
}

/// Reads the trusted bundles from the files.
pub(super) fn trusted_bundles(files: &TrustFiles) -> Result<TrustBundles, Broken> {
    files.bundles_only().map_err(Broken::cannot("read the bundles"))
}
