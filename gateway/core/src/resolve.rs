//! Resolves endpoint host names, and again when their TTL ends. `schedule` decides when a name is due, `lookup`
//! queries DNS, `system` reads the system's files; `control` builds the tables.

mod lookup;
mod schedule;
mod system;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_model::HostName;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use self::lookup::Resolver;
use self::schedule::{News, Queue, Schedule};
use crate::control::Control;
use crate::snapshot::Resolved;

/// Lookups under way at once.
const AT_ONCE: usize = 32;
/// Additional lookups at once for address families that do not answer while the other one does.
const RETRIES: usize = 16;
/// Answers are batched for this long: each batch costs one compilation of the tables.
const GATHER: Duration = Duration::from_millis(50);

/// Keeps the names resolved, forever. A failure or an empty answer does not replace addresses: a name keeps its last
/// addresses until it has new ones.
pub(crate) async fn run(control: Arc<Control>) -> io::Result<()> {
    let mut names = control.names.subscribe();
    let mut resolver = Resolver::new(&control.process.fixed.dns).await;
    let mut schedule = Schedule::new(&control.process.fixed.dns);
    let mut publisher = Publisher::new(Arc::clone(&control));
    let (mut lookups, mut retries) = (JoinSet::new(), JoinSet::new());
    names.mark_changed();
    loop {
        resolver.follow_system().await;
        for (lookups, most, queue) in
            [(&mut lookups, AT_ONCE, Queue::Regular), (&mut retries, RETRIES, Queue::Doubtful)]
        {
            while lookups.len() < most
                && let Some(question) = schedule.take_due(queue, Instant::now())
            {
                lookups.spawn(resolver.look_up(question));
            }
        }
        let done = tokio::select! {
            Ok(()) = names.changed() => {
                let names = names.borrow_and_update().clone();
                control.answers.keep_only(&names);
                schedule.keep_only(&names, Instant::now());
                continue;
            }
            Some(done) = lookups.join_next() => done,
            Some(done) = retries.join_next() => done,
            () = at(schedule.next_due(Queue::Regular)), if lookups.len() < AT_ONCE => continue,
            () = at(schedule.next_due(Queue::Doubtful)), if retries.len() < RETRIES => continue,
            () = publisher.step() => continue,
        };
        match done {
            Ok((name, found)) => {
                if let Some(news) = schedule.answered(&name, found, Instant::now(), fastrand::f64()) {
                    let confirmed = news.is_confirmed.then(SystemTime::now);
                    control.answers.note(&name, &news.addresses, confirmed, news.problem.clone());
                    publisher.add(name, news);
                }
            }
            // The schedule retries the name by itself.
            Err(error) => tracing::error!(%error, "host name lookup panicked; this is a bug"),
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Passes answers to control in batches, on a blocking thread because the tables may be large.
struct Publisher {
    control: Arc<Control>,
    waiting: Resolved,
    /// When the batch is passed on.
    due: Instant,
    /// No batch before this: at least half of the time is left to other work.
    rest_until: Instant,
    under_way: Option<JoinHandle<Duration>>,
}

impl Publisher {
    fn new(control: Arc<Control>) -> Publisher {
        let now = Instant::now();
        Publisher { control, waiting: Resolved::new(), due: now, rest_until: now, under_way: None }
    }

    fn add(&mut self, name: HostName, news: News) {
        if self.waiting.is_empty() {
            self.due = Instant::now() + GATHER;
        }
        if news.is_change {
            self.waiting.insert(name, news.addresses);
        }
    }

    /// Waits for the next step and performs it; cancel-safe.
    async fn step(&mut self) {
        if let Some(swap) = &mut self.under_way {
            let took = swap.await.unwrap_or_default();
            self.under_way = None;
            self.rest_until = Instant::now() + took;
        } else if self.waiting.is_empty() {
            std::future::pending().await
        } else {
            sleep_until(self.due.max(self.rest_until)).await;
            let (control, answers) = (Arc::clone(&self.control), std::mem::take(&mut self.waiting));
            self.under_way = Some(tokio::task::spawn_blocking(move || {
                let started = Instant::now();
                control.replace_addresses(answers);
                started.elapsed()
            }));
        }
    }
}
