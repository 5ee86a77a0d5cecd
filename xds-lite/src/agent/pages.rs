//! Renders the agent's admin pages: clients and what they acknowledged, exports and imports, and why a host is not
//! exported or imported. Serving them over HTTP is `admin`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hyper::StatusCode;
use isthmus_certs::{DenyList, Trust, input};
use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest as _, Sha256};

use crate::admin::{Pages, Refusal};
use isthmus_ads::shared::Follower;
use isthmus_grpc::budget::Budgets;
use isthmus_health::mtls::{MtlsCheck, Subject};
use isthmus_health::schedule::Down;
use isthmus_model::Usage;
use isthmus_model::admin::agent::{
    self, Client, Deregistered, Explanation, ImportedSlice, Lease, NotExported, Status,
};
use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_model::slice::{Cluster, Slice};
use isthmus_registry::imports::{ImportStatus, PeerUsage};
use isthmus_registry::registered::lease::LeaseId;
use isthmus_registry::registered::registrar::Registrar;
use isthmus_registry::registered::registration::Registration;

use super::config::Settings;
use super::explain::explain;
use super::issuing::Issuing;
use super::mtls_check::REMEDY;
use super::peer::{BundleStatus, Contact, seconds};
use super::state::State;
use super::{locked, metrics};

/// Entries of a list in status, at most.
const LISTED: usize = 1_000;
/// Shortest registration token, in characters.
const SHORTEST_TOKEN: usize = 16;
/// Largest token file, in bytes.
const LARGEST_TOKEN: u64 = 4 << 10;

/// The pages of one agent.
pub(super) struct AdminPages {
    pub(super) budgets: Arc<Budgets>,
    pub(super) settings: Arc<Settings>,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) issuing: Option<Arc<Issuing>>,
    pub(super) trust: Trust,
}

impl AdminPages {
    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

impl Pages for AdminPages {
    fn status(&self) -> Status {
        let state = self.state();
        let held_back = state.held().take(LISTED).map(|(host, why)| NotExported { host: host.to_string(), why });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.settings.cluster.to_string(),
            network: self.settings.network.clone(),
            registry: agent::Registry {
                hosts: state.services.len() as u64,
                registered: state.registered.count() as u64,
                registrars: registrars(&state),
                problems: state.problems.clone(),
            },
            exports: agent::Exports {
                count: state.own().filter(|slice| slice.is_exported()).count() as u64,
                held_back: held_back.collect(),
            },
            imports: imports(&state),
            trust: trusted(&self.trust),
            peers: state.peers.iter().map(|(cluster, contact)| peer(&state, cluster, contact)).collect(),
            state: agent::State {
                stores: state.health().into_iter().map(Into::into).collect(),
                problems: state.state_problems.clone(),
            },
            issuing: self.issuing.as_ref().map(|issuing| issuing.page()),
            nodes: clients(&state),
            budgets: budgets(&self.budgets),
            envoys: state.views.envoys.as_ref().map(|envoys| envoys.problems()),
            grpc: state.views.envoys.as_ref().map(|envoys| envoys.problems_of_grpc()),
        }
    }

    fn explain(&self, host: &str) -> Result<Explanation, String> {
        explain(&self.state(), host)
    }

    fn holder(&self, token: &str) -> Option<Registrar> {
        let tokens = &self.settings.registration.tokens;
        let shown = Sha256::digest(token);
        let is_meant = |file: &Path| match input::read_text(file, LARGEST_TOKEN) {
            // Compares hashes, so that the time taken reveals nothing of the token.
            Ok(text) if text.trim().len() < SHORTEST_TOKEN => {
                tracing::error!(file = %file.display(), "ignoring a token of registration.tokens with less than {SHORTEST_TOKEN} characters; make one with `openssl rand -hex 32`");
                false
            }
            Ok(text) => Sha256::digest(text.trim()) == shown,
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "cannot read a token of registration.tokens");
                false
            }
        };
        let holder = tokens.iter().find(|(_, file)| is_meant(file));
        holder.map(|(name, _)| Registrar::Token(name.clone()))
    }

    fn register(&self, body: &[u8], by: &Registrar) -> Result<Lease, Refusal> {
        let registration = Registration::parse(body)?;
        let id = LeaseId::random().map_err(|error| Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            why: format!("cannot create a lease: {error}"),
        })?;
        Ok(self.state().register(registration, by, id, Instant::now())?.page())
    }

    fn heartbeat(&self, body: &[u8]) -> Result<Lease, Refusal> {
        Ok(self.state().registered.heartbeat(&LeaseId::from_body(body)?, Instant::now())?.page())
    }

    fn deregister(&self, body: &[u8]) -> Result<Deregistered, Refusal> {
        let gone = self.state().registered.deregister(&LeaseId::from_body(body)?)?;
        Ok(Deregistered { deregistered: gone.to_string() })
    }

    /// Always: the registry is read before the admin port is served.
    fn ready(&self) -> bool {
        true
    }

    fn metrics(&self) -> String {
        metrics::text(&self.state(), self.issuing.as_deref().map(Issuing::tally), &self.budgets)
    }
}

/// The number of registrations of each user and token.
fn registrars(state: &State) -> BTreeMap<String, u64> {
    state.registered.registrars().iter().map(|(by, count)| (by.to_string(), *count as u64)).collect()
}

