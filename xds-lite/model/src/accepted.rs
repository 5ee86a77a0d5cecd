//! The slices that one side has accepted, and in which order: a later one replaces an earlier one, and nothing
//! older ever comes back, whoever replays it. Pure. Not whether the sender may speak for the owner.

use std::collections::HashMap;
use std::sync::Arc;

use crate::slice::{Key, Order, Slice};

/// Accepted slices, by key.
#[derive(Debug, Default)]
pub struct Accepted {
    known: HashMap<Key, Known>,
}

#[derive(Debug)]
struct Known {
    order: Order,
    /// None once it is withdrawn, or no longer given to this side.
    slice: Option<Arc<Slice>>,
    /// By its owner.
    is_withdrawn: bool,
}

/// A slice that is older than what is known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is of revision {}.{}, but {}.{} is known; an old slice never replaces a newer one", found.incarnation, found.revision, known.incarnation, known.revision)]
pub struct Older {
    key: Key,
    found: Order,
    known: Order,
}

impl Older {
    pub(crate) fn new(key: Key, found: Order, known: Order) -> Older {
        Older { key, found, known }
    }
}

impl Accepted {
    /// Takes a slice. Says whether it changes anything.
    ///
    /// # Errors
    /// It is older than what is known.
    pub fn take(&mut self, slice: Slice) -> Result<bool, Older> {
        let (key, order) = (slice.key.clone(), slice.order);
        let is_withdrawn = slice.offer.is_none();
        let offer = (!is_withdrawn).then(|| Arc::new(slice));
        match self.known.get_mut(&key) {
            Some(known) if order < known.order => Err(Older::new(key, order, known.order)),
            Some(known) => {
                let changes = known.slice != offer;
                *known = Known { order, slice: offer, is_withdrawn };
                Ok(changes)
            }
            None => {
                let changes = offer.is_some();
                self.known.insert(key, Known { order, slice: offer, is_withdrawn });
                Ok(changes)
            }
        }
    }

    /// A slice is no longer given to this side, though its owner may still have it. Says whether there was one.
    pub fn leave(&mut self, key: &Key) -> bool {
        self.known.get_mut(key).is_some_and(|known| {
            known.is_withdrawn = false;
            known.slice.take().is_some()
        })
    }

    /// What is to be known after a restart: what stands, and what its owner has withdrawn.
    pub fn persistent(&self) -> impl Iterator<Item = &Key> {
        let known = self.known.iter().filter(|(_, known)| known.slice.is_some() || known.is_withdrawn);
        known.map(|(key, _)| key)
    }

    /// The slice of a key as it is to be known after a restart.
    #[must_use]
    pub fn to_persist(&self, key: &Key) -> Option<Slice> {
        let known = self.known.get(key)?;
        let withdrawn = || Slice { key: key.clone(), order: known.order, offer: None };
        known.slice.as_deref().cloned().or_else(|| known.is_withdrawn.then(withdrawn))
    }

    /// Forgets what is known of a key that does not stand: an old slice of it could come back.
    pub fn forget(&mut self, key: &Key) {
        if self.get(key).is_none() {
            self.known.remove(key);
        }
    }

    /// What stands, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Slice>> {
        self.known.values().filter_map(|known| known.slice.as_ref())
    }

    /// The slice of a key, if one stands.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<Slice>> {
        self.known.get(key)?.slice.as_ref()
    }

    /// The order of what is known of a key, standing or not.
    #[must_use]
    pub fn order(&self, key: &Key) -> Option<Order> {
        self.known.get(key).map(|known| known.order)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::HostPattern;
    use crate::services::{Balance, ServiceTimeouts};
    use crate::slice::{Offer, Port, Staleness, Tls};

    fn key() -> Key {
        Key { cluster: "east".parse().unwrap(), host: HostPattern::parse("db.pxc").unwrap() }
    }

    fn offer(network: &str) -> Offer {
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
        Offer {
            network: network.to_owned(),
            aliases: Vec::new(),
            ports: vec![port],
            gateways: Vec::new(),
            staleness: Staleness::Keep,
            merge: false,
            exposed_on: Vec::new(),
            gateway_ranges: Default::default(),
        }
    }

    fn slice(incarnation: u64, revision: u64, offer: Option<Offer>) -> Slice {
        Slice { key: key(), order: Order { incarnation, revision }, offer }
    }

    #[test]
    fn a_withdrawn_slice_stays_withdrawn_until_a_later_one() {
        let mut accepted = Accepted::default();
        assert_eq!(accepted.take(slice(1, 1, Some(offer("a")))), Ok(true));
        assert_eq!(accepted.take(slice(1, 1, Some(offer("a")))), Ok(false), "the same again");
        assert_eq!(accepted.take(slice(1, 2, None)), Ok(true));
        let replay = accepted.take(slice(1, 1, Some(offer("a")))).unwrap_err();
        assert!(replay.to_string().contains("east/db.pxc is of revision 1.1, but 1.2 is known"), "{replay}");
        assert!(accepted.get(&key()).is_none());
        assert_eq!(
            accepted.take(slice(2, 1, Some(offer("b")))),
            Ok(true),
            "a new incarnation of the registry"
        );
        assert!(accepted.take(slice(1, 9, None)).is_err());
        assert!(accepted.leave(&key()) && !accepted.leave(&key()));
        assert!(accepted.take(slice(1, 9, Some(offer("a")))).is_err(), "what left is not forgotten");
        assert_eq!(accepted.take(slice(2, 1, Some(offer("b")))), Ok(true), "given again");
    }

    proptest! {
        #[test]
        fn in_any_order_with_any_replays_the_last_word_stands(
            words in proptest::collection::vec((1..3_u64, 1..4_u64), 1..40)
        ) {
            // An owner says one thing under one order; every second one is that the slice is no more.
            let said = |(incarnation, revision): (u64, u64)| {
                let stands = (incarnation + revision) % 2 == 0;
                slice(incarnation, revision, stands.then(|| offer(&format!("n{incarnation}-{revision}"))))
            };
            let mut accepted = Accepted::default();
            for word in &words {
                let _ = accepted.take(said(*word));
            }
            let last = said(*words.iter().max().unwrap());
            prop_assert_eq!(accepted.order(&key()), Some(last.order));
            let stands = last.offer.is_some().then_some(last);
            prop_assert_eq!(accepted.get(&key()).map(|slice| (**slice).clone()), stands);
        }
    }
}
