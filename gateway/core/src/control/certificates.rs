//! The certificates that the gateway uses: its own, and those of callers and of services whose TLS ends here.

use std::sync::Arc;

use isthmus_certs::Trust;
use isthmus_certs::trust::Expiry;

use super::Control;
use crate::config::settings::Live;
use crate::ends::Ends;

impl Control {
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
