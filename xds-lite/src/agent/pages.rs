//! Renders the agent's admin pages: clients and what they acknowledged, exports and imports, and why a host is not
//! exported or imported. Serving them over HTTP is `admin`.

use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hyper::StatusCode;
use isthmus_certs::{DenyList, Trust, input};
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::admin::{Pages, Refusal};
use isthmus_grpc::budget::Budgets;
use isthmus_health::mtls::{MtlsCheck, Subject};
use isthmus_health::schedule::Down;
use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_model::slice::{Cluster, Slice};
use isthmus_registry::registered::lease::LeaseId;
use isthmus_registry::registered::registrar::Registrar;
use isthmus_registry::registered::registration::Registration;

use super::config::Settings;
use super::explain::explain;
use super::issuing::Issuing;
use super::mtls_check::REMEDY;
use super::peer::{Contact, seconds};
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
    fn status(&self) -> Value {
        let state = self.state();
        let held: Vec<_> =
            state.held().take(LISTED).map(|(host, why)| json!({ "host": host, "why": why })).collect();
        let imports = state.imports.shown();
        let (accepted, quarantined): (Vec<_>, Vec<_>) =
            imports.into_iter().partition(|import| import.quarantined.is_none());
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "cluster": self.settings.cluster,
            "network": self.settings.network,
            "registry": {
                "hosts": state.services.len(),
                "registered": state.registered.count(),
                "registrars": registrars(&state),
                "problems": state.problems,
            },
            "exports": {
                "count": state.own().filter(|slice| slice.is_exported()).count(),
                "held_back": held,
            },
            "imports": {
                "count": accepted.len(),
                "imported": accepted.iter().take(LISTED).collect::<Vec<_>>(),
                "held_back": quarantined.iter().take(LISTED).collect::<Vec<_>>(),
                "probed": probed(&state),
            },
            "trust": trusted(&self.trust),
            "peers": peers(&state),
            "state": {
                "stores": state.health(),
                "problems": state.state_problems,
            },
            "issuing": self.issuing.as_ref().map(|issuing| issuing.shown()),
            "nodes": state.followers(),
            "budgets": self.budgets.report(),
            "envoys": state.views.envoys.as_ref().map(|envoys| envoys.problems()),
            "grpc": state.views.envoys.as_ref().map(|envoys| envoys.problems_of_grpc()),
        })
    }

    fn explain(&self, host: &str) -> Result<Value, String> {
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

    fn register(&self, body: &[u8], by: &Registrar) -> Result<Value, Refusal> {
        let registration = Registration::parse(body)?;
        let id = LeaseId::random().map_err(|error| Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            why: format!("cannot create a lease: {error}"),
        })?;
        Ok(self.state().register(registration, by, id, Instant::now())?.page())
    }

    fn heartbeat(&self, body: &[u8]) -> Result<Value, Refusal> {
        Ok(self.state().registered.heartbeat(&LeaseId::from_body(body)?, Instant::now())?.page())
    }

    fn deregister(&self, body: &[u8]) -> Result<Value, Refusal> {
        let gone = self.state().registered.deregister(&LeaseId::from_body(body)?)?;
        Ok(json!({ "deregistered": gone.to_string() }))
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
fn registrars(state: &State) -> Value {
    state.registered.registrars().iter().map(|(by, count)| (by.to_string(), json!(count))).collect()
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
fn peers(state: &State) -> Value {
    let peer = |(cluster, contact): (&Cluster, &Contact)| {
        let mut shown = json!(contact);
        if let (Value::Object(shown), Some(held)) = (&mut shown, state.imports.usage(cluster)) {
            shown.insert("offers".to_owned(), json!(held));
        }
        if let (Value::Object(shown), Some((offered, taken))) =
            (&mut shown, state.views.bundles.word_of(cluster))
        {
            let word = json!({
                "sequence": taken.as_ref().map(|taken| taken.edition.sequence),
                "present": offered.as_ref().map(|offered| offered.sequence),
                "is_present": state.views.bundles.is_present(cluster),
                "refusal": state.views.bundles.refusal_by(cluster),
            });
            shown.insert("acknowledged".to_owned(), word);
        }
        (cluster.to_string(), shown)
    };
    state.peers.iter().map(peer).collect()
}

/// Probes of unreachable clusters' addresses (`stale: probe`).
fn probed(state: &State) -> Value {
    let down = state.imports.probes().down(Instant::now(), SystemTime::now());
    json!({
        "addresses": state.imports.probes().asked(),
        "down": down.len(),
        "listed": down.iter().take(LISTED).map(unreached).collect::<Vec<_>>(),
    })
}

pub(super) fn unreached(down: &Down) -> Value {
    json!({ "address": down.address.to_string(), "since": seconds(down.since), "why": down.why })
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
