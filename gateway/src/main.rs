//! The command line of the gateway: what there is to say, and which code it exits with.

mod cli;

use std::process::ExitCode;

use clap::Parser;
use isthmus_certs::causes::with_causes;
use isthmus_gateway::config::Problems;

use crate::cli::{Cli, Command};

/// Wrong configuration, as wrong usage.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(options) => cli::run::run(&options),
        Command::Check(options) => cli::check::check(&options),
        Command::Demo { once } => cli::run::demo(once),
        Command::Completions { shell } => cli::completions(shell),
        Command::Ask(question) => cli::ask::ask(&question),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Problems>() => {
            eprintln!("{error}");
            ExitCode::from(WRONG)
        }
        Err(error) => {
            eprintln!("isthmus-gateway: {}", with_causes(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
