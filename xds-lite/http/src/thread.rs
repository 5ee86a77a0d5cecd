//! A thread of its own for what must answer whatever the rest of the program does.

use std::io;
use std::thread::Builder;

use tokio::sync::oneshot;

/// Threads of one of these for work that waits: renders of pages that need a lock.
const BLOCKING: usize = 4;

/// Runs what `work` makes on a thread of its own, until that ends or this is dropped.
///
/// # Errors
/// The system gives no thread, or the work failed.
pub async fn run<F, W>(name: &str, work: W) -> io::Result<()>
where
    W: FnOnce() -> F + Send + 'static,
    F: Future<Output = io::Result<()>>,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build()?;
    let (end, ended) = oneshot::channel();
    // Dropped with this future, and the thread notices.
    let (_here, gone) = oneshot::channel::<()>();
    Builder::new().name(name.to_owned()).spawn(move || {
        let outcome = runtime.block_on(async {
            tokio::select! {
                outcome = work() => outcome,
                _ = gone => Ok(()),
            }
        });
        runtime.shutdown_background();
        let _nobody = end.send(outcome);
    })?;
    ended.await.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
}
