//! Updates of peers in any order: newer, older, conflicting, about their own trust domains and others; and
//! the files that result.

mod order;

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use isthmus_certs::{
    Authority, Bundle, DenyList, IdPattern, Role, SpiffeId, Trust, TrustBundles, TrustDomain, TrustFiles,
};
use proptest::prelude::*;
use prost::Message as _;
use serde_json::json;
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};

use super::keeper::texts;
use super::known::Known;
use super::rule::{Between, judge};
use super::*;
use isthmus_proto::isthmus::v1::TrustBundle;

const HOUR: Duration = Duration::from_secs(3600);
const AGENT: &str = "spiffe://west.example/isthmus/west/agent/a";

static EAST: LazyLock<Authority> = LazyLock::new(|| authority("east.example"));
/// The roots of west, one after another.
static WEST: LazyLock<[Authority; 3]> = LazyLock::new(|| [(); 3].map(|()| authority("west.example")));
/// The chain of west's agent, signed by each root.
static CHAINS: LazyLock<[Vec<CertificateDer<'static>>; 3]> = LazyLock::new(|| {
    let id = SpiffeId::parse(AGENT).unwrap();
    [0, 1, 2].map(|root: usize| WEST[root].issue(&id, &[], HOUR).unwrap().chain().to_vec())
});

