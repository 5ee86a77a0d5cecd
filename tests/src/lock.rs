//! Lets measuring tests run alone, across threads and processes, and other tests concurrently. It locks a
//! file in the target directory, so that it works under every test runner.

use std::cell::Cell;
use std::fs::{self, File};

use crate::binary;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// The exclusive lock of a test that must run alone.
#[derive(Debug)]
pub struct Alone {
    _lock: File,
}

/// The shared lock of every other gateway.
#[derive(Debug)]
pub struct SharedLock {
    _lock: Option<File>,
}

fn file() -> File {
    let folder = binary::profile_folder().join("isthmus-tests");
    fs::create_dir_all(&folder).unwrap();
    File::create(folder.join("lock")).unwrap()
}

/// Waits until no other test's gateway runs, and prevents new ones until dropped.
#[must_use]
pub fn alone() -> Alone {
    let lock = file();
    lock.lock().unwrap();
    ALONE.set(true);
    Alone { _lock: lock }
}

pub(crate) fn beside() -> SharedLock {
    if ALONE.get() {
        return SharedLock { _lock: None };
    }
    let lock = file();
    lock.lock_shared().unwrap();
    SharedLock { _lock: Some(lock) }
}

impl Drop for Alone {
    fn drop(&mut self) {
        ALONE.set(false);
    }
}
