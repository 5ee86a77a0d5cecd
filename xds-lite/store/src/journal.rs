//! Reads the journal in which older versions persisted slices, to import it once. A torn or damaged record does not end
//! the reading: the next record is found by its checksum. Journals are never written.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use crate::persistence::Adopted;
use crate::record::{LARGEST_VALUE, LONGEST_KEY};

const SUM: usize = 8;
const LENGTHS: usize = 4 + 4 + 1;

/// Reads a journal.
#[must_use]
pub fn journal(bytes: &[u8]) -> Adopted {
    let mut entries = BTreeMap::new();
    let mut rest = bytes;
    let mut skipped = 0_usize;
    while !rest.is_empty() {
        let Some((key, value, after)) = record(rest) else {
            skipped += 1;
            rest = rest.get(1..).unwrap_or_default();
            continue;
        };
        match value {
            Some(value) => entries.insert(key, value),
            None => entries.remove(&key),
        };
        rest = after;
    }
    let damage = (skipped > 0).then(|| format!("{skipped} bytes of it are torn or damaged"));
    Adopted { records: entries.into_iter().collect(), damage }
}

type Entry<'a> = (String, Option<Vec<u8>>, &'a [u8]);

/// The first record, if intact, and the rest. A record is the lengths of key and value, whether there is a value, key
/// and value, and a checksum over all of it.
fn record(bytes: &[u8]) -> Option<Entry<'_>> {
    let (key_length, rest) = bytes.split_first_chunk::<4>()?;
    let (value_length, rest) = rest.split_first_chunk::<4>()?;
    let (is_set, rest) = rest.split_first()?;
    let key_length = u32::from_le_bytes(*key_length) as usize;
    let value_length = u32::from_le_bytes(*value_length) as usize;
    if !(1..=LONGEST_KEY).contains(&key_length) || value_length > LARGEST_VALUE || *is_set > 1 {
        return None;
    }
    let (key, rest) = rest.split_at_checked(key_length)?;
    let (value, rest) = rest.split_at_checked(value_length)?;
    let (sum, after) = rest.split_at_checked(SUM)?;
    let covered = bytes.get(..LENGTHS + key_length + value_length)?;
    if !Sha256::digest(covered).starts_with(sum) {
        return None;
    }
    let key = String::from_utf8(key.to_vec()).ok()?;
    Some((key, (*is_set == 1).then(|| value.to_vec()), after))
}
