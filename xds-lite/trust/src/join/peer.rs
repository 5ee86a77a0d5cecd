//! The records of joined clusters in the store. `place` writes them; `joined` follows them.

use std::time::SystemTime;

use isthmus_store::{Entry, Expect, Listing, Store, StoreError, UNNAMED};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{Introduction, Rfc3339, encode, unix_seconds};
use isthmus_model::slice::Cluster;

/// The kind of record in the store.
pub(super) const KIND: &str = "peers/";

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

/// What is recorded of a cluster.
enum Record {
    Joined(Box<Peer>),
    Forgotten,
}

/// Tells a running agent that the record of a cluster is not lost but removed.
#[derive(Serialize, Deserialize)]
struct Forgotten {
    #[serde(serialize_with = "write_time", deserialize_with = "read_time")]
    forgotten_at: SystemTime,
}

fn write_time<S: Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&Rfc3339(unix_seconds(*time)))
}

fn read_time<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
    humantime::parse_rfc3339(&String::deserialize(from)?).map_err(D::Error::custom)
}

/// The joined clusters in a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// The peers, sorted by name.
    pub peers: Vec<Peer>,
    /// Clusters whose record is damaged or invalid, and why; `None` where the name is lost, too.
    pub lost: Vec<(Option<Cluster>, String)>,
    /// Clusters that were forgotten.
    pub(super) forgotten: Vec<Cluster>,
}

impl Joined {
    /// Whether all joined clusters are known.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.lost.is_empty()
    }

    pub(super) fn from_listing(listing: &Listing) -> Joined {
        let mut joined = Joined::default();
        for entry in &listing.entries {
            match read_record(entry) {
                Ok((_, Record::Joined(peer))) => joined.peers.push(*peer),
                Ok((cluster, Record::Forgotten)) => joined.forgotten.push(cluster),
                Err(why) => joined.lost.push((of_key(&entry.key), why)),
            }
        }
        for key in &listing.lost {
            let why = match key.as_str() {
                UNNAMED => "records of joined clusters may be lost together with their names; join those clusters again, then run `isthmus-agent peers forget --lost`".to_owned(),
                _ => format!("the record was damaged; {REMEDY}"),
            };
            joined.lost.push((of_key(key), why));
        }
        joined
    }
}

const REMEDY: &str = "join that cluster again, or run `isthmus-agent peers forget CLUSTER`";

/// Reads the joined clusters.
///
/// # Errors
/// The store cannot be read.
pub fn peers(store: &dyn Store) -> Result<Joined, StoreError> {
    Ok(Joined::from_listing(&store.list(KIND)?))
}

/// Forgets a joined cluster: agents that start from now on do not follow it. Returns whether it was known.
///
/// # Errors
/// The store cannot be changed.
pub fn forget(store: &dyn Store, cluster: &Cluster) -> Result<bool, StoreError> {
    let key = key(cluster);
    let before = match store.get(&key) {
        Err(StoreError::Lost(_)) => None,
        Err(error) => return Err(error),
        Ok(None) => return Ok(false),
        Ok(Some(entry)) => match read_record(&entry) {
            Ok((_, Record::Forgotten)) => return Ok(false),
            _ => Some(entry),
        },
    };
    let expect = before.as_ref().map_or(Expect::Lost, |entry| Expect::Version(&entry.version));
    store.put(&key, &encode(&Forgotten { forgotten_at: SystemTime::now() })?, expect).map(|_| true)
}

/// Forgets lost records. Returns their number.
///
/// # Errors
/// The store cannot be changed.
pub fn forget_lost(store: &dyn Store) -> Result<usize, StoreError> {
    let lost = store.list(KIND)?.lost;
    for key in &lost {
        store.remove(key, Expect::Lost)?;
    }
    Ok(lost.len())
}

/// The record of one cluster as it stands, to be replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Absent,
    Lost,
    Entry(Entry),
}

impl Standing {
    pub(super) fn expect(&self) -> Expect<'_> {
        match self {
            Standing::Absent => Expect::Absent,
            Standing::Lost => Expect::Lost,
            Standing::Entry(entry) => Expect::Version(&entry.version),
        }
    }
}

/// The record of one cluster, and the peer in it, if it has joined.
pub(super) fn read(store: &dyn Store, cluster: &Cluster) -> Result<(Standing, Option<Peer>), StoreError> {
    let entry = match store.get(&key(cluster)) {
        Err(StoreError::Lost(_)) => return Ok((Standing::Lost, None)),
        Err(error) => return Err(error),
        Ok(None) => return Ok((Standing::Absent, None)),
        Ok(Some(entry)) => entry,
    };
    // An invalid record may be replaced, as a damaged one.
    let peer = match read_record(&entry) {
        Ok((_, Record::Joined(peer))) => Some(*peer),
        _ => None,
    };
    Ok((Standing::Entry(entry), peer))
}

/// Writes the record of a cluster that has joined.
pub(super) fn write(
    store: &dyn Store,
    peer: &Peer,
    expect: Expect<'_>,
) -> Result<isthmus_store::Version, StoreError> {
    store.put(&key(&peer.introduction.party.cluster), &encode(peer)?, expect)
}

