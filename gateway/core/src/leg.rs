//! One side of a connection: its socket, and what is spoken on it. `flow` moves bytes between two legs.

use std::io;
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use crate::peek::{RECODED, poll_through};
use crate::reason::{Alert, Reason};
use crate::session::{Broken, Session};
use crate::unsent::Unsent;

/// A side of a connection.
#[derive(Debug)]
pub struct Leg {
    pub(crate) stream: TcpStream,
    pub(crate) speaks: Speaks,
}

/// What is spoken on a leg.
#[derive(Debug)]
pub(crate) enum Speaks {
    /// TLS between client and endpoint, passed on as it is.
    Passthrough,
    /// The plaintext of an application without TLS.
    Plaintext,
    /// TLS of the gateway's own.
    Tls(Box<Session>),
}

impl Leg {
    pub(crate) fn passthrough(stream: TcpStream) -> Leg {
        Leg { stream, speaks: Speaks::Passthrough }
    }

    pub(crate) fn plaintext(stream: TcpStream) -> Leg {
        Leg { stream, speaks: Speaks::Plaintext }
    }

    /// Whether its bytes are encrypted and decrypted here.
    pub(crate) fn is_tls(&self) -> bool {
        matches!(self.speaks, Speaks::Tls(_))
    }

    /// Returns its TLS session.
    pub(crate) fn session(&self) -> Option<&Session> {
        match &self.speaks {
            Speaks::Tls(session) => Some(session),
            Speaks::Passthrough | Speaks::Plaintext => None,
        }
    }

    /// Whether a refusal must reset it: an application could take a FIN for an empty answer. An alert within TLS is none.
    pub(crate) fn is_refused_by_reset(&self, alert: Option<Alert>) -> bool {
        match &self.speaks {
            Speaks::Passthrough => false,
            Speaks::Plaintext => true,
            Speaks::Tls(session) => session.is_established() && alert.is_none(),
        }
    }

    /// Returns the error that ended its TLS session.
    pub(crate) fn failure(&self) -> Option<&Broken> {
        self.session().and_then(Session::failure)
    }

    /// Whether it holds encrypted bytes that its socket does not accept.
    pub(crate) fn owes(&self) -> bool {
        self.session().is_some_and(Session::owes)
    }

    /// Returns the reason if this server ended the connection without a byte of an answer, and that was a refusal.
    pub(crate) fn refusal(&self, is_reset: bool) -> Option<Reason> {
        match &self.speaks {
            Speaks::Passthrough => Some(Reason::UpstreamRejected),
            Speaks::Plaintext => None,
            Speaks::Tls(_) => {
                self.failure().map(Broken::reason).or(is_reset.then_some(Reason::UpstreamRejected))
            }
        }
    }

