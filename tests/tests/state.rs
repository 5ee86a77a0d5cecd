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
/// Imported from a cluster that has joined by a token.
const JOINED: &str = "joined.bookinfo.svc.cluster.local";
/// Registered by a VM.
const VM: &str = "vm.bookinfo.svc.cluster.local";
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
    north: Cluster,
    /// The token that north has spent.
    spent: String,
    lease: String,
    /// Files that were removed since the last check: that cannot be reported.
    removed: BTreeSet<&'static str>,
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
    tokens: usize,
    joined_again: usize,
    registered_again: usize,
}

/// East with its state on small disks, west as its peer, and north, which can join.
fn clusters(endpoint: &Scripted) -> [Cluster; 3] {
    let [mut east, mut west, mut north] = ["east", "west", "north"].map(Cluster::new);
    east.trust_cluster(&west);
    west.trust_cluster(&east);
    for folder in [east.path("state"), east.path("gw-1")] {
        fs::create_dir(&folder).unwrap();
        assert!(run("mount", &["-t", "tmpfs", "-o", "size=6m", "tmpfs", folder.to_str().unwrap()]));
    }
    west.set("gateways", "[{ name: gw-1, address: 127.0.0.1, port: 1 }]");
    west.set("exports", "[{ workspace: [bookinfo] }]");
    east.set("state", &east.path("state").display().to_string());
    east.set(
        "imports",
        "[{ cluster: west, hosts: ['*.bookinfo.svc.cluster.local'], gatewayCIDRs: [127.0.0.0/8] }, { cluster: north, hosts: ['*.bookinfo.svc.cluster.local'], gatewayCIDRs: [127.0.0.0/8] }]",
    );
    east.set("registration", &format!("{{ socket: {} }}", east.path("agent.sock").display()));
    east.set("join", "{ address: '127.0.0.1:0', advertise: '127.0.0.1:1' }");
    east.set("xds", "{ address: '127.0.0.1:0', advertise: '127.0.0.1:1' }");
    north.set("gateways", "[{ name: gw-1, address: 127.0.0.1, port: 1 }]");
    north.set("exports", "[{ workspace: [bookinfo] }]");
    north.register("joined.yaml", &service(JOINED, endpoint));
    north.start();
    for name in IMPORTED {
        west.register(&format!("{name}.yaml"), &service(name, endpoint));
    }
    east.start();
    west.set("peers", &format!("[{}]", east.as_peer()));
    west.start();
    east.stop();
    for cluster in [&mut east, &mut north] {
        let address = cluster.agent_address();
        cluster.set("xds", &format!("{{ address: '{address}', advertise: '{address}' }}"));
    }
    let place = east.address("join");
    east.set("join", &format!("{{ address: '{place}', advertise: '{place}' }}"));
    north.stop();
    north.set("state", &north.path("state").display().to_string());
    north.start();
    east.set("peers", &format!("[{}]", west.as_peer()));
    for number in 0..STANDING {
        east.register(&format!("h{number}.yaml"), &service(&host(number), endpoint));
    }
    east.start();
    [east, west, north]
}

impl World {
    fn new(seed: u64) -> World {
        let faults: PathBuf = env::var_os(ERRNO_FILE).unwrap().into();
        let endpoint = Scripted::echo(b"one....");
        let [east, west, north] = clusters(&endpoint);
        let gateway = east.gateway("gw-1");
        let vm = json!({ "host": VM, "instance": "vm-0", "ttl": "10m",
            "endpoints": [{ "address": endpoint.address().to_string() }] });
        fs::write(east.path("vm.json"), vm.to_string()).unwrap();
        let mut world = World {
            seed: Rng::with_seed(seed),
            east,
            _west: west,
            north,
            spent: String::new(),
            lease: String::new(),
            removed: BTreeSet::new(),
            gateway,
            endpoint,
            registered: (0..STANDING).collect(),
            faults,
            tally: Tally::default(),
        };
        world.join();
        world.register_vm();
        until("the gateway has all services", || world.has_all());
        world
    }

    /// North joins by a new token.
    fn join(&mut self) {
        let create = ["token", "create", "--for", "north", "--trust-domain", "north.example"];
        let token = self.east.command(&create).unwrap().trim().to_owned();
        self.north.command(&["join", &token]).unwrap();
        self.spent = token;
    }

    fn register_vm(&mut self) {
        let body = self.east.path("vm.json").display().to_string();
        let said = self.east.command(&["register", &body]).unwrap();
        let said: Value = serde_json::from_str(&said).unwrap();
        // A registration that the agent still has counts as a heartbeat, without another lease.
        if let Some(lease) = said["lease"].as_str() {
            lease.clone_into(&mut self.lease);
        }
    }

