//! What goes wrong around a directory that rotates: it must not get stuck, not lose a key, and not go on with
//! what was taken back.

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

/// One cluster, one leaf `a` that it signs.
fn home(folder: &Path) -> Home {
    let mut home = Home::create(folder, &plan("east.example")).unwrap();
    home.add_cluster("east").unwrap();
    home.keep("a", kept(None)).unwrap();
    home
}

fn kept(folder: Option<PathBuf>) -> Kept {
    let id = SpiffeId::parse("spiffe://east.example/ns/a/sa/a").unwrap();
    let leaf = Leaf { id, dns: Vec::new(), ips: Vec::new(), lifetime: HOUR };
    Kept { leaf, key: KeyKind::P256, cluster: Some("east".to_owned()), folder }
}

fn serial(file: &Path) -> String {
    let chain = pem::certificates(fs::read_to_string(file).unwrap()).unwrap();
    Facts::of(&chain[0]).unwrap().serial
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn deny_serial(home: &mut Home, file: &Path) {
    let denied = serial(file).parse().unwrap();
    home.change_deny_list(|list| list.add_serial(denied, None)).unwrap();
}

#[test]
fn an_intermediate_ends_before_its_root_and_a_leaf_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let short = Plan { root_lifetime: HOUR, intermediate_lifetime: HOUR * 2, ..plan("east.example") };
    short.check().unwrap();
    let mut home = Home::create(dir.path(), &short).unwrap();
    home.add_cluster("east").unwrap();
    assert!(home.intermediate("east").unwrap().not_after() <= home.root(1).unwrap().not_after());
    let long = Plan { root_lifetime: Duration::ZERO, ..plan("east.example") };
    assert!(long.check().is_err(), "nothing is lost for a plan that cannot be");
}

