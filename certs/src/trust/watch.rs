//! Follows the files of a trust by comparing their metadata once a second. This works on every file system and through
//! the symbolic links that Kubernetes swaps, and keeps the promised five seconds.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Trust, TrustFiles};

const PACE: Duration = Duration::from_secs(1);

/// The thread that follows the files; dropping this ends it.
#[derive(Debug)]
pub struct Watch {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Each file with its metadata, links followed.
type Prints = Vec<(PathBuf, Option<[i64; 5]>)>;

impl Trust {
    /// Follows the files in a thread of its own, until the [`Watch`] is dropped.
    pub fn watch(&self, files: TrustFiles) -> std::io::Result<Watch> {
        Watch::all(vec![(self.clone(), files)])
    }
}

impl Watch {
    /// Follows the files of several trusts in one thread.
    pub fn all(trusts: Vec<(Trust, TrustFiles)>) -> std::io::Result<Self> {
        let (end, ended) = mpsc::channel();
        let follow = move || {
            let mut seen = vec![Prints::new(); trusts.len()];
            while ended.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                for ((trust, files), seen) in trusts.iter().zip(&mut seen) {
                    let prints = prints(files);
                    // A refused file may have been incomplete when it was read.
                    if prints != *seen || !trust.refused().is_empty() {
                        *seen = prints;
                        reload(trust, files);
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("trust".to_owned()).spawn(follow)?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.end.take());
        // A panic of the thread was already reported.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn reload(trust: &Trust, files: &TrustFiles) {
    let before = trust.refused();
    if trust.reload(files) {
        let now = trust.current();
        tracing::info!(identity = %now.identity.id(), epoch = now.epoch, "loaded new certificates and bundles");
    }
    for refused in trust.refused().iter().filter(|refused| !before.contains(refused)) {
        tracing::warn!("{refused}; keeping the previous one");
    }
}

fn prints(files: &TrustFiles) -> Prints {
    let print = |metadata: Metadata| {
        let numbers = [metadata.dev(), metadata.ino(), metadata.len()].map(u64::cast_signed);
        let [device, inode, length] = numbers;
        [device, inode, length, metadata.ctime(), metadata.ctime_nsec()]
    };
    files
        .paths()
        .into_iter()
        .map(|path| (fs::metadata(&path).map(print).ok(), path))
        .map(|(a, b)| (b, a))
        .collect()
}
