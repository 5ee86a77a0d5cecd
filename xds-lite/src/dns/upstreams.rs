//! The servers that are asked: those of the file, or those of this machine. The server itself is never one of them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use isthmus_certs::input;
use parking_lot::Mutex;
use resolv_conf::{Config, ScopedIp};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Largest `/etc/resolv.conf`.
const LARGEST: u64 = 64 << 10;
/// Name servers of this machine, at most.
const MOST: usize = 8;
const PORT: u16 = 53;
/// How often the name servers of this machine are read.
const READ_EVERY: Duration = Duration::from_secs(5);
/// How long a server that did not answer is asked after the others.
const AVOIDED: Duration = Duration::from_secs(5);

/// The servers.
#[derive(Debug)]
pub(super) struct Upstreams {
    /// The address of this server.
    own: SocketAddr,
    is_system: bool,
    servers: Mutex<Servers>,
}

#[derive(Debug, Default)]
struct Servers {
    known: Vec<Known>,
    /// What is wrong with the list.
    problems: Vec<(String, Option<String>)>,
}

#[derive(Debug)]
struct Known {
    address: SocketAddr,
    /// Since when it does not answer, and why.
    failed: Option<(Instant, String)>,
}

impl Upstreams {
    /// Servers of the file.
    pub(super) fn fixed(own: SocketAddr, servers: &[SocketAddr]) -> Upstreams {
        let upstreams = Upstreams { own, is_system: false, servers: Mutex::default() };
        upstreams.set(servers.to_vec());
        upstreams
    }

    /// The name servers of this machine, once [`Upstreams::follow`] has read them.
    pub(super) fn of_system(own: SocketAddr) -> Upstreams {
        Upstreams { own, is_system: true, servers: Mutex::default() }
    }

    /// Follows the name servers of this machine, until dropped.
    pub(super) async fn watch_system(&self) {
        if !self.is_system {
            return std::future::pending().await;
        }
        let mut pace = interval(READ_EVERY);
        loop {
            pace.tick().await;
            if let Ok(servers) = spawn_blocking(system_servers).await {
                self.set(servers);
            }
        }
    }

    /// The servers, in the order in which they are to be asked: those that did not answer lately at the end.
    pub(super) fn in_order(&self) -> Vec<SocketAddr> {
        let servers = self.servers.lock();
        let is_avoided =
            |known: &Known| known.failed.as_ref().is_some_and(|(since, _)| since.elapsed() < AVOIDED);
        let mut known: Vec<_> =
            servers.known.iter().map(|known| (is_avoided(known), known.address)).collect();
        known.sort_by_key(|(is_avoided, _)| *is_avoided);
        known.into_iter().map(|(_, address)| address).collect()
    }

    pub(super) fn has_answered(&self, server: SocketAddr) {
        self.note(server, None);
    }

    pub(super) fn has_failed(&self, server: SocketAddr, why: &str) {
        self.note(server, Some((Instant::now(), why.to_owned())));
    }

    fn note(&self, server: SocketAddr, failed: Option<(Instant, String)>) {
        let mut servers = self.servers.lock();
        let Some(known) = servers.known.iter_mut().find(|known| known.address == server) else { return };
        match (&known.failed, &failed) {
            (None, Some((_, why))) => {
                tracing::warn!(%server, why, "a name server of dns.upstreams does not answer")
            }
            (Some(_), None) => tracing::info!(%server, "a name server of dns.upstreams answers again"),
            _ => {}
        }
        known.failed = failed;
    }

    /// Each server, and what is wrong with it.
    pub(super) fn report(&self) -> Vec<(String, Option<String>)> {
        let servers = self.servers.lock();
        let known = servers.known.iter().map(|known| {
            let why = known.failed.as_ref().map(|(_, why)| why.clone());
            (known.address.to_string(), why)
        });
        known.chain(servers.problems.iter().cloned()).collect()
    }

