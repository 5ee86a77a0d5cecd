//! The agent's file: text → settings that cannot be wrong, or everything that is wrong with it. What is
//! written is in `raw`, what it means in `resolve`.

mod issuing;
mod limits;
mod raw;
mod registration;
mod resolve;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use isthmus_certs::{TrustDomain, TrustFiles};

use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;
use isthmus_model::locality::Locality;
use isthmus_model::problem::Report;
use isthmus_model::slice::Cluster;
use isthmus_model::{Problem, Problems, file, yaml};
use isthmus_registry::exports::Rule;
use isthmus_registry::reachability::Reachability;
use isthmus_trust::issuing::IntermediateFiles;

pub use limits::AgentLimits;
pub use registration::Registration;

const ADDRESS: &str = "0.0.0.0:15012";
const JOIN: &str = "0.0.0.0:15011";
const ADMIN: &str = "127.0.0.1:15014";
/// How long a certificate lives.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
/// As long as a root roll-over waits by default before it lets go of the old root.
const LONGEST_EVER: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Where a gateway accepts other clusters, unless it says otherwise.
const EAST_WEST: u16 = 15_443;

/// What an agent runs on.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster it speaks for.
    pub cluster: Cluster,
    /// Where the cluster's endpoints stand.
    pub network: String,
    /// Where its gateways stand, unless they say otherwise.
    pub locality: Locality,
    /// Its identity, and whom it believes.
    pub trust: TrustFiles,
    /// The directory of the registry's files.
    pub registry: PathBuf,
    /// What is kept for a restart; nothing is where there is none.
    pub state: Option<PathBuf>,
    /// The cluster's gateways; nobody else is served.
    pub gateways: Vec<Gateway>,
    /// Which services other clusters may see; without any none.
    pub exports: Vec<Rule>,
    /// What may come from other clusters.
    pub imports: Vec<Import>,
    /// Which networks may know of each other's services.
    pub reachability: Reachability,
    /// The agents of other clusters.
    pub peers: Vec<Peer>,
    /// Where it serves.
    pub address: SocketAddr,
    /// The same as other clusters reach it.
    pub advertise: Option<Target>,
    /// Where clusters join by a token, if they do.
    pub join: Option<Join>,
    /// What it signs certificates with, if it does.
    pub issuing: Option<Issuing>,
    /// Where its own status is.
    pub admin: SocketAddr,
    /// Who may register VMs.
    pub registration: Registration,
    /// What gateways and peers may take.
    pub limits: AgentLimits,
    /// What can stand in the file, and does less than it seems to.
    pub warnings: Vec<Problem>,
}

/// Where clusters join by a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Where it is served.
    pub address: SocketAddr,
    /// The same as other clusters reach it, unless it is where the agent is advertised.
    pub advertise: Option<Target>,
}

/// What an agent signs certificates with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuing {
    /// The intermediate.
    pub files: IntermediateFiles,
    /// How long a certificate lives, at most.
    pub longest: Duration,
}

/// A gateway of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The last part of its identity.
    pub name: String,
    /// Where other clusters reach it; nowhere if empty.
    pub addresses: Vec<Target>,
    /// Where it stands.
    pub locality: Locality,
    /// Where it listens if it is a stock Envoy.
    pub envoy: Option<SocketAddr>,
}

/// What may come from one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Which cluster.
    pub cluster: Cluster,
    /// Names that it may give to services here.
    pub hosts: Vec<HostPattern>,
    /// Where its gateways may stand; none is anywhere but here.
    pub gateways: Vec<IpNet>,
    /// Names that its gateways may have.
    pub gateway_hosts: Vec<HostPattern>,
    /// Where endpoints may stand that are reached without a gateway.
    pub endpoints: Vec<IpNet>,
}

/// The agent of another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its cluster.
    pub cluster: Cluster,
    /// Where it serves.
    pub address: Target,
    /// Who vouches for it.
    pub domain: TrustDomain,
    /// Where its endpoints stand; one of its own if nothing is said.
    pub network: Option<String>,
}

const TOO_LARGE: &str = "an agent's file is short; is it the right one?";

/// Reads a regular file and checks it whole.
///
/// # Errors
/// Everything that is wrong with it, or why it cannot be read.
pub fn load(path: &Path) -> Result<Settings, Problems> {
    parse(&file::read(path, TOO_LARGE)?, path)
}

