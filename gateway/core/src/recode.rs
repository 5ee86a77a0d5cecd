//! Relays one direction of a connection with TLS of the gateway's own on a side: each read is decrypted or encrypted and
//! handed on at once, through the worker's buffer.

use std::io;
use std::task::{Context, Poll, ready};

use crate::flow::{Flow, Moving};
use crate::leg::Leg;

/// Reads of at least this size take turns with the worker's other bulk transfers: encryption costs ten times as much as
/// copying, so a turn comes earlier than there.
const BULK: usize = 16 * 1024;

impl Flow {
    /// Moves the bytes of one read, or of several if they were not an application's. Returns 0 at the source's end.
    pub(crate) fn poll_recode(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Leg,
        sink: &mut Leg,
        moving: &Moving<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(bulk) = &mut self.bulk {
                ready!(bulk.poll_turn(cx, &source.stream, &moving.worker.turns))?;
            }
            let (mut moved, mut written) = (0, Ok(()));
            let read = source.poll_read(cx, |plain| {
                moved += plain.len();
                if written.is_ok() {
                    written = sink.write(plain, &mut self.held);
                }
            });
            let Poll::Ready(read) = read else {
                // A source without bytes must not keep the turn.
                if let Some(bulk) = &mut self.bulk {
                    bulk.step_back();
                }
                return Poll::Pending;
            };
            let read = read.map_err(|broken| io::Error::new(io::ErrorKind::ConnectionReset, broken))?;
            written?;
            if read >= BULK {
                self.bulk.get_or_insert_default().spend(read);
            } else {
                self.bulk = None;
            }
            if read == 0 || moved > 0 {
                return Poll::Ready(Ok(moved));
            }
        }
    }
}
