//! What an authority's directory is to hold, and where a root roll-over is. Pure: each step is a function of
//! the state and the time, and only a step whose files are all written is followed by the next.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::authority::Leaf;
use crate::key::KeyKind;
use crate::spiffe::TrustDomain;

/// How long two roots are trusted together at least, before the new one signs and after the old one did.
pub const OVERLAP: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What stands in `authority.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Whose authority it is.
    pub trust_domain: TrustDomain,
    /// What its keys are.
    pub key: KeyKind,
    /// How long roots live.
    #[serde(with = "crate::span")]
    pub root_lifetime: Duration,
    /// How long intermediates live.
    #[serde(with = "crate::span")]
    pub intermediate_lifetime: Duration,
    /// How long each wait of a roll-over is at least.
    #[serde(with = "crate::span")]
    pub overlap: Duration,
    /// The root that signs, by its number.
    pub root: u64,
    /// Until when leaves of that root live, those included that were given away.
    #[serde(with = "time::serde::timestamp")]
    pub issued_until: OffsetDateTime,
    /// The root roll-over that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollover: Option<Rollover>,
    /// What this domain's agents write of what their peers have acknowledged; roll-overs wait for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acknowledged: Vec<PathBuf>,
    /// Clusters with an intermediate.
    #[serde(default)]
    pub clusters: BTreeSet<String>,
    /// Leaves that are kept renewed, by name.
    #[serde(default)]
    pub leaves: BTreeMap<String, Kept>,
}

/// A leaf that is kept renewed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What it says.
    #[serde(flatten)]
    pub leaf: Leaf,
    /// What its key is.
    pub key: KeyKind,
    /// The cluster whose intermediate signs it; the root itself if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Where it stands, if not in `leaves/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
}

/// Two roots at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollover {
    /// The root that does not sign: the new one at first, the old one later.
    pub other: u64,
    /// How far it is.
    pub step: Step,
    /// Since when.
    #[serde(with = "time::serde::timestamp")]
    pub since: OffsetDateTime,
    /// Until when leaves of the old root live.
    #[serde(with = "time::serde::timestamp")]
    pub old_until: OffsetDateTime,
}

/// The steps of a roll-over, in their order. Those that end in `-ing` last until their files are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The new root goes into the bundle.
    Adding,
    /// It is in the bundle, and others learn of it.
    Trusted,
    /// Intermediates and leaves are signed anew, by the new root.
    Switching,
    /// The new root signs; what the old one signed runs out.
    Used,
    /// The old root leaves the bundle.
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

    /// Begins a roll-over; nothing if one is under way.
    #[must_use]
    pub fn begin(&self, now: OffsetDateTime) -> Option<Self> {
        let begun = Rollover { other: self.root + 1, step: Step::Adding, since: now, old_until: now };
        self.rollover.is_none().then(|| Self { rollover: Some(begun), ..self.clone() })
    }

    /// When the next step is due; nothing without a roll-over.
    pub fn due(&self) -> Option<OffsetDateTime> {
        let rollover = self.rollover.as_ref()?;
        let waited = rollover.since + self.overlap;
        Some(match rollover.step {
            Step::Adding | Step::Switching | Step::Dropping => rollover.since,
            Step::Trusted => waited,
            Step::Used => waited.max(rollover.old_until),
        })
    }

    /// The state after this one, if its time has come. All files of this one must be written by then.
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
                // What was signed by the old root while this step was held back counts, too.
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
    fn a_root_is_trusted_before_it_signs_and_after_it_did() {
        let start = OffsetDateTime::UNIX_EPOCH + OVERLAP;
        assert_eq!(state().next(start), None, "nothing happens by itself");
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
        assert_eq!(now, start + OVERLAP * 3, "what the old root signed has run out");
    }

    #[test]
    fn is_read_as_it_was_written() {
        let state = state().begin(OffsetDateTime::UNIX_EPOCH).unwrap();
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }
}
