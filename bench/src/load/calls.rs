//! Calls at a fixed rate, each a connection of one exchange: how long each took, and how many failed. A call that hangs
//! delays no other.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::Target;
use crate::hello::Job;
use crate::sample::{histogram, record};
use crate::stop::Stop;

/// Enough that a call is due to a free thread, even while each second one waits for a connect timeout of a second.
const THREADS: u64 = 512;
const STACK: usize = 64 << 10;

/// Calls made, by their outcome.
#[derive(Debug)]
pub(crate) struct Called {
    /// Times from connect to the first byte of calls that succeeded, in nanoseconds.
    pub(crate) times: Histogram<u64>,
    pub(crate) failed: u64,
}

/// Makes `per_second` calls each second until this time, and waits for the last one.
pub(crate) fn calls(target: &Target, per_second: u32, until: Instant, stop: &Stop) -> io::Result<Called> {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let due = |call: u64| {
        began + Duration::from_secs(1).mul_f64(crate::sample::number(call) / f64::from(per_second))
    };
    let call_in_turn = || -> io::Result<Called> {
        let mut called = Called { times: histogram()?, failed: 0 };
        loop {
            let due = due(next.fetch_add(1, Ordering::Relaxed));
            if due >= until || stop.requested() {
                return Ok(called);
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let start = Instant::now();
            match target.open(Job::Once) {
                Ok(_) => record(&mut called.times, start.elapsed()),
                Err(_) => called.failed += 1,
            }
        }
    };
    let mut all = Called { times: histogram()?, failed: 0 };
    thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().stack_size(STACK).spawn_scoped(scope, call_in_turn);
        let threads: Vec<_> = (0..THREADS).map(spawn).collect::<io::Result<_>>()?;
        for thread in threads {
            let one = thread.join().map_err(|_| io::Error::other("a load thread panicked"))??;
            all.times.add(one.times).map_err(io::Error::other)?;
            all.failed += one.failed;
        }
        stop.check()?;
        Ok(all)
    })
}
