//! Follows another control plane: receives Listeners, Clusters and ClusterLoadAssignments over one stream and puts
//! the resulting services into the tables beside the file's. `isthmus_envoy::import` translates the resources.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use isthmus_ads::client::{Client, Refused, Update};
use isthmus_ads::subscribe::{Answers, Contact, Subscription, Tables};
use isthmus_certs::{Client as Tls, Peer, SpiffeId, Trust};
use isthmus_envoy::import::{Asker, State, node};
use isthmus_grpc::resolve;
use isthmus_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER};
use rustls::pki_types::DnsName;
use tokio::net::UdpSocket;

use crate::config::settings::{ControlPlane, Known, Target};
use crate::control::Control;

/// Namespace for an identity without one.
const NAMESPACE: &str = "default";
/// Interval between attempts to find the own address.
const RETRY: Duration = Duration::from_secs(1);

/// Follows a control plane for as long as the gateway runs.
pub(crate) async fn run(plane: ControlPlane, trust: Trust, control: Arc<Control>) -> io::Result<()> {
    let own = trust.current().identity.id().clone();
    let peer = match &plane.server {
        Known::Identity(id) => Peer::Ids(vec![id.clone()]),
        Known::Name(name) => Peer::Name {
            domain: own.trust_domain().clone(),
            name: DnsName::try_from(name.as_str().to_owned()).map_err(io::Error::other)?,
        },
    };
    let tls = Tls::new(trust, peer, &[b"h2"]).map_err(io::Error::other)?;
    let fixed = &control.process.fixed.node;
    let asker = Asker {
        id: &fixed.id,
        cluster: &fixed.cluster,
        network: &fixed.network,
        locality: &fixed.locality,
        ip: own_address(&plane.addresses).await,
        namespace: namespace(&own),
    };
    let node = node(&asker, plane.node_id.as_deref(), &plane.metadata);
    let subscription = Subscription {
        servers: plane.addresses,
        within: None,
        tls: Arc::new(tls),
        node,
        answers: Answers::OF_OWN,
    };
    // Make before break: clusters and endpoints before the listeners that refer to them.
    let clients = vec![Client::new(CLUSTER, []), Client::of_names(ENDPOINTS), Client::new(LISTENER, [])];
    let mut received = Received { control, state: State::new(plane.port), was_complete: false };
    subscription.run(clients, &mut received).await;
    Ok(())
}

/// Returns the namespace of a workload identity, `/ns/NAMESPACE/sa/ACCOUNT`.
fn namespace(id: &SpiffeId) -> &str {
    let mut parts = id.path().trim_start_matches('/').split('/');
    match (parts.next(), parts.next()) {
        (Some("ns"), Some(namespace)) => namespace,
        _ => NAMESPACE,
    }
}

/// Returns this machine's address on the route to the control plane, without sending anything. Waits for a route:
/// without one the control plane is unreachable anyway.
async fn own_address(servers: &[Target]) -> IpAddr {
    loop {
        for server in servers {
            match own_address_for(server).await {
                Ok(own) => return own.ip(),
                Err(error) => tracing::warn!(%server, %error, "control plane unreachable; retrying"),
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn own_address_for(server: &Target) -> io::Result<SocketAddr> {
    let addresses = resolve::addresses(server).await?;
    local_address_towards(*addresses.first().ok_or(io::ErrorKind::NotFound)?).await
}

async fn local_address_towards(address: SocketAddr) -> io::Result<SocketAddr> {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(address).await?;
    socket.local_addr()
}

/// The resources received so far.
struct Received {
    control: Arc<Control>,
    state: State,
    /// The first complete set was received; later changes are applied one by one.
    was_complete: bool,
}

impl Tables for Received {
    async fn apply(&mut self, update: &Update) -> Vec<Refused> {
        let refused = self.state.apply(update);
        for Refused { name, why } in &refused {
            tracing::warn!(kind = kind(&update.type_url), resource = ?name, %why, "resource refused in whole or in part");
        }
        self.was_complete |= self.state.is_whole();
        if self.was_complete {
            let services = self.state.services();
            self.control.following.send_modify(|following| following.slices = services.len());
            self.control.replace_learned(&services);
        }
        self.control.following.send_modify(|following| following.refused(&refused));
        refused
    }

    fn names(&self, type_url: &str) -> Option<&BTreeSet<String>> {
        self.state.names(type_url)
    }

    fn contact(&mut self, contact: Contact<'_>) {
        let (server, lost) = match contact {
            Contact::Made(server) => {
                tracing::info!(%server, "connected to the control plane");
                (server, None)
            }
            Contact::Lost(server, why) => {
                tracing::warn!(%server, why, "control plane unreachable; keeping the last tables");
                (server, Some(why))
            }
        };
        self.control.following.send_modify(|following| following.contact(&server.to_string(), lost));
    }
}

fn kind(type_url: &str) -> &str {
    type_url.rsplit('.').next().unwrap_or(type_url)
}
