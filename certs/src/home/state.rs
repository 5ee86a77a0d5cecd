//! The state of an authority's directory: what it should hold, and the step of a root roll-over. Each step is a pure
//! function of the state and the time; the next step follows only once all files of this one are written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::authority::Leaf;
use crate::key::KeyKind;
use crate::spiffe::TrustDomain;

/// The shortest time for which two roots are trusted together, before the new one signs and after the old one did.
pub const OVERLAP: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The content of `authority.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The trust domain of the authority.
    pub trust_domain: TrustDomain,
    /// The type of its keys.
    pub key: KeyKind,
    /// The lifetime of roots.
    #[serde(with = "crate::span")]
    pub root_lifetime: Duration,
    /// The lifetime of intermediates.
    #[serde(with = "crate::span")]
    pub intermediate_lifetime: Duration,
    /// The shortest wait of each step of a roll-over.
    #[serde(with = "crate::span")]
    pub overlap: Duration,
    /// The number of the root that signs.
    pub root: u64,
    /// When the last leaf of that root expires, including leaves for keys held elsewhere.
    #[serde(with = "time::serde::timestamp")]
    pub issued_until: OffsetDateTime,
    /// The root roll-over in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollover: Option<Rollover>,
    /// The acknowledgement files of this domain's agents, for which roll-overs wait.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acknowledged: Vec<PathBuf>,
    /// Clusters with an intermediate.
    #[serde(default)]
    pub clusters: BTreeSet<String>,
    /// The leaves to renew, by name.
    #[serde(default)]
    pub leaves: BTreeMap<String, LeafRecord>,
}

/// A leaf that the directory renews.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRecord {
    /// The content of the leaf.
    #[serde(flatten)]
    pub leaf: Leaf,
    /// The type of its key.
    pub key: KeyKind,
    /// The cluster whose intermediate signs it; without one, the root signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Its directory, if not `leaves/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
}

/// A root roll-over in progress: two roots at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollover {
    /// The root that does not sign: the new one at first, the old one later.
    pub other: u64,
    /// The current step.
    pub step: Step,
    /// When the current step began.
    #[serde(with = "time::serde::timestamp")]
    pub since: OffsetDateTime,
    /// When the last leaf of the old root expires.
    #[serde(with = "time::serde::timestamp")]
    pub old_until: OffsetDateTime,
}

/// The steps of a roll-over, in order. Steps in `-ing` last until their files are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The new root is added to the bundle.
    Adding,
    /// The new root is in the bundle, and peers learn of it.
    Trusted,
    /// Intermediates and leaves are signed by the new root.
    Switching,
    /// The new root signs; what the old one signed expires.
    Used,
    /// The old root is removed from the bundle.
    Dropping,
}

impl State {
    /// The roots in the bundle, the older one first.
    pub fn trusted(&self) -> Vec<u64> {
        let other = self.rollover.as_ref().filter(|rollover| rollover.step != Step::Dropping);
        let mut roots: Vec<_> = other.map(|rollover| rollover.other).into_iter().chain([self.root]).collect();
        roots.sort_unstable();
        roots
    }

    /// The state with a new roll-over; none if one is in progress.
    #[must_use]
    pub fn begin(&self, now: OffsetDateTime) -> Option<Self> {
        let begun = Rollover { other: self.root + 1, step: Step::Adding, since: now, old_until: now };
        self.rollover.is_none().then(|| Self { rollover: Some(begun), ..self.clone() })
    }

    /// When the next step is due; none without a roll-over.
    pub fn due(&self) -> Option<OffsetDateTime> {
        let rollover = self.rollover.as_ref()?;
        let waited = rollover.since + self.overlap;
        Some(match rollover.step {
            Step::Adding | Step::Switching | Step::Dropping => rollover.since,
            Step::Trusted => waited,
            Step::Used => waited.max(rollover.old_until),
        })
    }

    /// The next state, if it is due. All files of this one must already be written.
    #[must_use]
    pub fn next(&self, now: OffsetDateTime) -> Option<Self> {
        let mut next = self.clone();
        let rollover = next.rollover.as_mut().filter(|_| self.due().is_some_and(|due| now >= due))?;
        rollover.since = now;
        match rollover.step {
            Step::Adding => rollover.step = Step::Trusted,
            Step::Trusted => {
                rollover.step = Step::Switching;
                rollover.old_until = self.issued_until;
                std::mem::swap(&mut next.root, &mut rollover.other);
            }
            Step::Switching => {
                // Includes what the old root signed while this step was delayed.
                rollover.step = Step::Used;
                rollover.old_until = rollover.old_until.max(next.issued_until);
            }
            Step::Used => rollover.step = Step::Dropping,
            Step::Dropping => next.rollover = None,
        }
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            trust_domain: TrustDomain::new("east.example").unwrap(),
            key: KeyKind::P256,
            root_lifetime: OVERLAP * 100,
            intermediate_lifetime: OVERLAP * 50,
            overlap: OVERLAP,
            root: 1,
            issued_until: OffsetDateTime::UNIX_EPOCH,
            rollover: None,
            acknowledged: Vec::new(),
            clusters: BTreeSet::new(),
            leaves: BTreeMap::new(),
        }
    }

    #[test]
    fn rollover_trusts_a_root_before_it_signs_and_after_it_did() {
        let start = OffsetDateTime::UNIX_EPOCH + OVERLAP;
        assert_eq!(state().next(start), None, "no roll-over starts by itself");
        let mut state = State { issued_until: start + OVERLAP * 3, ..state() }.begin(start).unwrap();
        assert_eq!(state.begin(start), None);
        let mut now = start;
        let mut seen = Vec::new();
        loop {
            let step = state.rollover.as_ref().map(|rollover| rollover.step);
            seen.push((step, state.root, state.trusted()));
            let Some(due) = state.due() else { break };
            assert_eq!(state.next(due - Duration::from_secs(1)), None, "{step:?}");
            now = now.max(due);
            state = state.next(now).unwrap();
        }
        let expected = [
            (Some(Step::Adding), 1, vec![1, 2]),
            (Some(Step::Trusted), 1, vec![1, 2]),
            (Some(Step::Switching), 2, vec![1, 2]),
            (Some(Step::Used), 2, vec![1, 2]),
            (Some(Step::Dropping), 2, vec![2]),
            (None, 2, vec![2]),
        ];
        assert_eq!(seen, expected);
        assert_eq!(now, start + OVERLAP * 3, "what the old root signed has expired");
    }

    #[test]
    fn state_round_trips_through_json() {
        let state = state().begin(OffsetDateTime::UNIX_EPOCH).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }
}
