//! Failures around a rotating directory: it must not get stuck, must not lose a key, and must not keep using what was
//! denied.

use std::fs;
use std::path::Path;
use std::time::Duration;

use time::OffsetDateTime;

use super::*;
use crate::acknowledged::{Acknowledged, Edition, PeerWord, Taken};
use crate::authority::Leaf;
use crate::deny::DenyList;
use crate::facts::Facts;
use crate::spiffe::{IdPattern, SpiffeId};

const HOUR: Duration = Duration::from_secs(3600);

fn plan(domain: &str) -> Plan {
    Plan { overlap: Duration::ZERO, ..Plan::new(TrustDomain::new(domain).unwrap()) }
}

/// A directory with one cluster, and a leaf `a` signed by it.
fn home(folder: &Path) -> Home {
    let mut home = Home::create(folder, &plan("east.example")).unwrap();
    home.add_cluster("east").unwrap();
    home.keep("a", kept(None)).unwrap();
    home
}

fn kept(folder: Option<PathBuf>) -> LeafRecord {
    let id = SpiffeId::parse("spiffe://east.example/ns/a/sa/a").unwrap();
    let leaf = Leaf { id, dns: Vec::new(), ips: Vec::new(), lifetime: HOUR };
    LeafRecord { leaf, key: KeyKind::P256, cluster: Some("east".to_owned()), folder }
}

fn serial(file: &Path) -> String {
    let chain = pem::certificates(fs::read_to_string(file).unwrap()).unwrap();
    Facts::read(&chain[0]).unwrap().serial
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn deny_serial(home: &mut Home, file: &Path) {
    let denied = serial(file).parse().unwrap();
    home.change_deny_list(|list| list.add_serial(denied, None)).unwrap();
}

#[test]
fn intermediate_never_outlives_its_root() {
    let dir = tempfile::tempdir().unwrap();
    let short = Plan { root_lifetime: HOUR, intermediate_lifetime: HOUR * 2, ..plan("east.example") };
    short.check().unwrap();
    let mut home = Home::create(dir.path(), &short).unwrap();
    home.add_cluster("east").unwrap();
    assert!(home.intermediate("east").unwrap().not_after() <= home.root(1).unwrap().not_after());
    let long = Plan { root_lifetime: Duration::ZERO, ..plan("east.example") };
    assert!(long.check().is_err(), "an impossible plan is refused before anything is removed");
}

#[test]
fn rotate_reports_a_damaged_deny_list_and_still_renews_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = home(dir.path());
    home.change_deny_list(|list| list.add_identity(IdPattern::parse("spiffe://east.example/x").unwrap()))
        .unwrap();
    fs::write(dir.path().join("deny/east.example.json"), "{").unwrap();
    fs::remove_file(dir.path().join("leaves/a/tls.crt")).unwrap();
    let pass = home.rotate(now());
    assert_eq!(pass.done, [Done::LeafRenewed { leaf: "a".to_owned() }]);
    let why = pass.problems[0].to_string();
    assert!(why.contains("deny/east.example.json") && why.contains("cannot be read"), "{why}");
}

#[test]
fn rotate_replaces_denied_leaves_and_intermediates() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = home(dir.path());
    let [leaf, authority] =
        ["leaves/a/tls.crt", "clusters/east/ca-cert.pem"].map(|file| dir.path().join(file));
    let before = serial(&leaf);
    deny_serial(&mut home, &leaf);
    assert_eq!(home.rotate(now()).done, [Done::LeafRenewed { leaf: "a".to_owned() }]);
    assert_ne!(serial(&leaf), before);
    deny_serial(&mut home, &authority);
    let done = home.rotate(now()).done;
    let cluster = Done::IntermediateRenewed { cluster: "east".to_owned() };
    assert_eq!(done, [cluster, Done::LeafRenewed { leaf: "a".to_owned() }], "and what it had signed");
    assert_eq!(home.rotate(now()).done, []);
}

#[test]
fn federated_deny_list_is_accepted_after_a_roll_over_of_its_domain() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut home = home(dir.path());
    let mut west = Home::create(other.path(), &plan("west.example")).unwrap();
    let domain = west.state().trust_domain.clone();
    let exchange = |home: &mut Home, west: &mut Home, id: &str| {
        home.federate(&domain, &west.bundle(&domain).unwrap()).unwrap();
        west.change_deny_list(|list| list.add_identity(IdPattern::parse(id).unwrap())).unwrap();
        let list = fs::read_to_string(west.deny_folder().join("west.example.json")).unwrap();
        home.take_deny_list(&domain, &list).unwrap().sequence()
    };
    let first = exchange(&mut home, &mut west, "spiffe://west.example/a");
    west.begin_rollover(now()).unwrap();
    let pass = west.rotate(now());
    assert!(pass.problems.is_empty() && west.state().rollover.is_none(), "{pass:?}");
    assert!(exchange(&mut home, &mut west, "spiffe://west.example/b") > first);
}

