//! Keeps one state for each gateway address of another cluster, shared by the endpoints of all services behind it: to
//! take an address out of use changes no tables. What `matrix` has found stands beside them.

mod found;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use isthmus_health::matrix::Place;

pub use found::{Found, RESULTS, Rows};

/// The state of one gateway address.
#[derive(Debug, Default)]
pub struct GatewayState {
    is_down: AtomicBool,
}

impl GatewayState {
    /// Whether new connections avoid it.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.is_down.load(Relaxed)
    }
}

/// The gateway addresses that endpoints have.
#[derive(Debug, Default)]
pub struct Gateways(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    states: BTreeMap<Place, Weak<GatewayState>>,
    down: BTreeSet<Place>,
}

impl Gateways {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state of an address.
    pub(crate) fn state(&self, place: Place) -> Arc<GatewayState> {
        let mut known = self.known();
        if let Some(state) = known.states.get(&place).and_then(Weak::upgrade) {
            return state;
        }
        let state = Arc::new(GatewayState { is_down: AtomicBool::new(known.down.contains(&place)) });
        known.states.insert(place, Arc::downgrade(&state));
        state
    }

    /// Returns the addresses that endpoints have, in order.
    pub(crate) fn places(&self) -> Vec<Place> {
        let mut known = self.known();
        known.states.retain(|_, state| state.strong_count() > 0);
        known.states.keys().cloned().collect()
    }

    /// Sets the addresses that new connections avoid.
    pub(crate) fn set_down(&self, down: BTreeSet<Place>) {
        let mut known = self.known();
        for (place, state) in &known.states {
            if let Some(state) = state.upgrade() {
                state.is_down.store(down.contains(place), Relaxed);
            }
        }
        known.down = down;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(number: u8) -> Place {
        let address = format!("10.0.0.{number}:15443");
        Place {
            cluster: "east".parse().unwrap(),
            gateway: address.parse().unwrap(),
            address: address.parse().unwrap(),
        }
    }

    #[test]
    fn gateway_state_is_shared_and_known_while_an_endpoint_has_it() {
        let gateways = Gateways::default();
        let (one, same) = (gateways.state(place(1)), gateways.state(place(1)));
        assert!(Arc::ptr_eq(&one, &same));
        gateways.set_down(BTreeSet::from([place(1), place(2)]));
        assert!(one.is_down());
        assert!(gateways.state(place(2)).is_down(), "a new endpoint of an address that is down");
        assert_eq!(gateways.places(), [place(1)]);
        gateways.set_down(BTreeSet::new());
        assert!(!same.is_down());
        drop((one, same));
        assert_eq!(gateways.places(), []);
    }
}
