//! `isthmus-bench`: measures the gateway, other proxies and a direct connection under the same load, in the
//! same run, on one machine.

mod affinity;
mod backend;
mod cases;
mod check;
mod compare;
mod contender;
mod control;
mod cpu;
mod descriptors;
mod ends;
mod hairpin;
mod hello;
mod lab;
mod load;
mod netns;
mod place;
mod poller;
mod proc;
mod process;
mod program;
mod progress;
mod report;
mod run;
mod sample;
mod stats;
mod stop;
mod systems;
mod unverified;
mod wan;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Isthmus and compares it with other proxies.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(compare::Compare),
    Control(control::Control),
    Hairpin(hairpin::Hairpin),
    Report(report::Render),
    Run(run::Run),
}

/// Exits with 0 after a complete run, 1 after a failure or an interruption, 2 on a usage error.
fn main() -> ExitCode {
    let failures = match Cli::parse().command {
        Command::Compare(compare) => compare.run(),
        Command::Control(control) => control.run().map(|()| 0),
        Command::Hairpin(hairpin) => hairpin.run().map(|()| 0),
        Command::Report(render) => render.run().map(|()| 0),
        Command::Run(run) => return run.run(),
    };
    match failures {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("isthmus-bench: measurements failed: {failures}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("isthmus-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
