//! Counts what became of questions.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What became of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The tables answered it, also by the word that there is no such name.
    Tables,
    /// Another server answered it.
    Forwarded,
    /// No other server answered it in time.
    Failed,
    /// Its client may not ask, or the question is not in the tables and others are not asked.
    Refused,
    /// It could not be read.
    Malformed,
    /// Too many were open already.
    Limited,
    /// It was this server's own, which came back.
    Looped,
}

impl Answer {
    /// All of them.
    pub const ALL: [Answer; 7] = [
        Answer::Tables,
        Answer::Forwarded,
        Answer::Failed,
        Answer::Refused,
        Answer::Malformed,
        Answer::Limited,
        Answer::Looped,
    ];

    /// Its label in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Answer::Tables => "tables",
            Answer::Forwarded => "forwarded",
            Answer::Failed => "failed",
            Answer::Refused => "refused",
            Answer::Malformed => "malformed",
            Answer::Limited => "limited",
            Answer::Looped => "looped",
        }
    }

    /// Of an answer of the tables, whose code is 1 where the question could not be read.
    pub(super) fn of_table(reply: &[u8]) -> Answer {
        match reply.get(3).map(|flags| flags & 0x0f) {
            Some(1) => Answer::Malformed,
            _ => Answer::Tables,
        }
    }
}

/// Counts since the start.
#[derive(Debug, Default)]
pub struct Stats([AtomicU64; Answer::ALL.len()]);

impl Stats {
    pub(super) fn count(&self, answer: Answer) {
        if let Some(count) = self.0.get(answer as usize) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// The number of questions that ended so.
    #[must_use]
    pub fn get(&self, answer: Answer) -> u64 {
        self.0.get(answer as usize).map_or(0, |count| count.load(Relaxed))
    }
}
