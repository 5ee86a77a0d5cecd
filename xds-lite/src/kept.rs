//! What survives a restart: texts with their bytes, in one file that grows by each change and is written anew
//! when most of it is old. A change that was cut off by a crash counts as not made; so does all after it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// A file is written anew when it is larger than this and twice what it would be.
const SPARE: usize = 1 << 20;
const SUM: usize = 8;

/// Entries, each as large as a message at most, and the file that they stand in.
#[derive(Debug)]
pub struct Kept {
    journal: Journal,
    entries: BTreeMap<String, Vec<u8>>,
}

/// The file alone, for who has the entries in a form of his own.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of the file, and of what it would be without what is old.
    length: usize,
    needed: usize,
}

impl Kept {
    /// Opens the file, or begins it. Its folder is made if there is none.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn open(path: &Path) -> io::Result<Kept> {
        let (journal, entries) = Journal::open(path)?;
        Ok(Kept { journal, entries })
    }

    /// What is kept, by name.
    #[must_use]
    pub fn entries(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.entries
    }

    /// Keeps bytes under a name, in place of what was there.
    ///
    /// # Errors
    /// It cannot be written; what was kept before still is.
    pub fn set(&mut self, name: &str, value: &[u8]) -> io::Result<()> {
        let old = self.entries.get(name);
        if old.is_some_and(|known| known == value) {
            return Ok(());
        }
        self.journal.set(name, value, old.map(Vec::len))?;
        self.entries.insert(name.to_owned(), value.to_vec());
        self.tidy()
    }

    /// Lets a name go.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        let Some(old) = self.entries.get(name) else { return Ok(()) };
        self.journal.remove(name, old.len())?;
        self.entries.remove(name);
        self.tidy()
    }

    fn tidy(&mut self) -> io::Result<()> {
        self.journal.tidy(self.entries.iter().map(|(name, value)| (name.as_str(), &value[..])))
    }
}

impl Journal {
    /// Opens the file, or begins it, and gives what stands in it. Its folder is made if there is none.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn open(path: &Path) -> io::Result<(Journal, BTreeMap<String, Vec<u8>>)> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        let mut entries = BTreeMap::new();
        let mut rest = &bytes[..];
        while let Some((name, value, after)) = record(rest) {
            match value {
                Some(value) => entries.insert(name, value),
                None => entries.remove(&name),
            };
            rest = after;
        }
        let mut journal = Journal {
            path: path.to_owned(),
            file: OpenOptions::new().create(true).append(true).open(path)?,
            needed: entries.iter().map(|(name, value)| size(name, value.len())).sum(),
            length: bytes.len(),
        };
        if !rest.is_empty() || journal.is_wasteful() {
            journal.write_anew(entries.iter().map(|(name, value)| (name.as_str(), &value[..])))?;
        }
        Ok((journal, entries))
    }

    /// Notes bytes under a name, in place of what had this length.
    ///
    /// # Errors
    /// It cannot be written; what was noted before still is.
    pub fn set(&mut self, name: &str, value: &[u8], old: Option<usize>) -> io::Result<()> {
        self.append(name, Some(value))?;
        self.needed += size(name, value.len());
        self.needed -= old.map_or(0, |old| size(name, old));
        Ok(())
    }

    /// Notes that a name is gone, whose bytes had this length.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn remove(&mut self, name: &str, old: usize) -> io::Result<()> {
        self.append(name, None)?;
        self.needed -= size(name, old);
        Ok(())
    }

    /// Writes the file anew if most of it is old; these are all entries.
    ///
    /// # Errors
    /// It cannot be written; what was noted before still is.
    pub fn tidy(
        &mut self,
        entries: impl Iterator<Item = (impl AsRef<str>, impl AsRef<[u8]>)>,
    ) -> io::Result<()> {
        if self.is_wasteful() { self.write_anew(entries) } else { Ok(()) }
    }

    fn append(&mut self, name: &str, value: Option<&[u8]>) -> io::Result<()> {
        let record = encode(name, value);
        self.file.write_all(&record)?;
        self.length += record.len();
        Ok(())
    }

    fn is_wasteful(&self) -> bool {
        self.length > SPARE && self.length > 2 * self.needed
    }

    /// Beside the file, and then in its place: whoever reads finds one or the other.
    fn write_anew(
        &mut self,
        entries: impl Iterator<Item = (impl AsRef<str>, impl AsRef<[u8]>)>,
    ) -> io::Result<()> {
        let beside = self.path.with_extension("new");
        let mut file = File::create(&beside)?;
        let mut length = 0;
        for (name, value) in entries {
            let record = encode(name.as_ref(), Some(value.as_ref()));
            file.write_all(&record)?;
            length += record.len();
        }
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        (self.length, self.needed) = (length, length);
        Ok(())
    }
}

