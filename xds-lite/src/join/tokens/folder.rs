//! Tokens in a directory, one file each: `ID.open` until it ends, then `ID.used` or `ID.void`. The rename is the
//! taking: the kernel lets one of all that try it succeed, and the directory is synced before anybody is told.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use isthmus_certs::files::{self, SECRET};

use super::{Ending, REMEMBERED, Record, State, StoreError, Tokens};
use crate::join::disk::{self, ReadError};
use crate::join::secret::TokenId;
use crate::join::unix_seconds;

/// A record is some 300 bytes.
const MAX_RECORD: u64 = 4 << 10;
const STATES: [State; 3] = [State::Open, State::Used, State::Void];

/// Tokens in a directory that is for its owner only. Another process than the agent may add to it.
#[derive(Clone, Debug)]
pub struct Folder {
    folder: PathBuf,
}

impl Folder {
    /// The tokens of this directory, which is made when the first token is.
    #[must_use]
    pub fn new(folder: PathBuf) -> Folder {
        Folder { folder }
    }

    /// Those of the agent that keeps its state here.
    #[must_use]
    pub fn of_state(state: &Path) -> Folder {
        Folder::new(state.join("tokens"))
    }

    fn path(&self, id: TokenId, state: State) -> PathBuf {
        self.folder.join(format!("{id}.{state}"))
    }

    fn read(&self, id: TokenId, state: State) -> Result<Option<Record>, ReadError> {
        let path = self.path(id, state);
        let Some(text) = disk::read(&path, MAX_RECORD)? else { return Ok(None) };
        let wrong = |cause: String| {
            ReadError::new(
                &path,
                format!("is no record of a token: {cause}; remove it, and make a new token"),
            )
        };
        let record: Record = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        match record.id == id {
            true => Ok(Some(record)),
            false => Err(wrong("it is of another token than its name says".to_owned())),
        }
    }

    fn all(&self) -> Result<Vec<(TokenId, State)>, ReadError> {
        Ok(disk::names(&self.folder)?.iter().filter_map(|name| named(name)).collect())
    }

    /// What an interrupted writing has left. A writing takes a moment, not an hour.
    fn is_left_over(&self, name: &str, now: u64) -> bool {
        let written = fs::metadata(self.folder.join(name)).and_then(|facts| facts.modified());
        name.starts_with('.') && written.is_ok_and(|at| unix_seconds(at).saturating_add(REMEMBERED) < now)
    }
}

impl Tokens for Folder {
    fn put(&self, record: &Record) -> Result<(), StoreError> {
        files::make_folder(&self.folder)?;
        let path = self.path(record.id, State::Open);
        let text = serde_json::to_string(record).map_err(|error| ReadError::new(&path, error))?;
        Ok(files::write(&path, &(text + "\n"), SECRET)?)
    }

    fn find(&self, id: TokenId) -> Result<Option<(Record, State)>, StoreError> {
        // Open before the others: a token that ends meanwhile is found under its next name.
        for state in STATES {
            if let Some(record) = self.read(id, state)? {
                return Ok(Some((record, state)));
            }
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
        match fs::rename(&path, ended) {
            Ok(()) => {
                sync(&self.folder)?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ReadError::new(&path, error).into()),
        }
    }

    fn list(&self) -> Result<Vec<(Record, State)>, StoreError> {
        let mut found = Vec::new();
        for (id, state) in self.all()? {
            // One that has just ended is listed the next time.
            found.extend(self.read(id, state)?.map(|record| (record, state)));
        }
        found.sort_by_key(|(record, _)| (record.expires, record.id));
        Ok(found)
    }

    fn sweep(&self, now: u64) -> Result<(), StoreError> {
        for name in disk::names(&self.folder)? {
            let is_over = match named(&name) {
                // One that cannot be read is `list`'s to name, and nobody's to use.
                Some((id, state)) => self
                    .read(id, state)
                    .is_ok_and(|read| read.is_some_and(|one| one.expires.saturating_add(REMEMBERED) < now)),
                None => self.is_left_over(&name, now),
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
    fn a_token_is_kept_for_its_owner_only_and_ends_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("state/tokens"));
        assert_eq!(folder.list().unwrap(), [], "nothing was made yet");
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
    fn of_many_that_take_one_token_one_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..50 {
            let record = record(100);
            Folder::new(dir.path().to_owned()).put(&record).unwrap();
            let start = Barrier::new(8);
            let winners: usize = thread::scope(|scope| {
                let takers: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            // As another process would: a store of its own.
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
    fn what_has_ended_is_swept_after_an_hour() {
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
    fn a_damaged_record_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        let id = record(1).id;
        for content in ["", "{}", &"x".repeat(5_000)] {
            fs::write(folder.path(id, State::Open), content).unwrap();
            let error = folder.find(id).unwrap_err().to_string();
            assert!(error.contains(&id.to_string()), "{error}");
        }
    }
}
