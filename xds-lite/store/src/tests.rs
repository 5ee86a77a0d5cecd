//! Tests of a store under damage of every kind to each of its files: undamaged records survive, and lost ones are
//! reported.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};

use super::*;

mod shared;

const FILE: &str = "slices.db";
const PATIENCE: Duration = Duration::from_secs(30);

/// The state of a program.
#[derive(Debug, Default)]
struct State(Mutex<BTreeMap<String, Vec<u8>>>);

impl Source for State {
    fn keys(&self) -> Vec<String> {
        self.0.lock().unwrap().keys().cloned().collect()
    }

    fn values(&self, keys: &[String]) -> Vec<Option<Vec<u8>>> {
        let all = self.0.lock().unwrap();
        keys.iter().map(|key| all.get(key).cloned()).collect()
    }

    fn restore(&self, records: Vec<Record>) {
        let mut all = self.0.lock().unwrap();
        records.into_iter().for_each(|(key, value)| _ = all.entry(key).or_insert(value));
    }
}

/// A program with a store.
struct Program {
    state: Arc<State>,
    persistence: Persistence,
}

impl Program {
    fn start(folder: &Path) -> Program {
        let (mut persistence, records) = Persistence::open("slices", folder, FILE);
        let state = Arc::new(State::default());
        state.restore(records);
        let source = Arc::downgrade(&state);
        persistence.begin(source);
        Program { state, persistence }
    }

    fn set(&self, key: &str, value: Option<&[u8]>) {
        let mut all = self.state.0.lock().unwrap();
        match value {
            Some(value) => _ = all.insert(key.to_owned(), value.to_vec()),
            None => _ = all.remove(key),
        }
        drop(all);
        self.persistence.changed(key.to_owned());
    }

    fn all(&self) -> BTreeMap<String, Vec<u8>> {
        self.state.0.lock().unwrap().clone()
    }

    fn report(&self) -> StoreHealth {
        self.persistence.health().report()
    }

    fn waits_for(&self, what: &str, is_so: impl Fn(&StoreHealth) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !is_so(&self.report()) {
            assert!(Instant::now() < end, "{what}: {:?}", self.report());
            std::thread::yield_now();
        }
    }

    /// Waits until everything is written, and ends.
    fn stop(self, folder: &Path) -> BTreeMap<String, Vec<u8>> {
        let end = Instant::now() + PATIENCE;
        while !self.persistence.is_idle() {
            assert!(Instant::now() < end, "the store is still busy: {:?}", self.report());
            std::thread::yield_now();
        }
        let all = self.all();
        self.persistence.stop();
        assert!(folder.join(FILE).exists());
        all
    }
}

fn value(seed: &mut fastrand::Rng) -> Vec<u8> {
    let length = match seed.u32(..8) {
        0 => seed.usize(..20_000),
        1 => 0,
        _ => seed.usize(..600),
    };
    std::iter::repeat_with(|| seed.u8(..)).take(length).collect()
}

fn fill(folder: &Path, seed: &mut fastrand::Rng, count: usize) -> BTreeMap<String, Vec<u8>> {
    let program = Program::start(folder);
    for number in 0..count {
        program.set(&format!("import/west/west/host-{number}.example"), Some(&value(seed)));
    }
    program.stop(folder)
}

#[test]
fn store_restores_the_last_state_after_each_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut seed = fastrand::Rng::with_seed(1);
    let mut model = BTreeMap::new();
    for _ in 0..20 {
        let program = Program::start(dir.path());
        assert!(program.all() == model);
        for _ in 0..seed.usize(..60) {
            let key = format!("own/east/{}", seed.u8(..40));
            let value = seed.bool().then(|| value(&mut seed));
            program.set(&key, value.as_deref());
        }
        model = program.stop(dir.path());
    }
    assert_eq!(Program::start(dir.path()).report().damaged_files, 0);
}

/// Damages a file between two starts.
fn damage(path: &Path, seed: &mut fastrand::Rng) -> &'static str {
    let length = fs::metadata(path).map_or(0, |facts| facts.len());
    let file = fs::OpenOptions::new().write(true).read(true).open(path).unwrap();
    match seed.u32(..6) {
        0 | 1 => {
            let place = seed.u64(..length);
            let mut byte = [0];
            file.read_exact_at(&mut byte, place).unwrap();
            byte[0] ^= 1 << seed.u32(..8);
            file.write_all_at(&byte, place).unwrap();
            "a bit is flipped"
        }
        2 => {
            file.set_len(if seed.u32(..4) == 0 { 0 } else { seed.u64(..length) }).unwrap();
            "the file is cut off"
        }
        3 => {
            let noise: Vec<u8> = std::iter::repeat_with(|| seed.u8(..)).take(512).collect();
            file.write_all_at(&noise, seed.u64(..length)).unwrap();
            "noise is written over it"
        }
        4 => {
            file.write_all_at(&[0; 4096], seed.u64(..length) & !4095).unwrap();
            "a page is zero"
        }
        _ => {
            file.write_all_at(&[0xff; 4096], length).unwrap();
            "something was appended"
        }
    }
}