    /// Replaces the list. What is known of a server that stays is kept.
    fn set(&self, list: Vec<SocketAddr>) {
        let (own, others): (Vec<_>, Vec<_>) = list.into_iter().partition(|server| self.is_own(*server));
        let mut problems: Vec<_> = own
            .into_iter()
            .map(|server| {
                let why = "is this server itself, and is not asked; write another server into dns.upstreams";
                (server.to_string(), Some(why.to_owned()))
            })
            .collect();
        if others.is_empty() && problems.is_empty() {
            let why = "has no name server; questions that the tables do not answer fail";
            problems.push((RESOLV_CONF.to_owned(), Some(why.to_owned())));
        }
        let mut servers = self.servers.lock();
        for (server, why) in problems.iter().filter(|problem| !servers.problems.contains(problem)) {
            tracing::error!("dns.upstreams: {server} {}", why.as_deref().unwrap_or_default());
        }
        servers.problems = problems;
        let mut before = std::mem::take(&mut servers.known);
        let known = others.into_iter().map(|address| {
            let failed = before.iter_mut().find(|known| known.address == address);
            Known { address, failed: failed.and_then(|known| known.failed.take()) }
        });
        servers.known = known.collect();
    }

    /// Whether the address is one of this server's, by loopback or by any address of the machine.
    fn is_own(&self, server: SocketAddr) -> bool {
        let (own, ip) = (self.own.ip().to_canonical(), server.ip().to_canonical());
        server.port() == self.own.port() && (ip == own || own.is_unspecified() && is_local(ip))
    }
}

/// Whether the machine has this address: only those can be bound.
fn is_local(ip: IpAddr) -> bool {
    ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok()
}

/// The name servers in `/etc/resolv.conf`.
fn system_servers() -> Vec<SocketAddr> {
    match input::read(Path::new(RESOLV_CONF), LARGEST) {
        Ok(content) => servers_of(&String::from_utf8_lossy(&content)),
        Err(error) => {
            tracing::debug!(file = RESOLV_CONF, %error, "cannot read the name servers of this machine");
            Vec::new()
        }
    }
}

/// Line by line, so that an odd one does not spoil the rest.
fn servers_of(content: &str) -> Vec<SocketAddr> {
    let configs = content.lines().filter_map(|line| Config::parse(line).ok());
    let servers = configs.flat_map(|config| config.nameservers);
    let address = |server| match server {
        ScopedIp::V4(ip) => Some(SocketAddr::from((ip, PORT))),
        ScopedIp::V6(ip, None) => Some(SocketAddr::from((ip, PORT))),
        // Of a link, and only known by its interface.
        ScopedIp::V6(_, Some(_)) => None,
    };
    servers.filter_map(address).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn dns_upstream_that_failed_is_asked_last_for_a_while() {
        let (first, second) = (at("192.0.2.1:53"), at("192.0.2.2:53"));
        let upstreams = Upstreams::fixed(at("127.0.0.1:15053"), &[first, second]);
        assert_eq!(upstreams.in_order(), [first, second]);
        upstreams.has_failed(first, "silent");
        assert_eq!(upstreams.in_order(), [second, first]);
        assert_eq!(upstreams.report()[0], (first.to_string(), Some("silent".to_owned())));
        upstreams.has_answered(first);
        assert_eq!(upstreams.in_order(), [first, second]);
    }

    #[test]
    fn dns_upstream_that_is_the_server_itself_is_left_out_and_named() {
        let own = at("127.0.0.1:15053");
        for (listen, server) in [
            (own, own),
            (at("0.0.0.0:15053"), own),
            (at("0.0.0.0:15053"), at("127.9.9.9:15053")),
            (at("[::]:15053"), own),
            (at("[::]:15053"), at("[::ffff:127.0.0.1]:15053")),
        ] {
            let upstreams = Upstreams::fixed(listen, &[server]);
            assert_eq!(upstreams.in_order(), [], "{server} of {listen}");
            assert!(upstreams.report()[0].1.as_ref().unwrap().starts_with("is this server itself"));
        }
        let others = [at("127.0.0.2:15053"), at("127.0.0.1:53"), at("192.0.2.1:15053")];
        assert_eq!(Upstreams::fixed(own, &others).in_order(), others);
    }

    #[test]
    fn dns_upstreams_of_the_machine_are_read_line_by_line() {
        let text = "search a..b\nnameserver 192.0.2.1\nnameserver nonsense\n# nameserver 192.0.2.9\n\
                    nameserver fe80::1%eth0\nnameserver 2001:db8::1\noptions what:ever\n";
        assert_eq!(servers_of(text), [at("192.0.2.1:53"), at("[2001:db8::1]:53")]);
        assert_eq!(servers_of(""), []);
    }
}
