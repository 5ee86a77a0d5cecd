//! Keeps what the cluster's gateways report, the newest of each, and folds it: an own endpoint counts as not ready for
//! other clusters while every gateway that reports finds it unhealthy. What other clusters' gateways find is not asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_certs::SpiffeId;
use isthmus_model::HostPattern;
use isthmus_model::admin::agent::{self, UnhealthyEndpoint};
use isthmus_report::server::Inbox;
use isthmus_report::{Part, Report, Unhealthy};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::blocking;
use super::own_services::OwnServices;
use super::views::Views;

/// A report counts for this long after its gateway's last sign of life.
const FRESH: Duration = Duration::from_secs(15);
/// How often reports are checked for their age, and the shortest time between two changes of slices.
const PACE: Duration = Duration::from_secs(1);
/// Endpoints of a gateway that are shown, at most.
const LISTED: usize = 100;

/// Endpoints that count as not ready for other clusters: port and address, by host.
pub(super) type NotReady = HashMap<HostPattern, BTreeSet<(u16, SocketAddr)>>;

/// The reports of the cluster's gateways.
pub(super) struct Reports {
    views: Arc<Views>,
    gateways: Mutex<BTreeMap<SpiffeId, Reported>>,
    news: Notify,
}

/// What one gateway reports.
struct Reported {
    stream: u64,
    is_connected: bool,
    report: Report,
    /// Its last sign of life.
    at: Instant,
}

impl Reports {
    pub(super) fn new(views: Arc<Views>) -> Reports {
        Reports { views, gateways: Mutex::default(), news: Notify::new() }
    }

    /// The endpoints that every gateway with a fresh report finds unhealthy.
    fn not_ready(&self, now: Instant) -> NotReady {
        let gateways = self.gateways.lock();
        let fresh = gateways.values().filter(|reported| reported.age(now) <= FRESH);
        agreed(fresh.map(|reported| &reported.report.unhealthy))
    }

    /// Whether time alone may change [`Reports::not_ready`].
    fn may_age(&self) -> bool {
        self.gateways.lock().values().any(|reported| !reported.report.unhealthy.is_empty())
    }

    /// What each gateway reports.
    pub(super) fn page(&self) -> agent::Matrix {
        let (now, gateways) = (Instant::now(), self.gateways.lock());
        let page = |(id, reported): (&SpiffeId, &Reported)| (id.to_string(), reported.page(now));
        agent::Matrix { gateways: gateways.iter().map(page).collect() }
    }

    /// Applies the reports to the slices of other clusters, until dropped.
    pub(super) async fn keep_folding(self: Arc<Self>, own: Arc<OwnServices>) {
        let mut known = NotReady::new();
        loop {
            if known.is_empty() && !self.may_age() {
                self.news.notified().await;
            }
            let not_ready = self.not_ready(Instant::now());
            if not_ready != known {
                known.clone_from(&not_ready);
                let own = Arc::clone(&own);
                blocking(move || own.set_not_ready(not_ready)).await;
            }
            sleep(PACE).await;
        }
    }
}

impl Reported {
    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }

    fn page(&self, now: Instant) -> agent::GatewayReport {
        let Report { unhealthy, left_out, matrix, cut_off_since } = &self.report;
        let listed = unhealthy.iter().take(LISTED).map(|one| UnhealthyEndpoint {
            service: format!("{}:{}", one.host, one.port),
            address: one.address.to_string(),
            since: one.since,
            why: one.why.clone(),
        });
        agent::GatewayReport {
            connected: self.is_connected,
            age_seconds: self.age(now).as_secs(),
            fresh: self.age(now) <= FRESH,
            cut_off_since: *cut_off_since,
            matrix: matrix.clone(),
            unhealthy_count: unhealthy.len() as u64 + left_out,
            unhealthy: listed.collect(),
        }
    }
}

impl Inbox for Reports {
    fn is_gateway(&self, client: &SpiffeId) -> bool {
        self.views.has_member(client)
    }

    fn accept(&self, gateway: &SpiffeId, stream: u64, part: Part) -> bool {
        let (now, mut gateways) = (Instant::now(), self.gateways.lock());
        let reported = gateways.entry(gateway.clone()).or_insert_with(|| Reported {
            stream,
            is_connected: true,
            report: Report::default(),
            at: now,
        });
        if stream < reported.stream {
            return false;
        }
        if stream > reported.stream {
            reported.report = Report::default();
        }
        (reported.stream, reported.is_connected, reported.at) = (stream, true, now);
        reported.report.apply(part);
        drop(gateways);
        self.news.notify_one();
        true
    }

    fn ended(&self, gateway: &SpiffeId, stream: u64) {
        if let Some(reported) = self.gateways.lock().get_mut(gateway).filter(|one| one.stream == stream) {
            reported.is_connected = false;
        }
    }
}

/// The endpoints that are in every list; none without a list.
fn agreed<'a>(mut lists: impl Iterator<Item = &'a Vec<Unhealthy>>) -> NotReady {
    let of_list = |list: &'a Vec<Unhealthy>| -> BTreeSet<(&HostPattern, u16, SocketAddr)> {
        list.iter().map(|one| (&one.host, one.port, one.address)).collect()
    };
    let first = lists.next().map(of_list).unwrap_or_default();
    let all = lists.fold(first, |all, list| &all & &of_list(list));
    let mut agreed = NotReady::new();
    for (host, port, address) in all {
        agreed.entry(host.clone()).or_default().insert((port, address));
    }
    agreed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhealthy(addresses: &[&str]) -> Vec<Unhealthy> {
        let one = |address: &&str| Unhealthy {
            host: HostPattern::parse("db.pxc").unwrap(),
            port: 3306,
            address: address.parse().unwrap(),
            since: 1,
            why: String::new(),
        };
        addresses.iter().map(one).collect()
    }

    #[test]
    fn reports_count_where_every_gateway_agrees() {
        let (a, b) = ("10.0.0.1:3306", "10.0.0.2:3306");
        let count = |lists: &[&[&str]]| {
            let lists: Vec<_> = lists.iter().map(|list| unhealthy(list)).collect();
            agreed(lists.iter()).values().map(BTreeSet::len).sum::<usize>()
        };
        assert_eq!(count(&[]), 0, "nobody reports");
        assert_eq!(count(&[&[a, b]]), 2);
        assert_eq!(count(&[&[a, b], &[b]]), 1);
        assert_eq!(count(&[&[a, b], &[b], &[]]), 0);
    }
}
