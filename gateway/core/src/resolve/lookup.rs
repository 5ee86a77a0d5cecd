//! Looks up the addresses of one name: with the configured servers, or as this system resolves names (`/etc/hosts`,
//! then the servers and search domains of `/etc/resolv.conf`). Each address family is a separate query. Nothing is
//! cached here; `schedule` decides when a name is looked up again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use isthmus_model::HostName;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};

use super::schedule::{Asked, Family, Found, Kind, Question};
use super::system::{Hosts, Servers, System, Versions, versions};
use crate::config::settings::Dns;

/// Time limit for one name, with all servers and search domains.
const PATIENCE: Duration = Duration::from_secs(15);
/// After one family has answered, the other may take this much longer; then it is retried separately.
const GRACE: Duration = Duration::from_millis(250);
/// Time limit for one query to a configured server.
const TIMEOUT: Duration = Duration::from_secs(2);
/// `/etc/hosts` has no TTL.
const HOSTS_TTL: Duration = Duration::from_secs(5);
/// The system's files are checked for edits at most this often.
const RECHECK: Duration = Duration::from_secs(1);

/// The source of answers and the state of the system's files.
pub(super) struct Resolver {
    source: Arc<Source>,
    /// Versions of the system's files when they were read; none if they are not used.
    files: Option<Versions>,
    checked: Instant,
}

impl Resolver {
    pub(super) async fn new(dns: &Dns) -> Resolver {
        let mut resolver = Resolver {
            source: Arc::new(Source::servers(&dns.servers)),
            files: None,
            checked: Instant::now(),
        };
        if dns.servers.is_empty() {
            resolver.read_system().await;
        }
        resolver
    }

    /// Re-reads the system's files if due: DHCP, a VPN or an edit may change them.
    pub(super) async fn follow_system(&mut self) {
        if self.files.is_some() && self.checked.elapsed() >= RECHECK {
            self.read_system().await;
        }
    }

    /// Reads the system's files if they have changed.
    async fn read_system(&mut self) {
        let known = self.files;
        let read = spawn_blocking(move || {
            let files = versions();
            (known != Some(files)).then(|| (files, System::read()))
        });
        if let Ok(Some((files, system))) = read.await {
            (self.files, self.source) = (Some(files), Arc::new(Source::system(system)));
        }
        self.checked = Instant::now();
    }

    /// Looks up one name; the result has the reason if there is no answer.
    pub(super) fn look_up(&self, question: Question) -> impl Future<Output = (HostName, Found)> + use<> {
        let source = Arc::clone(&self.source);
        async move {
            let found = source.look_up(&question, Instant::now() + PATIENCE).await;
            (question.name, found)
        }
    }
}

/// Where answers come from.
struct Source {
    /// An error if it could not be created; then only `hosts` answers.
    resolver: Result<TokioResolver, NetError>,
    hosts: Hosts,
    search: Vec<Name>,
    /// Names with at least this many dots are tried as absolute names first.
    ndots: usize,
    no_aaaa: bool,
}

/// The answer to one query.
#[derive(Debug)]
enum Answer {
    /// At least one address, with the TTL in seconds.
    Addresses(Vec<IpAddr>, u32),
    /// The name has no address of this family.
    Absent,
    /// The name does not exist (NXDOMAIN).
    NoName,
    /// A server answered with an error.
    Failed(String),
    /// No server answered; the name may exist.
    Silent(String),
}

impl Source {
    /// Uses absolute names only: no hosts file and no search domains.
    fn servers(servers: &[SocketAddr]) -> Source {
        let config = ResolverConfig::from_name_servers(servers.iter().map(|server| ask(*server)).collect());
        let mut options = ResolverOpts::default();
        options.timeout = TIMEOUT;
        let (resolver, hosts) = (build(config, options), Hosts::new());
        Source { resolver, hosts, search: Vec::new(), ndots: 0, no_aaaa: false }
    }

    fn system(System { hosts, servers }: System) -> Source {
        let Servers { addresses, search, ndots, timeout, attempts, edns0, no_aaaa } = servers;
        let servers = addresses.into_iter().map(NameServerConfig::udp_and_tcp).collect();
        let mut options = ResolverOpts::default();
        (options.timeout, options.attempts, options.edns0) = (timeout, attempts, edns0);
        let search = search.iter().filter_map(|domain| Name::from_ascii(domain.as_str()).ok()).collect();
        let resolver = build(ResolverConfig::from_name_servers(servers), options);
        Source { resolver, hosts, search, ndots, no_aaaa }
    }

