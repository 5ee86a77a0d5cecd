//! The slices that one side has accepted, as encoded bytes: of a hundred thousand only the few that are asked for are
//! decoded. The newest revision of an owner wins; an older one never replaces it, whoever replays it. Pure. Not whether
//! the sender may speak for the owner.

use std::collections::HashMap;

use prost::Message;

use crate::host::HostPattern;
use crate::services::Staleness;
use crate::slice::{Cluster, Key, Order, Slice, version};

/// Accepted slices, by host.
#[derive(Debug, Default)]
pub struct SliceStore {
    hosts: HashMap<HostPattern, Slot>,
    /// Removed slices. Their order is remembered, or an old one could come back.
    removed: HashMap<Key, Removed>,
    /// The rules of slices that do not stay for ever.
    limited: HashMap<Key, Staleness>,
    count: usize,
}

/// A slice that is older than the known one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is of revision {}.{}, but {}.{} is known; an old slice never replaces a newer one", found.incarnation, found.revision, known.incarnation, known.revision)]
pub struct Outdated {
    key: Key,
    found: Order,
    known: Order,
}

/// The slices of a host: nearly always one, and a hundred thousand hosts should not carry a vector each.
#[derive(Debug)]
enum Slot {
    One(Box<[u8]>),
    Many(Vec<Box<[u8]>>),
}

#[derive(Debug)]
struct Removed {
    order: Order,
    /// The owner's withdrawal; none if the owner may still offer it, but not to this side.
    withdrawal: Option<Box<[u8]>>,
}

/// The fields of a slice that identify it.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(uint64, tag = "3")]
    incarnation: u64,
    #[prost(uint64, tag = "4")]
    revision: u64,
}

impl Slot {
    fn all(&self) -> &[Box<[u8]>] {
        match self {
            Slot::One(bytes) => std::slice::from_ref(bytes),
            Slot::Many(all) => all,
        }
    }
}

/// Accepted bytes always decode.
fn head(bytes: &[u8]) -> Head {
    Head::decode(bytes).unwrap_or_default()
}

impl SliceStore {
    /// Inserts a slice that was decoded from these bytes. Says whether anything has changed.
    ///
    /// # Errors
    /// It is older than the known one.
    pub fn insert(&mut self, slice: &Slice, bytes: &[u8]) -> Result<bool, Outdated> {
        let (key, order) = (&slice.key, slice.order);
        if let Some(known) = self.order(key).filter(|known| order < *known) {
            return Err(Outdated { key: key.clone(), found: order, known });
        }
        let standing = self.standing(key);
        let is_changed = match &slice.offer {
            Some(_) => standing != Some(bytes),
            None => standing.is_some(),
        };
        self.remove(key);
        match &slice.offer {
            Some(offer) => {
                self.removed.remove(key);
                if offer.staleness != Staleness::Keep {
                    self.limited.insert(key.clone(), offer.staleness);
                }
                self.push(&key.host, bytes.into());
            }
            None => _ = self.removed.insert(key.clone(), Removed { order, withdrawal: Some(bytes.into()) }),
        }
        Ok(is_changed)
    }

    /// Removes a slice that is no longer given to this side, though its owner may still offer it. Says whether there
    /// was one.
    pub fn forget(&mut self, key: &Key) -> bool {
        let Some(order) = self.order(key) else { return false };
        let was_standing = self.standing(key).is_some();
        self.remove(key);
        self.removed.insert(key.clone(), Removed { order, withdrawal: None });
        was_standing
    }

    /// Forgets the order of a removed slice: from here on an old one of it could come back.
    pub fn purge(&mut self, key: &Key) {
        self.removed.remove(key);
    }

    /// The slices of a host, in no order.
    pub fn of_host(&self, host: &HostPattern) -> Vec<Slice> {
        let Some((host, slot)) = self.hosts.get_key_value(host) else { return Vec::new() };
        let slices = slot.all().iter().filter_map(|bytes| Slice::decode(bytes).ok());
        // All of them share one copy of the name.
        slices.map(|slice| Slice { key: Key { host: host.clone(), ..slice.key }, ..slice }).collect()
    }

    /// Every slice, decoded, in no order.
    pub fn iter(&self) -> impl Iterator<Item = Slice> {
        let all = self.hosts.values().flat_map(Slot::all);
        all.filter_map(|bytes| Slice::decode(bytes).ok())
    }

