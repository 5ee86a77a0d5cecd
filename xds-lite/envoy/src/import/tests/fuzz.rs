//! Any bytes.

use super::*;

proptest! {
    #[test]
    fn import_of_any_bytes_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        at in 0..400_usize,
        kind in prop_oneof![Just(LISTENER), Just(CLUSTER), Just(ENDPOINTS)],
    ) {
        let mut world = World::with_web();
        // Valid bytes with random ones in the middle get further than random ones alone.
        let good = match kind {
            LISTENER => listener(vec![chain(WEB)]).encode_to_vec(),
            CLUSTER => cluster(WEB).encode_to_vec(),
            _ => assignment(WEB, vec![endpoint("10.0.0.1", 1, 0)]).encode_to_vec(),
        };
        let (head, tail) = good.split_at(at.min(good.len()));
        for sent in [bytes.clone(), [head, &bytes, tail].concat()] {
            for name in ["", WEB, "0.0.0.0_15443"] {
                world.send(kind, &[(name, sent.clone())], &[]);
                world.state.services();
            }
        }
    }

    /// A field of any number anywhere in a chain is known to have no effect, or the chain has no route.
    #[test]
    fn additional_chain_field_is_harmless_or_leaves_no_route(number in 1..2_000_u32, inside in any::<bool>(), value in 0..3_u8) {
        let mut field = Vec::new();
        prost::encoding::encode_key(number, prost::encoding::WireType::LengthDelimited, &mut field);
        field.extend([1, value]);
        let mut rest = chain(WEB);
        let mut rules = rest.filter_chain_match.take().unwrap().encode_to_vec();
        let mut bytes = rest.encode_to_vec();
        if inside { &mut rules } else { &mut bytes }.extend(field);
        append(1, &rules, &mut bytes);
        let mut whole = listener(Vec::new()).encode_to_vec();
        append(3, &bytes, &mut whole);
        let mut world = World::with_web();
        let refused = world.send(LISTENER, &[("0.0.0.0_15443", whole)], &[]);
        // Of the chain: metadata, name and handshake timeout; of the match: one more item of a list.
        let harmless: &[u32] = if inside { &[10, 11] } else { &[5, 7, 9] };
        if !harmless.contains(&number) {
            prop_assert!(!refused.is_empty(), "{number}");
            prop_assert!(!world.is_reachable(), "{number}");
        }
    }
}
