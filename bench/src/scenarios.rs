//! What is measured: for each case the load, the window and the figures that come out. Not how often, in
//! which order, or how the figures are shown: see [`crate::compare`] and [`crate::report`].

use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::backend::Backend;
use crate::cpu::{Meter, Usage};
use crate::hello::{Hello, Job};
use crate::load::{Downloads, PingPong, Short, Target};
use crate::memory::Holdings;
use crate::process::Running;
use crate::stop::Stop;

/// Load before each measurement: buffers grow, caches fill, a lazy proxy allocates.
const WARM_UP: Duration = Duration::from_millis(300);
const BULK_CONNECTIONS: usize = 4;
const MIXED_CONNECTIONS: usize = 32;
const SHORT_IN_FLIGHT: usize = 16;
const IDLE_CONNECTIONS: u16 = 4000;

/// What a user asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    Bulk,
    Short,
    Pingpong,
    Mixed,
    Idle,
}

impl Scenario {
    pub(crate) fn cases(self) -> &'static [Case] {
        match self {
            Self::Bulk => &[Case::Bulk],
            Self::Short => &[Case::Short],
            Self::Pingpong => &[Case::Pingpong { connections: 1 }, Case::Pingpong { connections: 16 }],
            Self::Mixed => &[Case::Mixed],
            Self::Idle => &[Case::Idle],
        }
    }
}

/// What gives one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    Bulk,
    Short,
    Pingpong { connections: usize },
    Mixed,
    Idle,
}

impl Case {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Bulk => format!("bulk: download over {BULK_CONNECTIONS} connections"),
            Self::Short => format!("short: connect, hello, one byte, close; {SHORT_IN_FLIGHT} in flight"),
            Self::Pingpong { connections: 1 } => "pingpong: 128 bytes there and back, 1 connection".into(),
            Self::Pingpong { connections } => {
                format!("pingpong: 128 bytes there and back, {connections} connections")
            }
            Self::Mixed => format!("mixed: 128-byte ping beside {MIXED_CONNECTIONS} bulk connections"),
            Self::Idle => format!("idle: {IDLE_CONNECTIONS} connections that carry nothing"),
        }
    }

    /// Whether the process must not have done anything before: memory once used hides growth.
    pub(crate) fn wants_fresh_process(self) -> bool {
        self == Self::Idle
    }

    /// Whether there is anything to measure without a proxy.
    pub(crate) fn works_direct(self) -> bool {
        self != Self::Idle
    }
}

/// What a number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Figure {
    Throughput,
    Rate,
    P50,
    P99,
    CpuMachine,
    CpuProcesses,
    CpuProxy,
    RestRss,
    RestPss,
    PerConnection,
    Pipes,
}

/// One measurement of one system.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    pub(crate) figures: Vec<(Figure, f64)>,
    /// See [`Usage::gap`]; none where no CPU was counted.
    pub(crate) gap: Option<f64>,
}

/// What a measurement needs besides the system.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) backend: Backend,
    pub(crate) hello: Arc<Hello>,
    pub(crate) stop: Stop,
    pub(crate) window: Duration,
}

impl Lab {
    pub(crate) fn target(&self, running: &Running) -> Target {
        Target { address: running.address, hello: Arc::clone(&self.hello) }
    }

    /// The backend itself, with no system before it.
    pub(crate) fn behind(&self) -> Target {
        Target { address: self.backend.address, hello: Arc::clone(&self.hello) }
    }

    /// Measures once. Afterwards no connection is left.
    pub(crate) fn measure(&self, case: Case, running: &Running) -> io::Result<Sample> {
        let target = self.target(running);
        let corrupt = self.backend.corrupt();
        let sample = match case {
            Case::Bulk => self.bulk(&target, running),
            Case::Short => self.short(&target, running),
            Case::Pingpong { connections } => self.pingpong(&target, running, connections),
            Case::Mixed => self.mixed(&target, running),
            Case::Idle => self.idle(&target, running),
        }?;
        self.backend.wait_until_quiet(&self.stop)?;
        if self.backend.corrupt() > corrupt {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a hello reached the backend changed"));
        }
        Ok(sample)
    }

    fn bulk(&self, target: &Target, running: &Running) -> io::Result<Sample> {
        let mut downloads = Downloads::open(target, BULK_CONNECTIONS)?;
        downloads.run(Instant::now() + WARM_UP, &self.stop)?;
        let meter = Meter::start(&running.processes)?;
        let bytes = downloads.run(Instant::now() + self.window, &self.stop)?;
        let usage = meter.stop()?;
        let gigabytes = number(bytes) / 1e9;
        Ok(cpu_sample(vec![(Figure::Throughput, gigabytes / usage.wall)], usage, 1.0 / gigabytes))
    }

