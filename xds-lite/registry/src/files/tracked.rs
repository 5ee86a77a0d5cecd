//! Tracks one registry file: its last content, and whether to read it again. How files combine is decided in
//! `files`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_model::{file, registry_file};
use isthmus_watch::Written;

use super::settling::{QUIET, Settling};

#[derive(Debug, Default)]
pub(super) struct TrackedFile {
    pub(super) print: Option<Fingerprint>,
    /// The content in use, sorted by host.
    pub(super) services: Vec<Arc<Service>>,
    pub(super) wrong: Option<String>,
    pub(super) settling: Settling,
    /// The content to use once the file is complete, if it differs.
    pub(super) pending: Option<Result<Vec<Arc<Service>>, String>>,
    /// The last read ended before the end of the file.
    pub(super) was_torn: bool,
    pub(super) away_since: Option<Instant>,
    /// The earliest time to read it again while it is being written.
    pub(super) rest_until: Option<Instant>,
}

/// Identifies the content of a path: device, inode, length, change time.
pub(super) type Fingerprint = [i64; 5];

impl TrackedFile {
    /// The services of a host in the content in use.
    pub(super) fn services_of(&self, host: &HostPattern) -> &[Arc<Service>] {
        let first = self.services.partition_point(|service| service.host < *host);
        let rest = self.services.get(first..).unwrap_or_default();
        rest.get(..rest.partition_point(|service| service.host == *host)).unwrap_or_default()
    }

    /// Whether the content has changed, or more of it can be read.
    pub(super) fn is_to_be_read(&self, print: Option<Fingerprint>, now: Instant) -> bool {
        let may_be_torn = self.settling.may_be_torn();
        if may_be_torn && self.rest_until.is_some_and(|until| now < until) {
            return false;
        }
        let is_known = self.print == print && (print.is_some() || self.wrong.is_some());
        !is_known || (self.was_torn && !may_be_torn)
    }

    /// Records that the file is about to be read with this fingerprint.
    pub(super) fn changes_to(&mut self, print: Option<Fingerprint>, now: Instant) {
        let inode = |print: Option<Fingerprint>| print.map(|[device, inode, ..]| (device, inode));
        if self.print == print && print.is_some() {
            return;
        }
        if self.print.is_none() && self.settling.is_whole(now) {
            self.settling.note(Written::Closed, now);
        } else if inode(self.print) == inode(print) {
            self.settling.stir(now);
        } else {
            self.settling.displace();
        }
        self.print = print;
    }

    /// The next time after `now` at which the file is to be scanned without an event.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        let away = self.away_since.and_then(|since| since.checked_add(QUIET));
        let due = [away, self.rest_until, self.settling.is_whole_at(), self.settling.is_late_at()];
        due.into_iter().flatten().filter(|due| *due > now).min()
    }

    pub(super) fn is_whole(&self, now: Instant) -> bool {
        self.away_since.is_none() && self.settling.is_whole(now)
    }
}

/// Sorts services by host; those of one host stay in their order.
pub(super) fn sort_by_host(services: &mut [Arc<Service>]) {
    services.sort_by(|one, other| one.host.cmp(&other.host));
}

/// Reads the certain part of a file, sorted by host.
pub(super) fn read(path: &Path, settling: &Settling) -> Result<Vec<Arc<Service>>, String> {
    let read = file::read(path, "split it");
    let read = read.and_then(|text| settling.certain(&text, |text| registry_file(text, path)));
    let services = read.map_err(|problems| problems.to_string())?;
    let mut services: Vec<_> = services.into_iter().map(Arc::new).collect();
    sort_by_host(&mut services);
    Ok(services)
}

pub(super) fn fingerprint(path: &Path) -> Option<Fingerprint> {
    let metadata = fs::metadata(path).ok()?;
    let [device, inode, length] = [metadata.dev(), metadata.ino(), metadata.len()].map(u64::cast_signed);
    Some([device, inode, length, metadata.ctime(), metadata.ctime_nsec()])
}
