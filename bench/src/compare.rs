//! `compare`: starts every system, checks it, measures all of them in turn, and writes the report. The order
//! of the systems changes from round to round, so that a noisy machine and a warm cache affect all alike.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum as _};

use crate::cases::{Case, Scenario};
use crate::contender::Contender;
use crate::cpu::Meter;
use crate::descriptors;
use crate::lab::Lab;
use crate::progress::Progress;
use crate::report::{self, Machine, Measurement, Report, SCHEMA, Skipped, US, table};
use crate::sample::Sample;
use crate::stop::Stop;
use crate::systems::{ALL, BASELINE, Search};

/// How long other programs' CPU use is sampled.
const QUIET: Duration = Duration::from_millis(500);

/// Share of the machine in use by other programs that spoils a measurement.
const DISTURBED: f64 = 0.05;

/// Compare the gateway with other proxies on this machine, one worker each.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  isthmus-bench compare                               all cases; under 15 minutes on 2 cores
  isthmus-bench compare --quick                       a few cases of each scenario; under 2 minutes
  isthmus-bench compare --scenarios short --peers nginx --rounds 9 --seconds 1
  isthmus-bench compare --peers none --baseline old/isthmus-gateway   this build against an older one

Exit code: 0 all measurements succeeded, 1 a failure or an interruption, 2 a usage error.
The report contains all completed measurements in any case.")]
pub(crate) struct Compare {
    /// The gateway binary [default: isthmus-gateway in the directory of this binary]
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// Another build of the gateway to compare with.
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
    /// The proxies to compare with.
    #[arg(long, value_delimiter = ',', default_value = "haproxy,nginx,envoy,traefik",
          value_parser = ["haproxy", "nginx", "envoy", "traefik", "none"])]
    peers: Vec<String>,
    /// A Python virtual environment with the proxies [default: target/peers, where tests/run installs them].
    /// `ISTHMUS_HAPROXY`, `ISTHMUS_NGINX`, `ISTHMUS_ENVOY` and `ISTHMUS_TRAEFIK` name single binaries;
    /// PATH is searched last.
    #[arg(long, value_name = "DIR")]
    peers_dir: Option<PathBuf>,
    /// The scenarios to measure [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    scenarios: Vec<Scenario>,
    /// Run one round, with a few cases of each scenario.
    #[arg(long)]
    quick: bool,
    /// Rounds of each case; memory and routes are measured once [default: 3, or 1 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Length of one measurement, in seconds.
    #[arg(long, default_value_t = 0.4, value_parser = seconds)]
    seconds: f64,
    /// How long a measurement waits for other programs to become idle. A measurement that they disturb is
    /// repeated within this time.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    patience: u64,
    /// Directory for the report.
    #[arg(long, value_name = "DIR", default_value = "bench-report")]
    out: PathBuf,
}

/// A case and its scenario.
type Asked = (Scenario, Case);

impl Compare {
    /// Returns the number of failed measurements.
    pub(crate) fn run(&self) -> anyhow::Result<usize> {
        let window = Duration::from_secs_f64(self.seconds);
        let rounds = self.rounds.unwrap_or(if self.quick { 1 } else { 3 });
        // Both ends of every connection are in this process, and the proxies inherit the limit.
        let descriptors = descriptors::raise_limit()?;
        let stop = Stop::on_signals()?;
        let mut report = self.empty_report(rounds)?;
        let lab = Lab::new(window, rounds, descriptors, stop)?;
        let began = Instant::now();

        let mut contenders = self.start_all(&lab, &mut report.skipped)?;
        report.systems = contenders.iter().map(|contender| contender.info.clone()).collect();
        let asked = self.asked(&lab, &mut report.skipped);
        if asked.iter().any(|(scenario, _)| *scenario == Scenario::TlsEnds) {
            open_ends(&lab, &mut contenders, &mut report.skipped)?;
        }
        let measurements = self.measure_all(&lab, &contenders, &asked, &mut report.skipped);
        drop(contenders);

        let names: Vec<String> = report.systems.iter().map(|system| system.name.clone()).collect();
        report.cases = asked
            .iter()
            .filter_map(|(scenario, case)| report::case_report(*scenario, *case, &names, &measurements))
            .collect();
        report.took_seconds = began.elapsed().as_secs();
        if lab.stop.requested() {
            report.warnings.push("interrupted: some measurements are missing".into());
        }
        report::write(&report, &self.out)?;
        io::stdout().write_all(table::render(&report).as_bytes()).context("cannot print the report")?;
        lab.stop.check()?;
        Ok(measurements.iter().filter(|measurement| measurement.outcome.is_err()).count())
    }

    fn empty_report(&self, rounds: u16) -> anyhow::Result<Report> {
        let mut warnings = Vec::new();
        if cfg!(debug_assertions) {
            warnings.push(
                "debug build: the figures are meaningless; use cargo build --release --workspace".into(),
            );
        }
        Ok(Report {
            schema: SCHEMA.into(),
            bench_version: env!("CARGO_PKG_VERSION").into(),
            commit: commit(),
            machine: Machine::read(),
            began_unix: report::unix_time(),
            took_seconds: 0,
            rounds,
            seconds: self.seconds,
            busy_before: busy()?,
            warnings,
            systems: Vec::new(),
            skipped: Vec::new(),
            cases: Vec::new(),
        })
    }

