//! Models one direction of a link: decides when a packet leaves it or whether it is dropped. Pure: time is an
//! argument, and jitter comes from a seed.

use std::time::Duration;

use fastrand::Rng;

use super::Shape;

/// One direction of a link: a queue, then transmission at the bandwidth, then the delay.
#[derive(Debug)]
pub(crate) struct Lane {
    shape: Shape,
    random: Rng,
    /// When transmission of all accepted packets ends.
    free: Duration,
    /// When the last accepted packet leaves the link.
    last: Duration,
}

impl Lane {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        Self { shape, random: Rng::with_seed(seed), free: Duration::ZERO, last: Duration::ZERO }
    }

    /// When a packet that arrives now leaves the link; `None` if the queue is full. Times are relative to any
    /// fixed moment, and `now` must not decrease.
    pub(crate) fn offer(&mut self, bytes: usize, now: Duration) -> Option<Duration> {
        let begin = self.free.max(now);
        let waiting = self.shape.bytes_in(begin.saturating_sub(now));
        if waiting.saturating_add(bytes as u64) > self.shape.queue() {
            return None;
        }
        self.free = begin + self.shape.time_of(bytes as u64);
        let jitter = self.shape.jitter.mul_f64(self.random.f64());
        // Jitter also delays all later packets: none overtakes.
        self.last = self.last.max(self.free + self.shape.delay + jitter);
        Some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// A lane on which 1000 bytes take a millisecond.
    fn lane(change: &str) -> Lane {
        let shape = Shape::default().changed(&format!("bandwidth=8Mbit,{change}").parse().unwrap());
        Lane::new(shape, 1)
    }

    #[test]
    fn packet_leaves_after_transmission_time_and_delay() {
        let mut lane = lane("delay=20ms");
        assert_eq!(lane.offer(1000, ms(5)), Some(ms(26)));
        assert_eq!(lane.offer(1000, ms(100)), Some(ms(121)), "an idle link adds no wait");
    }

    #[test]
    fn packets_queue_behind_earlier_ones() {
        let mut lane = lane("delay=20ms");
        assert_eq!(lane.offer(1000, ms(0)), Some(ms(21)));
        assert_eq!(lane.offer(3000, ms(0)), Some(ms(24)));
        assert_eq!(lane.offer(1000, ms(2)), Some(ms(25)));
    }

    #[test]
    fn queue_is_bounded_in_bytes_and_drains_with_time() {
        let mut lane = lane("delay=0ms");
        let queue = 64 * 1024;
        let accepted = (0..1000).filter(|_| lane.offer(1024, ms(0)).is_some()).count();
        assert_eq!(accepted * 1024, queue, "the minimum queue");
        assert_eq!(lane.offer(1024, ms(0)), None);
        assert_eq!(lane.offer(1, ms(0)), None, "a full queue drops even short packets");
        assert!(lane.offer(1000, ms(1)).is_some(), "the queue has drained by 1000 bytes");
        assert_eq!(lane.offer(1000, ms(1)), None);
    }

    #[test]
    fn dropped_packet_takes_no_transmission_time() {
        let (mut full, mut fair) = (lane("delay=0ms"), lane("delay=0ms"));
        for _ in 0..64 {
            assert_eq!(full.offer(1024, ms(0)), fair.offer(1024, ms(0)));
        }
        assert_eq!(full.offer(1024, ms(0)), None);
        assert_eq!(full.offer(1000, ms(60)), fair.offer(1000, ms(60)));
    }

    #[test]
    fn jitter_stays_within_bounds_and_never_reorders() {
        let mut lane = lane("delay=20ms,jitter=10ms");
        let (mut last, mut waits) = (Duration::ZERO, Vec::new());
        for number in 0..500 {
            let now = ms(number);
            let out = lane.offer(100, now).unwrap();
            assert!(out >= last, "{number}");
            waits.push(out - now);
            last = out;
        }
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(*least >= ms(20) && *most <= ms(31), "{least:?} {most:?}");
        assert!(*most - *least > ms(5), "{least:?} {most:?}");
    }

    #[test]
    fn jitter_is_deterministic_by_seed() {
        let outcome = |seed| {
            let shape = Shape::default().changed(&"jitter=10ms".parse().unwrap());
            let mut lane = Lane::new(shape, seed);
            (0..50).map(|number| lane.offer(100, ms(number))).collect::<Vec<_>>()
        };
        assert_eq!(outcome(4), outcome(4));
        assert_ne!(outcome(4), outcome(5));
    }
}
