//! TLS handshakes, sequentially on a few threads: connect, handshake with a client certificate, one byte back, close.
//! rustls allocates for each, as in any real client.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use hdrhistogram::Histogram;
use rustls::ClientConfig;

use super::{PATIENCE, check_answer};
use crate::sample::{histogram, record};
use crate::stop::Stop;
use crate::wire::Wire;

/// A connection that is made again and again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) config: &'a Arc<ClientConfig>,
    pub(crate) server: &'static str,
    /// Sent after the handshake: the service answers it and closes. Without it the service answers the handshake itself,
    /// and the client closes.
    pub(crate) first: &'a [u8],
}

/// Handshakes that were made.
#[derive(Debug)]
pub(crate) struct Handshakes {
    /// From connect to first byte, in nanoseconds.
    pub(crate) times: Histogram<u64>,
    /// How many resumed a session.
    pub(crate) resumed: u64,
}

/// Makes handshakes until this time, at least one on each thread.
pub(crate) fn handshakes(
    visit: Visit<'_>,
    threads: usize,
    until: Instant,
    stop: &Stop,
) -> io::Result<Handshakes> {
    thread::scope(|scope| {
        let work = || {
            let mut done = Handshakes { times: histogram()?, resumed: 0 };
            while done.times.is_empty() || Instant::now() < until {
                stop.check()?;
                visit.make(&mut done)?;
            }
            io::Result::Ok(done)
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = Handshakes { times: histogram()?, resumed: 0 };
        for thread in threads {
            let done = thread.join().map_err(|_| io::Error::other("a load thread panicked"))??;
            all.times.add(done.times).map_err(io::Error::other)?;
            all.resumed += done.resumed;
        }
        Ok(all)
    })
}

impl Visit<'_> {
    fn make(self, done: &mut Handshakes) -> io::Result<()> {
        let began = Instant::now();
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut wire = Wire::client(stream, self.config, self.server)?;
        let mut answer = [0];
        wire.write_all(self.first)?;
        // The server answers only after it has verified the client certificate.
        wire.read_exact(&mut answer)?;
        check_answer(&answer)?;
        record(&mut done.times, began.elapsed());
        done.resumed += u64::from(wire.is_resumed() == Some(true));
        if !self.first.is_empty() {
            wire.read_end()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::backend::tls::{TLS_NAME, TlsBackend};

    #[test]
    fn handshakes_are_counted_and_server_stops_on_request() {
        let backend = TlsBackend::start(Ipv4Addr::LOCALHOST.into()).unwrap();
        let until = Instant::now() + Duration::from_millis(20);
        let visit = Visit { address: backend.address, config: &backend.client, server: TLS_NAME, first: &[] };
        let done = handshakes(visit, 2, until, &Stop::default()).unwrap();
        assert!(done.times.len() >= 2 && done.resumed == 0, "{done:?}");
        let stopped = Stop::default();
        stopped.request();
        assert!(handshakes(visit, 1, until, &stopped).is_err());
    }
}