#[test]
fn a_damaged_deny_list_is_named_and_keeps_no_leaf_from_its_renewal() {
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
fn what_is_denied_is_replaced_whether_leaf_or_intermediate() {
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
fn a_federated_list_is_taken_after_its_domain_has_another_root() {
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
fn without_the_new_roots_key_nothing_is_signed_anew_again_and_again() {
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
    assert_eq!(home.state().root, 1, "the new root does not sign before it can");
    fs::rename(&away, &key).unwrap();
    home.rotate(now() + HOUR / 5);
    assert_eq!(home.state().root, 2);
}

#[test]
fn a_new_root_that_is_lost_before_it_signed_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = home(dir.path());
    home.state.overlap = HOUR;
    home.begin_rollover(now()).unwrap();
    home.rotate(now());
    fs::remove_dir_all(dir.path().join("roots/2")).unwrap();
    let pass = home.rotate(now());
    assert!(pass.problems.is_empty() && pass.done.contains(&Done::RootMade { root: 2 }), "{pass:?}");
    let rollover = home.state().rollover.as_ref().unwrap();
    assert_eq!(rollover.step, Step::Trusted, "and waits again");
}

#[test]
fn an_older_state_that_is_put_back_costs_no_key() {
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
fn others_keys_are_not_replaced_and_a_place_has_one_leaf() {
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
    assert!(home.keep("b", kept(Some(place))).is_err(), "it is a's");
}

#[test]
fn a_certificate_from_the_future_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut home = home(dir.path());
    let pass = home.rotate(now() - HOUR);
    assert_eq!(pass.done.len(), 2, "an intermediate and a leaf that begin later than now: {pass:?}");
}

#[test]
fn a_list_without_end_stays_an_empty_one_until_something_is_denied() {
    let dir = tempfile::tempdir().unwrap();
    let home = home(dir.path());
    assert_eq!(
        home.deny_list(&home.state().trust_domain).unwrap(),
        DenyList::new(home.state().trust_domain.clone())
    );
    assert!(home.deny_folder().is_dir(), "whoever is given it finds it");
}

/// What an agent of east writes: the bundle that it offers, and which one west has taken, when.
fn said(home: &Home, file: &Path, taken: Option<(&Edition, OffsetDateTime)>) -> Edition {
    let domain = &home.state().trust_domain;
    let offered = Edition::of(&home.bundle(domain).unwrap());
    let taken = taken.map(|(edition, at)| Taken { edition: edition.clone(), at });
    let west = PeerWord { trust_domain: TrustDomain::new("west.example").unwrap(), acknowledged: taken };
    let said = Acknowledged {
        cluster: "east".to_owned(),
        trust_domain: domain.clone(),
        offered: Some(offered.clone()),
        peers: [("west".to_owned(), west)].into(),
    };
    said.write(file).unwrap();
    offered
}

fn waits(pass: &Pass) -> Vec<String> {
    pass.awaited.iter().flat_map(|awaited| &awaited.missing).map(ToString::to_string).collect()
}

#[test]
fn a_roll_over_waits_until_every_peer_has_the_new_root() {
    let dir = tempfile::tempdir().unwrap();
    let (mut home, file) = (home(dir.path()), dir.path().join("acknowledged.json"));
    let before = said(&home, &file, None);
    home.wait_for(vec![file.clone()]).unwrap();
    home.begin_rollover(now()).unwrap();
    let step = |home: &Home| home.state().rollover.as_ref().unwrap().step;
    // The agent has not seen the new bundle yet, and west has said nothing.
    let pass = home.rotate(now());
    assert_eq!((step(&home), waits(&pass).len()), (Step::Trusted, 2), "{pass:?}");
    assert!(waits(&pass)[0].contains("the agent of \"east\": its bundle"), "{:?}", waits(&pass));
    assert!(waits(&pass)[1].contains("peer \"west\" of \"east\": no bundle acknowledged"));
    assert!(pass.problems.is_empty() && pass.next > Some(now()), "it is not asked again at once: {pass:?}");
    // The agent offers it; west has the one before.
    let after = said(&home, &file, Some((&before, now())));
    let pass = home.rotate(now());
    assert_eq!((step(&home), waits(&pass).len()), (Step::Trusted, 1), "{pass:?}");
    assert!(waits(&pass)[0].contains(&format!("last acknowledged bundle ({})", before.sequence)));
    assert_eq!(home.awaited().unwrap().missing.len(), 1, "what `status` shows");
    said(&home, &file, Some((&after, now())));
    home.rotate(now());
    assert_eq!((step(&home), home.state().root), (Step::Used, 2));
    // What the old root signed runs out, and somebody else has joined meanwhile.
    let late = now() + HOUR * 2;
    said(&home, &file, None);
    let pass = home.rotate(late);
    assert_eq!((step(&home), waits(&pass).len()), (Step::Used, 1), "the old root stays: {pass:?}");
    said(&home, &file, Some((&after, now())));
    home.rotate(late);
    assert_eq!((home.state().rollover.as_ref(), home.state().trusted()), (None, vec![2]));
}

#[test]
fn who_has_the_new_root_late_has_as_long_as_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (mut home, file) = (home(dir.path()), dir.path().join("acknowledged.json"));
    home.state.overlap = HOUR;
    home.wait_for(vec![file.clone()]).unwrap();
    home.begin_rollover(now()).unwrap();
    home.rotate(now());
    let both = Edition::of(&home.bundle(&home.state().trust_domain).unwrap());
    // Whole seconds, as they are written.
    let late = (now() + HOUR * 9).replace_nanosecond(0).unwrap();
    said(&home, &file, Some((&both, late)));
    let pass = home.rotate(late + HOUR / 2);
    assert_eq!((home.state().root, waits(&pass).len()), (1, 0));
    assert_eq!(pass.awaited.unwrap().until, Some(late + HOUR));
    assert!(home.rotate(late + HOUR).awaited.is_none());
    assert_eq!(home.state().root, 2);
}

#[test]
fn what_agents_say_that_cannot_be_read_holds_the_roll_over() {
    let dir = tempfile::tempdir().unwrap();
    let (mut home, file) = (home(dir.path()), dir.path().join("acknowledged.json"));
    said(&home, &file, None);
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
    // Remembered by whoever opens the directory next, until it is said otherwise.
    drop(home);
    let mut home = Home::open(dir.path()).unwrap();
    assert_eq!(home.state().acknowledged, [file]);
    assert_eq!(home.rotate(now()).problems.len(), 1);
    home.wait_for(Vec::new()).unwrap();
    home.rotate(now());
    assert_eq!(home.state().root, 2, "by time alone");
}
