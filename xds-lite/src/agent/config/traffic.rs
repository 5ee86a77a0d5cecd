//! Resolves `traffic:` of an agent's file: policies by host. What depends on the registry is checked beside it, by
//! [`TrafficSettings::problems`].

use isthmus_model::Problem;
use isthmus_model::at::At;
use isthmus_model::host::HostPattern;
use isthmus_model::problem::{Place, Report};
use isthmus_model::services::Service;
use isthmus_model::slice::Cluster;
use isthmus_model::traffic::raw::HostsTraffic;
use isthmus_model::traffic::{self, SplitTo, Traffic};
use isthmus_registry::exports::covers;
use isthmus_registry::traffic::TrafficRules;

use super::{Import, Peer};

/// The limit of entries, and of hosts of one entry.
const MOST: usize = 1_024;

/// The policies of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficSettings {
    /// Which policy a host has.
    pub rules: TrafficRules,
    /// Hosts whose split selects endpoints by labels, and the problem if the registry does not have the host.
    by_labels: Vec<(HostPattern, Problem)>,
}

impl TrafficSettings {
    /// The problems beside a registry, which says whether it has a host, or one under a suffix.
    #[must_use]
    pub fn problems(&self, has: impl Fn(&HostPattern) -> bool) -> Vec<Problem> {
        let missing = self.by_labels.iter().filter(|(host, _)| !has(host));
        missing.map(|(_, problem)| problem.clone()).collect()
    }

    /// The problems beside all services of a registry.
    #[must_use]
    pub fn problems_beside<'a>(&self, services: impl Iterator<Item = &'a Service> + Clone) -> Vec<Problem> {
        self.problems(|host| services.clone().any(|service| covers(host, &service.host)))
    }
}

/// The own cluster, and what is known of others.
pub(super) struct Clusters<'a> {
    pub(super) own: &'a Cluster,
    pub(super) peers: &'a [Peer],
    pub(super) imports: &'a [Import],
    /// Others may join.
    pub(super) are_open: bool,
}

impl Clusters<'_> {
    fn have(&self, cluster: &Cluster) -> bool {
        self.are_open
            || cluster == self.own
            || self.peers.iter().any(|peer| peer.cluster == *cluster)
            || self.imports.iter().any(|import| import.cluster == *cluster)
    }

    /// Whether endpoints of another cluster may be reached without its gateways: then they have labels here, too.
    fn may_be_direct(&self) -> bool {
        self.imports.iter().any(|import| !import.endpoints.is_empty())
    }
}

pub(super) fn traffic_settings(
    report: &mut Report,
    raw: Option<&[At<HostsTraffic>]>,
    clusters: &Clusters<'_>,
) -> TrafficSettings {
    let place = Place::Root.key("traffic");
    let mut settings = TrafficSettings::default();
    for (index, whole) in limited(report, place, raw.unwrap_or_default()).iter().enumerate() {
        let place = place.item(index);
        let hosts = hosts(report, place, whole, &settings.rules);
        let traffic = traffic::traffic(report, place, whole.value.policy());
        warn_of_unknown_clusters(report, place, whole, (&traffic, clusters));
        let by_labels = whole.value.policy().parts_by_labels().next();
        if let Some((part, spot)) = by_labels.filter(|_| !clusters.may_be_direct()) {
            let missing = hosts.iter().map(|host| {
                let parts = place.key("split");
                let what = format!(
                    "{}.labels: {host} is not in the registry of this cluster, so its endpoints are behind gateways of \
                     other clusters, which labels do not select",
                    parts.item(part)
                );
                let remedy = "write 'cluster: NAME' in place of labels, or the name of a host of the registry, without instance";
                (host.clone(), report.problem(spot, what, remedy))
            });
            settings.by_labels.extend(missing);
        }
        settings.rules.push(hosts, traffic);
    }
    settings
}

fn hosts(
    report: &mut Report,
    place: Place<'_>,
    whole: &At<HostsTraffic>,
    before: &TrafficRules,
) -> Vec<HostPattern> {
    let list = whole.value.hosts.as_deref().unwrap_or_default();
    if list.is_empty() {
        report.add(whole.spot, format_args!("{place} has no hosts"), "add 'hosts: [HOST, …]'");
    }
    let place = place.key("hosts");
    let mut hosts = Vec::new();
    for (index, written) in limited(report, place, list).iter().enumerate() {
        let Some(host) = report.value(Some(written), place.item(index)) else { continue };
        if let Some((earlier, _)) = before.find(&host) {
            let what =
                format_args!("{}: {host} has its policy by traffic[{earlier}] already", place.item(index));
            report.add(
                written.spot,
                what,
                "the first entry with a host counts: put this one before it, or remove the host",
            );
        }
        hosts.push(host);
    }
    hosts
}

