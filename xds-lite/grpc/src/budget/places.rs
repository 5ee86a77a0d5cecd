//! Divides the file descriptors of the process among connections: a reserve for admin and health pages, files and the
//! agent's own connections, then gateways, then peers.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Kind;

/// Descriptors for everything but clients of the xDS port: 64 admin clients, 128 on the join port, files, the registry,
/// outgoing connections and probes.
const RESERVED: u64 = 320;
/// With this many descriptors every class has its maximum.
const AMPLE: u64 = 8_192;

/// The most concurrent connections of each class of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Clients before the end of their handshake.
    pub unproven: usize,
    /// Clients that present a token.
    pub guests: usize,
    gateways: u64,
    peers: u64,
    workloads: u64,
    strangers: u64,
}

impl Places {
    /// The division of a descriptor limit.
    #[must_use]
    pub fn of_descriptors(limit: u64) -> Places {
        let usable = limit.saturating_sub(RESERVED).clamp(64, AMPLE);
        let part = |of: u64, most: u64| (usable * of / 32).clamp(2, most);
        let unproven = part(4, 256);
        let guests = part(1, 64);
        let workloads = part(2, 256);
        let strangers = part(1, 64);
        let served = usable.saturating_sub(unproven + guests + workloads + strangers);
        let peers = (served / 3).clamp(4, 2_048);
        Places {
            unproven: usize::try_from(unproven).unwrap_or(usize::MAX),
            guests: usize::try_from(guests).unwrap_or(usize::MAX),
            gateways: served.saturating_sub(peers).clamp(8, 4_096),
            peers,
            workloads,
            strangers,
        }
    }

    pub(super) fn get(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Gateway => self.gateways,
            Kind::Peer => self.peers,
            Kind::Workload => self.workloads,
            Kind::Stranger => self.strangers,
        }
    }
}

impl Default for Places {
    fn default() -> Places {
        Places::of_descriptors(u64::MAX)
    }
}

/// Raises the soft limit of descriptors to the hard one, and returns it.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the descriptor limit; keeping the soft limit");
        return limit.current.unwrap_or(u64::MAX);
    }
    limit.maximum.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(places: &Places) -> u64 {
        let served: u64 = Kind::ALL.into_iter().map(|kind| places.get(kind)).sum();
        served + (places.unproven + places.guests) as u64
    }

    #[test]
    fn descriptor_division_leaves_the_reserve_to_admin_and_health() {
        for limit in [512, 1_024, 2_048, 4_096, 65_536, u64::MAX] {
            let places = Places::of_descriptors(limit);
            assert!(all(&places) <= limit.saturating_sub(RESERVED).min(AMPLE), "{limit}: {places:?}");
            assert!(places.get(Kind::Gateway) > places.get(Kind::Peer), "own gateways first: {places:?}");
        }
        let ample = Places::default();
        assert_eq!((ample.unproven, ample.guests, ample.strangers), (256, 64, 64));
        assert_eq!((ample.gateways, ample.peers, ample.workloads), (4_096, 2_048, 256));
    }
}
