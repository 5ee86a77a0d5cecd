//! Holds bytes that were read from one socket and not yet written to the other, in memory or in a pipe.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::pipe::Pipe;

/// The bytes that one direction holds.
#[derive(Debug)]
pub(crate) enum Held {
    /// Nothing.
    Nothing,
    /// Bytes that a copy could not write.
    Bytes { bytes: Vec<u8>, written: usize },
    /// Bytes spliced from the source.
    Pipe(Pipe),
}

impl Held {
    pub(crate) fn copy_of(bytes: &[u8]) -> Held {
        if bytes.is_empty() { Held::Nothing } else { Held::Bytes { bytes: bytes.to_vec(), written: 0 } }
    }

    /// Adds bytes behind those that are held in memory.
    pub(crate) fn push(&mut self, more: &[u8]) {
        match self {
            Held::Bytes { bytes, .. } => bytes.extend_from_slice(more),
            Held::Nothing | Held::Pipe(_) => *self = Held::copy_of(more),
        }
    }

    /// Bytes held.
    pub(crate) fn len(&self) -> usize {
        match self {
            Held::Nothing => 0,
            Held::Bytes { bytes, written } => bytes.len() - written,
            Held::Pipe(pipe) => pipe.held(),
        }
    }

    /// Writes until nothing is held.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>, sink: &TcpStream) -> Poll<io::Result<()>> {
        loop {
            let wrote = match self {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Pipe(pipe) => {
                    sink.try_io(Interest::WRITABLE, || pipe.drain(sink)).map(|_| pipe.held() == 0)
                }
                Held::Bytes { bytes, written } => {
                    sink.try_write(bytes.get(*written..).unwrap_or_default()).map(|wrote| {
                        *written += wrote;
                        *written == bytes.len()
                    })
                }
            };
            match wrote {
                Ok(true) => *self = Held::Nothing,
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(sink.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}
