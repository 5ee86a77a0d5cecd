//! Trust that follows real files: valid files replace the previous ones, invalid files are reported and change nothing.
//! `tls::resume` tests how handshakes follow.

mod flaws;
mod watch;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rcgen::KeyUsagePurpose;

use super::files::LoadCause;
use super::*;
use crate::bundle::{Bundle, Role};
use crate::crl::StaleCrl;
use crate::crl::tests::{list, pem_of};
use crate::{Authority, DenyList, IdPattern, KeyKind, SpiffeId, TrustDomain, spiffe_bundle};

const HOUR: Duration = Duration::from_secs(3600);
const OWN: &str = "spiffe://west.example/ns/bookinfo/sa/productpage";
const FRIEND: &str = "spiffe://east.example/ns/bookinfo/sa/reviews";
const FOE: &str = "spiffe://east.example/ns/bookinfo/sa/foe";

/// A member of west on disk, federated with east, which denies one of its own identities.
struct Disk {
    west: Authority,
    /// The signer of the own leaf.
    below: Authority,
    east: Authority,
    files: TrustFiles,
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let [west, east] = ["west.example", "east.example"]
            .map(|name| Authority::generate(TrustDomain::new(name).unwrap()).unwrap());
        let below = west.intermediate("west", KeyKind::P256, HOUR * 3).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let files = TrustFiles {
            certificate: at("id/tls.crt"),
            key: at("id/tls.key"),
            bundles: at("bundles"),
            deny: Some(at("deny")),
            crls: Some(at("crls")),
            stale_crl: StaleCrl::Refuse,
            outage_budget: HOUR,
        };
        let disk = Self { west, below, east, files, dir };
        for folder in ["id", "bundles", "deny", "crls"] {
            fs::create_dir(disk.at(folder)).unwrap();
        }
        disk.show(&disk.below, OWN);
        disk.bundle(&disk.west, 1);
        disk.bundle(&disk.east, 5);
        disk.deny(3, &[FOE]);
        disk.write("crls/east.example.pem", disk.revoking(&[]));
        disk
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.at(name), content).unwrap();
    }

    /// Writes a new leaf and key.
    fn show(&self, authority: &Authority, id: &str) -> Identity {
        let identity = authority.issue(&SpiffeId::parse(id).unwrap(), &[], HOUR).unwrap();
        self.write("id/tls.crt", identity.chain_pem());
        self.write("id/tls.key", identity.key_pem());
        identity
    }

    fn bundle(&self, root: &Authority, sequence: u64) {
        let domain = root.trust_domain();
        let bundle = Bundle::new(domain, sequence, [root.certificate()]).unwrap();
        self.write(&format!("bundles/{domain}.json"), spiffe_bundle::write(&bundle).unwrap());
    }

    fn deny(&self, sequence: u64, ids: &[&str]) {
        let mut list = DenyList::new(self.east.trust_domain().clone());
        ids.iter().for_each(|id| _ = list.add_identity(IdPattern::parse(id).unwrap()));
        list.renumber(sequence);
        self.write("deny/east.example.json", list.sign(&self.east).unwrap());
    }

    fn revoking(&self, revoked: &[&CertificateDer<'_>]) -> String {
        let now = OffsetDateTime::now_utc();
        pem_of(&[list(&self.east, revoked, now - HOUR, now + HOUR)])
    }

    fn of_east(&self, id: &str) -> Identity {
        self.east.issue(&SpiffeId::parse(id).unwrap(), &[], HOUR).unwrap()
    }
}

/// The reason why an identity is refused, or `trusted`.
fn verdict(trust: &Trust, identity: &Identity) -> &'static str {
    let proven = trust.current().bundles.verify(identity.chain(), Role::Client, UnixTime::now());
    proven.map_or_else(|why| why.reason(), |_| "trusted")
}

fn leaf_of(trust: &Trust) -> Vec<CertificateDer<'static>> {
    trust.current().identity.chain().to_vec()
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + HOUR / 60;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A flaw: the kind of error, the file that it names, a part of its text, and how to cause it.
type Flaw<'a> = (&'static str, &'static str, &'static str, &'a dyn Fn(&Disk));

