//! Subcommands of the agent's command line; `main` defines the command line itself.

pub mod ask;
mod matrix;
pub mod text;
