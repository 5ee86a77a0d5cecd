//! TLS options of a run: the client certificate and the verification of the server.
//!
//! Resumption is off, so that every handshake is a full one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use clap::Args;
use isthmus_certs::{Peer, SpiffeId, TrustBundles, server_verifier};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::unverified::Unverified;

/// TLS options.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
#[group(skip)]
pub(crate) struct Tls {
    /// ALPN protocols to offer, in order of preference.
    #[arg(long, value_delimiter = ',', value_name = "PROTOCOLS")]
    pub(crate) alpn: Vec<String>,
    /// Verify the server's chain against these roots, and its DNS name against the SNI.
    #[arg(long, value_name = "PEM", required_unless_present = "insecure", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Verify a SPIFFE ID instead of the DNS name: `spiffe://DOMAIN/PATH` matches exactly this ID,
    /// `spiffe://DOMAIN` any ID of the trust domain.
    #[arg(long, value_name = "SPIFFE-ID", requires = "ca", value_parser = SpiffeId::parse)]
    expect: Option<SpiffeId>,
    /// The client certificate, followed by its intermediates.
    #[arg(long, value_name = "PEM", requires = "key")]
    cert: Option<PathBuf>,
    /// The client's key.
    #[arg(long, value_name = "PEM", requires = "cert")]
    key: Option<PathBuf>,
    /// Do not verify the server's certificate.
    #[arg(long)]
    pub(crate) insecure: bool,
}

impl Tls {
    /// Reads the files and builds the client configuration.
    pub(crate) fn config(&self) -> anyhow::Result<ClientConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match (&self.ca, &self.expect) {
            (Some(ca), None) => builder.with_root_certificates(roots(ca)?),
            (Some(ca), Some(expected)) => {
                let verifier = server_verifier(Arc::new(bundles(ca, expected)?), peer(expected));
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
            (None, _) => {
                let schemes = provider.signature_verification_algorithms.supported_schemes();
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(schemes)))
            }
        };
        let mut config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let (chain, private) = (certificates(cert)?, private_key(key)?);
                builder.with_client_auth_cert(chain, private).with_context(|| {
                    format!(
                        "cannot use {} with {}; use the certificate's own key",
                        cert.display(),
                        key.display()
                    )
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        config.alpn_protocols = self.alpn.iter().map(|name| name.clone().into_bytes()).collect();
        Ok(config)
    }
}

fn roots(file: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for root in certificates(file)? {
        roots
            .add(root)
            .with_context(|| format!("--ca {}: a certificate is not usable as a root", file.display()))?;
    }
    Ok(roots)
}

/// The roots of the file, trusted for the expected trust domain only.
fn bundles(file: &Path, expected: &SpiffeId) -> anyhow::Result<TrustBundles> {
    let mut bundles = TrustBundles::new();
    for root in certificates(file)? {
        let added = bundles.add_root(expected.trust_domain().clone(), &root);
        added.with_context(|| format!("--ca {}", file.display()))?;
    }
    Ok(bundles)
}

fn certificates(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.with_context(|| format!("cannot read certificates from {}", file.display()))?;
    ensure!(!found.is_empty(), "{} has no certificate; use a PEM file", file.display());
    Ok(found)
}

fn private_key(file: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(file)
        .with_context(|| format!("cannot read a private key from {}; use a PEM file", file.display()))
}

/// The accepted peer; a SPIFFE ID without a path matches the whole trust domain.
fn peer(expected: &SpiffeId) -> Peer {
    if expected.path().is_empty() {
        Peer::Domain(expected.trust_domain().clone())
    } else {
        Peer::Ids(vec![expected.clone()])
    }
}
