//! Stores tokens in a directory, one file each: `ID.open` until it ends, then `ID.used` or `ID.void`. The
//! rename ends the token: the kernel lets one of all callers succeed, and the directory is synced before the
//! caller is told.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_certs::files::{self, SECRET};
use isthmus_store::{Health, Report};
use rustix::fs::{CWD, RenameFlags};
use rustix::io::Errno;

use super::{Ending, REMEMBERED, Record, State, StoreError, Tokens};
use crate::join::disk::{self, ReadError};
use crate::join::secret::TokenId;
use crate::join::unix_seconds;

/// A record is some 300 bytes.
const MAX_RECORD: u64 = 4 << 10;
const STATES: [State; 3] = [State::Open, State::Used, State::Void];

/// A private directory of tokens. Processes other than the agent may add to it.
#[derive(Clone, Debug)]
pub struct Folder {
    folder: PathBuf,
    health: Arc<Health>,
}

impl Folder {
    /// The tokens of this directory, which is created with the first token.
    #[must_use]
    pub fn new(folder: PathBuf) -> Folder {
        let health = Arc::new(Health::for_files("tokens", &folder));
        Folder { folder, health }
    }

    /// The health of the files that were read.
    #[must_use]
    pub fn report(&self) -> Report {
        self.health.report()
    }

    /// The tokens of the agent with this state directory.
    #[must_use]
    pub fn of_state(state: &Path) -> Folder {
        Folder::new(state.join("tokens"))
    }

    fn path(&self, id: TokenId, state: State) -> PathBuf {
        self.folder.join(format!("{id}.{state}"))
    }

    /// Reads a record. A damaged open record is set aside: damage ends a token, and never reopens one.
    fn read(&self, id: TokenId, state: State) -> Result<Option<Record>, ReadError> {
        let path = self.path(id, state);
        let failed = |error: io::Error| ReadError::new(&path, error);
        let why = match disk::read_private(&path, MAX_RECORD) {
            Ok(None) => return Ok(None),
            Ok(Some(text)) => match serde_json::from_slice::<Record>(&text) {
                Ok(record) if record.id == id => return Ok(Some(record)),
                Ok(_) => "it belongs to another token than its file name".to_owned(),
                Err(error) => error.to_string(),
            },
            Err(error) if disk::is_damage(&error) => error.to_string(),
            Err(error) => return Err(failed(error)),
        };
        if state != State::Open {
            // The file stays: its name says that the token has ended.
            self.health.file_is_damaged(&id.short(), &why, None);
            tracing::error!(token = id.short(), %state, why, "record of an ended token is damaged");
            return Ok(None);
        }
        let aside = isthmus_store::set_aside(&path).map_err(failed)?;
        self.health.file_is_damaged(&id.short(), &why, Some(&aside));
        tracing::error!(
            token = id.short(), why, aside = %aside.display(),
            "token record is damaged and set aside; the token can no longer be used, make a new one"
        );
        Ok(None)
    }

    fn is_there(&self, id: TokenId, state: State) -> bool {
        fs::symlink_metadata(self.path(id, state)).is_ok()
    }

    fn all(&self) -> Result<Vec<(TokenId, State)>, ReadError> {
        Ok(disk::names(&self.folder)?.iter().filter_map(|name| named(name)).collect())
    }

    /// Written over an hour ago: no write takes that long, and no caller asks for a token that ended then.
    fn is_old(&self, name: &str, now: u64) -> bool {
        let written = fs::symlink_metadata(self.folder.join(name)).and_then(|facts| facts.modified());
        written.is_ok_and(|at| unix_seconds(at).saturating_add(REMEMBERED) < now)
    }
}

impl Tokens for Folder {
    fn put(&self, record: &Record) -> Result<(), StoreError> {
        let made = isthmus_store::private_folder(&self.folder);
        made.map_err(|error| ReadError::new(&self.folder, error))?;
        let path = self.path(record.id, State::Open);
        let text = serde_json::to_string(record).map_err(|error| ReadError::new(&path, error))?;
        Ok(files::write(&path, &(text + "\n"), SECRET)?)
    }