/// Slices of other clusters, and probes of their addresses where these are unreachable (`stale: probe`).
fn imports(state: &State) -> agent::Slices {
    let all = state.imports.shown();
    let (accepted, quarantined): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|import| import.quarantined.is_none());
    let down = state.imports.probes().down(Instant::now(), SystemTime::now());
    agent::Slices {
        count: accepted.len() as u64,
        imported: accepted.into_iter().take(LISTED).map(imported).collect(),
        held_back: quarantined.into_iter().take(LISTED).map(imported).collect(),
        probed: agent::Probed {
            addresses: state.imports.probes().asked() as u64,
            down: down.len() as u64,
            listed: down.iter().take(LISTED).map(unreached).collect(),
        },
    }
}

fn imported(import: ImportStatus) -> ImportedSlice {
    let ImportStatus { cluster, host, quarantined } = import;
    ImportedSlice { cluster: cluster.to_string(), host: host.to_string(), held: quarantined }
}

pub(super) fn unreached(down: &Down) -> agent::Down {
    agent::Down { address: down.address.to_string(), since: seconds(down.since), why: down.why.clone() }
}

/// The bundle and deny-list of the own trust domain, and trust files that are not used.
fn trusted(trust: &Trust) -> agent::Trust {
    let now = trust.current();
    let domain = now.identity.id().trust_domain();
    agent::Trust {
        domain: domain.to_string(),
        sequence: now.bundles.get(domain).map(|bundle| bundle.sequence),
        deny_list: now.bundles.denied(domain).map(DenyList::sequence),
        refused: trust.refused(),
    }
}

/// Contact with the agent of another cluster, and which of the own bundles it has acknowledged.
fn peer(state: &State, cluster: &Cluster, contact: &Contact) -> (String, agent::Peer) {
    let BundleStatus { taken, refusals, refusal, advice } = contact.bundle.clone();
    let bundles = &state.views.bundles;
    let acknowledged = bundles.word_of(cluster).map(|(offered, taken)| agent::Acknowledged {
        sequence: taken.map(|taken| taken.edition.sequence),
        present: offered.map(|offered| offered.sequence),
        is_present: bundles.is_present(cluster),
        refusal: bundles.refusal_by(cluster),
    });
    let page = agent::Peer {
        address: contact.address.clone(),
        trust_domain: contact.trust_domain.to_string(),
        connected: contact.connected,
        error: contact.error.clone(),
        since: seconds(contact.since),
        refusals: contact.refusals,
        refusal: contact.refusal.clone(),
        bundle: agent::BundleUpdates { taken, refusals, refusal, advice },
        offers: state.imports.usage(cluster).map(offers),
        acknowledged,
    };
    (cluster.to_string(), page)
}

fn offers(usage: PeerUsage) -> agent::Offers {
    let PeerUsage { slices, bytes, names, not_granted, not_granted_unlisted } = usage;
    agent::Offers { slices, bytes, names, not_granted: not_granted as u64, not_granted_unlisted }
}

/// Who follows this agent, by kind.
fn clients(state: &State) -> BTreeMap<String, Vec<Client>> {
    let client = |Follower { peer, position, settled, refusals, refusal }| Client {
        peer,
        position,
        settled,
        refusals,
        refusal,
    };
    let of_kind = |(kind, followers): (&str, Vec<Follower>)| {
        (kind.to_owned(), followers.into_iter().map(client).collect())
    };
    state.followers().into_iter().map(of_kind).collect()
}

/// What each client uses of each resource.
fn budgets(budgets: &Budgets) -> BTreeMap<String, BTreeMap<String, BTreeMap<String, Usage>>> {
    let named = |usages: BTreeMap<&str, Usage>| {
        usages.into_iter().map(|(resource, usage)| (resource.to_owned(), usage)).collect()
    };
    let of_kind = |(kind, clients): (&str, BTreeMap<String, BTreeMap<&'static str, Usage>>)| {
        (kind.to_owned(), clients.into_iter().map(|(client, usages)| (client, named(usages))).collect())
    };
    budgets.report().into_iter().map(of_kind).collect()
}

impl State {
    /// Hosts that an export rule selects and that are not exported, and why.
    pub(super) fn held(&self) -> impl Iterator<Item = (&HostPattern, String)> {
        self.services.iter().filter_map(|(host, ports)| {
            self.export_of(host, ports)?;
            Some((host, self.why_unfit(host, ports)?))
        })
    }

    /// Why a host that an export rule selects is not exported; none: it is.
    pub(super) fn why_unfit(&self, host: &HostPattern, ports: &[Service]) -> Option<String> {
        if self.offer_of(host).is_some_and(Slice::is_exported) {
            return None;
        }
        let addresses =
            ports.iter().flat_map(|port| &port.endpoints).map(|endpoint| endpoint.address.clone());
        let proofs = addresses
            .map(|address| (address.clone(), self.mtls_checks.of(&Subject { host: host.clone(), address })));
        let seen = proofs.map(|(address, proof)| match proof {
            MtlsCheck::NotRequired(seen) => format!("endpoint {address} {seen}"),
            MtlsCheck::Unreachable(why) => format!("endpoint {address} could not be checked: {why}"),
            MtlsCheck::Awaited | MtlsCheck::Required => format!("endpoint {address} is not checked yet"),
        });
        let seen: Vec<_> = seen.take(10).collect();
        Some(format!(
            "not_mtls: no endpoint is known to require a client certificate: {}; {REMEDY}",
            seen.join("; ")
        ))
    }
}
