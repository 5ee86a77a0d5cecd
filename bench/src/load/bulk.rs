//! Downloads without end over a fixed number of connections, on the calling thread.

use std::io::{self, Read as _};
use std::net::TcpStream;
use std::time::Instant;

use super::{Target, closed};
use crate::hello::Job;
use crate::poller::{Interest, Poller, Ready, try_again};
use crate::stop::Stop;

/// The bytes are read, as a real client would, and not thrown away inside the kernel.
const CHUNK: usize = 128 * 1024;

/// Open downloads. Dropping them closes them.
#[derive(Debug)]
pub(crate) struct Downloads {
    poller: Poller,
    streams: Vec<TcpStream>,
    buffer: Vec<u8>,
}

impl Downloads {
    pub(crate) fn open(target: &Target, count: usize) -> io::Result<Self> {
        let poller = Poller::new()?;
        let streams = target.open_many(Job::Source, count)?;
        for (token, stream) in streams.iter().enumerate() {
            stream.set_nonblocking(true)?;
            poller.add(stream, token, Interest::IN)?;
        }
        Ok(Self { poller, streams, buffer: vec![0; CHUNK] })
    }

    /// Reads until then; gives the bytes.
    pub(crate) fn run(&mut self, until: Instant, stop: &Stop) -> io::Result<u64> {
        let (mut bytes, mut ready) = (0, Ready::new());
        while Instant::now() < until {
            bytes += self.turn(&mut ready)?;
            stop.check()?;
        }
        Ok(bytes)
    }

    /// Reads until told to end, beside something else that is measured; gives the bytes.
    pub(crate) fn run_until_stopped(&mut self, stop: &Stop) -> io::Result<u64> {
        let (mut bytes, mut ready) = (0, Ready::new());
        while !stop.requested() {
            bytes += self.turn(&mut ready)?;
        }
        Ok(bytes)
    }

    fn turn(&mut self, ready: &mut Ready) -> io::Result<u64> {
        self.poller.wait(ready)?;
        let mut bytes = 0;
        for (token, _) in ready.iter() {
            let Some(mut stream) = self.streams.get(token) else { continue };
            match stream.read(&mut self.buffer) {
                Ok(0) => return Err(closed()),
                Ok(length) => bytes += length as u64,
                Err(error) if try_again(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }
}