    fn find(&self, id: TokenId) -> Result<Option<(Record, State)>, StoreError> {
        // Open first: a token that ends meanwhile is then found under its next name.
        for state in STATES {
            let Some(record) = self.read(id, state)? else { continue };
            // A record next to its own end, as after a restored backup, has ended.
            let ended = STATES.into_iter().skip(1).find(|ended| *ended != state && self.is_there(id, *ended));
            return Ok(Some((record, ended.unwrap_or(state))));
        }
        Ok(None)
    }

    fn end(&self, id: TokenId, ending: Ending) -> Result<bool, StoreError> {
        let path = self.path(id, State::Open);
        let ended = self.path(
            id,
            match ending {
                Ending::Used => State::Used,
                Ending::Void => State::Void,
            },
        );
        if STATES.into_iter().skip(1).any(|state| self.is_there(id, state)) {
            return Ok(false);
        }
        match rustix::fs::renameat_with(CWD, &path, CWD, &ended, RenameFlags::NOREPLACE) {
            Ok(()) => {
                sync(&self.folder)?;
                Ok(true)
            }
            Err(Errno::NOENT | Errno::EXIST) => Ok(false),
            Err(error) => Err(ReadError::new(&path, error).into()),
        }
    }

    fn list(&self) -> Result<Vec<(Record, State)>, StoreError> {
        let mut found = Vec::new();
        for (id, state) in self.all()? {
            // A token that just ended is listed next time; an unreadable one is reported and left out.
            match self.read(id, state) {
                Ok(read) => found.extend(read.map(|record| (record, state))),
                Err(error) => tracing::error!(%error, "cannot read token record"),
            }
        }
        found.sort_by_key(|(record, _)| (record.expires, record.id));
        Ok(found)
    }

    fn sweep(&self, now: u64) -> Result<(), StoreError> {
        let swept = self.remove_old(now);
        match &swept {
            Ok(()) => self.health.is_usable(),
            Err(error) => self.health.is_unusable(&error.to_string()),
        }
        swept
    }
}

impl Folder {
    /// Removes records an hour after their tokens ended.
    fn remove_old(&self, now: u64) -> Result<(), StoreError> {
        for name in disk::names(&self.folder)? {
            let is_over = match named(&name) {
                Some((id, state)) => match self.read(id, state) {
                    Ok(Some(record)) => record.expires.saturating_add(REMEMBERED) < now,
                    Ok(None) => self.is_old(&name, now),
                    Err(_) => false,
                },
                None => name.starts_with('.') && self.is_old(&name, now),
            };
            if is_over {
                remove(&self.folder.join(name))?;
            }
        }
        Ok(())
    }
}

fn named(name: &str) -> Option<(TokenId, State)> {
    let (id, state) = name.split_once('.')?;
    let state = STATES.into_iter().find(|known| known.to_string() == state)?;
    Some((id.parse().ok()?, state))
}

fn sync(folder: &Path) -> Result<(), ReadError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|error| ReadError::new(folder, error))
}