    /// The VM renews its registration, and registers again where the agent has lost it.
    fn renew_vm(&mut self) {
        if self.east.command(&["heartbeat", &self.lease]).is_err() {
            self.tally.registered_again += 1;
            self.register_vm();
        }
    }

    /// A spent token stays spent; others are made and revoked. Commands may fail, as the disk does.
    fn use_tokens(&mut self) {
        let again = self.north.command(&["join", &self.spent]);
        assert!(again.is_err(), "a token was spent twice: {again:?}");
        let create = ["token", "create", "--for", "south", "--trust-domain", "south.example", "--json"];
        let Ok(created) = self.east.command(&create) else { return };
        self.tally.tokens += 1;
        let created: Value = serde_json::from_str(&created).unwrap();
        let _ = self.east.command(&["token", "revoke", created["id"].as_str().unwrap()]);
    }

    /// North joins again where its record is lost for good, and the operator says so.
    fn mend_joined(&mut self) {
        let list = self.east.command(&["peers", "list"]).unwrap();
        if !list.contains("north.example") {
            self.tally.joined_again += 1;
            self.join();
        }
        self.east.command(&["peers", "forget", "--lost"]).unwrap();
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

    /// Asserts that nothing has been withdrawn but records that were damaged, and that those are named.
    #[track_caller]
    fn assert_has_standing(&self, when: &str) {
        let names = self.names();
        let missing: Vec<_> = World::standing().difference(&names).cloned().collect();
        assert_eq!(missing, [""; 0], "withdrawn {when}");
        let is_removed = |file: &str| self.removed.contains(file);
        assert!(names.contains(JOINED) || is_removed("trust.db"), "{JOINED} was withdrawn {when}");
        let log = self.east.log_lines().join("\n");
        let is_named = |line: &str| {
            line.contains("registrations") && (line.contains("is damaged") || line.contains("is lost"))
        };
        let is_reported = is_removed("registrations.db") || log.lines().any(is_named);
        assert!(names.contains(VM) || is_reported, "{VM} was withdrawn {when} without a report:\n{log}");
    }

    fn has_all(&self) -> bool {
        self.names() == self.expected()
    }

    /// The names that the gateway has once everything is repaired.
    fn expected(&self) -> BTreeSet<String> {
        let standing = IMPORTED.into_iter().chain([JOINED, VM]).map(str::to_owned);
        self.registered.iter().copied().map(host).chain(standing).collect()
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
    fn damage(&mut self, program: &str) {
        let folder = self.east.path(program);
        let names = [
            "slices.db",
            "slices.db-journal",
            "registrations.db",
            "registrations.db-journal",
            "trust.db",
            "trust.db-journal",
            "trust.db.lock",
            "acknowledged.json",
            "peers/west.json~",
            "tokens/0.open",
            "agent.slices",
            "own.slices",
            "imports/west.slices",
            "registered.json",
        ];
        let name = *self.seed.choice(names.iter()).unwrap();
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            let _ = fs::create_dir(parent);
        }
        let how = damage(&path, &mut self.seed);
        self.tally.damages += usize::from(how.is_ok());
        if program == "state" && matches!(how, Ok("removed")) {
            self.removed.insert(name);
        }
    }

    /// Checks that both programs answer, then kills and restarts one or both.
    fn check_and_restart(&mut self) {
        assert!(self.gateway.runs(), "the gateway has exited");
        assert!(self.gateway.is_ready());
        let missing: Vec<_> = World::standing().difference(&self.names()).cloned().collect();
        assert_eq!(missing, [""; 0], "withdrawn while nothing was restarted");
        assert!(
            [JOINED, VM].iter().all(|name| self.names().contains(*name)),
            "withdrawn while nothing was restarted"
        );
        let _alive = self.east.ask("/status");
        self.use_tokens();
        match self.seed.u32(..4) {
            0 => self.restart_agent(),
            1 => self.restart_gateway(),
            2 => {
                self.restart_agent();
                self.restart_gateway();
            }
            _ => self.restart_gateway_alone(),
        }
        self.mend();
        self.renew_vm();
        self.mend_joined();
        until("the gateway has all services", || self.has_all());
        self.removed.clear();
    }

    /// Restarts the agent, with any state; the gateway keeps its tables.
    fn restart_agent(&mut self) {
        self.tally.restarts += 1;
        self.east.stop();
        self.east.start();
        until("the gateway is connected to the agent", || {
            self.assert_has_standing("by a restart of the agent");
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
        if std::thread::panicking() {
            let (names, expected) = (self.names(), self.expected());
            let differing: Vec<_> = names.symmetric_difference(&expected).collect();
            eprintln!("missing or left over at the gateway: {differing:?}");
            eprintln!("status of the agent: {:#}", self.east.ask("/status"));
        }
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
        let Tally { damages, restarts, lost, tokens, joined_again, registered_again } = world.tally;
        assert!(damages > 300 && restarts > 30 && tokens > 5, "{:?}", world.tally);
        figure!(
            "{STEPS} steps, {damages} damages, {restarts} restarts, {tokens} tokens: no exit, no hang, {lost} damaged records lost and reported; joined again {joined_again} times, registered again {registered_again} times"
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
        .env(UNDER, "/slices.db:/registrations.db:/trust.db:/acknowledged.json:/spent/")
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

/// Changes a byte of a record in a store file, after the text that it begins with.
fn damage_after(path: &Path, text: &str) {
    let mut bytes = fs::read(path).unwrap();
    let found = |at: &usize| bytes[*at..].starts_with(text.as_bytes());
    let at = (0..bytes.len()).find(found).expect("the file has the record") + text.len();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// An agent that clusters can join.
fn agent_to_join(endpoint: &Scripted) -> Cluster {
    let mut east = agent_with_state(endpoint);
    east.set("join", "{ address: '127.0.0.1:0', advertise: '127.0.0.1:1' }");
    east.set("xds", "{ address: '127.0.0.1:0', advertise: '127.0.0.1:1' }");
    east
}

#[test]
fn state_damaged_token_is_in_status_and_metrics() {
    let endpoint = Scripted::echo(b"one....");
    let mut east = agent_to_join(&endpoint);
    east.start();
    let create = ["token", "create", "--for", "west", "--trust-domain", "west.example", "--json"];
    let create = || -> Value { serde_json::from_str(&east.command(&create).unwrap()).unwrap() };
    let [id, other] = [create(), create()].map(|token| token["id"].as_str().unwrap().to_owned());
    let list = east.command(&["token", "list"]).unwrap();
    assert!(list.contains(&id) && list.contains(&other), "{list}");
    damage_after(&east.path("state/trust.db"), &format!("\"id\":\"{id}"));
    // The command finds the damage, and the agent reports it.
    let list = east.command(&["token", "list"]).unwrap();
    assert!(!list.contains(&id) && list.contains(&other), "{list}");
    until("status reports the damage", || store(&east.ask("/status"), "trust")["lost_records"] == 1);
    let report = store(&east.ask("/status"), "trust");
    assert!(report["lost"][0].as_str().unwrap().starts_with(&format!("tokens/{id}")), "{report}");
    until("so do the metrics", || store_metric(&east, "records_lost_total", "trust") == "1");
    assert_eq!(
        east.command(&["token", "revoke", &other]).unwrap().trim(),
        format!("revoked token {other} for west (west.example)")
    );
    let again = east.command(&["token", "revoke", &other]).unwrap_err();
    assert!(again.contains("is void already"), "{again}");
    let list = east.command(&["token", "list"]).unwrap();
    assert!(list.contains("void"), "{list}");
}

#[test]
fn state_lost_record_of_joined_cluster_is_named_until_forgotten() {
    let endpoint = Scripted::echo(b"one....");
    let mut east = agent_with_state(&endpoint);
    fs::create_dir_all(east.path("state/peers")).unwrap();
    // Files of an older version.
    fs::write(east.path("state/peers/north.json"), "{").unwrap();
    fs::write(east.path("state/peers/west.json~"), "{").unwrap();
    east.start();
    let problems = || east.ask("/status")["state"]["problems"].clone();
    until("status names the cluster", || {
        problems().to_string().contains("cluster north: the record was damaged")
    });
    assert_eq!(store(&east.ask("/status"), "trust")["lost"], json!(["peers/north"]));
    let metrics = Metrics::parse(&east.metrics());
    assert_eq!(metrics.sum("isthmus_agent_state_problems", &[]).to_string(), "1");
    let list = east.command(&["peers", "list"]).unwrap();
    assert!(list.contains("north") && list.contains("lost: the record was damaged"), "{list}");
    assert!(east.command(&["peers", "forget", "south"]).unwrap_err().contains("has not joined"));
    east.command(&["peers", "forget", "north"]).unwrap();
    until("it is forgotten", || problems() == json!([]));
    assert_eq!(east.command(&["peers", "list"]).unwrap().trim(), "no cluster has joined");
    east.stop();
    fs::write(east.path("state/trust.db"), "noise").unwrap();
    east.start();
    let problems = || east.ask("/status")["state"]["problems"].to_string();
    until("records without a name are lost", || problems().contains("lost together with their names"));
    east.command(&["peers", "forget", "--lost"]).unwrap();
    until("they are forgotten", || problems() == "[]");
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
