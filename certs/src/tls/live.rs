//! TLS configurations that follow a [`Trust`]: rebuilt for the next handshake when the trust has changed. A handshake
//! ends under the trust that it began with.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::{ClientSessionStore as _, Resumption};
use rustls::pki_types::{CertificateDer, DnsName, ServerName};
use rustls::{ClientConfig, ServerConfig};

use super::gate::Gated;
use super::sessions::{self, ClientSessions, Lifetime, ServerSessions};
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
pub struct Client(Live<Resuming>);

impl Server {
    /// A server that requires a client certificate of an `allowed` peer, for these protocols (ALPN).
    pub fn new(trust: Trust, allowed: Peer, alpn: &[&[u8]]) -> Result<Self, ConfigError> {
        Ok(Self(Live::new(trust, allowed, (alpn, sessions::CAPACITY), server)?))
    }

    /// Likewise; in each handshake a [`Gate`](super::Gate) decides about the client, too. All of its steps must be made
    /// [`behind`](super::behind) that: otherwise the client is refused.
    pub fn gated(trust: Trust, allowed: Peer, alpn: &[&[u8]]) -> Result<Self, ConfigError> {
        Ok(Self(Live::new(trust, allowed, (alpn, sessions::CAPACITY), gated_server)?))
    }

    /// Checks, after a handshake, whether the client with this chain is still accepted.
    pub fn standing(&self, chain: &[CertificateDer<'_>]) -> Standing {
        Standing::new(self.0.trust.clone(), self.0.peer.clone(), Role::Client, chain)
    }

    /// The configuration for the next handshake.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.0.config()
    }

    /// The DNS names in the certificate that it presents.
    pub fn dns_names(&self) -> Arc<[String]> {
        Arc::clone(&self.0.built().dns_names)
    }
}

impl Client {
    /// A client that accepts only `expected` servers, for these protocols (ALPN).
    pub fn new(trust: Trust, expected: Peer, alpn: &[&[u8]]) -> Result<Self, ConfigError> {
        Self::keeping(trust, expected, alpn, sessions::CAPACITY)
    }

    /// As [`Client::new`], with at most so many sessions; a client that knows few servers needs few.
    pub fn keeping(
        trust: Trust,
        expected: Peer,
        alpn: &[&[u8]],
        sessions: usize,
    ) -> Result<Self, ConfigError> {
        Ok(Self(Live::new(trust, expected, (alpn, sessions), client)?))
    }

    /// Checks, after a handshake, whether the server with this chain is still accepted.
    pub fn standing(&self, chain: &[CertificateDer<'_>]) -> Standing {
        Standing::new(self.0.trust.clone(), self.0.peer.clone(), Role::Server, chain)
    }

    /// The configuration for the next handshake.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.built().config.client)
    }

    /// Forgets what could be resumed in TLS 1.2 with a server whose answer to that could not be decrypted.
    pub fn forget(&self, server: &ServerName<'static>) {
        self.0.built().config.sessions.remove_tls12_session(server);
    }

    /// The DNS name that the server must have, for [`Peer::Name`]; connect to it by this name.
    pub fn name(&self) -> Option<&DnsName<'static>> {
        match &self.0.peer {
            Peer::Name { name, .. } => Some(name),
            _ => None,
        }
    }
}

/// A client's configuration, and the sessions that it resumes.
#[derive(Debug)]
struct Resuming {
    client: Arc<ClientConfig>,
    sessions: Arc<ClientSessions>,
}

fn server(trusted: &Trusted, judge: PeerJudge, offer: &Offer) -> Result<ServerConfig, ConfigError> {
    let lifetime = Arc::clone(&judge.lifetime);
    Ok(resuming(server_with(&trusted.identity, judge)?, lifetime, offer))
}

fn gated_server(trusted: &Trusted, judge: PeerJudge, offer: &Offer) -> Result<ServerConfig, ConfigError> {
    let lifetime = Arc::clone(&judge.lifetime);
    let mut config = server_with(&trusted.identity, Gated(judge))?;
    // For an alert after the handshake, which rustls has no call for.
    config.enable_secret_extraction = true;
    Ok(resuming(config, lifetime, offer))
}

fn resuming(mut config: ServerConfig, lifetime: Arc<Lifetime>, offer: &Offer) -> ServerConfig {
    config.alpn_protocols.clone_from(&offer.alpn);
    config.session_storage = Arc::new(ServerSessions::new(lifetime, offer.sessions));
    config.send_tls13_tickets = TICKETS;
    config
}

fn client(trusted: &Trusted, judge: PeerJudge, offer: &Offer) -> Result<Resuming, ConfigError> {
    let sessions = Arc::new(ClientSessions::new(Arc::clone(&judge.lifetime), offer.sessions));
    let mut config = client_with(&trusted.identity, judge)?;
    config.alpn_protocols.clone_from(&offer.alpn);
    config.resumption = Resumption::store(Arc::<ClientSessions>::clone(&sessions));
    Ok(Resuming { client: Arc::new(config), sessions })
}

type Make<C> = fn(&Trusted, PeerJudge, &Offer) -> Result<C, ConfigError>;

/// What each configuration has.
#[derive(Debug)]
struct Offer {
    alpn: Vec<Vec<u8>>,
    /// Sessions at most.
    sessions: usize,
}

#[derive(Debug)]
struct Live<C> {
    trust: Trust,
    peer: Peer,
    offer: Offer,
    make: Make<C>,
    built: ArcSwap<Built<C>>,
}

#[derive(Debug)]
struct Built<C> {
    config: Arc<C>,
    trusted: Arc<Trusted>,
    dns_names: Arc<[String]>,
    lifetime: Arc<Lifetime>,
}

impl<C> Live<C> {
    fn new(
        trust: Trust,
        peer: Peer,
        (alpn, sessions): (&[&[u8]], usize),
        make: Make<C>,
    ) -> Result<Self, ConfigError> {
        let offer = Offer { alpn: alpn.iter().map(|protocol| protocol.to_vec()).collect(), sessions };
        let built = build(&trust, &peer, &offer, make)?;
        Ok(Self { trust, peer, offer, make, built: ArcSwap::from_pointee(built) })
    }

    fn config(&self) -> Arc<C> {
        Arc::clone(&self.built().config)
    }

    fn built(&self) -> Arc<Built<C>> {
        let built = self.built.load_full();
        if built.trusted.epoch == self.trust.current().epoch && !built.lifetime.is_over() {
            return built;
        }
        match build(&self.trust, &self.peer, &self.offer, self.make) {
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

fn build<C>(trust: &Trust, peer: &Peer, offer: &Offer, make: Make<C>) -> Result<Built<C>, ConfigError> {
    let trusted = trust.current();
    let lifetime = Arc::new(Lifetime::default());
    let bundles = Arc::clone(&trusted.bundles);
    let judge = PeerJudge { bundles, peer: peer.clone(), lifetime: Arc::clone(&lifetime) };
    let config = Arc::new(make(&trusted, judge, offer)?);
    let dns_names = trusted.identity.dns_names().into();
    Ok(Built { config, trusted, dns_names, lifetime })
}
