//! Serves DNS to applications on UDP and TCP: from the tables, or by asking other servers. Who may ask, and how much at
//! once, is decided before a question costs anything. What is answered is `isthmus_dns`; what stands in the tables is the
//! agent's.

mod asked;
mod exchange;
mod forward;
mod machine;
mod places;
mod stats;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;
mod upstreams;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use isthmus_dns::{Failure, Outcome, Relayed, Table, Transport, answer, failure, relay};
use isthmus_grpc::budget::LogLimiter;
use tokio::sync::watch;

use crate::agent::config;
use forward::Forwarder;
use places::{Place, Places};
use upstreams::Upstreams;

pub use stats::{Answer, Stats};

/// Attempts to find one port that is free on UDP and TCP.
const ATTEMPTS: usize = 16;
/// Refused clients that are answered and logged in ten seconds. Answers to forged sources must not become a flood.
const REFUSALS: u32 = 1_000;
const LOGGED: u32 = 1;
/// Largest question. A name, its type and all options that anybody sends have less.
const LARGEST: usize = 4_096;

/// How much the server does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Questions that other servers are asked.
    pub forwarded: usize,
    /// Those of one client.
    pub forwarded_per_client: usize,
    /// TCP connections.
    pub connections: usize,
    /// Those of one client.
    pub connections_per_client: usize,
    /// How long a TCP connection waits for a whole question, or for its answer to be read.
    pub idle: Duration,
    /// How long one other server has to answer.
    pub attempt: Duration,
    /// How long all of them have together: less than the five seconds that the C library waits.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            forwarded: 1_024,
            forwarded_per_client: 256,
            connections: 256,
            connections_per_client: 32,
            idle: Duration::from_secs(10),
            attempt: Duration::from_secs(1),
            total: Duration::from_secs(4),
        }
    }
}

/// The bound sockets of the server: one address, both transports.
#[derive(Debug)]
pub struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Binds both. Port 0 becomes one that is free on both.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub fn bind(listen: SocketAddr) -> io::Result<Sockets> {
        let mut left = if listen.port() == 0 { ATTEMPTS } else { 1 };
        loop {
            let tcp = TcpListener::bind(listen)?;
            left -= 1;
            match UdpSocket::bind(tcp.local_addr()?) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && left > 0 => {}
                udp => {
                    let udp = udp?;
                    udp.set_nonblocking(true)?;
                    tcp.set_nonblocking(true)?;
                    return Ok(Sockets { udp, tcp });
                }
            }
        }
    }

    /// The bound address.
    ///
    /// # Errors
    /// The kernel cannot tell it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }
}

/// The server.
#[derive(Debug)]
pub struct Server {
    table: watch::Receiver<Arc<Table>>,
    clients: config::Clients,
    /// None: what the tables do not answer is refused.
    forwarder: Option<Arc<Forwarder>>,
    limits: Limits,
    forwarded: Arc<Places>,
    connections: Arc<Places>,
    stats: Stats,
    refusals: LogLimiter,
    log_limiter: LogLimiter,
}

/// What becomes of a packet.
enum Reply {
    /// This is sent.
    Now(Vec<u8>),
    /// Another server is asked first.
    Later(Relayed, Place),
    Nothing,
}

impl Server {
    /// A server of these tables. `listen` is its own address.
    #[must_use]
    pub fn new(
        settings: &config::Dns,
        listen: SocketAddr,
        table: watch::Receiver<Arc<Table>>,
        limits: Limits,
    ) -> Server {
        let upstreams = match &settings.upstreams {
            config::Upstreams::Off => None,
            config::Upstreams::System => Some(Upstreams::of_system(listen)),
            config::Upstreams::At(servers) => Some(Upstreams::fixed(listen, servers)),
        };
        Server {
            table,
            clients: settings.clients.clone(),
            forwarder: upstreams.map(|upstreams| Arc::new(Forwarder::new(upstreams, limits))),
            limits,
            forwarded: Places::new(limits.forwarded, limits.forwarded_per_client),
            connections: Places::new(limits.connections, limits.connections_per_client),
            stats: Stats::default(),
            refusals: LogLimiter::default(),
            log_limiter: LogLimiter::default(),
        }
    }

