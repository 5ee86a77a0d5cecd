//! A registry in files: every `*.yaml` of a directory, each with `services:` as a gateway's file has them. A bad
//! file is left out by itself, with what it last held that was good in its place. What an edit costs does not
//! depend on how much the other files hold.

mod eyes;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use crate::config::services::Service;
use crate::config::{file, registry_file};
use crate::host::HostPattern;

use eyes::{Eyes, Where};

/// The files of a directory, as they were when they were last looked at.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    files: BTreeMap<Arc<Path>, Held>,
    /// Which files have a host, in their order.
    owners: HashMap<HostPattern, Vec<Arc<Path>>>,
    /// Hosts that several files have.
    shared: BTreeSet<HostPattern>,
    unread: Option<String>,
    eyes: Eyes,
}

#[derive(Debug, Default)]
struct Held {
    print: Option<Print>,
    services: Vec<Service>,
    wrong: Option<String>,
}

/// Which content a path leads to: device, inode, length, change.
type Print = [i64; 5];

impl Files {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(folder: PathBuf) -> Files {
        Files {
            folder,
            files: BTreeMap::new(),
            owners: HashMap::new(),
            shared: BTreeSet::new(),
            unread: None,
            eyes: Eyes::default(),
        }
    }

    /// Where they stand.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The directory was there at the last look.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.unread.is_none()
    }

    /// Looks again if there may be news, which costs nothing while nothing happens. As [`Files::look`].
    pub fn glance(&mut self, now: Instant) -> Option<BTreeSet<HostPattern>> {
        let Where::At(names) = self.eyes.turn(&self.folder, now) else { return self.look() };
        let paths: Vec<Arc<Path>> = names.iter().map(|name| self.folder.join(name).into()).collect();
        // Whether a file is gone, or the directory with it, shows when all are looked at.
        if paths.iter().any(|path| fs::symlink_metadata(path).is_err()) {
            return self.look();
        }
        let (mut changed, mut touched) = (false, BTreeSet::new());
        for path in paths {
            changed |= self.look_at(path, &mut touched);
        }
        changed.then_some(touched)
    }

    /// Looks again. The hosts under which something may have changed; none where nothing has, not even what
    /// is wrong.
    pub fn look(&mut self) -> Option<BTreeSet<HostPattern>> {
        let paths = match paths(&self.folder) {
            Ok(paths) => paths,
            Err(error) => {
                // What was there stays: a directory that is away is no cluster without services.
                let why = format!("{}: cannot be read: {error}; what it held stays", self.folder.display());
                let is_news = self.unread.replace(why.clone()) != Some(why);
                return is_news.then(BTreeSet::new);
            }
        };
        let mut changed = self.unread.take().is_some();
        let mut touched = BTreeSet::new();
        let is_gone = |path: &&Arc<Path>| paths.binary_search_by(|known| (**known).cmp(path)).is_err();
        let gone: Vec<_> = self.files.keys().filter(is_gone).cloned().collect();
        for path in gone {
            changed = true;
            self.hold(&path, Vec::new(), &mut touched);
            self.files.remove(&path);
        }
        for path in paths {
            changed |= self.look_at(path, &mut touched);
        }
        changed.then_some(touched)
    }

    /// Looks at one file, and says whether it is another than before.
    fn look_at(&mut self, path: Arc<Path>, touched: &mut BTreeSet<HostPattern>) -> bool {
        let print = print(&path);
        if self.files.get(&path).is_some_and(|held| held.print == print && print.is_some()) {
            return false;
        }
        let read = file::read(&path, "split it").and_then(|text| registry_file(&text, &path));
        let held = self.files.entry(Arc::clone(&path)).or_default();
        held.print = print;
        match read {
            Ok(services) => {
                held.wrong = None;
                self.hold(&path, services, touched);
            }
            Err(problems) => held.wrong = Some(problems.to_string()),
        }
        true
    }

    /// Puts what a file has in place of what it had, and notes the hosts of which that says something else.
    fn hold(&mut self, path: &Arc<Path>, services: Vec<Service>, touched: &mut BTreeSet<HostPattern>) {
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

    /// The services of a host. A port that an earlier file has is left out of a later one.
    #[must_use]
    pub fn of(&self, host: &HostPattern) -> Vec<&Service> {
        let mut services: Vec<&Service> = Vec::new();
        for (_, service) in self.all_of(host) {
            if !services.iter().any(|taken| taken.port == service.port) {
                services.push(service);
            }
        }
        services
    }

    /// All services.
    pub fn iter(&self) -> impl Iterator<Item = &Service> + Clone {
        self.owners.keys().flat_map(|host| self.of(host))
    }

    /// What is wrong: files that cannot be read, and what is left out of others.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let wrong = self.files.values().filter_map(|held| held.wrong.as_ref());
        let wrong = wrong.map(|why| format!("{why}; what it held before stays"));
        let mut problems: Vec<String> = self.unread.iter().cloned().chain(wrong).collect();
        for host in &self.shared {
            let mut first: HashMap<u16, &Path> = HashMap::new();
            for (path, service) in self.all_of(host) {
                let taken = *first.entry(service.port).or_insert(path);
                if taken != path {
                    problems.push(format!(
                        "{}: {host}:{} is already in {}; it is taken from there",
                        path.display(),
                        service.port,
                        taken.display()
                    ));
                }
            }
        }
        problems
    }

    fn all_of(&self, host: &HostPattern) -> impl Iterator<Item = (&Path, &Service)> {
        let owners = self.owners.get(host).into_iter().flatten();
        let held = owners.filter_map(|path| Some((&**path, self.files.get(path)?)));
        held.flat_map(move |(path, held)| {
            held.services.iter().filter(move |service| service.host == *host).map(move |one| (path, one))
        })
    }
}

