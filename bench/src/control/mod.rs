//! `control`: measures how fast a registry change reaches connections, what a large registry costs and how a
//! change fans out, with the real agent and gateway. For the data path see `compare`.

mod change;
mod cluster;
mod crowd;
mod fanout;
mod large;
mod pages;
mod registry;
mod report;
mod tap;

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};

use self::cluster::Programs;
use self::report::Report;
use crate::progress::Progress;
use crate::stop::Stop;

/// Measure the control plane: agent and gateway processes, their registry and simulated receivers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  isthmus-bench control
  isthmus-bench control --only change --services 1000 --changes 20
  isthmus-bench control --only large --large-services 20000 --json control.json

Exit code: 0 all measurements succeeded, even if a target was missed, 1 a failure or an interruption,
2 a usage error.")]
pub(crate) struct Control {
    /// Number of services for the parts `change` and `fanout`.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1_000..=900_000))]
    services: u32,
    /// Number of services of the large registry, which is compared with one of a tenth of the size, and of the part
    /// `pages`.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..=900_000))]
    large_services: u32,
    /// Endpoints of each service in the large registry.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
    endpoints_per_service: u32,
    /// Number of changes of each kind between the clusters.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// Number of simulated gateways; a quarter and half of them are measured as well.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(4..=2_000))]
    gateways: u16,
    /// Number of simulated peer clusters.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    peers: u16,
    /// Run only these parts [default: all]
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// The agent binary [default: isthmus-agent in the directory of this binary]
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// The gateway binary [default: isthmus-gateway in the directory of this binary]
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// Also write the report to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The parts of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From an edit in one cluster to connections in another.
    Change,
    /// One agent and one gateway with a large registry.
    Large,
    /// One agent with many receivers.
    Fanout,
    /// Health checks, metrics and status while agent and gateway are busy.
    Pages,
}

/// Size of a registry.
#[derive(Clone, Copy, Debug)]
struct Size {
    services: u32,
    endpoints: u32,
}

impl Control {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let stop = Stop::on_signals()?;
        let programs = Programs {
            agent: program(self.agent.as_deref(), "isthmus-agent")?,
            gateway: program(self.gateway.as_deref(), "isthmus-gateway")?,
        };
        let mut progress = Progress::new(self.steps());
        let mut report = Report::new();
        let measured = self.measure(&programs, &mut report, &mut progress, &stop);
        drop(progress);
        io::stdout().write_all(report.render().as_bytes()).context("cannot print the report")?;
        if let Some(file) = &self.json {
            fs::write(file, serde_json::to_string_pretty(&report)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        // Results up to a failure are shown as well.
        measured
    }

    fn measure(
        &self,
        programs: &Programs,
        report: &mut Report,
        progress: &mut Progress,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let size = |services| Size { services, endpoints: self.endpoints_per_service };
        if self.wants(Part::Change) {
            let size = size(self.services);
            let times = change::measure(programs, size, self.changes, progress, stop)?;
            report.change(size, times);
        }
        if self.wants(Part::Large) {
            let small = large::measure(programs, size(self.large_services / 10), progress, stop)?;
            let large = large::measure(programs, size(self.large_services), progress, stop)?;
            report.large(&small, &large);
        }
        if self.wants(Part::Fanout) {
            let (size, crowd) = (size(self.services), (self.gateways.into(), self.peers.into()));
            let steps = fanout::measure(programs, size, crowd, progress, stop)?;
            report.fanout(size, crowd.1, &steps);
        }
        if self.wants(Part::Pages) {
            let size = size(self.large_services);
            report.pages(size, &pages::measure(programs, size, progress, stop)?);
        }
        Ok(())
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn steps(&self) -> usize {
        let steps = [
            (Part::Change, 1 + 2 * usize::try_from(self.changes).unwrap_or_default()),
            (Part::Large, 6),
            (Part::Fanout, 4),
            (Part::Pages, 2),
        ];
        steps.iter().filter(|(part, _)| self.wants(*part)).map(|(_, steps)| steps).sum()
    }
}

fn program(given: Option<&Path>, name: &str) -> anyhow::Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => env::current_exe().context("cannot determine the path of this binary")?.with_file_name(name),
    };
    ensure!(
        path.is_file(),
        "{} does not exist; build it with `cargo build --release --workspace`, or give its path with an option",
        path.display()
    );
    Ok(path)
}
