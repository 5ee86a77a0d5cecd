//! Parses the agent's file into valid settings, or reports every problem in it. `raw` is the file as written,
//! `resolve` what it means.

mod access;
mod callers;
mod identities;
mod issuing;
mod limits;
mod names;
mod raw;
mod registration;
mod resolve;
mod traffic;
mod trust;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use isthmus_certs::{IdPattern, TrustDomain, TrustFiles};

use isthmus_grpc::budget::{Budgets, Places, raise_descriptor_limit};
use isthmus_model::address::{Ranges, Target};
use isthmus_model::binding::Callers;
use isthmus_model::host::HostPattern;
use isthmus_model::locality::Locality;
use isthmus_model::problem::Report;
use isthmus_model::slice::Cluster;
use isthmus_model::{Problem, Problems, file, yaml};
use isthmus_registry::access::WiderRules;
use isthmus_registry::exports::Rule;
use isthmus_registry::files::{Change, Files, Found};
use isthmus_registry::reachability::Reachability;
use isthmus_trust::issuing::IntermediateFiles;

use crate::admin;

pub use limits::AgentLimits;
pub use names::{Clients, Dns, NameRanges, Upstreams};
pub use registration::Registration;
pub use traffic::TrafficSettings;

const ADDRESS: &str = "0.0.0.0:15012";
const JOIN: &str = "0.0.0.0:15011";
const ADMIN: &str = "127.0.0.1:15014";
const DNS: &str = "127.0.0.1:15053";
/// Default lifetime of an issued certificate.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest lifetime: as long as a root roll-over waits by default before it drops the old root.
const LONGEST_EVER: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Default port of a gateway for other clusters.
const EAST_WEST: u16 = 15_443;

/// A registry file that nobody has written for this long is whole.
const QUIET: Duration = Duration::from_secs(1);

/// The settings of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The agent's cluster.
    pub cluster: Cluster,
    /// The network of the cluster's endpoints.
    pub network: String,
    /// The default locality of the cluster's gateways.
    pub locality: Locality,
    /// The agent's identity, and the bundles it trusts.
    pub trust: TrustFiles,
    /// The directory of the registry's files.
    pub registry: PathBuf,
    /// The state directory; without one nothing is persisted.
    pub state: Option<PathBuf>,
    /// The cluster's gateways, which this agent serves.
    pub gateways: Vec<Gateway>,
    /// Export rules; without any, nothing is exported.
    pub exports: Vec<Rule>,
    /// Rules for callers of scopes wider than a service.
    pub access: WiderRules,
    /// The policies of traffic by host: the only key that is live.
    pub traffic: TrafficSettings,
    /// What is accepted from each other cluster.
    pub imports: Vec<Import>,
    /// Which networks may know of each other's services.
    pub reachability: Reachability,
    /// The agents of other clusters.
    pub peers: Vec<Peer>,
    /// The xDS listener's address.
    pub address: SocketAddr,
    /// The xDS address that other clusters reach.
    pub advertise: Option<Target>,
    /// Where clusters join with a token; none when they cannot.
    pub join: Option<Join>,
    /// The intermediate that signs certificates; none when the agent issues none.
    pub issuing: Option<Issuing>,
    /// The admin listener's address.
    pub admin: SocketAddr,
    /// Who may register VMs.
    pub registration: Registration,
    /// Resource limits of gateways and peers.
    pub limits: AgentLimits,
    /// Ranges of virtual addresses and allotted ports.
    pub names: NameRanges,
    /// The DNS server; none without the section.
    pub dns: Option<Dns>,
    /// Whose identity applications without TLS have.
    pub callers: Callers,
    /// Valid parts of the file that have less effect than they seem to.
    pub warnings: Vec<Problem>,
}

impl Settings {
    /// Returns the connections that clients may have, as far as this process may have descriptors.
    pub(super) fn budgets(&self) -> Budgets {
        Budgets::new(self.limits.clients, Places::of_descriptors(raise_descriptor_limit()))
    }

