//! The store in a directory against a map, and what it does beside other agents, crashes and stray files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Get(usize),
    /// With the version that was last seen of this key, with that of a key never written, or with none.
    Swap(usize, Seen, u8),
    List(&'static str),
    Delete(usize, Seen),
    Reopen,
}

#[derive(Clone, Copy, Debug)]
enum Seen {
    Now,
    Before,
    Never,
}

const KEYS: [&str; 4] = ["a", "a.json", "ab", "B-_9"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let seen = || prop_oneof![3 => Just(Seen::Now), 1 => Just(Seen::Before), 1 => Just(Seen::Never)];
    let step = prop_oneof![
        2 => (0..KEYS.len()).prop_map(Step::Get),
        6 => (0..KEYS.len(), seen(), 0..4_u8).prop_map(|(key, seen, value)| Step::Swap(key, seen, value)),
        1 => prop_oneof![Just(""), Just("a"), Just("ab"), Just("c")].prop_map(Step::List),
        2 => (0..KEYS.len(), seen()).prop_map(|(key, seen)| Step::Delete(key, seen)),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What a map would do: a version stands for a value.
#[derive(Default)]
struct Model {
    values: BTreeMap<&'static str, Vec<u8>>,
    /// What each key held before its last change.
    before: BTreeMap<&'static str, Option<Vec<u8>>>,
}

impl Model {
    fn expected(&self, key: &'static str, seen: Seen) -> Option<Vec<u8>> {
        match seen {
            Seen::Now => self.values.get(key).cloned(),
            Seen::Before => self.before.get(key).cloned().flatten(),
            Seen::Never => None,
        }
    }

    fn put(&mut self, key: &'static str, value: Option<Vec<u8>>) {
        let old = match value {
            Some(value) => self.values.insert(key, value),
            None => self.values.remove(key),
        };
        self.before.insert(key, old);
    }
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let mut store = FileStore::open(folder.path()).unwrap();
    let mut model = Model::default();
    // Which version each value was given: of one key and value always the same.
    let mut versions: BTreeMap<Vec<u8>, Version> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Get(key) => {
                let found = store.get(KEYS[key]).await.unwrap();
                if let Some(found) = &found {
                    prop_assert_eq!(versions.get(&found.value), Some(&found.version));
                }
                prop_assert_eq!(found.map(|found| found.value), model.values.get(KEYS[key]).cloned());
            }
            Step::Swap(key, seen, value) => {
                let (key, value) = (KEYS[key], vec![value; usize::from(value)]);
                let expected = model.expected(key, seen);
                let version = expected.as_ref().map(|value| versions[value]);
                let done = store.compare_and_swap(key, version, value.clone()).await.unwrap();
                prop_assert_eq!(done.is_some(), model.values.get(key).cloned() == expected);
                if let Some(done) = done {
                    versions.insert(value.clone(), done);
                    model.put(key, Some(value));
                }
            }
            Step::List(prefix) => {
                let expected: Vec<_> = model.values.keys().filter(|key| key.starts_with(prefix)).collect();
                let found = store.list(prefix).await.unwrap();
                prop_assert_eq!(found.iter().collect::<Vec<_>>(), expected);
            }
            Step::Delete(key, seen) => {
                let key = KEYS[key];
                let expected = model.expected(key, seen);
                let version = expected.as_ref().map_or(Version(1), |value| versions[value]);
                let done = store.delete(key, version).await.unwrap();
                prop_assert_eq!(done, expected.is_some() && model.values.get(key).cloned() == expected);
                if done {
                    model.put(key, None);
                }
            }
            Step::Reopen => {
                drop(store);
                store = FileStore::open(folder.path()).unwrap();
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_directory_does_what_a_map_would_do(steps in steps()) {
        Runtime::new().unwrap().block_on(run(steps))?;
    }
}

#[tokio::test]
async fn of_many_who_swap_at_once_one_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let mut version = None;
    for round in 0..20_u8 {
        let all: Vec<_> = (0..8_u8)
            .map(|who| {
                let store = store.clone();
                tokio::spawn(
                    async move { store.compare_and_swap("k", version, vec![round, who]).await.unwrap() },
                )
            })
            .collect();
        let mut done = Vec::new();
        for one in all {
            done.extend(one.await.unwrap());
        }
        assert_eq!(done.len(), 1, "round {round}");
        let held = store.get("k").await.unwrap().unwrap();
        assert_eq!((held.value[0], Some(held.version)), (round, Some(done[0])));
        version = Some(done[0]);
    }
}

#[test]
fn a_second_agent_is_told_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a/state");
    let first = FileStore::open(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let second = FileStore::open(&path).unwrap_err();
    assert!(matches!(second, StoreError::InUse(_)));
    assert!(second.to_string().contains("etcd or Kubernetes"), "{second}");
    drop(first);
    FileStore::open(&path).unwrap();
}

/// Another process, not only another descriptor of this one.
#[test]
fn the_lock_holds_between_processes() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    let lock = folder.path().join(".lock");
    let flock = || Command::new("flock").arg("-n").arg(&lock).arg("true").status();
    let Ok(held) = flock() else { return println!("SKIPPED: flock(1) is not installed") };
    assert!(!held.success());
    drop(store);
    assert!(flock().unwrap().success());
}

#[tokio::test]
async fn what_is_no_key_or_no_value_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::open(folder.path().join("state")).unwrap();
    for key in ["", ".lock", "..", "a/b", "../a", "a\0", "é", "a b", &"k".repeat(201)] {
        assert!(matches!(store.get(key).await, Err(StoreError::Key(_))), "{key:?}");
        let put = store.compare_and_swap(key, None, b"x".to_vec()).await;
        assert!(matches!(put, Err(StoreError::Key(_))), "{key:?}");
        assert!(matches!(store.delete(key, Version(0)).await, Err(StoreError::Key(_))), "{key:?}");
    }
    let large = store.compare_and_swap("a", None, vec![0; LARGEST_VALUE + 1]).await;
    assert!(matches!(large, Err(StoreError::Large(_))));
    assert_eq!(store.list("").await.unwrap(), [""; 0]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing beside it");
}

#[tokio::test]
async fn what_others_left_in_the_directory_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".new-half"), "half").unwrap();
    fs::write(folder.path().join(".other"), "kept").unwrap();
    fs::write(folder.path().join("with blank"), "no key").unwrap();
    let store = FileStore::open(folder.path()).unwrap();
    assert!(!folder.path().join(".new-half").exists());
    let version = store.compare_and_swap("a", None, b"1".to_vec()).await.unwrap();
    assert_eq!(store.list("").await.unwrap(), ["a"]);
    assert_eq!(fs::metadata(folder.path().join("a")).unwrap().permissions().mode() & 0o777, 0o600);
    // An operator's edit is somebody else who came first.
    fs::write(folder.path().join("a"), "2").unwrap();
    assert_eq!(store.compare_and_swap("a", version, b"3".to_vec()).await.unwrap(), None);
    assert_eq!(store.get("a").await.unwrap().unwrap().value, b"2");
    assert!(folder.path().join(".other").exists());
}