    /// The slice of a key, unless it is removed.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Slice> {
        Slice::decode(self.standing(key)?).ok()
    }

    /// Whether there is a slice of a key.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.standing(key).is_some()
    }

    /// The bytes of a key, of its offer or its withdrawal.
    #[must_use]
    pub fn bytes(&self, key: &Key) -> Option<&[u8]> {
        let withdrawal = || self.removed.get(key)?.withdrawal.as_deref();
        self.standing(key).or_else(withdrawal)
    }

    /// The bytes of every offer and withdrawal, by the resource's name.
    pub fn entries(&self) -> impl Iterator<Item = (String, &[u8])> {
        let standing = self.hosts.iter().flat_map(|(host, slot)| {
            slot.all().iter().map(move |bytes| (format!("{}/{host}", head(bytes).cluster), &bytes[..]))
        });
        let withdrawn = self
            .removed
            .iter()
            .filter_map(|(key, removed)| Some((key.to_string(), removed.withdrawal.as_deref()?)));
        standing.chain(withdrawn)
    }

    /// The version of every offer and withdrawal, by the resource's name.
    #[must_use]
    pub fn versions(&self) -> HashMap<String, String> {
        self.entries().map(|(name, bytes)| (name, version(bytes))).collect()
    }

    /// The rules of slices that do not stay for ever.
    pub fn limited(&self) -> impl Iterator<Item = (&Key, Staleness)> {
        self.limited.iter().map(|(key, rule)| (key, *rule))
    }

    /// The hosts that have a slice.
    pub fn hosts(&self) -> impl Iterator<Item = &HostPattern> {
        self.hosts.keys()
    }

    /// The number of slices, without removed ones.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The newest order that is known of a key, removed or not.
    #[must_use]
    pub fn order(&self, key: &Key) -> Option<Order> {
        let standing = self.standing(key).map(|bytes| {
            let Head { incarnation, revision, .. } = head(bytes);
            Order { incarnation, revision }
        });
        standing.or_else(|| self.removed.get(key).map(|removed| removed.order))
    }

    fn standing(&self, key: &Key) -> Option<&[u8]> {
        let all = self.hosts.get(&key.host)?.all();
        all.iter().find(|bytes| is_of(bytes, &key.cluster)).map(|bytes| &bytes[..])
    }

    fn push(&mut self, host: &HostPattern, bytes: Box<[u8]>) {
        self.count += 1;
        let slot = match self.hosts.remove(host) {
            None => Slot::One(bytes),
            Some(Slot::One(other)) => Slot::Many(vec![other, bytes]),
            Some(Slot::Many(mut all)) => {
                all.push(bytes);
                Slot::Many(all)
            }
        };
        self.hosts.insert(host.clone(), slot);
    }

    fn remove(&mut self, key: &Key) {
        self.limited.remove(key);
        let Some(slot) = self.hosts.remove(&key.host) else { return };
        let mut all = match slot {
            Slot::One(bytes) => vec![bytes],
            Slot::Many(all) => all,
        };
        let before = all.len();
        all.retain(|bytes| !is_of(bytes, &key.cluster));
        self.count -= before - all.len();
        match (all.len(), all.pop()) {
            (1, Some(only)) => _ = self.hosts.insert(key.host.clone(), Slot::One(only)),
            (_, Some(last)) => {
                all.push(last);
                self.hosts.insert(key.host.clone(), Slot::Many(all));
            }
            (_, None) => {}
        }
    }
}

