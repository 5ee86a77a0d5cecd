//! Answers DNS questions from a table of names: a packet in, a packet out, or the word that somebody else answers, and what is
//! passed between the two.
//! Pure: no sockets, no clock. Who may ask, and where questions are forwarded, is elsewhere.

mod answer;
mod message;
mod relay;
mod table;

pub use answer::{Outcome, answer};
pub use message::Transport;
pub use relay::{Answered, Failure, Relayed, failure, relay};
pub use table::{Records, Table};
