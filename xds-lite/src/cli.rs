//! Subcommands of the agent's command line; `main` defines the command line itself.

pub mod ask;
pub mod text;
