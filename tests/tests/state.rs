//! Faults in the state of an agent and a gateway, while they run and between starts: full, read-only and
//! failing disks, SIGKILL, and damage to any file. No process ends or hangs, and nothing is withdrawn except
//! damaged records, which are reported. Row 20 of the hazards. Tokens, registrations and single stores have
//! tests beside their code.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use fastrand::Rng;
use isthmus_tests::cluster::Cluster;
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::metrics::Metrics;
use isthmus_tests::wait::until;
use isthmus_tests::{figure, is_root, skip};
use rustix::fs::{CWD, Mode, mkfifoat};
use serde_json::{Value, json};

/// Number of permanent hosts, and of those added and removed at random.
const STANDING: usize = 8;
const HOSTS: usize = 24;
const IMPORTED: [&str; 2] = ["one.bookinfo.svc.cluster.local", "two.bookinfo.svc.cluster.local"];
const STEPS: usize = 1_000;
/// Steps between full checks.
const ROUND: usize = 25;
const SHIM: &str = include_str!("state/shim.c");
/// Environment variables of the shim: the file with the errno, and the calls that fail.
const ERRNO_FILE: &str = "ISTHMUS_FAULT_ERRNO_FILE";
const UNDER: &str = "ISTHMUS_FAULT_UNDER";
/// EIO, ENOSPC and EROFS.
const ERRNOS: [&str; 3] = ["5", "28", "30"];

fn host(number: usize) -> String {
    format!("h{number}.bookinfo.svc.cluster.local")
}

fn service(host: &str, endpoint: &Scripted) -> String {
    format!(
        "services: [{{ host: {host}, allow_unauthenticated: true, endpoints: [{{ address: '{}' }}] }}]",
        endpoint.address()
    )
}

/// Runs a command to its end; returns whether it succeeded.
fn run(program: &str, words: &[&str]) -> bool {
    Command::new(program).args(words).output().is_ok_and(|output| output.status.success())
}

