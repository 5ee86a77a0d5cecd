//! `compare`: start every system, check it, measure all of them in turns, report, stop. The order of the
//! systems changes from round to round, so that a noisy machine and a warm cache hit all alike.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::backend::Backend;
use crate::check;
use crate::cpu::Meter;
use crate::hello::Hello;
use crate::process::Running;
use crate::report::{Machine, Measurement, Report, Skipped, SystemInfo, table};
use crate::scenarios::{Case, Lab, Sample, Scenario};
use crate::stop::Stop;
use crate::systems::{ALL, Search, System, version};

/// How long the machine is watched before anything is started.
const QUIET: Duration = Duration::from_millis(500);

/// A part of the machine in other hands that spoils a measurement.
const DISTURBED: f64 = 0.05;

/// Measure the gateway beside its peers, on loopback, one worker each.
#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// The gateway's program.
    #[arg(long, value_name = "PATH", default_value = "target/release/isthmus-gateway")]
    gateway: PathBuf,
    /// Which peers to compare with.
    #[arg(long, value_delimiter = ',', default_value = "haproxy,nginx,envoy,traefik")]
    peers: Vec<String>,
    /// A directory with peers, as a Python virtual environment has them. `ISTHMUS_HAPROXY`,
    /// `ISTHMUS_NGINX`, `ISTHMUS_ENVOY` and `ISTHMUS_TRAEFIK` name single programs; else PATH is searched.
    #[arg(long, value_name = "DIR")]
    peers_dir: Option<PathBuf>,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "bulk,short,pingpong,mixed,idle")]
    scenarios: Vec<Scenario>,
    /// How often each is measured.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long a measurement lasts, in seconds.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds that a measurement may wait until other programs leave the machine alone; it is also made
    /// again when they came back meanwhile.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    patience: u64,
    /// Also write everything, each sample too, into this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A system that was found, started and checked.
struct Contender {
    info: SystemInfo,
    running: Running,
    /// How to start it again; none for the direct connection.
    source: Option<(&'static dyn System, PathBuf)>,
}

impl Compare {
    /// Gives the number of measurements that failed.
    pub(crate) fn run(&self) -> anyhow::Result<usize> {
        let unknown = self.peers.iter().find(|peer| !ALL.iter().any(|system| system.name() == *peer));
        if let Some(peer) = unknown {
            bail!("--peers: {peer} is not known; there are haproxy, nginx, envoy, traefik");
        }
        let window = Duration::try_from_secs_f64(self.seconds).context("--seconds")?;
        raise_descriptor_limit()?;
        let stop = Stop::on_signals()?;
        let busy_before = busy()?;
        let mut report = Report::new(Machine::read(), self.rounds.into(), self.seconds, busy_before);
        let hello = Arc::new(Hello::new()?);
        let backend = Backend::start(Arc::clone(&hello))?;
        let lab = Lab { backend, hello, stop, window };

        let contenders = self.start_all(&lab, &mut report);
        report.systems = contenders.iter().map(|contender| contender.info.clone()).collect();
        let cases: Vec<Case> = self.scenarios.iter().flat_map(|scenario| scenario.cases()).copied().collect();
        let measurements = self.measure_all(&lab, &contenders, &cases);
        drop(contenders);

        report.summarise(&cases, &measurements);
        print!("{}", table::render(&report));
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&report)?;
            fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        lab.stop.check()?;
        Ok(report.failures())
    }

    fn start_all(&self, lab: &Lab, report: &mut Report) -> Vec<Contender> {
        let search = Search { gateway: self.gateway.clone(), peers_dir: self.peers_dir.clone() };
        let info = SystemInfo { name: "direct", version: "no proxy".into(), program: String::new() };
        let running = Running::direct(lab.backend.address);
        let mut contenders = vec![Contender { info, running, source: None }];
        for system in ALL {
            let name = system.name();
            if name != "isthmus" && !self.peers.iter().any(|peer| peer == name) {
                continue;
            }
            match start(system, &search, lab) {
                Ok(contender) => {
                    eprintln!("{name}: {}, passes bytes through", contender.info.version);
                    contenders.push(contender);
                }
                Err(why) => {
                    eprintln!("{name}: SKIPPED: {why}");
                    report.skipped.push(Skipped { name, why });
                }
            }
        }
        contenders
    }

    fn measure_all(&self, lab: &Lab, contenders: &[Contender], cases: &[Case]) -> Vec<Measurement> {
        let mut measurements = Vec::new();
        for round in 0..usize::from(self.rounds) {
            for case in cases {
                eprint!("round {} of {}, {}:", round + 1, self.rounds, case.name());
                for place in 0..contenders.len() {
                    let Some(contender) = contenders.get((place + round) % contenders.len()) else {
                        continue;
                    };
                    if lab.stop.requested() {
                        eprintln!(" stopped");
                        return measurements;
                    }
                    let system = contender.info.name;
                    if contender.source.is_none() && !case.works_direct() {
                        continue;
                    }
                    eprint!(" {system}");
                    let outcome = self.measure_patiently(lab, *case, contender);
                    if let Err(why) = &outcome {
                        eprint!(" (FAILED: {why})");
                    }
                    measurements.push(Measurement { case: *case, system, outcome });
                }
                eprintln!();
            }
        }
        measurements
    }
}

impl Compare {
    fn measure_patiently(&self, lab: &Lab, case: Case, contender: &Contender) -> Result<Sample, String> {
        let deadline = Instant::now() + Duration::from_secs(self.patience);
        loop {
            while Instant::now() < deadline && !lab.stop.requested() {
                if busy().map_err(|error| error.to_string())? < DISTURBED {
                    break;
                }
            }
            let sample = measure(lab, case, contender)?;
            if sample.gap.is_none_or(|gap| gap < DISTURBED) || Instant::now() >= deadline {
                return Ok(sample);
            }
        }
    }
}

fn start(system: &'static dyn System, search: &Search, lab: &Lab) -> Result<Contender, String> {
    let program = system.program(search)?;
    let running = Running::start(system, &program, &lab.behind(), &lab.stop)
        .map_err(|error| format!("it does not start: {error}"))?;
    check::passes_bytes_through(&lab.target(&running)).map_err(|error| {
        format!("it does not pass bytes through: {error}; it said: {}", running.last_words())
    })?;
    let info = SystemInfo {
        name: system.name(),
        version: version(system, &program),
        program: program.display().to_string(),
    };
    Ok(Contender { info, running, source: Some((system, program)) })
}

fn measure(lab: &Lab, case: Case, contender: &Contender) -> Result<Sample, String> {
    let outcome = match &contender.source {
        Some((system, program)) if case.wants_fresh_process() => {
            Running::start(*system, program, &lab.behind(), &lab.stop)
                .and_then(|fresh| lab.measure(case, &fresh))
        }
        _ => lab.measure(case, &contender.running),
    };
    outcome.map_err(|error| format!("{error}; it said: {}", contender.running.last_words()))
}

/// The part of the machine that others use while this program does nothing.
fn busy() -> anyhow::Result<f64> {
    let meter = Meter::start(&[])?;
    std::thread::sleep(QUIET);
    Ok(meter.stop()?.gap().max(0.0))
}

/// Both ends of every connection are here; and the proxies inherit the limit.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}