    /// Returns the socket on which VMs of this machine register.
    pub(super) fn local_socket(&self) -> Option<admin::Local> {
        let Registration { socket, users, .. } = self.registration.clone();
        socket.map(|path| admin::Local { path, users })
    }

    /// Whether an agent with these settings would be one with the others, but for what is live.
    #[must_use]
    pub fn differ_only_in_traffic(&self, other: &Settings) -> bool {
        let (traffic, warnings) = (other.traffic.clone(), other.warnings.clone());
        Settings { traffic, warnings, ..self.clone() } == *other
    }
}

/// Where clusters join with a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// The join listener's address.
    pub address: SocketAddr,
    /// The join address that other clusters reach; by default the host of the agent's advertised address.
    pub advertise: Option<Target>,
}

/// How an agent signs certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuing {
    /// The intermediate's certificate and key.
    pub files: IntermediateFiles,
    /// The longest lifetime of a certificate.
    pub longest: Duration,
}

/// A gateway of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The last part of its identity.
    pub name: String,
    /// Addresses that other clusters reach it at; empty: none.
    pub addresses: Vec<Target>,
    /// Its locality.
    pub locality: Locality,
    /// The listener's address, if the gateway is a stock Envoy.
    pub envoy: Option<SocketAddr>,
    /// Workloads whose certificates it may request.
    pub identities: Vec<IdPattern>,
}

/// What is accepted from one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The cluster.
    pub cluster: Cluster,
    /// Host names that its services may have here.
    pub hosts: Vec<HostPattern>,
    /// Allowed addresses of its gateways; empty: any but loopback, link-local and multicast.
    pub gateways: Vec<IpNet>,
    /// Allowed host names of its gateways.
    pub gateway_hosts: Vec<HostPattern>,
    /// Allowed addresses of endpoints that are reached without a gateway.
    pub endpoints: Vec<IpNet>,
}

/// The agent of another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its cluster.
    pub cluster: Cluster,
    /// Its xDS address.
    pub address: Target,
    /// Allowed addresses of a name that the peer gave itself; none for names of this file.
    pub within: Option<Ranges>,
    /// Its trust domain.
    pub domain: TrustDomain,
    /// The network of its endpoints; none: a network of its own.
    pub network: Option<String>,
}

const TOO_LARGE: &str = "an agent's file is short; is it the right one?";

/// Reads and checks a regular file.
///
/// # Errors
/// Every problem in it, or why it cannot be read.
pub fn load(path: &Path) -> Result<Settings, Problems> {
    parse(&text(path)?, path)
}

/// As [`load`], for a command that ends: the file may be a pipe such as `/dev/stdin`.
///
/// # Errors
/// As [`load`].
pub fn load_argument(path: &Path) -> Result<Settings, Problems> {
    parse(&file::read_argument(path, TOO_LARGE)?, path)
}

/// Reads the file of an agent that runs.
///
/// # Errors
/// Why it cannot be read.
pub(super) fn text(path: &Path) -> Result<String, Problems> {
    file::read(path, TOO_LARGE)
}

/// Checks a text as the content of `path`.
///
/// # Errors
/// Every problem in it.
pub fn parse(text: &str, path: &Path) -> Result<Settings, Problems> {
    let mut report = Report::new(path);
    let settings = yaml::read(text, &mut report).and_then(|file| resolve::settings(&mut report, file));
    report.finish(settings)
}

/// Checks settings beside the files of their registry, as far as these can be read.
///
/// # Errors
/// Every problem in them.
pub fn check_beside_registry(settings: &Settings) -> Result<(), Problems> {
    let (mut found, mut files) = (Found::default(), Files::new(settings.registry.clone()));
    let now = Instant::now();
    // A file counts as whole once nobody has written it for a while: no agent waits for this answer.
    for now in [now, now + QUIET] {
        let change = files.changed_paths(now);
        for part in change.into_iter().flat_map(Change::parts) {
            found.remove_part(part);
        }
    }
    let problems = || settings.traffic.problems_beside(found.iter());
    let problems = if found.summary().is_whole { problems() } else { Vec::new() };
    Problems::from_list(problems).map_or(Ok(()), Err)
}

