//! What an agent exports to Prometheus: one table says what there is, with which labels, and how it is read.
//! `docs/agent.md` is the same table for people.

use std::time::{Instant, SystemTime};

use isthmus_store::Report;
use prometheus::TextEncoder;
use prometheus::proto::{self, LabelPair, MetricFamily, MetricType};

use crate::ads::shared::Follower;
use crate::issuing::Tally;
use crate::slice::Cluster;

use super::bundles::Bundles;
use super::peer::Contact;
use super::state::State;

/// One family of metrics.
struct Definition {
    /// With its prefix.
    name: &'static str,
    /// What it counts, in which unit.
    help: &'static str,
    read: Read,
}

/// How it is read, and with it what labels it has.
enum Read {
    /// A gauge without labels.
    Whole(fn(&Sight<'_>) -> usize),
    /// A gauge with the label `cluster`.
    EachPeer(fn(&Contact) -> f64),
    /// The same of those clusters for which there is one.
    EachTold(fn(&Bundles, &Cluster) -> Option<f64>),
    /// A counter with the label `cluster`.
    EachPeerSoFar(fn(&Contact) -> f64),
    /// A gauge with the label `store`.
    EachStore(fn(&Report) -> f64),
    /// A counter with the label `store`.
    EachStoreSoFar(fn(&Report) -> f64),
    /// A counter of what was issued, or not; nothing where certificates are not.
    Issued(fn(&Tally) -> u64),
}

/// The agent, and what several metrics are read from.
struct Sight<'a> {
    state: &'a State,
    imported: usize,
    held_back: usize,
    followers: Vec<Follower>,
    stores: Vec<Report>,
    tally: Option<&'a Tally>,
}

const ALL: &[Definition] = &[
    whole("isthmus_agent_hosts", "Hosts in the registry.", |seen| seen.state.services.len()),
    whole("isthmus_agent_registered", "Instances that announced themselves.", |seen| {
        seen.state.registered.count()
    }),
    whole("isthmus_agent_registry_problems", "What is wrong with the registry now.", |seen| {
        seen.state.problems.len()
    }),
    whole("isthmus_agent_exported", "Hosts that other clusters may see.", |seen| {
        seen.state.own().filter(|slice| slice.is_exported()).count()
    }),
    whole("isthmus_agent_exports_held_back", "Hosts that an export chose and that are not shown.", |seen| {
        seen.state.held().count()
    }),
    whole("isthmus_agent_imported", "Slices of other clusters that gateways get.", |seen| seen.imported),
    whole("isthmus_agent_imports_held_back", "Slices of other clusters that they do not get.", |seen| {
        seen.held_back
    }),
    whole(
        "isthmus_agent_stale_probed",
        "Addresses of clusters that are not heard of, asked whether they can be reached (`stale: probe`).",
        |seen| seen.state.imports.probes().asked(),
    ),
    whole("isthmus_agent_stale_down", "Those of them that cannot, and are left out.", |seen| {
        seen.state.imports.probes().down(Instant::now(), SystemTime::now()).len()
    }),
    whole("isthmus_agent_streams", "Gateways and peers that follow this agent.", |seen| seen.followers.len()),
    whole(
        "isthmus_agent_streams_behind",
        "Those of them that have not answered for the last change.",
        |seen| seen.followers.iter().filter(|one| !one.settled).count(),
    ),
    whole("isthmus_agent_streams_refusing", "Those of them that refused what they were last sent.", |seen| {
        seen.followers.iter().filter(|one| one.refusal.is_some()).count()
    }),
    Definition {
        name: "isthmus_agent_peer_connected",
        help: "1 while the cluster's agent answers.",
        read: Read::EachPeer(|peer| u8::from(peer.connected).into()),
    },
    Definition {
        name: "isthmus_agent_peer_silence_seconds",
        help: "Since the cluster's agent was last heard; 0 while it is. What is imported is that old at most.",
        read: Read::EachPeer(silence),
    },
    Definition {
        name: "isthmus_agent_peer_slices_refused_total",
        help: "Slices of the cluster that were refused as wrong.",
        read: Read::EachPeerSoFar(|peer| number(peer.refusals)),
    },
    Definition {
        name: "isthmus_agent_peer_bundle_unacknowledged",
        help: "1 while the cluster has not acknowledged the own trust domain's present bundle.",
        read: Read::EachTold(|told, peer| told.is_present(peer).map(|present| u8::from(!present).into())),
    },
    Definition {
        name: "isthmus_agent_peer_bundles_refused_total",
        help: "Bundles and deny-lists of the cluster's trust domain that were refused.",
        read: Read::EachPeerSoFar(|peer| number(peer.bundle.refusals)),
    },
    Definition {
        name: "isthmus_agent_state_usable",
        help: "1 while state is persisted for a restart; 0 while the disk does not allow it.",
        read: Read::EachStore(|store| u8::from(store.usable).into()),
    },
    Definition {
        name: "isthmus_agent_state_damaged_total",
        help: "Damaged state files that were found.",
        read: Read::EachStoreSoFar(|store| number(store.damaged_files)),
    },
    Definition {
        name: "isthmus_agent_state_records_lost_total",
        help: "Persisted records that were damaged and are lost.",
        read: Read::EachStoreSoFar(|store| number(store.lost_records)),
    },
    whole(
        "isthmus_agent_state_problems",
        "Files among the joined peers' records that are damaged or do not belong there, and are ignored.",
        |seen| seen.state.state_problems.len(),
    ),
    Definition {
        name: "isthmus_agent_certificates_signed_total",
        help: "Certificates that were issued.",
        read: Read::Issued(Tally::signed),
    },
    Definition {
        name: "isthmus_agent_certificates_refused_total",
        help: "Requests for a certificate that were not followed.",
        read: Read::Issued(Tally::refused),
    },
];

const fn whole(name: &'static str, help: &'static str, read: fn(&Sight<'_>) -> usize) -> Definition {
    Definition { name, help, read: Read::Whole(read) }
}

/// Everything, in the text format.
pub(super) fn text(state: &State, tally: Option<&Tally>) -> String {
    let shown = state.imports.shown();
    let imported = shown.iter().filter(|one| one.held.is_none()).count();
    let sight = Sight {
        state,
        imported,
        held_back: shown.len() - imported,
        followers: state.followers().into_values().flatten().collect(),
        stores: state.health(),
        tally,
    };
    let families = ALL.iter().map(|definition| family(definition, &sight));
    // Only a family without a metric is an error, and those are left out.
    let families: Vec<_> = families.filter(|family| !family.get_metric().is_empty()).collect();
    TextEncoder::new().encode_to_string(&families).unwrap_or_default()
}

fn family(definition: &Definition, sight: &Sight<'_>) -> MetricFamily {
    let peers = |read: fn(&Contact) -> f64| {
        let peers = sight.state.peers.iter();
        peers.map(|(cluster, contact)| (Some(cluster.as_str()), read(contact))).collect()
    };
    let samples: Vec<(Option<&str>, f64)> = match definition.read {
        Read::Whole(read) => vec![(None, number(read(sight) as u64))],
        Read::EachPeer(read) | Read::EachPeerSoFar(read) => peers(read),
        Read::EachTold(read) => {
            let peers = sight.state.peers.keys();
            let read = |peer: &Cluster| read(&sight.state.views.bundles, peer);
            peers.filter_map(|peer| Some((Some(peer.as_str()), read(peer)?))).collect()
        }
        Read::EachStore(read) | Read::EachStoreSoFar(read) => {
            sight.stores.iter().map(|store| (Some(store.store), read(store))).collect()
        }
        Read::Issued(read) => vec![(None, number(sight.tally.map_or(0, read)))],
    };
    let mut family = MetricFamily::default();
    family.set_name(definition.name.to_owned());
    family.set_help(definition.help.to_owned());
    family.set_field_type(definition.kind());
    family.set_metric(samples.into_iter().map(|sample| metric(definition, sample)).collect());
    family
}

fn metric(definition: &Definition, (named, value): (Option<&str>, f64)) -> proto::Metric {
    let label = |named: &str| {
        let mut pair = LabelPair::default();
        pair.set_name(definition.label().to_owned());
        pair.set_value(named.to_owned());
        pair
    };
    let mut metric = proto::Metric::from_label(named.map(label).into_iter().collect());
    if definition.kind() == MetricType::COUNTER {
        let mut counter = proto::Counter::default();
        counter.set_value(value);
        metric.set_counter(counter);
    } else {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
    }
    metric
}

impl Definition {
    fn kind(&self) -> MetricType {
        match self.read {
            Read::Whole(_) | Read::EachPeer(_) | Read::EachTold(_) | Read::EachStore(_) => MetricType::GAUGE,
            Read::EachPeerSoFar(_) | Read::EachStoreSoFar(_) | Read::Issued(_) => MetricType::COUNTER,
        }
    }

    /// What tells its samples apart, where there are several.
    fn label(&self) -> &'static str {
        match self.read {
            Read::EachStore(_) | Read::EachStoreSoFar(_) => "store",
            _ => "cluster",
        }
    }
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
    fn the_documentation_is_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/agent.md");
        let documented = std::fs::read_to_string(path).unwrap();
        let rows: Vec<&str> = documented.lines().filter(|line| line.starts_with("| `isthmus_")).collect();
        let row = |metric: &Definition| {
            let (kind, labels) = match metric.read {
                Read::Whole(_) => ("gauge", "–"),
                Read::EachPeer(_) | Read::EachTold(_) => ("gauge", "`cluster`"),
                Read::EachPeerSoFar(_) => ("counter", "`cluster`"),
                Read::EachStore(_) => ("gauge", "`store`"),
                Read::EachStoreSoFar(_) => ("counter", "`store`"),
                Read::Issued(_) => ("counter", "–"),
            };
            format!("| `{}` | {kind} | {labels} | {} |", metric.name, metric.help)
        };
        let expected: Vec<String> = ALL.iter().map(row).collect();
        assert_eq!(rows, expected, "write these rows into docs/agent.md:\n{}", expected.join("\n"));
    }
}
