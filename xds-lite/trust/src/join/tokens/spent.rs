//! Remembers that a token has ended outside of the store, as an empty file with the token's id: a store that is restored
//! from a backup, or of which damage brings an old page back, must not make a spent token valid again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::join::secret::TokenId;
use crate::join::{LONGEST_LIFETIME, unix_seconds};

/// A directory with a file for each token that has ended.
#[derive(Clone, Debug)]
pub(super) struct Spent {
    folder: PathBuf,
}

impl Spent {
    pub(super) fn of_state(state: &Path) -> Spent {
        Spent { folder: state.join("spent") }
    }

    pub(super) fn contains(&self, id: TokenId) -> bool {
        fs::symlink_metadata(self.path(id)).is_ok()
    }

    pub(super) fn insert(&self, id: TokenId) -> io::Result<()> {
        isthmus_store::private_folder(&self.folder)?;
        let path = self.path(id);
        isthmus_store::private_file(&path)?;
        isthmus_store::sync_folder_of(&path)
    }

    /// Forgets ends that are older than a token can be. A file that cannot be removed is tried again the next time.
    pub(super) fn sweep(&self, now: u64) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let is_id = |path: &Path| path.file_name()?.to_str()?.parse::<TokenId>().ok();
            let written = fs::symlink_metadata(&path).and_then(|facts| facts.modified());
            let is_old =
                written.is_ok_and(|at| unix_seconds(at).saturating_add(LONGEST_LIFETIME.as_secs()) < now);
            if is_old && is_id(&path).is_some() {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn path(&self, id: TokenId) -> PathBuf {
        self.folder.join(id.to_string())
    }
}
