//! Exports the slices of one cluster as tables for a stock Envoy, its east-west gateway: one Listener with a filter
//! chain for each service's port, and for each of these a Cluster and its endpoints. TLS is passed through and never
//! terminated. Besides there is a Listener for each name, for gRPC clients without a proxy, with the same clusters.
//! Serving these tables is `ads`.
//!
//! What Envoy cannot express is left out and reported: ports and endpoints for which a gateway terminates TLS,
//! endpoints by host name, `outbound_` names of `*.suffix` hosts, and all timeouts but connect, idle and max_duration.

mod chain;
mod claims;
mod encode;
mod exposure;
mod grpc;
mod refused;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use isthmus_ads::shared::Shared;
use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Cluster, Slice};
use isthmus_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER};

use chain::{Chain, Upstream, upstreams};
use claims::{Named, name};
use encode::listener;
use grpc::{Direct, direct};
use refused::{is_pattern, owned, refused};

/// The name of the Listener.
pub const EAST_WEST: &str = "isthmus-east-west";
/// Filter chains, at most. A Listener is one resource, sent as a whole whenever a name in it changes: with more chains
/// that costs too much. An instance with its own name takes a chain, too.
pub const MAX_CHAINS: usize = 10_000;
/// Removed clusters that are kept for Envoys that have not answered yet; with more they are dropped in any case.
const MAX_RETIRED: usize = 1_024;

/// The tables of one cluster's Envoys.
#[derive(Debug)]
pub struct Adapter {
    tables: Arc<Tables>,
}

#[derive(Debug)]
struct Tables {
    cluster: Cluster,
    gateways: Vec<String>,
    address: SocketAddr,
    most: usize,
    listeners: Arc<Shared>,
    /// Listeners for gRPC clients.
    direct: Arc<Shared>,
    clusters: Arc<Shared>,
    endpoints: Arc<Shared>,
    /// Held while tables are computed; pages do not take it.
    state: Mutex<State>,
    /// What is left out, as pages show it; held for a moment.
    problems: Mutex<Problems>,
}

#[derive(Debug, Default)]
struct Problems {
    envoy: Vec<String>,
    grpc: Vec<String>,
}

#[derive(Debug, Default)]
struct State {
    hosts: BTreeMap<HostPattern, Vec<Upstream>>,
    /// All names of each host, routed or not.
    owned: BTreeMap<HostPattern, BTreeSet<String>>,
    /// Some chain has a `*.suffix`: then names without a route need a chain, too.
    has_patterns: bool,
    /// Problems of each host's slice.
    wrong: BTreeMap<HostPattern, Vec<String>>,
    /// Problems between slices.
    clashes: Vec<String>,
    /// Names of Envoy's clusters that the Listener uses.
    live: BTreeSet<String>,
    /// Names of clusters that the Listener no longer uses, and some Envoy's may still.
    retired: BTreeSet<String>,
}

impl Adapter {
    /// Empty tables for a cluster's Envoys, which listen on `listener_address` (usually port 15443). `gateways` are
    /// their names: a service exposed on some gateways only is included if these are all among them.
    #[must_use]
    pub fn new(cluster: Cluster, gateways: Vec<String>, listener_address: SocketAddr) -> Adapter {
        Adapter::with_at_most(MAX_CHAINS, cluster, gateways, listener_address)
    }

    fn with_at_most(most: usize, cluster: Cluster, gateways: Vec<String>, address: SocketAddr) -> Adapter {
        // The registry is read as a whole first: a name that it does not have is gone.
        let view = || Arc::new(Shared::new(|_| true));
        let tables = Arc::new(Tables {
            cluster,
            gateways,
            address,
            most,
            listeners: view(),
            direct: view(),
            clusters: view(),
            endpoints: view(),
            state: Mutex::default(),
            problems: Mutex::default(),
        });
        for listeners in [&tables.listeners, &tables.direct] {
            let weak: Weak<Tables> = Arc::downgrade(&tables);
            listeners.when_settled(move || {
                if let Some(tables) = weak.upgrade() {
                    tables.sweep(&mut tables.state());
                }
            });
        }
        Adapter { tables }
    }

    /// Applies new, changed and withdrawn slices. Slices of other clusters are ignored: an east-west gateway reaches its
    /// own cluster only.
    pub fn change(&self, slices: &[Slice]) {
        self.tables.change(slices);
    }

    /// The view of Listeners, Clusters or assignments; none for other types.
    #[must_use]
    pub fn view(&self, type_url: &str) -> Option<Arc<Shared>> {
        match type_url {
            LISTENER => Some(Arc::clone(&self.tables.listeners)),
            CLUSTER => Some(Arc::clone(&self.tables.clusters)),
            ENDPOINTS => Some(Arc::clone(&self.tables.endpoints)),
            _ => None,
        }
    }

    /// The view of a type for clients that subscribe by name, where it differs: gRPC clients have a Listener for each
    /// `HOST:PORT`, which an Envoy, which subscribes to all Listeners, must not receive.
    #[must_use]
    pub fn named(&self, type_url: &str) -> Option<Arc<Shared>> {
        (type_url == LISTENER).then(|| Arc::clone(&self.tables.direct))
    }

    /// What is in Envoy's tables and left out for gRPC clients, and why.
    #[must_use]
    pub fn problems_of_grpc(&self) -> Vec<String> {
        self.tables.problems().grpc.clone()
    }

    /// What is left out now, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.tables.problems().envoy.clone()
    }
}

