//! Tests the exported tables with real xDS clients: a stock Envoy over delta and state of the world, by its connections
//! and statistics, and grpcio as an independent decoder. How the tables are built is tested beside the adapter.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic anywhere"
)]

#[path = "../common/mod.rs"]
mod common;
mod grpcio;
mod process;
mod scenes;
mod world;
