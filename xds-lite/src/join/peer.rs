//! The clusters that were joined, as `STATE/peers/CLUSTER.json` keeps them. Not how they get there (`place`).

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::disk::{self, ReadError};
use super::{Introduction, Rfc3339, unix_seconds};
use crate::slice::Cluster;

/// Larger than any record of a peer.
const MAX_RECORD: u64 = 64 << 10;
const EXTENSION: &str = ".json";

/// A cluster that was joined, by either side's token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// What it says of itself.
    #[serde(flatten)]
    pub introduction: Introduction,
    /// When it was joined, to the second.
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    pub joined_at: SystemTime,
}

fn write_time<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&Rfc3339(unix_seconds(*time)))
}

fn read_time<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    humantime::parse_rfc3339(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// The clusters that were joined, by name; none where nobody has joined yet.
///
/// # Errors
/// The first record that is no record.
pub fn peers(state: &Path) -> Result<Vec<Peer>, ReadError> {
    let folder = folder(state);
    let mut peers = Vec::new();
    for name in disk::names(&folder)?.iter().filter(|name| !name.starts_with('.')) {
        let path = folder.join(name);
        let cluster = name.strip_suffix(EXTENSION).and_then(|stem| stem.parse::<Cluster>().ok());
        let cluster =
            cluster.ok_or_else(|| ReadError::new(&path, "must be named CLUSTER.json; move it away"))?;
        // One that has just been taken away is none.
        peers.extend(read(state, &cluster)?);
    }
    Ok(peers)
}

/// The record of one cluster, if it was joined.
pub(super) fn read(state: &Path, cluster: &Cluster) -> Result<Option<Peer>, ReadError> {
    let path = path(state, cluster);
    let Some(text) = disk::read(&path, MAX_RECORD)? else { return Ok(None) };
    let wrong = |cause: String| {
        ReadError::new(
            &path,
            format!("is no record of a peer: {cause}; remove it, and join that cluster again"),
        )
    };
    let peer: Peer = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    peer.introduction.check().map_err(|error| wrong(error.to_string()))?;
    let found = &peer.introduction.party.cluster;
    if found != cluster {
        return Err(wrong(format!("it is of cluster {found}, and its name says {cluster}")));
    }
    Ok(Some(peer))
}

pub(crate) fn folder(state: &Path) -> PathBuf {
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
    fn a_record_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(peers(dir.path()).unwrap(), [], "nobody has joined");
        let folder = folder(dir.path());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("west.json"), WEST).unwrap();
        fs::write(folder.join(".lock"), "").unwrap();
        let read = peers(dir.path()).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].introduction.gateways[0].to_string(), "gw.west.example:15443");
        fs::write(folder.join("west.json"), serde_json::to_string(&read[0]).unwrap()).unwrap();
        assert_eq!(peers(dir.path()).unwrap(), read);
    }

    #[test]
    fn a_wrong_record_is_named_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path());
        fs::create_dir_all(&folder).unwrap();
        for (name, content, expected) in [
            ("west.json", String::new(), "EOF"),
            ("west.json", WEST.replace("\"west.example", "\"West!"), "trust domain"),
            ("west.json", WEST.replace("192.0.2.7", "0.0.0.0"), "no address that another cluster can reach"),
            ("west.json", WEST.replace("192.0.2.7:15012", "here"), "has no port"),
            ("west.json", WEST.replace("\"west\"", "\"north\""), "its name says west"),
            ("west.json", WEST.replace("west-net", "\\u001b[2J"), "network"),
            ("west.json", "x".repeat(70_000), "larger than"),
            ("west", WEST.to_owned(), "must be named CLUSTER.json"),
        ] {
            let path = folder.join(name);
            fs::write(&path, content).unwrap();
            let error = peers(dir.path()).unwrap_err().to_string();
            assert!(error.starts_with(path.to_str().unwrap()) && error.contains(expected), "{error}");
            fs::remove_file(path).unwrap();
        }
    }
}
