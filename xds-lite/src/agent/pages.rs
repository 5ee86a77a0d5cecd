//! Renders the agent's admin pages: clients and what they acknowledged, exports and imports, and why a host is not
//! exported or imported. Serving them over HTTP is `admin`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use hyper::StatusCode;
use isthmus_certs::{DenyList, Trust, input};
use sha2::{Digest as _, Sha256};

use crate::admin::{ExplainQuestion, Pages, Refusal};
use isthmus_ads::shared::Follower;
use isthmus_grpc::budget::Budgets;
use isthmus_health::schedule::Down;
use isthmus_model::Usage;
use isthmus_model::admin::agent::{
    self, Client, Deregistered, Explanation, ImportedSlice, Lease, Matrix, NotExported, Status,
};
use isthmus_model::slice::Cluster;
use isthmus_registry::imports::{ImportStatus, PeerUsage};
use isthmus_registry::registered::lease::LeaseId;
use isthmus_registry::registered::registrar::Registrar;
use isthmus_registry::registered::registration::Registration;

use super::config::Settings;
use super::explain::explain;
use super::issuing::Issuing;
use super::names;
use super::own_services;
use super::peer::{BundleStatus, Contact, seconds};
use super::peers;
use super::views::Views;
use super::{Owners, dns_server, metrics};
use crate::dns::Server;

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
    pub(super) owners: Owners,
    /// The registry has been read.
    pub(super) is_ready: Arc<AtomicBool>,
    pub(super) issuing: Option<Arc<Issuing>>,
    pub(super) trust: Trust,
    pub(super) dns: Option<Arc<Server>>,
}

impl AdminPages {
    /// Registrations are compared with the registry's files, which must have been read.
    fn once_ready(&self) -> Result<(), Refusal> {
        if self.ready() {
            return Ok(());
        }
        let why = "the agent is still reading its registry; try again in a few seconds".to_owned();
        Err(Refusal { status: StatusCode::SERVICE_UNAVAILABLE, why })
    }
}

impl Pages for AdminPages {
    fn status(&self) -> Status {
        let Owners { own, peers, directory, views, names, reports } = &self.owners;
        let (own, peers) = (own.summary(LISTED), peers.summary(LISTED));
        let edit = views.traffic.edit();
        let held_back =
            own.held.iter().map(|(host, why)| NotExported { host: host.to_string(), why: why.clone() });
        let stores = directory.reports().into_iter().chain(views.bundles.report()).chain(names.report());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self.settings.cluster.to_string(),
            network: self.settings.network.clone(),
            refused_edit: edit.refused,
            needs_restart: edit.needs_restart,
            registry: agent::Registry {
                hosts: own.hosts as u64,
                registered: own.registered as u64,
                registrars: registrars(&own),
                problems: own.problems.clone(),
            },
            exports: agent::Exports { count: own.exported as u64, held_back: held_back.collect() },
            imports: imports(&peers),
            trust: trusted(&self.trust),
            peers: peers
                .contacts
                .iter()
                .map(|(cluster, contact)| peer(&peers, views, cluster, contact))
                .collect(),
            state: agent::State { stores: stores.collect(), problems: directory.problems() },
            issuing: self.issuing.as_ref().map(|issuing| issuing.page()),
            names: names.is_on().then(|| named(names.summary(), self.dns.as_deref())),
            nodes: clients(views),
            reports: reports.page(),
            budgets: budgets(&self.budgets),
            envoys: views.envoys.as_ref().map(|envoys| envoys.problems()),
            grpc: views.envoys.as_ref().map(|envoys| envoys.problems_of_grpc()),
        }
    }

    fn explain(&self, question: &ExplainQuestion) -> Result<Explanation, String> {
        explain(&self.owners, question)
    }

    fn matrix(&self) -> Matrix {
        self.owners.reports.page()
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
        self.once_ready()?;
        let registration = Registration::parse(body)?;
        let id = LeaseId::random().map_err(|error| Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            why: format!("cannot create a lease: {error}"),
        })?;
        Ok(self.owners.own.register(registration, by, id, Instant::now())?.page())
    }

    fn heartbeat(&self, body: &[u8]) -> Result<Lease, Refusal> {
        self.once_ready()?;
        Ok(self.owners.own.heartbeat(&LeaseId::from_body(body)?, Instant::now())?.page())
    }

    fn deregister(&self, body: &[u8]) -> Result<Deregistered, Refusal> {
        self.once_ready()?;
        let gone = self.owners.own.deregister(&LeaseId::from_body(body)?)?;
        Ok(Deregistered { deregistered: gone.to_string() })
    }

    fn ready(&self) -> bool {
        self.is_ready.load(Relaxed)
    }

    fn metrics(&self) -> String {
        metrics::text(
            &self.owners,
            self.dns.as_deref(),
            self.issuing.as_deref().map(Issuing::tally),
            &self.budgets,
        )
    }
}

/// The number of registrations of each user and token.
fn registrars(own: &own_services::Listed) -> BTreeMap<String, u64> {
    own.registrars.iter().map(|(by, count)| (by.to_string(), *count as u64)).collect()
}

/// Slices of other clusters, and probes of their addresses where these are unreachable (`stale: probe`).
fn imports(peers: &peers::Listed) -> agent::Slices {
    agent::Slices {
        count: peers.imported_count as u64,
        imported: peers.imported.iter().map(imported).collect(),
        held_back: peers.quarantined.iter().map(imported).collect(),
        probed: agent::Probed {
            addresses: peers.probed as u64,
            down: peers.down_count as u64,
            listed: peers.down.iter().map(unreached).collect(),
        },
    }
}

fn imported(import: &ImportStatus) -> ImportedSlice {
    let ImportStatus { cluster, host, quarantined } = import;
    ImportedSlice { cluster: cluster.to_string(), host: host.to_string(), held: quarantined.clone() }
}

pub(super) fn unreached(down: &Down) -> agent::Down {
    agent::Down { address: down.address.to_string(), since: seconds(down.since), why: down.why.clone() }
}

/// Names, and the server that answers for them.
fn named(summary: names::Summary, dns: Option<&Server>) -> agent::Names {
    agent::Names {
        count: summary.names as u64,
        exhausted: summary.exhausted_count as u64,
        without: summary.exhausted.into_values().collect(),
        collisions: summary.collisions.into_iter().collect(),
        unsaved: summary.unsaved,
        dns: dns.map(dns_server::status),
    }
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
fn peer(peers: &peers::Listed, views: &Views, cluster: &Cluster, contact: &Contact) -> (String, agent::Peer) {
    let BundleStatus { taken, refusals, refusal, advice } = contact.bundle.clone();
    let bundles = &views.bundles;
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
        offers: peers.usage.get(cluster).copied().map(offers),
        acknowledged,
    };
    (cluster.to_string(), page)
}

fn offers(usage: PeerUsage) -> agent::Offers {
    let PeerUsage { slices, bytes, names, not_granted, not_granted_unlisted } = usage;
    agent::Offers { slices, bytes, names, not_granted: not_granted as u64, not_granted_unlisted }
}

/// Who follows this agent, by kind.
fn clients(views: &Views) -> BTreeMap<String, Vec<Client>> {
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
    views.followers().into_iter().map(of_kind).collect()
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
