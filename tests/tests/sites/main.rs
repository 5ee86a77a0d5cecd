//! Three sites, each with an address of its own, under a steady load: whatever fails, no call fails while a healthy
//! endpoint exists anywhere, traffic comes back, and nothing oscillates. Each shape of failure is injected at the site
//! that serves: at its endpoints (`endpoints`), its gateways and links (`gateways`); one service of ten (`neighbours`);
//! failures that were reported of other systems (`reported`); gateways behind names (`addresses`). Requires root and nft.
//!
//! `ISTHMUS_SITES_SECONDS` is how long each failure lasts, in place of a few seconds; then there are 500 calls a second,
//! and each shape of an endpoint's failure has a world of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may panic anywhere"
)]

mod addresses;
mod backend;
mod endpoints;
mod fault;
mod gateways;
mod neighbours;
mod outage;
mod reported;
mod steady;
mod tasks;
mod world;
