//! Salvages records from a database file that SQLite no longer accepts: every page with records is read by itself, and
//! every record with a valid checksum counts. SQLite overwrites deleted content (`secure_delete`), so no removed record
//! returns. The file is only read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use crate::record::{self, CHECKSUM, LARGEST_VALUE, LONGEST_KEY};
use crate::store::UNNAMED;

/// The page size, with no reserved bytes.
pub(crate) const PAGE: usize = 4096;
/// The most pages read: 2 GiB.
const MOST_PAGES: u64 = 1 << 19;
/// The most pages of one record.
const MOST_LINKS: usize = (LARGEST_VALUE + LONGEST_KEY + CHECKSUM) / (PAGE - 4) + 2;

/// The result of salvaging a file.
#[derive(Debug, Default)]
pub(crate) struct Salvaged {
    /// The intact records.
    pub(crate) records: BTreeMap<String, Vec<u8>>,
    /// Keys found without an intact record.
    pub(crate) named: BTreeSet<String>,
}

/// Reads every readable record, and skips the others.
pub(crate) fn salvage(file: &File) -> io::Result<Salvaged> {
    let pages = (file.metadata()?.len().div_ceil(PAGE as u64)).min(MOST_PAGES);
    let mut found = Salvaged::default();
    // The first page has the schema, no records.
    for number in 1..pages {
        let Some(page) = page(file, number) else { continue };
        match page.first() {
            Some(0x0d) => rows(file, &page, &mut found),
            Some(kind @ (0x02 | 0x0a)) => keys(&page, *kind == 0x02, &mut found.named),
            _ => {}
        }
    }
    Ok(found)
}

/// A page; the last one of a truncated file is padded with zeros.
fn page(file: &File, number: u64) -> Option<Vec<u8>> {
    let mut page = vec![0; PAGE];
    let mut length = 0;
    while let Some(rest) = page.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, number * PAGE as u64 + length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    (length > 0).then_some(page)
}

/// The cells of a page.
fn cells(page: &[u8], header: usize) -> impl Iterator<Item = &[u8]> {
    // The count may be damaged: each cell is checked by itself.
    let pointers = page.get(header..).unwrap_or_default().chunks_exact(2);
    let count =
        page.get(3..5).map_or(0, |bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)));
    let places = pointers
        .take(count)
        .filter_map(|pointer| Some(usize::from(u16::from_be_bytes(*pointer.first_chunk()?))));
    places.filter_map(|place| page.get(place..))
}

/// Reads the records of a leaf page of the table.
fn rows(file: &File, page: &[u8], found: &mut Salvaged) {
    for cell in cells(page, 8) {
        let Some((key, value, sum)) = row(file, cell) else { continue };
        match record::checked(&key, &value, &sum) {
            Some((key, value)) => _ = found.records.insert(key, value),
            None => found.named.extend(name(&key)),
        }
    }
}

/// Reads the keys of a page of the index.
fn keys(page: &[u8], is_inner: bool, named: &mut BTreeSet<String>) {
    for cell in cells(page, if is_inner { 12 } else { 8 }) {
        let key = || {
            let cell = cell.get(if is_inner { 4 } else { 0 }..)?;
            let (_, payload) = varint(cell)?;
            let (types, body) = columns(payload)?;
            name(body.get(..*types.first()?)?)
        };
        named.extend(key());
    }
}

/// A key from a damaged page, if it looks like one.
pub(crate) fn name(key: &[u8]) -> Option<String> {
    let key = str::from_utf8(key).ok()?;
    let is_key = key.len() <= LONGEST_KEY && key.contains('/') && !key.contains(char::is_control);
    (is_key || key == UNNAMED).then(|| key.to_owned())
}

/// The columns of a cell of the table.
fn row(file: &File, cell: &[u8]) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let (length, rest) = varint(cell)?;
    let (_rowid, rest) = varint(rest)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= MOST_LINKS * PAGE)?;
    let payload = payload(file, length, rest)?;
    let (types, body) = columns(&payload)?;
    let [key, value, sum] = types.as_slice() else { return None };
    let (key, rest) = body.split_at_checked(*key)?;
    let (value, rest) = rest.split_at_checked(*value)?;
    Some((key.to_vec(), value.to_vec(), rest.get(..*sum)?.to_vec()))
}

/// The bytes of a row: some in the cell, and the rest in a chain of pages.
fn payload(file: &File, length: usize, rest: &[u8]) -> Option<Vec<u8>> {
    const MOST_LOCAL: usize = PAGE - 35;
    const LEAST_LOCAL: usize = (PAGE - 12) * 32 / 255 - 23;
    if length <= MOST_LOCAL {
        return rest.get(..length).map(<[u8]>::to_vec);
    }
    let split = LEAST_LOCAL + (length - LEAST_LOCAL) % (PAGE - 4);
    let local = if split <= MOST_LOCAL { split } else { LEAST_LOCAL };
    let (here, link) = rest.split_at_checked(local)?;
    let mut bytes = here.to_vec();
    let mut next = u32::from_be_bytes(*link.first_chunk()?);
    for _ in 0..MOST_LINKS {
        let missing = length - bytes.len();
        if missing == 0 {
            break;
        }
        let page = page(file, u64::from(next).checked_sub(1)?)?;
        let (link, content) = page.split_first_chunk::<4>()?;
        bytes.extend(content.iter().take(missing));
        next = u32::from_be_bytes(*link);
    }
    (bytes.len() == length).then_some(bytes)
}

/// The lengths of the columns of a row, and their bytes. All are texts or blobs, except the last one of an index.
fn columns(payload: &[u8]) -> Option<(Vec<usize>, &[u8])> {
    let (header, rest) = varint(payload)?;
    let header = usize::try_from(header).ok()?;
    let body = payload.get(header..)?;
    let mut types = rest.get(..header.checked_sub(payload.len() - rest.len())?)?;
    let mut lengths = Vec::new();
    while !types.is_empty() && lengths.len() < 4 {
        let (kind, after) = varint(types)?;
        types = after;
        match kind {
            12.. => lengths.push(usize::try_from((kind - 12) / 2).ok()?),
            _ => break,
        }
    }
    Some((lengths, body))
}

/// Reads an integer of SQLite: seven bits a byte, highest first.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(8) {
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, bytes.get(index + 1..)?));
        }
    }
    // A ninth byte would have eight bits; no value here is that large.
    None
}
