//! One TLS session of the gateway's own on a nonblocking socket. While it is idle it has no buffers to speak of: what
//! has arrived is decrypted and given on at once, and encrypted bytes are freed once sent.

use std::io::{self, BufRead as _, IoSlice, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use isthmus_certs::{SpiffeId, VerifyError, peer_id};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, ServerConfig,
    ServerConnection,
};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::net::TcpStream;

use crate::identities::Identities;
use crate::reason::Reason;

/// Maximum bytes of one read before the relay begins; what is decrypted from them is held.
const EARLY_READ: usize = 16 * 1024;

/// What rustls reads at once, and the size of the buffer that it keeps between reads.
const STANDING: usize = 4 * 1024;

/// A TLS session.
#[derive(Debug)]
pub(crate) struct Session {
    tls: Connection,
    /// Application bytes that arrived before the relay began.
    early: Vec<u8>,
    /// A record has passed for which rustls made its buffer larger.
    is_swollen: bool,
    /// The peer has sent its close_notify.
    peer_closed: bool,
    /// The error that ended the session.
    failure: Option<Broken>,
}

/// Why nothing more can be read from a session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The peer reset the connection.
    #[error("the peer reset the connection")]
    Reset,
    /// The peer closed without close_notify: what it meant to send may be cut off.
    #[error("the peer closed the connection without close_notify")]
    Truncated,
    /// The peer closed in order.
    #[error("the peer closed the connection")]
    Closed,
    /// The handshake was not complete at its deadline.
    #[error("the handshake did not finish in time")]
    Slow,
    /// The peer broke the protocol, was refused, or sent an alert.
    #[error("{}", told(.0))]
    Tls(#[from] rustls::Error),
}

