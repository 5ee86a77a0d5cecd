//! The client in west: visits a route and times each part.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_certs::peer_id;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde::Serialize;

use super::cost::{Cost, Meters};
use super::trust::NAME;
use super::watched::{PATIENCE, Watched};
use super::world::Route;
use crate::stop::Stop;

/// Size of an answer that holds the caller's identity and fits one packet.
const SMALL: u64 = 256;
const BUFFER: usize = 64 * 1024;

/// The work of a visit.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Plan {
    /// Number of small requests on an open connection.
    pub(super) round_trips: u16,
    /// Size of a download in bytes.
    pub(super) size: u64,
}

/// Result of one visit.
#[derive(Clone, Debug)]
pub(super) struct Visit {
    /// From connect to the end of the TLS handshake with the terminating peer.
    pub(super) handshake: Duration,
    /// From connect to the first byte of the first answer.
    pub(super) first_byte: Duration,
    /// Times of small requests.
    pub(super) round_trips: Vec<Duration>,
    /// A download, from connect to its last byte.
    pub(super) fresh: Duration,
    /// The next download on the same connection, from the request.
    pub(super) open: Duration,
    /// Cost of a connection with one small request.
    pub(super) connection: Cost,
    /// Cost of the download on the open connection.
    pub(super) transfer: Cost,
    /// Caller identity seen by the service.
    pub(super) service_saw: String,
    /// Server identity seen by the client.
    pub(super) client_saw: String,
    /// Key exchange of the client's handshake.
    pub(super) key_exchange: String,
}

/// Visits a route once: one connection for round trips, another for downloads.
pub(super) fn visit(route: &Route, plan: Plan, meters: &Meters<'_>, stop: &Stop) -> io::Result<Visit> {
    let ((mut session, greeting), connection) = meters.during(|| {
        let mut session = Session::open(route, stop)?;
        let greeting = session.ask(SMALL)?;
        Ok((session, greeting))
    })?;
    let first_byte = greeting.first_byte.duration_since(session.began);
    let trip = |_| {
        let began = Instant::now();
        session.ask(SMALL).map(|answer| answer.last_byte.duration_since(began))
    };
    let round_trips = (0..plan.round_trips).map(trip).collect::<io::Result<_>>()?;
    let (client_saw, key_exchange) = (session.peer()?, session.key_exchange());
    session.close()?;

    let mut second = Session::open(route, stop)?;
    let fresh = second.ask(plan.size)?.last_byte.duration_since(second.began);
    let (open, transfer) = meters.during(|| {
        let began = Instant::now();
        Ok(second.ask(plan.size)?.last_byte.duration_since(began))
    })?;
    second.close()?;
    Ok(Visit {
        handshake: session.handshake,
        first_byte,
        round_trips,
        fresh,
        open,
        connection,
        transfer,
        service_saw: greeting.caller,
        client_saw,
        key_exchange,
    })
}

struct Session {
    tls: StreamOwned<ClientConnection, Watched>,
    began: Instant,
    handshake: Duration,
    buffer: Vec<u8>,
}

struct Answer {
    first_byte: Instant,
    last_byte: Instant,
    /// This client's identity as seen by the service.
    caller: String,
}

impl Session {
    fn open(route: &Route, stop: &Stop) -> io::Result<Self> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let mut connection =
            ClientConnection::new(Arc::clone(&route.config), name).map_err(io::Error::other)?;
        let began = Instant::now();
        let stream = TcpStream::connect_timeout(&route.entry, PATIENCE)?;
        let mut stream = Watched::new(stream, stop.clone())?;
        connection.complete_io(&mut stream)?;
        let handshake = began.elapsed();
        let tls = StreamOwned::new(connection, stream);
        Ok(Self { tls, began, handshake, buffer: vec![0; BUFFER] })
    }

    fn ask(&mut self, bytes: u64) -> io::Result<Answer> {
        self.tls.write_all(&bytes.to_be_bytes())?;
        self.tls.flush()?;
        let (mut left, mut first) = (bytes, None);
        while left > 0 {
            let length = self.tls.read(&mut self.buffer)?;
            let now = Instant::now();
            let Some(rest) = left.checked_sub(length as u64).filter(|_| length > 0) else {
                let what =
                    format!("an answer of {bytes} bytes has a wrong length; {left} bytes were expected");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            };
            left = rest;
            first.get_or_insert_with(|| (now, self.caller(length)));
        }
        let (first_byte, caller) = first.ok_or_else(|| io::Error::other("an empty answer was requested"))?;
        Ok(Answer { first_byte, last_byte: Instant::now(), caller })
    }

    /// The first line of the last read.
    fn caller(&self, length: usize) -> String {
        let line = self.buffer.get(..length).and_then(|read| read.split(|byte| *byte == b'\n').next());
        String::from_utf8_lossy(line.unwrap_or_default()).into_owned()
    }

    fn peer(&self) -> io::Result<String> {
        let chain = self.tls.conn.peer_certificates().unwrap_or_default();
        Ok(peer_id(chain).map_err(io::Error::other)?.to_string())
    }

    fn key_exchange(&self) -> String {
        let group = self.tls.conn.negotiated_key_exchange_group();
        group.map_or_else(|| "unknown".into(), |group| format!("{:?}", group.name()))
    }

    /// Closes the connection and waits for the other side's close, so that visits do not overlap.
    fn close(&mut self) -> io::Result<()> {
        self.tls.conn.send_close_notify();
        self.tls.flush()?;
        match self.tls.read(&mut self.buffer) {
            Ok(0) => Ok(()),
            Ok(_) => Err(io::Error::other("the answer is longer than requested")),
            // A close without close_notify is accepted.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(error),
        }
    }
}
