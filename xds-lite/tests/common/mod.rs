//! Shared by the tests: a trust domain, and an agent that serves over mTLS in its own runtime.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::{
    Authority, Client as TlsClient, Peer, Server as TlsServer, SpiffeId, Trust, TrustBundles, TrustDomain,
};
use isthmus_grpc::budget::{Budgets, Principal};
use isthmus_grpc::serve::{Admission, serve_with};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::service::Routes;

pub(crate) const AGENT: &str = "spiffe://east.example/isthmus/east/agent/a";
pub(crate) const GATEWAY: &str = "spiffe://east.example/isthmus/east/gateway/g";
/// Two agents of one peer.
pub(crate) const PEERS: [&str; 2] =
    ["spiffe://east.example/isthmus/west/agent/a", "spiffe://east.example/isthmus/west/agent/b"];
/// A DNS name in every certificate, for clients that verify servers by DNS names only.
pub(crate) const NAME: &str = "peer.east.example";
pub(crate) const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// One trust domain.
pub(crate) struct World {
    pub(crate) authority: Authority,
}

impl World {
    pub(crate) fn new() -> World {
        World { authority: Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap() }
    }

    pub(crate) fn trust(&self, id: &str) -> Trust {
        let id = SpiffeId::parse(id).unwrap();
        let identity = self.authority.issue(&id, &[NAME], Duration::from_secs(3600)).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.add_root(id.trust_domain().clone(), self.authority.certificate()).unwrap();
        Trust::new(identity, bundles)
    }

    pub(crate) fn client(&self, id: &str, server: &str) -> Arc<TlsClient> {
        client(self.trust(id), server)
    }

    /// Serves on an address; port 0 is any.
    pub(crate) fn agent(&self, routes: Routes, at: SocketAddr) -> Agent {
        agent(self.trust(AGENT), routes, at)
    }
}

/// TLS of a client that expects a server of this identity.
pub(crate) fn client(trust: Trust, server: &str) -> Arc<TlsClient> {
    let server = Peer::Ids(vec![SpiffeId::parse(server).unwrap()]);
    Arc::new(TlsClient::new(trust, server, &[b"h2"]).unwrap())
}

/// Serves on an address with this identity; port 0 is any.
pub(crate) fn agent(trust: Trust, routes: Routes, at: SocketAddr) -> Agent {
    let domain = Peer::Domain(trust.current().identity.id().trust_domain().clone());
    let tls = Arc::new(TlsServer::new(trust, domain, &[b"h2"]).unwrap());
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind(at)).unwrap();
    let at = listener.local_addr().unwrap();
    let budgets = Arc::new(Budgets::default());
    let admission = Admission::new(Arc::new(principal)).with(Arc::clone(&budgets), None);
    runtime.spawn(async move { serve_with(&listener, tls, routes, admission).await });
    Agent { at, budgets, runtime: Some(runtime) }
}

fn principal(id: &SpiffeId) -> Option<Principal> {
    match id.to_string().as_str() {
        GATEWAY => Some(Principal::Gateway(id.clone())),
        peer if PEERS.contains(&peer) => Some(Principal::Peer("west".parse().unwrap())),
        _ => None,
    }
}

/// A running agent; dropping it closes its connections, as the end of a process would.
pub(crate) struct Agent {
    pub(crate) at: SocketAddr,
    #[allow(dead_code, reason = "not every test reads them")]
    pub(crate) budgets: Arc<Budgets>,
    runtime: Option<Runtime>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}