impl Session {
    /// Begins as a server.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub(crate) fn server(config: Arc<ServerConfig>) -> Result<Session, rustls::Error> {
        ServerConnection::new(config).map(|tls| Session::new(tls.into()))
    }

    /// Begins as a client that names `server` in its ClientHello.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub(crate) fn client(
        config: Arc<ClientConfig>,
        server: ServerName<'static>,
    ) -> Result<Session, rustls::Error> {
        ClientConnection::new(config, server).map(|tls| Session::new(tls.into()))
    }

    fn new(mut tls: Connection) -> Session {
        // What is given to it is bounded by its callers, who hand over one read at a time.
        tls.set_buffer_limit(None);
        Session { tls, early: Vec::new(), is_swollen: false, peer_closed: false, failure: None }
    }

    /// Returns the SPIFFE ID of the peer, whose certificate was verified in this handshake or in the resumed one.
    pub(crate) fn peer(&self) -> Option<SpiffeId> {
        self.tls.peer_certificates().and_then(|chain| peer_id(chain).ok())
    }

    /// Returns the certificate chain of the peer, leaf first; empty before it has shown one.
    pub(crate) fn peer_chain(&self) -> &[CertificateDer<'static>] {
        self.tls.peer_certificates().unwrap_or_default()
    }

    /// Returns the protocol (ALPN) that was chosen.
    pub(crate) fn protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// Whether the handshake is complete.
    pub(crate) fn is_established(&self) -> bool {
        !self.tls.is_handshaking() && self.failure.is_none()
    }

    /// Whether encrypted bytes wait for the socket.
    pub(crate) fn owes(&self) -> bool {
        self.tls.wants_write()
    }

    /// Returns the error that ended the session.
    pub(crate) fn failure(&self) -> Option<&Broken> {
        self.failure.as_ref()
    }

    /// Whether application bytes have arrived before the relay.
    pub(crate) fn has_early(&self) -> bool {
        !self.early.is_empty()
    }

    /// Takes the application bytes that arrived before the relay.
    pub(crate) fn take_early(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.early)
    }

    /// Takes bytes of the peer, decrypts them and gives on the plaintext, record by record. Returns how many bytes `wire`
    /// gave, at most `most` and one read.
    fn open(
        &mut self,
        wire: &mut impl Read,
        most: usize,
        mut give: impl FnMut(&[u8]),
    ) -> io::Result<Result<usize, rustls::Error>> {
        let mut taken = 0;
        while taken < most && !self.peer_closed {
            match self.tls.read_tls(wire) {
                Ok(0) => break,
                Ok(bytes) => taken += bytes,
                // The next call returns it.
                Err(_) if taken > 0 => break,
                Err(error) => return Err(error),
            }
            let processed = self.tls.process_new_packets();
            let mut reader = self.tls.reader();
            while let Ok(plain) = reader.fill_buf()
                && !plain.is_empty()
            {
                give(plain);
                let given = plain.len();
                reader.consume(given);
            }
            match processed {
                Ok(state) => self.peer_closed = state.peer_has_closed(),
                Err(error) => {
                    self.failure = Some(Broken::Tls(error.clone()));
                    return Ok(Err(error));
                }
            }
        }
        self.is_swollen |= taken > STANDING;
        Ok(Ok(taken))
    }

    /// Whether [`Session::slim`] would give back memory.
    pub(crate) fn is_swollen(&self) -> bool {
        self.is_swollen
    }

    /// Gives back the buffer in which large records are joined; the next one makes it again.
    pub(crate) fn slim(&mut self) {
        if std::mem::take(&mut self.is_swollen) {
            // rustls makes it smaller before a read, whatever that brings.
            let _nothing = self.tls.read_tls(&mut Dry);
        }
    }

    /// Encrypts application bytes; [`Session::poll_flush`] sends them.
    ///
    /// # Errors
    /// The session cannot encrypt any more.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> io::Result<()> {
        self.tls.writer().write_all(plain)
    }

    /// Queues the close_notify, once.
    pub(crate) fn close(&mut self) {
        self.tls.send_close_notify();
    }

    /// Reads from the socket until it has no more, `most` bytes at about, and gives on the plaintext. Returns the bytes
    /// read, 0 after the peer's close_notify.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TcpStream,
        most: usize,
        give: impl FnMut(&[u8]),
    ) -> Poll<Result<usize, Broken>> {
        if self.peer_closed {
            return Poll::Ready(Ok(0));
        }
        match self.open(&mut Arriving { stream, cx }, most, give) {
            Ok(Ok(0)) => Poll::Ready(Err(Broken::Truncated)),
            Ok(Ok(wire)) => Poll::Ready(Ok(wire)),
            Ok(Err(error)) => {
                // The alert that says why; the socket has room for it, or the peer does not read.
                let _sent = self.poll_flush(cx, stream, || {});
                Poll::Ready(Err(error.into()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(_) => Poll::Ready(Err(Broken::Reset)),
        }
    }

    /// Likewise before the relay begins: the plaintext is held.
    pub(crate) fn poll_read_early(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TcpStream,
    ) -> Poll<Result<usize, Broken>> {
        let mut early = self.take_early();
        let read = self.poll_read(cx, stream, EARLY_READ, |plain| early.extend_from_slice(plain));
        self.early = early;
        read
    }

    /// Takes the first bytes of the client, which were read to route it.
    ///
    /// # Errors
    /// They are not acceptable as the begin of a handshake.
    pub(crate) fn begin_with(&mut self, mut flight: &[u8]) -> Result<(), rustls::Error> {
        let (mut early, length) = (self.take_early(), flight.len());
        let opened = self.open(&mut flight, length, |plain| early.extend_from_slice(plain));
        self.early = early;
        match opened {
            Ok(opened) => opened.map(drop),
            Err(_) => Err(rustls::Error::General("the first bytes are no TLS handshake".to_owned())),
        }
    }

    /// Ready when the handshake is complete and its last flight has been sent.
    pub(crate) fn poll_handshake(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TcpStream,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if ready!(self.poll_flush(cx, stream, || {})).is_err() {
                return Poll::Ready(Err(Broken::Reset));
            }
            if !self.tls.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_read_early(cx, stream))? == 0 {
                return Poll::Ready(Err(Broken::Closed));
            }
        }
    }

    /// Sends what is encrypted; `progress` is called whenever the socket took some of it.
    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        stream: &TcpStream,
        progress: impl Fn(),
    ) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Nonblocking(stream)) {
                Ok(_) => progress(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(stream.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Broken {
    /// Records the error for the log, and returns the reason that it is.
    pub(crate) fn record(&self, identities: &mut Identities) -> Reason {
        identities.failed(self);
        self.reason()
    }

    /// Returns the reason for the connection's end.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Broken::Tls(error) => reason_of(error),
            Broken::Reset | Broken::Truncated | Broken::Closed | Broken::Slow => Reason::TlsFailed,
        }
    }
}

/// Returns the reason for a TLS error: `identity_denied` where an identity was proven and is not welcome, on this side
/// or, as far as its alert tells, on the other.
fn reason_of(error: &rustls::Error) -> Reason {
    use AlertDescription::{AccessDenied, BadCertificate, CertificateRevoked, CertificateUnknown};
    let is_denied = match error {
        rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        | rustls::Error::AlertReceived(
            AccessDenied | BadCertificate | CertificateRevoked | CertificateUnknown,
        ) => true,
        error => matches!(VerifyError::find_in(error), Some(VerifyError::Denied { .. })),
    };
    if is_denied { Reason::IdentityDenied } else { Reason::TlsFailed }
}

/// Says what is wrong in our words, if the error is our own.
fn told(error: &rustls::Error) -> String {
    match (VerifyError::find_in(error), error) {
        (Some(why), _) => why.to_string(),
        (None, rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            "the client's identity may not use this service".to_owned()
        }
        (None, error) => error.to_string(),
    }
}

/// A socket for rustls, which reads synchronously.
struct Arriving<'a, 'b> {
    stream: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

impl Read for Arriving<'_, '_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut read = ReadBuf::new(bytes);
        match Pin::new(&mut *self.stream).poll_read(self.cx, &mut read) {
            Poll::Ready(done) => done.map(|()| read.filled().len()),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// A socket without bytes.
struct Dry;

impl Read for Dry {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// A socket for rustls, which writes synchronously.
struct Nonblocking<'a>(&'a TcpStream);

impl Write for Nonblocking<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
