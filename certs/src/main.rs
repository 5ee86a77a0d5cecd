//! Runs `isthmus-certs` and sets its exit code. The commands are in `cli`.

mod cli;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::Cli;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::run(&cli) {
        Ok(code) => code,
        Err(error) => {
            cli::complain(&error, cli.json);
            ExitCode::FAILURE
        }
    }
}
