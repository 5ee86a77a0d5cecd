//! Holds bytes that were read from one socket and not yet written to the other, in memory or in a pipe.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::pipe::Pipe;

/// The bytes that one direction holds.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// Nothing.
    Nothing,
    /// Bytes that a copy could not write.
    Bytes { bytes: Vec<u8>, written: usize },
    /// Bytes spliced from the source.
    Pipe(Pipe),
}

impl Unsent {
    pub(crate) fn copy_of(bytes: &[u8]) -> Unsent {
        if bytes.is_empty() { Unsent::Nothing } else { Unsent::Bytes { bytes: bytes.to_vec(), written: 0 } }
    }

    /// Adds bytes behind those that are unsent in memory.
    pub(crate) fn push(&mut self, more: &[u8]) {
        match self {
            Unsent::Bytes { bytes, .. } => bytes.extend_from_slice(more),
            Unsent::Nothing | Unsent::Pipe(_) => *self = Unsent::copy_of(more),
        }
    }

    /// Writes bytes behind those that are unsent; what the sink does not accept is unsent, too.
    pub(crate) fn write(&mut self, sink: &TcpStream, bytes: &[u8]) {
        let wrote = if self.len() == 0 { sink.try_write(bytes).unwrap_or(0) } else { 0 };
        self.push(bytes.get(wrote..).unwrap_or_default());
    }

    /// Bytes unsent.
    pub(crate) fn len(&self) -> usize {
        match self {
            Unsent::Nothing => 0,
            Unsent::Bytes { bytes, written } => bytes.len() - written,
            Unsent::Pipe(pipe) => pipe.unsent(),
        }
    }

    /// Writes until nothing is unsent.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>, sink: &TcpStream) -> Poll<io::Result<()>> {
        loop {
            let wrote = match self {
                Unsent::Nothing => return Poll::Ready(Ok(())),
                Unsent::Pipe(pipe) => {
                    sink.try_io(Interest::WRITABLE, || pipe.drain(sink)).map(|_| pipe.unsent() == 0)
                }
                Unsent::Bytes { bytes, written } => {
                    sink.try_write(bytes.get(*written..).unwrap_or_default()).map(|wrote| {
                        *written += wrote;
                        *written == bytes.len()
                    })
                }
            };
            match wrote {
                Ok(true) => *self = Unsent::Nothing,
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(sink.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}
