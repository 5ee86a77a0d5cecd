//! Decides which hellos are revoked when memory is short: every source gets an equal share, and of a source above it
//! the largest and oldest hellos go first. Pure: the holders are an argument.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use crate::socket::Millis;
use crate::source::source_of;

/// One connection that holds memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) source: IpAddr,
    pub(super) bytes: usize,
    /// Time since accept.
    pub(super) age: Millis,
}

/// The share of each source.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// Maximum bytes of a source.
    most: usize,
    /// Sources that hold more than the average may.
    large: HashSet<u64>,
}

impl Shares {
    /// Shares out `keep` bytes, so that no source gets less because another holds more.
    pub(super) fn divide(holders: &[Holder], keep: usize) -> Shares {
        let mut totals: HashMap<u64, usize> = HashMap::new();
        for holder in holders {
            *totals.entry(source_of(holder.source)).or_default() += holder.bytes;
        }
        // A single source leaves room for a second one.
        let average = keep / totals.len().max(2);
        let most = level(totals.values().copied().collect(), keep);
        let large = totals.into_iter().filter(|(_, total)| *total > average).map(|(source, _)| source);
        Shares { most, large: large.collect() }
    }

    /// Whether a source held more than the average.
    pub(super) fn is_large(&self, source: IpAddr) -> bool {
        self.large.contains(&source_of(source))
    }

    /// Returns the indexes of the holders to revoke.
    pub(super) fn too_much(&self, holders: &[Holder]) -> Vec<usize> {
        let mut by_source: HashMap<u64, Vec<(usize, &Holder)>> = HashMap::new();
        for (index, holder) in holders.iter().enumerate().filter(|(_, holder)| self.is_large(holder.source)) {
            by_source.entry(source_of(holder.source)).or_default().push((index, holder));
        }
        let mut gone = Vec::new();
        for mut of_source in by_source.into_values() {
            let mut total: usize = of_source.iter().map(|(_, holder)| holder.bytes).sum();
            // One millisecond is added so that among new holders the largest goes first.
            of_source.sort_by_key(|(_, holder)| {
                Reverse((holder.bytes as u64).saturating_mul(holder.age.saturating_add(1)))
            });
            for (index, holder) in of_source {
                if total <= self.most {
                    break;
                }
                total -= holder.bytes;
                gone.push(index);
            }
        }
        gone
    }
}

/// Returns the maximum for each source so that all together hold at most `keep`.
fn level(mut totals: Vec<usize>, keep: usize) -> usize {
    totals.sort_unstable();
    let (mut left, mut count) = (keep, totals.len());
    for total in totals {
        let share = left / count.max(1);
        if total > share {
            return share;
        }
        left -= total;
        count -= 1;
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use proptest::prelude::*;

    use super::*;

    fn holder(source: u8, bytes: usize, age: Millis) -> Holder {
        Holder { source: [10, 0, 0, source].into(), bytes, age }
    }

    fn gone(holders: &[Holder], keep: usize) -> Vec<usize> {
        let mut gone = Shares::divide(holders, keep).too_much(holders);
        gone.sort_unstable();
        gone
    }

    #[test]
    fn share_revokes_largest_and_oldest_of_largest_source() {
        let holders = [
            holder(1, 50, 10),
            holder(1, 50, 900),
            holder(1, 10, 1_000),
            holder(2, 20, 5_000),
            holder(3, 9, 1),
        ];
        assert!(gone(&holders, 200).is_empty(), "all fits");
        assert_eq!(gone(&holders, 110), [1], "the oldest of the large hellos of the largest source");
        assert_eq!(gone(&holders, 60), [0, 1, 2], "31 of 60 are left for it, less than its newest hello");
        assert!(Shares::divide(&holders, 110).is_large([10, 0, 0, 1].into()));
        assert!(!Shares::divide(&holders, 110).is_large([10, 0, 0, 2].into()));
    }

    #[test]
    fn share_of_single_source_revokes_its_oldest() {
        let holders: Vec<_> = (0..10).map(|age| holder(1, 10, age)).collect();
        assert_eq!(gone(&holders, 70), [7, 8, 9]);
    }

    #[test]
    fn share_counts_an_ipv6_network_as_one_source() {
        let holders: Vec<_> = (0..10_u128)
            .map(|host| Holder {
                source: Ipv6Addr::from_bits(0x2001_0db8 << 96 | host).into(),
                bytes: 10,
                age: 1,
            })
            .chain([holder(1, 30, 1)])
            .collect();
        assert_eq!(
            gone(&holders, 70).len(),
            6,
            "the network keeps 40 of 100, the other source all of its 30"
        );
    }

    proptest! {
        #[test]
        fn share_keeps_budget_and_spares_sources_below_fair_share(
            held in proptest::collection::vec((0_u8..6, 1_usize..100, 0_u64..50), 1..60),
            keep in 1_usize..3_000,
        ) {
            let holders: Vec<_> = held.iter().map(|(source, bytes, age)| holder(*source, *bytes, *age)).collect();
            let gone = gone(&holders, keep);
            let stays = |index: &usize| gone.binary_search(index).is_err();
            let left: usize = (0..holders.len()).filter(stays).map(|index| holders[index].bytes).sum();
            prop_assert!(left <= keep, "{left} of {keep}");
            let sources = holders.iter().map(|one| one.source).collect::<HashSet<_>>();
            for source in &sources {
                let of = |index: &usize| holders[*index].source == *source;
                let total: usize = (0..holders.len()).filter(of).map(|index| holders[index].bytes).sum();
                let lost = gone.iter().any(of);
                prop_assert!(!lost || total > keep / sources.len(), "{source} had {total}");
            }
        }
    }
}