fn authority(domain: &str) -> Authority {
    Authority::generate(TrustDomain::new(domain).unwrap()).unwrap()
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn bundle(sequence: u64, roots: &[usize]) -> Bundle {
    let roots = roots.iter().map(|root| WEST[*root].certificate());
    Bundle::new(&domain("west.example"), sequence, roots).unwrap()
}

/// West's deny-list with one namespace, signed by one of its roots.
fn list(sequence: u64, denied: &str, root: usize) -> String {
    let id = format!("spiffe://west.example/ns/{denied}/*");
    let list = json!({ "trust_domain": "west.example", "sequence": sequence, "identities": [id] });
    serde_json::from_value::<DenyList>(list).unwrap().sign(&WEST[root]).unwrap()
}

fn message(bundle: &Bundle, list: Option<&str>) -> Vec<u8> {
    encode(&domain("west.example"), bundle, list).unwrap()
}

fn known(sequence: u64, roots: &[usize]) -> TrustBundles {
    let mut known = TrustBundles::new();
    known.add_root(domain("east.example"), EAST.certificate()).unwrap();
    known.insert(domain("west.example"), bundle(sequence, roots));
    known
}

/// The verdict on a resource from the agent with this chain.
fn hears(known: &TrustBundles, chain: usize, name: &str, bytes: &[u8]) -> Result<rule::Judged, Refusal> {
    let (own, peer) = (domain("east.example"), domain("west.example"));
    let between = Between { own: &own, peer: &peer, chain: &CHAINS[chain] };
    judge(between, known, name, bytes, UnixTime::now())
}

#[track_caller]
fn refusal(known: &TrustBundles, chain: usize, name: &str, bytes: &[u8]) -> String {
    hears(known, chain, name, bytes).unwrap_err().to_string()
}

#[test]
fn bundle_refusal_names_its_own_reason() {
    let known = known(5, &[0]);
    let good = TrustBundle::decode(&*message(&bundle(6, &[0, 1]), None)).unwrap();
    assert!(hears(&known, 0, "west.example", &good.encode_to_vec()).unwrap().is_later);
    let with = |change: &dyn Fn(&mut TrustBundle)| {
        let mut message = good.clone();
        change(&mut message);
        message.encode_to_vec()
    };
    for (name, bytes, expected) in [
        (
            "north.example",
            with(&|m| m.trust_domain = "north.example".to_owned()),
            "may publish only the bundle of west.example",
        ),
        (
            "east.example",
            with(&|m| m.trust_domain = "east.example".to_owned()),
            "may publish only the bundle of west.example",
        ),
        ("west.example", with(&|m| m.trust_domain = "north.example".to_owned()), "about \"north.example\""),
        ("west.example", (0..=255).rev().cycle().take(4096).collect(), "cannot be decoded"),
        ("west.example", with(&|m| m.bundle = "x".repeat(300 << 10)), "the bundle has 307200 bytes"),
        ("west.example", with(&|m| m.deny_list = "x".repeat(5 << 20)), "the message has 5"),
        ("west.example", with(&|m| m.bundle = r#"{"keys": []}"#.to_owned()), "no X.509 authority"),
        ("west.example", with(&|m| m.bundle = "{".to_owned()), "is not a SPIFFE bundle"),
        ("west.example", with(&|m| m.sequence = 7), "has sequence 7, but its bundle has 6"),
        ("west.example", message(&bundle(4, &[0, 1]), None), "has sequence 4, but 5 is known"),
        ("west.example", message(&bundle(5, &[0, 1]), None), "the known sequence 5 but different roots"),
        ("west.example", message(&bundle(6, &[1]), None), "does not trust the peer's own"),
        ("west.example", message(&bundle(6, &[0]), Some("{}")), "the deny-list cannot be read"),
        ("west.example", message(&bundle(6, &[0]), Some(&list(1, "a", 1))), "not signed by an authority"),
        (
            "west.example",
            message(&bundle(6, &[0]), Some(&list(1, "x", 0).replace('"', "\\\""))),
            "cannot be read",
        ),
    ] {
        let why = refusal(&known, 0, name, &bytes);
        assert!(why.contains(expected), "{expected}: {why}");
        assert!(why.len() < 1024 && !why.contains(char::is_control), "{why:?}");
    }
    // A bundle of another domain's roots under the peer's name.
    let foreign = Bundle::new(&domain("east.example"), 6, [EAST.certificate()]).unwrap();
    let foreign =
        TrustBundle { bundle: isthmus_certs::spiffe_bundle::write(&foreign).unwrap(), ..good.clone() };
    let why = refusal(&known, 0, "west.example", &foreign.encode_to_vec());
    assert!(why.contains("says that it is of spiffe://east.example"), "{why}");
    // Too many roots.
    let many: Vec<_> = (0..17).map(|_| authority("west.example")).collect();
    let many = Bundle::new(&domain("west.example"), 6, many.iter().map(Authority::certificate)).unwrap();
    let why = refusal(&known, 0, "west.example", &message(&many, None));
    assert!(why.contains("has 17 roots"), "{why}");
}

#[test]
fn peer_certificate_must_verify_under_old_and_new_bundle() {
    let later = message(&bundle(6, &[0, 1]), None);
    // Its root was dropped since its stream began.
    let why = refusal(&known(5, &[1]), 0, "west.example", &later);
    assert!(why.contains("known bundle no longer trusts the peer"), "{why}");
    // Its own domain denies it, in the known list or in the published one.
    let mut denied = known(5, &[0]);
    let deny = |sequence| {
        let mut list: DenyList =
            serde_json::from_value(json!({ "trust_domain": "west.example", "sequence": sequence })).unwrap();
        list.add_identity(IdPattern::parse(AGENT).unwrap());
        list
    };
    let said = message(&bundle(6, &[0]), Some(&deny(1).sign(&WEST[0]).unwrap()));
    assert!(refusal(&denied, 0, "west.example", &said).contains("does not trust the peer's own certificate"));
    denied.deny(deny(1));
    assert!(refusal(&denied, 0, "west.example", &later).contains("no longer trusts"));
}

#[test]
fn deny_list_does_not_go_back_and_may_be_signed_anew() {
    let mut known = known(5, &[0, 1]);
    let first = list(3, "a", 0);
    let open = |text: &str| {
        DenyList::open(text.as_bytes(), &domain("west.example"), &bundle(5, &[0, 1]), UnixTime::now(), None)
    };
    known.deny_signed(open(&first).unwrap(), &first);
    let says = |list: &str| hears(&known, 0, "west.example", &message(&bundle(5, &[0, 1]), Some(list)));
    assert!(!says(&first).unwrap().has_list, "it is known");
    assert!(says(&list(2, "b", 0)).unwrap_err().to_string().contains("has sequence 2, but 3 is known"));
    assert!(says(&list(3, "b", 0)).unwrap_err().to_string().contains("3 but different entries"));
    assert!(says(&list(3, "a", 1)).unwrap().has_list, "by the new root");
    assert!(says(&list(4, "b", 0)).unwrap().has_list);
    let without = hears(&known, 0, "west.example", &message(&bundle(6, &[0, 1]), None)).unwrap();
    assert!(without.is_later && !without.has_list, "what is known stays");
}

/// East's agent on disk, which knows west by its first root.
struct Disk {
    dir: TempDir,
    files: TrustFiles,
    trust: Trust,
    keeper: Keeper,
}

impl Disk {
    fn new(with_deny: bool) -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let id = SpiffeId::parse("spiffe://east.example/isthmus/east/agent/a").unwrap();
        let written = EAST.issue(&id, &[], HOUR).unwrap().write_to(dir.path(), "tls").unwrap();
        let [bundles, deny] = ["bundles", "deny"].map(|name| dir.path().join(name));
        fs::create_dir(&bundles).unwrap();
        let deny = with_deny.then_some(deny);
        deny.iter().for_each(|deny| fs::create_dir(deny).unwrap());
        let own = Bundle::new(&domain("east.example"), 1, [EAST.certificate()]).unwrap();
        for (name, bundle) in [("east.example", &own), ("west.example", &bundle(1, &[0]))] {
            let text = isthmus_certs::spiffe_bundle::write(bundle).unwrap();
            fs::write(bundles.join(format!("{name}.json")), text).unwrap();
        }
        let files = TrustFiles {
            certificate: written.chain,
            key: written.key,
            bundles,
            deny,
            ..TrustFiles::default()
        };
        let trust = Trust::load(&files).unwrap();
        let keeper = Keeper::new(trust.clone(), files.clone(), Some(dir.path().join("state")));
        Disk { dir, files, trust, keeper }
    }

    /// The same disk after a restart.
    fn restarted(self) -> Disk {
        let trust = Trust::load(&self.files).unwrap();
        let keeper = Keeper::new(trust.clone(), self.files.clone(), Some(self.at("state")));
        Disk { trust, keeper, ..self }
    }

    fn takes(&self, chain: usize, bundle: &Bundle, list: Option<&str>) -> Result<BundleUpdate, Refusal> {
        let (west, message) = (domain("west.example"), message(bundle, list));
        self.keeper.accept(&west, &CHAINS[chain], "west.example", &message, UnixTime::now())
    }

    /// The numbers of west's bundle and deny-list, in use and after a restart.
    #[track_caller]
    fn has(&self, expected: (u64, Option<u64>)) {
        for trust in [&self.trust, &Trust::load(&self.files).unwrap()] {
            let (bundles, west) = (&trust.current().bundles, domain("west.example"));
            let list = bundles.denied(&west).map(DenyList::sequence);
            assert_eq!((bundles.get(&west).unwrap().sequence, list), expected);
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

#[test]
fn bundle_update_is_used_at_once_and_after_a_restart() {
    let disk = Disk::new(true);
    let taken = |kept: BundleUpdate| (kept.sequence, kept.is_news, kept.advice);
    assert_eq!(taken(disk.takes(0, &bundle(1, &[0]), None).unwrap()), (1, false, None));
    let first = list(7, "a", 0);
    assert_eq!(taken(disk.takes(0, &bundle(1, &[0]), Some(&first)).unwrap()), (1, true, None));
    disk.has((1, Some(7)));
    assert!(disk.takes(0, &bundle(2, &[0, 1]), Some(&first)).unwrap().is_news);
    disk.has((2, Some(7)));
    // The new root signs the list, and the old one goes.
    let anew = list(7, "a", 1);
    assert!(disk.takes(1, &bundle(2, &[0, 1]), Some(&anew)).unwrap().is_news);
    let left = disk.takes(1, &bundle(3, &[1]), Some(&anew)).unwrap();
    assert_eq!(taken(left), (3, true, None));
    disk.has((3, Some(7)));
    assert!(disk.takes(0, &bundle(4, &[0, 1]), None).is_err(), "the old root is no longer trusted");
    assert!(!disk.takes(1, &bundle(3, &[1]), Some(&anew)).unwrap().is_news);
    disk.has((3, Some(7)));
}

/// An agent can start before and after each write.
#[test]
fn bundle_files_are_valid_between_writes() {
    for (before, after, chain) in [
        // A new root that signs the list already: the bundle goes first.
        ((bundle(1, &[0]), list(1, "a", 0)), (bundle(2, &[0, 1]), list(2, "b", 1)), 0),
        // The old root goes and its list with it: the list goes first.
        ((bundle(1, &[0, 1]), list(1, "a", 0)), (bundle(2, &[1]), list(2, "b", 1)), 1),
    ] {
        let disk = Disk::new(true);
        let (west, now) = (domain("west.example"), UnixTime::now());
        let write = |name: &str, text: &str| fs::write(disk.at(name), text).unwrap();
        write("bundles/west.example.json", &isthmus_certs::spiffe_bundle::write(&before.0).unwrap());
        write("deny/west.example.json", &before.1);
        disk.trust.reload(&disk.files);
        let known = Known::read(&west, &disk.files.bundles, disk.files.deny.as_deref()).unwrap();
        let own = domain("east.example");
        let between = Between { own: &own, peer: &west, chain: &CHAINS[chain] };
        let said = message(&after.0, Some(&after.1));
        let judged = judge(between, &disk.trust.current().bundles, "west.example", &said, now).unwrap();
        let texts = texts(&west, &known, &judged, now).unwrap();
        assert_eq!(texts.len(), 2);
        for (path, text) in texts {
            fs::write(path, text).unwrap();
            Trust::load(&disk.files).unwrap();
        }
    }
}

#[test]
fn bundle_update_without_a_valid_write_order_is_refused() {
    let disk = Disk::new(true);
    disk.takes(0, &bundle(2, &[0, 1]), Some(&list(1, "a", 0))).unwrap();
    let left = disk.takes(1, &bundle(3, &[1]), None).unwrap_err();
    assert!(matches!(left, Refusal::ListLeft) && left.remedy() == Remedy::None, "{left}");
    let apart = disk.takes(1, &bundle(3, &[1, 2]), Some(&list(2, "a", 2))).unwrap_err();
    assert!(matches!(apart, Refusal::Apart), "{apart}");
    disk.has((2, Some(1)));
}

#[test]
fn bundle_kept_by_hand_is_not_overwritten() {
    let disk = Disk::new(true);
    fs::remove_file(disk.at("bundles/west.example.json")).unwrap();
    let pem = disk.at("bundles/west.example.pem");
    fs::write(&pem, WEST[0].certificate_pem()).unwrap();
    let disk = disk.restarted();
    let same = disk.takes(0, &bundle(9, &[0]), Some(&list(1, "a", 0))).unwrap();
    assert_eq!((same.sequence, same.advice), (9, None), "the same roots; its list is stored");
    disk.has((0, Some(1)));
    let other = disk.takes(0, &bundle(10, &[0, 1]), None).unwrap_err();
    assert_eq!(other.remedy(), Remedy::Here);
    let why = other.to_string();
    assert!(why.contains("west.example.pem, with other roots; remove that file and put"), "{why}");
    assert!(!disk.at("bundles/west.example.json").exists());
    // The remedy of the message.
    fs::remove_file(pem).unwrap();
    let text = isthmus_certs::spiffe_bundle::write(&bundle(9, &[0])).unwrap();
    fs::write(disk.at("bundles/west.example.json"), text).unwrap();
    disk.takes(0, &bundle(10, &[0, 1]), None).unwrap();
    disk.has((10, Some(1)));
}

#[test]
fn bundle_is_accepted_without_a_directory_for_deny_lists() {
    let disk = Disk::new(false);
    let kept = disk.takes(0, &bundle(2, &[0, 1]), Some(&list(1, "a", 0))).unwrap();
    assert!(kept.advice.unwrap().contains("`trust.deny`"));
    disk.has((2, None));
    assert!(!disk.takes(0, &bundle(2, &[0, 1]), Some(&list(1, "a", 0))).unwrap().is_news);
}

#[test]
fn bundle_that_cannot_be_written_changes_nothing_and_is_retried() {
    let disk = Disk::new(true);
    let state = disk.at("state");
    fs::write(&state, "a file where a directory must be").unwrap();
    let refused = disk.takes(0, &bundle(2, &[0, 1]), None).unwrap_err();
    assert_eq!(refused.remedy(), Remedy::Here);
    assert!(refused.to_string().contains("cannot be stored"), "{refused}");
    disk.has((1, None));
    fs::remove_file(state).unwrap();
    disk.takes(0, &bundle(2, &[0, 1]), None).unwrap();
    disk.has((2, None));
}
