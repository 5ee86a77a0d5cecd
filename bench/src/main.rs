//! `isthmus-bench`: the gateway, its peers and the bare connection under the same load, in the same run,
//! on the reader's own machine. This is its first command; emulated WANs, pages and open loops are not here.

mod backend;
mod check;
mod compare;
mod cpu;
mod hello;
mod load;
mod memory;
mod netns;
mod poller;
mod process;
mod report;
mod scenarios;
mod stats;
mod stop;
mod systems;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Isthmus beside other proxies.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(compare::Compare),
}

/// 0: measured; 1: something failed or was interrupted; 2: wrong usage.
fn main() -> ExitCode {
    let Command::Compare(compare) = Cli::parse().command;
    match compare.run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failures) => {
            eprintln!("{failures} measurements failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("isthmus-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
