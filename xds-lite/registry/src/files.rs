//! Reads a registry from files: every `*.yaml` of a directory, each with `services:` as in a gateway's file.
//! An invalid file keeps its last valid content and affects no other. The cost of an edit does not depend on
//! the size of the other files. Reading holds no lock, and changes are handed over in parts (`found`).

mod found;
mod settling;
mod tracked;
mod watcher;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_watch::Written;

use settling::{QUIET, with_what_lacks};
use tracked::{TrackedFile, fingerprint, read, sort_by_host};
use watcher::{ChangedPaths, Watcher};

pub use found::{Change, Found, Part, Summary};

/// Pause before a file being written is read again, in multiples of the time that reading it took.
const PACE: u32 = 4;

/// The files of a directory, as last read.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    files: BTreeMap<Arc<Path>, TrackedFile>,
    /// Files to read again without an event: being written, or removed a moment ago.
    restless: BTreeSet<Arc<Path>>,
    /// The files that define each host, in their order.
    owners: HashMap<HostPattern, Vec<Arc<Path>>>,
    /// Hosts in more than one file.
    shared: BTreeSet<HostPattern>,
    unread: Option<String>,
    /// Whether all files were complete at the last scan, and how many have been open for writing for long.
    standing: (bool, usize),
    watcher: Watcher,
}

impl Files {
    /// A registry that has read nothing yet.
    #[must_use]
    pub fn new(folder: PathBuf) -> Files {
        Files {
            folder,
            files: BTreeMap::new(),
            restless: BTreeSet::new(),
            owners: HashMap::new(),
            shared: BTreeSet::new(),
            unread: None,
            standing: (false, 0),
            watcher: Watcher::default(),
        }
    }

    /// The directory.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Has this called, from another thread, whenever [`Files::changed_paths`] is to be called before
    /// [`Files::next_due`].
    #[must_use]
    pub fn on_event(mut self, wake: impl Fn() + Send + Sync + 'static) -> Files {
        self.watcher.on_event(Arc::new(wake));
        self
    }

