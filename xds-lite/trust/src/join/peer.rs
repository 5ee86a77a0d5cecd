//! Reads the records of joined clusters, `STATE/peers/CLUSTER.json`. `place` writes them.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::disk::{self, ReadError};
use super::{Introduction, Rfc3339, unix_seconds};
use isthmus_model::slice::Cluster;

/// Size limit of a peer's record.
const MAX_RECORD: u64 = 64 << 10;
/// Files reported as unreadable, or as strays.
const MOST_NAMED: usize = 100;
const EXTENSION: &str = ".json";

/// A joined cluster, whichever side made the token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// The peer's introduction.
    #[serde(flatten)]
    pub introduction: Introduction,
    /// The time of the join, to the second.
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    pub joined_at: SystemTime,
}

fn write_time<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&Rfc3339(unix_seconds(*time)))
}

fn read_time<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    humantime::parse_rfc3339(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// The joined clusters in the state directory.
#[derive(Debug, Default)]
pub struct Joined {
    /// The peers, sorted by name.
    pub peers: Vec<Peer>,
    /// Records, or the directory, that cannot be read: the list of peers is incomplete.
    pub unread: Vec<ReadError>,
    /// Files that do not belong there.
    pub strays: Vec<ReadError>,
}

/// Reads the joined clusters. Unreadable records are left out and reported one by one.
#[must_use]
pub fn peers(state: &Path) -> Joined {
    let folder = folder(state);
    let mut joined = Joined::default();
    let names = match disk::names(&folder) {
        Ok(names) => names,
        Err(error) => return Joined { unread: vec![error], ..joined },
    };
    for name in names.iter().filter(|name| !name.starts_with('.')) {
        let cluster = name.strip_suffix(EXTENSION).and_then(|stem| stem.parse::<Cluster>().ok());
        match cluster.map(|cluster| read(state, &cluster)) {
            // Removed meanwhile: not a peer.
            Some(Ok(peer)) => joined.peers.extend(peer),
            Some(Err(error)) if joined.unread.len() < MOST_NAMED => joined.unread.push(error),
            None if joined.strays.len() < MOST_NAMED => {
                let cause = "is ignored: not named CLUSTER.json; move it away";
                joined.strays.push(ReadError::new(&folder.join(name), cause));
            }
            Some(Err(_)) | None => {}
        }
    }
    joined
}

/// The record of one cluster; `None` if it has not joined.
pub(super) fn read(state: &Path, cluster: &Cluster) -> Result<Option<Peer>, ReadError> {
    let path = path(state, cluster);
    let text = disk::read_private(&path, MAX_RECORD).map_err(|error| ReadError::new(&path, error))?;
    let Some(text) = text else { return Ok(None) };
    let wrong = |cause: String| {
        ReadError::new(
            &path,
            format!("is not a valid peer record: {cause}; remove it, and join that cluster again"),
        )
    };
    let peer: Peer = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
    peer.introduction.check().map_err(|error| wrong(error.to_string()))?;
    let found = &peer.introduction.party.cluster;
    if found != cluster {
        return Err(wrong(format!("it is of cluster {found}, but its name says {cluster}")));
    }
    Ok(Some(peer))
}

/// The directory of joined clusters' records in a state directory.
#[must_use]
pub fn folder(state: &Path) -> PathBuf {
    state.join("peers")
}

pub(super) fn path(state: &Path, cluster: &Cluster) -> PathBuf {
    folder(state).join(format!("{cluster}{EXTENSION}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const WEST: &str = r#"{
        "cluster": "west", "trust_domain": "west.example", "network": "west-net",
        "address": "192.0.2.7:15012", "gateways": ["gw.west.example:15443"],
        "joined_at": "2026-11-21T13:00:00Z"
    }"#;

    #[test]
    fn peer_record_is_read_as_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(peers(dir.path()).peers, [], "no cluster has joined");
        let folder = folder(dir.path());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("west.json"), WEST).unwrap();
        fs::write(folder.join(".lock"), "").unwrap();
        let read = peers(dir.path()).peers;
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].introduction.gateways[0].to_string(), "gw.west.example:15443");
        fs::write(folder.join("west.json"), serde_json::to_string(&read[0]).unwrap()).unwrap();
        assert_eq!(peers(dir.path()).peers, read);
    }

    #[test]
    fn peer_record_that_is_invalid_is_reported_and_removes_no_other_peer() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("north.json"), WEST.replace("\"west\"", "\"north\"")).unwrap();
        for (name, content, expected) in [
            ("west.json", String::new(), "EOF"),
            ("west.json", WEST.replace("\"west.example", "\"West!"), "trust domain"),
            ("west.json", WEST.replace("192.0.2.7", "0.0.0.0"), "not reachable from another cluster"),
            ("west.json", WEST.replace("192.0.2.7:15012", "here"), "has no port"),
            ("west.json", WEST.replace("\"west\"", "\"north\""), "its name says west"),
            ("west.json", WEST.replace("west-net", "\\u001b[2J"), "network"),
            ("west.json", "x".repeat(70_000), "larger than"),
            ("west", WEST.to_owned(), "not named CLUSTER.json"),
            ("west.json~", WEST.to_owned(), "not named CLUSTER.json"),
        ] {
            let path = folder.join(name);
            fs::write(&path, content).unwrap();
            let Joined { peers, unread, strays } = peers(dir.path());
            let problems: Vec<_> = unread.iter().chain(&strays).map(ToString::to_string).collect();
            let [problem] = &problems[..] else { panic!("{name}: {problems:?}") };
            assert!(problem.starts_with(path.to_str().unwrap()) && problem.contains(expected), "{problem}");
            assert_eq!(strays.len(), usize::from(name != "west.json"));
            assert_eq!(peers.len(), 1, "the other peer stays");
            fs::remove_file(path).unwrap();
        }
        let target = dir.path().join("elsewhere");
        fs::write(&target, WEST).unwrap();
        std::os::unix::fs::symlink(&target, folder.join("west.json")).unwrap();
        let joined = peers(dir.path());
        assert_eq!((joined.peers.len(), joined.unread.len()), (1, 1), "links are not followed");
    }
}
