//! What the scenario `tls-ends` needs beside routes: identities in files, services that speak TLS, and the TLS of the
//! load generator. All of it is TLS 1.3 with AES-128-GCM, X25519 and ECDSA keys on P-256, and a client certificate.

mod trust;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_certs::SpiffeId;
use rustls::ClientConfig;

use self::trust::{Files, Trust};
use crate::backend::Backend;
use crate::hello::{Hello, Job};
use crate::load::Target;

/// The name of the service whose TLS begins or ends in a system.
pub(crate) const NAME: &str = "ends.bench.svc.cluster.local";

/// Where TLS meets plaintext in a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Clients speak TLS, the service does not.
    Terminate,
    /// The service speaks TLS, clients do not.
    Originate,
}

/// What a process of a system does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Terminate,
    Originate,
    /// Likewise, to a service that lets clients resume sessions.
    OriginateResuming,
}

/// What a system is asked to do, and its files.
#[derive(Debug)]
pub(crate) struct Ends<'a> {
    pub(crate) end: End,
    pub(crate) listen: SocketAddr,
    pub(crate) backend: SocketAddr,
    /// The certificate and key to present.
    pub(crate) own: &'a Files,
    /// The only peer to accept.
    pub(crate) peer: &'a SpiffeId,
    /// The root of both.
    pub(crate) root: &'a Path,
    /// A directory with the root, named after its trust domain.
    pub(crate) bundles: PathBuf,
}

/// The services and the trust of the scenario.
#[derive(Debug)]
pub(crate) struct World {
    trust: Trust,
    hello: Arc<Hello>,
    /// The service without TLS.
    plain: SocketAddr,
    full: Backend,
    resuming: Backend,
}

impl End {
    pub(crate) const ALL: [Self; 2] = [Self::Terminate, Self::Originate];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::Originate => "originate",
        }
    }

    /// The process for full handshakes.
    pub(crate) fn way(self) -> Way {
        match self {
            Self::Terminate => Way::Terminate,
            Self::Originate => Way::Originate,
        }
    }
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Terminate, Self::Originate, Self::OriginateResuming];

    pub(crate) fn end(self) -> End {
        match self {
            Self::Terminate => End::Terminate,
            Self::Originate | Self::OriginateResuming => End::Originate,
        }
    }
}

impl World {
    /// Makes new certificates and starts the services with TLS.
    pub(crate) fn start(plain: SocketAddr, hello: &Arc<Hello>) -> anyhow::Result<Self> {
        let trust = Trust::new()?;
        let start = |config| Backend::start_tls(Arc::clone(hello), Ipv4Addr::LOCALHOST.into(), config);
        let full = start(trust.service_full()?)?;
        let resuming = start(trust.service_resuming()?)?;
        Ok(Self { trust, hello: Arc::clone(hello), plain, full, resuming })
    }

    /// The task of a system, with a free address to listen on.
    pub(crate) fn task(&self, way: Way) -> io::Result<Ends<'_>> {
        let listen = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let backend = match way {
            Way::Terminate => self.plain,
            Way::Originate => self.full.address,
            Way::OriginateResuming => self.resuming.address,
        };
        let (own, peer) = match way.end() {
            End::Terminate => (&self.trust.service, &self.trust.caller.id),
            End::Originate => (&self.trust.caller, &self.trust.service.id),
        };
        let (root, bundles) = (self.trust.root(), self.trust.bundles());
        Ok(Ends { end: way.end(), listen, backend, own, peer, root, bundles })
    }

    /// The service behind a system, where it speaks TLS itself.
    pub(crate) fn service(&self, way: Way) -> Option<&Backend> {
        match way {
            Way::Terminate => None,
            Way::Originate => Some(&self.full),
            Way::OriginateResuming => Some(&self.resuming),
        }
    }

    /// Clients of a system at this address.
    pub(crate) fn target(&self, end: End, address: SocketAddr) -> Target {
        self.target_as(end, address, &self.trust.load_full)
    }

    /// The same clients, which verify the system's certificate.
    pub(crate) fn verifying(&self, end: End, address: SocketAddr) -> Target {
        self.target_as(end, address, &self.trust.load_verifying)
    }

    /// A TLS client without a certificate.
    pub(crate) fn stranger(&self, address: SocketAddr) -> Target {
        self.target_as(End::Terminate, address, &self.trust.load_stranger)
    }

    fn target_as(&self, end: End, address: SocketAddr, tls: &Arc<ClientConfig>) -> Target {
        let tls = (end == End::Terminate).then(|| (Arc::clone(tls), NAME));
        Target { address, hello: Arc::clone(&self.hello), tls }
    }

    /// The TLS of clients that resume sessions, or never do.
    pub(crate) fn client(&self, resumes: bool) -> &Arc<ClientConfig> {
        if resumes { &self.trust.load_resuming } else { &self.trust.load_full }
    }

    /// The first bytes of an exchange after which the service closes.
    pub(crate) fn once(&self) -> Vec<u8> {
        self.hello.for_job(Job::Once)
    }
}
