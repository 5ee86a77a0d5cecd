//! Closes the open connections of endpoints that turned unhealthy, spread over a window, where the service says so:
//! clients that are closed all at once connect again all at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::drain::Share;
use crate::endpoint::ServiceState;
use crate::health::Lost;
use crate::live::Conn;
use crate::reason::Reason;
use crate::socket::Millis;
use crate::worker::Worker;

/// The endpoints whose connections are being closed.
#[derive(Debug, Default)]
pub(super) struct Closings(HashMap<(usize, SocketAddr), Closing>);

#[derive(Debug)]
struct Closing {
    lost: Lost,
    since: Millis,
    share: Share,
}

fn key(service: &Arc<ServiceState>, address: SocketAddr) -> (usize, SocketAddr) {
    (Arc::as_ptr(service).addr(), address)
}

impl Closings {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Begins to close the connections of an endpoint.
    pub(super) fn begin(&mut self, lost: Lost, now: Millis) {
        let share = Share::new(Duration::ZERO, lost.window, Reason::EndpointUnhealthy);
        self.0.entry(key(&lost.service, lost.address)).or_insert(Closing { lost, since: now, share });
    }

    /// Asks as many connections to close as are due by now, and forgets endpoints that are healthy again or done. One
    /// visit of the live connections serves all endpoints.
    pub(super) fn step(&mut self, workers: &[Arc<Worker>], now: Millis) {
        self.0.retain(|_, closing| !closing.lost.endpoint.healthy(now));
        if self.0.is_empty() {
            return;
        }
        let mut open: HashMap<(usize, SocketAddr), Vec<Arc<Conn>>> = HashMap::new();
        for conn in workers.iter().flat_map(|worker| worker.live.all()) {
            let Some(target) = conn.target().filter(|target| target.connected.is_some()) else { continue };
            let key = key(&target.service.state, target.endpoint);
            if self.0.contains_key(&key) && !conn.is_ending() {
                open.entry(key).or_default().push(conn);
            }
        }
        self.0.retain(|key, closing| {
            let open = open.remove(key).unwrap_or_default();
            let elapsed = Duration::from_millis(now.saturating_sub(closing.since));
            closing.share.close(&open, elapsed);
            elapsed < closing.lost.window
        });
    }
}