#[test]
fn rollover_without_the_new_root_key_signs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = home(dir.path());
    home.state.overlap = HOUR / 6;
    home.begin_rollover(now()).unwrap();
    home.rotate(now());
    let (key, away) = (dir.path().join("roots/2/root-key.pem"), dir.path().join("away"));
    fs::rename(&key, &away).unwrap();
    let before = serial(&dir.path().join("leaves/a/tls.crt"));
    for _ in 0..2 {
        let pass = home.rotate(now() + HOUR / 5);
        assert!(matches!(&pass.problems[..], [HomeError::KeyAway(path)] if *path == key), "{pass:?}");
        assert_eq!(pass.done, []);
    }
    assert_eq!(serial(&dir.path().join("leaves/a/tls.crt")), before);
    assert_eq!(home.state().root, 1, "the new root does not sign without its key");
    fs::rename(&away, &key).unwrap();
    home.rotate(now() + HOUR / 5);
    assert_eq!(home.state().root, 2);
}

#[test]
fn rollover_replaces_a_new_root_lost_before_it_signed() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = home(dir.path());
    home.state.overlap = HOUR;
    home.begin_rollover(now()).unwrap();
    home.rotate(now());
    fs::remove_dir_all(dir.path().join("roots/2")).unwrap();
    let pass = home.rotate(now());
    assert!(pass.problems.is_empty() && pass.done.contains(&Done::RootMade { root: 2 }), "{pass:?}");
    let rollover = home.state().rollover.as_ref().unwrap();
    assert_eq!(rollover.step, Step::Trusted, "and the wait starts again");
}

#[test]
fn rotate_with_a_restored_older_state_keeps_every_root_key() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = home(dir.path());
    let old = fs::read(dir.path().join("authority.json")).unwrap();
    home.begin_rollover(now()).unwrap();
    home.rotate(now());
    drop(home);
    fs::write(dir.path().join("authority.json"), old).unwrap();
    Home::open(dir.path()).unwrap().rotate(now());
    assert!(dir.path().join("roots/2/root-key.pem").exists());
}

#[test]
fn keep_refuses_directories_with_foreign_keys_or_another_leaf() {
    let (dir, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut home = home(dir.path());
    let key = theirs.path().join("tls.key");
    fs::write(&key, "theirs").unwrap();
    let refused = home.keep("a", kept(Some(theirs.path().to_owned()))).unwrap_err().to_string();
    assert!(refused.contains("tls.key is there already"), "{refused}");
    assert_eq!(fs::read_to_string(&key).unwrap(), "theirs");
    fs::remove_file(&key).unwrap();
    // A mounted Secret.
    fs::create_dir(theirs.path().join("..2026_11_21")).unwrap();
    fs::write(theirs.path().join("..2026_11_21/tls.key"), "theirs").unwrap();
    std::os::unix::fs::symlink("..2026_11_21", theirs.path().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/tls.key", &key).unwrap();
    assert!(home.keep("b", kept(Some(theirs.path().to_owned()))).is_err());
    assert_eq!(fs::read_to_string(&key).unwrap(), "theirs");
    let place = dir.path().join("leaves/a");
    assert!(home.keep("b", kept(Some(place))).is_err(), "it is the directory of a");
}

#[test]
fn rotate_replaces_certificates_from_the_future() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = home(dir.path());
    let pass = home.rotate(now() - HOUR);
    assert_eq!(pass.done.len(), 2, "an intermediate and a leaf that begin later than now: {pass:?}");
}

#[test]
fn deny_list_is_empty_until_something_is_denied() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(dir.path());
    assert_eq!(
        home.deny_list(&home.state().trust_domain).unwrap(),
        DenyList::new(home.state().trust_domain.clone())
    );
    assert!(home.deny_folder().is_dir(), "the directory exists");
}

/// Writes the file of an agent of east: the bundle that it offers, and the one that west acknowledged, with the time.
fn write_acknowledged(home: &Home, file: &Path, taken: Option<(&Edition, OffsetDateTime)>) -> Edition {
    let domain = &home.state().trust_domain;
    let offered = Edition::from_bundle(&home.bundle(domain).unwrap());
    let taken = taken.map(|(edition, at)| Taken { edition: edition.clone(), at });
    let west = PeerWord { trust_domain: TrustDomain::new("west.example").unwrap(), acknowledged: taken };
    let acknowledged = Acknowledged {
        cluster: "east".to_owned(),
        trust_domain: domain.clone(),
        offered: Some(offered.clone()),
        peers: [("west".to_owned(), west)].into(),
    };
    acknowledged.write(file).unwrap();
    offered
}

