//! Follows the files of a trust. Once a second their metadata is compared: that works on every file system,
//! through the symbolic links that Kubernetes swaps, and five seconds is what is promised.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Trust, TrustFiles};

const PACE: Duration = Duration::from_secs(1);

/// A thread that follows files; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Where each file leads to and how it looked.
type Prints = Vec<(PathBuf, Option<[i64; 5]>)>;

impl Trust {
    /// Follows the files from now on, in a thread of its own.
    pub fn watch(&self, files: TrustFiles) -> std::io::Result<Watch> {
        let trust = self.clone();
        let (end, ended) = mpsc::channel();
        let follow = move || {
            let mut seen = Prints::new();
            while ended.recv_timeout(PACE) == Err(RecvTimeoutError::Timeout) {
                let prints = prints(&files);
                // What was refused may have been half written when it was read.
                if prints != seen || !trust.refused().is_empty() {
                    seen = prints;
                    look(&trust, &files);
                }
            }
        };
        let thread = thread::Builder::new().name("trust".to_owned()).spawn(follow)?;
        Ok(Watch { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.end.take());
        // A thread that panicked has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn look(trust: &Trust, files: &TrustFiles) {
    let before = trust.refused();
    if trust.reload(files) {
        let now = trust.current();
        tracing::info!(identity = %now.identity.id(), epoch = now.epoch, "certificates and bundles were replaced");
    }
    for refused in trust.refused().iter().filter(|refused| !before.contains(refused)) {
        tracing::warn!("{refused}; the old one serves on");
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
