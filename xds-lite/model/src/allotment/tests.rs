//! Whatever happens to names, the places of all others stay, no place has two names, and a freed one waits.

use std::collections::HashMap;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;

const RANGE: PlaceRange<u16> = PlaceRange { first: 20_000, last: 20_015 };

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn restart(allotment: &Allotment<String, u16>) -> Allotment<String, u16> {
    let stored: Vec<_> = allotment.stored().collect();
    let text = serde_json::to_string(&stored).unwrap();
    let (restored, unfit) = Allotment::restored(RANGE, serde_json::from_str::<Vec<_>>(&text).unwrap());
    assert_eq!(unfit, []);
    restored
}

#[derive(Clone, Debug)]
struct Step {
    wanted: BTreeSet<String>,
    later: Duration,
    restarts: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let hours = prop_oneof![0_u64..3, 20_u64..30];
    (btree_set("[a-f][0-3]", 0..14), hours, any::<bool>()).prop_map(|(wanted, hours, restarts)| Step {
        wanted,
        later: Duration::from_hours(hours),
        restarts,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn allotment_moves_no_name_and_reuses_no_quarantined_place(steps in vec(step(), 1..12)) {
        let (mut allotment, mut now) = (Allotment::<String, u16>::new(RANGE), start());
        // Of each name that was freed lately: its place, and when.
        let mut freed: HashMap<String, (u16, SystemTime)> = HashMap::new();
        for step in steps {
            now += step.later;
            let before: BTreeMap<String, u16> = allotment.wanted().map(|(name, place)| (name.clone(), place)).collect();
            let errors = allotment.want(&step.wanted, now);
            if step.restarts {
                allotment = restart(&allotment);
            }
            for (name, place) in before.iter().filter(|(name, _)| !step.wanted.contains(*name)) {
                freed.insert(name.clone(), (*place, now));
                prop_assert_eq!((allotment.get(name), allotment.name_of(*place)), (None, None));
            }
            freed.retain(|_, (_, since)| now.duration_since(*since).unwrap() < QUARANTINE);
            let mut seen = HashMap::new();
            for name in &step.wanted {
                let Some(place) = allotment.get(name) else { continue };
                prop_assert!(RANGE.contains(place));
                prop_assert_eq!(allotment.name_of(place), Some(name));
                prop_assert_eq!(seen.insert(place, name), None, "one place, two names");
                prop_assert!(before.get(name).is_none_or(|earlier| *earlier == place), "{} has moved", name);
                if let Some((own, _)) = freed.remove(name) {
                    prop_assert_eq!(own, place, "{} came back", name);
                }
                prop_assert!(freed.values().all(|(quarantined, _)| *quarantined != place));
            }
            prop_assert_eq!(seen.len() + errors.len(), step.wanted.len());
            if !errors.is_empty() {
                prop_assert_eq!(seen.len() + freed.len(), 16, "places were left");
            }
        }
    }

    #[test]
    fn allotment_of_a_new_range_follows_from_the_names_alone(wanted in btree_set("[a-z]{1,9}", 0..17)) {
        let (mut one, mut other) = (Allotment::new(RANGE), Allotment::new(RANGE));
        prop_assert_eq!(one.want(&wanted, start()), other.want(&wanted, start() + QUARANTINE));
        prop_assert!(one.stored().eq(other.stored()));
    }

    #[test]
    fn allotment_restored_from_anything_is_consistent(
        stored in vec(("[a-d]", 19_990_u16..20_030, any::<Option<u32>>()), 0..20),
    ) {
        let entries = stored.into_iter().map(|(name, place, freed)| Stored {
            name,
            place,
            freed: freed.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into())),
        });
        let count = entries.clone().count();
        let (mut allotment, unfit) = Allotment::restored(RANGE, entries);
        prop_assert_eq!(allotment.stored().count() + unfit.len(), count);
        prop_assert_eq!(allotment.want(&names(&["a", "b", "c", "d"]), start()), []);
        let places: BTreeSet<u16> = allotment.wanted().map(|(_, place)| place).collect();
        prop_assert_eq!(places.len(), 4);
    }
}

#[test]
fn allotment_deleted_name_gets_its_own_place_again_and_a_new_one_another() {
    let mut allotment = Allotment::new(RANGE);
    assert_eq!(allotment.want(&names(&["a", "b"]), start()), []);
    let place = allotment.get(&"a".to_owned()).unwrap();
    let others: BTreeSet<String> = (0..14).map(|name| format!("c{name}")).chain(["b".to_owned()]).collect();
    assert_eq!(allotment.want(&others, start()), []);
    assert!(allotment.wanted().all(|(_, taken)| taken != place));
    assert_eq!(allotment.name_of(place), None, "a freed place is refused");
    let with_a: BTreeSet<String> = others.iter().cloned().chain(["a".to_owned()]).collect();
    assert_eq!(allotment.want(&with_a, start()), []);
    assert_eq!(allotment.get(&"a".to_owned()), Some(place));
}

#[test]
fn allotment_exhausted_range_is_named_until_the_quarantine_ends() {
    let all: BTreeSet<String> = (0..16).map(|name| format!("n{name}")).collect();
    let mut allotment = Allotment::new(RANGE);
    assert_eq!(allotment.want(&all, start()), []);
    let next = names(&["next"]);
    let errors = allotment.want(&next, start());
    assert_eq!(
        errors[0].to_string(),
        "no place is left for next in 20000-20015: 0 are in use, 16 are quarantined for up to 24h; configure a larger \
         range"
    );
    let later = start() + QUARANTINE - Duration::from_secs(1);
    assert_eq!(allotment.want(&next, later).len(), 1);
    assert_eq!(allotment.want(&next, start() + QUARANTINE), []);
}

#[test]
fn allotment_quarantine_survives_a_clock_that_is_set_back() {
    let mut allotment = Allotment::new(RANGE);
    allotment.want(&names(&["a"]), start());
    allotment.want(&names(&[]), start());
    allotment.want(&names(&[]), start() - Duration::from_hours(1));
    assert_eq!(allotment.stored().count(), 1);
    allotment.want(&names(&[]), start() - Duration::from_hours(25));
    assert_eq!(allotment.stored().count(), 0, "it does not last for ever");
}
