//! One TLS session of the gateway's own on a nonblocking socket. While it is idle it has no buffers: bytes are decrypted
//! and encrypted in those of the worker, and a session keeps only what is not whole yet and what its socket does not take.

mod engine;

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use isthmus_certs::{SpiffeId, VerifyError, peer_id};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, ExtractedSecrets, ServerConfig,
    SupportedCipherSuite,
};
use tokio::net::TcpStream;

use self::engine::{Engine, Outgoing};
use crate::identities::Identities;
use crate::peek::{HELD, poll_behind};
use crate::reason::Reason;
use crate::unsent::Unsent;

/// Maximum bytes of one read before the relay begins; what is decrypted from them is held.
const EARLY_READ: usize = 16 * 1024;

thread_local! {
    /// What a session encrypts at once; usually its socket takes all of it.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A TLS session.
#[derive(Debug)]
pub(crate) struct Session {
    tls: Engine,
    /// Encrypted bytes of the peer that are no whole record, or no whole message of a handshake.
    held: Vec<u8>,
    /// Encrypted bytes for the peer that the socket has not taken.
    unsent: Unsent,
    /// Application bytes that arrived before the relay began.
    early: Vec<u8>,
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
        Session::begin(Engine::server(config)?)
    }

    /// Begins as a client that names `server` in its ClientHello.
    ///
    /// # Errors
    /// The configuration cannot be used.
    pub(crate) fn client(
        config: Arc<ClientConfig>,
        server: ServerName<'static>,
    ) -> Result<Session, rustls::Error> {
        Session::begin(Engine::client(config, server)?)
    }

    /// A client's hello is the answer to nothing.
    fn begin(tls: Engine) -> Result<Session, rustls::Error> {
        let mut session = Session {
            tls,
            held: Vec::new(),
            unsent: Unsent::Nothing,
            early: Vec::new(),
            peer_closed: false,
            failure: None,
        };
        session.open(&mut [], &mut |_| ())?;
        Ok(session)
    }

    fn state(&self) -> &CommonState {
        self.tls.state()
    }

    /// Returns the SPIFFE ID of the peer, whose certificate was verified in this handshake or in the resumed one.
    pub(crate) fn peer(&self) -> Option<SpiffeId> {
        self.state().peer_certificates().and_then(|chain| peer_id(chain).ok())
    }

    /// Returns the certificate chain of the peer, leaf first; empty before it has shown one.
    pub(crate) fn peer_chain(&self) -> &[CertificateDer<'static>] {
        self.state().peer_certificates().unwrap_or_default()
    }

    /// Returns the cipher suite, and the keys for what comes after everything encrypted so far.
    pub(crate) fn into_secrets(self) -> Option<(SupportedCipherSuite, ExtractedSecrets)> {
        let suite = self.state().negotiated_cipher_suite()?;
        Some((suite, self.tls.into_secrets().ok()?))
    }

    /// Returns the protocol (ALPN) that was chosen.
    pub(crate) fn protocol(&self) -> Option<&[u8]> {
        self.state().alpn_protocol()
    }

    /// Whether the handshake is complete.
    pub(crate) fn is_established(&self) -> bool {
        !self.state().is_handshaking() && self.failure.is_none()
    }

    /// Whether encrypted bytes wait for the socket.
    pub(crate) fn owes(&self) -> bool {
        self.unsent.len() > 0
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

    /// Decrypts what was held and has arrived since, and gives on the plaintext, record by record. The rest is held.
    fn open(&mut self, arrived: &mut [u8], give: &mut impl FnMut(&[u8])) -> Result<(), rustls::Error> {
        let mut answers = Vec::new();
        let opened = self.tls.open(arrived, &mut answers, give);
        self.unsent.push(&answers);
        let kept = opened.and_then(|opened| {
            self.peer_closed = opened.peer_closed;
            let rest = arrived.get(opened.done..).filter(|_| !opened.peer_closed).unwrap_or_default();
            if rest.len() > HELD {
                return Err(rustls::Error::General("a handshake message in too many pieces".to_owned()));
            }
            self.held = rest.to_vec();
            Ok(())
        });
        if let Err(error) = &kept {
            self.failure = Some(Broken::Tls(error.clone()));
        }
        kept
    }

    /// Encrypts application bytes and sends them; what the socket does not take waits for [`Session::poll_flush`]. After an
    /// alert for an error, nothing more is sent.
    ///
    /// # Errors
    /// The session cannot encrypt any more.
    pub(crate) fn seal(&mut self, stream: &TcpStream, plain: &[u8]) -> io::Result<()> {
        if self.failure.is_some() {
            return Ok(());
        }
        SEALED.with_borrow_mut(|sealed| {
            let length = self.tls.seal(Outgoing::Bytes(plain), &mut self.held, sealed);
            let sealed = sealed.get(..length.map_err(io::Error::other)?).unwrap_or_default();
            self.unsent.write(stream, sealed);
            Ok(())
        })
    }

    /// Queues the close_notify, once.
    pub(crate) fn close(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let mut sealed = Vec::new();
        // Keys may be used up: the FIN must say it then.
        if let Ok(length) = self.tls.seal(Outgoing::CloseNotify, &mut self.held, &mut sealed) {
            self.unsent.push(sealed.get(..length).unwrap_or_default());
        }
    }

    /// Reads once, `most` bytes at most, and gives on the plaintext. Returns the bytes read, 0 after the peer's
    /// close_notify.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TcpStream,
        most: usize,
        mut give: impl FnMut(&[u8]),
    ) -> Poll<Result<usize, Broken>> {
        if self.peer_closed {
            return Poll::Ready(Ok(0));
        }
        if self.failure.is_some() {
            return Poll::Ready(Err(Broken::Closed));
        }
        let held = std::mem::take(&mut self.held);
        let read = poll_behind(stream, cx, &held, most, |bytes| {
            let read = bytes.len() - held.len();
            let opened = if read == 0 { Ok(()) } else { self.open(bytes, &mut give) };
            opened.map(|()| read)
        });
        match read {
            Poll::Pending => {
                self.held = held;
                Poll::Pending
            }
            Poll::Ready(Ok(Ok(0))) => Poll::Ready(Err(Broken::Truncated)),
            Poll::Ready(Ok(Ok(read))) => Poll::Ready(Ok(read)),
            Poll::Ready(Ok(Err(error))) => {
                // The alert that says why; the socket has room for it, or the peer does not read.
                let _sent = self.poll_flush(cx, stream, || {});
                Poll::Ready(Err(error.into()))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(Broken::Reset)),
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
    pub(crate) fn begin_with(&mut self, flight: &[u8]) -> Result<(), rustls::Error> {
        let mut early = self.take_early();
        let opened = self.open(&mut flight.to_vec(), &mut |plain| early.extend_from_slice(plain));
        self.early = early;
        opened
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
            if !self.state().is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_read_early(cx, stream))? == 0 {
                return Poll::Ready(Err(Broken::Closed));
            }
        }
    }

    /// Sends what is encrypted; `progress` is called if the socket took some of it.
    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        stream: &TcpStream,
        progress: impl FnOnce(),
    ) -> Poll<io::Result<()>> {
        let before = self.unsent.len();
        let flushed = self.unsent.poll_flush(cx, stream);
        if self.unsent.len() != before {
            progress();
        }
        flushed
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