fn size(name: &str, value: usize) -> usize {
    4 + 4 + 1 + name.len() + value + SUM
}

/// The lengths of both, whether there is a value, both, and a sum over all of it.
fn encode(name: &str, value: Option<&[u8]>) -> Vec<u8> {
    let bytes = value.unwrap_or_default();
    let mut record = Vec::with_capacity(size(name, bytes.len()));
    for length in [name.len(), bytes.len()] {
        record.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    }
    record.push(value.is_some().into());
    record.extend_from_slice(name.as_bytes());
    record.extend_from_slice(bytes);
    let sum = Sha256::digest(&record);
    record.extend(sum.iter().take(SUM));
    record
}

type Record<'a> = (String, Option<Vec<u8>>, &'a [u8]);

/// The first record, if it is whole, and what comes after it.
fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let (name_length, rest) = bytes.split_first_chunk::<4>()?;
    let (value_length, rest) = rest.split_first_chunk::<4>()?;
    let (is_set, rest) = rest.split_first()?;
    let name_length = u32::from_le_bytes(*name_length) as usize;
    let value_length = u32::from_le_bytes(*value_length) as usize;
    let (name, rest) = rest.split_at_checked(name_length)?;
    let (value, rest) = rest.split_at_checked(value_length)?;
    let (sum, after) = rest.split_at_checked(SUM)?;
    let covered = bytes.get(..bytes.len() - rest.len())?;
    if !Sha256::digest(covered).starts_with(sum) {
        return None;
    }
    let name = String::from_utf8(name.to_vec()).ok()?;
    Some((name, (*is_set == 1).then(|| value.to_vec()), after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_cut_off_or_damaged_counts_as_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/kept");
        let mut kept = Kept::open(&path).unwrap();
        kept.set("one", b"1").unwrap();
        kept.set("two", b"2").unwrap();
        kept.set("one", b"11").unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let names: Vec<_> = Kept::open(&path).unwrap().entries().values().cloned().collect();
            let all: [&[&[u8]]; 4] = [&[], &[b"1"], &[b"1", b"2"], &[b"11", b"2"]];
            assert!(all.iter().any(|state| names == *state), "{length}: {names:?}");
        }
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert!(Kept::open(&path).unwrap().entries().values().all(|value| value.len() <= 2));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn what_is_kept_is_there_after_a_restart(
            changes in proptest::collection::vec(("[a-c]", proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200_000))), 0..20)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("kept");
            let mut kept = Kept::open(&path).unwrap();
            let mut model = BTreeMap::new();
            for (name, value) in &changes {
                match value {
                    Some(value) => { kept.set(name, value).unwrap(); model.insert(name.clone(), value.clone()); }
                    None => { kept.remove(name).unwrap(); model.remove(name); }
                }
            }
            let needed: usize = model.iter().map(|(name, value)| size(name, value.len())).sum();
            prop_assert!(fs::read(&path).unwrap().len() <= (2 * needed).max(SPARE) + 200_100);
            let again = Kept::open(&path).unwrap();
            prop_assert_eq!(again.entries(), &model);
        }
    }
}
