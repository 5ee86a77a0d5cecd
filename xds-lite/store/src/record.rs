//! A record: a key, a value and a checksum over both, which every read verifies.

use sha2::{Digest as _, Sha256};

/// The longest key, in bytes: the kind of record and the names of a peer, a cluster and a host. A key fits into a page
/// of the index.
pub const LONGEST_KEY: usize = 900;
/// The largest value, in bytes.
pub const LARGEST_VALUE: usize = 512 << 10;
pub(crate) const CHECKSUM: usize = 16;
/// The most characters of a key that a log, a page or an error shows.
const SHOWN: usize = 120;

pub(crate) fn checksum(key: &str, value: &[u8]) -> [u8; CHECKSUM] {
    let mut hash = Sha256::new();
    hash.update((key.len() as u64).to_le_bytes());
    hash.update(key.as_bytes());
    hash.update(value);
    let digest: [u8; 32] = hash.finalize().into();
    digest.first_chunk().copied().unwrap_or_default()
}

/// A record as read, if its checksum is right.
pub(crate) fn checked(key: &[u8], value: &[u8], sum: &[u8]) -> Option<(String, Vec<u8>)> {
    let key = str::from_utf8(key).ok().filter(|key| fits(key, value))?;
    (checksum(key, value) == sum).then(|| (key.to_owned(), value.to_vec()))
}

/// Whether key and value are within their limits.
pub(crate) fn fits(key: &str, value: &[u8]) -> bool {
    (1..=LONGEST_KEY).contains(&key.len()) && value.len() <= LARGEST_VALUE
}

/// A key that is safe to print, whoever chose or damaged it.
pub(crate) fn escaped(key: &[u8]) -> String {
    let plain = String::from_utf8_lossy(key);
    let short: String = plain.chars().take(SHOWN).flat_map(char::escape_default).collect();
    if plain.chars().count() > SHOWN { short + "…" } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_with_any_flipped_bit_is_refused() {
        let (key, value) = ("own/east/db.pxc", b"value".to_vec());
        let sum = checksum(key, &value);
        assert_eq!(checked(key.as_bytes(), &value, &sum), Some((key.to_owned(), value.clone())));
        let whole = [key.as_bytes(), &value, &sum].concat();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let (key, rest) = damaged.split_at(key.len());
            let (value, sum) = rest.split_at(value.len());
            assert_eq!(checked(key, value, sum), None, "bit {bit}");
        }
        // A byte that moves from the key to the value makes another record.
        assert_ne!(checksum("ab", b"c"), checksum("a", b"bc"));
    }

    #[test]
    fn printed_key_is_plain_and_short() {
        assert_eq!(escaped(b"a\x1b[2J\xff"), r"a\u{1b}[2J\u{fffd}");
        assert!(escaped(&[b'x'; 100_000]).len() < 130);
    }
}
