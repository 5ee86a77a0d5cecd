//! Trust that follows real files: valid files replace the previous ones, invalid files are reported and change nothing.
//! `tls::resume` tests how handshakes follow.

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

const FOREIGN_LEAF: &str = "spiffe://west.example/ns/a/sa/b";

fn flaws_of_the_identity() -> Vec<Flaw<'static>> {
    vec![
        ("read", "id/tls.crt", "cannot be read", &|disk| fs::remove_file(disk.at("id/tls.crt")).unwrap()),
        ("read", "id/tls.key", "cannot be read", &|disk| fs::remove_file(disk.at("id/tls.key")).unwrap()),
        ("identity", "id/tls.crt", "must hold -----BEGIN CERTIFICATE", &|d| d.write("id/tls.crt", "words")),
        ("identity", "id/tls.key", "must hold one -----BEGIN PRIVATE KEY", &|d| d.write("id/tls.key", "")),
        ("identity", "id/tls.crt", "line 2: a block has characters that are not base64", &|disk| {
            disk.write("id/tls.crt", "-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n");
        }),
        ("identity", "id/tls.key", "both must be of the same issue", &|disk| {
            let other = disk.below.issue(&SpiffeId::parse(OWN).unwrap(), &[], HOUR).unwrap();
            disk.write("id/tls.key", other.key_pem());
        }),
        ("identity", "id/tls.crt", "a leaf must not be able to sign", &|disk| {
            disk.write("id/tls.crt", crate::pem::encode(disk.below.above()));
            disk.write("id/tls.key", disk.below.key_pem().unwrap());
        }),
        ("identity", "id/tls.crt", "must have exactly one", &|disk| {
            let leaf =
                disk.west.issue_altered(&SpiffeId::parse(OWN).unwrap(), |p| p.subject_alt_names.clear());
            disk.write("id/tls.crt", leaf.chain_pem());
            disk.write("id/tls.key", leaf.key_pem());
        }),
        ("identity", "id/tls.crt", "it is UTF-16", &|disk| disk.write("id/tls.crt", b"\xff\xfe")),
        ("unbelievable", "id/tls.crt", "the bundle must have the root", &|disk| {
            let other = Authority::generate(disk.west.trust_domain().clone()).unwrap();
            disk.show(&other, OWN);
        }),
        ("unbelievable", "id/tls.crt", "find out why its rotation stopped", &|disk| {
            let past = OffsetDateTime::now_utc() - HOUR / 60;
            let leaf = disk.west.issue_altered(&SpiffeId::parse(OWN).unwrap(), |p| p.not_after = past);
            disk.write("id/tls.crt", leaf.chain_pem());
            disk.write("id/tls.key", leaf.key_pem());
        }),
        ("unbelievable", "id/tls.crt", "add the bundle of west.example", &|disk| {
            fs::remove_file(disk.at("bundles/west.example.json")).unwrap();
        }),
    ]
}

fn flaws_of_bundles() -> Vec<Flaw<'static>> {
    vec![
        ("large", "bundles/east.example.json", "is it the right file?", &|disk| {
            let file = fs::File::options().write(true).open(disk.at("bundles/east.example.json")).unwrap();
            file.set_len(17 << 20).unwrap();
        }),
        ("pem", "bundles/north.example.pem", "must hold -----BEGIN CERTIFICATE", &|disk| {
            disk.write("bundles/north.example.pem", "words");
        }),
        ("name", "bundles/North.pem", "must be named TRUST-DOMAIN.json or TRUST-DOMAIN.pem", &|disk| {
            disk.write("bundles/North.pem", disk.east.certificate_pem());
        }),
        ("twice", "bundles/east.example.pem", "remove one of them", &|disk| {
            disk.write("bundles/east.example.pem", disk.east.certificate_pem());
        }),
        ("format", "bundles/east.example.json", "is not a SPIFFE bundle", &|disk| {
            disk.write("bundles/east.example.json", "{}");
        }),
        ("format", "bundles/east.example.json", "no identity of its domain would be trusted", &|disk| {
            disk.write("bundles/east.example.json", r#"{"keys": []}"#);
        }),
        ("format", "bundles/east.example.json", "is it the right file?", &|disk| {
            fs::copy(disk.at("bundles/west.example.json"), disk.at("bundles/east.example.json")).unwrap();
        }),
        ("bundle", "bundles/north.example.pem", "give the root, not a leaf", &|disk| {
            let leaf = disk.west.issue(&SpiffeId::parse(FOREIGN_LEAF).unwrap(), &[], HOUR).unwrap();
            disk.write("bundles/north.example.pem", leaf.chain_pem());
        }),
        ("bundle", "bundles/north.example.pem", "is it the right file?", &|disk| {
            disk.write("bundles/north.example.pem", disk.east.certificate_pem());
        }),
    ]
}

