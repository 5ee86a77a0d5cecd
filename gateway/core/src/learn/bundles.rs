//! Follows whom the agent trusts, where the gateway manages its trust itself: the bundles and deny-lists of its own and of
//! other trust domains, which verify callers and services of other clusters.

use isthmus_ads::client::{Client, Refused, Update};
use isthmus_certs::Trust;
use isthmus_certs::printable::excerpt;
use isthmus_proto::type_url::TRUST_BUNDLE;
use isthmus_trust::bundles::{Mirror, Refusal};
use rustls::pki_types::UnixTime;

use crate::config::settings::Trusts;
use crate::control::Control;

/// Longest refusal in characters: it may repeat what was received.
const LONGEST_WHY: usize = 512;

/// The bundles in the directory of the gateway.
pub(super) struct Bundles(Mirror);

impl Bundles {
    /// `None` where another program keeps the files.
    pub(super) fn begin(trust: &Trust, control: &Control) -> Option<Bundles> {
        let trusts = control.process.fixed.trust.as_ref()?;
        let is_managed = matches!(trusts, Trusts::ManagedTrust(_));
        is_managed.then(|| Bundles(Mirror::new(trust.clone(), trusts.files())))
    }

    /// A client that knows no version, and the names of before a restart: the agent tells which are gone.
    pub(super) fn client(&self) -> Client {
        let before = self.0.domains().into_iter();
        Client::new(TRUST_BUNDLE, before.map(|domain| (domain.to_string(), String::new())))
    }

    /// Applies an update; returns what is refused.
    pub(super) fn apply(&self, update: &Update) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut note = |name: &str, applied: Result<(), Refusal>| {
            let Err(why) = applied else { return };
            let why = excerpt(&why.to_string(), LONGEST_WHY);
            tracing::warn!(domain = ?name, why, "a bundle was refused");
            refused.push(Refused { name: name.to_owned(), why });
        };
        for resource in &update.resources {
            note(&resource.name, self.0.accept(&resource.name, &resource.bytes, UnixTime::now()));
        }
        for name in &update.removed {
            note(name, self.0.remove(name));
        }
        refused
    }
}
