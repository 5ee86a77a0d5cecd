//! One name → its addresses: by the servers that the configuration names, else as this system resolves
//! names (`/etc/hosts`, then the servers and search domains of `/etc/resolv.conf`). Nothing is cached here:
//! when a name is asked for again is the schedule's business.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use isthmus_xds::HostName;

use super::schedule::{Family, Found};
use crate::config::settings::Dns;

/// One name, all servers and search domains together.
const PATIENCE: Duration = Duration::from_secs(15);
/// One question to one of the servers of our own configuration.
const TIMEOUT: Duration = Duration::from_secs(2);
/// `/etc/hosts` has no TTL.
const HOSTS_TTL: Duration = Duration::from_secs(5);
/// The system's files are checked for edits at most this often.
const RECHECK: Duration = Duration::from_secs(1);
const SYSTEM: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Who is asked.
pub(super) struct Resolver {
    servers: Vec<SocketAddr>,
    source: Arc<Source>,
    files: [Option<FileVersion>; 2],
    checked: Instant,
}

/// Inode, length, and time of the last change.
type FileVersion = (u64, u64, i64, i64);

impl Resolver {
    pub(super) fn new(dns: &Dns) -> Resolver {
        let source = if dns.servers.is_empty() { Source::system() } else { Source::servers(&dns.servers) };
        Resolver {
            servers: dns.servers.clone(),
            source: Arc::new(source),
            files: versions(),
            checked: Instant::now(),
        }
    }

    /// Looks up one name; the answer says why if there is none.
    pub(super) fn look_up(&mut self, name: HostName) -> impl Future<Output = (HostName, Found)> + use<> {
        self.follow_system();
        let source = Arc::clone(&self.source);
        async move {
            let found = tokio::time::timeout(PATIENCE, source.look_up(&name)).await;
            (name, found.unwrap_or_else(|_| failed("no answer in time")))
        }
    }

    /// The system's configuration changes under a running gateway: DHCP, a VPN, an edit of the hosts file.
    fn follow_system(&mut self) {
        if !self.servers.is_empty() || self.checked.elapsed() < RECHECK {
            return;
        }
        self.checked = Instant::now();
        let files = versions();
        if files != self.files {
            self.files = files;
            self.source = Arc::new(Source::system());
        }
    }
}

fn versions() -> [Option<FileVersion>; 2] {
    SYSTEM.map(|file| {
        let metadata = fs::metadata(file).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
    })
}

/// Where answers come from.
struct Source {
    /// None when it could not be made; then only `hosts` answers.
    resolver: Result<TokioResolver, NetError>,
    hosts: Hosts,
    search: Vec<Name>,
    /// Names with at least this many dots are tried as they are first.
    ndots: usize,
}

impl Source {
    /// Names are taken as they are: no hosts file, no search domains.
    fn servers(servers: &[SocketAddr]) -> Source {
        let config = ResolverConfig::from_name_servers(servers.iter().map(|server| ask(*server)).collect());
        let mut options = ResolverOpts::default();
        options.timeout = TIMEOUT;
        Source { resolver: build(config, options), hosts: Hosts::default(), search: Vec::new(), ndots: 0 }
    }

    fn system() -> Source {
        let (config, options) = system_conf::read_system_conf().unwrap_or_else(|error| {
            tracing::warn!(%error, "no usable /etc/resolv.conf: names are asked of 127.0.0.1, as the C library does");
            let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
            (ResolverConfig::from_name_servers(vec![local]), ResolverOpts::default())
        });
        let hosts = Hosts::from_system().unwrap_or_default();
        let mut search = config.search.clone();
        if search.is_empty() {
            search.extend(config.domain.clone());
        }
        search.retain(|domain| domain.num_labels() > 0);
        let ndots = options.ndots;
        Source { resolver: build(config, options), hosts, search, ndots }
    }

    async fn look_up(&self, name: &HostName) -> Found {
        let mut name = match Name::from_ascii(name.as_str()) {
            Ok(name) => name,
            Err(error) => return failed(error),
        };
        name.set_fqdn(true);
        if let Some(found) = self.in_hosts(&name) {
            return found;
        }
        let resolver = match &self.resolver {
            Ok(resolver) => resolver,
            Err(error) => return failed(error),
        };
        let mut last = failed("no name to ask for");
        for candidate in self.candidates(name) {
            let v4 = resolver.lookup(candidate.clone(), RecordType::A);
            let v6 = resolver.lookup(candidate, RecordType::AAAA);
            let answers = tokio::join!(v4, v6);
            // A server that is silent now may know the name: the next candidate would be another's.
            let is_silent =
                |answer: &Result<_, _>| matches!(answer, Err(error) if !matches!(error, NetError::Dns(_)));
            let over = is_silent(&answers.0) || is_silent(&answers.1);
            let found = Found::from(answers);
            if over || matches!(found.v4, Family::Addresses(_)) || matches!(found.v6, Family::Addresses(_)) {
                return found;
            }
            last = found;
        }
        last
    }

    /// As the C library does: what stands in the hosts file is asked of nobody else.
    fn in_hosts(&self, name: &Name) -> Option<Found> {
        let lookup = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let (v4, v6) = (lookup(RecordType::A), lookup(RecordType::AAAA));
        if v4.is_none() && v6.is_none() {
            return None;
        }
        let family = |lookup: Option<Lookup>| lookup.map_or(Family::Absent, |lookup| addresses(&lookup));
        Some(Found { v4: family(v4), v6: family(v6), ttl: HOSTS_TTL })
    }

    fn candidates(&self, name: Name) -> Vec<Name> {
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let under = self.search.iter().filter_map(|domain| {
            let mut relative = name.clone();
            relative.set_fqdn(false);
            relative.append_domain(domain).ok()
        });
        let mut candidates: Vec<Name> = under.collect();
        let place = if dots >= self.ndots { 0 } else { candidates.len() };
        candidates.insert(place, name);
        candidates
    }
}

fn build(config: ResolverConfig, mut options: ResolverOpts) -> Result<TokioResolver, NetError> {
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    // Two families and two servers for each name at once, all over one connection at worst.
    options.max_active_requests = 4 * super::AT_ONCE;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}

/// UDP, and TCP for what UDP cannot carry.
fn ask(server: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    NameServerConfig::new(server.ip(), true, connections.into())
}

fn failed(why: impl std::fmt::Display) -> Found {
    let why = why.to_string();
    Found { v4: Family::Failed(why.clone()), v6: Family::Failed(why), ttl: Duration::ZERO }
}

type Answered = Result<Lookup, NetError>;

impl From<(Answered, Answered)> for Found {
    fn from((v4, v6): (Answered, Answered)) -> Found {
        let records = [&v4, &v6].into_iter().flatten().flat_map(Lookup::answers);
        let ttl = records.map(|record| record.ttl).min().unwrap_or_default();
        Found { v4: family(v4), v6: family(v6), ttl: Duration::from_secs(ttl.into()) }
    }
}

fn family(answered: Answered) -> Family {
    match answered {
        Ok(lookup) => addresses(&lookup),
        Err(error) if error.is_no_records_found() => Family::Absent,
        Err(error) => Family::Failed(error.to_string()),
    }
}

fn addresses(lookup: &Lookup) -> Family {
    let addresses: Vec<_> = lookup
        .answers()
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .map(|address| address.to_canonical())
        .filter(|address| is_somebody(*address))
        .collect();
    if addresses.is_empty() { Family::Absent } else { Family::Addresses(addresses) }
}

/// Filters of ad blockers and parked names answer `0.0.0.0`, which would lead to this machine.
fn is_somebody(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}