/// An agent and a gateway, each with its state on its own disk.
struct World {
    seed: Rng,
    east: Cluster,
    _west: Cluster,
    gateway: Gateway,
    endpoint: Scripted,
    registered: BTreeSet<usize>,
    faults: PathBuf,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    damages: usize,
    restarts: usize,
    lost: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let faults: PathBuf = env::var_os(ERRNO_FILE).unwrap().into();
        let endpoint = Scripted::echo(b"one....");
        let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
        east.believe(&west);
        west.believe(&east);
        for folder in [east.path("state"), east.path("gw-1")] {
            fs::create_dir(&folder).unwrap();
            assert!(run("mount", &["-t", "tmpfs", "-o", "size=6m", "tmpfs", folder.to_str().unwrap()]));
        }
        west.set("gateways", "[{ name: gw-1, address: 127.0.0.1, port: 1 }]");
        west.set("exports", "[{ workspace: [bookinfo] }]");
        east.set("state", &east.path("state").display().to_string());
        east.set(
            "imports",
            "[{ cluster: west, hosts: ['*.bookinfo.svc.cluster.local'], gatewayCIDRs: [127.0.0.0/8] }]",
        );
        for name in IMPORTED {
            west.register(&format!("{name}.yaml"), &service(name, &endpoint));
        }
        east.start();
        west.set("peers", &format!("[{}]", east.as_peer()));
        west.start();
        east.stop();
        east.set("peers", &format!("[{}]", west.as_peer()));
        for number in 0..STANDING {
            east.register(&format!("h{number}.yaml"), &service(&host(number), &endpoint));
        }
        east.start();
        let gateway = east.gateway("gw-1");
        let world = World {
            seed: Rng::with_seed(seed),
            east,
            _west: west,
            gateway,
            endpoint,
            registered: (0..STANDING).collect(),
            faults,
            tally: Tally::default(),
        };
        until("the gateway has all services", || world.has_all());
        world
    }

    /// The names that the gateway routes.
    fn names(&self) -> BTreeSet<String> {
        let page = self.gateway.admin("GET", "/services?limit=1000").json();
        let items = page["items"].as_array().unwrap();
        items
            .iter()
            .map(|item| item["service"].as_str().unwrap().split(':').next().unwrap().to_owned())
            .collect()
    }

    fn standing() -> BTreeSet<String> {
        (0..STANDING).map(host).chain(IMPORTED.map(str::to_owned)).collect()
    }

    fn has_all(&self) -> bool {
        let expected = self.registered.iter().copied().map(host).chain(IMPORTED.map(str::to_owned)).collect();
        self.names() == expected
    }

    fn step(&mut self) {
        match self.seed.u32(..20) {
            0..5 => self.edit(),
            5..11 => self.damage("gw-1"),
            11..16 => self.damage("state"),
            16 => fs::write(&self.faults, self.seed.choice(ERRNOS).unwrap()).unwrap(),
            17 => self.for_each_disk(|disk| _ = fs::write(disk.join("fill"), vec![0; 8 << 20])),
            18 => self.remount("ro"),
            _ => self.mend(),
        }
    }

    fn edit(&mut self) {
        let number = self.seed.usize(STANDING..HOSTS);
        if self.registered.remove(&number) {
            self.east.forget(&format!("h{number}.yaml"));
        } else {
            self.registered.insert(number);
            self.east.register(&format!("h{number}.yaml"), &service(&host(number), &self.endpoint));
        }
    }

    fn for_each_disk(&self, work: impl Fn(&Path)) {
        ["state", "gw-1"].iter().for_each(|name| work(&self.east.path(name)));
    }

    /// Remounts the disks; a disk that is being written to may stay unchanged.
    fn remount(&self, how: &str) {
        let options = format!("remount,{how}");
        self.for_each_disk(|disk| _ = run("mount", &["-o", &options, disk.to_str().unwrap()]));
    }

    /// Repairs the disks.
    fn mend(&self) {
        let _ = fs::remove_file(&self.faults);
        self.remount("rw");
        self.for_each_disk(|disk| _ = fs::remove_file(disk.join("fill")));
    }

    /// Damages a file of a program's state; a full or read-only disk may prevent it.
    fn damage(&mut self, folder: &str) {
        let folder = self.east.path(folder);
        let names = [
            "slices.db",
            "slices.db-journal",
            "registrations.db",
            "acknowledged.json",
            "peers/north.json",
            "peers/west.json~",
            "agent.slices",
            "own.slices",
            "imports/west.slices",
            "registered.json",
        ];
        let path = folder.join(*self.seed.choice(names.iter()).unwrap());
        if let Some(parent) = path.parent() {
            let _ = fs::create_dir(parent);
        }
        self.tally.damages += usize::from(damage(&path, &mut self.seed).is_ok());
    }

    /// Checks that both programs answer, then kills and restarts one or both.
    fn check_and_restart(&mut self) {
        assert!(self.gateway.runs(), "the gateway has exited");
        assert!(self.gateway.is_ready());
        let missing: Vec<_> = World::standing().difference(&self.names()).cloned().collect();
        assert_eq!(missing, [""; 0], "withdrawn while nothing was restarted");
        let _alive = self.east.ask("/status");
        match self.seed.u32(..4) {
            0 => self.restart_agent(),
            1 => self.restart_gateway(),
            2 => {
                self.restart_agent();
                self.restart_gateway();
            }
            _ => self.restart_gateway_alone(),
        }
        until("the gateway has all services", || self.has_all());
    }

    /// Restarts the agent, with any state; the gateway keeps its tables.
    fn restart_agent(&mut self) {
        self.tally.restarts += 1;
        self.east.stop();
        self.east.start();
        let standing = World::standing();
        until("the gateway is connected to the agent", || {
            let missing: Vec<_> = standing.difference(&self.names()).cloned().collect();
            assert_eq!(missing, [""; 0], "withdrawn by a restart of the agent");
            let status = self.gateway.admin("GET", "/status").json();
            status["agent"]["connected"] == true
                && self.east.ask("/status")["peers"]["west"]["connected"] == true
        });
    }

    fn restart_gateway(&mut self) {
        self.tally.restarts += 1;
        let again = self.east.setup("gw-1").ports_of(&self.gateway);
        self.gateway.kill();
        self.gateway = again.start();
    }

    /// Restarts the gateway without an agent, on a complete but damaged state file.
    fn restart_gateway_alone(&mut self) {
        self.mend();
        until("the gateway has all services", || self.has_all());
        until("the gateway has persisted its tables", || {
            let state = self.gateway.admin("GET", "/status").json()["state"].clone();
            state["usable"] == true && state["behind"] == false
        });
        let before = self.names();
        self.east.stop();
        self.gateway.kill();
        let path = self.east.path("gw-1/slices.db");
        let how = damage(&path, &mut self.seed).unwrap();
        let again = self.east.setup("gw-1").ports_of(&self.gateway);
        self.tally.restarts += 1;
        self.gateway = again.start();
        let now = self.names();
        let log = self.gateway.errors().join("\n");
        let missing: Vec<_> = before.difference(&now).collect();
        let named =
            |name: &&String| log.lines().any(|line| line.contains("is lost") && line.contains(name.as_str()));
        let unnamed: Vec<_> = missing.iter().filter(|name| !named(name)).collect();
        // A removed file cannot be reported as damaged.
        let is_reported = how == "removed" || log.contains("the state file is damaged");
        assert!(missing.is_empty() || is_reported, "{how}: {missing:?} are gone without a report:\n{log}");
        // A flipped bit damages one record; a truncated file loses the names as well.
        if how == "flip" {
            assert!(
                missing.len() <= 1 && unnamed.is_empty(),
                "{how}: {missing:?}, of which {unnamed:?}:\n{log}"
            );
        }
        assert!(now.is_subset(&before), "{how}: a removed name is back");
        self.tally.lost += missing.len();
        self.east.start();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.faults);
        self.gateway.kill();
        self.east.stop();
        self.for_each_disk(|disk| _ = run("umount", &["-l", disk.to_str().unwrap()]));
    }
}

