//! Limits what a peer takes of this agent's memory and disk: the number of slices, their size and their
//! names. Checked before a slice is decoded or stored.

use std::collections::{BTreeSet, HashMap, VecDeque};

use isthmus_model::Usage;
use isthmus_model::host::HostPattern;

/// The largest slice of a peer: 5 000 endpoints, or a thousand instances by name.
pub(super) const LARGEST: usize = 512 << 10;
/// The largest decoded size of one slice.
pub(super) const DECODED: u64 = 8 << 20;
/// Slices of one peer that may share a name; normally one has it.
const SHARING: usize = 64;
/// Names per slice of a peer's limit, over all of its slices.
const NAMES: u64 = 2;
/// Names that were not granted, as listed in status.
const NOT_GRANTED: usize = 1_000;

/// Limits for one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SliceLimits {
    /// Slices with granted names.
    pub slices: u64,
    /// Bytes of these slices, as received and stored.
    pub bytes: u64,
}

impl Default for SliceLimits {
    fn default() -> SliceLimits {
        SliceLimits { slices: 8_000, bytes: 4 << 20 }
    }
}

/// The size of a slice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) names: u64,
}

/// The use by one peer.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    limits: SliceLimits,
    sizes: HashMap<HostPattern, Size>,
    sum: Size,
    /// Withdrawn slices, the oldest first. Their revisions are remembered.
    gone: VecDeque<HostPattern>,
    not_granted: BTreeSet<HostPattern>,
    /// Whether more names were offered than are listed.
    unlisted: bool,
    exceeded: u64,
}

/// Use and limits of one peer, for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerUsage {
    /// Its slices.
    pub slices: Usage,
    /// Their bytes.
    pub bytes: Usage,
    /// Their names.
    pub names: Usage,
    /// Names that were not granted, up to the length of the list; nothing else is stored of these slices.
    pub not_granted: usize,
    /// Whether there were more.
    pub not_granted_unlisted: bool,
}

impl Holdings {
    pub(super) fn new(limits: SliceLimits) -> Holdings {
        Holdings { limits, ..Holdings::default() }
    }

    /// Whether a slice of this size is within the limits; `sharing` is the number of other slices with one of
    /// its names.
    pub(super) fn check(&mut self, host: &HostPattern, size: Size, sharing: usize) -> Result<(), String> {
        let before = self.sizes.get(host).copied();
        let old = before.unwrap_or_default();
        let SliceLimits { slices, bytes } = self.limits;
        let stands = self.sizes.len() as u64 + u64::from(before.is_none());
        let refusal = if stands > slices {
            format!(
                "exceeds the limit of {slices} slices of its cluster; raise `limits: {{ peers: {{ slices: … }} }}`"
            )
        } else if self.sum.bytes - old.bytes + size.bytes > bytes {
            format!(
                "has {} bytes, which exceeds the limit of {bytes} for all slices of its cluster; raise `limits: {{ peers: {{ bytes: … }} }}`",
                size.bytes
            )
        } else if self.sum.names - old.names + size.names > self.limits.names() {
            format!(
                "has {} names, which exceeds the limit of {} for all slices of its cluster; raise `limits: {{ peers: {{ slices: … }} }}`",
                size.names,
                self.limits.names()
            )
        } else if sharing >= SHARING {
            format!(
                "has a name that {SHARING} other slices of its cluster already have; give each its own name"
            )
        } else {
            return Ok(());
        };
        self.exceeded += 1;
        Err(refusal)
    }

    pub(super) fn insert(&mut self, host: &HostPattern, size: Size) {
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

    /// Removes a slice. Returns the slice withdrawn longest ago, if too many are remembered.
    pub(super) fn forget(&mut self, host: &HostPattern) -> Option<HostPattern> {
        self.remove(host);
        self.gone.push_back(host.clone());
        let is_over = self.gone.len() as u64 > self.limits.slices;
        let first = if is_over { self.gone.pop_front() } else { None };
        first.filter(|first| !self.sizes.contains_key(first))
    }

    /// Records a name that was not granted, or that it is no longer offered. Returns whether that changes the list.
    pub(super) fn not_granted(&mut self, host: &HostPattern, is_offered: bool) -> bool {
        if !is_offered {
            self.not_granted.remove(host)
        } else if self.not_granted.len() < NOT_GRANTED {
            self.not_granted.insert(host.clone())
        } else {
            self.unlisted |= !self.not_granted.contains(host);
            false
        }
    }

    /// The listed names that were not granted.
    #[cfg(test)]
    pub(super) fn all_not_granted(&self) -> &BTreeSet<HostPattern> {
        &self.not_granted
    }

    /// Whether the host is in the list of names that were not granted.
    pub(super) fn is_not_granted(&self, host: &HostPattern) -> bool {
        self.not_granted.contains(host)
    }

    pub(super) fn usage(&self) -> PeerUsage {
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
