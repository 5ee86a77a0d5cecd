//! Creates the trust domain of the scenario `tls-ends`. The load generator verifies nothing while it measures, so that
//! its own cryptography is not the limit; before that, a client that verifies checks each system.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use isthmus_certs::{Authority, Identity, Peer, SpiffeId, TrustBundles, TrustDomain, client_config};
use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConfig, ConfigBuilder, ServerConfig, SignatureScheme};
use tempfile::TempDir;

use super::NAME;
use crate::unverified::Unverified;

/// Lifetime of certificates; longer than any run.
const LIFETIME: Duration = Duration::from_hours(24);
/// Sessions that a client keeps.
const SESSIONS: usize = 64;

/// An identity, also in files.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) id: SpiffeId,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Both in one file.
    pub(crate) both: PathBuf,
    identity: Identity,
}

/// The identities of both sides, and the load generator's TLS.
#[derive(Debug)]
pub(super) struct Trust {
    pub(super) service: Files,
    pub(super) caller: Files,
    /// Clients that never resume a session.
    pub(super) load_full: Arc<ClientConfig>,
    pub(super) load_resuming: Arc<ClientConfig>,
    /// A client that accepts the service alone.
    pub(super) load_verifying: Arc<ClientConfig>,
    /// A client without a certificate.
    pub(super) load_stranger: Arc<ClientConfig>,
    root: PathBuf,
    folder: TempDir,
}

impl Trust {
    pub(super) fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("isthmus-bench-trust-").tempdir()?;
        let authority = Authority::generate(TrustDomain::new("ends.example")?)?;
        let bundles = folder.path().join("bundles");
        fs::create_dir(&bundles).context("cannot create the directory of bundles")?;
        let root = bundles.join(format!("{}.pem", authority.trust_domain()));
        fs::write(&root, authority.certificate_pem()).context("cannot write the root")?;
        let (service, caller) =
            (Files::issue(&authority, "service", &folder)?, Files::issue(&authority, "caller", &folder)?);
        let mut trusted = TrustBundles::new();
        trusted.add_root(authority.trust_domain().clone(), authority.certificate())?;
        let verifying =
            client_config(&caller.identity, Arc::new(trusted), Peer::Ids(vec![service.id.clone()]))?;
        Ok(Self {
            load_full: Arc::new(client(&caller, Resumption::disabled())?),
            load_resuming: Arc::new(client(&caller, Resumption::in_memory_sessions(SESSIONS))?),
            load_verifying: Arc::new(verifying),
            load_stranger: Arc::new(builder()?.with_no_client_auth()),
            service,
            caller,
            root,
            folder,
        })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn bundles(&self) -> PathBuf {
        self.folder.path().join("bundles")
    }

    /// The TLS of a service with which every handshake is a full one.
    pub(super) fn service_full(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = self.server()?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// The TLS of a service that lets clients resume sessions.
    pub(super) fn service_resuming(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = self.server()?;
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        Ok(Arc::new(config))
    }

    fn server(&self) -> anyhow::Result<ServerConfig> {
        let (chain, key) = (self.service.identity.chain().to_vec(), self.service.identity.key().clone_key());
        Ok(ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(unverified()))
            .with_single_cert(chain, key)?)
    }
}

impl Files {
    fn issue(authority: &Authority, account: &str, folder: &TempDir) -> anyhow::Result<Self> {
        let id = SpiffeId::workload(authority.trust_domain(), "bench", account)?;
        let identity = authority.issue(&id, &[NAME], LIFETIME)?;
        let written = identity.write_to(folder.path(), account)?;
        let both = folder.path().join(format!("{account}.pem"));
        fs::write(&both, format!("{}{}", identity.chain_pem(), identity.key_pem()))
            .context("cannot write a certificate")?;
        Ok(Self { id, certificate: written.chain, key: written.key, both, identity })
    }
}

fn client(caller: &Files, resumption: Resumption) -> anyhow::Result<ClientConfig> {
    let (chain, key) = (caller.identity.chain().to_vec(), caller.identity.key().clone_key());
    let mut config = builder()?.with_client_auth_cert(chain, key)?;
    config.resumption = resumption;
    Ok(config)
}

fn builder() -> anyhow::Result<ConfigBuilder<ClientConfig, WantsClientCert>> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(unverified())))
}

/// Checks nothing, with the one kind of key that there is.
fn unverified() -> Unverified {
    Unverified(vec![SignatureScheme::ECDSA_NISTP256_SHA256])
}

/// What every system can agree on.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}
