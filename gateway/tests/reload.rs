//! Tests edits of the configuration file under live connections: established connections are untouched, a valid edit
//! is applied as a whole, and an invalid one changes nothing and reports why.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic anywhere")]

mod common;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;

use common::{Answer, Client, World, backend, connect, head, hello, open, served_by, until};
use isthmus_core::reason::{Alert, Reason};
use tempfile::TempDir;

const CONNECTIONS: usize = 1_000;
const EDITS: usize = 100;

/// A configuration file, edited in the ways that editors and tools use.
struct ConfigFile {
    directory: TempDir,
    edits: usize,
}

impl ConfigFile {
    fn new(text: &str) -> ConfigFile {
        let file = ConfigFile { directory: tempfile::tempdir().unwrap(), edits: 0 };
        fs::write(file.path(), text).unwrap();
        file
    }

    fn path(&self) -> PathBuf {
        self.at("gateway.yaml")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Edits in each way in turn; after a link swap the file is a link.
    fn edit(&mut self, text: &str) {
        self.edits += 1;
        match self.edits % 5 {
            0 => self.rename(text),
            1 => self.write(text),
            2 | 3 => self.swap_link(text),
            _ => self.write(text),
        }
    }

    /// As editors and configuration management do.
    fn rename(&self, text: &str) {
        fs::write(self.at("gateway.yaml.new"), text).unwrap();
        fs::rename(self.at("gateway.yaml.new"), self.path()).unwrap();
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    /// As a ConfigMap does: the file is a link through `..data`, and `..data` is swapped.
    fn swap_link(&self, text: &str) {
        let version = format!("..version-{}", self.edits);
        fs::create_dir(self.at(&version)).unwrap();
        fs::write(self.at(&version).join("gateway.yaml"), text).unwrap();
        symlink(&version, self.at("..data_tmp")).unwrap();
        fs::rename(self.at("..data_tmp"), self.at("..data")).unwrap();
        if !self.path().is_symlink() {
            symlink("..data/gateway.yaml", self.at("link")).unwrap();
            fs::rename(self.at("link"), self.path()).unwrap();
        }
    }
}

fn service(host: &str, endpoint: SocketAddr) -> String {
    format!("- {{host: {host}, endpoints: [{{address: '{endpoint}'}}]}}\n")
}

fn config(services: &[(&str, SocketAddr)]) -> String {
    let services: String = services.iter().map(|(host, endpoint)| service(host, *endpoint)).collect();
    format!("{}services:\n{services}", head())
}

fn any() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

fn refusals(world: &World) -> u64 {
    world.gateway().control().process.metrics.reloads_refused.load(Relaxed)
}

#[test]
fn reload_keeps_connections_and_routes_new_ones() {
    let (a, b) = (backend(any()).unwrap(), backend(any()).unwrap());
    // `moving` leads to a or b in turn; `a` and `b` stay what they are.
    let text = |turn: usize| {
        config(&[("moving.test", if turn.is_multiple_of(2) { a } else { b }), ("a.test", a), ("b.test", b)])
    };
    let mut file = ConfigFile::new(&text(0));
    let world = World::start(&file.path());
    let hellos = ["moving.test", "a.test", "b.test"].map(hello);
    let mut clients: Vec<Client> =
        (0..CONNECTIONS).map(|index| open(world.address(), &hellos[index % 3])).collect();
    let expected = |index: usize| if index % 3 == 2 { b } else { a };

    for turn in 1..=EDITS {
        let before = world.epoch();
        file.edit(&text(turn));
        until("the edit is live", || world.epoch() > before);
        let now = served_by(world.address(), &hellos[0]);
        assert_eq!(now, Some(if turn.is_multiple_of(2) { a } else { b }), "after edit {turn}");
        for (index, client) in clients.iter_mut().enumerate().skip(turn % 10).step_by(10) {
            assert!(client.echo(&format!("edit {turn}, connection {index}")), "connection {index} broke");
        }
    }
    for (index, client) in clients.iter_mut().enumerate() {
        assert!(client.echo(&format!("connection {index}")), "connection {index} broke");
        assert_eq!(client.backend(), expected(index), "connection {index}");
    }
    assert_eq!(refusals(&world), 0, "{:?}", world.gateway().control().last_refused());
}

#[test]
fn reload_refuses_removed_service_at_once() {
    let (a, b) = (backend(any()).unwrap(), backend(any()).unwrap());
    let file = ConfigFile::new(&config(&[("a.test", a), ("b.test", b)]));
    let world = World::start(&file.path());
    let mut established = open(world.address(), &hello("a.test"));

    let before = world.epoch();
    file.rename(&config(&[("b.test", b)]));
    until("the edit is live", || world.epoch() > before);
    match connect(world.address(), &hello("a.test")) {
        Answer::Refused(alert) => assert_eq!(alert, Alert::UnrecognizedName as u8),
        Answer::Served(_) => panic!("a removed service is still served"),
    }
    assert_eq!(served_by(world.address(), &hello("b.test")), Some(b));
    assert!(established.echo("still here"));
    let ended = |reason: Reason| {
        let workers = &world.gateway().control().process.metrics.workers;
        workers.iter().map(|worker| worker.listeners[0].ended[reason as usize].load(Relaxed)).sum::<u64>()
    };
    until("the refusal is counted", || ended(Reason::SniUnmatched) == 1);
}

#[test]
fn reload_of_invalid_file_reports_all_problems_and_changes_nothing() {
    let a = backend(any()).unwrap();
    let good = config(&[("a.test", a)]);
    let file = ConfigFile::new(&good);
    let world = World::start(&file.path());
    let control = world.gateway().control();
    let before = world.epoch();

    file.write(&format!(
        "{good}- {{host: b.test, endpoints: [{{address: nowhere}}]}}\n- {{host: c..test}}\n"
    ));
    until("the edit is refused", || refusals(&world) == 1);
    let why = control.last_refused().unwrap().why;
    assert!(why.contains("gateway.yaml:9:") && why.contains("nowhere"), "{why}");
    assert!(why.contains("gateway.yaml:10:") && why.contains("c..test"), "{why}");
    assert_eq!(world.epoch(), before);
    assert_eq!(served_by(world.address(), &hello("a.test")), Some(a));

    // The edit is reverted: nothing changes and the refusal is cleared.
    file.rename(&good);
    until("the refusal is over", || control.last_refused().is_none());
    assert_eq!((world.epoch(), refusals(&world)), (before, 1));
}

#[test]
fn reload_refuses_change_of_fixed_key_by_name() {
    let (a, b) = (backend(any()).unwrap(), backend(any()).unwrap());
    let good = config(&[("a.test", a)]);
    let file = ConfigFile::new(&good);
    let world = World::start(&file.path());
    let before = world.epoch();

    let edit = good.replace("workers: 2", "workers: 1") + &service("b.test", b);
    file.rename(&edit);
    until("the edit is refused", || refusals(&world) == 1);
    let why = world.gateway().control().last_refused().unwrap().why;
    assert!(why.contains("workers") && !why.contains("listeners"), "{why}");
    assert_eq!(world.epoch(), before);
    assert_eq!(
        served_by(world.address(), &hello("b.test")),
        None,
        "an edit is applied as a whole or not at all"
    );
}

#[test]
fn reload_reports_missing_file_and_keeps_tables() {
    let (a, b) = (backend(any()).unwrap(), backend(any()).unwrap());
    let file = ConfigFile::new(&config(&[("a.test", a)]));
    let world = World::start(&file.path());
    let control = world.gateway().control();

    fs::remove_file(file.path()).unwrap();
    until("the file is missed", || refusals(&world) == 1);
    let why = control.last_refused().unwrap().why;
    assert!(why.contains("gateway.yaml is missing"), "{why}");
    assert_eq!(served_by(world.address(), &hello("a.test")), Some(a));

    file.write(&config(&[("a.test", b)]));
    until("the new file is live", || served_by(world.address(), &hello("a.test")) == Some(b));
    until("the refusal is over", || control.last_refused().is_none());
    assert_eq!(refusals(&world), 1);
}

#[test]
fn reload_applies_edit_between_load_and_start() {
    let (a, b) = (backend(any()).unwrap(), backend(any()).unwrap());
    let file = ConfigFile::new(&config(&[("a.test", a)]));
    let elsewhere: &Path = &file.at("before.yaml");
    fs::write(elsewhere, config(&[("a.test", b)])).unwrap();
    let settings = isthmus_core::config::load(elsewhere).unwrap();
    let world = World::around(isthmus_core::gateway::Gateway::start(settings, Some(file.path())).unwrap());
    until("the file is live", || served_by(world.address(), &hello("a.test")) == Some(a));
}
