//! Exports the agent's metrics to Prometheus. One table defines each metric, its labels and how it is read;
//! `docs/metrics.md` has the same table.

mod render;

use std::time::SystemTime;

use isthmus_certs::output;
use isthmus_store::StoreHealth;
use prometheus::TextEncoder;
use prometheus::proto::{MetricFamily, MetricType};

use isthmus_ads::shared::Follower;
use isthmus_grpc::budget::{Budgets, Kind, Resource};
use isthmus_model::admin::agent::{GatewayReport, Matrix};
use isthmus_model::matrix::State;
use isthmus_model::slice::Cluster;
use isthmus_registry::imports::PeerUsage;
use isthmus_trust::issuing::Tally;

use self::render::metric;
use super::bundles::Bundles;
use super::peer::Contact;
use super::{Owners, names, own_services, peers};
use crate::dns::{Answer, Server};

/// A metric family.
struct Definition {
    name: &'static str,
    help: &'static str,
    read: Read,
}

/// How a metric is read; this also determines its type and labels.
enum Read {
    /// A gauge without labels.
    Whole(fn(&Sight<'_>) -> usize),
    /// A gauge with the label `cluster`.
    EachPeer(fn(&Contact) -> f64),
    /// A gauge with the label `cluster`, for clusters that have a value.
    EachTold(fn(&Bundles, &Cluster) -> Option<f64>),
    /// A counter with the label `cluster`.
    EachPeerSoFar(fn(&Contact) -> f64),
    /// A gauge with the label `store`.
    EachStore(fn(&StoreHealth) -> f64),
    /// A counter with the label `store`.
    EachStoreSoFar(fn(&StoreHealth) -> f64),
    /// A counter of the process.
    SoFar(fn() -> u64),
    /// A gauge with the label `cluster`, of a peer's slices.
    EachOffers(fn(&PeerUsage) -> u64),
    /// A counter with the label `cluster`, of a peer's slices.
    EachOffersSoFar(fn(&PeerUsage) -> u64),
    /// A gauge with the label `kind`: clients' usage of a resource.
    EachKind(Resource),
    /// A counter with the labels `kind` and `resource`: exceeded limits of clients.
    Exceeded,
    /// A gauge of the DNS server; 0 without one.
    Dns(fn(&Server) -> usize),
    /// A counter with the label `answer`: DNS questions by what became of them.
    DnsQuestions,
    /// A counter of issued or refused certificates; 0 where none are issued.
    Issued(fn(&Tally) -> u64),
}

/// The sources that metrics are read from.
struct Sight<'a> {
    own: own_services::Listed,
    reports: Matrix,
    not_ready: usize,
    peers: peers::Listed,
    bundles: &'a Bundles,
    state_problems: usize,
    followers: Vec<Follower>,
    stores: Vec<StoreHealth>,
    tally: Option<&'a Tally>,
    budgets: &'a Budgets,
    names: names::Summary,
    dns: Option<&'a Server>,
}

const ALL: &[Definition] = &[
    whole("isthmus_agent_hosts", "Hosts in the registry.", |seen| seen.own.hosts),
    whole("isthmus_agent_registered", "VM instances registered at this agent.", |seen| seen.own.registered),
    whole(
        "isthmus_agent_registry_problems",
        "Problems in the registry now; the log and `status` name each.",
        |seen| seen.own.problem_count,
    ),
    whole("isthmus_agent_exported", "Hosts exported to other clusters.", |seen| seen.own.exported),
    whole(
        "isthmus_agent_exports_held_back",
        "Hosts selected by an export rule but not exported, because no endpoint passed the mTLS check.",
        |seen| seen.own.held_count,
    ),
    whole("isthmus_agent_imported", "Slices of other clusters imported and sent to the gateways.", |seen| {
        seen.peers.imported_count
    }),
    whole(
        "isthmus_agent_imports_held_back",
        "Slices of other clusters quarantined: received but not sent to the gateways.",
        |seen| seen.peers.quarantined_count,
    ),
    whole(
        "isthmus_agent_stale_probed",
        "Addresses of unreachable clusters that are probed (`stale: probe`).",
        |seen| seen.peers.probed,
    ),
    whole(
        "isthmus_agent_stale_down",
        "Addresses of unreachable clusters that failed their probes and receive no new connections.",
        |seen| seen.peers.down_count,
    ),
    whole(
        "isthmus_agent_reporting_gateways",
        "Gateways of this cluster whose last report is at most 15 s old.",
        |seen| fresh(seen).count(),
    ),
    whole(
        "isthmus_agent_reported_unhealthy",
        "Endpoints of this cluster that its gateways report as unhealthy, each gateway by itself.",
        |seen| fresh(seen).map(|report| usize::try_from(report.unhealthy_count).unwrap_or(usize::MAX)).sum(),
    ),
    whole(
        "isthmus_agent_not_ready",
        "Endpoints of this cluster that count as not ready for other clusters, because every gateway that reports finds them unhealthy.",
        |seen| seen.not_ready,
    ),
    whole(
        "isthmus_agent_matrix_down",
        "Gateway addresses of other clusters that do not answer, each gateway of this cluster by itself.",
        |seen| {
            let rows = fresh(seen).flat_map(|report| &report.matrix);
            rows.filter(|row| matches!(row.state, State::Down | State::Kept)).count()
        },
    ),
    whole("isthmus_agent_streams", "xDS streams of gateways and peers.", |seen| seen.followers.len()),
    whole(
        "isthmus_agent_streams_behind",
        "xDS streams that have not yet acknowledged the last change.",
        |seen| seen.followers.iter().filter(|follower| !follower.settled).count(),
    ),
    whole("isthmus_agent_streams_refusing", "xDS streams whose client rejected the last response.", |seen| {
        seen.followers.iter().filter(|follower| follower.refusal.is_some()).count()
    }),
    Definition {
        name: "isthmus_agent_peer_connected",
        help: "1 while the peer's agent is connected, else 0.",
        read: Read::EachPeer(|peer| u8::from(peer.connected).into()),
    },
    Definition {
        name: "isthmus_agent_peer_silence_seconds",
        help: "Seconds since the peer's agent was last connected; 0 while it is. Imported slices are at most this old.",
        read: Read::EachPeer(silence),
    },
    Definition {
        name: "isthmus_agent_peer_slices_refused_total",
        help: "Invalid slices of the peer that were rejected.",
        read: Read::EachPeerSoFar(|peer| number(peer.refusals)),
    },
    Definition {
        name: "isthmus_agent_peer_slices",
        help: "Slices of the peer held under names that it was granted.",
        read: Read::EachOffers(|held| held.slices.used),
    },
    Definition {
        name: "isthmus_agent_peer_slice_bytes",
        help: "Size of the slices held of the peer, in bytes.",
        read: Read::EachOffers(|held| held.bytes.used),
    },
    Definition {
        name: "isthmus_agent_peer_slices_over_limit_total",
        help: "Slices of the peer that were rejected because of its limit of slices or bytes.",
        read: Read::EachOffersSoFar(|held| held.slices.exceeded),
    },
    Definition {
        name: "isthmus_agent_client_connections",
        help: "Authenticated client connections to the xDS port.",
        read: Read::EachKind(Resource::Connections),
    },
    Definition {
        name: "isthmus_agent_client_request_bytes",
        help: "Memory held by client requests in progress, in bytes.",
        read: Read::EachKind(Resource::RequestBytes),
    },
    Definition {
        name: "isthmus_agent_client_names",
        help: "Resource names that clients subscribe to.",
        read: Read::EachKind(Resource::Names),
    },
    Definition {
        name: "isthmus_agent_limits_exceeded_total",
        help: "Requests refused because a client exceeded its limit of a resource.",
        read: Read::Exceeded,
    },
    Definition {
        name: "isthmus_agent_peer_bundle_unacknowledged",
        help: "1 while the peer has not acknowledged the current bundle of this agent's trust domain.",
        read: Read::EachTold(|bundles, peer| {
            bundles.is_present(peer).map(|present| u8::from(!present).into())
        }),
    },
    Definition {
        name: "isthmus_agent_peer_bundles_refused_total",
        help: "Bundles and deny-lists of the peer's trust domain that were rejected.",
        read: Read::EachPeerSoFar(|peer| number(peer.bundle.refusals)),
    },
    Definition {
        name: "isthmus_agent_state_usable",
        help: "1 while the store persists state for a restart; 0 while it cannot write to disk.",
        read: Read::EachStore(|store| u8::from(store.usable).into()),
    },
    Definition {
        name: "isthmus_agent_state_damaged_total",
        help: "Damaged state files found.",
        read: Read::EachStoreSoFar(|store| number(store.damaged_files)),
    },
    Definition {
        name: "isthmus_agent_state_records_lost_total",
        help: "Persisted records lost to damage.",
        read: Read::EachStoreSoFar(|store| number(store.lost_records)),
    },
    whole(
        "isthmus_agent_state_problems",
        "Damaged or unknown files among the records of joined peers, which are ignored.",
        |seen| seen.state_problems,
    ),
    whole(
        "isthmus_agent_names",
        "Hosts and exported instances with virtual addresses or allotted ports.",
        |seen| seen.names.names,
    ),
    whole(
        "isthmus_agent_names_exhausted",
        "Virtual addresses and ports that names lack because a range is exhausted; the log and `status` name each.",
        |seen| seen.names.exhausted_count,
    ),
    whole(
        "isthmus_agent_names_collisions",
        "Virtual addresses that something else has; the log and `status` name each.",
        |seen| seen.names.collisions.len(),
    ),
    Definition {
        name: "isthmus_agent_dns_questions_total",
        help: "DNS questions by what became of them.",
        read: Read::DnsQuestions,
    },
    Definition {
        name: "isthmus_agent_dns_forwarded",
        help: "DNS questions that other servers are asked now.",
        read: Read::Dns(Server::forwarded),
    },
    Definition {
        name: "isthmus_agent_dns_connections",
        help: "Open TCP connections of DNS clients.",
        read: Read::Dns(Server::connections),
    },
    Definition {
        name: "isthmus_agent_certificates_signed_total",
        help: "Certificates issued.",
        read: Read::Issued(Tally::signed),
    },
    Definition {
        name: "isthmus_agent_certificates_refused_total",
        help: "Certificate requests refused.",
        read: Read::Issued(Tally::refused),
    },
    Definition {
        name: "isthmus_agent_log_dropped_total",
        help: "Log lines dropped because nothing read standard error.",
        read: Read::SoFar(output::lost),
    },
];

const fn whole(name: &'static str, help: &'static str, read: fn(&Sight<'_>) -> usize) -> Definition {
    Definition { name, help, read: Read::Whole(read) }
}

/// All metrics, in the text format.
pub(super) fn text(
    owners: &Owners,
    dns: Option<&Server>,
    tally: Option<&Tally>,
    budgets: &Budgets,
) -> String {
    let Owners { own, peers, directory, views, names, reports } = owners;
    let sight = Sight {
        own: own.summary(0),
        reports: reports.page(),
        peers: peers.summary(0),
        bundles: &views.bundles,
        state_problems: directory.problems().len(),
        followers: views.followers().into_values().flatten().collect(),
        stores: directory.reports().into_iter().chain(views.bundles.report()).chain(names.report()).collect(),
        not_ready: views.peers.not_ready(),
        tally,
        budgets,
        names: names.summary(),
        dns,
    };
    let families = ALL.iter().map(|definition| family(definition, &sight));
    // A family without a metric would be an encoding error.
    let families: Vec<_> = families.filter(|family| !family.get_metric().is_empty()).collect();
    TextEncoder::new().encode_to_string(&families).unwrap_or_default()
}

fn family(definition: &Definition, sight: &Sight<'_>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(definition.name.to_owned());
    family.set_help(definition.help.to_owned());
    family.set_field_type(definition.kind());
    let samples = samples(&definition.read, sight);
    family.set_metric(samples.into_iter().map(|sample| metric(definition.kind(), sample)).collect());
    family
}

/// Labels and value.
type Sample<'a> = (Vec<(&'static str, &'a str)>, f64);

fn samples<'a>(read: &Read, sight: &'a Sight<'a>) -> Vec<Sample<'a>> {
    let of = |cluster: &'a Cluster| vec![("cluster", cluster.as_str())];
    let peers = |read: fn(&Contact) -> f64| {
        sight.peers.contacts.iter().map(|(cluster, contact)| (of(cluster), read(contact))).collect()
    };
    match *read {
        Read::Whole(read) => vec![(Vec::new(), number(read(sight) as u64))],
        Read::SoFar(read) => vec![(Vec::new(), number(read()))],
        Read::EachPeer(read) | Read::EachPeerSoFar(read) => peers(read),
        Read::EachTold(read) => {
            let peers = sight.peers.contacts.keys();
            let read = |peer: &Cluster| read(sight.bundles, peer);
            peers.filter_map(|peer| Some((of(peer), read(peer)?))).collect()
        }
        Read::EachOffers(read) | Read::EachOffersSoFar(read) => {
            let offers = |peer| Some((of(peer), number(read(sight.peers.usage.get(peer)?))));
            sight.peers.contacts.keys().filter_map(offers).collect()
        }
        Read::EachStore(read) | Read::EachStoreSoFar(read) => {
            sight.stores.iter().map(|store| (vec![("store", &*store.store)], read(store))).collect()
        }
        Read::EachKind(resource) => {
            let used =
                |kind: Kind| (vec![("kind", kind.name())], number(sight.budgets.totals(kind, resource).0));
            Kind::ALL.map(used).into()
        }
        Read::Exceeded => {
            let exceeded = |(kind, resource): (Kind, Resource)| {
                let labels = vec![("kind", kind.name()), ("resource", resource.name())];
                (labels, number(sight.budgets.totals(kind, resource).1))
            };
            let pairs = Kind::ALL.into_iter().flat_map(|kind| Resource::ALL.map(|resource| (kind, resource)));
            pairs.map(exceeded).collect()
        }
        Read::Issued(read) => vec![(Vec::new(), number(sight.tally.map_or(0, read)))],
        Read::Dns(read) => vec![(Vec::new(), number(sight.dns.map_or(0, read) as u64))],
        Read::DnsQuestions => {
            let count = |answer: Answer| {
                let count = sight.dns.map_or(0, |dns| dns.stats().get(answer));
                (vec![("answer", answer.name())], number(count))
            };
            Answer::ALL.map(count).into()
        }
    }
}

impl Definition {
    fn kind(&self) -> MetricType {
        match self.read {
            Read::Whole(_)
            | Read::EachPeer(_)
            | Read::EachTold(_)
            | Read::EachOffers(_)
            | Read::EachStore(_)
            | Read::EachKind(_)
            | Read::Dns(_) => MetricType::GAUGE,
            Read::SoFar(_)
            | Read::EachPeerSoFar(_)
            | Read::EachStoreSoFar(_)
            | Read::EachOffersSoFar(_)
            | Read::Exceeded
            | Read::DnsQuestions
            | Read::Issued(_) => MetricType::COUNTER,
        }
    }
}

fn fresh<'a>(seen: &'a Sight<'_>) -> impl Iterator<Item = &'a GatewayReport> {
    seen.reports.gateways.values().filter(|report| report.fresh)
}

fn silence(peer: &Contact) -> f64 {
    let since = || SystemTime::now().duration_since(peer.since).unwrap_or_default();
    if peer.connected { 0.0 } else { since().as_secs_f64() }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are f64; counts stay below 2^53")]
fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_table_matches_the_documentation() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (_gateway, documented) = page.split_once("\n## Agent\n").unwrap();
        let rows: Vec<&str> =
            documented.lines().filter(|line| line.starts_with("| `isthmus_agent_")).collect();
        let row = |metric: &Definition| {
            let (kind, labels) = match metric.read {
                Read::Whole(_) => ("gauge", "–"),
                Read::EachPeer(_) | Read::EachTold(_) | Read::EachOffers(_) => ("gauge", "`cluster`"),
                Read::EachPeerSoFar(_) | Read::EachOffersSoFar(_) => ("counter", "`cluster`"),
                Read::EachKind(_) => ("gauge", "`kind`"),
                Read::Exceeded => ("counter", "`kind`, `resource`"),
                Read::Dns(_) => ("gauge", "–"),
                Read::DnsQuestions => ("counter", "`answer`"),
                Read::EachStore(_) => ("gauge", "`store`"),
                Read::EachStoreSoFar(_) => ("counter", "`store`"),
                Read::SoFar(_) | Read::Issued(_) => ("counter", "–"),
            };
            format!("| `{}` | {kind} | {labels} | {} |", metric.name, metric.help)
        };
        let expected: Vec<String> = ALL.iter().map(row).collect();
        assert_eq!(rows, expected, "write these rows into docs/metrics.md:\n{}", expected.join("\n"));
    }
}
