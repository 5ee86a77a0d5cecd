//! The TLS side of a run: which certificate is shown, and what the server must prove. Not the handshake.
//!
//! Resumption is off, so that every handshake is a full one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use clap::Args;
use isthmus_certs::bundle::Role;
use isthmus_certs::{SpiffeId, TrustBundles, VerifyError};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// What is shown and what is demanded.
#[derive(Debug, Args)]
#[command(next_help_heading = "TLS")]
#[group(skip)]
pub(crate) struct Tls {
    /// Protocols to offer, the best first.
    #[arg(long, value_delimiter = ',', value_name = "PROTOCOLS")]
    pub(crate) alpn: Vec<String>,
    /// Verify the server's chain against these roots, and its DNS name against the SNI.
    #[arg(long, value_name = "PEM", required_unless_present = "insecure", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Verify a SPIFFE ID instead of the DNS name: `spiffe://DOMAIN/PATH` is exactly this one,
    /// `spiffe://DOMAIN` is every one of the trust domain.
    #[arg(long, value_name = "SPIFFE-ID", requires = "ca", value_parser = SpiffeId::parse)]
    expect: Option<SpiffeId>,
    /// The client's certificate, followed by its intermediates.
    #[arg(long, value_name = "PEM", requires = "key")]
    cert: Option<PathBuf>,
    /// The client's key.
    #[arg(long, value_name = "PEM", requires = "cert")]
    key: Option<PathBuf>,
    /// Verify nothing about the server.
    #[arg(long)]
    pub(crate) insecure: bool,
}

impl Tls {
    /// Reads the files.
    pub(crate) fn config(&self) -> anyhow::Result<ClientConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match (&self.ca, &self.expect) {
            (Some(ca), None) => builder.with_root_certificates(roots(ca)?),
            (Some(ca), Some(expected)) => {
                let demand = Demand::Id { bundles: bundles(ca, expected)?, expected: expected.clone() };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier { demand, provider }))
            }
            (None, _) => {
                let demand = Demand::Nothing;
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier { demand, provider }))
            }
        };
        let mut config = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => {
                let (chain, private) = (certificates(cert)?, private_key(key)?);
                builder.with_client_auth_cert(chain, private).with_context(|| {
                    format!("{} and {} must belong together", cert.display(), key.display())
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
            .with_context(|| format!("--ca {}: a certificate cannot be a root", file.display()))?;
    }
    Ok(roots)
}

/// The roots of the file speak for the trust domain that is expected, and for no other.
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
    ensure!(!found.is_empty(), "{} has no certificate; it must be PEM", file.display());
    Ok(found)
}

fn private_key(file: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(file)
        .with_context(|| format!("cannot read a private key from {}; it must be PEM", file.display()))
}

/// Verifies what webpki's own verifier does not: SPIFFE IDs, or nothing at all.
#[derive(Debug)]
struct Verifier {
    demand: Demand,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Demand {
    Id { bundles: TrustBundles, expected: SpiffeId },
    Nothing,
}

impl Demand {
    fn check(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<(), VerifyError> {
        let Self::Id { bundles, expected } = self else { return Ok(()) };
        let id = bundles.verify(chain, Role::Server, now)?;
        let any_path = expected.path().is_empty() && id.trust_domain() == expected.trust_domain();
        if any_path || id == *expected { Ok(()) } else { Err(VerifyError::Unexpected(id)) }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        self.demand.check(&chain, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
