//! Following another cluster's agent: what it offers goes into the state, what it refuses stays out.

use std::sync::{Arc, Mutex, PoisonError};

use isthmus_certs::{Client as Tls, IdPattern, Peer as Expected, Trust};

use crate::ads::client::{Client, Refused, Update};
use crate::ads::subscribe::{Contact, Subscription, Tables};
use crate::proto::envoy::config::core::v3::Node;
use crate::slice::Cluster;

use super::config::Peer;
use super::state::State;
use super::{Error, SLICE};

/// Follows a peer until it is dropped.
pub(super) async fn follow(
    own: Cluster,
    peer: Peer,
    trust: Trust,
    state: Arc<Mutex<State>>,
) -> Result<(), Error> {
    let agents = IdPattern::parse(&format!("{}/isthmus/{}/agent/*", peer.domain.id(), peer.cluster))?;
    let tls = Tls::new(trust, Expected::Matching(vec![agents]), &[b"h2"])?;
    let node = Node {
        id: format!("agent~{own}"),
        cluster: own.to_string(),
        user_agent_name: "isthmus-agent".to_owned(),
        ..Node::default()
    };
    let subscription = Subscription { servers: vec![peer.address.clone()], tls: Arc::new(tls), node };
    let known = state.lock().unwrap_or_else(PoisonError::into_inner).known(&peer.cluster);
    let mut offers = Offers { cluster: peer.cluster, state };
    subscription.follow(vec![Client::new(SLICE, known)], &mut offers).await;
    Ok(())
}

/// What one cluster offers.
struct Offers {
    cluster: Cluster,
    state: Arc<Mutex<State>>,
}

impl Tables for Offers {
    fn apply(&mut self, update: &Update) -> Vec<Refused> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).take(&self.cluster, update)
    }

    fn contact(&mut self, contact: Contact<'_>) {
        let lost = match contact {
            Contact::Made(agent) => {
                tracing::info!(peer = %self.cluster, %agent, "following a peer");
                None
            }
            Contact::Lost(agent, why) => {
                tracing::warn!(peer = %self.cluster, %agent, why, "no peer there; its services stay as they were");
                Some(why.to_owned())
            }
        };
        self.state.lock().unwrap_or_else(PoisonError::into_inner).contact(&self.cluster, lost);
    }
}
