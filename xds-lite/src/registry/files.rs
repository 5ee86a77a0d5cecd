//! A registry in files: every `*.yaml` of a directory, each with `services:` as a gateway's file has them. A bad
//! file is left out by itself, with what it last held that was good in its place.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::config::services::Service;
use crate::config::{file, registry_file};
use crate::host::HostPattern;

/// The files of a directory, as they were when they were last looked at.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    files: BTreeMap<PathBuf, Held>,
    unread: Option<String>,
    was_read: bool,
}

#[derive(Debug)]
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
        Files { folder, files: BTreeMap::new(), unread: None, was_read: false }
    }

    /// Where they stand.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Looks again. Says whether anything may have changed.
    pub fn look(&mut self) -> bool {
        let paths = match paths(&self.folder) {
            Ok(paths) => paths,
            Err(error) => {
                // What was there stays: a directory that is away is no cluster without services.
                let why = format!("{}: cannot be read: {error}; what it held stays", self.folder.display());
                return self.unread.replace(why.clone()) != Some(why);
            }
        };
        // That there is nothing is news, too, the first time: something may have been kept from before.
        let is_first = !std::mem::replace(&mut self.was_read, true);
        let mut changed = self.unread.take().is_some() || is_first;
        let before = self.files.len();
        self.files.retain(|path, _| paths.contains(path));
        changed |= self.files.len() < before;
        for path in paths {
            let print = print(&path);
            if self.files.get(&path).is_some_and(|held| held.print == print && print.is_some()) {
                continue;
            }
            changed = true;
            let read = file::read(&path, "split it").and_then(|text| registry_file(&text, &path));
            let held =
                self.files.entry(path).or_insert_with(|| Held { print, services: Vec::new(), wrong: None });
            held.print = print;
            match read {
                Ok(services) => (held.services, held.wrong) = (services, None),
                Err(problems) => held.wrong = Some(problems.to_string()),
            }
        }
        changed
    }

    /// All services. A host and port that an earlier file has is left out of a later one, and named.
    #[must_use]
    pub fn services(&self) -> (Vec<Service>, Vec<String>) {
        let mut services = Vec::new();
        let mut problems: Vec<String> = self.unread.iter().cloned().collect();
        let mut taken: HashMap<(&HostPattern, u16), &Path> = HashMap::new();
        for (path, held) in &self.files {
            problems.extend(held.wrong.iter().map(|why| format!("{why}; what it held before stays")));
            for service in &held.services {
                match taken.get(&(&service.host, service.port)) {
                    Some(first) => problems.push(format!(
                        "{}: {}:{} is already in {}; it is taken from there",
                        path.display(),
                        service.host,
                        service.port,
                        first.display()
                    )),
                    None => {
                        taken.insert((&service.host, service.port), path);
                        services.push(service.clone());
                    }
                }
            }
        }
        (services, problems)
    }
}

fn paths(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries: io::Result<Vec<_>> = fs::read_dir(folder)?.collect();
    let paths = entries?.into_iter().map(|entry| entry.path());
    let is_ours = |path: &PathBuf| {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        !hidden && ["yaml", "yml"].iter().any(|known| path.extension() == Some(OsStr::new(known)))
    };
    let mut paths: Vec<_> = paths.filter(is_ours).collect();
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

    fn hosts(files: &Files) -> Vec<String> {
        files.services().0.iter().map(|service| format!("{}:{}", service.host, service.port)).collect()
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
        assert!(files.look());
        assert_eq!(hosts(&files), ["a.b:443", "c.d:443"]);
        assert!(!files.look(), "nothing has changed");
        write("a.yaml", "services: [{ host: a.b, prot: 1 }]");
        assert!(files.look());
        assert_eq!(hosts(&files), ["a.b:443", "c.d:443"], "the last good one stays");
        let problems = files.services().1;
        assert!(problems[0].contains("a.yaml:1:") && problems[0].contains("prot"), "{problems:?}");
        write("b.yaml", "services: [{ host: c.d }, { host: a.b }, { host: e.f }]");
        assert!(files.look());
        assert_eq!(hosts(&files), ["a.b:443", "c.d:443", "e.f:443"]);
        assert!(files.services().1[1].contains("is already in"), "{:?}", files.services().1);
        fs::remove_file(folder.path().join("a.yaml")).unwrap();
        assert!(files.look());
        assert_eq!(hosts(&files), ["c.d:443", "a.b:443", "e.f:443"]);
        assert_eq!(files.services().1, [""; 0]);
    }

    #[test]
    fn an_empty_directory_is_news_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::new(folder.path().to_owned());
        assert!(files.look() && !files.look());
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
        assert!(files.look() && !files.look(), "said once");
        assert_eq!(hosts(&files), ["a.b:443"]);
        assert!(files.services().1[0].contains("registry: cannot be read"));
        fs::rename(folder.path().join("away"), &inside).unwrap();
        assert!(files.look());
        assert_eq!(files.services().1, [""; 0]);
    }
}