/// Records whose bytes are in the file in one piece are undamaged, and must survive any other damage.
#[test]
fn damaged_store_loses_only_damaged_records_and_reports_them() {
    let mut seed = fastrand::Rng::with_seed(2);
    let (mut lost, mut kept) = (0, 0);
    for round in 0..150 {
        let dir = tempfile::tempdir().unwrap();
        let count = seed.usize(1..120);
        let before = fill(dir.path(), &mut seed, count);
        let path = dir.path().join(FILE);
        let what = damage(&path, &mut seed);
        let bytes = fs::read(&path).unwrap();
        let program = Program::start(dir.path());
        let (after, report) = (program.all(), program.report());
        for (key, value) in &before {
            match after.get(key) {
                Some(found) => assert!(found == value, "round {round}, {what}: {key} has another value"),
                None => {
                    lost += 1;
                    assert!(
                        report.damaged_files > 0,
                        "round {round}, {what}: {key} is lost without a report"
                    );
                    // Short records are in one piece.
                    let whole = [key.as_bytes(), value, &record::checksum(key, value)].concat();
                    let is_whole = value.len() < 400 && bytes.windows(whole.len()).any(|part| part == whole);
                    assert!(
                        !is_whole || what == "noise is written over it",
                        "round {round}, {what}: {key} was not damaged"
                    );
                }
            }
        }
        kept += after.len();
        assert!(
            after.keys().all(|key| before.contains_key(key)),
            "round {round}, {what}: a removed record returned"
        );
        // A record whose key is lost as well is not counted.
        let missing = before.len() - after.len();
        let named = usize::try_from(report.lost_records).unwrap();
        assert!(named <= missing, "round {round}, {what}: {missing} are lost, {report:?}");
        assert!(
            named == missing || what != "a bit is flipped",
            "round {round}, {what}: {missing} are lost, {report:?}"
        );
        // It recovers: the next start finds everything intact.
        let healed = program.stop(dir.path());
        let again = Program::start(dir.path());
        assert!(again.all() == healed, "round {round}, {what}: the next start has other records");
        assert_eq!(again.report().damaged_files, 0, "round {round}, {what}: {:?}", again.report());
    }
    println!("{kept} records kept, {lost} lost and named");
    assert!(lost > 0 && kept > 10 * lost);
}

fn put_in_place(path: &Path, kind: u32) {
    match kind {
        0 => mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap(),
        1 => fs::create_dir(path).unwrap(),
        2 => symlink("/etc/passwd", path).unwrap(),
        _ => symlink("nowhere", path).unwrap(),
    }
}

#[test]
fn store_starts_with_non_files_in_place_of_its_files_and_reports_them() {
    let mut seed = fastrand::Rng::with_seed(3);
    for suffix in ["", "-journal", "-wal", "-shm", ".new"] {
        for kind in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            let before = fill(dir.path(), &mut seed, 20);
            let path = dir.path().join(format!("{FILE}{suffix}"));
            let _ = fs::remove_file(&path);
            put_in_place(&path, kind);
            let program = Program::start(dir.path());
            let expected = if suffix.is_empty() { BTreeMap::new() } else { before };
            assert!(program.all() == expected, "{suffix} {kind}");
            assert_eq!(program.report().damaged_files > 0, suffix != ".new", "{suffix} {kind}");
            program.set("own/east/new", Some(b"1"));
            let all = program.stop(dir.path());
            assert!(Program::start(dir.path()).all() == all, "{suffix} {kind}");
        }
    }
}

