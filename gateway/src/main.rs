//! The gateway program: parses the command line, runs a command and maps its outcome to an exit code.

mod cli;
#[cfg(feature = "demo")]
mod demo;

use std::process::ExitCode;

use clap::Parser;
use isthmus_certs::causes::with_causes;
use isthmus_certs::output;
use isthmus_core::config::Problems;

use crate::cli::{Cli, Command};

/// Exit code for an invalid configuration; the same as for wrong usage.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(options) => cli::run::run(&options),
        Command::Check(options) => cli::check::check(&options),
        #[cfg(feature = "demo")]
        Command::Demo { once } => cli::run::demo(once),
        Command::Capture(command) => cli::capture::capture(&command),
        Command::Completions { shell } => cli::completions(shell),
        Command::Ask(question) => cli::ask::ask(&question),
    };
    match outcome {
        Ok(()) => {
            output::settle();
            ExitCode::SUCCESS
        }
        Err(error) if error.is::<Problems>() => {
            output::last_words(&error.to_string());
            ExitCode::from(WRONG)
        }
        Err(error) => {
            output::last_words(&format!("isthmus-gateway: {}", with_causes(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}
