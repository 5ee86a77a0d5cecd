//! Configuration and registry files as people and programs write them: FIFOs and devices, alias bombs, and
//! files written in place. No program hangs on one, and a temporarily truncated file withdraws nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_tests::cluster::{Cluster, until_status};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::setup::Setup;
use isthmus_tests::wait::until;
use isthmus_tests::{figure, http};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::Signal;

fn fifo(path: &Path) {
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
}

fn is_alive(cluster: &Cluster) -> bool {
    http::ask(cluster.address("admin"), "GET", "/healthz/live").status == 200
}

fn problems(cluster: &Cluster) -> String {
    cluster.ask("/status")["registry"]["problems"].to_string()
}

fn hosts(cluster: &Cluster) -> u64 {
    cluster.ask("/status")["registry"]["hosts"].as_u64().unwrap()
}

fn services(hosts: &[&str]) -> String {
    let one = |host: &&str| format!("- host: {host}\n  endpoints: [{{ address: 127.0.0.1:1 }}]\n");
    format!("services:\n{}", hosts.iter().map(one).collect::<String>())
}

/// Number of services of a gateway.
fn tables(gateway: &Gateway) -> usize {
    gateway.admin("GET", "/services").body.matches("\"service\"").count()
}

fn until_tables(gateway: &Gateway, count: usize) {
    until(&format!("the gateway has {count} services"), || tables(gateway) == count);
}

#[test]
fn registry_fifo_and_device_are_reported_and_block_nothing() {
    let mut cluster = Cluster::new("east");
    let registry = cluster.path("registry");
    fifo(&registry.join("at-start.yaml"));
    cluster.start();
    fifo(&registry.join("x.yaml"));
    symlink("/dev/zero", registry.join("zero.yaml")).unwrap();
    cluster.register("good.yaml", &services(&["a.example"]));
    for name in ["at-start.yaml", "x.yaml", "zero.yaml"] {
        until(&format!("{name} is named"), || problems(&cluster).contains(name));
    }
    assert!(is_alive(&cluster));
    until("the good file is loaded", || hosts(&cluster) == 1);
    for name in ["at-start.yaml", "x.yaml", "zero.yaml"] {
        cluster.forget(name);
    }
    until("there are no more problems", || problems(&cluster) == "[]");
}

#[test]
fn gateway_file_as_fifo_or_device_is_refused_and_next_edit_is_live() {
    let mut gateway = Setup::new(services(&["a.example"]).replace("services:\n", ""))
        .with("drain: { accept_for: 0s, window: 0s }")
        .start();
    let (file, new) = (gateway.file(), gateway.file().with_extension("new"));
    let text = fs::read_to_string(&file).unwrap();
    for (turn, make) in [(1, fifo as fn(&Path)), (2, |at| symlink("/dev/zero", at).unwrap())] {
        make(&new);
        fs::rename(&new, &file).unwrap();
        until("the file is refused", || {
            gateway.metrics().sum("isthmus_reloads_total", &["result=\"refused\""]) >= f64::from(turn)
        });
        assert!(gateway.errors().iter().any(|line| line.contains("is not a regular file")));
        let more = format!("- host: more-{turn}.example\n  endpoints: [{{ address: 127.0.0.1:1 }}]\n");
        fs::write(&new, text.replacen("services:\n", &format!("services:\n{more}"), 1)).unwrap();
        fs::rename(&new, &file).unwrap();
        until("the next edit is live", || {
            gateway.admin("GET", "/services").body.contains(&format!("more-{turn}.example"))
        });
    }
    fs::remove_file(&file).unwrap();
    symlink("/dev/zero", &file).unwrap();
    until("the file is refused", || {
        gateway.metrics().sum("isthmus_reloads_total", &["result=\"refused\""]) >= 3.0
    });
    gateway.signal(Signal::TERM);
    assert!(gateway.wait_end().success());
}

