//! Polls the registry when an event, a registration or a deadline calls for it, on a thread that may wait for a disk, and
//! hands what has changed to `own_services`: files in parts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_registry::files::Files;
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until};

use super::blocking;
use super::own_services::OwnServices;

/// Pause between an event and the poll: a file that is being written has several, and is rarely complete at the first.
const SETTLING: Duration = Duration::from_millis(25);

/// Polls until dropped, and reads all files whenever `again` is notified.
pub(super) async fn keep_polling(mut files: Files, own: &Arc<OwnServices>, again: &Notify) {
    loop {
        let now = Instant::now();
        let due = files.next_due(now).unwrap_or(now);
        let due = own.next_due().map_or(due, |ends| ends.min(due)).max(now + SETTLING);
        tokio::select! {
            () = own.news.notified() => sleep(SETTLING).await,
            () = again.notified() => files.expect_changes(),
            () = sleep_until(due.into()) => {}
        }
        files = poll(files, own).await;
    }
}

/// Polls once.
pub(super) async fn poll(mut files: Files, own: &Arc<OwnServices>) -> Files {
    let own = Arc::clone(own);
    blocking(move || {
        own.poll_registrations(Instant::now());
        let change = files.changed_paths(Instant::now());
        for part in change.into_iter().flat_map(isthmus_registry::files::Change::parts) {
            own.apply_part(part, Instant::now());
        }
        files
    })
    .await
}
