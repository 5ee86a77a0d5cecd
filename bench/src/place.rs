//! Where a measurement happens: on loopback, or with client, proxy and service each in a network namespace of
//! its own, joined by veth pairs. Runs the services, not the proxies.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::backend::Backend;
use crate::backend::tls::TlsBackend;
use crate::hello::Hello;
use crate::load::Target;
use crate::netns::Namespace;
use crate::systems::Routes;

/// The services and the networks in which they run.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) backend: Backend,
    pub(crate) tls: TlsBackend,
    hello: Arc<Hello>,
    /// `None` on loopback.
    networks: Option<Networks>,
}

#[derive(Debug)]
struct Networks {
    client: Namespace,
    proxy: Namespace,
    _service: Namespace,
    /// Number of proxies so far. Each gets its own port and service address: TIME_WAIT blocks a port for one
    /// destination only, and no proxy may find the ports used up by an earlier one.
    proxies: AtomicU16,
}

/// The proxies' address in the client's namespace.
const PROXY: Ipv4Addr = Ipv4Addr::new(10, 98, 1, 2);
/// First port of the proxies.
const PORT: u16 = 15443;

impl Place {
    pub(crate) fn loopback(hello: &Arc<Hello>) -> anyhow::Result<Self> {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let backend = Backend::start(Arc::clone(hello), ip)?;
        Ok(Self { backend, tls: TlsBackend::start(ip)?, hello: Arc::clone(hello), networks: None })
    }

    /// # Errors
    /// Without root or the `ip` command.
    pub(crate) fn veth(hello: &Arc<Hello>) -> anyhow::Result<Self> {
        let (client, proxy, service) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        let join = |from: &Namespace, name: &str, to: &Namespace| {
            from.ip(&format!("link add {name} type veth peer name {name} netns {}", to.path().display()))?;
            from.ip(&format!("link set {name} up"))?;
            to.ip(&format!("link set {name} up"))
        };
        join(&client, "near", &proxy)?;
        join(&proxy, "far", &service)?;
        client.ip("addr add 10.98.1.1/24 dev near")?;
        proxy.ip(&format!("addr add {PROXY}/24 dev near"))?;
        proxy.ip("addr add 10.98.2.1/24 dev far")?;
        service.ip("addr add 10.98.2.2/24 dev far")?;
        // The service has every address of this network.
        service.ip("route add local 10.99.0.0/16 dev lo")?;
        proxy.ip("route add 10.99.0.0/16 via 10.98.2.2")?;
        // For the direct connection.
        proxy.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))?;
        client.ip(&format!("route add default via {PROXY}"))?;
        service.ip("route add default via 10.98.2.1")?;
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let backend = service.inside(|| Backend::start(Arc::clone(hello), any))?;
        let tls = TlsBackend::start(Ipv4Addr::LOCALHOST.into())?;
        let networks = Some(Networks { client, proxy, _service: service, proxies: AtomicU16::new(0) });
        Ok(Self { backend, tls, hello: Arc::clone(hello), networks })
    }

    /// Runs something in the clients' namespace.
    pub(crate) fn as_client<T: Send>(&self, run: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match &self.networks {
            Some(networks) => networks.client.inside(run),
            None => run(),
        }
    }

    /// Runs something in the proxies' namespace.
    pub(crate) fn as_proxy<T: Send>(&self, run: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        match &self.networks {
            Some(networks) => networks.proxy.inside(run),
            None => run(),
        }
    }

    /// The routes of a proxy, with a free address to listen on.
    pub(crate) fn routes(&self, services: u32) -> io::Result<Routes> {
        let (listen, backend) = if let Some(networks) = &self.networks {
            let number = networks.proxies.fetch_add(1, Ordering::Relaxed);
            let [high, low] = number.to_be_bytes();
            let service = Ipv4Addr::new(10, 99, high, low);
            let listen = SocketAddr::from((PROXY, PORT.wrapping_add(number).max(PORT)));
            (listen, SocketAddr::from((service, self.backend.address.port())))
        } else {
            // Not every system can pick a free port and report it.
            (TcpListener::bind("127.0.0.1:0")?.local_addr()?, self.backend.address)
        };
        Ok(Routes { listen, services, backend, closing: None, tls: self.tls.address })
    }

    pub(crate) fn target(&self, address: SocketAddr) -> Target {
        Target::plain(address, &self.hello)
    }
}
