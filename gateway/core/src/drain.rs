//! Drains the gateway: readiness fails at once, accepting continues for a while (load balancers notice late), then
//! connections are closed gradually, idle ones first. Closing all at once would make all clients reconnect at once.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::live::{Conn, Live, SILENT_MS};
use crate::reason::Reason;
use crate::socket::{self, Millis};

/// The phase of the gateway between start and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Ready.
    Serving,
    /// Not ready, and still accepting.
    Leaving,
    /// Closing open connections over a window.
    Closing {
        /// When it began.
        since: Millis,
        /// How long it may take.
        window: Duration,
    },
    /// Ended; open connections are cut.
    Over,
}

impl Phase {
    pub(crate) fn accepts(self) -> bool {
        matches!(self, Phase::Serving | Phase::Leaving)
    }

    /// The word in `/status`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Phase::Serving => "serving",
            Phase::Leaving | Phase::Closing { .. } => "draining",
            Phase::Over => "ended",
        }
    }
}

const TICK: Duration = Duration::from_millis(100);

/// Closes a worker's connections over the window: silent ones in its first quarter, the others in the rest. All
/// workers use the same clock. Connections left at the end are cut.
pub(crate) async fn close(live: Arc<Live>, mut phase: watch::Receiver<Phase>) {
    let Ok(Phase::Closing { since, window }) =
        phase.wait_for(|phase| !phase.accepts()).await.map(|phase| *phase)
    else {
        return cut(&live);
    };
    // An orderly close takes up to a second, so the last one begins that long before the end.
    let spread = window.saturating_sub((window / 2).min(Duration::from_secs(1)));
    let mut idle = Share::new(Duration::ZERO, spread / 4, Reason::Drained);
    let mut busy = Share::new(spread / 4, spread, Reason::Drained);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = phase.wait_for(|phase| *phase == Phase::Over) => return cut(&live),
            _ = tick.tick() => {}
        }
        let now = socket::now();
        let mut open: Vec<Arc<Conn>> = live.all().into_iter().filter(|conn| !conn.is_ending()).collect();
        open.sort_by_key(|conn| conn.last_byte());
        let silent = open.partition_point(|conn| now.saturating_sub(conn.last_byte()) >= SILENT_MS);
        let (silent, talking) = open.split_at(silent);
        let elapsed = Duration::from_millis(now.saturating_sub(since));
        idle.close(silent, elapsed);
        busy.close(talking, elapsed);
    }
}

/// A part of a window, and the number of connections asked to close in it.
#[derive(Debug)]
pub(crate) struct Share {
    from: Duration,
    until: Duration,
    reason: Reason,
    asked: usize,
}

impl Share {
    pub(crate) fn new(from: Duration, until: Duration, reason: Reason) -> Share {
        Share { from, until, reason, asked: 0 }
    }

    /// Asks as many of `open` to close as are due by now.
    pub(crate) fn close(&mut self, open: &[Arc<Conn>], elapsed: Duration) {
        let (elapsed, length) = (elapsed.saturating_sub(self.from), self.until.saturating_sub(self.from));
        let due = due(self.asked + open.len(), elapsed, length).saturating_sub(self.asked);
        for conn in open.iter().take(due) {
            conn.end(self.reason);
            self.asked += 1;
        }
    }
}

/// Number of connections out of `all` that are due by now.
fn due(all: usize, elapsed: Duration, spread: Duration) -> usize {
    if elapsed >= spread {
        return all;
    }
    let all = u128::try_from(all).unwrap_or(u128::MAX);
    usize::try_from((all * elapsed.as_millis()).div_ceil(spread.as_millis().max(1))).unwrap_or(usize::MAX)
}

fn cut(live: &Live) {
    for conn in live.all() {
        conn.end(Reason::Shutdown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drain_spreads_closes_over_window() {
        let seconds = Duration::from_secs;
        assert_eq!(due(100, seconds(0), seconds(10)), 0);
        assert_eq!(due(100, Duration::from_millis(1), seconds(10)), 1);
        assert_eq!(due(100, seconds(5), seconds(10)), 50);
        assert_eq!(due(100, seconds(10), seconds(10)), 100);
        assert_eq!(due(7, seconds(0), seconds(0)), 7);
    }
}
