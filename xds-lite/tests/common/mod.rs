//! What these tests share: a trust domain, and an agent that serves over mTLS in a runtime of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::{
    Authority, Client as TlsClient, Peer, Server as TlsServer, SpiffeId, Trust, TrustBundles, TrustDomain,
};
use isthmus_xds::serve::serve;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tonic::service::Routes;

pub(crate) const AGENT: &str = "spiffe://east.example/isthmus/east/agent/a";
pub(crate) const GATEWAY: &str = "spiffe://east.example/isthmus/east/gateway/g";
/// Stands beside every identity, for clients that know servers by such names only.
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

/// Who follows a server of this identity.
pub(crate) fn client(trust: Trust, server: &str) -> Arc<TlsClient> {
    let server = Peer::Ids(vec![SpiffeId::parse(server).unwrap()]);
    Arc::new(TlsClient::new(trust, server, &[b"h2"]).unwrap())
}

/// Serves on an address, as who a trust says; port 0 is any.
pub(crate) fn agent(trust: Trust, routes: Routes, at: SocketAddr) -> Agent {
    let domain = Peer::Domain(trust.current().identity.id().trust_domain().clone());
    let tls = Arc::new(TlsServer::new(trust, domain, &[b"h2"]).unwrap());
    let runtime = Runtime::new().unwrap();
    let listener = runtime.block_on(TcpListener::bind(at)).unwrap();
    let at = listener.local_addr().unwrap();
    runtime
        .spawn(async move { serve(&listener, tls, routes, Arc::new(|id| id.to_string() == GATEWAY)).await });
    Agent { at, runtime: Some(runtime) }
}

/// A process of its own, as far as its connections are concerned: they end with it.
pub(crate) struct Agent {
    pub(crate) at: SocketAddr,
    runtime: Option<Runtime>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}
