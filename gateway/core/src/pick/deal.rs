//! Deals turns to shares, evenly spread and exact: of as many turns in a row as the shares have together, each gets its
//! own. Pure, and without a table.

/// Returns the share that a turn belongs to, and how many earlier turns belonged to it. `None` if all shares are 0.
pub(super) fn deal(turn: usize, shares: impl Iterator<Item = u32> + Clone) -> Option<(usize, usize)> {
    let mut left: u64 = shares.clone().map(u64::from).sum();
    // As wide as the counter of turns, so that the products fit.
    let mut turn = u64::from(u32::try_from(turn & u32::MAX as usize).unwrap_or_default());
    for (index, share) in shares.enumerate() {
        let share = u64::from(share);
        let before = turn.saturating_mul(share).checked_div(left)?;
        let until = (turn + 1).saturating_mul(share) / left;
        if until > before {
            return Some((index, usize::try_from(before).unwrap_or_default()));
        }
        turn -= before;
        left -= share;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn turns_are_dealt_exactly_and_in_order(
            shares in prop::collection::vec(0_u32..40, 1..6),
            from in 0_usize..10_000,
        ) {
            let round: u32 = shares.iter().sum();
            let mut counts = vec![0; shares.len()];
            let mut inner: Vec<Option<usize>> = vec![None; shares.len()];
            for turn in from..from + round as usize {
                let (index, earlier) = deal(turn, shares.iter().copied()).unwrap();
                counts[index] += 1;
                prop_assert!(inner[index].is_none_or(|last| earlier == last + 1), "turn {}", turn);
                inner[index] = Some(earlier);
            }
            prop_assert_eq!(counts, shares);
        }
    }

    #[test]
    fn deal_without_shares_is_none() {
        assert_eq!(deal(7, [].into_iter()), None);
        assert_eq!(deal(7, [0, 0].into_iter()), None);
        assert_eq!(deal(usize::MAX, [0, u32::MAX, 1].into_iter()).map(|(index, _)| index), Some(1));
    }

    #[test]
    fn deal_is_smooth() {
        let turns: Vec<usize> = (0..10).map(|turn| deal(turn, [9, 1].into_iter()).unwrap().0).collect();
        assert_eq!(turns.iter().sum::<usize>(), 1);
        let halves: Vec<usize> = (0..6).map(|turn| deal(turn, [1, 1].into_iter()).unwrap().0).collect();
        assert!(halves.windows(2).all(|two| two[0] != two[1]), "{halves:?}");
    }
}
