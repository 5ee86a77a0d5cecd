//! One rustls verifier, for servers' and clients' certificates, for everybody who judges whole chains. Whatever a judge
//! accepts, the holder of the certificate must prove its key.

use std::fmt::Debug;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};

use crate::bundle::Role;
use crate::crypto::algorithms;

/// Decides whether a certificate chain is accepted.
pub trait ChainJudge: Debug + Send + Sync {
    /// Judges a chain, leaf first, of a peer in a role. The name that a client asked for is not part of it.
    ///
    /// # Errors
    /// Why the chain is not accepted.
    fn judge(&self, chain: &[CertificateDer<'_>], role: Role, now: UnixTime) -> Result<(), rustls::Error>;
}

/// Verifies the certificates of peers by a judge, and the signatures of handshakes itself.
#[derive(Debug)]
pub struct ChainVerifier<J>(pub J);

impl<J: ChainJudge> ChainVerifier<J> {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let chain: Vec<_> = std::iter::once(leaf).chain(intermediates).cloned().collect();
        self.0.judge(&chain, role, now)
    }
}

/// The methods for handshake signatures, which are the same in both directions.
macro_rules! signatures_are_checked {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            algorithms().supported_schemes()
        }
    };
}

impl<J: ChainJudge> ServerCertVerifier for ChainVerifier<J> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Role::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    signatures_are_checked!();
}

impl<J: ChainJudge> ClientCertVerifier for ChainVerifier<J> {
    /// None: hints would disclose the trusted domains, and make some clients send no certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures_are_checked!();
}
