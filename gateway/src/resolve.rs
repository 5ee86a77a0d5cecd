//! Endpoints' host names → addresses, again when their TTL ends. When names are due is `schedule`, how one
//! name is looked up is `lookup`; tables are made by control.

mod lookup;
mod schedule;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use isthmus_xds::HostName;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use self::lookup::Resolver;
use self::schedule::{News, Schedule};
use crate::control::Control;
use crate::snapshot::Resolved;

/// Lookups under way at once.
const AT_ONCE: usize = 32;
/// Answers wait this long for company: each batch costs one compilation of the tables.
const GATHER: Duration = Duration::from_millis(50);

/// Keeps the names resolved, for ever. An answer that is worse than the last (a failure, no records) does
/// not replace it: a name that once had addresses keeps them until it has others.
pub(crate) async fn follow(control: Arc<Control>) -> io::Result<()> {
    let mut names = control.names.subscribe();
    let mut resolver = Resolver::new(&control.process.fixed.dns);
    let mut schedule = Schedule::new(&control.process.fixed.dns);
    let mut publisher = Publisher::new(Arc::clone(&control));
    let mut lookups = JoinSet::new();
    names.mark_changed();
    loop {
        while lookups.len() < AT_ONCE
            && let Some(name) = schedule.take_due(Instant::now())
        {
            lookups.spawn(resolver.look_up(name));
        }
        tokio::select! {
            Ok(()) = names.changed() => {
                let names = names.borrow_and_update().clone();
                control.answers.keep_only(&names);
                schedule.keep_only(&names, Instant::now());
            }
            Some(done) = lookups.join_next() => match done {
                Ok((name, found)) => {
                    let jitter = fastrand::f64();
                    if let Some(news) = schedule.answered(&name, found, Instant::now(), jitter) {
                        control.answers.note(&name, &news.addresses, news.problem.clone());
                        publisher.add(name, news);
                    }
                }
                // The name is due again by itself.
                Err(error) => tracing::error!(%error, "looking up a name failed; this is a bug"),
            },
            () = at(schedule.next_due()), if lookups.len() < AT_ONCE => {}
            () = publisher.turn() => {}
        }
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Hands answers to control in batches, on a blocking thread: the tables may be large.
struct Publisher {
    control: Arc<Control>,
    waiting: Resolved,
    /// When the batch is handed over.
    due: Instant,
    /// Not before: at least half of the time is left to others.
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

    /// Waits until there is something to do and does it; may be dropped at any time.
    async fn turn(&mut self) {
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
                control.resolved(answers);
                started.elapsed()
            }));
        }
    }
}