    fn short(&self, target: &Target, running: &Running) -> io::Result<Sample> {
        let mut short = Short::new(target, SHORT_IN_FLIGHT)?;
        short.run(Instant::now() + WARM_UP, &self.stop)?;
        let meter = Meter::start(&running.processes)?;
        let done = short.run(Instant::now() + self.window, &self.stop)?;
        let usage = meter.stop()?;
        Ok(cpu_sample(vec![(Figure::Rate, number(done) / usage.wall)], usage, 1e6 / number(done)))
    }

    fn pingpong(&self, target: &Target, running: &Running, connections: usize) -> io::Result<Sample> {
        let mut pings = PingPong::open(target, connections)?;
        pings.run(Instant::now() + WARM_UP, &self.stop)?;
        let meter = Meter::start(&running.processes)?;
        let times = pings.run(Instant::now() + self.window, &self.stop)?;
        let usage = meter.stop()?;
        Ok(cpu_sample(latencies(times), usage, 1e6 / number(times.len())))
    }

    fn mixed(&self, target: &Target, running: &Running) -> io::Result<Sample> {
        let mut downloads = Downloads::open(target, MIXED_CONNECTIONS)?;
        let mut pings = PingPong::open(target, 1)?;
        let enough = Stop::default();
        std::thread::scope(|scope| {
            let bulk = scope.spawn(|| {
                let began = Instant::now();
                let bytes = downloads.run_until_stopped(&enough)?;
                io::Result::Ok(number(bytes) / 1e9 / began.elapsed().as_secs_f64())
            });
            let mut ping = || {
                pings.run(Instant::now() + WARM_UP, &self.stop)?;
                let meter = Meter::start(&running.processes)?;
                let figures = latencies(pings.run(Instant::now() + self.window, &self.stop)?);
                io::Result::Ok(Sample { figures, gap: Some(meter.stop()?.gap()) })
            };
            let sample = ping();
            // Also when the pings failed: the other thread waits for this.
            enough.request();
            let throughput = bulk.join().map_err(|_| io::Error::other("the bulk load panicked"))??;
            let mut sample = sample?;
            sample.figures.push((Figure::Throughput, throughput));
            Ok(sample)
        })
    }

    fn idle(&self, target: &Target, running: &Running) -> io::Result<Sample> {
        // What the first connections cost once is not what each one costs.
        self.hold(target, 16, || Ok(()))?;
        let rest = Holdings::of(&running.processes)?;
        let full = self.hold(target, IDLE_CONNECTIONS, || Holdings::of(&running.processes))?;
        let growth = number(full.pss) - number(rest.pss);
        let figures = vec![
            (Figure::PerConnection, growth / f64::from(IDLE_CONNECTIONS)),
            (Figure::RestRss, number(rest.rss) / 1024.0),
            (Figure::RestPss, number(rest.pss) / 1024.0),
            (Figure::Pipes, number(full.pipes) - number(rest.pipes)),
        ];
        Ok(Sample { figures, gap: None })
    }

    /// Holds connections open while `look` looks, then has them closed by the backend first.
    fn hold<T>(&self, target: &Target, count: u16, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut streams = target.open_many(Job::Hold, usize::from(count))?;
        self.stop.check()?;
        let seen = look()?;
        self.backend.release_held();
        self.backend.wait_until_quiet(&self.stop)?;
        for stream in &mut streams {
            if stream.read(&mut [0])? != 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes came that nobody sent"));
            }
        }
        Ok(seen)
    }
}

fn latencies(times: &hdrhistogram::Histogram<u64>) -> Vec<(Figure, f64)> {
    let microseconds = |quantile| number(times.value_at_quantile(quantile)) / 1000.0;
    vec![(Figure::P50, microseconds(0.5)), (Figure::P99, microseconds(0.99))]
}

/// Adds the CPU per unit of work; `scale` makes it from seconds.
fn cpu_sample(mut figures: Vec<(Figure, f64)>, usage: Usage, scale: f64) -> Sample {
    figures.push((Figure::CpuMachine, usage.machine * scale));
    figures.push((Figure::CpuProcesses, usage.processes * scale));
    figures.extend(usage.proxy.map(|proxy| (Figure::CpuProxy, proxy * scale)));
    Sample { figures, gap: Some(usage.gap()) }
}

#[expect(clippy::cast_precision_loss, reason = "a measurement is not known to 53 bits")]
fn number(count: u64) -> f64 {
    count as f64
}
