//! The token holder's side: connects only to the agent that made the token, with a proof that is useless on
//! any other connection.

use std::sync::Arc;

use isthmus_certs::{ChainVerifier, Role};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::rustls::version::TLS13;

use super::{ALPN, Exported, bearer};
use crate::join::Token;
use crate::join::presented::{self, Wanted};
use crate::join::secret::{Proof, Session};
use crate::join::tls::{self, AgentJudge, MeetError};

/// A connection to the agent that made a token.
#[derive(Debug)]
pub struct Meeting {
    /// The stream, before any request.
    pub stream: TlsStream<TcpStream>,
    /// The bearer text, valid on this connection only.
    pub bearer: String,
    /// Verifies the agent's proof.
    pub answer: Answer,
}

/// What the agent's proof is verified against.
#[derive(Debug)]
pub struct Answer {
    token: Token,
    session: Session,
}

impl Answer {
    /// Whether the agent proved the token's secret.
    #[must_use]
    pub fn is_proven(&self, proof: &str) -> bool {
        Proof::from_text(proof).is_some_and(|proof| self.token.secret.admits(&self.session, &proof))
    }
}

/// Connects to the agent that made a token. Sends nothing of the token.
///
/// # Errors
/// The agent is unreachable, or is not the one that made the token.
pub async fn meet(token: &Token) -> Result<Meeting, MeetError> {
    let wanted = Wanted { root: token.root, party: token.issuer.clone() };
    let config = config(wanted.clone())?;
    let (stream, name) = tls::reach(&token.address, None).await.map_err(MeetError::Connect)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(tls::refused)?;
    let (_, connection) = stream.get_ref();
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(MeetError::Protocol);
    }
    presented::prove(
        connection.peer_certificates().unwrap_or_default(),
        Role::Server,
        Some(&wanted),
        UnixTime::now(),
    )?;
    let exported = Exported::from_connection(connection).map_err(MeetError::Own)?;
    let session = exported.about(token.id(), &token.issuer, &token.guest);
    let bearer = bearer(token.id(), &token.secret.prove(&session));
    Ok(Meeting { stream, bearer, answer: Answer { token: token.clone(), session } })
}

fn config(wanted: Wanted) -> Result<ClientConfig, MeetError> {
    let verifier = Arc::new(ChainVerifier(AgentJudge(Some(wanted))));
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .map_err(MeetError::Own)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
