//! The harness of the end-to-end tests: starts the built programs as processes and talks to them over real
//! sockets, as operators, clients and endpoints do. It relies on the documentation, not on the code. Tests of
//! single modules are beside the modules.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a harness: what fails here is a failed test, and says so by panicking"
)]

pub mod audit;
pub mod binary;
pub mod bulk;
pub mod certs;
pub mod client;
pub mod cluster;
pub mod control_plane;
pub mod endpoint;
pub mod ends;
pub mod flights;
pub mod forged;
pub mod gateway;
pub mod hello;
pub mod http;
pub mod lock;
pub mod log;
pub mod metrics;
pub mod netns;
pub mod process;
pub mod relay;
pub mod resolver;
pub mod setup;
pub mod sidecarless;
pub mod tls;
pub mod wait;
pub mod workload;
pub mod world;

/// Skips a test with a printed reason; with `ISTHMUS_REQUIRE_PEERS=1` the test fails instead.
#[macro_export]
macro_rules! skip {
    ($($why:tt)+) => {{
        let why = format!($($why)+);
        assert!(std::env::var("ISTHMUS_REQUIRE_PEERS").as_deref() != Ok("1"), "required, but: {why}");
        eprintln!("SKIPPED: {why}");
        return;
    }};
}

/// What a test needs; without it the test is skipped.
#[macro_export]
macro_rules! or_skip {
    ($needed:expr) => {
        match $needed {
            Ok(needed) => needed,
            Err(why) => $crate::skip!("{why}"),
        }
    };
}

/// Prints a measured figure.
#[macro_export]
macro_rules! figure {
    ($($what:tt)+) => { println!("FIGURE: {}", format!($($what)+)) };
}

/// Whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
