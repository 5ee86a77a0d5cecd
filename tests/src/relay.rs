//! A TCP relay that delays what passes, as a distance does, and can be cut and mended at one address.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::endpoint::{Endpoint, Scripted};

/// A relay to one address, until dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    way: Arc<Way>,
    accepting: Option<Scripted>,
}

#[derive(Debug)]
struct Way {
    to: SocketAddr,
    /// In each direction, in microseconds.
    delay: AtomicU64,
    live: Mutex<Vec<TcpStream>>,
}

impl Relay {
    /// A relay with this round trip.
    #[must_use]
    pub fn new(to: SocketAddr, round_trip: Duration) -> Relay {
        let way = Arc::new(Way { to, delay: AtomicU64::new(0), live: Mutex::default() });
        let address = Endpoint::new().address();
        let mut relay = Relay { address, way, accepting: None };
        relay.set_round_trip(round_trip);
        relay.mend();
        relay
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the round trip of what passes from now on.
    pub fn set_round_trip(&self, round_trip: Duration) {
        self.way.delay.store(u64::try_from(round_trip.as_micros()).unwrap() / 2, SeqCst);
    }

    /// Refuses connections from now on, and closes the open ones.
    pub fn cut(&mut self) {
        self.accepting = None;
        for stream in self.way.live.lock().unwrap().drain(..) {
            let _closed_already = stream.shutdown(Shutdown::Both);
        }
    }

    /// Accepts connections again, at the same address.
    pub fn mend(&mut self) {
        let way = Arc::clone(&self.way);
        self.accepting = Some(Scripted::unread_at(Endpoint::at(self.address), move |near| {
            let _broken = way.relay(&near);
        }));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Way {
    fn relay(&self, near: &TcpStream) -> io::Result<()> {
        let far = TcpStream::connect(self.to)?;
        self.live.lock().unwrap().extend([near.try_clone()?, far.try_clone()?]);
        thread::scope(|scope| {
            scope.spawn(|| self.pass(near, &far));
            scope.spawn(|| self.pass(&far, near));
        });
        Ok(())
    }

    /// Passes each piece on after the delay.
    fn pass(&self, mut from: &TcpStream, mut into: &TcpStream) {
        let mut piece = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            thread::sleep(Duration::from_micros(self.delay.load(SeqCst)));
            if into.write_all(&piece[..length]).is_err() {
                break;
            }
        }
        thread::sleep(Duration::from_micros(self.delay.load(SeqCst)));
        let _closed_already = into.shutdown(Shutdown::Write);
    }
}