#[test]
fn store_recovers_when_its_directory_returns() {
    let dir = tempfile::tempdir().unwrap();
    let mut seed = fastrand::Rng::with_seed(4);
    let (away, folder) = (dir.path().join("away"), dir.path().join("state"));
    let before = fill(&folder, &mut seed, 20);
    fs::rename(&folder, &away).unwrap();
    fs::write(&folder, "not a directory").unwrap();
    let program = Program::start(&folder);
    assert!(!program.report().usable && program.report().problem.is_some(), "{:?}", program.report());
    program.set("own/east/new", Some(b"1"));
    fs::remove_file(&folder).unwrap();
    fs::rename(&away, &folder).unwrap();
    program.waits_for("usable", |report| report.usable);
    let all = program.stop(&folder);
    assert_eq!(all.len(), before.len() + 1, "the old records, and the new one");
    assert_eq!(Program::start(&folder).all(), all);
}

#[test]
fn store_removed_or_replaced_at_run_time_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let program = Program::start(dir.path());
    for round in 0..4_u8 {
        program.set(&format!("own/east/{round}"), Some(&[round]));
        let end = Instant::now() + PATIENCE;
        while !program.persistence.is_idle() {
            assert!(Instant::now() < end, "round {round}");
            std::thread::yield_now();
        }
        fs::remove_file(&path).unwrap();
        if round > 0 {
            put_in_place(&path, u32::from(round) - 1);
        }
    }
    program.set("own/east/last", Some(b"last"));
    let all = program.stop(dir.path());
    assert_eq!(all.len(), 5);
    assert_eq!(Program::start(dir.path()).all(), all);
}

#[test]
fn store_locked_by_another_process_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let first = Program::start(dir.path());
    first.set("own/east/a", Some(b"1"));
    let second = Program::start(dir.path());
    let problem = second.report().problem.unwrap();
    assert!(problem.contains("another process"), "{problem}");
    let all = first.stop(dir.path());
    second.waits_for("usable", |report| report.usable);
    assert_eq!(second.all(), all, "restored once the first process has ended");
}

#[test]
fn store_reports_a_record_that_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::start(dir.path());
    program.set("own/east/a", Some(&vec![1; LARGEST_VALUE]));
    program.set("own/east/b", Some(&vec![1; LARGEST_VALUE + 1]));
    program.waits_for("too large", |report| report.too_large == 1);
    program.stop(dir.path());
    assert_eq!(Program::start(dir.path()).all().keys().collect::<Vec<_>>(), ["own/east/a"]);
}

/// A journal entry, as written by older versions.
fn journal_entry(key: &str, value: Option<&[u8]>) -> Vec<u8> {
    use sha2::{Digest as _, Sha256};
    let bytes = value.unwrap_or_default();
    let mut entry = Vec::new();
    for length in [key.len(), bytes.len()] {
        entry.extend(u32::try_from(length).unwrap().to_le_bytes());
    }
    entry.push(value.is_some().into());
    entry.extend(key.as_bytes());
    entry.extend(bytes);
    let sum = Sha256::digest(&entry);
    entry.extend(&sum[..8]);
    entry
}

fn adopts(dir: &Path, old: &Path) -> (BTreeMap<String, Vec<u8>>, StoreHealth) {
    let (mut persistence, records) = Persistence::open("slices", dir, FILE);
    let state = Arc::new(State::default());
    state.restore(records);
    state.restore(persistence.adopt(old, journal));
    persistence.begin(Arc::<State>::downgrade(&state));
    let program = Program { state, persistence };
    let report = program.report();
    (program.stop(dir), report)
}

#[test]
fn journal_of_older_versions_is_imported_past_a_tear() {
    let entries = [
        journal_entry("east/a", Some(b"1")),
        journal_entry("east/b", Some(b"2")),
        journal_entry("east/c", Some(b"3")),
        journal_entry("east/a", None),
        journal_entry("east/d", Some(b"4")),
    ];
    let whole = entries.concat();
    let torn =
        [&entries[0][..], &entries[1][..7], &entries[2][..], &entries[3][..], &entries[4][..]].concat();
    for (bytes, expected, is_damaged) in [(&whole, "bcd", false), (&torn, "cd", true)] {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("agent.slices");
        fs::write(&old, bytes).unwrap();
        let (all, report) = adopts(dir.path(), &old);
        let names: String = all.keys().map(|key| key.trim_start_matches("east/")).collect();
        assert_eq!((&*names, report.damaged_files > 0), (expected, is_damaged));
        assert!(!old.exists(), "it is imported once");
        assert_eq!(adopts(dir.path(), &old).0, all);
    }
    for kind in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let old: PathBuf = dir.path().join("agent.slices");
        put_in_place(&old, kind);
        let (all, report) = adopts(dir.path(), &old);
        assert_eq!((all.len(), report.damaged_files), (0, 1), "{kind}");
    }
}