    /// When [`Files::changed_paths`] is due without an event; none: at once.
    #[must_use]
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let scan = self.watcher.next_scan()?;
        let held = self.restless.iter().filter_map(|path| self.files.get(path));
        held.filter_map(|held| held.next_due(now)).chain([scan]).min()
    }

    /// Makes the next [`Files::changed_paths`] scan all files.
    pub fn expect_changes(&mut self) {
        self.watcher.expect_changes();
    }

    /// Reads what may have changed, which is cheap without events. Returns the changes, or `None`.
    pub fn changed_paths(&mut self, now: Instant) -> Option<Change> {
        let events = self.watcher.poll(&self.folder, now);
        if events.was_lost {
            self.files.values_mut().for_each(|held| held.settling.lose_track());
        }
        for (name, written) in events.written {
            let path: Arc<Path> = self.folder.join(name).into();
            self.files.entry(Arc::clone(&path)).or_default().settling.note(written, now);
            self.restless.insert(path);
        }
        let touched = match events.at {
            ChangedPaths::Everywhere => {
                let started = Instant::now();
                let touched = self.scan_all(now);
                // A scan that has read files says nothing of one that finds no change.
                if touched.is_none() {
                    self.watcher.scanned(now, started.elapsed());
                }
                touched
            }
            ChangedPaths::At(names) => {
                let paths = names.iter().map(|name| self.folder.join(name).into());
                let paths: BTreeSet<Arc<Path>> = paths.chain(self.restless.iter().cloned()).collect();
                self.scan_some(paths, now)
            }
        };
        let is_whole = self.unread.is_none() && self.files.values().all(|held| held.is_whole(now));
        let standing = (is_whole, self.late(now).count());
        let is_news = standing != std::mem::replace(&mut self.standing, standing);
        touched.or_else(|| is_news.then(BTreeSet::new)).map(|hosts| self.change(hosts, now))
    }

    fn change(&self, hosts: BTreeSet<HostPattern>, now: Instant) -> Change {
        let hosts = hosts.into_iter().map(|host| {
            let services = self.services_for(&host).into_iter().cloned().collect();
            (host, services)
        });
        let summary = Summary { problems: self.problems(now), is_whole: self.standing.0 };
        Change { hosts: hosts.collect(), summary }
    }

    /// Scans these files and returns the hosts that may have changed; `None` if nothing did, not even an
    /// error.
    fn scan_some(&mut self, paths: BTreeSet<Arc<Path>>, now: Instant) -> Option<BTreeSet<HostPattern>> {
        // A removed file, or directory, shows in a scan of all files.
        if paths.iter().any(|path| fs::symlink_metadata(path).is_err()) {
            return self.scan_all(now);
        }
        let (mut changed, mut touched) = (false, BTreeSet::new());
        for path in paths {
            changed |= self.scan_file(path, now, &mut touched);
        }
        changed.then_some(touched)
    }

    /// Scans all files likewise.
    fn scan_all(&mut self, now: Instant) -> Option<BTreeSet<HostPattern>> {
        let paths = match paths(&self.folder) {
            Ok(paths) => paths,
            Err(error) => {
                // Keep the content: a missing directory does not mean a cluster without services.
                let why =
                    format!("{}: cannot be read: {error}; keeping its last services", self.folder.display());
                let is_news = self.unread.replace(why.clone()) != Some(why);
                return is_news.then(BTreeSet::new);
            }
        };
        let mut changed = self.unread.take().is_some();
        let mut touched = BTreeSet::new();
        let is_away = |path: &&Arc<Path>| paths.binary_search_by(|known| (**known).cmp(path)).is_err();
        let away: Vec<_> = self.files.keys().filter(is_away).cloned().collect();
        for path in away {
            changed |= self.handle_missing(path, now, &mut touched);
        }
        for path in paths {
            changed |= self.scan_file(path, now, &mut touched);
        }
        changed.then_some(touched)
    }

    /// Handles a missing file. Some editors remove a file for a moment to write it anew.
    fn handle_missing(&mut self, path: Arc<Path>, now: Instant, touched: &mut BTreeSet<HostPattern>) -> bool {
        let Some(held) = self.files.get_mut(&path) else { return false };
        let since = *held.away_since.get_or_insert(now);
        if now.saturating_duration_since(since) < QUIET && !held.services.is_empty() {
            self.restless.insert(path);
            return false;
        }
        self.replace_content(&path, Vec::new(), touched);
        self.files.remove(&path);
        self.restless.remove(&path);
        true
    }

    /// Scans one file; returns whether it has changed.
    fn scan_file(&mut self, path: Arc<Path>, now: Instant, touched: &mut BTreeSet<HostPattern>) -> bool {
        let print = fingerprint(&path);
        let held = self.files.entry(Arc::clone(&path)).or_default();
        if held.away_since.take().is_some() {
            held.settling.note(Written::Closed, now);
        }
        if !held.is_to_be_read(print, now) {
            if held.settling.is_whole(now) {
                self.restless.remove(&path);
                return self.settle(&path, touched);
            }
            self.restless.insert(path);
            return false;
        }
        held.changes_to(print, now);
        let started = Instant::now();
        let reading = read(&path, &held.settling);
        held.rest_until = now.checked_add(started.elapsed().saturating_mul(PACE));
        held.was_torn = held.settling.may_be_torn();
        held.pending = Some(reading);
        if held.settling.is_whole(now) {
            self.restless.remove(&path);
            return self.settle(&path, touched);
        }
        self.restless.insert(Arc::clone(&path));
        self.count_early(&path, touched)
    }

    /// Uses a file that is being written: what it has is added, and nothing is removed yet.
    fn count_early(&mut self, path: &Arc<Path>, touched: &mut BTreeSet<HostPattern>) -> bool {
        let Some(held) = self.files.get_mut(path) else { return false };
        let counts = match held.pending.take() {
            None => return false,
            Some(Err(why)) if held.settling.may_be_torn() => {
                // Half a file is rarely valid.
                held.pending = Some(Err(why));
                return false;
            }
            Some(Err(why)) => {
                held.wrong = Some(why);
                return true;
            }
            Some(Ok(reading)) => {
                let mut counts = with_what_lacks(&held.services, &reading);
                sort_by_host(&mut counts);
                held.pending = (counts != reading).then_some(Ok(reading));
                counts
            }
        };
        if !held.settling.may_be_torn() {
            held.wrong = None;
        }
        self.replace_content(path, counts, touched);
        true
    }

    /// Uses a complete file: from here on only its own content counts.
    fn settle(&mut self, path: &Arc<Path>, touched: &mut BTreeSet<HostPattern>) -> bool {
        let Some(held) = self.files.get_mut(path) else { return false };
        held.settling.settle();
        held.rest_until = None;
        let before = held.pending.take();
        let was_torn = std::mem::take(&mut held.was_torn);
        let reading = if was_torn { Some(read(path, &held.settling)) } else { before };
        match reading {
            None => return false,
            Some(Ok(services)) => {
                let is_news = held.wrong.take().is_some() || held.services != services;
                self.replace_content(path, services, touched);
                return is_news;
            }
            Some(Err(why)) => held.wrong = Some(why),
        }
        true
    }

    /// Replaces the content of a file, and collects the hosts that it changes.
    fn replace_content(
        &mut self,
        path: &Arc<Path>,
        services: Vec<Arc<Service>>,
        touched: &mut BTreeSet<HostPattern>,
    ) {
        let Some(held) = self.files.get_mut(path) else { return };
        let before = std::mem::replace(&mut held.services, services);
        let (was, is) = (by_host(&before), by_host(&held.services));
        for host in was.keys().chain(is.keys()).filter(|host| was.get(*host) != is.get(*host)) {
            touched.insert((*host).clone());
        }
        for host in was.keys().filter(|host| !is.contains_key(*host)) {
            let Some(owners) = self.owners.get_mut(*host) else { continue };
            owners.retain(|owner| owner != path);
            if owners.len() < 2 {
                self.shared.remove(*host);
            }
            if owners.is_empty() {
                self.owners.remove(*host);
            }
        }
        for host in is.keys().filter(|host| !was.contains_key(*host)) {
            let owners = self.owners.entry((*host).clone()).or_insert_with(|| Vec::with_capacity(1));
            let place = owners.partition_point(|owner| owner < path);
            owners.insert(place, Arc::clone(path));
            if owners.len() > 1 {
                self.shared.insert((*host).clone());
            }
        }
    }

    /// The services of a host. A port that an earlier file defines is ignored in a later one.
    #[must_use]
    pub fn services_for(&self, host: &HostPattern) -> Vec<&Arc<Service>> {
        let mut services: Vec<&Arc<Service>> = Vec::new();
        for (_, service) in self.all_of(host) {
            if !services.iter().any(|taken| taken.port == service.port) {
                services.push(service);
            }
        }
        services
    }

    /// The current problems: unreadable files, and ignored definitions.
    fn problems(&self, now: Instant) -> Vec<String> {
        let late = self.late(now).map(|path| {
            let path = path.display();
            format!("{path}: has been open for writing for a long time; keeping services that it no longer lists until it is closed")
        });
        let wrong = self.files.values().filter_map(|held| held.wrong.as_ref());
        let wrong = wrong.map(|why| format!("{why}; keeping its last valid services"));
        let mut problems: Vec<String> = self.unread.iter().cloned().chain(wrong).chain(late).collect();
        for host in &self.shared {
            let mut first: HashMap<u16, &Path> = HashMap::new();
            for (path, service) in self.all_of(host) {
                let taken = *first.entry(service.port).or_insert(path);
                if taken != path {
                    problems.push(format!(
                        "{}: {host}:{} is already defined in {}; ignoring this definition",
                        path.display(),
                        service.port,
                        taken.display()
                    ));
                }
            }
        }
        problems
    }

    /// Files that have been open for writing for long.
    fn late(&self, now: Instant) -> impl Iterator<Item = &Path> {
        let held = self.restless.iter().filter_map(|path| Some((&**path, self.files.get(path)?)));
        held.filter(move |(_, held)| held.settling.is_late(now)).map(|(path, _)| path)
    }

    fn all_of(&self, host: &HostPattern) -> impl Iterator<Item = (&Path, &Arc<Service>)> {
        let owners = self.owners.get(host).into_iter().flatten();
        let held = owners.filter_map(|path| Some((&**path, self.files.get(path)?)));
        held.flat_map(move |(path, held)| held.services_of(host).iter().map(move |service| (path, service)))
    }
}

