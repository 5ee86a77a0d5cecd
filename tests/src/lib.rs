//! The harness of the worlds: it starts the built gateway as a process of its own and speaks to it over
//! real sockets, as an operator, a client and an endpoint would. It knows the documentation, not the code.
//! Not for tests of single modules, which stand beside them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a harness: what fails here is a failed test, and says so by panicking"
)]

pub mod binary;
pub mod bulk;
pub mod certs;
pub mod client;
pub mod cluster;
pub mod control_plane;
pub mod endpoint;
pub mod gateway;
pub mod hello;
pub mod http;
pub mod lock;
pub mod log;
pub mod metrics;
pub mod netns;
pub mod process;
pub mod setup;
pub mod tls;
pub mod wait;
pub mod workload;
pub mod world;

/// Says why a test does not run here; where peers are demanded (`ISTHMUS_REQUIRE_PEERS=1`) it fails instead.
#[macro_export]
macro_rules! skip {
    ($($why:tt)+) => {{
        let why = format!($($why)+);
        assert!(std::env::var("ISTHMUS_REQUIRE_PEERS").as_deref() != Ok("1"), "required, but: {why}");
        eprintln!("SKIPPED: {why}");
        return;
    }};
}

/// Prints what a test measured.
#[macro_export]
macro_rules! figure {
    ($($what:tt)+) => { println!("FIGURE: {}", format!($($what)+)) };
}

/// Whether this process may do what only root may.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