#[test]
fn trust_reload_replaces_the_leaf() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    assert!(!trust.reload(&disk.files), "nothing changed");
    assert_eq!(trust.current().epoch, 0);
    let next = disk.show(&disk.below, OWN);
    assert!(trust.reload(&disk.files));
    assert_eq!((trust.current().epoch, leaf_of(&trust)), (1, next.chain().to_vec()));
    assert!(!trust.reload(&disk.files));
    assert_eq!(trust.refused(), [""; 0]);
}

#[test]
fn trust_reload_waits_for_the_key_of_a_new_leaf() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    let before = leaf_of(&trust);
    let next = disk.below.issue(&SpiffeId::parse(OWN).unwrap(), &[], HOUR).unwrap();
    disk.write("id/tls.crt", next.chain_pem());
    assert!(!trust.reload(&disk.files));
    let [refused] = <[String; 1]>::try_from(trust.refused()).unwrap();
    assert!(refused.contains("tls.key") && refused.contains("same issue"), "{refused}");
    assert_eq!(leaf_of(&trust), before);
    disk.write("id/tls.key", next.key_pem());
    assert!(trust.reload(&disk.files));
    assert_eq!((leaf_of(&trust), trust.refused()), (next.chain().to_vec(), vec![]));
}

#[test]
fn trust_reload_refuses_another_identity() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    let before = leaf_of(&trust);
    disk.show(&disk.below, "spiffe://west.example/ns/bookinfo/sa/other");
    assert!(!trust.reload(&disk.files));
    let refused = trust.refused().concat();
    assert!(refused.contains("sa/other") && refused.contains("restart it"), "{refused}");
    assert_eq!(leaf_of(&trust), before);
}

#[test]
fn trust_reload_renews_the_leaf_despite_a_bad_foreign_bundle() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    disk.write("bundles/east.example.json", "{");
    disk.write("deny/east.example.json", "{");
    disk.write("crls/east.example.pem", "{");
    let next = disk.show(&disk.below, OWN);
    assert!(trust.reload(&disk.files));
    assert_eq!(leaf_of(&trust), next.chain());
    assert_eq!(trust.refused().len(), 3, "{:?}", trust.refused());
    assert_eq!(verdict(&trust, &disk.of_east(FRIEND)), "trusted");
    assert_eq!(verdict(&trust, &disk.of_east(FOE)), "denied");
}

#[test]
fn trust_bundle_is_never_replaced_by_an_older_one() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    let next = Authority::generate(disk.east.trust_domain().clone()).unwrap();
    for old in [4, 0] {
        disk.bundle(&next, old);
        assert!(!trust.reload(&disk.files));
        let refused = trust.refused().concat();
        assert!(refused.contains(&format!("has sequence {old}, but 5 is known")), "{refused}");
    }
    // PEM has no sequence number, and must not be a way around the check.
    fs::remove_file(disk.at("bundles/east.example.json")).unwrap();
    disk.write("bundles/east.example.pem", next.certificate_pem());
    assert!(!trust.reload(&disk.files));
    assert_eq!(verdict(&trust, &disk.of_east(FRIEND)), "trusted");
    fs::remove_file(disk.at("bundles/east.example.pem")).unwrap();
    disk.bundle(&next, 6);
    assert!(trust.reload(&disk.files));
    assert_eq!(verdict(&trust, &disk.of_east(FRIEND)), "unknown_issuer");
}

#[test]
fn trust_deny_list_is_never_replaced_by_an_older_one() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    disk.deny(2, &[]);
    assert!(!trust.reload(&disk.files));
    let refused = trust.refused().concat();
    assert!(refused.contains("has sequence 2, but 3 is known"), "{refused}");
    assert_eq!(verdict(&trust, &disk.of_east(FOE)), "denied");
    disk.deny(4, &[FRIEND]);
    assert!(trust.reload(&disk.files));
    assert_eq!([FOE, FRIEND].map(|id| verdict(&trust, &disk.of_east(id))), ["trusted", "denied"]);
}

#[test]
fn trust_deny_list_is_passed_on_with_its_signature() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    let (east, list) = (disk.east.trust_domain().clone(), disk.at("deny/east.example.json"));
    let envelope = || trust.current().bundles.envelope(&east).map(str::to_owned);
    assert_eq!(envelope().unwrap(), fs::read_to_string(&list).unwrap());
    // The same list, signed again.
    let epoch = trust.current().epoch;
    disk.deny(3, &[FOE]);
    assert!(trust.reload(&disk.files) && trust.current().epoch > epoch, "peers need the new signature");
    let signed = fs::read_to_string(&list).unwrap();
    fs::remove_file(list).unwrap();
    trust.reload(&disk.files);
    assert_eq!(envelope().unwrap(), signed, "a list without its file is passed on as well");
}