    /// Serves until dropped.
    ///
    /// # Errors
    /// The sockets cannot be used by this runtime.
    pub async fn serve(self: &Arc<Self>, sockets: Sockets) -> io::Result<()> {
        let udp = tokio::net::UdpSocket::from_std(sockets.udp)?;
        let tcp = tokio::net::TcpListener::from_std(sockets.tcp)?;
        tokio::select! {
            () = udp::serve(Arc::clone(self), Arc::new(udp)) => Ok(()),
            () = tcp::serve(Arc::clone(self), tcp) => Ok(()),
            () = self.follow_upstreams() => Ok(()),
        }
    }

    /// Counts of questions.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Questions that other servers are asked now.
    #[must_use]
    pub fn forwarded(&self) -> usize {
        self.forwarded.used()
    }

    /// Open TCP connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.used()
    }

    /// The servers that are asked, each with what is wrong with it.
    #[must_use]
    pub fn upstreams(&self) -> Vec<(String, Option<String>)> {
        self.forwarder.as_ref().map(|forwarder| forwarder.upstreams.report()).unwrap_or_default()
    }

    async fn follow_upstreams(&self) {
        match &self.forwarder {
            Some(forwarder) => forwarder.upstreams.watch_system().await,
            None => std::future::pending().await,
        }
    }

    fn is_client(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        match &self.clients {
            config::Clients::Listed(ranges) => ranges.iter().any(|range| range.contains(&ip)),
            config::Clients::MachineAndCallers(callers) => {
                ip.is_loopback() || callers.get(ip).is_some() || machine::has(ip)
            }
        }
    }

    /// Counts and logs a client that may not ask. Returns whether it is told so.
    fn refuse(&self, client: IpAddr) -> bool {
        self.stats.count(Answer::Refused);
        if self.log_limiter.allows(LOGGED) {
            tracing::warn!(%client, "DNS client refused: neither `dns.clients` nor, without it, `callers` has its address");
        }
        self.refusals.allows(REFUSALS)
    }

    /// What becomes of a packet of a client.
    fn decide(&self, packet: &[u8], from: SocketAddr, transport: Transport) -> Reply {
        if self.is_own_question(from) {
            return self.fail(packet, (Answer::Looped, Failure::Unanswered), transport);
        }
        let table = Arc::clone(&self.table.borrow());
        match answer(&table, packet, transport) {
            Outcome::Ignore => {
                self.stats.count(Answer::Malformed);
                Reply::Nothing
            }
            Outcome::Reply(reply) => {
                self.stats.count(Answer::of_table(&reply));
                Reply::Now(reply)
            }
            Outcome::Forward => self.forward(packet, from.ip(), transport),
        }
    }

    fn forward(&self, packet: &[u8], client: IpAddr, transport: Transport) -> Reply {
        if self.forwarder.is_none() {
            return self.fail(packet, (Answer::Refused, Failure::Refused), transport);
        }
        let Some(relayed) = Relayed::new(packet) else { return Reply::Nothing };
        match self.forwarded.admit(client) {
            Some(place) => Reply::Later(relayed, place),
            None => self.fail(packet, (Answer::Limited, Failure::Unanswered), transport),
        }
    }

    fn fail(&self, packet: &[u8], (counted, why): (Answer, Failure), transport: Transport) -> Reply {
        self.stats.count(counted);
        failure(packet, why, transport).map_or(Reply::Nothing, Reply::Now)
    }

    /// The answer to a question that other servers are asked.
    async fn ask(&self, packet: &[u8], relayed: Relayed, transport: Transport) -> Option<Vec<u8>> {
        let answer = match &self.forwarder {
            Some(forwarder) => forwarder.ask(relayed, transport).await,
            None => None,
        };
        let reply = answer.and_then(|answer| relay(packet, &answer, transport));
        match reply {
            Some(reply) => {
                self.stats.count(Answer::Forwarded);
                Some(reply)
            }
            None => {
                self.stats.count(Answer::Failed);
                failure(packet, Failure::Unanswered, transport)
            }
        }
    }

    /// Whether a packet from this address is a question of this server itself, which came back.
    fn is_own_question(&self, from: SocketAddr) -> bool {
        self.forwarder.as_ref().is_some_and(|forwarder| forwarder.sockets.contain(from))
    }
}
