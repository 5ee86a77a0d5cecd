//! Asks endpoints whether they are well, on a thread of its own: those of services with `health.probe` in their turns
//! (`health::schedule`), and those that a client's connection has put under suspicion (`hellos`). Also closes what is open
//! to endpoints that turned unhealthy (`closing`).

mod closing;
mod hellos;
mod question;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use isthmus_model::services::Probe;
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::closing::Closings;
use self::question::{Patience, Question};
use crate::control::Control;
use crate::demotion::Outcome;
use crate::health::{Due, Owner, Schedule, TICK_MS, Why};
use crate::pick::record;
use crate::snapshot::{Endpoint, Service};
use crate::socket::{self, Millis};

/// Probes under way at once.
const AT_ONCE: usize = 256;
/// Descriptors of all probes.
pub(crate) const DESCRIPTORS: u64 = AT_ONCE as u64 + hellos::AT_ONCE as u64;
/// How often ejections that have ended are looked for, and connections are closed.
const SWEEP_MS: Millis = 250;
/// The time of which the slowest probe counts for the stretch that is shown.
const STRETCH_MS: Millis = 10_000;

/// Probes for ever.
pub(crate) async fn run(control: Arc<Control>) -> io::Result<()> {
    let hellos = hellos::run(Arc::clone(&control));
    let turns = async {
        let mut prober = Prober::new(control);
        loop {
            prober.turn().await;
        }
    };
    tokio::select! {
        ended = hellos => ended,
        () = turns => Ok(()),
    }
}

struct Prober {
    control: Arc<Control>,
    schedule: Schedule<Weak<Service>>,
    random: fastrand::Rng,
    asked: JoinSet<Asked>,
    closings: Closings,
    swept: Millis,
    /// The longest stretch of this time and of the one before, and when this one began.
    stretch: (u32, u32, Millis),
}

/// A probe that has ended.
struct Asked {
    service: Arc<Service>,
    member: usize,
    owner: Owner,
    probe: Probe,
    outcome: Outcome,
}

impl Prober {
    fn new(control: Arc<Control>) -> Prober {
        Prober {
            control,
            schedule: Schedule::default(),
            random: fastrand::Rng::new(),
            asked: JoinSet::new(),
            closings: Closings::default(),
            swept: 0,
            stretch: (0, 0, 0),
        }
    }

    async fn turn(&mut self) {
        let process = Arc::clone(&self.control.process);
        let now = socket::now();
        for service in process.health.take_probed() {
            self.adopt(&service, now);
        }
        for lost in process.health.take_lost() {
            self.closings.begin(lost, now);
        }
        if now.saturating_sub(self.swept) >= SWEEP_MS {
            self.swept = now;
            process.health.sweep(now);
            self.closings.step(&self.control.workers, now);
        }
        self.ask(now);
        process.health.endpoints.store(self.schedule.endpoints(), Relaxed);
        process.health.stretch.store(self.stretch.0.max(self.stretch.1), Relaxed);
        let pause = self.pause(now);
        tokio::select! {
            Some(Ok(asked)) = self.asked.join_next() => self.note(asked),
            () = process.health.wake.notified() => {}
            () = sleep(pause) => {}
        }
    }

    /// How long there is nothing to do.
    fn pause(&self, now: Millis) -> Duration {
        let sweep = if self.closings.is_empty() && self.control.process.health.count() == 0 {
            Millis::MAX
        } else {
            SWEEP_MS
        };
        let due = self.schedule.next_due().map_or(Millis::MAX, |due| due.saturating_sub(now).max(TICK_MS));
        Duration::from_millis(sweep.min(due).min(STRETCH_MS))
    }

    /// Probes the endpoints of a service that is new or was rebuilt.
    fn adopt(&mut self, service: &Arc<Service>, now: Millis) {
        let mut members: BTreeMap<Owner, Vec<u32>> = BTreeMap::new();
        for (index, endpoint) in (0..).zip(&service.endpoints) {
            if service.probe(endpoint).is_some() {
                members.entry(endpoint.cluster().map(Into::into)).or_default().push(index);
            }
        }
        let interval = Millis::try_from(service.rules.health.interval.as_millis()).unwrap_or(Millis::MAX);
        let number = Arc::as_ptr(&service.state).addr();
        self.schedule.want(number, &Arc::downgrade(service), members, interval, (now, &mut self.random));
    }

    /// Begins the probes that are due, as many as may be.
    fn ask(&mut self, now: Millis) {
        let process = Arc::clone(&self.control.process);
        if now.saturating_sub(self.stretch.2) >= STRETCH_MS {
            self.stretch = (0, self.stretch.0, now);
        }
        let tables = process.tables.load_full();
        let is_current = |service: &Weak<Service>| {
            service.upgrade().is_some_and(|service| {
                let known = tables.service(&service.host, service.port);
                known.is_some_and(|known| Arc::ptr_eq(known, &service))
            })
        };
        while self.asked.len() < AT_ONCE
            && self.schedule.next_due().is_some_and(|due| due <= now)
            && process.health.rate.take(now)
        {
            let Some(due) = self.schedule.next(now, &mut self.random, is_current) else { return };
            self.stretch.0 = self.stretch.0.max(due.stretch);
            self.begin(due);
        }
    }

    fn begin(&mut self, due: Due<Weak<Service>>) {
        let Due { service, member, owner, .. } = due;
        let question = service.upgrade().and_then(|service| {
            let endpoint = service.endpoints.get(member)?;
            let probe = service.probe(endpoint)?.clone();
            let question = Question::new(&service, endpoint, &probe)?;
            endpoint.state.begin_probe().then_some((service, probe, question))
        });
        let Some((service, probe, question)) = question else {
            self.schedule.ended(&owner);
            return;
        };
        let control = Arc::clone(&self.control);
        let whole = service.rules.health.timeout;
        self.asked.spawn(async move {
            let outcome = question.ask(Patience { connect: whole, whole }, &control.process).await;
            Asked { service, member, owner, probe, outcome }
        });
    }

    fn note(&mut self, asked: Asked) {
        let Asked { service, member, owner, probe, outcome } = asked;
        let process = &self.control.process;
        self.schedule.ended(&owner);
        process.metrics.probed(&probe, outcome);
        let Some(endpoint) = service.endpoints.get(member) else { return };
        endpoint.state.end_probe();
        let now = socket::now();
        if outcome.is_failure() || outcome == Outcome::Answered {
            record(&service, endpoint, outcome.is_failure(), &process.metrics);
        }
        if outcome.is_failure() {
            if endpoint.state.health.unanswered(now, service.rules.health.down_after) {
                process.health.lost(&service, endpoint, Why::Probes(probe.word(), outcome));
            }
        } else if outcome != Outcome::Unasked {
            self.answered(&service, endpoint, &probe, now);
        }
    }

    fn answered(&self, service: &Service, endpoint: &Endpoint, probe: &Probe, now: Millis) {
        let (check, health) = (&service.rules.health, &endpoint.state.health);
        let is_back = health.answered(now, check.up_after, check.slow_start);
        // Another port says nothing about connects to this one.
        let is_readmitted = probe.is_at_endpoint() && !health.is_down() && health.readmit(now);
        if is_back {
            service.schedule_trial(now);
        }
        if is_back || is_readmitted {
            self.control.process.health.regained(service, endpoint);
        }
    }
}
