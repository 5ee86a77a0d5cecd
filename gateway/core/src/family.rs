//! Tracks address families without a route on this machine, such as disabled IPv6: learned from connects that failed
//! for lack of a route or an address, forgotten after a while or with the first successful connect. It does not affect
//! the health of endpoints.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::socket::Millis;

/// How long a family counts as off; then the next connection tries it.
const OFF_MS: Millis = 10_000;

/// The state of both families in this process.
#[derive(Debug, Default)]
pub struct Families {
    v4: AtomicU64,
    v6: AtomicU64,
}

/// The families that are off at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Off {
    v4: bool,
    v6: bool,
}

impl Off {
    /// No family is off.
    pub const NONE: Off = Off { v4: false, v6: false };

    /// Whether an address belongs to a family that is off.
    #[must_use]
    pub fn has(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

impl Families {
    /// Returns the families that are off now.
    #[must_use]
    pub fn off(&self, now: Millis) -> Off {
        let is_off = |until: &AtomicU64| until.load(Relaxed) > now;
        Off { v4: is_off(&self.v4), v6: is_off(&self.v6) }
    }

    /// Records a missing route to an address; true if its family was not known to be off.
    pub(crate) fn failed(&self, address: IpAddr, now: Millis) -> bool {
        let was_off = self.off(now).has(address);
        self.off_until(address).store(now.saturating_add(OFF_MS), Relaxed);
        !was_off
    }

    /// Records a successful connection to an address.
    pub(crate) fn works(&self, address: IpAddr) {
        let until = self.off_until(address);
        if until.load(Relaxed) != 0 {
            until.store(0, Relaxed);
        }
    }

    fn off_until(&self, address: IpAddr) -> &AtomicU64 {
        if address.is_ipv4() { &self.v4 } else { &self.v6 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn family_is_off_for_a_while_or_until_a_connect_succeeds() {
        let families = Families::default();
        let (four, six) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]));
        assert_eq!(families.off(0), Off::default());
        assert!(families.failed(six, 5) && !families.failed(six, 6));
        assert!(families.off(7).has(six) && !families.off(7).has(four));
        assert!(!families.off(6 + OFF_MS).has(six));
        assert!(families.failed(four, 7));
        families.works(four);
        assert!(!families.off(8).has(four));
    }
}
