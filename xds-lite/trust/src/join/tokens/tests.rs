//! Tests of tokens in the store that an agent and its commands share.

use std::env;
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;

use isthmus_certs::TrustDomain;

use super::*;
use crate::join::Party;
use crate::join::secret::Secret;

fn record(expires: u64) -> Record {
    let secret = Secret::generate().unwrap();
    let guest = Guest::Cluster(Party {
        cluster: "west".parse().unwrap(),
        trust_domain: TrustDomain::new("west.example").unwrap(),
    });
    Record { id: secret.id(), guest, expires, verifier: secret.verifier() }
}

/// The tokens as a process of its own opens them.
fn tokens(state: &Path) -> Tokens {
    Tokens::new(Arc::new(crate::join::store(state)), state)
}

#[test]
fn token_ends_once() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(&dir.path().join("state"));
    assert_eq!(tokens.list().unwrap(), [], "no token yet");
    let record = record(100);
    tokens.put(&record).unwrap();
    assert_eq!(tokens.find(record.id).unwrap(), Some((record.clone(), State::Open)));
    assert!(tokens.end(record.id, Ending::Used).unwrap());
    assert!(!tokens.end(record.id, Ending::Used).unwrap());
    assert!(!tokens.end(record.id, Ending::Void).unwrap());
    assert_eq!(tokens.find(record.id).unwrap(), Some((record.clone(), State::Used)));
    assert!(matches!(tokens.put(&record), Err(StoreError::Conflict(_))), "it is not made anew");
}

#[test]
fn token_ends_for_one_of_many_callers() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..10 {
        let record = record(100);
        tokens(dir.path()).put(&record).unwrap();
        let start = Barrier::new(8);
        let end = || {
            let tokens = tokens(dir.path());
            start.wait();
            usize::from(tokens.end(record.id, Ending::Used).unwrap())
        };
        let winners: usize = thread::scope(|scope| {
            let callers: Vec<_> = (0..8).map(|_| scope.spawn(end)).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).sum()
        });
        assert_eq!(winners, 1);
    }
}

