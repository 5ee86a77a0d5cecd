//! Updates in any order.

use super::*;

#[derive(Clone, Debug)]
struct Update {
    name: usize,
    sequence: u64,
    roots: Vec<usize>,
    list: Option<(u64, usize, usize)>,
    chain: usize,
}

fn update() -> impl Strategy<Value = Update> {
    let roots = proptest::sample::subsequence(vec![0, 1, 2], 1..=3);
    let list = proptest::option::of((0..5_u64, 0..2_usize, 0..3_usize));
    (0..8_usize, 0..8_u64, roots, list, 0..3_usize).prop_map(|(name, sequence, roots, list, chain)| Update {
        // Mostly its own.
        name: name.saturating_sub(5),
        sequence,
        roots,
        list,
        chain,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever a peer publishes, and however often: sequence numbers never fall, nothing changes under a
    /// number, and no other domain is touched.
    #[test]
    fn bundles_never_go_back_in_any_order(words in proptest::collection::vec(update(), 1..16), replays in 1..3_usize) {
        let west = domain("west.example");
        let mut known = known(1, &[0]);
        let [own, other] = ["east.example", "north.example"].map(|name| known.get(&domain(name)).cloned());
        for update in std::iter::repeat_n(&words, replays + 1).flatten() {
            let name = ["west.example", "east.example", "north.example"][update.name];
            let list = update.list.map(|(sequence, denied, root)| list(sequence, ["a", "b"][denied], root));
            let mut message = TrustBundle::decode(&*message(&bundle(update.sequence, &update.roots), list.as_deref())).unwrap();
            message.trust_domain = name.to_owned();
            let before = known.clone();
            if let Ok(judged) = hears(&known, update.chain, name, &message.encode_to_vec()) {
                prop_assert_eq!(name, "west.example");
                if judged.is_later {
                    known.insert(west.clone(), judged.said.bundle);
                }
                if let Some(denied) = judged.said.denied {
                    known.deny_signed(denied.list, &denied.envelope);
                }
                prop_assert!(known.verify(&CHAINS[update.chain], Role::Server, UnixTime::now()).is_ok());
            }
            let [old, new] = [&before, &known].map(|bundles| bundles.get(&west).unwrap());
            prop_assert!(new.sequence > old.sequence || new == old, "{} after {}", new.sequence, old.sequence);
            if let Some(old) = before.denied(&west) {
                let new = known.denied(&west).unwrap();
                prop_assert!(new.sequence() > old.sequence() || new == old);
            }
            prop_assert_eq!(known.get(&domain("east.example")), own.as_ref());
            prop_assert_eq!(known.get(&domain("north.example")), other.as_ref());
        }
        // Replays of refused resources stay refused.
        let last = known.get(&west).unwrap().sequence;
        prop_assert!(last <= words.iter().map(|update| update.sequence).max().unwrap_or_default().max(1));
    }
}
