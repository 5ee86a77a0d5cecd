//! Requests certificates of workloads for a gateway: one at a time, from the agents of its cluster. Nothing is written to
//! a disk.

use std::sync::Arc;

use isthmus_certs::{Bundle, Client, IdPattern, Identity, Peer, SpiffeId, Trust};
use isthmus_model::address::Target;
use isthmus_model::slice::Cluster;

use super::{EnrolError, Granted, KeeperError, for_another};

/// The agents that issue certificates of workloads to a gateway.
#[derive(Debug)]
pub struct Workloads {
    agents: Vec<Target>,
    tls: Arc<Client>,
}

/// Why an identity has no new certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotIssued {
    /// An agent refused it, or its answer is invalid.
    #[error("{0}")]
    Refused(String),
    /// No agent has answered.
    #[error("{0}")]
    Unanswered(String),
}

impl Workloads {
    /// Asks these agents of a cluster, in order, as the identity of `trust`.
    ///
    /// # Errors
    /// The certificate of `trust` cannot be used in TLS.
    pub fn new(trust: Trust, agents: Vec<Target>, cluster: &Cluster) -> Result<Workloads, KeeperError> {
        let domain = trust.current().identity.id().trust_domain().clone();
        let theirs = IdPattern::agents(&domain, cluster.as_str())?;
        let tls = Arc::new(Client::new(trust, Peer::Matching(vec![theirs]), &[b"h2"])?);
        Ok(Workloads { agents, tls })
    }

    /// Requests a certificate for a new key; `known` is the bundle of its trust domain.
    ///
    /// # Errors
    /// What each agent has said.
    pub async fn certificate(
        &self,
        wanted: &SpiffeId,
        known: Option<&Bundle>,
    ) -> Result<Identity, NotIssued> {
        let mut problems = Vec::new();
        for agent in &self.agents {
            match for_another(agent, &self.tls, wanted, known).await {
                Ok(Granted { identity, .. }) => return Ok(identity),
                Err(error) => problems.push(error),
            }
        }
        let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
        let is_away =
            |error: &EnrolError| matches!(error, EnrolError::Dial { .. } | EnrolError::Broken { .. });
        let is_unanswered = problems.iter().all(is_away);
        Err(if is_unanswered { NotIssued::Unanswered } else { NotIssued::Refused }(texts.join("; ")))
    }
}