fn flaws_of_lists() -> Vec<Flaw<'static>> {
    vec![
        ("deny", "deny/east.example.json", "cannot be read", &|disk| {
            disk.write("deny/east.example.json", "{}")
        }),
        ("deny", "deny/east.example.json", "`isthmus-certs rotate` there signs it again", &|disk| {
            let list = DenyList::new(disk.east.trust_domain().clone());
            disk.write("deny/east.example.json", list.sign(&disk.west).unwrap());
        }),
        ("deny", "deny/east.example.json", "a domain can deny only its own", &|disk| {
            let list = DenyList::new(disk.west.trust_domain().clone());
            disk.write("deny/east.example.json", list.sign(&disk.east).unwrap());
        }),
        ("no bundle", "deny/north.example.json", "add its bundle, or remove this", &|disk| {
            fs::copy(disk.at("deny/east.example.json"), disk.at("deny/north.example.json")).unwrap();
        }),
        ("no bundle", "crls/north.example.crl", "add its bundle, or remove this", &|disk| {
            fs::copy(disk.at("crls/east.example.pem"), disk.at("crls/north.example.crl")).unwrap();
        }),
        ("crl", "crls/east.example.pem", "must hold -----BEGIN X509 CRL----- blocks", &|d| {
            d.write("crls/east.example.pem", "")
        }),
        ("crl", "crls/east.example.pem", "or lower the outage budget", &|disk| {
            let now = OffsetDateTime::now_utc();
            let short = list(&disk.east, &[], now, now + HOUR / 2);
            disk.write("crls/east.example.pem", pem_of(&[short]));
        }),
    ]
}

fn flaws_of_folders() -> Vec<Flaw<'static>> {
    vec![
        ("read", "bundles", "cannot be read", &|disk| {
            fs::rename(disk.at("bundles"), disk.at("gone")).unwrap()
        }),
        ("read", "deny", "cannot be read", &|disk| fs::rename(disk.at("deny"), disk.at("gone")).unwrap()),
        ("read", "crls", "cannot be read", &|disk| fs::rename(disk.at("crls"), disk.at("gone")).unwrap()),
    ]
}

fn kind_of(cause: &LoadCause) -> &'static str {
    match cause {
        LoadCause::Read(_) => "read",
        LoadCause::NoFile => "no file",
        LoadCause::TooLarge => "large",
        LoadCause::Pem(_) => "pem",
        LoadCause::Identity(_) => "identity",
        LoadCause::Unverified(_) => "unbelievable",
        LoadCause::Name(_) => "name",
        LoadCause::Twice(_) => "twice",
        LoadCause::Format(_) => "format",
        LoadCause::Bundle(_) => "bundle",
        LoadCause::OldBundle { .. } => "old bundle",
        LoadCause::Deny(_) => "deny",
        LoadCause::NoBundle(_) => "no bundle",
        LoadCause::Crl(_) => "crl",
        LoadCause::OtherIdentity { .. } => "other identity",
    }
}

#[test]
fn trust_load_reports_each_flaw_with_file_and_remedy() {
    let flaws = [flaws_of_the_identity(), flaws_of_bundles(), flaws_of_lists(), flaws_of_folders()].concat();
    for (kind, file, remedy, flaw) in &flaws {
        let disk = Disk::new();
        Trust::load(&disk.files).unwrap();
        flaw(&disk);
        let error = Trust::load(&disk.files).unwrap_err();
        let path = disk.at(file);
        assert_eq!((&error.path, kind_of(&error.cause)), (&path, *kind), "{error}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("{}: ", path.display())) && text.contains(remedy), "{text}");
        println!("{file}: {}", &text[path.to_str().unwrap().len() + 2..]);
    }
    let kinds: BTreeSet<_> = flaws.iter().map(|(kind, ..)| *kind).collect();
    // The other kinds compare with the previous state.
    assert_eq!(kinds.len(), 12, "{kinds:?}");
}

#[test]
fn trust_reload_keeps_the_previous_state_until_a_flaw_is_repaired() {
    changes_nothing([flaws_of_the_identity(), flaws_of_bundles(), flaws_of_lists()].concat());
}

#[test]
fn trust_reload_keeps_the_content_of_a_missing_folder() {
    changes_nothing(flaws_of_folders());
}

/// Checks that each flaw leaves the trust unchanged and names its file, until it is repaired.
fn changes_nothing(flaws: Vec<Flaw<'_>>) {
    let mut lost = Vec::new();
    for (_, file, remedy, flaw) in flaws {
        let disk = Disk::new();
        let [friend, foe, revoked] = [FRIEND, FOE, FRIEND].map(|id| disk.of_east(id));
        disk.write("crls/east.example.pem", disk.revoking(&[&revoked.chain()[0]]));
        let backup = tempfile::tempdir().unwrap();
        copy_all(disk.dir.path(), backup.path());
        let trust = Trust::load(&disk.files).unwrap();
        let judge = || [&friend, &foe, &revoked].map(|identity| verdict(&trust, identity));
        let (before, leaf) = (judge(), leaf_of(&trust));
        assert_eq!(before, ["trusted", "denied", "revoked"]);
        flaw(&disk);
        trust.reload(&disk.files);
        let path = disk.at(file).display().to_string();
        let named = trust.refused().iter().any(|text| text.starts_with(&path) && text.contains(remedy));
        if judge() != before || leaf_of(&trust) != leaf || !named {
            lost.push(format!("{file} ({remedy}): {:?}, refused: {:?}", judge(), trust.refused()));
        }
        fs::remove_dir_all(disk.dir.path()).unwrap();
        copy_all(backup.path(), disk.dir.path());
        trust.reload(&disk.files);
        assert_eq!(trust.refused(), [""; 0], "{file}: repaired");
        assert_eq!(judge(), before, "{file}: repaired");
    }
    assert!(lost.is_empty(), "{lost:#?}");
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy_all(&entry.path(), &to.join(entry.file_name())),
            false => _ = fs::copy(entry.path(), to.join(entry.file_name())).unwrap(),
        }
    }
}

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
        let facts = Facts::of(der).unwrap();
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