    async fn look_up(&self, question: &Question, deadline: Instant) -> Found {
        let Question { name, asked, at } = question;
        if let Some(found) = self.in_hosts(name, *asked) {
            return found;
        }
        let whole = Name::from_ascii(name.as_str()).map(|mut name| {
            name.set_fqdn(true);
            name
        });
        let (resolver, name) = match (&self.resolver, whole) {
            (Ok(resolver), Ok(name)) => (resolver, name),
            (Err(error), _) => return failed(*asked, &error.to_string()),
            (_, Err(error)) => return failed(*asked, &error.to_string()),
        };
        let mut last = failed(*asked, "no name to look up");
        for candidate in at.clone().map_or_else(|| self.candidates(name), |at| vec![at]) {
            let ask = |kind| self.ask(resolver, &candidate, kind, deadline);
            let answers = match asked {
                Asked::Both => both(ask(Kind::V4), ask(Kind::V6)).await.map(Some),
                Asked::Only(Kind::V4) => [Some(ask(Kind::V4).await), None],
                Asked::Only(Kind::V6) => [None, Some(ask(Kind::V6).await)],
            };
            let is_over = is_over(&answers);
            last = found(answers, candidate);
            if is_over {
                break;
            }
        }
        last
    }

    async fn ask(&self, resolver: &TokioResolver, name: &Name, kind: Kind, deadline: Instant) -> Answer {
        let kind = match kind {
            Kind::V6 if self.no_aaaa => return Answer::Absent,
            Kind::V4 => RecordType::A,
            Kind::V6 => RecordType::AAAA,
        };
        match timeout_at(deadline, resolver.lookup(name.clone(), kind)).await {
            Ok(Ok(lookup)) => addresses(lookup.answers()),
            Ok(Err(error)) if error.is_nx_domain() => Answer::NoName,
            Ok(Err(error)) if error.is_no_records_found() => Answer::Absent,
            Ok(Err(error @ NetError::Dns(_))) => Answer::Failed(error.to_string()),
            Ok(Err(error)) => Answer::Silent(error.to_string()),
            Err(_) => Answer::Silent(format!("no answer within {PATIENCE:?}")),
        }
    }

    /// As in the C library, a name in the hosts file is not looked up elsewhere.
    fn in_hosts(&self, name: &HostName, asked: Asked) -> Option<Found> {
        let all = self.hosts.get(name)?;
        let of = |kind: Kind| {
            asked.has(kind).then(|| {
                let of_kind = |ip: &IpAddr| ip.is_ipv4() == (kind == Kind::V4) && is_somebody(*ip);
                let ips: Vec<_> = all.iter().map(IpAddr::to_canonical).filter(of_kind).collect();
                if ips.is_empty() { Family::Absent } else { Family::Addresses(ips) }
            })
        };
        Some(Found { v4: of(Kind::V4), v6: of(Kind::V6), ttl: Some(HOSTS_TTL), at: None })
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

/// Queries both families at once; after one has answered, the other is awaited only briefly.
async fn both(v4: impl Future<Output = Answer>, v6: impl Future<Output = Answer>) -> [Answer; 2] {
    let (mut v4, mut v6) = (pin!(v4), pin!(v6));
    tokio::select! {
        first = &mut v4 => {
            let second = other(&first, v6).await;
            [first, second]
        }
        first = &mut v6 => {
            let second = other(&first, v4).await;
            [second, first]
        }
    }
}

async fn other(first: &Answer, second: impl Future<Output = Answer>) -> Answer {
    match first {
        Answer::Addresses(..) => timeout(GRACE, second)
            .await
            .unwrap_or_else(|_| Answer::Silent(format!("no answer {GRACE:?} after the other family's"))),
        Answer::NoName => Answer::NoName,
        Answer::Absent | Answer::Failed(_) | Answer::Silent(_) => second.await,
    }
}

/// Whether no further candidate is tried: this name exists, or its server is silent and it may exist.
fn is_over(answers: &[Option<Answer>; 2]) -> bool {
    let mut all = answers.iter().flatten();
    let has = |wanted: fn(&Answer) -> bool| answers.iter().flatten().any(wanted);
    has(|answer| matches!(answer, Answer::Addresses(..)))
        || (all.all(|answer| !matches!(answer, Answer::NoName))
            && has(|answer| matches!(answer, Answer::Silent(_))))
}

fn found(answers: [Option<Answer>; 2], at: Name) -> Found {
    let ttl = |answer: &Answer| match answer {
        Answer::Addresses(_, ttl) => Some(Duration::from_secs((*ttl).into())),
        _ => None,
    };
    let ttl = answers.iter().flatten().filter_map(ttl).min();
    let [v4, v6] = answers.map(|answer| {
        Some(match answer? {
            Answer::Addresses(addresses, _) => Family::Addresses(addresses),
            Answer::Absent | Answer::NoName => Family::Absent,
            Answer::Failed(why) | Answer::Silent(why) => Family::Failed(why),
        })
    });
    Found { v4, v6, ttl, at: ttl.map(|_| at) }
}

fn failed(asked: Asked, why: &str) -> Found {
    let of = |kind| asked.has(kind).then(|| Family::Failed(why.to_owned()));
    Found { v4: of(Kind::V4), v6: of(Kind::V6), ttl: None, at: None }
}

fn build(config: ResolverConfig, mut options: ResolverOpts) -> Result<TokioResolver, NetError> {
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    // Two families and two servers for each name at once, all over one connection at worst.
    options.max_active_requests = 4 * (super::AT_ONCE + super::RETRIES);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options).build()
}

/// Uses UDP, and TCP for answers too large for UDP.
fn ask(server: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = server.port();
        connection
    });
    NameServerConfig::new(server.ip(), true, connections.into())
}

