//! The slices that one side has accepted, each as the bytes that it came as: whoever has a hundred thousand of them
//! and looks at few reads them again when he does. The order is that of `accepted`: nothing older ever comes back.
//! Pure. Not whether the sender may speak for the owner.

use std::collections::HashMap;

use prost::Message;

use crate::accepted::Older;
use crate::host::HostPattern;
use crate::services::Staleness;
use crate::slice::{Cluster, Key, Order, Slice, version};

/// Accepted slices, by host.
#[derive(Debug, Default)]
pub struct Held {
    hosts: HashMap<HostPattern, Stand>,
    /// What stands no longer. It is not forgotten, or it could come back.
    gone: HashMap<Key, Gone>,
    /// The rules of those that do not stay for ever.
    limited: HashMap<Key, Staleness>,
    count: usize,
}

/// The slices of a host: one, nearly always, and a hundred thousand hosts should not carry a vector each.
#[derive(Debug)]
enum Stand {
    One(Box<[u8]>),
    Many(Vec<Box<[u8]>>),
}

#[derive(Debug)]
struct Gone {
    order: Order,
    /// None if it is no longer given to this side, though its owner may still have it.
    withdrawal: Option<Box<[u8]>>,
}

/// What of a slice tells which it is.
#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(string, tag = "1")]
    cluster: String,
    #[prost(uint64, tag = "3")]
    incarnation: u64,
    #[prost(uint64, tag = "4")]
    revision: u64,
}

impl Stand {
    fn all(&self) -> &[Box<[u8]>] {
        match self {
            Stand::One(bytes) => std::slice::from_ref(bytes),
            Stand::Many(all) => all,
        }
    }
}

/// What was accepted can be read.
fn head(bytes: &[u8]) -> Head {
    Head::decode(bytes).unwrap_or_default()
}

impl Held {
    /// Takes a slice, which was read from these bytes.
    ///
    /// # Errors
    /// It is older than what is known.
    pub fn take(&mut self, slice: &Slice, bytes: &[u8]) -> Result<(), Older> {
        let (key, order) = (&slice.key, slice.order);
        if let Some(known) = self.order(key).filter(|known| order < *known) {
            return Err(Older::new(key.clone(), order, known));
        }
        self.lift(key);
        match &slice.offer {
            Some(offer) => {
                self.gone.remove(key);
                if offer.staleness != Staleness::Keep {
                    self.limited.insert(key.clone(), offer.staleness);
                }
                self.put(&key.host, bytes.into());
            }
            None => _ = self.gone.insert(key.clone(), Gone { order, withdrawal: Some(bytes.into()) }),
        }
        Ok(())
    }

    /// A slice is no longer given to this side, though its owner may still have it.
    pub fn leave(&mut self, key: &Key) {
        if let Some(order) = self.order(key) {
            self.lift(key);
            self.gone.insert(key.clone(), Gone { order, withdrawal: None });
        }
    }

    /// What stands of a host, in no order.
    pub fn of_host(&self, host: &HostPattern) -> Vec<Slice> {
        let Some((host, stand)) = self.hosts.get_key_value(host) else { return Vec::new() };
        let slices = stand.all().iter().filter_map(|bytes| Slice::decode(bytes).ok());
        // One copy of the name for all that comes of it.
        slices.map(|slice| Slice { key: Key { host: host.clone(), ..slice.key }, ..slice }).collect()
    }