/// Damages a file; returns how.
fn damage(path: &Path, seed: &mut Rng) -> io::Result<&'static str> {
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let is_file = fs::symlink_metadata(path).is_ok_and(|facts| facts.is_file() && facts.len() > 0);
    let kind = if is_file { seed.u32(..9) } else { seed.u32(5..9) };
    if kind >= 5 {
        let _ = fs::remove_file(path).or_else(|_| fs::remove_dir(path));
    } else {
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    }
    let length = fs::metadata(path).map_or(0, |facts| facts.len());
    match kind {
        0 | 1 => {
            let (file, place, mut byte) = (open()?, seed.u64(..length), [0]);
            file.read_exact_at(&mut byte, place)?;
            byte[0] ^= 1 << seed.u32(..8);
            file.write_all_at(&byte, place)?;
            Ok("flip")
        }
        2 => open()?.set_len(seed.u64(..length)).map(|()| "cut off"),
        3 => open()?.write_all_at(&[0; 4096], seed.u64(..length) & !4095).map(|()| "a page of zeros"),
        4 => {
            let noise: Vec<u8> = std::iter::repeat_with(|| seed.u8(..)).take(300).collect();
            open()?.write_all_at(&noise, seed.u64(..length)).map(|()| "noise")
        }
        5 => mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).map(|()| "a pipe").map_err(io::Error::from),
        6 => fs::create_dir(path).map(|()| "a directory"),
        7 => symlink("/dev/zero", path).map(|()| "a link"),
        _ => Ok("removed"),
    }
}

