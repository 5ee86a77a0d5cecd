//! A text that many clients request and that is costly to render: rendered once for all who wait, and for at most a
//! quarter of the time. Not a cache: no client gets a text whose rendering began before its request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// The pause after a rendering, in multiples of its duration.
const REST: u32 = 3;
/// The longest pause.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// A shared text with its renderer.
pub struct Shared {
    make: Arc<dyn Fn() -> String + Send + Sync>,
    begun: Arc<AtomicU64>,
    last: Arc<Mutex<Last>>,
}

struct Last {
    number: u64,
    text: Bytes,
    rest_until: Instant,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("begun", &self.begun).finish_non_exhaustive()
    }
}

impl Shared {
    /// Makes a shared text. `make` may block and wait for locks: it runs on a blocking thread.
    pub fn new(make: impl Fn() -> String + Send + Sync + 'static) -> Shared {
        let last = Last { number: 0, text: Bytes::new(), rest_until: Instant::now() };
        Shared { make: Arc::new(make), begun: Arc::default(), last: Arc::new(Mutex::new(last)) }
    }

    /// Returns a text whose rendering began after this call.
    pub async fn text(&self) -> Bytes {
        let before = self.begun.load(SeqCst);
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if last.number > before {
            return last.text.clone();
        }
        sleep_until(last.rest_until).await;
        let (make, begun) = (Arc::clone(&self.make), Arc::clone(&self.begun));
        // The lock moves into the task: if this client leaves, no second rendering begins beside this one.
        let making = move || {
            last.number = begun.fetch_add(1, SeqCst) + 1;
            let started = Instant::now();
            last.text = make().into();
            let rest = started.elapsed().saturating_mul(REST).min(LONGEST_REST);
            last.rest_until = Instant::now() + rest;
            last.text.clone()
        };
        tokio::task::spawn_blocking(making).await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn shared_text_is_rendered_once_for_all_waiters_and_never_concurrently() {
        let (go, gate) = mpsc::channel::<()>();
        let gate = std::sync::Mutex::new(gate);
        let (made, at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, inside) = (Arc::clone(&made), Arc::clone(&at_once));
        let shared = Arc::new(Shared::new(move || {
            assert_eq!(inside.fetch_add(1, SeqCst), 0, "two at once");
            gate.lock().unwrap().recv().unwrap();
            inside.fetch_sub(1, SeqCst);
            (count.fetch_add(1, SeqCst) + 1).to_string()
        }));
        let mut asking = JoinSet::new();
        let ask = |asking: &mut JoinSet<Bytes>| {
            let shared = Arc::clone(&shared);
            asking.spawn(async move { shared.text().await })
        };
        ask(&mut asking);
        while at_once.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        // These requests come during the first rendering, whose text may be older than they are.
        let mut gone = Vec::new();
        for number in 0..60 {
            let handle = ask(&mut asking);
            if number % 2 == 0 {
                gone.push(handle);
            }
        }
        tokio::task::yield_now().await;
        gone.iter().for_each(tokio::task::AbortHandle::abort);
        go.send(()).unwrap();
        go.send(()).unwrap();
        let mut texts = Vec::new();
        while let Some(text) = asking.join_next().await {
            texts.extend(text);
        }
        texts.sort();
        assert_eq!((texts.len(), made.load(SeqCst)), (31, 2));
        assert!(texts[0] == "1" && texts[1..].iter().all(|text| text == "2"), "{texts:?}");
    }
}
