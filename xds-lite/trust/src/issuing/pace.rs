//! Limits how many certificates one requester gets for others, before a request costs more than reading it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use isthmus_certs::SpiffeId;

/// Certificates at once: as many identities as a gateway keeps.
const BURST: u32 = 4_096;
/// Time in which one more may be requested.
const EACH: Duration = Duration::from_millis(20);
/// Requesters that are remembered; the agent's file lists fewer.
const MAX_REQUESTERS: usize = 10_000;

/// What each requester has used.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<HashMap<SpiffeId, Used>>);

#[derive(Clone, Copy, Debug)]
struct Used {
    count: u32,
    since: Instant,
}

impl Pace {
    /// Whether a requester may have one more certificate now, which then counts.
    pub(super) fn admits(&self, requester: &SpiffeId, now: Instant) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_REQUESTERS {
            all.retain(|_, used| used.at(now).count > 0);
        }
        let used = all.entry(requester.clone()).or_insert(Used { count: 0, since: now });
        *used = used.at(now);
        let is_admitted = used.count < BURST;
        used.count += u32::from(is_admitted);
        is_admitted
    }
}

impl Used {
    fn at(self, now: Instant) -> Used {
        let passed = now.saturating_duration_since(self.since);
        let back = u32::try_from(passed.as_millis() / EACH.as_millis()).unwrap_or(u32::MAX);
        match self.count.saturating_sub(back) {
            0 => Used { count: 0, since: now },
            count => Used { count, since: self.since + EACH * back },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_admits_a_burst_and_then_one_after_another() {
        let (pace, start) = (Pace::default(), Instant::now());
        let [one, other] =
            ["a", "b"].map(|name| SpiffeId::parse(&format!("spiffe://x.example/{name}")).unwrap());
        let admitted =
            |id: &SpiffeId, tries: u32, now: Instant| (0..tries).filter(|_| pace.admits(id, now)).count();
        assert_eq!(admitted(&one, BURST + 10, start), BURST as usize);
        assert!(pace.admits(&other, start), "each has its own");
        assert_eq!(admitted(&one, 10, start + EACH * 3 + EACH / 2), 3);
        assert_eq!(admitted(&one, 10, start + EACH * 4), 1, "halves are not lost");
        assert_eq!(admitted(&one, 2 * BURST, start + EACH * 3 * BURST), BURST as usize);
    }
}