impl Tables {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn problems(&self) -> MutexGuard<'_, Problems> {
        self.problems.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, slices: &[Slice]) {
        let mut state = self.state();
        let state = &mut *state;
        let mut changed = BTreeSet::new();
        let (mut names_changed, mut problems_changed) = (false, false);
        for slice in slices.iter().filter(|slice| slice.key.cluster == self.cluster) {
            let host = &slice.key.host;
            let offer = slice.offer.as_ref();
            let (now, wrong) = offer.map(|offer| upstreams(host, offer, &self.gateways)).unwrap_or_default();
            let before = state.hosts.insert(host.clone(), now).unwrap_or_default();
            names_changed |=
                !chains(&before).eq(chains(state.hosts.get(host).map_or(&[][..], Vec::as_slice)));
            let names = offer.map(|offer| owned(host, offer)).unwrap_or_default();
            let had = state.owned.insert(host.clone(), names).unwrap_or_default();
            names_changed |= state.has_patterns && Some(&had) != state.owned.get(host);
            let before = state.wrong.insert(host.clone(), wrong).unwrap_or_default();
            problems_changed |= state.wrong.get(host) != Some(&before);
            changed.insert(host.clone());
        }
        state.hosts.retain(|_, upstreams| !upstreams.is_empty());
        state.owned.retain(|_, names| !names.is_empty());
        state.wrong.retain(|_, wrong| !wrong.is_empty());
        if names_changed {
            self.rebuild_listener(state, &changed);
        } else {
            self.renew(state, |host, name| changed.contains(host) && state.live.contains(name));
        }
        if names_changed || problems_changed {
            self.problems().envoy = state.wrong.values().flatten().chain(&state.clashes).cloned().collect();
        }
        self.sweep(state);
    }

    /// Rebuilds the Listener after names have changed. Clusters and endpoints change before it; clusters that it no
    /// longer uses are removed once every Envoy has accepted it.
    fn rebuild_listener(&self, state: &mut State, changed: &BTreeSet<HostPattern>) {
        let all = state.hosts.values().flatten().map(|upstream| &upstream.chain);
        let Named { mut chains, mut clashes } = name(all, &state.live, self.most);
        let mut nowhere = refused(&state.owned, &chains);
        if nowhere.len() > self.most {
            clashes.push(format!(
                "names of the form *.suffix are left out of Envoy's tables: {} names below them have no route, and the tables hold at most {} of those; use isthmus-gateway, which has no such limit",
                nowhere.len(), self.most
            ));
            nowhere = BTreeSet::new();
            chains.iter_mut().for_each(|chain| chain.names.retain(|name| !is_pattern(name)));
            chains.retain(|chain| !chain.names.is_empty());
        }
        let has_patterns = chains.iter().flat_map(|chain| &chain.names).any(|name| is_pattern(name));
        let live: BTreeSet<_> = chains.iter().map(|chain| chain.cluster.clone()).collect();
        let bytes = listener(self.address, &chains, &nowhere);
        let Direct { listeners, wrong } = direct(&chains);
        self.renew(state, |host, name| {
            live.contains(name) && (changed.contains(host) || !state.live.contains(name))
        });
        self.listeners.change(|view| {
            // Envoy refuses a Listener without chains.
            if live.is_empty() {
                view.remove(EAST_WEST)
            } else {
                view.set(EAST_WEST, bytes)
            };
        });
        self.direct.change(|view| {
            let all = view.iter().map(|(name, _)| Arc::clone(name));
            let gone: Vec<_> = all.filter(|name| !listeners.contains_key(&**name)).collect();
            for name in gone {
                view.remove(&name);
            }
            for (name, bytes) in listeners {
                view.set(&name, bytes);
            }
        });
        self.problems().grpc = wrong;
        state.retired.extend(state.live.difference(&live).cloned());
        state.retired.retain(|name| !live.contains(name));
        (state.live, state.clashes, state.has_patterns) = (live, clashes, has_patterns);
    }

    fn renew(&self, state: &State, is_meant: impl Fn(&HostPattern, &str) -> bool) {
        let all =
            state.hosts.iter().flat_map(|(host, upstreams)| upstreams.iter().map(move |each| (host, each)));
        let meant: Vec<_> = all
            .filter(|(host, upstream)| is_meant(host, &upstream.chain.cluster))
            .map(|(_, upstream)| upstream)
            .collect();
        if meant.is_empty() {
            return;
        }
        self.clusters.change(|view| {
            for upstream in &meant {
                view.set(&upstream.chain.cluster, upstream.settings.clone());
            }
        });
        self.endpoints.change(|view| {
            for upstream in &meant {
                view.set(&upstream.chain.cluster, upstream.endpoints.clone());
            }
        });
    }

    /// Removes clusters that no Envoy's Listener uses any more.
    fn sweep(&self, state: &mut State) {
        let is_taken = self.listeners.is_settled() && self.direct.is_settled();
        let may_go = is_taken || state.retired.len() > MAX_RETIRED;
        if state.retired.is_empty() || !may_go {
            return;
        }
        let retired = std::mem::take(&mut state.retired);
        for view in [&self.endpoints, &self.clusters] {
            view.change(|view| {
                for name in &retired {
                    view.remove(name);
                }
            });
        }
    }
}

fn chains(upstreams: &[Upstream]) -> impl Iterator<Item = &Chain> {
    upstreams.iter().map(|upstream| &upstream.chain)
}
