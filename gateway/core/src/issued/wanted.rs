//! Which identities the gateway needs certificates of, and for which names.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_certs::SpiffeId;

/// Identities of one gateway; more get no certificate.
const MAX: usize = 4_096;

/// The identities, each with the names of the services that it is presented for. A caller alone has no names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    identities: BTreeMap<SpiffeId, BTreeSet<String>>,
    /// Identities beyond the limit.
    left_out: usize,
}

impl Wanted {
    /// Adds an identity, and names that its certificate is presented for.
    pub(crate) fn add(&mut self, identity: &SpiffeId, names: impl IntoIterator<Item = String>) {
        if self.identities.len() >= MAX && !self.identities.contains_key(identity) {
            self.left_out += 1;
            return;
        }
        self.identities.entry(identity.clone()).or_default().extend(names);
    }

    /// Returns the identities with their names.
    pub(crate) fn identities(&self) -> &BTreeMap<SpiffeId, BTreeSet<String>> {
        &self.identities
    }

    /// Returns the number of identities beyond the limit.
    pub(crate) fn left_out(&self) -> usize {
        self.left_out
    }
}