fn by_host(services: &[Arc<Service>]) -> BTreeMap<&HostPattern, Vec<&Arc<Service>>> {
    let mut hosts: BTreeMap<&HostPattern, Vec<&Arc<Service>>> = BTreeMap::new();
    for service in services {
        hosts.entry(&service.host).or_default().push(service);
    }
    hosts
}

/// Whether the name is one of a registry file.
fn is_ours(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && ["yaml", "yml"].iter().any(|known| path.extension() == Some(OsStr::new(known)))
}

/// The registry files, sorted.
fn paths(folder: &Path) -> io::Result<Vec<Arc<Path>>> {
    let entries: io::Result<Vec<_>> = fs::read_dir(folder)?.collect();
    let paths = entries?.into_iter().map(|entry| entry.path());
    let mut paths: Vec<Arc<Path>> = paths.filter(|path| is_ours(path)).map(Arc::from).collect();
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use isthmus_model::services::Balance;

    fn hosts(files: &Files) -> Vec<String> {
        let all = files.owners.keys().flat_map(|host| files.services_for(host));
        let all = all.map(|service| format!("{}:{}", service.host, service.port));
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// A registry whose files are scanned without events, and its clock.
    struct Looked {
        folder: tempfile::TempDir,
        files: Files,
        now: Instant,
    }

    impl Looked {
        fn new() -> Looked {
            let folder = tempfile::tempdir().unwrap();
            let files = Files::new(folder.path().to_owned());
            Looked { folder, files, now: Instant::now() }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// Replaces the file atomically.
        fn write(&self, name: &str, text: &str) {
            fs::write(self.at("new"), text).unwrap();
            fs::rename(self.at("new"), self.at(name)).unwrap();
        }

        fn wait(&mut self, time: Duration) {
            self.now += time;
        }

        /// The hosts that may have changed.
        fn touched(&mut self) -> Option<Vec<String>> {
            // The clock stands still while a file is read.
            self.files.files.values_mut().for_each(|held| held.rest_until = None);
            let touched = self.files.scan_all(self.now)?;
            Some(touched.iter().map(HostPattern::to_string).collect())
        }

        /// The hosts that have changed, of which there must be some report.
        #[track_caller]
        fn poll(&mut self) -> Vec<String> {
            self.touched().unwrap()
        }

        fn hosts(&self) -> Vec<String> {
            hosts(&self.files)
        }

        fn problems(&self) -> Vec<String> {
            self.files.problems(self.now)
        }
    }

    #[test]
    fn registry_file_that_is_invalid_affects_no_other() {
        let mut all = Looked::new();
        all.write("a.yaml", "services: [{ host: a.b }]");
        all.write("b.yaml", "services: [{ host: c.d }]");
        all.write(".hidden.yaml", "services: [{ host: hidden.d }]");
        all.write("notes.txt", "none");
        assert_eq!(all.poll(), ["a.b", "c.d"]);
        assert_eq!(all.hosts(), ["a.b:443", "c.d:443"]);
        assert_eq!(all.touched(), None, "no change");
        all.write("a.yaml", "services: [{ host: a.b, prot: 1 }]");
        assert_eq!(all.poll(), [""; 0]);
        assert_eq!(all.hosts(), ["a.b:443", "c.d:443"], "the last valid content stays");
        let problems = all.problems();
        assert!(problems[0].contains("a.yaml:1:") && problems[0].contains("prot"), "{problems:?}");
        all.write("b.yaml", "services: [{ host: c.d }, { host: a.b }, { host: e.f }]");
        assert_eq!(all.poll(), ["a.b", "e.f"], "c.d is unchanged");
        assert_eq!(all.hosts(), ["a.b:443", "c.d:443", "e.f:443"]);
        assert!(all.problems()[1].contains("is already defined in"), "{:?}", all.problems());
        fs::remove_file(all.at("a.yaml")).unwrap();
        assert_eq!(all.touched(), None, "some editors remove a file for a moment");
        all.wait(QUIET);
        assert_eq!(all.poll(), ["a.b"]);
        assert_eq!(all.hosts(), ["a.b:443", "c.d:443", "e.f:443"]);
        assert_eq!(all.problems(), [""; 0]);
    }

    #[test]
    fn port_in_several_registry_files_is_the_first_files() {
        let mut all = Looked::new();
        let host = HostPattern::parse("a.b").unwrap();
        all.write("b.yaml", "services: [{ host: a.b, port: 1, balance: random }, { host: a.b, port: 2 }]");
        assert_eq!(all.poll(), ["a.b"]);
        let one = "services: [{ host: a.b, port: 1 }]";
        all.write("a.yaml", one);
        assert_eq!(all.poll(), ["a.b"]);
        let shown = |all: &Looked| -> Vec<_> {
            let of = all.files.services_for(&host);
            of.iter().map(|service| (service.port, service.balance)).collect()
        };
        let gone = |all: &mut Looked, name: &str| {
            fs::remove_file(all.at(name)).unwrap();
            all.touched();
            all.wait(QUIET);
            assert_eq!(all.poll(), ["a.b"]);
        };
        let (turns, random) = (Balance::RoundRobin, Balance::Random);
        assert_eq!(shown(&all), [(1, turns), (2, turns)]);
        assert_eq!(all.problems().len(), 1);
        gone(&mut all, "a.yaml");
        assert_eq!(shown(&all), [(1, random), (2, turns)]);
        assert!(all.problems().is_empty());
        all.write("c.yaml", one);
        assert_eq!(all.poll(), ["a.b"]);
        assert_eq!(shown(&all), [(1, random), (2, turns)]);
        gone(&mut all, "b.yaml");
        assert_eq!(shown(&all), [(1, turns)]);
    }

    #[test]
    fn ports_of_a_host_are_found_wherever_they_stand_in_the_file() {
        let mut all = Looked::new();
        all.write(
            "a.yaml",
            "services: [{ host: c.d, port: 2 }, { host: a.b, port: 1 }, { host: c.d, port: 1 }, { host: e.f }]",
        );
        assert_eq!(all.poll(), ["a.b", "c.d", "e.f"]);
        let ports = |host: &str| -> Vec<_> {
            all.files
                .services_for(&HostPattern::parse(host).unwrap())
                .iter()
                .map(|service| service.port)
                .collect()
        };
        assert_eq!((ports("a.b"), ports("c.d"), ports("e.f")), (vec![1], vec![2, 1], vec![443]));
        assert_eq!(ports("b.c"), [0_u16; 0]);
    }

    #[test]
    fn registry_directory_that_is_missing_withdraws_nothing() {
        let mut all = Looked::new();
        let inside = all.at("registry");
        fs::create_dir(&inside).unwrap();
        all.files = Files::new(inside.clone());
        fs::write(inside.join("a.yaml"), "services: [{ host: a.b }]").unwrap();
        all.poll();
        fs::rename(&inside, all.at("away")).unwrap();
        assert_eq!((all.poll(), all.touched()), (Vec::new(), None), "reported once");
        assert_eq!(all.hosts(), ["a.b:443"]);
        assert!(all.problems()[0].contains("registry: cannot be read"));
        fs::rename(all.at("away"), &inside).unwrap();
        assert_eq!(all.poll(), [""; 0]);
        assert_eq!(all.problems(), [""; 0]);
    }

    #[test]
    fn file_rewritten_in_place_withdraws_nothing_until_it_is_quiet() {
        let mut all = Looked::new();
        all.write("a.yaml", "services:\n- host: a.b\n- host: c.d\n");
        assert_eq!(all.poll(), ["a.b", "c.d"]);
        all.wait(QUIET);
        all.touched();
        // Truncated, partial, complete: no service is missing at any time.
        for text in ["", "services:\n- host: e.f\n  port: 1\n- host: c"] {
            fs::write(all.at("a.yaml"), text).unwrap();
            all.touched();
            assert_eq!(all.hosts(), ["a.b:443", "c.d:443"], "{text:?}");
        }
        fs::write(all.at("a.yaml"), "services:\n- host: e.f\n  port: 1\n- host: c.d\n").unwrap();
        all.touched();
        assert_eq!(all.hosts(), ["a.b:443", "c.d:443", "e.f:1"], "additions count at once");
        all.wait(QUIET - Duration::from_millis(1));
        assert_eq!(all.touched(), None);
        all.wait(Duration::from_millis(1));
        assert_eq!(all.poll(), ["a.b"]);
        assert_eq!(all.hosts(), ["c.d:443", "e.f:1"]);
        fs::write(all.at("a.yaml"), "services: [").unwrap();
        all.touched();
        assert_eq!((all.problems().len(), all.hosts().len()), (0, 2), "half a file is not an error");
        all.wait(QUIET);
        all.poll();
        assert_eq!((all.problems().len(), all.hosts().len()), (1, 2), "an invalid file is");
    }

    #[test]
    fn file_taken_away_for_a_moment_withdraws_nothing() {
        let mut all = Looked::new();
        all.write("a.yaml", "services: [{ host: a.b }]");
        all.poll();
        fs::rename(all.at("a.yaml"), all.at("a.yaml~")).unwrap();
        assert_eq!(all.touched(), None);
        all.wait(QUIET / 2);
        fs::write(all.at("a.yaml"), "services: [{ host: a.b }]").unwrap();
        all.touched();
        all.wait(QUIET);
        all.touched();
        assert_eq!(all.hosts(), ["a.b:443"]);
    }

    #[test]
    fn registry_file_that_is_not_regular_is_reported_and_does_not_block() {
        let mut all = Looked::new();
        all.write("a.yaml", "services: [{ host: a.b }]");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, all.at("pipe.yaml"), mode).unwrap();
        std::os::unix::fs::symlink("/dev/zero", all.at("zero.yaml")).unwrap();
        fs::create_dir(all.at("folder.yaml")).unwrap();
        assert_eq!(all.poll(), ["a.b"]);
        let problems = all.problems();
        for name in ["pipe.yaml", "zero.yaml", "folder.yaml"] {
            let is_named = problems.iter().any(|why| why.contains(name) && why.contains("regular file"));
            assert!(is_named, "{name}: {problems:?}");
        }
        for odd in ["pipe.yaml", "zero.yaml"] {
            fs::remove_file(all.at(odd)).unwrap();
        }
        fs::remove_dir(all.at("folder.yaml")).unwrap();
        all.wait(QUIET);
        all.poll();
        assert_eq!((all.problems(), all.hosts()), (Vec::new(), vec!["a.b:443".to_owned()]));
    }

    #[test]
    fn changed_paths_find_what_a_full_scan_finds() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("registry");
        fs::create_dir(&inside).unwrap();
        let mut files = Files::new(inside.clone());
        let write = |name: &str, text: &str| fs::write(inside.join(name), text).unwrap();
        let until = |files: &mut Files, expected: &[&str]| {
            for _ in 0..2_000 {
                files.changed_paths(Instant::now());
                if hosts(files) == expected {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            panic!("{:?}, not {expected:?}", hosts(files));
        };
        let first = files.changed_paths(Instant::now()).unwrap();
        assert!(first.summary.is_whole && first.hosts.is_empty(), "an empty directory has no services");
        assert!(files.changed_paths(Instant::now()).is_none(), "and no changes");
        write("a.yaml", "services: [{ host: a.b }]");
        until(&mut files, &["a.b:443"]);
        write("b.yaml", "services: [{ host: c.d }]");
        until(&mut files, &["a.b:443", "c.d:443"]);
        fs::remove_file(inside.join("a.yaml")).unwrap();
        until(&mut files, &["c.d:443"]);
        fs::rename(inside.join("b.yaml"), inside.join("b.txt")).unwrap();
        until(&mut files, &[]);
        fs::create_dir(inside.join("..1")).unwrap();
        fs::create_dir(inside.join("..2")).unwrap();
        write("..1/c.yaml", "services: [{ host: one }]");
        write("..2/c.yaml", "services: [{ host: two }]");
        std::os::unix::fs::symlink("..1", inside.join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/c.yaml", inside.join("c.yaml")).unwrap();
        until(&mut files, &["one:443"]);
        std::os::unix::fs::symlink("..2", inside.join("..next")).unwrap();
        fs::rename(inside.join("..next"), inside.join("..data")).unwrap();
        until(&mut files, &["two:443"]);
    }

    #[test]
    fn writer_that_keeps_a_file_open_withdraws_nothing_until_it_closes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.yaml");
        let whole = "services:\n- host: a.b\n- host: c.d\n";
        fs::write(&path, whole).unwrap();
        let (mut files, start) = (Files::new(folder.path().to_owned()), Instant::now());
        files.changed_paths(start);
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut until = |time: Instant, is_done: &dyn Fn(&Files) -> bool| {
            for _ in 0..2_000 {
                files.changed_paths(time);
                if is_done(&files) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            panic!("{:?}", hosts(&files));
        };
        until(after(10), &|files| files.standing == (true, 0));
        let mut writer = fs::File::create(&path).unwrap();
        until(after(10), &|files| !files.standing.0);
        until(after(30), &|files| files.standing == (false, 1) && hosts(files).len() == 2);
        io::Write::write_all(&mut writer, b"services:\n- host: e.f\n- host: g.h\n- ho").unwrap();
        until(after(31), &|files| hosts(files) == ["a.b:443", "c.d:443", "e.f:443"]);
        io::Write::write_all(&mut writer, b"st: i.j\n").unwrap();
        drop(writer);
        until(after(32), &|files| hosts(files) == ["a.b:443", "c.d:443", "e.f:443", "g.h:443", "i.j:443"]);
        until(after(33), &|files| files.standing == (true, 0) && hosts(files).len() == 3);
    }
}
