//! `hairpin`: measures what a detour through a central ingress costs, against the direct path between sites,
//! over an emulated WAN. For a comparison of proxies see `compare`.

mod cost;
mod find;
mod report;
mod service;
mod table;
mod trust;
mod visit;
mod watched;
mod world;

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use self::find::Programs;
use self::report::{Report, Setting};
use self::visit::{Plan, Visit, visit};
use self::world::{Shapes, World};
use crate::progress::Progress;
use crate::stop::Stop;
use crate::wan::units::{bandwidth, delay, size};
use crate::wan::{Change, Shape};

/// Measure a detour through a central ingress against the direct path, over an emulated WAN.
///
/// Three sites: west with a client, centre with an ingress (HAProxy) that terminates and re-encrypts the
/// client's mTLS, east with a service behind its gateway. Requires root, the `ip` command, and HAProxy in
/// PATH or at `ISTHMUS_HAPROXY`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  isthmus-bench hairpin
  isthmus-bench hairpin --delay 35ms --jitter 2ms --bandwidth 1Gbit
  isthmus-bench hairpin --west-east delay=60ms,bandwidth=50Mbit --json hairpin.json

Exit code: 0 all measurements succeeded, 1 a failure or an interruption, 2 a usage error.")]
pub(crate) struct Hairpin {
    /// One-way delay of every link.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = delay)]
    delay: Duration,
    /// Largest additional delay, uniformly distributed; packets stay in order.
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = delay)]
    jitter: Duration,
    /// Bandwidth of every link in each direction; its queue holds one bandwidth-delay product.
    #[arg(long, value_name = "BITS", default_value = "100Mbit", value_parser = bandwidth)]
    bandwidth: u64,
    /// Overrides for the link west-centre: any of delay=TIME,jitter=TIME,bandwidth=BITS.
    #[arg(long, value_name = "CHANGE")]
    west_centre: Option<Change>,
    /// Overrides for the link centre-east.
    #[arg(long, value_name = "CHANGE")]
    centre_east: Option<Change>,
    /// Overrides for the link west-east, the direct path.
    #[arg(long, value_name = "CHANGE")]
    west_east: Option<Change>,
    /// Number of measurements of each path, in turn.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Number of small requests on an open connection in each round.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    round_trips: u16,
    /// Size of a download.
    #[arg(long, value_name = "BYTES", default_value = "4MiB", value_parser = size)]
    size: u64,
    /// Seed of the jitter.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The gateway binary [default: isthmus-gateway in the directory of this binary]
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// Also write the report to this file as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Hairpin {
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let stop = Stop::on_signals()?;
        let (shapes, programs) = (self.shapes(), Programs::find(self.gateway.as_deref())?);
        let world = World::start(shapes, self.seed, &programs, &stop)?;
        let plan = Plan { round_trips: self.round_trips, size: self.size };
        let [direct, hairpin] = world.west.inside(|| self.measure(&world, plan, &stop))?;
        let setting = Setting {
            versions: programs.versions,
            congestion_control: world.congestion_control.clone(),
            plan,
            shapes,
            seed: self.seed,
            dropped: world.dropped(),
            client_id: world.client_id.clone(),
        };
        let [first, second] = &world.routes;
        let report = Report::compare(setting, [(first, &direct), (second, &hairpin)]);
        let report = report.context("no measurement was completed")?;
        io::stdout().write_all(table::render(&report).as_bytes()).context("cannot print the report")?;
        if let Some(file) = &self.json {
            fs::write(file, serde_json::to_string_pretty(&report)?)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        Ok(())
    }

    fn shapes(&self) -> Shapes {
        let base = Shape { delay: self.delay, jitter: self.jitter, bandwidth: self.bandwidth };
        let shape = |change: &Option<Change>| change.map_or(base, |change| base.changed(&change));
        Shapes {
            west_centre: shape(&self.west_centre),
            centre_east: shape(&self.centre_east),
            west_east: shape(&self.west_east),
        }
    }

    /// Visits both routes in turn; the first one alternates from round to round.
    fn measure(&self, world: &World, plan: Plan, stop: &Stop) -> io::Result<[Vec<Visit>; 2]> {
        let meters = world.meters();
        let mut progress = Progress::new(2 * usize::from(self.rounds));
        let mut visits = [Vec::new(), Vec::new()];
        for round in 0..usize::from(self.rounds) {
            let both = world.routes.iter().zip(&mut visits);
            let mut turn: Vec<_> = both.collect();
            turn.rotate_left(round % 2);
            for (route, visits) in turn {
                progress.step(&format!("round {}", round + 1), route.name);
                let made = visit(route, plan, &meters, stop);
                stop.check()?;
                let with_route =
                    |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", route.name));
                visits.push(made.map_err(with_route)?);
            }
        }
        Ok(visits)
    }
}
