//! Verifies before a measurement that a system passes all bytes through unchanged, in both directions.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use crate::hello::Job;
use crate::load::Target;

/// More than all socket buffers and pipes on the path hold, so that every refill is exercised.
const BYTES: usize = 24 << 20;
const CHUNK: usize = 64 * 1024;

/// Sends noise, expects the same noise back, then closes its direction and expects the other one to close.
/// Nothing is in flight at that moment: by default nginx closes both directions at the first FIN, which is
/// not under test here.
///
/// # Errors
/// On the first wrong, missing or extra byte, or a broken connection.
pub(crate) fn passes_bytes_through(target: &Target) -> io::Result<()> {
    let stream = target.open(Job::Verify)?.into_socket();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send(&stream));
        let received = receive(&stream);
        if received.is_err() {
            // Keeps the sender from waiting for its timeout.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let sent = sender.join().map_err(|_| io::Error::other("the sender panicked"))?;
        received.and(sent)?;
        expect_end(&stream)
    })
}

/// Sends noise through TLS that ends or begins in a system, and expects the same noise back. How the system ends TLS is
/// not under test here.
///
/// # Errors
/// On the first wrong or missing byte, a broken connection, or a certificate that is not the service's.
pub(crate) fn carries(target: &Target) -> io::Result<()> {
    let mut wire = target.open(Job::Verify)?;
    let (mut noise, mut sent, mut received) = (Noise::default(), vec![0; CHUNK], vec![0; CHUNK]);
    for at in (0..BYTES).step_by(CHUNK) {
        noise.fill(&mut sent);
        wire.write_all(&sent)?;
        wire.read_exact(&mut received).map_err(|error| wrong(at, &error.to_string()))?;
        if received != sent {
            return Err(wrong(at, "wrong bytes came back"));
        }
    }
    wire.end();
    Ok(())
}

/// Expects a client without a certificate to be refused.
///
/// # Errors
/// If it is served.
pub(crate) fn refuses_strangers(target: &Target) -> io::Result<()> {
    match target.open(Job::Once) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "a client without a certificate is served")),
        Err(_) => Ok(()),
    }
}

fn send(mut stream: &TcpStream) -> io::Result<()> {
    let (mut noise, mut chunk) = (Noise::default(), vec![0; CHUNK]);
    for _ in 0..BYTES / CHUNK {
        noise.fill(&mut chunk);
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn receive(mut stream: &TcpStream) -> io::Result<()> {
    let (mut noise, mut expected, mut chunk) = (Noise::default(), vec![0; CHUNK], vec![0; CHUNK]);
    for at in (0..BYTES).step_by(CHUNK) {
        noise.fill(&mut expected);
        stream.read_exact(&mut chunk).map_err(|error| wrong(at, &error.to_string()))?;
        if chunk != expected {
            return Err(wrong(at, "wrong bytes came back"));
        }
    }
    Ok(())
}

fn expect_end(mut stream: &TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    if stream.read(&mut [0])? == 0 { Ok(()) } else { Err(wrong(BYTES, "received more than was sent")) }
}

fn wrong(at: usize, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} within {CHUNK} bytes after byte {at}"))
}

/// Bytes without a pattern that could survive a swap or a repetition.
struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            // xorshift64
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(self.0.to_le_bytes().get(..word.len()).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};
    use std::sync::Arc;

    use super::*;
    use crate::backend::Backend;
    use crate::hello::Hello;

    /// A proxy for one connection that alters the bytes from the backend.
    fn proxy(backend: SocketAddr, spoil: fn(usize, &mut Vec<u8>)) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (client, _) = listener.accept().unwrap();
            let server = TcpStream::connect(backend).unwrap();
            let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = io::copy(&mut &from, &mut &to);
                let _ = to.shutdown(Shutdown::Write);
            });
            let (mut at, mut buffer) = (0, vec![0; CHUNK]);
            while let Ok(length @ 1..) = (&server).read(&mut buffer) {
                let mut bytes = buffer[..length].to_vec();
                spoil(at, &mut bytes);
                at += length;
                if (&client).write_all(&bytes).is_err() {
                    return;
                }
            }
            let _ = client.shutdown(Shutdown::Both);
        });
        address
    }

    fn verdict(spoil: fn(usize, &mut Vec<u8>)) -> Result<(), String> {
        let hello = Arc::new(Hello::new().unwrap());
        let backend = Backend::start(Arc::clone(&hello), Ipv4Addr::LOCALHOST.into()).unwrap();
        let target = Target::plain(proxy(backend.address, spoil), &hello);
        passes_bytes_through(&target).map_err(|error| error.to_string())
    }

    #[test]
    fn check_passes_for_transparent_proxy() {
        verdict(|_, _| {}).unwrap();
    }

    #[test]
    fn check_detects_one_changed_byte() {
        let verdict = verdict(|at, bytes| {
            if let Some(place) = (9_000_000_usize).checked_sub(at).and_then(|place| bytes.get_mut(place)) {
                *place ^= 1;
            }
        });
        assert!(verdict.unwrap_err().contains("wrong bytes"));
    }

    #[test]
    fn check_detects_dropped_or_added_bytes() {
        let dropped = verdict(|at, bytes| {
            if at > 1_000_000 {
                bytes.pop();
            }
        });
        assert!(dropped.is_err());
        let added = verdict(|at, bytes| {
            // The answer to the hello comes first, and is not altered.
            if at + bytes.len() == BYTES + 1 {
                bytes.push(0);
            }
        });
        assert!(added.unwrap_err().contains("received more"));
    }
}