/// Publishes files behind `..data`, as kubelet does: one rename swaps all of them.
fn publish(folder: &Path, generation: &str, entries: &[(&str, &str)]) {
    let real = folder.join(generation);
    fs::create_dir(&real).unwrap();
    for (name, content) in entries {
        fs::write(real.join(name), content).unwrap();
    }
    symlink(generation, folder.join("..data_tmp")).unwrap();
    fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    for (name, _) in entries {
        let link = folder.join(name);
        if !fs::symlink_metadata(&link).is_ok_and(|there| there.is_symlink()) {
            _ = fs::remove_file(&link);
            symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
}

#[test]
fn trust_watch_follows_a_swap_of_the_kubelet_link() {
    let disk = Disk::new();
    let text = |name: &str| fs::read_to_string(disk.at(name)).unwrap();
    publish(&disk.at("id"), "..1", &[("tls.crt", &text("id/tls.crt")), ("tls.key", &text("id/tls.key"))]);
    let [east, west] = ["bundles/east.example.json", "bundles/west.example.json"].map(text);
    publish(&disk.at("bundles"), "..1", &[("east.example.json", &east), ("west.example.json", &west)]);
    let trust = Trust::load(&disk.files).unwrap();
    let watch = trust.watch(disk.files.clone()).unwrap();

    let next = disk.below.issue(&SpiffeId::parse(OWN).unwrap(), &[], HOUR).unwrap();
    publish(&disk.at("id"), "..2", &[("tls.crt", next.chain_pem()), ("tls.key", next.key_pem())]);
    fs::remove_dir_all(disk.at("id/..1")).unwrap();
    wait_until("the new leaf", || leaf_of(&trust) == next.chain());

    let root = Authority::generate(disk.east.trust_domain().clone()).unwrap();
    let bundle = Bundle::new(root.trust_domain(), 6, [root.certificate()]).unwrap();
    let bundle = spiffe_bundle::write(&bundle).unwrap();
    publish(&disk.at("bundles"), "..2", &[("east.example.json", &bundle), ("west.example.json", &west)]);
    let friend = root.issue(&SpiffeId::parse(FRIEND).unwrap(), &[], HOUR).unwrap();
    wait_until("the new root", || verdict(&trust, &friend) == "trusted");

    drop(watch);
    assert_eq!(Arc::strong_count(&trust.0), 1, "the watch has ended");
}

#[test]
fn trust_watch_retries_a_refused_file_until_it_is_valid() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    let watch = trust.watch(disk.files.clone()).unwrap();
    disk.write("bundles/east.example.json", "{");
    wait_until("the refusal", || !trust.refused().is_empty());
    assert_eq!((trust.current().epoch, verdict(&trust, &disk.of_east(FRIEND))), (0, "trusted"));
    let next = Authority::generate(disk.east.trust_domain().clone()).unwrap();
    disk.bundle(&next, 6);
    let friend = next.issue(&SpiffeId::parse(FRIEND).unwrap(), &[], HOUR).unwrap();
    wait_until("the repair", || verdict(&trust, &friend) == "trusted");
    assert!(trust.refused().iter().all(|text| !text.contains("bundles/")), "{:?}", trust.refused());
    drop(watch);
}

#[test]
fn trust_watch_loads_a_leaf_once_it_becomes_valid() {
    let disk = Disk::new();
    let trust = Trust::load(&disk.files).unwrap();
    let watch = trust.watch(disk.files.clone()).unwrap();
    let soon = OffsetDateTime::now_utc() + Duration::from_secs(4);
    let next = disk.west.issue_altered(&SpiffeId::parse(OWN).unwrap(), |p| p.not_before = soon);
    disk.write("id/tls.crt", next.chain_pem());
    disk.write("id/tls.key", next.key_pem());
    // No file changes after the refusal.
    wait_until("its start", || leaf_of(&trust) == next.chain());
    assert_eq!(trust.refused(), [""; 0]);
    drop(watch);
}
