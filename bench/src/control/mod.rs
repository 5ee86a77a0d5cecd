//! `control`: how fast a change in a registry reaches connections, what a large registry costs, and how a change
//! fans out, with the real agent and the real gateway. Not the data path: that is `compare`.

mod change;
mod cluster;
mod crowd;
mod fanout;
mod large;
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

/// Measure the control plane: agent and gateway processes, their registry, and simulated receivers.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  isthmus-bench control
  isthmus-bench control --only change --services 1000 --changes 20
  isthmus-bench control --only large --large-services 20000 --json control.json

It ends with 0 if everything was measured, whether or not every bar is met, 1 if something failed or was
interrupted, 2 on wrong usage.")]
pub(crate) struct Control {
    /// Services of the registry that changes and fans out.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1_000..=900_000))]
    services: u32,
    /// Services of the large registry; the small one beside it has a tenth.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..=900_000))]
    large_services: u32,
    /// Endpoints of each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=16))]
    endpoints_per_service: u32,
    /// Changes of each kind from cluster to cluster.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// Simulated gateways; a quarter and half of them are measured, too.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(4..=2_000))]
    gateways: u16,
    /// Simulated peer clusters beside them.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    peers: u16,
    /// Only these parts.
    #[arg(long, value_delimiter = ',', value_name = "PART")]
    only: Vec<Part>,
    /// The agent's program [default: isthmus-agent beside this one]
    #[arg(long, value_name = "PATH")]
    agent: Option<PathBuf>,
    /// The gateway's program [default: isthmus-gateway beside this one]
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// Where the report is written as JSON too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From an edit in one cluster to connections in another.
    Change,
    /// One agent and one gateway with a large registry.
    Large,
    /// One agent with many receivers.
    Fanout,
}

/// How large a registry is.
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
        // What was measured before something failed is shown all the same.
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
        ];
        steps.iter().filter(|(part, _)| self.wants(*part)).map(|(_, steps)| steps).sum()
    }
}

fn program(given: Option<&Path>, name: &str) -> anyhow::Result<PathBuf> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => env::current_exe().context("where this program is")?.with_file_name(name),
    };
    ensure!(
        path.is_file(),
        "{} is not there; `cargo build --release --workspace` makes it, or name it with an option",
        path.display()
    );
    Ok(path)
}
