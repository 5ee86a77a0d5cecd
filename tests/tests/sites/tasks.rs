//! A thread in a network namespace that runs asynchronous tasks: their sockets belong to the namespace.

use std::pin::Pin;
use std::thread::{self, JoinHandle};

use isthmus_tests::netns;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// The thread; its tasks end when it is dropped.
#[derive(Debug)]
pub(crate) struct Tasks {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Tasks {
    pub(crate) fn inside(namespace: &str) -> Tasks {
        let namespace = namespace.to_owned();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            netns::inside(&namespace, move || {
                let _dropped = runtime.block_on(stopped);
            });
        });
        Tasks { handle, stop: Some(stop), thread: Some(thread) }
    }

    /// Where more tasks can be started.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

/// Runs a task there, and waits for its result.
#[track_caller]
pub(crate) fn wait<T: Send + 'static>(on: &Handle, task: impl Future<Output = T> + Send + 'static) -> T {
    let (done, result) = oneshot::channel();
    let task: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(task);
    on.spawn(async move {
        let _waiting = done.send(task.await);
    });
    result.blocking_recv().expect("the task ends")
}

impl Drop for Tasks {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}