fn remove(path: &Path) -> Result<(), ReadError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ReadError::new(path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Barrier;
    use std::thread;

    use isthmus_certs::TrustDomain;

    use super::*;
    use crate::join::secret::Secret;
    use crate::join::{Guest, Party};

    fn record(expires: u64) -> Record {
        let secret = Secret::generate().unwrap();
        let guest = Guest::Cluster(Party {
            cluster: "west".parse().unwrap(),
            trust_domain: TrustDomain::new("west.example").unwrap(),
        });
        Record { id: secret.id(), guest, expires, verifier: secret.verifier() }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn token_is_private_to_its_owner_and_ends_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("state/tokens"));
        assert_eq!(folder.list().unwrap(), [], "no token yet");
        let record = record(100);
        folder.put(&record).unwrap();
        assert_eq!(folder.find(record.id).unwrap(), Some((record.clone(), State::Open)));
        let path = folder.path(record.id, State::Open);
        assert_eq!((mode(&path), mode(&folder.folder)), (0o600, 0o700));
        assert!(folder.end(record.id, Ending::Used).unwrap());
        assert!(!folder.end(record.id, Ending::Used).unwrap());
        assert!(!folder.end(record.id, Ending::Void).unwrap());
        assert_eq!(folder.find(record.id).unwrap(), Some((record.clone(), State::Used)));
        assert_eq!(mode(&folder.path(record.id, State::Used)), 0o600);
    }

    #[test]
    fn token_ends_for_one_of_many_callers() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..50 {
            let record = record(100);
            Folder::new(dir.path().to_owned()).put(&record).unwrap();
            let start = Barrier::new(8);
            let winners: usize = thread::scope(|scope| {
                let takers: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            // A store of its own, as another process has.
                            let folder = Folder::new(dir.path().to_owned());
                            start.wait();
                            usize::from(folder.end(record.id, Ending::Used).unwrap())
                        })
                    })
                    .collect();
                takers.into_iter().map(|taker| taker.join().unwrap()).sum()
            });
            assert_eq!(winners, 1);
        }
    }

    #[test]
    fn token_that_ended_is_deleted_after_an_hour() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        let (old, used, young) = (record(100), record(100), record(100 + REMEMBERED));
        for record in [&old, &used, &young] {
            folder.put(record).unwrap();
        }
        assert!(folder.end(used.id, Ending::Used).unwrap());
        fs::write(dir.path().join(".new-left"), "half").unwrap();
        fs::write(dir.path().join("notes.txt"), "somebody else's").unwrap();
        folder.sweep(100 + REMEMBERED).unwrap();
        assert_eq!(folder.list().unwrap().len(), 3, "an hour has not passed");
        folder.sweep(101 + REMEMBERED).unwrap();
        assert_eq!(folder.list().unwrap(), [(young, State::Open)]);
        assert!(dir.path().join(".new-left").exists(), "it was written just now");
        folder.sweep(u64::MAX).unwrap();
        assert_eq!(disk::names(dir.path()).unwrap(), ["notes.txt"]);
    }

    #[test]
    fn token_damage_voids_an_open_one_and_never_revives_a_spent_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        for content in ["", "{}", "\0", &"x".repeat(5_000)] {
            let (open, other) = (record(100), record(100));
            for record in [&open, &other] {
                folder.put(record).unwrap();
            }
            fs::write(folder.path(open.id, State::Open), content).unwrap();
            let listed = folder.list().unwrap();
            assert!(listed.contains(&(other.clone(), State::Open)), "the other token stays: {listed:?}");
            assert!(!listed.iter().any(|(record, _)| record.id == open.id), "{listed:?}");
            assert_eq!(folder.find(open.id).unwrap(), None);
            assert!(!folder.end(open.id, Ending::Used).unwrap(), "nobody can use it");
            let names = disk::names(dir.path()).unwrap();
            assert!(
                names.iter().any(|name| name.starts_with(&format!("{}.open.damaged-", open.id))),
                "{names:?}"
            );
            assert!(folder.end(other.id, Ending::Used).unwrap());
        }
        let spent = record(100);
        folder.put(&spent).unwrap();
        assert!(folder.end(spent.id, Ending::Used).unwrap());
        fs::write(folder.path(spent.id, State::Used), "damaged").unwrap();
        folder.put(&spent).unwrap();
        assert_eq!(
            folder.find(spent.id).unwrap(),
            Some((spent.clone(), State::Used)),
            "after a restored backup"
        );
        assert!(!folder.end(spent.id, Ending::Used).unwrap());
    }

    #[test]
    fn token_folder_does_not_block_on_links_and_pipes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        let [pipe, link] = [record(100), record(100)];
        let path = folder.path(pipe.id, State::Open);
        rustix::fs::mkfifoat(CWD, path, rustix::fs::Mode::RUSR).unwrap();
        let target = dir.path().join("target");
        fs::write(&target, serde_json::to_string(&link).unwrap()).unwrap();
        std::os::unix::fs::symlink(&target, folder.path(link.id, State::Open)).unwrap();
        for id in [pipe.id, link.id] {
            assert_eq!(folder.find(id).unwrap(), None);
        }
        assert_eq!(folder.list().unwrap(), []);
    }
}
