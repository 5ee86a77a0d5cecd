//! Takes over the files in which older versions stored tokens (`tokens/ID.STATE`) and joined clusters
//! (`peers/CLUSTER.json`). A file is removed once its record is in the store; a damaged one is set aside.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use isthmus_store::{Embedded, Expect, StoreError};

use super::peer;
use super::tokens::{Record, State, Tokens};

const TOKENS: &str = "tokens";
const PEERS: &str = "peers";
/// Larger than any record of an older version.
const LARGEST: u64 = 64 << 10;
/// The most files that are taken over at a time.
const MOST_FILES: usize = 10_000;

/// Takes over what is there, if anything.
///
/// # Errors
/// The store cannot be written; the files stay.
pub(super) fn take_over(store: &Embedded, state: &Path) -> Result<(), StoreError> {
    let tokens = Tokens::new(Arc::new(store.clone()), state);
    let mut names = names(&state.join(TOKENS));
    // An end is taken over before a copy of the same token that is still open.
    names.sort_by_key(|name| name.ends_with(".open"));
    for name in names {
        token(&tokens, &state.join(TOKENS), &name)?;
    }
    for name in self::names(&state.join(PEERS)) {
        joined(store, &state.join(PEERS), &name)?;
    }
    for folder in [TOKENS, PEERS] {
        let folder = state.join(folder);
        let _ = fs::remove_file(folder.join(".lock"));
        // One that is missing, or that holds something else, is left alone.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.take(MOST_FILES).filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn token(tokens: &Tokens, folder: &Path, name: &str) -> Result<(), StoreError> {
    let states = [State::Open, State::Used, State::Void];
    let named = name.split_once('.').and_then(|(id, state)| {
        Some((id.parse().ok()?, states.into_iter().find(|known| known.to_string() == state)?))
    });
    let Some((id, state)) = named else { return Ok(()) };
    let path = folder.join(name);
    match isthmus_store::read(&path, LARGEST).map(|text| serde_json::from_slice::<Record>(&text)) {
        Ok(Ok(record)) if record.id == id => {
            tokens.take_over(record, state)?;
            remove(&path);
        }
        _ => {
            if state != State::Open {
                tokens.remember_end(id)?;
            }
            set_aside(&path, "the token can no longer be used, make a new one");
        }
    }
    Ok(())
}

fn joined(store: &Embedded, folder: &Path, name: &str) -> Result<(), StoreError> {
    let Some(cluster) = name.strip_suffix(".json").and_then(|stem| stem.parse().ok()) else {
        if !name.starts_with('.') {
            tracing::warn!(file = %folder.join(name).display(), "ignoring a file that is not a record of a joined cluster; remove it");
        }
        return Ok(());
    };
    let path = folder.join(name);
    let read = isthmus_store::read(&path, LARGEST).map_err(|error| error.to_string());
    match read.and_then(|text| peer::parse(&cluster, &text)) {
        Ok(peer) => {
            match peer::write(store, &peer, Expect::Absent) {
                // What the store has is newer.
                Ok(_) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
            remove(&path);
        }
        Err(why) => {
            store.set_lost(&peer::key(&cluster))?;
            set_aside(&path, &why);
        }
    }
    Ok(())
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(file = %path.display(), %error, "cannot remove an imported state file of an older version; remove it");
    }
}

fn set_aside(path: &Path, why: &str) {
    match isthmus_store::set_aside(path) {
        Ok(aside) => {
            tracing::error!(aside = %aside.display(), why, "a state file of an older version is damaged and set aside");
        }
        Err(error) => {
            tracing::error!(file = %path.display(), why, %error, "a state file of an older version is damaged; remove it");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use crate::join::peers;

    #[test]
    fn peer_files_of_older_versions_are_taken_over_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("peers");
        std::fs::create_dir(&folder).unwrap();
        let record = |cluster: &str| {
            format!(
                r#"{{ "cluster": "{cluster}", "trust_domain": "{cluster}.example", "network": "",
                    "address": "192.0.2.7:15012", "gateways": [], "joined_at": "2026-11-21T13:00:00Z" }}"#
            )
        };
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write("west.json", &record("west"));
        write("south.json", &record("north"));
        write("east.json", "{");
        write(".lock", "");
        symlink("/etc/passwd", folder.join("link.json")).unwrap();
        let store = crate::join::store(dir.path());
        let joined = peers(&store).unwrap();
        assert_eq!(joined.peers.len(), 1);
        let lost: Vec<_> =
            joined.lost.iter().filter_map(|(cluster, _)| Some(cluster.as_ref()?.as_str())).collect();
        assert_eq!(lost, ["east", "link", "south"], "named until they are forgotten");
        let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(names.map(|name| name.into_string().unwrap()).all(|name| name.contains(".damaged-")));
        // One that appears later does not replace what the store has.
        write("west.json", &record("west").replace("192.0.2.7", "192.0.2.8"));
        assert_eq!(peers(&crate::join::store(dir.path())).unwrap(), joined);
        assert!(!folder.join("west.json").exists());
    }
}