fn addresses(records: &[Record]) -> Answer {
    let addresses: Vec<_> = records
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .map(|address| address.to_canonical())
        .filter(|address| is_somebody(*address))
        .collect();
    // CNAME records count, too.
    let ttl = records.iter().map(|record| record.ttl).min().unwrap_or_default();
    if addresses.is_empty() { Answer::Absent } else { Answer::Addresses(addresses, ttl) }
}

/// Whether an address can be a server: ad blockers and parked names answer `0.0.0.0`, which means this machine.
fn is_somebody(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::Message;

    use super::*;
    use crate::resolve::system::{hosts, servers};

    const TIME: Duration = Duration::from_secs(3);

    /// One answer to `a.` with an A and an AAAA record.
    const ANSWER: &[u8] =
        b"\0\x01\x81\x80\0\x01\0\x02\0\0\0\0\x01a\0\0\x01\0\x01\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\
        \x7f\0\0\x01\xc0\x0c\0\x1c\0\x01\0\0\0\x3c\0\x10\0\0\0\0\0\0\0\0\0\0\xff\xff\x7f\0\0\x02";

    #[test]
    fn dns_answer_is_canonicalized_with_smallest_ttl() {
        let records = Message::from_vec(ANSWER).unwrap().answers;
        let Answer::Addresses(found, ttl) = addresses(&records) else { panic!("{records:?}") };
        assert_eq!((found, ttl), (vec![[127, 0, 0, 1].into(), [127, 0, 0, 2].into()], 60));
    }

    /// No panic, and unusable addresses are never returned.
    #[test]
    fn fuzz_dns_answer() {
        bolero::check!().with_test_time(TIME).with_type::<(Vec<u8>, u8, u8)>().for_each(
            |(bytes, from, cut)| {
                let from = usize::from(*from).min(ANSWER.len());
                let to = (from + usize::from(*cut)).min(ANSWER.len());
                for wire in [bytes.clone(), [&ANSWER[..from], bytes, &ANSWER[to..]].concat()] {
                    let Ok(message) = Message::from_vec(&wire) else { continue };
                    if let Answer::Addresses(found, _) = addresses(&message.answers) {
                        assert!(!found.is_empty() && found.iter().all(|address| is_somebody(*address)));
                    }
                }
            },
        );
    }

    /// No panic; at least one server, and no more entries than the file has words.
    #[test]
    fn fuzz_system_files() {
        bolero::check!().with_test_time(TIME).with_type::<Vec<u8>>().for_each(|bytes| {
            for start in [&b""[..], b"nameserver ", b"search a.b ", b"options ", b"10.0.0.1 "] {
                let content = [start, bytes].concat();
                let (read, _) = servers(&content);
                assert!((1..=3).contains(&read.addresses.len()) && !read.timeout.is_zero());
                let (hosts, flaws) = hosts(&content);
                assert!(hosts.len() <= content.len() && flaws.to_string().len() < 8_000, "{flaws}");
            }
        });
    }
}
