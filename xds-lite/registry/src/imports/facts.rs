//! What of a slice decides about itself and others: kept beside the encoded slice, so that no judgement decodes one.

use std::time::Duration;

use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Offer, Staleness, Tls};

/// The facts of one slice.
#[derive(Debug)]
pub(super) struct Facts {
    /// The names that it claims.
    pub(super) names: Vec<HostPattern>,
    ports: Vec<(u16, Tls)>,
    pub(super) merge: bool,
    /// The time without contact to its cluster after which it expires.
    pub(super) expires_after: Option<Duration>,
    /// Its addresses to probe while its cluster is unreachable.
    pub(super) probed: Vec<Target>,
}

impl Facts {
    pub(super) fn new(names: Vec<HostPattern>, offer: &Offer, probed: Vec<Target>) -> Facts {
        let expires_after = match offer.staleness {
            Staleness::ExpireAfter(time) => Some(time),
            Staleness::Keep | Staleness::Probe => None,
        };
        Facts {
            names,
            ports: offer.ports.iter().map(|port| (port.number, port.tls)).collect(),
            merge: offer.merge,
            expires_after,
            probed,
        }
    }

    /// Whether a port that both have differs in TLS.
    pub(super) fn differs_in_tls(&self, other: &Facts) -> bool {
        let differs = |(number, tls): &(u16, Tls)| {
            other.ports.iter().any(|(theirs, their_tls)| theirs == number && their_tls != tls)
        };
        self.ports.iter().any(differs)
    }
}
