//! The sockets of questions that other servers are asked: what comes from one of them has gone in a circle.

use std::collections::HashSet;
use std::net::SocketAddr;

use parking_lot::Mutex;

/// Addresses of open sockets.
#[derive(Debug, Default)]
pub(super) struct OwnSockets(Mutex<HashSet<SocketAddr>>);

/// An address, known until this is dropped.
pub(super) struct Known<'a> {
    sockets: &'a OwnSockets,
    address: SocketAddr,
}

impl OwnSockets {
    pub(super) fn add(&self, address: SocketAddr) -> Known<'_> {
        let address = canonical(address);
        self.0.lock().insert(address);
        Known { sockets: self, address }
    }

    pub(super) fn contain(&self, address: SocketAddr) -> bool {
        self.0.lock().contains(&canonical(address))
    }
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        self.sockets.0.lock().remove(&self.address);
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
