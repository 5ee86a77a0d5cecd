//! Full TLS handshakes, sequentially on a few threads: connect, handshake with a client certificate, one byte
//! back, close. rustls allocates for each, as in any real client.

use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use hdrhistogram::Histogram;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Stream};

use super::{PATIENCE, check_answer};
use crate::backend::tls::TLS_NAME;
use crate::sample::{histogram, record};
use crate::stop::Stop;

/// Makes handshakes until this time, at least one on each thread; returns the times from connect to first
/// byte in nanoseconds.
pub(crate) fn handshakes(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    threads: usize,
    until: Instant,
    stop: &Stop,
) -> io::Result<Histogram<u64>> {
    thread::scope(|scope| {
        let work = || {
            let mut times = histogram()?;
            while times.is_empty() || Instant::now() < until {
                stop.check()?;
                let began = Instant::now();
                handshake(address, config)?;
                record(&mut times, began.elapsed());
            }
            io::Result::Ok(times)
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut all = histogram()?;
        for thread in threads {
            let times = thread.join().map_err(|_| io::Error::other("a load thread panicked"))??;
            all.add(times).map_err(io::Error::other)?;
        }
        Ok(all)
    })
}

fn handshake(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<()> {
    let name = ServerName::try_from(TLS_NAME).map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut answer = [0];
    // The server answers only after it has verified the client certificate.
    Stream::new(&mut connection, &mut stream).read_exact(&mut answer)?;
    check_answer(&answer)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;
    use crate::backend::tls::TlsBackend;

    #[test]
    fn handshakes_are_counted_and_server_stops_on_request() {
        let backend = TlsBackend::start(Ipv4Addr::LOCALHOST.into()).unwrap();
        let until = Instant::now() + Duration::from_millis(20);
        let times = handshakes(backend.address, &backend.client, 2, until, &Stop::default()).unwrap();
        assert!(times.len() >= 2);
        let stopped = Stop::default();
        stopped.request();
        assert!(handshakes(backend.address, &backend.client, 1, until, &stopped).is_err());
    }
}
