//! `hairpin`: what a detour through a central ingress costs, against the direct way from site to site, over
//! an emulated WAN. Not a comparison of proxies: that is `compare`.

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

/// Measure a detour through a central ingress against the direct way, over an emulated WAN.
///
/// Three sites: west with a client, centre with an ingress (HAProxy) that ends the client's mTLS and
/// encrypts again, east with a service behind its gateway. Needs root, the program ip, and HAProxy:
/// from PATH, or as `ISTHMUS_HAPROXY` names it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  isthmus-bench hairpin
  isthmus-bench hairpin --delay 35ms --jitter 2ms --bandwidth 1Gbit
  isthmus-bench hairpin --west-east delay=60ms,bandwidth=50Mbit --json hairpin.json

It ends with 0 if everything was measured, 1 if something failed or was interrupted, 2 on wrong usage.")]
pub(crate) struct Hairpin {
    /// Delay of every link, one way.
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = delay)]
    delay: Duration,
    /// What is added to the delay at most, evenly spread; packets stay in order.
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = delay)]
    jitter: Duration,
    /// Bandwidth of every link, each direction; as much as fits a round trip may wait for it.
    #[arg(long, value_name = "BITS", default_value = "100Mbit", value_parser = bandwidth)]
    bandwidth: u64,
    /// What is different for this link: delay=TIME,jitter=TIME,bandwidth=BITS, any of them.
    #[arg(long, value_name = "CHANGE")]
    west_centre: Option<Change>,
    /// The same for this one.
    #[arg(long, value_name = "CHANGE")]
    centre_east: Option<Change>,
    /// The same for this one, the direct way.
    #[arg(long, value_name = "CHANGE")]
    west_east: Option<Change>,
    /// How often each way is gone, in turns.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Small requests on an open connection, a round.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    round_trips: u16,
    /// Length of a download.
    #[arg(long, value_name = "BYTES", default_value = "4MiB", value_parser = size)]
    size: u64,
    /// Decides the jitter.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The gateway's program [default: isthmus-gateway beside this one]
    #[arg(long, value_name = "PATH")]
    gateway: Option<PathBuf>,
    /// Where the report is written as JSON too.
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
        let report = Report::of(setting, [(first, &direct), (second, &hairpin)]);
        let report = report.context("nothing was measured")?;
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

    /// Visits of the direct route, and of the other, in turns; who begins changes from round to round.
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
                let told =
                    |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", route.name));
                visits.push(made.map_err(told)?);
            }
        }
        Ok(visits)
    }
}
