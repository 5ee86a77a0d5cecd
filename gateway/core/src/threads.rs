//! Starts the gateway's threads, most with a runtime of their own, and waits a limited time for them to end.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime::{self, Handle};
use tokio::task::JoinSet;

/// Running threads.
#[derive(Debug)]
pub(crate) struct Threads {
    all: Vec<JoinHandle<()>>,
    /// Each thread holds a clone, sends when its work is done, and drops the clone at its end.
    here: Sender<()>,
    done: Receiver<()>,
}

/// How the threads ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    InOrder,
    Panicked,
    /// Some threads have not ended.
    NotYet,
}

impl Threads {
    /// Creates an empty set.
    pub(crate) fn none() -> Threads {
        let (here, done) = channel();
        Threads { all: Vec::new(), here, done }
    }

    /// Starts a thread that runs `work`.
    pub(crate) fn spawn(
        &mut self,
        name: String,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        // Created here, so that a lack of descriptors is reported at start.
        let runtime = runtime::Builder::new_current_thread().thread_name(&name).enable_all().build()?;
        let here = self.here.clone();
        self.all.push(Builder::new().name(name).spawn(move || {
            // Dropped last: dropping a runtime may wait for blocking reads.
            let here = here;
            let runtime = runtime;
            runtime.block_on(work);
            let _nobody_waits = here.send(());
        })?);
        Ok(())
    }

    /// Waits for the first thread to finish, then at most `time` for all others.
    pub(crate) fn end_within(self, time: Duration) -> Ended {
        let Threads { all, here, done } = self;
        drop(here);
        let _panicked = done.recv();
        let end = Instant::now() + time;
        let left = || end.saturating_duration_since(Instant::now());
        let are_gone = loop {
            match done.recv_timeout(left()) {
                Ok(()) => {}
                Err(why) => break why == RecvTimeoutError::Disconnected,
            }
        };
        let over = all.into_iter().filter(|thread| are_gone || thread.is_finished());
        let panicked = over.map(JoinHandle::join).filter(Result::is_err).count();
        match panicked {
            0 if are_gone => Ended::InOrder,
            0 => Ended::NotYet,
            _ => Ended::Panicked,
        }
    }
}

/// Runs work that blocks on a thread of its own. Its timers, its sockets and what it spawns stay with the runtime of the
/// caller, which goes on meanwhile: a connection answers pings while what it received is compiled.
pub(crate) fn spawn_apart(
    tasks: &mut JoinSet<io::Result<()>>,
    work: impl Future<Output = io::Result<()>> + Send + 'static,
) {
    let runtime = Handle::current();
    tasks.spawn_blocking(move || runtime.block_on(work));
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::pin::Pin;

    use super::*;

    #[tokio::test]
    async fn blocking_work_does_not_hold_up_what_it_spawned() {
        let (ping, pinged) = channel();
        let mut tasks = JoinSet::new();
        spawn_apart(&mut tasks, async move {
            tokio::spawn(async move { ping.send(()) });
            pinged.recv_timeout(Duration::from_secs(30)).map_err(io::Error::other)
        });
        tasks.join_next().await.unwrap().unwrap().unwrap();
    }

    type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

    #[test]
    fn hanging_threads_are_not_awaited() {
        let ended = |work: Vec<Work>, time| {
            let mut threads = Threads::none();
            for work in work {
                threads.spawn("test".to_owned(), work).unwrap();
            }
            threads.end_within(time)
        };
        let long = Duration::from_secs(30);
        let done = || -> Work { Box::pin(ready(())) };
        assert_eq!(ended(vec![], long), Ended::InOrder);
        assert_eq!(ended(vec![done(), done()], long), Ended::InOrder);
        assert_eq!(ended(vec![Box::pin(pending()), done()], Duration::from_millis(10)), Ended::NotYet);
        let panics: Work = Box::pin(async { panic!("as the test wants") });
        assert_eq!(ended(vec![done(), panics], long), Ended::Panicked);
    }
}