/// The same for a command that ends: the file may be a pipe, as `/dev/stdin`.
///
/// # Errors
/// As [`load`].
pub fn load_argument(path: &Path) -> Result<Settings, Problems> {
    parse(&file::read_argument(path, TOO_LARGE)?, path)
}

/// Checks a text as if it stood in `path`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str, path: &Path) -> Result<Settings, Problems> {
    let mut report = Report::new(path);
    let settings = yaml::read(text, &mut report).and_then(|file| resolve::settings(&mut report, file));
    report.finish(settings)
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
    fn a_good_file_is_read() {
        let settings = parse(GOOD, Path::new("agent.yaml")).unwrap();
        assert_eq!((settings.cluster.as_str(), settings.network.as_str()), ("east", "east-net"));
        assert_eq!((settings.gateways[0].name.as_str(), settings.address.port()), ("gw-1", 0));
        let short = GOOD.replace("xds: { address: '127.0.0.1:0' }\n", "");
        assert_eq!(parse(&short, Path::new("x")).unwrap().address.to_string(), ADDRESS);
    }

    #[test]
    fn everything_that_is_wrong_is_named_with_its_place() {
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
    fn what_signs_is_read_and_what_is_wrong_with_it_is_named() {
        let text = GOOD.to_owned() + "state: state\nissuing: { certificate: ca-cert.pem, key: ca-key.pem }\n";
        let issuing = parse(&text, Path::new("agent.yaml")).unwrap().issuing.unwrap();
        assert_eq!((issuing.files.key, issuing.longest), (PathBuf::from("ca-key.pem"), LONGEST));
        for (from, to, expected) in [
            ("state: state\n", "", "issuing is there without state"),
            (", key: ca-key.pem", "", "issuing has no key"),
            ("ca-key.pem }", "ca-key.pem, longest: 200h }", "is not between 1s and 168h"),
            ("ca-key.pem }", "ca-key.pem, longest: soon }", "issuing.longest"),
        ] {
            let wrong = problems(&text.replace(from, to));
            assert!(wrong.iter().any(|why| why.contains(expected)), "{to}: {wrong:#?}");
        }
    }

    #[test]
    fn registration_is_for_local_root_unless_more_is_said() {
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
        assert!(wrong[0].contains("registration.tokens: 'a b' is no name of a token"), "{wrong:#?}");
    }

    #[test]
    fn limits_are_read_and_what_is_out_of_range_is_named() {
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
    fn what_joins_clusters_is_read() {
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
    fn a_peer_that_no_rule_can_mean_is_warned_of() {
        let text = GOOD.replace("gateways: [{ name: gw-1 }]\n", FEDERATED);
        assert!(parse(&text, Path::new("agent.yaml")).unwrap().warnings.is_empty());
        let text = text.replace(", network: west-net", "");
        let settings = parse(&text, Path::new("agent.yaml")).unwrap_or_else(|error| panic!("{error}"));
        let [warning] = &settings.warnings[..] else { panic!("{:?}", settings.warnings) };
        assert!(warning.to_string().starts_with("agent.yaml:14:9: peers[0] has no network"), "{warning}");
    }

    #[test]
    fn what_would_join_clusters_wrongly_is_named() {
        let text = GOOD.replace("gateways: [{ name: gw-1 }]\n", FEDERATED);
        for (from, to, expected) in [
            ("cluster: west, address", "cluster: east, address", "is this cluster itself"),
            ("gateways: [gw-2]", "gateways: [gw-3]", "there is no gateway 'gw-3'"),
            ("['*/bookinfo']", "['*/book.info']", "is no workspace's part"),
            ("workspace: ['*/bookinfo'], labels: { app: details }, ", "", "says of no service"),
            ("instances: [db-0]", "instances: [db.0]", "is no instance"),
            ("trustDomain: west.example", "trustDomain: West!", "cannot be used"),
            ("203.0.113.10", "203.0.113.300", "is no address"),
            ("name: gw-2", "name: gw-1", "stands twice"),
            ("198.51.100.0/24", "198.51.100.1/24", "gatewayCIDRs"),
            ("to: { env: prod } }", "}", "has no to"),
            ("agent.west.example:15012", "agent.west.example", "has no port"),
        ] {
            let wrong = problems(&text.replace(from, to));
            assert!(wrong.iter().any(|why| why.contains(expected)), "{to}: {wrong:#?}");
        }
    }
}
