//! Runs a task on a thread of its own, so that it answers whatever the rest of the program does.

use std::io;
use std::thread::Builder;

use tokio::sync::oneshot;

/// Blocking threads of the runtime: for pages that need a lock.
const BLOCKING: usize = 4;

/// Runs the future of `work` on a thread of its own, until it ends or this future is dropped.
///
/// # Errors
/// The thread cannot be started, or the work failed.
pub async fn run<F, W>(name: &str, work: W) -> io::Result<()>
where
    W: FnOnce() -> F + Send + 'static,
    F: Future<Output = io::Result<()>>,
{
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build()?;
    let (end, ended) = oneshot::channel();
    // Dropped with this future, which ends the thread.
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
