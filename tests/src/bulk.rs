//! Sends and receives large amounts of pseudo-random bytes and hashes them with SHA-256.

use std::io::{self, ErrorKind, Read, Write};
use std::thread;

use sha2::{Digest, Sha256};

const BLOCK: usize = 256 * 1024;

/// Pseudo-random bytes.
#[must_use]
pub fn random(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    fastrand::fill(&mut bytes);
    bytes
}

/// Sends this many bytes; returns their hash.
pub fn send(to: &mut impl Write, size: u64) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut block = random(8 * BLOCK);
    let mut left = size;
    let mut number: u64 = 0;
    while left > 0 {
        let start = (number as usize % 8) * BLOCK;
        let part = &mut block[start..start + BLOCK.min(usize::try_from(left).unwrap_or(BLOCK))];
        // All parts differ, so that a lost, repeated or moved part changes the hash.
        if let Some(head) = part.first_chunk_mut() {
            *head = number.to_le_bytes();
        }
        hash.update(&*part);
        to.write_all(part)?;
        left -= part.len() as u64;
        number += 1;
    }
    Ok(hash.finalize().into())
}

/// Receives this many bytes; returns their hash.
pub fn receive(from: &mut impl Read, size: u64) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    let mut left = size;
    while left > 0 {
        let most = BLOCK.min(usize::try_from(left).unwrap_or(BLOCK));
        let read = from.read(&mut block[..most])?;
        if read == 0 {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("{left} bytes short")));
        }
        hash.update(&block[..read]);
        left -= read as u64;
    }
    Ok(hash.finalize().into())
}

/// Sends and receives this many bytes concurrently; returns the hashes of the sent and of the received bytes.
#[track_caller]
pub fn exchange<S: Read + Send, W: Write + Send>(from: &mut S, to: &mut W, size: u64) -> [[u8; 32]; 2] {
    thread::scope(|scope| {
        let sent = scope.spawn(|| send(to, size).unwrap());
        let received = receive(from, size).unwrap();
        [sent.join().unwrap(), received]
    })
}
