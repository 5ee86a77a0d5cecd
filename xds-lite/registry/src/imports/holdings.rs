//! What a peer has of this agent's memory and disk: how many slices, how large, with how many names. It is judged
//! before a slice is decoded or stored. Not whether a slice may be believed.

use std::collections::{BTreeSet, HashMap, VecDeque};

use serde::Serialize;

use isthmus_model::Usage;
use isthmus_model::host::HostPattern;

/// The largest slice of a peer: 5 000 endpoints, or a thousand instances by name.
pub(super) const LARGEST: usize = 512 << 10;
/// What one takes once it is decoded, at most.
pub(super) const DECODED: u64 = 8 << 20;
/// Slices of one peer that may have one name; in earnest it is one.
const SHARING: usize = 64;
/// Names for each slice that a peer may have, all of its slices together.
const NAMES: u64 = 2;
/// Names that were not granted, as status lists them.
const NOT_GRANTED: usize = 1_000;

/// How much one peer may offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceLimits {
    /// Slices that stand, of names that were granted.
    pub slices: u64,
    /// Bytes of these, as they come and are stored.
    pub bytes: u64,
}

impl Default for SliceLimits {
    fn default() -> SliceLimits {
        SliceLimits { slices: 8_000, bytes: 4 << 20 }
    }
}

/// What a slice takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) names: u64,
}

/// What a peer has.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    limits: SliceLimits,
    sizes: HashMap<HostPattern, Size>,
    sum: Size,
    /// What stands no longer, the first of it first. Its order is remembered.
    gone: VecDeque<HostPattern>,
    not_granted: BTreeSet<HostPattern>,
    /// There were more than are listed.
    unlisted: bool,
    exceeded: u64,
}

/// Use and limits, for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PeerUsage {
    /// Slices that stand.
    pub slices: Usage,
    /// Their bytes.
    pub bytes: Usage,
    /// Their names.
    pub names: Usage,
    /// Names that were not granted, as far as they are listed: nothing else is stored of these.
    pub not_granted: usize,
    /// Whether there were more.
    pub not_granted_unlisted: bool,
}

impl Holdings {
    pub(super) fn new(limits: SliceLimits) -> Holdings {
        Holdings { limits, ..Holdings::default() }
    }

    /// Whether a slice of this size may stand; `sharing` are the slices beside it that have one of its names.
    pub(super) fn check(&mut self, host: &HostPattern, size: Size, sharing: usize) -> Result<(), String> {
        let before = self.sizes.get(host).copied();
        let old = before.unwrap_or_default();
        let SliceLimits { slices, bytes } = self.limits;
        let stands = self.sizes.len() as u64 + u64::from(before.is_none());
        let refusal = if stands > slices {
            format!(
                "is one more than the {slices} slices that its cluster may offer; raise `limits: {{ peers: {{ slices: … }} }}`"
            )
        } else if self.sum.bytes - old.bytes + size.bytes > bytes {
            format!(
                "has {} bytes, and all slices of its cluster together may have {bytes}; raise `limits: {{ peers: {{ bytes: … }} }}`",
                size.bytes
            )
        } else if self.sum.names - old.names + size.names > self.limits.names() {
            format!(
                "has {} names, and all slices of its cluster together may have {}; raise `limits: {{ peers: {{ slices: … }} }}`",
                size.names,
                self.limits.names()
            )
        } else if sharing >= SHARING {
            format!("has a name that {SHARING} other slices of its cluster have; give each a name of its own")
        } else {
            return Ok(());
        };
        self.exceeded += 1;
        Err(refusal)
    }

    pub(super) fn put(&mut self, host: &HostPattern, size: Size) {
        self.remove(host);
        self.sizes.insert(host.clone(), size);
        self.sum.bytes += size.bytes;
        self.sum.names += size.names;
    }

    fn remove(&mut self, host: &HostPattern) {
        let old = self.sizes.remove(host).unwrap_or_default();
        self.sum.bytes -= old.bytes;
        self.sum.names -= old.names;
    }

    /// A slice stands no longer. Returns the one that has been gone longest, where too many are remembered.
    pub(super) fn leave(&mut self, host: &HostPattern) -> Option<HostPattern> {
        self.remove(host);
        self.gone.push_back(host.clone());
        let is_over = self.gone.len() as u64 > self.limits.slices;
        let first = if is_over { self.gone.pop_front() } else { None };
        first.filter(|first| !self.sizes.contains_key(first))
    }

    /// A name that was not granted is offered, or no longer.
    pub(super) fn not_granted(&mut self, host: &HostPattern, is_offered: bool) {
        if !is_offered {
            self.not_granted.remove(host);
        } else if self.not_granted.len() < NOT_GRANTED {
            self.not_granted.insert(host.clone());
        } else {
            self.unlisted |= !self.not_granted.contains(host);
        }
    }

    /// Names that were not granted, as far as they are listed.
    pub(super) fn all_not_granted(&self) -> &BTreeSet<HostPattern> {
        &self.not_granted
    }

    pub(super) fn held(&self) -> PeerUsage {
        let usage = |used, limit, exceeded| Usage { used, limit, exceeded };
        PeerUsage {
            slices: usage(self.sizes.len() as u64, self.limits.slices, self.exceeded),
            bytes: usage(self.sum.bytes, self.limits.bytes, 0),
            names: usage(self.sum.names, self.limits.names(), 0),
            not_granted: self.not_granted.len(),
            not_granted_unlisted: self.unlisted,
        }
    }
}

impl SliceLimits {
    fn names(self) -> u64 {
        self.slices.saturating_mul(NAMES)
    }
}
