//! The certificates that the gateway uses: its own, and those of callers and of services whose TLS ends here.

use std::sync::Arc;

use isthmus_certs::Trust;
use isthmus_certs::trust::Expiry;

use super::Control;
use crate::config::settings::{Callers, Live};
use crate::ends::Ends;
use crate::issued::Wanted;
use crate::snapshot::{CompilerState, Service, Snapshot};

/// Collects the identities that need a certificate of the agent: of callers, and of services whose TLS ends here.
pub(super) fn wanted(tables: &Snapshot, state: &CompilerState) -> Wanted {
    let mut wanted = Wanted::default();
    for originate in tables.live.listeners.iter().filter_map(|listener| listener.originate.as_deref()) {
        match &originate.callers {
            Callers::OfFile(callers) => callers
                .iter()
                .filter(|caller| caller.files.is_none())
                .for_each(|caller| wanted.add(&caller.identity, [])),
            Callers::OfAgent => {
                tables.bindings.callers().iter().for_each(|caller| wanted.add(&caller.identity, []));
            }
        }
    }
    for service in tables.of_file().chain(state.doors()) {
        if let Some(identity) = service.issued_identity() {
            wanted.add(identity, names(service));
        }
    }
    wanted
}

fn names(service: &Service) -> impl Iterator<Item = String> {
    std::iter::once(&service.host).chain(service.aliases()).map(ToString::to_string)
}

impl Control {
    pub(super) fn set_wanted(&self, wanted: Wanted) {
        self.wanted.send_if_modified(|known| {
            let is_news = *known != wanted;
            *known = wanted;
            is_news
        });
    }

    /// Loads the certificates for an edit; unchanged ones are kept.
    pub(super) fn ends_for(&self, live: &Live) -> Result<Ends, String> {
        let known = Arc::clone(&self.process.tables.load().ends);
        Ends::load(live, self.process.fixed.trust.as_ref(), &known).map_err(|error| error.to_string())
    }

    /// Returns the expiry of each certificate in use: the gateway's own, and those of callers and services.
    #[must_use]
    pub fn expiries(&self) -> Vec<Expiry> {
        let mut all = self.process.trust.get().map(Trust::expiries).unwrap_or_default();
        for expiry in self.process.tables.load().ends.expiries() {
            // Several chains may have the same intermediate.
            if !all.contains(&expiry) {
                all.push(expiry);
            }
        }
        all
    }

    /// Returns the certificate files refused at the last reload, each with its reason and remedy.
    #[must_use]
    pub fn refused_files(&self) -> Vec<String> {
        let mut all = self.process.trust.get().map(Trust::refused).unwrap_or_default();
        for refused in self.process.tables.load().ends.refused() {
            // Each identity has the same bundles.
            if !all.contains(&refused) {
                all.push(refused);
            }
        }
        all
    }
}
