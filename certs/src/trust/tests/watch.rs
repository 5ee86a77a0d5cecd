//! Files that change while they are watched.

use super::*;

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
