//! Tests of the shared store: it is a map whatever the handle, damage costs the damaged records only and names them, and
//! of all callers that expect the same version one succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread;

use proptest::prelude::*;

use super::{damage, put_in_place};
use crate::{Embedded, Expect, LARGEST_VALUE, Listing, Store, StoreError, UNNAMED, Version};

const FILE: &str = "trust.db";

fn open(folder: &Path) -> Embedded {
    Embedded::new("trust", folder, FILE)
}

fn all(store: &Embedded) -> BTreeMap<String, Vec<u8>> {
    let listing = store.list("").unwrap();
    listing.entries.into_iter().map(|entry| (entry.key, entry.value)).collect()
}

#[derive(Clone, Copy, Debug)]
enum Expected {
    Anything,
    Absent,
    Lost,
    Current,
    Former,
}

#[derive(Clone, Debug)]
struct Step {
    handle: usize,
    key: u8,
    /// A new value, or none to remove the record.
    value: Option<u8>,
    expected: Expected,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let expected = prop_oneof![
        Just(Expected::Anything),
        Just(Expected::Absent),
        Just(Expected::Lost),
        Just(Expected::Current),
        Just(Expected::Former),
    ];
    let step = (0..2_usize, 0..6_u8, prop::option::of(any::<u8>()), expected)
        .prop_map(|(handle, key, value, expected)| Step { handle, key, value, expected });
    prop::collection::vec(step, 1..20)
}

/// What the store is compared with.
#[derive(Default)]
struct Model {
    records: BTreeMap<String, (Vec<u8>, Version)>,
    former: BTreeMap<String, Version>,
}

impl Model {
    /// Whether a step succeeds.
    fn allows(&self, key: &str, expected: Expected) -> bool {
        let current = self.records.get(key).map(|(_, version)| version);
        match expected {
            Expected::Anything => true,
            Expected::Absent => current.is_none(),
            Expected::Lost => false,
            Expected::Current => current.is_some(),
            // The same value again has the same version.
            Expected::Former => current.is_some() && current == self.former.get(key),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn store_is_a_map_through_two_handles(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let handles = [open(dir.path()), open(dir.path())];
        let mut watch = handles[0].watch("b/");
        prop_assert_eq!(watch.poll().unwrap(), Some(Listing::default()));
        let mut model = Model::default();
        for Step { handle, key, value, expected } in steps {
            let store = &handles[handle];
            let key = format!("{}/{}", if key < 3 { "a" } else { "b" }, key % 3);
            let never = Version::new(b"never");
            let current = model.records.get(&key).map(|(_, version)| version.clone());
            let former = model.former.get(&key).cloned();
            let expect = match expected {
                Expected::Anything => Expect::Anything,
                Expected::Absent => Expect::Absent,
                Expected::Lost => Expect::Lost,
                Expected::Current => Expect::Version(current.as_ref().unwrap_or(&never)),
                Expected::Former => Expect::Version(former.as_ref().unwrap_or(&never)),
            };
            let before = store.list("b/").unwrap();
            let done = match value {
                Some(value) => store.put(&key, &[value], expect).map(Some),
                None => store.remove(&key, expect).map(|()| None),
            };
            match done {
                Ok(version) => {
                    prop_assert!(model.allows(&key, expected), "{key} {expected:?}");
                    model.former.extend(model.records.remove(&key).map(|(_, version)| (key.clone(), version)));
                    let record = value.map(|value| vec![value]).zip(version);
                    model.records.extend(record.map(|record| (key.clone(), record)));
                }
                Err(error) => {
                    prop_assert!(!model.allows(&key, expected), "{key} {expected:?}");
                    prop_assert_eq!(error, StoreError::Conflict(key.clone()));
                }
            }
            for store in &handles {
                let found = store.get(&key).unwrap().map(|entry| (entry.value, entry.version));
                prop_assert_eq!(found.as_ref(), model.records.get(&key));
                for prefix in ["", "a/", "b/1"] {
                    let listing = store.list(prefix).unwrap();
                    let found = listing.entries.into_iter().map(|entry| (entry.key, (entry.value, entry.version)));
                    let expected = model.records.iter().filter(|(key, _)| key.starts_with(prefix));
                    prop_assert!(found.eq(expected.map(|(key, record)| (key.clone(), record.clone()))));
                }
            }
            let after = store.list("b/").unwrap();
            let news = watch.poll().unwrap();
            prop_assert_eq!(news, (before != after).then_some(after), "only changes under the prefix");
        }
        prop_assert_eq!(handles[0].report().damaged_files, 0);
    }
}

#[test]
fn store_change_succeeds_for_one_of_all_that_expect_the_same_version() {
    const THREADS: usize = 4;
    const TIMES: usize = 25;
    let dir = tempfile::tempdir().unwrap();
    let count = || {
        let store = open(dir.path());
        let mut done = 0;
        while done < TIMES {
            let entry = store.get("count/all").unwrap();
            let number = entry.as_ref().map_or(0, |entry| entry.value.len());
            let expect = entry.as_ref().map_or(Expect::Absent, |entry| Expect::Version(&entry.version));
            match store.put("count/all", &vec![1; number + 1], expect) {
                Ok(_) => done += 1,
                Err(error) => assert!(matches!(error, StoreError::Conflict(_)), "{error}"),
            }
        }
    };
    thread::scope(|scope| (0..THREADS).for_each(|_| _ = scope.spawn(count)));
    assert_eq!(open(dir.path()).get("count/all").unwrap().unwrap().value.len(), THREADS * TIMES);
}

#[test]
fn store_limits_keys_and_values() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for key in ["", "plain", UNNAMED, "a/\n", &format!("a/{}", "x".repeat(1_000))] {
        let error = store.put(key, b"1", Expect::Anything).unwrap_err();
        assert!(matches!(error, StoreError::Invalid(..)), "{key}: {error}");
    }
    assert!(store.put("a/b", &vec![0; LARGEST_VALUE + 1], Expect::Anything).is_err());
    store.put("a/b", &vec![0; LARGEST_VALUE], Expect::Anything).unwrap();
    assert_eq!(all(&store).len(), 1);
}

/// Two processes: the damage is found by one, and the other has read the file before.
#[test]
fn store_damage_loses_only_damaged_records_and_names_them() {
    let mut seed = fastrand::Rng::with_seed(40);
    let (mut lost, mut kept) = (0, 0);
    for round in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let stores = [open(dir.path()), open(dir.path())];
        for number in 0..seed.usize(1..12) {
            let length = seed.usize(..600);
            let value: Vec<u8> = std::iter::repeat_with(|| seed.u8(..)).take(length).collect();
            stores[number % 2].put(&format!("peers/cluster-{number}"), &value, Expect::Absent).unwrap();
        }
        stores[0].put("tokens/removed", b"1", Expect::Absent).unwrap();
        stores[1].remove("tokens/removed", Expect::Anything).unwrap();
        let before = all(&stores[0]);
        let how = damage(&dir.path().join(FILE), &mut seed);
        let listing = stores[1].list("peers/").unwrap();
        let after = all(&stores[0]);
        assert!(after.iter().all(|(key, value)| before.get(key) == Some(value)), "round {round}, {how}");
        let named: BTreeSet<_> = listing.lost.iter().collect();
        for key in before.keys().filter(|key| !after.contains_key(*key)) {
            lost += 1;
            let is_named = named.contains(key) || named.contains(&UNNAMED.to_owned());
            assert!(is_named && stores[1].report().damaged_files > 0, "round {round}, {how}: {key}");
            assert!(is_named || how != "a bit is flipped", "round {round}: {key}");
            if named.contains(key) {
                assert_eq!(stores[0].get(key), Err(StoreError::Lost(key.clone())));
                assert!(stores[0].put(key, b"2", Expect::Absent).is_err(), "it may not be new");
            }
        }
        kept += after.len();
        // Both go on, and a lost record that is written is not lost any more.
        for key in &listing.lost {
            let done = match key == UNNAMED {
                true => stores[0].remove(key, Expect::Lost),
                false => stores[0].put(key, b"again", Expect::Lost).map(drop),
            };
            assert_eq!(done, Ok(()), "round {round}, {how}: {key}");
        }
        assert_eq!(stores[1].list("").unwrap().lost, [""; 0], "round {round}, {how}");
        assert_eq!(all(&open(dir.path())), all(&stores[0]), "round {round}, {how}");
    }
    println!("{kept} records kept, {lost} lost and named");
    assert!(lost > 0 && kept > lost);
}