#[test]
fn trust_deny_list_still_denies_after_its_file_is_removed() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    fs::remove_file(disk.at("deny/east.example.json")).unwrap();
    assert!(!trust.reload(&disk.files));
    assert_eq!(verdict(&trust, &disk.of_east(FOE)), "denied");
    disk.deny(2, &[]);
    trust.reload(&disk.files);
    assert_eq!(verdict(&trust, &disk.of_east(FOE)), "denied", "an older list does not return");
    disk.deny(4, &[]);
    assert!(trust.reload(&disk.files));
    assert_eq!(verdict(&trust, &disk.of_east(FOE)), "trusted", "its domain removed the entry");
}

#[test]
fn trust_deny_list_still_denies_after_its_signer_is_gone() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    let next = Authority::generate(disk.east.trust_domain().clone()).unwrap();
    disk.bundle(&next, 6);
    assert!(trust.reload(&disk.files));
    let refused = trust.refused().concat();
    assert!(refused.contains("deny/east.example.json") && refused.contains("rotate"), "{refused}");
    let foe = next.issue(&SpiffeId::parse(FOE).unwrap(), &[], HOUR).unwrap();
    assert_eq!(verdict(&trust, &foe), "denied");
}

#[test]
fn trust_bundle_is_dropped_when_its_file_is_removed() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    for file in ["bundles/east.example.json", "deny/east.example.json", "crls/east.example.pem"] {
        fs::remove_file(disk.at(file)).unwrap();
    }
    assert!(trust.reload(&disk.files));
    assert_eq!((verdict(&trust, &disk.of_east(FRIEND)), trust.refused()), ("no_bundle", vec![]));
}

#[test]
fn trust_reload_reads_new_revocation_lists() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    let friend = disk.of_east(FRIEND);
    assert_eq!(verdict(&trust, &friend), "trusted");
    disk.write("crls/east.example.pem", disk.revoking(&[&friend.chain()[0]]));
    assert!(trust.reload(&disk.files));
    assert_eq!(verdict(&trust, &friend), "revoked");
}

#[test]
fn trust_load_ignores_hidden_and_unknown_files() {
    let disk = Disk::new();
    for folder in ["bundles", "deny", "crls"] {
        for name in
            [".north.example.json", ".north.example.pem.swp", "README.md", "north.example.json~", "north"]
        {
            disk.write(&format!("{folder}/{name}"), "noise");
        }
        fs::create_dir(disk.at(&format!("{folder}/..2026_11_21"))).unwrap();
    }
    let trust = Trust::load(&disk.files).unwrap();
    assert_eq!(trust.current().bundles.iter().count(), 2);
    assert!(!trust.reload(&disk.files));
    assert_eq!(trust.refused(), [""; 0]);
}

#[test]
fn trust_expiries_list_leaf_intermediates_and_roots() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    let expected = |kind, name: &str, der: &CertificateDer<'_>| {
        let facts = Facts::read(der).unwrap();
        Expiry { kind, name: name.to_owned(), serial: facts.serial, not_after: facts.not_after }
    };
    let leaf = leaf_of(&trust);
    assert_eq!(
        trust.expiries(),
        [
            expected(Kind::Leaf, OWN, &leaf[0]),
            expected(Kind::Intermediate, "west.example", disk.below.certificate()),
            expected(Kind::Root, "east.example", disk.east.certificate()),
            expected(Kind::Root, "west.example", disk.west.certificate()),
        ]
    );
    assert_eq!(leaf.len(), 2);
}

#[test]
fn trust_load_accepts_a_leaf_for_one_use_only() {
    let disk = Disk::new();
    for usage in [rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth] {
        let leaf = disk.west.issue_altered(&SpiffeId::parse(OWN).unwrap(), |p| {
            p.extended_key_usages = vec![usage.clone()];
            p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        });
        disk.write("id/tls.crt", leaf.chain_pem());
        disk.write("id/tls.key", leaf.key_pem());
        assert_eq!(leaf_of(&Trust::load(&disk.files).unwrap()), leaf.chain());
    }
}
