//! Places for what a client does at once: so many in all, and so many for each client.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Places. An IPv6 client is its `/64`: it can have any address in it.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    each: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    by: HashMap<IpAddr, usize>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    client: IpAddr,
}

impl Places {
    pub(super) fn new(most: usize, each: usize) -> Arc<Places> {
        Arc::new(Places { most, each, used: Mutex::default() })
    }

    pub(super) fn used(&self) -> usize {
        self.used.lock().all
    }

    /// A place for a client; `None`: all are taken, or its own.
    pub(super) fn admit(self: &Arc<Self>, client: IpAddr) -> Option<Place> {
        let client = network(client);
        let mut used = self.used.lock();
        let own = used.by.get(&client).copied().unwrap_or_default();
        if used.all >= self.most || own >= self.each {
            return None;
        }
        used.all += 1;
        used.by.insert(client, own + 1);
        Some(Place { places: Arc::clone(self), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut used = self.places.used.lock();
        used.all = used.all.saturating_sub(1);
        let own = used.by.get(&self.client).copied().unwrap_or_default();
        match own.saturating_sub(1) {
            0 => _ = used.by.remove(&self.client),
            left => _ = used.by.insert(self.client, left),
        }
    }
}

fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & (u128::MAX << 64)).into(),
        ip @ IpAddr::V4(_) => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_places_are_limited_in_all_and_for_each_client_and_given_back() {
        let places = Places::new(3, 2);
        let admit = |client: &str| places.admit(client.parse().unwrap());
        let taken = [admit("10.0.0.1"), admit("::ffff:10.0.0.1")];
        assert!(taken.iter().all(Option::is_some));
        assert!(admit("10.0.0.1").is_none(), "its own are taken");
        let other = admit("2001:db8::1");
        assert!(other.is_some() && admit("10.0.0.3").is_none(), "all are taken");
        drop(taken);
        let same_network = admit("2001:db8::2");
        assert!(same_network.is_some() && admit("2001:db8::3").is_none(), "one network is one client");
        assert_eq!(places.used(), 2);
        drop((other, same_network));
        assert_eq!((places.used(), places.used.lock().by.len()), (0, 0));
    }
}
