//! Implements `stale: probe`: while the agent is unreachable, the endpoints of such services are probed over TCP. An
//! address that is down receives no new connections until it answers or the agent is reachable again. An address is
//! probed once, however many services use it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use isthmus_health::schedule::{Answer, Down, Probes};
use isthmus_health::tcp::{Asker, reach};
use isthmus_model::HostPattern;
use isthmus_model::address::Ranges;
use isthmus_model::slice::{Slice, Staleness};

use crate::config::settings::Target;
use crate::control::{Probed, Unreached};
use crate::dial;
use crate::worker::Process;

use super::services::Here;
use super::{Slices, locked};

/// Maximum number of addresses listed in status.
const LISTED: usize = 1_000;

/// Supplies the probes with addresses.
pub(super) struct Asking(pub(super) Arc<Mutex<Slices>>);

impl Asker for Asking {
    fn poll(&self, answers: Vec<(Target, Answer)>, most: usize) -> Vec<Target> {
        locked(&self.0).advance_probes(answers, most, Instant::now())
    }

    fn ask(&self, target: &Target) -> impl Future<Output = Answer> + Send + 'static {
        let slices = locked(&self.0);
        let control = Arc::clone(&slices.control);
        let addresses: Vec<SocketAddr> = match target {
            Target::Address(address) => vec![*address],
            Target::Name { host, port } => {
                let allowed =
                    control.answers.get(host).into_iter().filter(|ip| slices.names.allow(target, *ip));
                allowed.map(|ip| SocketAddr::new(ip, *port)).collect()
            }
        };
        drop(slices);
        async move { reach(&addresses, |to| reached(to, Arc::clone(&control.process))).await }
    }
}

/// The ranges in which the host names of other clusters' gateways may resolve.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<Target, Vec<Ranges>>);

impl Names {
    fn collect(here: &Here, slices: &[Slice]) -> Names {
        let mut names: HashMap<Target, Vec<Ranges>> = HashMap::new();
        for slice in slices.iter().filter(|slice| !here.is_own(&slice.key.cluster)) {
            let Some(offer) = &slice.offer else { continue };
            for name in here.leads_to(slice).filter(|target| matches!(target, Target::Name { .. })) {
                let all = names.entry(name.clone()).or_default();
                if !all.contains(&offer.gateway_ranges) {
                    all.push(offer.gateway_ranges.clone());
                }
            }
        }
        Names(names)
    }

    /// Whether a resolved address may be probed. Names of the own cluster may resolve anywhere.
    fn allow(&self, name: &Target, ip: IpAddr) -> bool {
        self.0.get(name).is_none_or(|all| all.iter().any(|ranges| ranges.allow(ip)))
    }
}

async fn reached(to: SocketAddr, process: Arc<Process>) -> io::Result<()> {
    dial::plain(to, &process).await.map(drop)
}

impl Slices {
    /// Applies probe results and returns the addresses to probe now.
    fn advance_probes(&mut self, answers: Vec<(Target, Answer)>, most: usize, now: Instant) -> Vec<Target> {
        if self.unreachable_since.is_none() {
            return Vec::new();
        }
        // The slices cannot change while the agent is unreachable: the addresses are collected once.
        let is_new = self.probes.is_none();
        let mut probes = self.probes.take().unwrap_or_else(|| {
            let mut probes = Probes::default();
            let slices: Vec<_> = self.probed().collect();
            probes.want(&slices.iter().flat_map(|slice| self.here.leads_to(slice)).cloned().collect(), now);
            self.names = Names::collect(&self.here, &slices);
            probes
        });
        let mut changed = HashSet::new();
        for (target, answer) in answers {
            if probes.answered(&target, answer.clone(), now) {
                tracing::warn!(address = %target, ?answer, "probe result changed while the agent is unreachable");
                changed.insert(target);
            }
        }
        let due = probes.next(most, now);
        if is_new || !changed.is_empty() {
            self.mark(changed, &probes);
            self.report_probes(&probes, now);
        }
        self.probes = Some(probes);
        due
    }

    /// Returns the slices with `stale: probe`.
    fn probed(&self) -> impl Iterator<Item = Slice> {
        let probed = self.store.limited().filter(|(_, rule)| *rule == Staleness::Probe);
        probed.filter_map(|(key, _)| self.store.get(key))
    }

    /// Returns the probed hosts that use one of these addresses.
    fn hosts_leading_to(&self, targets: &HashSet<Target>) -> BTreeSet<HostPattern> {
        let leads_there = |slice: &Slice| self.here.leads_to(slice).any(|target| targets.contains(target));
        self.probed().filter(leads_there).map(|slice| slice.key.host).collect()
    }

    /// Applies addresses that went down or came up.
    fn mark(&mut self, changed: HashSet<Target>, probes: &Probes) {
        let touched = self.hosts_leading_to(&changed);
        for target in changed {
            if probes.is_down(&target) {
                self.here.down.insert(target);
            } else {
                self.here.down.remove(&target);
            }
        }
        if !touched.is_empty() {
            self.rebuild(touched);
        }
    }

    /// The agent is reachable again: clears all probe results and returns the affected hosts.
    pub(super) fn clear_probe_results(&mut self) -> BTreeSet<HostPattern> {
        self.probes = None;
        let down = std::mem::take(&mut self.here.down);
        if down.is_empty() { BTreeSet::new() } else { self.hosts_leading_to(&down) }
    }

    fn report_probes(&self, probes: &Probes, now: Instant) {
        let down = probes.down(now, SystemTime::now());
        let probed = (probes.asked() > 0).then(|| Probed {
            addresses: probes.asked(),
            down: down.len(),
            listed: down.into_iter().take(LISTED).map(unreached).collect(),
        });
        self.control.following.send_modify(|following| following.probed = probed);
    }
}

fn unreached(down: Down) -> Unreached {
    Unreached { address: down.address.to_string(), since: down.since, why: down.why }
}