fn by_host(services: &[Service]) -> BTreeMap<&HostPattern, Vec<&Service>> {
    let mut hosts: BTreeMap<&HostPattern, Vec<&Service>> = BTreeMap::new();
    for service in services {
        hosts.entry(&service.host).or_default().push(service);
    }
    hosts
}

/// A file of the registry, by its name.
fn is_ours(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && ["yaml", "yml"].iter().any(|known| path.extension() == Some(OsStr::new(known)))
}

/// In their order.
fn paths(folder: &Path) -> io::Result<Vec<Arc<Path>>> {
    let entries: io::Result<Vec<_>> = fs::read_dir(folder)?.collect();
    let paths = entries?.into_iter().map(|entry| entry.path());
    let mut paths: Vec<Arc<Path>> = paths.filter(|path| is_ours(path)).map(Arc::from).collect();
    paths.sort();
    Ok(paths)
}

fn print(path: &Path) -> Option<Print> {
    let metadata = fs::metadata(path).ok()?;
    let [device, inode, length] = [metadata.dev(), metadata.ino(), metadata.len()].map(u64::cast_signed);
    Some([device, inode, length, metadata.ctime(), metadata.ctime_nsec()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::services::Balance;

    fn hosts(files: &Files) -> Vec<String> {
        let all = files.iter().map(|service| format!("{}:{}", service.host, service.port));
        all.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Something has changed, under these hosts.
    #[track_caller]
    fn look(files: &mut Files) -> Vec<String> {
        files.look().unwrap().iter().map(HostPattern::to_string).collect()
    }

    #[test]
    fn a_bad_file_is_left_out_by_itself() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            fs::write(folder.path().join("new"), text).unwrap();
            fs::rename(folder.path().join("new"), folder.path().join(name)).unwrap();
        };
        let mut files = Files::new(folder.path().to_owned());
        write("a.yaml", "services: [{ host: a.b }]");
        write("b.yaml", "services: [{ host: c.d }]");
        write(".hidden.yaml", "services: [{ host: hidden.d }]");
        write("notes.txt", "none");
        assert_eq!(look(&mut files), ["a.b", "c.d"]);
        assert_eq!(hosts(&files), ["a.b:443", "c.d:443"]);
        assert_eq!(files.look(), None, "nothing has changed");
        write("a.yaml", "services: [{ host: a.b, prot: 1 }]");
        assert_eq!(look(&mut files), [""; 0]);
        assert_eq!(hosts(&files), ["a.b:443", "c.d:443"], "the last good one stays");
        let problems = files.problems();
        assert!(problems[0].contains("a.yaml:1:") && problems[0].contains("prot"), "{problems:?}");
        write("b.yaml", "services: [{ host: c.d }, { host: a.b }, { host: e.f }]");
        assert_eq!(look(&mut files), ["a.b", "e.f"], "c.d is as it was");
        assert_eq!(hosts(&files), ["a.b:443", "c.d:443", "e.f:443"]);
        assert!(files.problems()[1].contains("is already in"), "{:?}", files.problems());
        fs::remove_file(folder.path().join("a.yaml")).unwrap();
        assert_eq!(look(&mut files), ["a.b"]);
        assert_eq!(hosts(&files), ["a.b:443", "c.d:443", "e.f:443"]);
        assert_eq!(files.problems(), [""; 0]);
    }

    #[test]
    fn of_a_port_that_several_files_have_the_first_files_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let mut files = Files::new(folder.path().to_owned());
        let host = HostPattern::parse("a.b").unwrap();
        write("b.yaml", "services: [{ host: a.b, port: 1, balance: random }, { host: a.b, port: 2 }]");
        assert_eq!(look(&mut files), ["a.b"]);
        let one = "services: [{ host: a.b, port: 1 }]";
        write("a.yaml", one);
        assert_eq!(look(&mut files), ["a.b"]);
        let shown = |files: &Files| -> Vec<_> {
            let of = files.of(&host);
            of.iter().map(|service| (service.port, service.balance)).collect()
        };
        let (turns, random) = (Balance::RoundRobin, Balance::Random);
        assert_eq!(shown(&files), [(1, turns), (2, turns)]);
        assert_eq!(files.problems().len(), 1);
        fs::remove_file(folder.path().join("a.yaml")).unwrap();
        assert_eq!(look(&mut files), ["a.b"]);
        assert_eq!(shown(&files), [(1, random), (2, turns)]);
        assert!(files.problems().is_empty());
        write("c.yaml", one);
        assert_eq!(look(&mut files), ["a.b"]);
        assert_eq!(shown(&files), [(1, random), (2, turns)]);
        fs::remove_file(folder.path().join("b.yaml")).unwrap();
        assert_eq!(look(&mut files), ["a.b"]);
        assert_eq!(shown(&files), [(1, turns)]);
    }

    #[test]
    fn a_directory_that_is_away_takes_nothing_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("registry");
        fs::create_dir(&inside).unwrap();
        fs::write(inside.join("a.yaml"), "services: [{ host: a.b }]").unwrap();
        let mut files = Files::new(inside.clone());
        files.look();
        fs::rename(&inside, folder.path().join("away")).unwrap();
        assert_eq!((look(&mut files), files.look()), (Vec::new(), None), "said once");
        assert_eq!(hosts(&files), ["a.b:443"]);
        assert!(files.problems()[0].contains("registry: cannot be read"));
        fs::rename(folder.path().join("away"), &inside).unwrap();
        assert_eq!(look(&mut files), [""; 0]);
        assert_eq!(files.problems(), [""; 0]);
    }

    #[test]
    fn a_glance_finds_what_a_look_would() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("registry");
        fs::create_dir(&inside).unwrap();
        let (mut files, now) = (Files::new(inside.clone()), Instant::now());
        let write = |name: &str, text: &str| fs::write(inside.join(name), text).unwrap();
        let until = |files: &mut Files, expected: &[&str]| {
            for _ in 0..2_000 {
                files.glance(now);
                if hosts(files) == expected {
                    return;
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            panic!("{:?}, not {expected:?}", hosts(files));
        };
        assert_eq!(files.glance(now), None, "an empty directory says nothing");
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
}