    fn asked(&self, lab: &Lab, skipped: &mut Vec<Skipped>) -> Vec<Asked> {
        let wanted = if self.scenarios.is_empty() { Scenario::value_variants() } else { &self.scenarios };
        let all = wanted.iter().flat_map(|scenario| {
            let cases = if self.quick { scenario.quick_cases() } else { scenario.cases() };
            cases.into_iter().map(move |case| (*scenario, case))
        });
        let (mut asked, mut left_out) = (Vec::new(), Vec::new());
        for (scenario, case) in all {
            match case.possible(lab) {
                Ok(()) => asked.push((scenario, case)),
                Err(why) => left_out.push(Skipped { what: case.title(), why }),
            }
        }
        skipped.extend(left_out);
        asked
    }

    fn start_all(&self, lab: &Lab, skipped: &mut Vec<Skipped>) -> anyhow::Result<Vec<Contender>> {
        let search =
            Search::new(self.gateway.as_deref(), self.baseline.as_deref(), self.peers_dir.as_deref())?;
        let mut contenders = vec![Contender::direct(lab)];
        for system in ALL {
            let name = system.name();
            let asked_for = name == US
                || (name == BASELINE && self.baseline.is_some())
                || self.peers.iter().any(|peer| peer == name);
            if !asked_for {
                continue;
            }
            lab.stop.check()?;
            match Contender::start(system, &search, lab) {
                Ok(contender) => {
                    eprintln!("{name}: {}, passthrough verified", contender.info.version);
                    contenders.push(contender);
                }
                Err(why) if name == US => bail!("cannot start the gateway ({name}): {why}"),
                Err(why) => {
                    eprintln!("{name}: SKIPPED: {why}");
                    skipped.push(Skipped { what: name.into(), why });
                }
            }
        }
        Ok(contenders)
    }

    fn measure_all(
        &self,
        lab: &Lab,
        contenders: &[Contender],
        asked: &[Asked],
        skipped: &mut Vec<Skipped>,
    ) -> Vec<Measurement> {
        let plan: Vec<(usize, Case, &Contender)> = (0..usize::from(lab.rounds))
            .flat_map(|round| asked.iter().map(move |(_, case)| (round, *case)))
            .filter(|(round, case)| *round == 0 || !case.only_once())
            .flat_map(|(round, case)| {
                let turned = contenders.iter().cycle().skip(round).take(contenders.len());
                turned.map(move |contender| (round, case, contender))
            })
            .filter(|(_, case, contender)| contender.can(*case))
            .collect();
        let (mut progress, mut measurements) = (Progress::new(plan.len()), Vec::new());
        for (round, case, contender) in plan {
            if lab.stop.requested() {
                break;
            }
            let system = contender.info.name.clone();
            progress.step(&format!("round {}, {}", round + 1, case.title()), &system);
            let outcome = self.measure_patiently(lab, case, contender);
            if lab.stop.requested() {
                // A measurement cut short by an interruption is no result.
                break;
            }
            match outcome {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    let what = format!("{system}, {}", case.title());
                    progress.say(&format!("SKIPPED {what}: {error}"));
                    skipped.push(Skipped { what, why: error.to_string() });
                }
                Err(error) => {
                    progress.say(&format!("FAILED {system}, {}: {error}", case.title()));
                    measurements.push(Measurement { case, system, outcome: Err(error.to_string()) });
                }
                Ok(sample) => measurements.push(Measurement { case, system, outcome: Ok(sample) }),
            }
        }
        measurements
    }

    fn measure_patiently(&self, lab: &Lab, case: Case, contender: &Contender) -> io::Result<Sample> {
        let deadline = Instant::now() + Duration::from_secs(self.patience);
        loop {
            while Instant::now() < deadline && !lab.stop.requested() {
                if busy()? < DISTURBED {
                    break;
                }
            }
            let sample = case.measure(lab, contender)?;
            if sample.gap.is_none_or(|gap| gap < DISTURBED) || Instant::now() >= deadline {
                return Ok(sample);
            }
        }
    }
}

/// Starts the processes that end or begin TLS; systems that cannot are named.
fn open_ends(lab: &Lab, contenders: &mut [Contender], skipped: &mut Vec<Skipped>) -> anyhow::Result<()> {
    for contender in contenders.iter_mut().filter(|contender| !contender.is_direct()) {
        lab.stop.check()?;
        let name = contender.info.name.clone();
        match contender.open_ends(lab) {
            Ok(()) => eprintln!("{name}: TLS at both ends verified"),
            Err(why) if name == US => bail!("cannot start the gateway ({name}) with TLS: {why}"),
            Err(why) => {
                let what = format!("{name}, {}", Scenario::TlsEnds.name());
                eprintln!("{what}: SKIPPED: {why}");
                skipped.push(Skipped { what, why });
            }
        }
    }
    Ok(())
}

/// Parses `--seconds`: the lower limit lets a load do some work, the upper one is what a histogram holds.
fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.01..=60.0).contains(seconds));
    seconds.ok_or_else(|| "must be between 0.01 and 60".into())
}

/// The share of the machine that other programs use while this one is idle.
fn busy() -> io::Result<f64> {
    let meter = Meter::start(&[])?;
    std::thread::sleep(QUIET);
    Ok(meter.stop()?.gap().max(0.0))
}

fn commit() -> Option<String> {
    let output =
        Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|commit| output.status.success() && !commit.is_empty())
}