/// 220 KB of YAML whose aliases expand to 3 900 services of 100 endpoints each.
fn bomb() -> String {
    let ends: Vec<_> =
        (0..100).map(|end| format!("{{address: \"10.0.{}.{}:1\"}}", end / 250, end % 250)).collect();
    let rest: String =
        (0..3_900).map(|host| format!("- {{ host: h{host}.example, port: 1, endpoints: *e }}\n")).collect();
    format!("services:\n- &s {{ host: a.example, port: 1, endpoints: &e [{}] }}\n{rest}", ends.join(","))
}

#[test]
fn registry_alias_bomb_is_refused_with_its_line_while_health_answers() {
    let mut cluster = Cluster::new("east");
    cluster.register("good.yaml", &services(&["a.example"]));
    cluster.start();
    let before = cluster.process().memory();
    cluster.register("bomb.yaml", &bomb());
    let mut longest = Duration::ZERO;
    until("the bomb is refused", || {
        let asked = Instant::now();
        assert!(is_alive(&cluster));
        longest = longest.max(asked.elapsed());
        problems(&cluster).contains("its aliases expand to")
    });
    // The line at which the limit is exceeded: each alias expands to 402 values.
    assert!(problems(&cluster).contains("bomb.yaml:251:"), "{}", problems(&cluster));
    let more = cluster.process().peak().saturating_sub(before) >> 20;
    figure!("an alias bomb of 220 KB: {more} MiB more at most, health answered within {longest:?}");
    assert!(more < 64, "{more} MiB");
    assert_eq!(hosts(&cluster), 1);
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Rewrites a file in place, as scp, `rsync --inplace` and generators do: a pause after each part, with the
/// file open throughout.
fn rewrite(path: &Path, parts: &[&str], pause: impl Fn()) {
    let mut file = File::create(path).unwrap();
    for part in parts {
        file.write_all(part.as_bytes()).unwrap();
        pause();
    }
}

#[test]
fn registry_file_written_in_place_withdraws_nothing_until_closed_and_quiet() {
    let both = services(&["a.example", "b.example"]);
    let mut cluster = Cluster::new("east");
    cluster.register("db.yaml", &both);
    cluster.start();
    let gateway = cluster.gateway("gw-1");
    until_tables(&gateway, 2);
    let path = cluster.path("registry/db.yaml");
    // A change while the file is open shows that the read before it was complete.
    let (stop, fewest) = (AtomicBool::new(false), std::sync::atomic::AtomicUsize::new(usize::MAX));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                fewest.fetch_min(tables(&gateway), Relaxed);
            }
        });
        // Also if a later assertion fails.
        let _stop = Stop(&stop);
        for turn in 0..3 {
            let new = format!("new-{turn}.example");
            let unfinished = format!("{}- host: b.exa", services(&[&new, "a.example"]));
            let seen =
                || until("the new service is live", || gateway.admin("GET", "/services").body.contains(&new));
            rewrite(&path, &[&unfinished], seen);
            rewrite(&path, &["", &both], || {});
            until("the new service is gone", || !gateway.admin("GET", "/services").body.contains(&new));
        }
    });
    assert_eq!(fewest.load(Relaxed), 2, "a service was withdrawn");
    // A replaced or removed file takes effect at once.
    cluster.register("db.yaml", &services(&["a.example"]));
    until_tables(&gateway, 1);
    cluster.forget("db.yaml");
    until_tables(&gateway, 0);
}

#[test]
fn large_registry_loads_while_health_answers() {
    let mut cluster = Cluster::new("east");
    cluster.start();
    let names: Vec<_> = (0..5_000).map(|host| format!("h{host}.example")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    cluster.register("large.yaml", &services(&names));
    let (done, is_done) = channel();
    let cluster = &cluster;
    thread::scope(|scope| {
        scope.spawn(move || {
            until_status(cluster, "all services are loaded", |status| {
                (status["registry"]["hosts"] == 5_000).then_some(())
            });
            done.send(()).unwrap();
        });
        let mut longest = Duration::ZERO;
        // Dropped if the other thread fails.
        while is_done.try_recv() == Err(TryRecvError::Empty) {
            let asked = Instant::now();
            assert!(is_alive(cluster));
            longest = longest.max(asked.elapsed());
        }
        figure!("5 000 services arrive in one file: health answered within {longest:?}");
    });
}