#[test]
fn store_works_with_non_files_in_place_of_its_files_and_reports_them() {
    for suffix in ["", "-journal", ".lock", ".new"] {
        for kind in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let [one, other] = [open(dir.path()), open(dir.path())];
            one.put("peers/west", b"1", Expect::Absent).unwrap();
            assert_eq!(all(&other).len(), 1);
            let path = dir.path().join(format!("{FILE}{suffix}"));
            let _ = fs::remove_file(&path);
            put_in_place(&path, kind);
            let listing = other.list("peers/").unwrap();
            let is_lost = suffix.is_empty();
            assert_eq!(listing.entries.is_empty(), is_lost, "{suffix} {kind}");
            assert_eq!(listing.lost.contains(&UNNAMED.to_owned()), is_lost, "{suffix} {kind}: {listing:?}");
            assert_eq!(
                other.report().damaged_files > 0,
                is_lost || suffix == "-journal",
                "{suffix} {kind}: {:?}",
                other.report()
            );
            one.put("peers/north", b"2", Expect::Absent).unwrap();
            assert!(all(&other).contains_key("peers/north") && other.report().usable, "{suffix} {kind}");
        }
    }
}

#[test]
fn store_removed_while_in_use_says_that_records_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert_eq!(store.list("").unwrap(), Listing::default(), "a new one has lost nothing");
    store.put("peers/west", b"1", Expect::Absent).unwrap();
    fs::remove_file(dir.path().join(FILE)).unwrap();
    assert_eq!(store.list("peers/").unwrap().lost, [UNNAMED]);
    assert_eq!(open(dir.path()).list("peers/").unwrap().lost, [UNNAMED], "another process is told, too");
    assert_eq!(store.report().damaged_files, 1);
}

#[test]
fn store_without_a_directory_fails_until_it_returns() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    fs::write(&folder, "not a directory").unwrap();
    let store = open(&folder);
    let error = store.get("peers/west").unwrap_err();
    assert!(matches!(&error, StoreError::Unusable(why) if why.contains("trust.db")), "{error}");
    assert!(!store.report().usable && store.report().problem.is_some());
    fs::remove_file(&folder).unwrap();
    store.put("peers/west", b"1", Expect::Absent).unwrap();
    assert!(store.report().usable && store.report().problem.is_none());
}
