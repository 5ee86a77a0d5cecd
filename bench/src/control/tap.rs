//! Relays between a gateway and its agent and counts the bytes on the wire, TLS included.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

const BUFFER: usize = 64 * 1024;

/// A relay that counts the bytes of both directions. It runs until this program exits.
#[derive(Clone, Debug)]
pub(super) struct Tap {
    pub(super) address: SocketAddr,
    passed: Arc<AtomicU64>,
}

impl Tap {
    /// Starts a relay to `to`.
    pub(super) fn before(to: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let tap = Self { address: listener.local_addr()?, passed: Arc::default() };
        let passed = Arc::clone(&tap.passed);
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                // If the agent is unreachable the client is closed and reconnects.
                let Ok(far) = TcpStream::connect(to) else { continue };
                _ = join(near, far, &passed);
            }
        });
        Ok(tap)
    }

    /// Number of bytes so far.
    pub(super) fn passed(&self) -> u64 {
        self.passed.load(Relaxed)
    }
}

fn join(near: TcpStream, far: TcpStream, passed: &Arc<AtomicU64>) -> io::Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        let passed = Arc::clone(passed);
        thread::spawn(move || pump(from, to, &passed));
    }
    Ok(())
}

fn pump(mut from: TcpStream, mut to: TcpStream, passed: &AtomicU64) {
    let mut buffer = vec![0; BUFFER];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        passed.fetch_add(length as u64, Relaxed);
        if to.write_all(buffer.get(..length).unwrap_or_default()).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tap_forwards_and_counts_every_byte() {
        let there = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let tap = Tap::before(there.local_addr().unwrap()).unwrap();
        let mut near = TcpStream::connect(tap.address).unwrap();
        let (mut far, _) = there.accept().unwrap();
        near.write_all(b"four").unwrap();
        let mut received = [0; 4];
        far.read_exact(&mut received).unwrap();
        far.write_all(b"sixteen").unwrap();
        drop(far);
        let mut answer = String::new();
        near.read_to_string(&mut answer).unwrap();
        assert_eq!((&received, answer.as_str(), tap.passed()), (b"four", "sixteen", 11));
    }
}