/// Two processes that are told at the same time to spend the same tokens, one by one.
#[test]
fn token_ends_for_one_of_two_processes() {
    const NAME: &str = "join::tokens::tests::token_ends_for_one_of_two_processes";
    const STATE: &str = "ISTHMUS_TEST_STATE";
    const WON: &str = "won";
    if let Some(state) = env::var_os(STATE) {
        let tokens = tokens(&PathBuf::from(state));
        let all = tokens.list().unwrap();
        println!("ready");
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        for (record, _) in all {
            if tokens.end(record.id, Ending::Used).unwrap() {
                println!("{WON} {}", record.id);
            }
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let records: Vec<_> = (0..20).map(|_| record(100)).collect();
    records.iter().for_each(|record| tokens(dir.path()).put(record).unwrap());
    let mut processes: Vec<_> = (0..2)
        .map(|_| {
            let mut command = Command::new(env::current_exe().unwrap());
            command.args(["--exact", NAME, "--nocapture"]).env(STATE, dir.path());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let mut outputs = Vec::new();
    for process in &mut processes {
        let mut output = process.stdout.take().unwrap();
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains("ready\n") {
            let mut byte = [0];
            output.read_exact(&mut byte).unwrap();
            heard.extend(byte);
        }
        outputs.push(output);
    }
    processes.iter_mut().for_each(|process| process.stdin.take().unwrap().flush().unwrap());
    let mut winners = 0;
    for (mut process, mut output) in processes.into_iter().zip(outputs) {
        let mut heard = String::new();
        output.read_to_string(&mut heard).unwrap();
        assert!(process.wait().unwrap().success(), "{heard}");
        winners += heard.lines().filter(|line| line.starts_with(WON)).count();
    }
    assert_eq!(winners, records.len(), "each token is spent by one process");
    assert!(tokens(dir.path()).list().unwrap().iter().all(|(_, state)| *state == State::Used));
}

#[test]
fn token_that_ended_is_deleted_after_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let (old, used, young) = (record(100), record(100), record(100 + REMEMBERED));
    for record in [&old, &used, &young] {
        tokens.put(record).unwrap();
    }
    assert!(tokens.end(used.id, Ending::Used).unwrap());
    tokens.sweep(100 + REMEMBERED).unwrap();
    assert_eq!(tokens.list().unwrap().len(), 3, "an hour has not passed");
    tokens.sweep(101 + REMEMBERED).unwrap();
    assert_eq!(tokens.list().unwrap(), [(young, State::Open)]);
    assert!(tokens.spent.contains(used.id), "it may come back with a backup");
    tokens.sweep(u64::MAX).unwrap();
    assert_eq!(tokens.list().unwrap(), []);
    assert!(!tokens.spent.contains(used.id));
}

#[test]
fn token_damage_voids_an_open_one_and_never_revives_a_spent_one() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let [open, spent, other] = [record(100), record(100), record(100)];
    for record in [&open, &spent, &other] {
        tokens.put(record).unwrap();
    }
    let file = dir.path().join("trust.db");
    let before = fs::read(&file).unwrap();
    assert!(tokens.end(spent.id, Ending::Used).unwrap());
    // A letter in the record of the open token.
    let mut bytes = fs::read(&file).unwrap();
    let id = format!("\"id\":\"{}\"", open.id);
    let at = (0..bytes.len()).find(|at| bytes[*at..].starts_with(id.as_bytes())).unwrap();
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_eq!(tokens.find(open.id).unwrap(), None);
    assert!(!tokens.end(open.id, Ending::Used).unwrap(), "nobody can use it");
    assert!(tokens.put(&open).is_err(), "it is not made anew");
    assert_eq!(tokens.list().unwrap().len(), 2);
    tokens.sweep(100).unwrap();
    assert_eq!(tokens.find(open.id).unwrap(), None);
    // The store as it was before the token was spent, as from a backup.
    fs::write(&file, before).unwrap();
    for tokens in [&tokens, &self::tokens(dir.path())] {
        assert_eq!(tokens.find(spent.id).unwrap(), Some((spent.clone(), State::Used)));
        assert!(!tokens.end(spent.id, Ending::Used).unwrap());
    }
    fs::write(&file, "noise").unwrap();
    assert!([&open, &spent, &other].iter().all(|record| tokens.find(record.id) == Ok(None)));
    assert!(!tokens.end(other.id, Ending::Used).unwrap());
}

#[test]
fn token_is_revoked_by_the_id_that_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let [one, used] = [record(100), record(100)];
    [&one, &used].iter().for_each(|record| tokens.put(record).unwrap());
    assert!(tokens.end(used.id, Ending::Used).unwrap());
    assert_eq!(tokens.revoke(&one.id.short()).unwrap(), one);
    assert_eq!(tokens.find(one.id).unwrap(), Some((one.clone(), State::Void)));
    for (id, expected) in [
        (one.id.short(), "is void already"),
        (used.id.short(), "is used already"),
        (String::new(), "no token"),
        ("\u{1b}[2J".to_owned(), "no token"),
    ] {
        let error = tokens.revoke(&id).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\u{1b}'), "{error:?}");
    }
}

#[test]
fn token_files_of_older_versions_are_taken_over_once() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tokens");
    fs::create_dir(&folder).unwrap();
    let [open, used, copied, damaged, ended] =
        [record(100), record(100), record(100), record(100), record(100)];
    let write = |record: &Record, state: &str| {
        fs::write(folder.join(format!("{}.{state}", record.id)), serde_json::to_string(record).unwrap())
            .unwrap();
    };
    write(&open, "open");
    write(&used, "used");
    // A copy beside its own end, as after a restored backup.
    [("open", &copied), ("void", &copied)].iter().for_each(|(state, record)| write(record, state));
    fs::write(folder.join(format!("{}.open", damaged.id)), "{").unwrap();
    fs::write(folder.join(format!("{}.used", ended.id)), "{").unwrap();
    let tokens = tokens(dir.path());
    let states = |record: &Record| tokens.find(record.id).unwrap().map(|(_, state)| state);
    assert_eq!(
        [&open, &used, &copied, &damaged, &ended].map(states),
        [Some(State::Open), Some(State::Used), Some(State::Void), None, None]
    );
    tokens.put(&ended).unwrap();
    assert_eq!(states(&ended), Some(State::Used), "after a restored backup");
    let left: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(left.len() == 2 && left.iter().all(|name| name.contains(".damaged-")), "{left:?}");
    assert!(tokens.end(open.id, Ending::Used).unwrap());
    write(&open, "open");
    assert_eq!(self::tokens(dir.path()).find(open.id).unwrap(), Some((open, State::Used)));
}