/// A thousand steps in a separate mount namespace, with the shim loaded into every program.
#[test]
fn state_damage_full_disk_and_io_errors_stop_nobody_and_withdraw_nothing_else() {
    const NAME: &str = "state_damage_full_disk_and_io_errors_stop_nobody_and_withdraw_nothing_else";
    if env::var_os(ERRNO_FILE).is_some() {
        let mut world = World::new(13);
        for step in 1..=STEPS {
            world.step();
            if step % ROUND == 0 {
                world.check_and_restart();
            }
        }
        world.mend();
        until("all problems are resolved", || {
            let [gateway, agent] = [world.gateway.admin("GET", "/status").json(), world.east.ask("/status")];
            let stores = agent["state"]["stores"].as_array().unwrap();
            let all: Vec<&Value> = stores.iter().chain([&gateway["state"]]).collect();
            world.has_all() && all.iter().all(|store| store["usable"] == true && store["behind"] == false)
        });
        let Tally { damages, restarts, lost } = world.tally;
        assert!(damages > 300 && restarts > 30, "{:?}", world.tally);
        figure!(
            "{STEPS} steps, {damages} damages, {restarts} restarts: no exit, no hang, {lost} damaged records lost and reported"
        );
        return;
    }
    if !is_root() {
        skip!("mounts require root");
    }
    let folder = tempfile::tempdir().unwrap();
    let [source, shim] = ["shim.c", "shim.so"].map(|name| folder.path().join(name));
    fs::write(&source, SHIM).unwrap();
    let files = [source.to_str().unwrap(), "-o", shim.to_str().unwrap(), "-ldl"];
    if !run("cc", &[&["-shared", "-fPIC"][..], &files].concat()) {
        skip!("cc cannot build a shared library");
    }
    for program in [isthmus_tests::binary::gateway(), isthmus_tests::binary::agent()] {
        assert!(program.exists());
    }
    let status = Command::new("setpriv")
        .args(["--pdeathsig=KILL", "unshare", "--mount"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env("LD_PRELOAD", &shim)
        .env(ERRNO_FILE, folder.path().join("errno"))
        .env(UNDER, "/slices.db:/registrations.db:/acknowledged.json:/peers/")
        .status();
    assert!(status.unwrap().success(), "see the output above");
}

/// An agent with a state directory, and the permanent hosts in its registry.
fn agent_with_state(endpoint: &Scripted) -> Cluster {
    let mut east = Cluster::new("east");
    east.set("state", &east.path("state").display().to_string());
    for number in 0..STANDING {
        east.register(&format!("h{number}.yaml"), &service(&host(number), endpoint));
    }
    east
}

/// The report of one store in an agent's status.
fn store(status: &Value, name: &str) -> Value {
    let stores = status["state"]["stores"].as_array().unwrap();
    stores.iter().find(|store| store["store"] == name).unwrap_or_else(|| panic!("{stores:?}")).clone()
}

fn is_written(store: &Value) -> bool {
    store["usable"] == true && store["behind"] == false
}

/// A metric of one of an agent's stores.
fn store_metric(east: &Cluster, metric: &str, store: &str) -> String {
    let label = format!("store=\"{store}\"");
    Metrics::parse(&east.metrics()).sum(&format!("isthmus_agent_state_{metric}"), &[&label]).to_string()
}

/// Asserts that an agent's status and metrics report one damaged file of a store; returns the store's report.
#[track_caller]
fn assert_damage_is_reported(east: &Cluster, name: &str, lost: &str) -> Value {
    until("status reports the damage", || store(&east.ask("/status"), name)["damaged_files"] == 1);
    let report = store(&east.ask("/status"), name);
    assert_eq!((&report["lost"], &report["lost_records"]), (&json!([lost]), &json!(1)), "{report}");
    assert!(report["damage"].is_string(), "{report}");
    // A new file takes the place of the damaged one a little later.
    until("the metrics report the damage, and that the store is usable again", || {
        ["damaged_total", "records_lost_total", "usable"]
            .iter()
            .all(|metric| store_metric(east, metric, name) == "1")
    });
    report
}

/// Changes a letter of a host inside its record, and leaves the record's key as it is.
fn damage_record(path: &Path, host: &str) {
    let mut bytes = fs::read(path).unwrap();
    // Inside the record, the host follows its length.
    let is_inside =
        |at: &usize| bytes[*at..].starts_with(host.as_bytes()) && usize::from(bytes[*at - 1]) == host.len();
    let at = (1..bytes.len()).find(is_inside).expect("the file has the record");
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn state_damaged_slices_are_in_status_and_metrics_of_both_programs() {
    let endpoint = Scripted::echo(b"one....");
    let mut east = agent_with_state(&endpoint);
    east.start();
    let gateway = east.gateway("gw-1");
    let report = |gateway: &Gateway| gateway.admin("GET", "/status").json()["state"].clone();
    until("both have persisted all services", || {
        let page = gateway.admin("GET", "/services?limit=1000").json();
        page["items"].as_array().unwrap().len() == STANDING
            && is_written(&report(&gateway))
            && is_written(&store(&east.ask("/status"), "slices"))
    });
    let of_gateway = |gateway: &Gateway| {
        let metrics = gateway.metrics();
        ["usable", "damaged_total", "records_lost_total"]
            .map(|metric| metrics.sum(&format!("isthmus_state_{metric}"), &["store=\"slices\""]).to_string())
    };
    assert_eq!(of_gateway(&gateway), ["1", "0", "0"]);
    assert_eq!(store_metric(&east, "damaged_total", "slices"), "0");
    let (again, mut gateway) = (east.setup("gw-1").ports_of(&gateway), gateway);
    east.stop();
    gateway.kill();
    damage_record(&east.path("state/slices.db"), &host(3));
    damage_record(&east.path("gw-1/slices.db"), &host(3));
    east.start();
    let gateway = again.start();
    assert_damage_is_reported(&east, "slices", &format!("own/east/{}", host(3)));
    let found = report(&gateway);
    assert_eq!(found["lost"], json!([format!("east/{}", host(3))]), "{found}");
    assert!(found["damage"].is_string(), "{found}");
    until("status has the paths of the damaged files", || {
        [store(&east.ask("/status"), "slices"), report(&gateway)]
            .iter()
            .all(|report| report["set_aside"].is_string())
    });
    until("the gateway's metrics report the damage, and that the store is usable again", || {
        of_gateway(&gateway) == ["1", "1", "1"]
    });
}

#[test]
fn state_unusable_directory_is_in_status_and_metrics_of_both_programs_until_usable() {
    let endpoint = Scripted::echo(b"one....");
    let mut east = agent_with_state(&endpoint);
    let folders = [east.path("state"), east.path("gw-1")];
    folders.iter().for_each(|folder| fs::write(folder, "not a directory").unwrap());
    east.start();
    let gateway = east.gateway("gw-1");
    let report = || gateway.admin("GET", "/status").json()["state"].clone();
    let usable = || gateway.metrics().sum("isthmus_state_usable", &["store=\"slices\""]).to_string();
    until("status of both programs reports that the state directory is unusable", || {
        [store(&east.ask("/status"), "slices"), store(&east.ask("/status"), "registrations"), report()]
            .iter()
            .all(|found| found["usable"] == false && found["problem"].is_string())
    });
    until("so do their metrics", || store_metric(&east, "usable", "slices") == "0" && usable() == "0");
    folders.iter().for_each(|folder| fs::remove_file(folder).unwrap());
    until("both use their state directory", || {
        store_metric(&east, "usable", "slices") == "1" && usable() == "1"
    });
    for found in [store(&east.ask("/status"), "slices"), report()] {
        assert!(found["problem"].is_null(), "{found}");
    }
}

#[test]
fn state_damaged_token_is_in_status_and_metrics() {
    let endpoint = Scripted::echo(b"one....");
    let mut east = agent_with_state(&endpoint);
    east.set("join", "{ address: '127.0.0.1:0', advertise: '127.0.0.1:1' }");
    east.set("xds", "{ address: '127.0.0.1:0', advertise: '127.0.0.1:1' }");
    east.start();
    let create = ["token", "create", "--for", "west", "--trust-domain", "west.example"];
    east.command(&create).unwrap();
    east.stop();
    let tokens = fs::read_dir(east.path("state/tokens")).unwrap().map(|entry| entry.unwrap().path());
    let open: Vec<_> = tokens.filter(|path| path.extension().is_some_and(|end| end == "open")).collect();
    let [token] = &open[..] else { panic!("{open:?}") };
    fs::write(token, "{").unwrap();
    east.start();
    let id = token.file_stem().unwrap().to_string_lossy();
    let report = assert_damage_is_reported(&east, "tokens", &id[..8]);
    assert!(
        report["set_aside"].is_string() && !report.to_string().contains(&format!("\"{id}\"")),
        "{report}"
    );
}

#[test]
fn state_damaged_record_of_joined_cluster_is_in_status_and_metrics() {
    let endpoint = Scripted::echo(b"one....");
    let mut east = agent_with_state(&endpoint);
    fs::create_dir_all(east.path("state/peers")).unwrap();
    fs::write(east.path("state/peers/north.json"), "{").unwrap();
    fs::write(east.path("state/peers/west.json~"), "{").unwrap();
    east.start();
    assert_damage_is_reported(&east, "peers", "north.json");
    let problems = east.ask("/status")["state"]["problems"].to_string();
    assert!(problems.contains("north.json: is not a valid peer record"), "{problems}");
    assert!(problems.contains("west.json~: is ignored: not named CLUSTER.json"), "{problems}");
    let metrics = Metrics::parse(&east.metrics());
    assert_eq!(metrics.sum("isthmus_agent_state_problems", &[]).to_string(), "2");
    // The directory is read every second, and the damage counts once.
    fs::write(east.path("state/peers/south.json"), "{").unwrap();
    until("the second damaged record counts", || store_metric(&east, "damaged_total", "peers") == "2");
}

#[test]
fn state_damaged_acknowledgements_are_in_status_and_metrics() {
    let endpoint = Scripted::echo(b"one....");
    let mut east = agent_with_state(&endpoint);
    fs::create_dir_all(east.path("state")).unwrap();
    fs::write(east.path("state/acknowledged.json"), "{").unwrap();
    east.start();
    let report = assert_damage_is_reported(&east, "acknowledged", "acknowledged.json");
    assert!(report["set_aside"].is_string(), "{report}");
    until("the file is written again", || is_written(&store(&east.ask("/status"), "acknowledged")));
}