fn warn_of_unknown_clusters(
    report: &mut Report,
    place: Place<'_>,
    whole: &At<HostsTraffic>,
    (traffic, clusters): (&Traffic, &Clusters<'_>),
) {
    for (index, spot) in whole.value.policy().parts_by_cluster() {
        let part = traffic.split.get(index).map(|part| &part.to);
        if let Some(SplitTo::Cluster(cluster)) = part
            && !clusters.have(cluster)
        {
            let parts = place.key("split");
            let what =
                format_args!("{}.cluster: {cluster} is neither this cluster nor a peer", parts.item(index));
            report.warn(spot, what, "nobody is sent there until it is one; is the name right?");
        }
    }
}

fn limited<'a, T>(report: &mut Report, place: Place<'_>, list: &'a [At<T>]) -> &'a [At<T>] {
    let Some(beyond) = list.get(MOST) else { return list };
    let what = format_args!("{place}: has {} entries; the limit is {MOST}", list.len());
    report.add(beyond.spot, what, "write '*.suffix' for hosts of one suffix");
    &[]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use isthmus_model::{HostPattern, registry_file};

    use super::super::{Settings, parse};

    fn file(traffic: &str) -> String {
        format!(
            "cluster: east\ntrust: {{ certificate: a, key: b, bundles: c }}\nregistry: {{ files: r }}\n\
             peers: [{{ cluster: west, address: 'w:1', trustDomain: west.example }}]\ntraffic:\n{traffic}"
        )
    }

    fn settings(traffic: &str) -> Settings {
        parse(&file(traffic), Path::new("agent.yaml")).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn refusal(traffic: &str) -> String {
        parse(&file(traffic), Path::new("agent.yaml")).unwrap_err().to_string()
    }

    #[test]
    fn traffic_entries_are_read_in_order() {
        let settings = settings(
            "- { hosts: [db.shop], affinity: remote, panic: off }\n\
             - { hosts: ['*.shop', a.b], split: [{ cluster: east, weight: 90 }, { cluster: west, weight: 10 }] }\n",
        );
        let shown = |host: &str| {
            let (place, policy) = settings.traffic.rules.find(&HostPattern::parse(host).unwrap())?;
            Some(format!("{place} {policy}"))
        };
        assert_eq!(shown("db.shop").unwrap(), "0 { affinity: remote, panic: off }");
        let split = "1 { split: [{ cluster: east, weight: 90 }, { cluster: west, weight: 10 }] }";
        assert_eq!(
            (shown("page.shop").unwrap(), shown("a.b").unwrap()),
            (split.to_owned(), split.to_owned())
        );
        assert_eq!(shown("b.c"), None);
        assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    }

    #[test]
    fn traffic_mistakes_are_reported_with_place_and_remedy() {
        for (traffic, expected) in [
            ("- { affinity: local }\n", "agent.yaml:6:3: traffic[0] has no hosts; add 'hosts: [HOST, …]'"),
            ("- { hosts: [], affinity: local }\n", "agent.yaml:6:3: traffic[0] has no hosts"),
            ("- { hosts: [a..b] }\n", "agent.yaml:6:13: traffic[0].hosts[0]: 'a..b' is not a host name"),
            (
                "- { hosts: ['*.b'] }\n- { hosts: [a.b] }\n",
                "agent.yaml:7:13: traffic[1].hosts[0]: a.b has its policy by traffic[0] already; the first entry",
            ),
            (
                "- { hosts: [a.b], panic: 101 }\n",
                "agent.yaml:6:26: traffic[0].panic: '101' is out of range; write 1 to 100",
            ),
            (
                "- { hosts: [a.b], zone: a }\n",
                "agent.yaml:6:19: unknown key 'zone' in traffic[0]; expected one of hosts, affinity",
            ),
        ] {
            let problems = refusal(traffic);
            assert!(problems.contains(expected), "{problems}\n{expected}");
        }
        let many = format!("- {{ hosts: [{}] }}\n", vec!["a"; super::MOST + 1].join(", "));
        assert!(refusal(&many).contains("traffic[0].hosts: has 1025 entries; the limit is 1024"));
    }

    #[test]
    fn split_by_labels_needs_endpoints_that_are_reached_directly() {
        let by_labels =
            "split: [{ labels: { version: v1 }, weight: 9 }, { labels: { version: v2 }, weight: 1 }] }\n";
        let settings = settings(&format!("- {{ hosts: [db.shop, '*.apps', db-0.db.shop], {by_labels}"));
        let services =
            registry_file("services: [{ host: db.shop }, { host: a.apps }]", Path::new("r")).unwrap();
        let problems = settings.traffic.problems_beside(services.iter());
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        let expected = "agent.yaml:6:65: traffic[0].split[0].labels: db-0.db.shop is not in the registry of this cluster";
        assert!(problem.to_string().starts_with(expected), "{problem}");
        assert!(problem.remedy.contains("without instance"), "{problem}");
        assert_eq!(settings.traffic.problems_beside([].iter()).len(), 3);
        // Endpoints of a cluster in the same network may be reached directly.
        let flat = file(&format!("- {{ hosts: [far.away], {by_labels}"))
            + "imports: [{ cluster: west, endpointCIDRs: [10.0.0.0/8] }]\n";
        let flat = parse(&flat, Path::new("agent.yaml")).unwrap();
        assert!(flat.traffic.problems_beside([].iter()).is_empty());
    }

    #[test]
    fn unknown_cluster_of_a_split_is_warned_of() {
        let settings = settings(
            "- { hosts: [a.b], split: [{ cluster: east, weight: 1 }, { cluster: wset, weight: 1 }] }\n",
        );
        let [warning] = &settings.warnings[..] else { panic!("{:?}", settings.warnings) };
        assert!(
            warning
                .to_string()
                .contains("traffic[0].split[1].cluster: wset is neither this cluster nor a peer")
        );
    }
}