fn is_of(bytes: &[u8], cluster: &Cluster) -> bool {
    head(bytes).cluster == cluster.as_str()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::slice::{Offer, Port, Tls};

    fn slice(
        cluster: usize,
        host: usize,
        (incarnation, revision): (u64, u64),
        staleness: Option<Staleness>,
    ) -> Slice {
        let host = HostPattern::parse(["a.x", "*.x", "b.x"][host]).unwrap();
        let key = Key { cluster: ["east", "west", "south"][cluster].parse().unwrap(), host };
        let network = format!("n{incarnation}-{revision}");
        let offer = staleness
            .map(|staleness| Offer { staleness, ..Offer::new(&network, vec![Port::new(3306, Tls::Mutual)]) });
        Slice { key, order: Order { incarnation, revision }, offer }
    }

    fn insert(store: &mut SliceStore, slice: &Slice) -> Result<bool, Outdated> {
        store.insert(slice, &slice.encode())
    }

    #[test]
    fn store_keeps_withdrawal_until_newer_offer() {
        let offered = |order| slice(0, 0, order, Some(Staleness::Keep));
        let withdrawn = |order| slice(0, 0, order, None);
        let (mut store, key) = (SliceStore::default(), offered((1, 1)).key);
        assert_eq!(insert(&mut store, &offered((1, 1))), Ok(true));
        assert_eq!(insert(&mut store, &offered((1, 1))), Ok(false), "the same again");
        assert_eq!(insert(&mut store, &withdrawn((1, 2))), Ok(true));
        let replay = insert(&mut store, &offered((1, 1))).unwrap_err();
        assert!(replay.to_string().contains("east/a.x is of revision 1.1, but 1.2 is known"), "{replay}");
        assert!(!store.contains(&key));
        assert_eq!(insert(&mut store, &offered((2, 1))), Ok(true), "a new incarnation of the registry");
        assert!(insert(&mut store, &withdrawn((1, 9))).is_err());
        assert!(store.forget(&key) && !store.forget(&key));
        assert!(
            insert(&mut store, &offered((1, 9))).is_err(),
            "the order of a forgotten slice is remembered"
        );
        assert_eq!(insert(&mut store, &offered((2, 1))), Ok(true), "given again");
        store.forget(&key);
        store.purge(&key);
        assert_eq!(insert(&mut store, &offered((1, 1))), Ok(true), "a purged one is not");
    }

    #[derive(Clone, Debug)]
    enum Event {
        Insert(Slice),
        Forget(Key),
        Purge(Key),
    }

    fn event() -> impl Strategy<Value = Event> {
        let rules = [None, Some(Staleness::Keep), Some(Staleness::ExpireAfter(Duration::from_secs(9)))];
        let slices = (0..3_usize, 0..3_usize, (1..3_u64, 1..4_u64));
        (slices, any::<u8>()).prop_map(move |((cluster, host, order), kind)| {
            // An owner says one thing under one order.
            let rule = usize::try_from(order.0 + order.1).unwrap() % rules.len();
            let slice = slice(cluster, host, order, rules[rule]);
            match kind % 8 {
                0 => Event::Forget(slice.key),
                1 => Event::Purge(slice.key),
                _ => Event::Insert(slice),
            }
        })
    }

    proptest! {
        /// Against a plain map, whatever is replayed in whatever order.
        #[test]
        fn store_agrees_with_a_plain_map(events in proptest::collection::vec(event(), 0..60)) {
            let mut store = SliceStore::default();
            let mut model: BTreeMap<Key, (Order, Option<Slice>)> = BTreeMap::new();
            for event in events {
                match event {
                    Event::Insert(slice) => {
                        let known = model.get(&slice.key).cloned();
                        let inserted = insert(&mut store, &slice);
                        if known.as_ref().is_some_and(|(known, _)| slice.order < *known) {
                            prop_assert!(inserted.is_err());
                        } else {
                            let offered = slice.offer.is_some().then(|| slice.clone());
                            let before = known.and_then(|(_, slice)| slice);
                            prop_assert_eq!(inserted, Ok(before != offered));
                            model.insert(slice.key.clone(), (slice.order, offered));
                        }
                    }
                    Event::Forget(key) => {
                        let stood = model.get_mut(&key).and_then(|(_, slice)| slice.take()).is_some();
                        prop_assert_eq!(store.forget(&key), stood);
                    }
                    Event::Purge(key) => {
                        if model.get(&key).is_some_and(|(_, slice)| slice.is_none()) {
                            model.remove(&key);
                            store.purge(&key);
                        }
                    }
                }
                let expected: Vec<_> = model.values().filter_map(|(_, slice)| slice.clone()).collect();
                let mut slices: Vec<_> = store.iter().collect();
                slices.sort_by(|one, other| one.key.cmp(&other.key));
                prop_assert_eq!(store.len(), slices.len());
                prop_assert_eq!(&slices, &expected);
                let hosts: BTreeSet<_> = expected.iter().map(|slice| slice.key.host.clone()).collect();
                prop_assert_eq!(store.hosts().cloned().collect::<BTreeSet<_>>(), hosts.clone());
                prop_assert_eq!(hosts.iter().map(|host| store.of_host(host).len()).sum::<usize>(), slices.len());
                let limited: BTreeSet<_> = store.limited().map(|(key, _)| key.clone()).collect();
                let over = expected.iter().filter(|slice| slice.has_expired(Duration::from_secs(9)));
                prop_assert_eq!(limited, over.map(|slice| slice.key.clone()).collect());
                for (key, (order, slice)) in &model {
                    prop_assert_eq!(store.order(key), Some(*order));
                    prop_assert_eq!(store.get(key), slice.clone());
                }
                let versions = store.versions();
                for slice in &expected {
                    let version = version(&slice.encode());
                    prop_assert_eq!(versions.get(&slice.key.to_string()), Some(&version));
                }
            }
        }
    }
}
