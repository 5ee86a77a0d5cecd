//! TLS configurations that follow a [`Trust`]: rebuilt for the next handshake when the trust has changed. A handshake
//! ends under the trust that it began with.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, DnsName};
use rustls::{ClientConfig, ServerConfig};

use super::gate::{self, Gate};
use super::sessions::{ClientSessions, Lifetime, ServerSessions};
use super::standing::Standing;
use super::verifier::PeerJudge;
use super::{ConfigError, Peer, client_with, server_with};
use crate::bundle::Role;
use crate::trust::{Trust, Trusted};

/// TLS 1.3 tickets that a server sends after a full handshake.
const TICKETS: usize = 2;

/// A TLS server that follows its trust.
#[derive(Debug)]
pub struct Server(Live<ServerConfig>);

/// A TLS client that follows its trust.
#[derive(Debug)]
pub struct Client(Live<ClientConfig>);

impl Server {
    /// A server that requires a client certificate of an `allowed` peer, for these protocols (ALPN).
    pub fn new(trust: Trust, allowed: Peer, alpn: &[&[u8]]) -> Result<Self, ConfigError> {
        Ok(Self(Live::new(trust, allowed, alpn, server)?))
    }

    /// Checks, after a handshake, whether the client with this chain is still accepted.
    pub fn standing(&self, chain: &[CertificateDer<'_>]) -> Standing {
        Standing::new(self.0.trust.clone(), self.0.peer.clone(), Role::Client, chain)
    }

    /// The configuration for the next handshake.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.0.config()
    }

    /// The configuration for the next handshake alone, in which `gate` decides about the client, too.
    pub fn config_with(&self, gate: Arc<dyn Gate>) -> Result<Arc<ServerConfig>, ConfigError> {
        let built = self.0.built();
        let judge = PeerJudge {
            bundles: Arc::clone(&built.trusted.bundles),
            peer: self.0.peer.clone(),
            lifetime: Arc::clone(&built.lifetime),
        };
        let made = gate::gated(&built.config, judge, gate);
        made.map(Arc::new).map_err(|cause| ConfigError::new(built.trusted.identity.id(), cause))
    }
}

impl Client {
    /// A client that accepts only `expected` servers, for these protocols (ALPN).
    pub fn new(trust: Trust, expected: Peer, alpn: &[&[u8]]) -> Result<Self, ConfigError> {
        Ok(Self(Live::new(trust, expected, alpn, client)?))
    }

    /// Checks, after a handshake, whether the server with this chain is still accepted.
    pub fn standing(&self, chain: &[CertificateDer<'_>]) -> Standing {
        Standing::new(self.0.trust.clone(), self.0.peer.clone(), Role::Server, chain)
    }

    /// The configuration for the next handshake.
    pub fn config(&self) -> Arc<ClientConfig> {
        self.0.config()
    }

    /// The DNS name that the server must have, for [`Peer::Name`]; connect to it by this name.
    pub fn name(&self) -> Option<&DnsName<'static>> {
        match &self.0.peer {
            Peer::Name { name, .. } => Some(name),
            _ => None,
        }
    }
}

fn server(trusted: &Trusted, judge: PeerJudge, alpn: &[Vec<u8>]) -> Result<ServerConfig, ConfigError> {
    let sessions = ServerSessions::new(Arc::clone(&judge.lifetime));
    let mut config = server_with(&trusted.identity, judge)?;
    config.alpn_protocols = alpn.to_vec();
    config.session_storage = Arc::new(sessions);
    config.send_tls13_tickets = TICKETS;
    Ok(config)
}

fn client(trusted: &Trusted, judge: PeerJudge, alpn: &[Vec<u8>]) -> Result<ClientConfig, ConfigError> {
    let sessions = ClientSessions::new(Arc::clone(&judge.lifetime));
    let mut config = client_with(&trusted.identity, judge)?;
    config.alpn_protocols = alpn.to_vec();
    config.resumption = Resumption::store(Arc::new(sessions));
    Ok(config)
}

type Make<C> = fn(&Trusted, PeerJudge, &[Vec<u8>]) -> Result<C, ConfigError>;

#[derive(Debug)]
struct Live<C> {
    trust: Trust,
    peer: Peer,
    alpn: Vec<Vec<u8>>,
    make: Make<C>,
    built: ArcSwap<Built<C>>,
}

#[derive(Debug)]
struct Built<C> {
    config: Arc<C>,
    trusted: Arc<Trusted>,
    lifetime: Arc<Lifetime>,
}

impl<C> Live<C> {
    fn new(trust: Trust, peer: Peer, alpn: &[&[u8]], make: Make<C>) -> Result<Self, ConfigError> {
        let alpn: Vec<_> = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        let built = build(&trust, &peer, &alpn, make)?;
        Ok(Self { trust, peer, alpn, make, built: ArcSwap::from_pointee(built) })
    }

    fn config(&self) -> Arc<C> {
        Arc::clone(&self.built().config)
    }

    fn built(&self) -> Arc<Built<C>> {
        let built = self.built.load_full();
        if built.trusted.epoch == self.trust.current().epoch && !built.lifetime.is_over() {
            return built;
        }
        match build(&self.trust, &self.peer, &self.alpn, self.make) {
            Ok(built) => {
                let built = Arc::new(built);
                self.built.store(Arc::clone(&built));
                built
            }
            // A trust is checked before it becomes current. If this fails nevertheless, the old epoch makes the next
            // call retry.
            Err(error) => {
                tracing::error!(%error, "cannot use the new certificates; keeping the previous ones");
                built
            }
        }
    }
}

fn build<C>(trust: &Trust, peer: &Peer, alpn: &[Vec<u8>], make: Make<C>) -> Result<Built<C>, ConfigError> {
    let trusted = trust.current();
    let lifetime = Arc::new(Lifetime::default());
    let bundles = Arc::clone(&trusted.bundles);
    let judge = PeerJudge { bundles, peer: peer.clone(), lifetime: Arc::clone(&lifetime) };
    let config = Arc::new(make(&trusted, judge, alpn)?);
    Ok(Built { config, trusted, lifetime })
}