fn waits(pass: &Pass) -> Vec<String> {
    pass.awaited.iter().flat_map(|awaited| &awaited.missing).map(ToString::to_string).collect()
}

#[test]
fn rollover_waits_until_every_peer_has_the_new_root() {
    let dir = tempfile::tempdir().unwrap();
    let (mut home, file) = (home(dir.path()), dir.path().join("acknowledged.json"));
    let before = write_acknowledged(&home, &file, None);
    home.wait_for(vec![file.clone()]).unwrap();
    home.begin_rollover(now()).unwrap();
    let step = |home: &Home| home.state().rollover.as_ref().unwrap().step;
    // The agent has not seen the new bundle yet, and west has acknowledged nothing.
    let pass = home.rotate(now());
    assert_eq!((step(&home), waits(&pass).len()), (Step::Trusted, 2), "{pass:?}");
    assert!(waits(&pass)[0].contains("the agent of \"east\": its bundle"), "{:?}", waits(&pass));
    assert!(waits(&pass)[1].contains("peer \"west\" of \"east\": no bundle acknowledged"));
    assert!(pass.problems.is_empty() && pass.next > Some(now()), "the next pass is later: {pass:?}");
    // The agent offers the new bundle; west has the previous one.
    let after = write_acknowledged(&home, &file, Some((&before, now())));
    let pass = home.rotate(now());
    assert_eq!((step(&home), waits(&pass).len()), (Step::Trusted, 1), "{pass:?}");
    assert!(waits(&pass)[0].contains(&format!("last acknowledged bundle ({})", before.sequence)));
    assert_eq!(home.awaited().unwrap().missing.len(), 1, "what `status` shows");
    write_acknowledged(&home, &file, Some((&after, now())));
    home.rotate(now());
    assert_eq!((step(&home), home.state().root), (Step::Used, 2));
    // What the old root signed has expired, but a new peer has joined meanwhile.
    let late = now() + HOUR * 2;
    write_acknowledged(&home, &file, None);
    let pass = home.rotate(late);
    assert_eq!((step(&home), waits(&pass).len()), (Step::Used, 1), "the old root stays: {pass:?}");
    write_acknowledged(&home, &file, Some((&after, now())));
    home.rotate(late);
    assert_eq!((home.state().rollover.as_ref(), home.state().trusted()), (None, vec![2]));
}

#[test]
fn rollover_gives_a_late_peer_the_whole_overlap() {
    let dir = tempfile::tempdir().unwrap();
    let (mut home, file) = (home(dir.path()), dir.path().join("acknowledged.json"));
    home.state.overlap = HOUR;
    home.wait_for(vec![file.clone()]).unwrap();
    home.begin_rollover(now()).unwrap();
    home.rotate(now());
    let both = Edition::from_bundle(&home.bundle(&home.state().trust_domain).unwrap());
    // Whole seconds, as they are written.
    let late = (now() + HOUR * 9).replace_nanosecond(0).unwrap();
    write_acknowledged(&home, &file, Some((&both, late)));
    let pass = home.rotate(late + HOUR / 2);
    assert_eq!((home.state().root, waits(&pass).len()), (1, 0));
    assert_eq!(pass.awaited.unwrap().until, Some(late + HOUR));
    assert!(home.rotate(late + HOUR).awaited.is_none());
    assert_eq!(home.state().root, 2);
}

#[test]
fn rollover_stops_at_an_unreadable_acknowledgement_file() {
    let dir = tempfile::tempdir().unwrap();
    let (mut home, file) = (home(dir.path()), dir.path().join("acknowledged.json"));
    write_acknowledged(&home, &file, None);
    let other = fs::read_to_string(&file).unwrap().replace("east.example", "north.example");
    home.wait_for(vec![file.clone()]).unwrap();
    home.begin_rollover(now()).unwrap();
    for (content, expected) in [
        (None, "No such file"),
        (Some("{".to_owned()), "EOF"),
        (Some(other), "it was written by an agent of north.example, not of east.example"),
    ] {
        match content {
            Some(content) => fs::write(&file, content).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let pass = home.rotate(now());
        let why = pass.problems.iter().map(ToString::to_string).collect::<String>();
        assert!(why.contains(expected) && why.contains("acknowledged.json"), "{why}");
        assert_eq!(home.state().root, 1);
    }
    // The directory remembers the files until they are replaced.
    drop(home);
    let mut home = Home::open(dir.path()).unwrap();
    assert_eq!(home.state().acknowledged, [file]);
    assert_eq!(home.rotate(now()).problems.len(), 1);
    home.wait_for(Vec::new()).unwrap();
    home.rotate(now());
    assert_eq!(home.state().root, 2, "by time alone");
}
