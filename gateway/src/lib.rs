//! The gateway of Isthmus: reads the SNI of a ClientHello, picks an endpoint, splices the encrypted bytes
//! to it untouched. Read `conn` first; it tells the story, and every step is a module of that name.

pub mod account;
pub mod admin;
pub mod answer;
mod attempts;
mod bulk;
mod close;
pub mod config;
mod conn;
pub mod connect;
pub mod control;
pub mod demo;
pub mod drain;
pub mod endpoint;
mod flow;
pub mod gateway;
mod held;
pub mod hello;
mod learn;
pub mod limits;
mod listen;
pub mod live;
pub mod log;
pub mod metrics;
pub mod peek;
pub mod pick;
pub mod pipe;
pub mod proxy;
pub mod reason;
pub mod relay;
pub mod resolve;
pub mod route;
pub mod snapshot;
pub mod socket;
pub mod turn;
pub mod watch;
pub mod worker;