    /// The slice of a key, if one stands.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Slice> {
        Slice::decode(self.standing(key)?).ok()
    }

    /// The bytes that are known of a key, whether they offer something or withdraw it.
    #[must_use]
    pub fn bytes(&self, key: &Key) -> Option<&[u8]> {
        let gone = || self.gone.get(key)?.withdrawal.as_deref();
        self.standing(key).or_else(gone)
    }

    /// All that is known, by the resource's name, withdrawals too.
    pub fn entries(&self) -> impl Iterator<Item = (String, &[u8])> {
        let standing = self.hosts.iter().flat_map(|(host, stand)| {
            stand.all().iter().map(move |bytes| (format!("{}/{host}", head(bytes).cluster), &bytes[..]))
        });
        let withdrawn =
            self.gone.iter().filter_map(|(key, gone)| Some((key.to_string(), gone.withdrawal.as_deref()?)));
        standing.chain(withdrawn)
    }

    /// The same with versions.
    #[must_use]
    pub fn versions(&self) -> HashMap<String, String> {
        self.entries().map(|(name, bytes)| (name, version(bytes))).collect()
    }

    /// The rules of those that stand and do not stay for ever.
    pub fn limited(&self) -> impl Iterator<Item = (&Key, Staleness)> {
        self.limited.iter().map(|(key, rule)| (key, *rule))
    }

    /// The hosts of which something stands.
    pub fn hosts(&self) -> impl Iterator<Item = &HostPattern> {
        self.hosts.keys()
    }

    /// How many stand.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none stands.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The order of what is known of a key, standing or not.
    #[must_use]
    pub fn order(&self, key: &Key) -> Option<Order> {
        let standing = self.standing(key).map(|bytes| {
            let Head { incarnation, revision, .. } = head(bytes);
            Order { incarnation, revision }
        });
        standing.or_else(|| self.gone.get(key).map(|gone| gone.order))
    }

    fn standing(&self, key: &Key) -> Option<&[u8]> {
        let all = self.hosts.get(&key.host)?.all();
        all.iter().find(|bytes| is_of(bytes, &key.cluster)).map(|bytes| &bytes[..])
    }

    fn put(&mut self, host: &HostPattern, bytes: Box<[u8]>) {
        self.count += 1;
        let stand = match self.hosts.remove(host) {
            None => Stand::One(bytes),
            Some(Stand::One(other)) => Stand::Many(vec![other, bytes]),
            Some(Stand::Many(mut all)) => {
                all.push(bytes);
                Stand::Many(all)
            }
        };
        self.hosts.insert(host.clone(), stand);
    }

    /// What stands of a key stands no longer.
    fn lift(&mut self, key: &Key) {
        self.limited.remove(key);
        let Some(stand) = self.hosts.remove(&key.host) else { return };
        let mut all = match stand {
            Stand::One(bytes) => vec![bytes],
            Stand::Many(all) => all,
        };
        let before = all.len();
        all.retain(|bytes| !is_of(bytes, &key.cluster));
        self.count -= before - all.len();
        match (all.len(), all.pop()) {
            (1, Some(only)) => _ = self.hosts.insert(key.host.clone(), Stand::One(only)),
            (_, Some(last)) => {
                all.push(last);
                self.hosts.insert(key.host.clone(), Stand::Many(all));
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
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::accepted::Accepted;
    use crate::services::{Balance, ServiceTimeouts};
    use crate::slice::{Offer, Port, Tls};

    fn slice(cluster: usize, host: usize, revision: u64, stands: bool, staleness: Staleness) -> Slice {
        let port = Port {
            number: 3306,
            bare: true,
            tls: Tls::Mutual,
            alpn: Vec::new(),
            sources: Vec::new(),
            balance: Balance::default(),
            max_connections: None,
            send_proxy: false,
            endpoints: Vec::new(),
            ready: Vec::new(),
            timeouts: ServiceTimeouts::default(),
            exported: false,
        };
        let offer = Offer {
            network: format!("n{revision}"),
            aliases: Vec::new(),
            ports: vec![port],
            gateways: Vec::new(),
            staleness,
            merge: false,
            exposed_on: Vec::new(),
            gateway_ranges: Default::default(),
        };
        let host = HostPattern::parse(["a.x", "*.x", "b.x"][host]).unwrap();
        let key = Key { cluster: ["east", "west", "south"][cluster].parse().unwrap(), host };
        Slice { key, order: Order { incarnation: 1, revision }, offer: stands.then_some(offer) }
    }

    #[derive(Clone, Debug)]
    enum Event {
        Take(Slice),
        Leave(Key),
    }

    fn event() -> impl Strategy<Value = Event> {
        let rules = [Staleness::Keep, Staleness::ExpireAfter(Duration::from_secs(9))];
        let slices = (0..3_usize, 0..3_usize, 1..5_u64, any::<bool>(), 0..2_usize);
        (slices, any::<u8>()).prop_map(move |((cluster, host, revision, stands, rule), kind)| {
            let slice = slice(cluster, host, revision, stands, rules[rule]);
            if kind % 5 == 0 { Event::Leave(slice.key) } else { Event::Take(slice) }
        })
    }

    fn sorted(slices: impl Iterator<Item = Slice>) -> Vec<Slice> {
        let mut all: Vec<_> = slices.collect();
        all.sort_by(|one, other| one.key.cmp(&other.key));
        all
    }

    proptest! {
        /// `Accepted` keeps them as they were read: both must believe the same, whatever happens.
        #[test]
        fn it_holds_what_is_accepted(events in proptest::collection::vec(event(), 0..60)) {
            let (mut held, mut model) = (Held::default(), Accepted::default());
            for event in events {
                match event {
                    Event::Take(slice) => {
                        let taken = held.take(&slice, &slice.encode());
                        prop_assert_eq!(taken, model.take(slice).map(|_| ()));
                    }
                    Event::Leave(key) => {
                        held.leave(&key);
                        model.leave(&key);
                    }
                }
                let hosts: Vec<_> = held.hosts().cloned().collect();
                let standing = sorted(hosts.iter().flat_map(|host| held.of_host(host)));
                prop_assert_eq!(held.len(), standing.len());
                prop_assert_eq!(&standing, &sorted(model.iter().map(|slice| (**slice).clone())));
                let limited: BTreeSet<_> = held.limited().map(|(key, _)| key.clone()).collect();
                let expected = standing.iter().filter(|slice| slice.has_expired(Duration::from_secs(9)));
                prop_assert_eq!(limited, expected.map(|slice| slice.key.clone()).collect());
                for slice in &standing {
                    prop_assert_eq!(held.order(&slice.key), model.order(&slice.key));
                    prop_assert_eq!(held.get(&slice.key), Some(slice.clone()));
                    let told = held.versions().remove(&slice.key.to_string());
                    prop_assert_eq!(told, Some(version(&slice.encode())));
                }
            }
        }
    }
}