/// The JSON Schema of the file, for editors.
#[must_use]
pub fn schema() -> String {
    format!("{:#}", schemars::schema_for!(raw::File).as_value())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
cluster: east
network: east-net
trust: { certificate: tls.crt, key: tls.key, bundles: bundles, deny: deny }
registry: { files: ./registry }
gateways: [{ name: gw-1 }]
xds: { address: '127.0.0.1:0' }
";

    fn problems(text: &str) -> Vec<String> {
        let problems = parse(text, Path::new("agent.yaml")).unwrap_err();
        problems.list().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn agent_file_is_parsed_with_defaults() {
        let settings = parse(GOOD, Path::new("agent.yaml")).unwrap();
        assert_eq!((settings.cluster.as_str(), settings.network.as_str()), ("east", "east-net"));
        assert_eq!((settings.gateways[0].name.as_str(), settings.address.port()), ("gw-1", 0));
        let short = GOOD.replace("xds: { address: '127.0.0.1:0' }\n", "");
        assert_eq!(parse(&short, Path::new("x")).unwrap().address.to_string(), ADDRESS);
    }

    #[test]
    fn agent_file_problems_are_reported_with_line_and_column() {
        let none = problems("network: a");
        assert_eq!(none.len(), 3, "{none:#?}");
        assert!(none[0].contains("agent.yaml:1:1:") && none[0].contains("has no cluster"), "{none:#?}");
        let wrong = problems(&GOOD.replace("cluster: east", "cluster: a/b").replace("key: tls.key, ", ""));
        assert!(wrong.iter().any(|why| why.starts_with("agent.yaml:1:10: cluster: 'a/b'")), "{wrong:#?}");
        assert!(
            wrong.iter().any(|why| why.starts_with("agent.yaml:3:") && why.contains("trust has no key")),
            "{wrong:#?}"
        );
        assert!(problems(&(GOOD.to_owned() + "pears: []\n"))[0].contains("unknown key 'pears'"));
        assert!(problems(&GOOD.replace("127.0.0.1:0", "here"))[0].contains("xds.address"));
    }

    #[test]
    fn issuing_section_is_parsed_and_its_problems_reported() {
        let text = GOOD.to_owned() + "state: state\nissuing: { certificate: ca-cert.pem, key: ca-key.pem }\n";
        let issuing = parse(&text, Path::new("agent.yaml")).unwrap().issuing.unwrap();
        assert_eq!((issuing.files.key, issuing.longest), (PathBuf::from("ca-key.pem"), LONGEST));
        for (from, to, expected) in [
            ("state: state\n", "", "issuing needs a state directory"),
            (", key: ca-key.pem", "", "issuing has no key"),
            ("ca-key.pem }", "ca-key.pem, longest: 200h }", "is not between 1s and 168h"),
            ("ca-key.pem }", "ca-key.pem, longest: soon }", "issuing.longest"),
        ] {
            let wrong = problems(&text.replace(from, to));
            assert!(wrong.iter().any(|why| why.contains(expected)), "{to}: {wrong:#?}");
        }
    }

    #[test]
    fn gateway_identities_are_workloads_of_the_own_trust_domain() {
        let text = GOOD.replace("trust: { ", "trust: { domain: east.example, ").replace(
            "name: gw-1",
            "name: gw-1, identities: ['spiffe://east.example/ns/shop/*', 'spiffe://east.example/ns/db/sa/mysql']",
        ) + "state: state\nissuing: { certificate: ca-cert.pem, key: ca-key.pem }\n";
        let settings = parse(&text, Path::new("agent.yaml")).unwrap_or_else(|error| panic!("{error}"));
        let patterns = settings.gateways[0].identities.iter().map(ToString::to_string);
        let expected = ["spiffe://east.example/ns/shop/*", "spiffe://east.example/ns/db/sa/mysql"];
        assert_eq!(patterns.collect::<Vec<_>>(), expected);
        let place = "agent.yaml:5:39: gateways[0].identities[0]: ";
        for (identity, problem) in [
            ("spiffe://west.example/ns/shop/*", "is of another trust domain than east.example"),
            ("spiffe://east.example/isthmus/east/gateway/gw-2", "is not only of workloads"),
            ("spiffe://east.example/isthmus/east/agent/a", "is not only of workloads"),
            ("spiffe://east.example/isthmus/*", "is not only of workloads"),
            ("spiffe://east.example/*", "is not only of workloads"),
            ("spiffe://east.example/ns*", "is not a SPIFFE ID or pattern"),
            ("spiffe://east.example", "is not a SPIFFE ID or pattern"),
        ] {
            let wrong = problems(&text.replace("spiffe://east.example/ns/shop/*", identity));
            let [wrong] = &wrong[..] else { panic!("{identity}: {wrong:#?}") };
            assert!(wrong.starts_with(place) && wrong.contains(problem), "{wrong}");
        }
        let wrong = problems(&text.replace("issuing: { certificate: ca-cert.pem, key: ca-key.pem }\n", ""));
        assert!(wrong[0].contains("has no effect, because the agent issues no certificates"), "{wrong:#?}");
    }

    #[test]
    fn registration_defaults_to_the_local_socket() {
        let read = |text: &str| parse(text, Path::new("agent.yaml")).unwrap().registration;
        assert_eq!(read(GOOD), Registration::default());
        let state = GOOD.to_owned() + "state: /var/lib/a\n";
        assert_eq!(read(&state).socket, Some(PathBuf::from("/var/lib/a/agent.sock")));
        assert_eq!(read(&(state.clone() + "registration: { socket: off }\n")).socket, None);
        let more = "registration: { socket: /run/a.sock, users: [1001], tokens: { db-vms: /etc/t } }\n";
        let more = read(&(state.clone() + more));
        assert_eq!((more.socket, more.users.len()), (Some(PathBuf::from("/run/a.sock")), 1));
        assert_eq!(more.tokens["db-vms"], PathBuf::from("/etc/t"));
        let wrong = problems(&(state + "registration: { tokens: { 'a b': /etc/t } }\n"));
        assert!(wrong[0].contains("registration.tokens: 'a b' is not a valid token name"), "{wrong:#?}");
    }

    #[test]
    fn limits_are_parsed_and_range_checked() {
        let defaults = parse(GOOD, Path::new("agent.yaml")).unwrap().limits;
        assert_eq!(defaults, AgentLimits::default());
        let text = GOOD.to_owned()
            + "limits: { gateways: { connections: 9 }, peers: { streams: 3, requests: 2MiB, names: 10, slices: 7, bytes: 1MiB } }\n";
        let AgentLimits { clients, slices } = parse(&text, Path::new("agent.yaml")).unwrap().limits;
        assert_eq!((clients.gateway.connections, clients.gateway.streams), (9, 256));
        let peer = clients.peer;
        assert_eq!((peer.connections, peer.streams, peer.request_bytes), (16, 3, 2 << 20));
        assert_eq!((peer.names, peer.name_bytes), (10, 1_680));
        assert_eq!((slices.slices, slices.bytes), (7, 1 << 20));
        for (from, to, expected) in [
            ("connections: 9", "connections: 0", "limits.gateways.connections"),
            ("requests: 2MiB", "requests: 2KiB", "limits.peers.requests"),
            ("slices: 7", "slices: many", "limits.peers.slices"),
            ("streams: 3", "stream: 3", "unknown key 'stream'"),
        ] {
            let wrong = problems(&text.replace(from, to));
            assert!(wrong.iter().any(|why| why.contains(expected)), "{to}: {wrong:#?}");
        }
    }

    const FEDERATED: &str = "\
locality: { region: eu-west }
gateways:
- { name: gw-1, address: 203.0.113.10, port: 8443 }
- { name: gw-2, address: [gw.east.example, '2001:db8::1'], locality: { region: us } }
exports: [{ workspace: ['*/bookinfo'], labels: { app: details }, gateways: [gw-2], instances: [db-0] }]
imports:
- { cluster: west, hosts: ['*.bookinfo.svc.cluster.local'], gatewayCIDRs: [198.51.100.0/24] }
reachability: [{ from: west-net, to: { env: prod } }]
networks: { east-net: { env: prod } }
peers: [{ cluster: west, address: 'agent.west.example:15012', trustDomain: west.example, network: west-net }]
state: state
";

    #[test]
    fn federation_sections_are_parsed() {
        let text = GOOD.replace("gateways: [{ name: gw-1 }]\n", FEDERATED);
        let settings = parse(&text, Path::new("agent.yaml")).unwrap_or_else(|error| panic!("{error}"));
        let addresses: Vec<_> = settings.gateways.iter().flat_map(|gateway| &gateway.addresses).collect();
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["203.0.113.10:8443", "gw.east.example:15443", "[2001:db8::1]:15443"]);
        let regions = settings.gateways.iter().map(|gateway| gateway.locality.region.as_str());
        assert_eq!(regions.collect::<Vec<_>>(), ["eu-west", "us"]);
        assert_eq!(settings.exports[0].gateways, ["gw-2"]);
        assert!(settings.reachability.allows(Some("west-net"), Some("east-net")));
        assert!(!settings.reachability.allows(Some("east-net"), Some("west-net")));
        assert_eq!(settings.peers[0].domain.as_str(), "west.example");
        assert_eq!(settings.imports[0].gateways[0].to_string(), "198.51.100.0/24");
    }

    #[test]
    fn peer_without_network_and_matching_reachability_rule_is_warned_of() {
        let text = GOOD.replace("gateways: [{ name: gw-1 }]\n", FEDERATED);
        assert!(parse(&text, Path::new("agent.yaml")).unwrap().warnings.is_empty());
        let text = text.replace(", network: west-net", "");
        let settings = parse(&text, Path::new("agent.yaml")).unwrap_or_else(|error| panic!("{error}"));
        let [warning] = &settings.warnings[..] else { panic!("{:?}", settings.warnings) };
        assert!(warning.to_string().starts_with("agent.yaml:14:9: peers[0] has no network"), "{warning}");
    }

    #[test]
    fn federation_problems_are_reported() {
        let text = GOOD.replace("gateways: [{ name: gw-1 }]\n", FEDERATED);
        for (from, to, expected) in [
            ("cluster: west, address", "cluster: east, address", "is this cluster itself"),
            ("gateways: [gw-2]", "gateways: [gw-3]", "unknown gateway 'gw-3'"),
            ("['*/bookinfo']", "['*/book.info']", "is not a workspace entry"),
            ("workspace: ['*/bookinfo'], labels: { app: details }, ", "", "exports[0] selects no service"),
            ("instances: [db-0]", "instances: [db.0]", "is not an instance name"),
            ("trustDomain: west.example", "trustDomain: West!", "cannot be used"),
            ("203.0.113.10", "203.0.113.300", "is not an address"),
            ("name: gw-2", "name: gw-1", "is listed twice"),
            ("198.51.100.0/24", "198.51.100.1/24", "gatewayCIDRs"),
            ("to: { env: prod } }", "}", "has no to"),
            ("agent.west.example:15012", "agent.west.example", "has no port"),
        ] {
            let wrong = problems(&text.replace(from, to));
            assert!(wrong.iter().any(|why| why.contains(expected)), "{to}: {wrong:#?}");
        }
    }
}
