//! Renders the agent's admin pages: clients and what they acknowledged, exports and imports, and why a host is not
//! exported or imported. Serving them over HTTP is `admin`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use hyper::StatusCode;
use isthmus_certs::{DenyList, Trust, input};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::admin::{Pages, Refusal};
use isthmus_grpc::budget::Budgets;
use isthmus_health::schedule::Down;
use isthmus_model::slice::Cluster;
use isthmus_registry::registered::lease::LeaseId;
use isthmus_registry::registered::registrar::Registrar;
use isthmus_registry::registered::registration::Registration;

use super::config::Settings;
use super::explain::explain;
use super::issuing::Issuing;
use super::own_services;
use super::peer::{Contact, seconds};
use super::peers;
use super::views::Views;
use super::{Owners, metrics};

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
    fn status(&self) -> Value {
        let Owners { own, peers, directory, views } = &self.owners;
        let (own, peers) = (own.summary(LISTED), peers.summary(LISTED));
        let held: Vec<_> = own.held.iter().map(|(host, why)| json!({ "host": host, "why": why })).collect();
        let stores: Vec<_> = directory.reports().into_iter().chain(views.bundles.report()).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cluster": self.settings.cluster,
            "network": self.settings.network,
            "registry": {
                "hosts": own.hosts,
                "registered": own.registered,
                "registrars": registrars(&own),
                "problems": own.problems,
            },
            "exports": {
                "count": own.exported,
                "held_back": held,
            },
            "imports": {
                "count": peers.imported_count,
                "imported": peers.imported,
                "held_back": peers.quarantined,
                "probed": probed(&peers),
            },
            "trust": trusted(&self.trust),
            "peers": contacts(&peers, views),
            "state": {
                "stores": stores,
                "problems": directory.problems(),
            },
            "issuing": self.issuing.as_ref().map(|issuing| issuing.shown()),
            "nodes": views.followers(),
            "budgets": self.budgets.report(),
            "envoys": views.envoys.as_ref().map(|envoys| envoys.problems()),
            "grpc": views.envoys.as_ref().map(|envoys| envoys.problems_of_grpc()),
        })
    }

    fn explain(&self, host: &str) -> Result<Value, String> {
        explain(&self.owners, host)
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

    fn register(&self, body: &[u8], by: &Registrar) -> Result<Value, Refusal> {
        self.once_ready()?;
        let registration = Registration::parse(body)?;
        let id = LeaseId::random().map_err(|error| Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            why: format!("cannot create a lease: {error}"),
        })?;
        Ok(self.owners.own.register(registration, by, id, Instant::now())?.page())
    }

    fn heartbeat(&self, body: &[u8]) -> Result<Value, Refusal> {
        self.once_ready()?;
        Ok(self.owners.own.heartbeat(&LeaseId::from_body(body)?, Instant::now())?.page())
    }

    fn deregister(&self, body: &[u8]) -> Result<Value, Refusal> {
        self.once_ready()?;
        let gone = self.owners.own.deregister(&LeaseId::from_body(body)?)?;
        Ok(json!({ "deregistered": gone.to_string() }))
    }

    fn ready(&self) -> bool {
        self.is_ready.load(Relaxed)
    }

    fn metrics(&self) -> String {
        metrics::text(&self.owners, self.issuing.as_deref().map(Issuing::tally), &self.budgets)
    }
}

/// The number of registrations of each user and token.
fn registrars(own: &own_services::Listed) -> Value {
    own.registrars.iter().map(|(by, count)| (by.to_string(), json!(count))).collect()
}

/// The bundle and deny-list of the own trust domain, and trust files that are not used.
fn trusted(trust: &Trust) -> Value {
    let now = trust.current();
    let domain = now.identity.id().trust_domain();
    json!({
        "domain": domain,
        "sequence": now.bundles.get(domain).map(|bundle| bundle.sequence),
        "deny_list": now.bundles.denied(domain).map(DenyList::sequence),
        "refused": trust.refused(),
    })
}

/// Contact with other clusters' agents, and which of the own bundles they have acknowledged.
fn contacts(peers: &peers::Listed, views: &Views) -> Value {
    let peer = |(cluster, contact): (&Cluster, &Contact)| {
        let mut shown = json!(contact);
        if let (Value::Object(shown), Some(held)) = (&mut shown, peers.usage.get(cluster)) {
            shown.insert("offers".to_owned(), json!(held));
        }
        if let (Value::Object(shown), Some((offered, taken))) = (&mut shown, views.bundles.word_of(cluster)) {
            let word = json!({
                "sequence": taken.as_ref().map(|taken| taken.edition.sequence),
                "present": offered.as_ref().map(|offered| offered.sequence),
                "is_present": views.bundles.is_present(cluster),
                "refusal": views.bundles.refusal_by(cluster),
            });
            shown.insert("acknowledged".to_owned(), word);
        }
        (cluster.to_string(), shown)
    };
    peers.contacts.iter().map(peer).collect()
}

/// Probes of unreachable clusters' addresses (`stale: probe`).
fn probed(peers: &peers::Listed) -> Value {
    json!({
        "addresses": peers.probed,
        "down": peers.down_count,
        "listed": peers.down.iter().map(unreached).collect::<Vec<_>>(),
    })
}

pub(super) fn unreached(down: &Down) -> Value {
    json!({ "address": down.address.to_string(), "since": seconds(down.since), "why": down.why })
}
