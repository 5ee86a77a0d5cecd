//! Each flaw of the files, at load and at reload.

use super::*;

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