    /// Reads once and gives on the plaintext. Returns the bytes taken from the socket, 0 at the end in order.
    ///
    /// # Errors
    /// The side has reset, or has ended its TLS without close_notify.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        mut give: impl FnMut(&[u8]),
    ) -> Poll<Result<usize, Broken>> {
        let Leg { stream, speaks } = self;
        let Speaks::Tls(session) = speaks else {
            let read = poll_through(stream, cx, RECODED, |bytes| {
                give(bytes);
                bytes.len()
            });
            return read.map_err(|_| Broken::Reset);
        };
        if session.has_early() {
            let early = session.take_early();
            give(&early);
            return Poll::Ready(Ok(early.len()));
        }
        session.poll_read(cx, stream, RECODED, give)
    }

    /// Writes plaintext; what the socket does not accept at once is unsent, by the session if there is one.
    pub(crate) fn write(&mut self, plain: &[u8], unsent: &mut Unsent) -> io::Result<()> {
        match &mut self.speaks {
            Speaks::Tls(session) => session.seal(&self.stream, plain),
            Speaks::Passthrough | Speaks::Plaintext => {
                unsent.write(&self.stream, plain);
                Ok(())
            }
        }
    }

    /// Sends encrypted bytes; `progress` is called if the socket took some.
    pub(crate) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        progress: impl FnOnce(),
    ) -> Poll<io::Result<()>> {
        match &mut self.speaks {
            Speaks::Tls(session) => session.poll_flush(cx, &self.stream, progress),
            Speaks::Passthrough | Speaks::Plaintext => Poll::Ready(Ok(())),
        }
    }

    /// Ready when the other side's end has been passed on as far as TLS does it: by close_notify. The FIN follows.
    pub(crate) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Speaks::Tls(session) = &mut self.speaks {
            session.close();
        }
        ready!(self.poll_flush(cx, || {}))?;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::sync::Arc;
    use std::time::Duration;

    use isthmus_certs::{Authority, Identity, Peer, SpiffeId, TrustBundles, TrustDomain};
    use rustls::pki_types::ServerName;
    use rustls::{ClientConnection, StreamOwned};

    use super::*;

    /// More than sockets hold.
    const SIZE: usize = 16 << 20;

    fn identity() -> (Identity, Arc<TrustBundles>) {
        let authority = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.add_root(authority.trust_domain().clone(), authority.certificate()).unwrap();
        let id = SpiffeId::workload(authority.trust_domain(), "a", "b").unwrap();
        (authority.issue(&id, &[], Duration::from_secs(3600)).unwrap(), Arc::new(bundles))
    }

    /// Both ends of a TCP connection; the second blocks.
    async fn pair() -> (TcpStream, std::net::TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().await.unwrap().0, other)
    }

    async fn flushed(leg: &mut Leg, unsent: &mut Unsent) {
        std::future::poll_fn(|cx| {
            ready!(unsent.poll_flush(cx, &leg.stream)).unwrap();
            leg.poll_flush(cx, || {})
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn leg_returns_its_buffers_once_the_socket_has_taken_them() {
        let (identity, bundles) = identity();
        let server = isthmus_certs::server_config(&identity, Arc::clone(&bundles), Peer::Trusted).unwrap();
        let client = isthmus_certs::client_config(&identity, bundles, Peer::Trusted).unwrap();
        let (stream, other) = pair().await;
        let (read_now, reads) = std::sync::mpsc::channel();
        let far = std::thread::spawn(move || {
            let name = ServerName::try_from("a.example").unwrap();
            let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(client), name).unwrap(), other);
            tls.write_all(&vec![b'x'; SIZE]).unwrap();
            reads.recv().unwrap();
            let mut got = vec![0; SIZE];
            tls.read_exact(&mut got).unwrap();
            assert!(got.iter().all(|byte| *byte == b'y'));
        });
        let mut leg =
            Leg { stream, speaks: Speaks::Tls(Box::new(Session::server(Arc::new(server)).unwrap())) };
        let Leg { stream, speaks: Speaks::Tls(session) } = &mut leg else { panic!("TLS") };
        std::future::poll_fn(|cx| session.poll_handshake(cx, stream)).await.unwrap();
        let mut got = 0;
        while got < SIZE {
            let give = |plain: &[u8]| {
                assert!(plain.iter().all(|byte| *byte == b'x'));
                got += plain.len();
            };
            let mut give = Some(give);
            std::future::poll_fn(|cx| leg.poll_read(cx, |plain| give.as_mut().unwrap()(plain)))
                .await
                .unwrap();
        }
        assert_eq!(leg.session().unwrap().peer().unwrap(), *identity.id());
        let mut unsent = Unsent::Nothing;
        leg.write(&vec![b'y'; SIZE], &mut unsent).unwrap();
        assert!(leg.owes() && matches!(unsent, Unsent::Nothing), "encrypted, in the session");
        read_now.send(()).unwrap();
        flushed(&mut leg, &mut unsent).await;
        far.join().unwrap();
        assert!(!leg.owes());
        let Speaks::Tls(session) = &mut leg.speaks else { panic!("TLS") };
        assert_eq!(session.take_early().capacity(), 0);
    }

    #[tokio::test]
    async fn leg_without_tls_holds_what_its_socket_refuses() {
        let (stream, mut other) = pair().await;
        let (mut leg, mut unsent) = (Leg::passthrough(stream), Unsent::Nothing);
        while unsent.len() == 0 {
            leg.write(&[b'z'; 64 * 1024], &mut unsent).unwrap();
        }
        leg.write(b"end", &mut unsent).unwrap();
        let far = std::thread::spawn(move || {
            let mut got = Vec::new();
            other.read_to_end(&mut got).unwrap();
            got
        });
        flushed(&mut leg, &mut unsent).await;
        assert!(matches!(unsent, Unsent::Nothing));
        drop(leg);
        assert!(far.join().unwrap().ends_with(b"zend"));
    }
}
