//! Real xDS clients at the agent's tables: a stock Envoy, over delta and over states of the world, whose
//! connections and statistics tell what it made of them; and grpcio, as a second decoder. Not how the tables
//! are made: that is tested beside the adapter.

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
