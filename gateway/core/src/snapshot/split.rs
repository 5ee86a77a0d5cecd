//! The parts of a split: how a service's connections are divided by weight, and when a part that fails too often is
//! taken out of it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use isthmus_model::traffic::{SplitPart, SplitTo, Traffic};

use super::group::Group;
use super::{Endpoint, Service};
use crate::failures::Failures;
use crate::priorities::UNLISTED;
use crate::socket::Millis;

/// The split of a service.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Split {
    traffic: Arc<Traffic>,
    parts: Box<[Part]>,
    /// The groups of endpoints that no part has.
    unlisted: Range<usize>,
}

/// One part of a split.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Its groups among those of the service.
    pub(crate) groups: Range<usize>,
    pub(crate) weight: u16,
    /// A number that stays with its endpoints when the split is edited.
    pub(crate) key: u64,
    guard: Option<Arc<Guard>>,
}

/// Takes a part out of the split once too many of its connections fail, until the split is edited.
#[derive(Debug)]
struct Guard {
    /// Failures in per cent.
    limit: u8,
    failures: Failures,
    is_aborted: AtomicBool,
}

/// Guards are equal if they are the same one: what they have counted belongs to them.
impl PartialEq for Guard {
    fn eq(&self, other: &Guard) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Guard {}

impl Split {
    /// Returns the split of a service with these groups, sorted by part; guards are taken over from before if the split
    /// is the same.
    pub(super) fn new(
        traffic: &Arc<Traffic>,
        endpoints: &[Endpoint],
        groups: &[Group],
        before: Option<&Split>,
    ) -> Option<Split> {
        if traffic.split.is_empty() {
            return None;
        }
        let part_of = |group: &Group| group.first(endpoints).map_or(UNLISTED, |endpoint| endpoint.part);
        let range = |part: u8| {
            let start = groups.partition_point(|group| part_of(group) < part);
            start..groups.partition_point(|group| part_of(group) <= part)
        };
        let before = before.filter(|before| before.traffic.split == traffic.split);
        let part = |(index, written): (u8, &SplitPart)| Part {
            groups: range(index),
            weight: written.weight,
            key: key(&written.to),
            guard: match before.and_then(|before| before.parts.get(usize::from(index))) {
                Some(known) => known.guard.clone(),
                None => written.abort_if.map(|limit| Arc::new(Guard::new(limit))),
            },
        };
        let parts = (0..UNLISTED).zip(&traffic.split).map(part).collect();
        Some(Split { traffic: Arc::clone(traffic), parts, unlisted: range(UNLISTED) })
    }

    /// Whether a source stays with its part.
    pub(crate) fn is_sticky(&self) -> bool {
        self.traffic.sticky
    }

    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Returns the parts as they are written, with their state.
    pub(crate) fn written(&self) -> impl Iterator<Item = (&SplitPart, &Part)> {
        self.traffic.split.iter().zip(&self.parts)
    }

    /// Returns the groups of endpoints that no part has.
    pub(crate) fn unlisted(&self) -> Range<usize> {
        self.unlisted.clone()
    }

    /// Returns the groups of each part, and of the endpoints that no part has: all groups of the service, in order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.parts.iter().map(|part| part.groups.clone()).chain([self.unlisted()])
    }
}

impl Part {
    /// Whether it was taken out of the split.
    pub(crate) fn is_aborted(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.is_aborted.load(Relaxed))
    }
}

impl Guard {
    fn new(limit: u8) -> Guard {
        Guard { limit, failures: Failures::default(), is_aborted: AtomicBool::new(false) }
    }
}

impl Service {
    /// Records a connect to an endpoint, or a probe of the gateway itself;
    /// returns its part if that takes it out of the split.
    pub(crate) fn record(&self, endpoint: &Endpoint, has_failed: bool, now: Millis) -> Option<&SplitPart> {
        let (written, part) = self.split()?.written().nth(endpoint.part.into())?;
        let guard = part.guard.as_ref()?;
        guard.failures.record(has_failed, now);
        let is_aborted = guard.failures.exceed(guard.limit, now) && !guard.is_aborted.swap(true, Relaxed);
        is_aborted.then_some(written)
    }
}

fn key(to: &SplitTo) -> u64 {
    let mut hasher = DefaultHasher::new(); // the same keys in every process and after a restart
    to.hash(&mut hasher);
    hasher.finish()
}