/// Puts back what stood before the record of a cluster was written.
pub(super) fn restore(
    store: &dyn Store,
    cluster: &Cluster,
    before: &Standing,
    expect: Expect<'_>,
) -> Result<(), StoreError> {
    match before {
        Standing::Absent | Standing::Lost => store.remove(&key(cluster), expect),
        Standing::Entry(entry) => store.put(&entry.key, &entry.value, expect).map(drop),
    }
}

/// Removes the records of forgotten clusters: nothing that runs remembers them.
pub(super) fn sweep_forgotten(store: &dyn Store) -> Result<(), StoreError> {
    for entry in store.list(KIND)?.entries {
        if matches!(read_record(&entry), Ok((_, Record::Forgotten))) {
            match store.remove(&entry.key, Expect::Version(&entry.version)) {
                Ok(()) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Parses the record of a cluster that has joined.
pub(super) fn parse(cluster: &Cluster, text: &[u8]) -> Result<Peer, String> {
    let peer: Peer = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    peer.introduction.check().map_err(|error| error.to_string())?;
    match &peer.introduction.party.cluster {
        found if found == cluster => Ok(peer),
        found => Err(format!("it is of cluster {found}")),
    }
}

fn read_record(entry: &Entry) -> Result<(Cluster, Record), String> {
    let wrong = |why: String| format!("the record is invalid: {why}; {REMEDY}");
    let cluster = of_key(&entry.key).ok_or_else(|| wrong("its key is not a cluster's name".to_owned()))?;
    if serde_json::from_slice::<Forgotten>(&entry.value).is_ok() {
        return Ok((cluster, Record::Forgotten));
    }
    let peer = parse(&cluster, &entry.value).map_err(wrong)?;
    Ok((cluster, Record::Joined(Box::new(peer))))
}

pub(super) fn key(cluster: &Cluster) -> String {
    format!("{KIND}{cluster}")
}

fn of_key(key: &str) -> Option<Cluster> {
    key.strip_prefix(KIND)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use isthmus_store::Embedded;

    use super::*;

    const WEST: &str = r#"{
        "cluster": "west", "trust_domain": "west.example", "network": "west-net",
        "address": "192.0.2.7:15012", "gateways": ["gw.west.example:15443"],
        "joined_at": "2026-11-21T13:00:00Z"
    }"#;

    fn store(folder: &Path) -> Embedded {
        Embedded::new("trust", folder, "trust.db")
    }

    fn west() -> Cluster {
        "west".parse().unwrap()
    }

    #[test]
    fn peer_record_is_read_as_written_until_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        assert_eq!(peers(&store).unwrap(), Joined::default(), "no cluster has joined");
        let peer = parse(&west(), WEST.as_bytes()).unwrap();
        assert_eq!(peer.introduction.gateways[0].to_string(), "gw.west.example:15443");
        write(&store, &peer, Expect::Absent).unwrap();
        assert_eq!(peers(&store).unwrap().peers, std::slice::from_ref(&peer));
        assert_eq!([forget(&store, &west()), forget(&store, &west())], [Ok(true), Ok(false)]);
        let joined = peers(&store).unwrap();
        assert_eq!((joined.peers.len(), joined.is_whole(), &joined.forgotten[..]), (0, true, &[west()][..]));
        let (standing, none) = read(&store, &west()).unwrap();
        assert_eq!(none, None);
        write(&store, &peer, standing.expect()).unwrap();
        sweep_forgotten(&store).unwrap();
        assert_eq!(peers(&store).unwrap().peers, [peer], "it has joined again");
        forget(&store, &west()).unwrap();
        sweep_forgotten(&store).unwrap();
        assert_eq!(peers(&store).unwrap(), Joined::default());
    }

    #[test]
    fn peer_record_that_is_invalid_is_reported_and_removes_no_other_peer() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let north = WEST.replace("\"west\"", "\"north\"");
        store.put("peers/north", north.as_bytes(), Expect::Absent).unwrap();
        for (content, expected) in [
            (String::new(), "EOF"),
            (WEST.replace("\"west.example", "\"West!"), "trust domain"),
            (WEST.replace("192.0.2.7", "0.0.0.0"), "not reachable from another cluster"),
            (north.clone(), "it is of cluster north"),
            (WEST.replace("west-net", "\\u001b[2J"), "network"),
        ] {
            store.put("peers/west", content.as_bytes(), Expect::Anything).unwrap();
            let joined = peers(&store).unwrap();
            let [(Some(cluster), problem)] = &joined.lost[..] else { panic!("{:?}", joined.lost) };
            assert!(*cluster == west() && problem.contains(expected), "{problem}");
            assert!(problem.contains("peers forget") && !joined.is_whole(), "{problem}");
            assert_eq!(joined.peers.len(), 1, "the other peer stays");
            assert_eq!(read(&store, &west()).unwrap().1, None, "it may join again");
        }
        assert!(forget(&store, &west()).unwrap());
        store.set_lost("peers/south").unwrap();
        let joined = peers(&store).unwrap();
        assert!(joined.lost[0].1.contains("was damaged"), "{joined:?}");
        assert_eq!((joined.lost.len(), forget_lost(&store)), (1, Ok(1)));
        assert!(peers(&store).unwrap().is_whole());
    }
}
