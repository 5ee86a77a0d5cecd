//! Relays one direction of a connection with TLS of the gateway's own on a side: each read is decrypted or encrypted and
//! handed on at once.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};

use crate::flow::{Flow, Moving};
use crate::leg::Leg;
use crate::session::Broken;

/// Bytes after which the turn of a bulk transfer is over.
const LOAD: usize = 256 * 1024;
/// Reads of at least this size take turns with the worker's other bulk transfers: encryption costs ten times as much as
/// copying, so a turn comes earlier than there.
const BULK: usize = 16 * 1024;

thread_local! {
    /// What one read has brought: a write for all of it costs less than one for each record.
    static OPENED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

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
            let (read, moved) = self.hand_on(cx, source, sink);
            let Poll::Ready(read) = read else {
                // A source without bytes must not keep the turn.
                if let Some(bulk) = &mut self.bulk {
                    bulk.step_back();
                }
                return Poll::Pending;
            };
            let read = read.map_err(|broken| io::Error::new(io::ErrorKind::ConnectionReset, broken))?;
            let moved = moved?;
            if read >= BULK {
                self.bulk.get_or_insert_default().spend_part(read, LOAD);
            } else {
                self.bulk = None;
            }
            if read == 0 || moved > 0 {
                return Poll::Ready(Ok(moved));
            }
        }
    }
    /// Reads once and hands on the plaintext; also returns its length, or why the sink cannot be given any.
    fn hand_on(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Leg,
        sink: &mut Leg,
    ) -> (Poll<Result<usize, Broken>>, io::Result<usize>) {
        let mut moved = Ok(0);
        if !source.is_tls() {
            let give = |plain: &[u8]| moved = sink.write(plain, &mut self.unsent).map(|()| plain.len());
            return (source.poll_read(cx, give), moved);
        }
        OPENED.with_borrow_mut(|opened| {
            opened.clear();
            let read = source.poll_read(cx, |plain| opened.extend_from_slice(plain));
            if !opened.is_empty() {
                moved = sink.write(opened, &mut self.unsent).map(|()| opened.len());
            }
            (read, moved)
        })
    }
}
