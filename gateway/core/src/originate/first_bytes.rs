//! The time between the handshake and the relay, while the connection can still move to another endpoint: until the
//! first byte in either direction or, where another cluster's gateway ends the TLS, until the server's first byte.
//!
//! Such a gateway connects to its endpoints after the handshake. If it reaches none it ends with alert 80, which no
//! program of ours sends at any other time in a session: none of the application's bytes was delivered. They are held
//! until then, within the memory of ClientHellos.

use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use rustls::AlertDescription;
use tokio::net::TcpStream;

use crate::account::Account;
use crate::answer::{self, Failure, Reply, Server, in_time, poll_client};
use crate::leg::{Leg, Speaks};
use crate::memory::Flight;
use crate::peek::poll_through_shared;
use crate::pick::Step;
use crate::reason::Reason;
use crate::session::{Broken, Session};
use crate::socket;
use crate::worker::Worker;

/// The most bytes of an application that are held for another endpoint.
const MOST_HELD: usize = 64 * 1024;

/// A server that has proven who it is.
pub(super) struct Beginning<'a> {
    pub(super) session: Box<Session>,
    pub(super) stream: TcpStream,
    pub(super) client: &'a TcpStream,
    pub(super) account: &'a mut Account,
    pub(super) worker: &'a Worker,
}

/// How the wait ends.
enum Event {
    /// The relay may begin.
    Spoke,
    ClientReset,
    Broken(Broken),
}

impl Beginning<'_> {
    /// Sends what the client has sent so far, and waits.
    pub(super) async fn serve(mut self, first: &[u8], step: Step<'_>) -> Result<Server, Failure> {
        let mut held = self.holder(step);
        if !first.is_empty() && !self.send(first, &mut held) {
            return Err(Failure::Refused(Reason::TlsFailed));
        }
        if !first.is_empty() && held.is_none() {
            return Ok(self.server(Reply::Nothing));
        }
        let (limit, conn) = (step.route.service.rules.timeouts.first_byte, self.account.conn.clone());
        let waiting = std::future::poll_fn(|cx| self.poll(cx, &mut held));
        let event = in_time(limit, &conn, waiting).await;
        let sent = self.bytes_sent();
        match event {
            Some(Event::Spoke) => Ok(self.server(Reply::Nothing)),
            Some(Event::ClientReset) => Err(Failure::ClientGone),
            Some(Event::Broken(broken)) => self.after(&broken, held),
            None if sent => Err(Failure::Lost(Reason::FirstByteTimeout)),
            None => Err(Failure::Silent),
        }
    }

    /// Returns room for the application's bytes, where a promise about them can be expected.
    fn holder(&self, step: Step<'_>) -> Option<Flight> {
        let (hellos, budget) = (&self.worker.process.limits.hellos, step.tables.live.limits.hello_memory);
        let holds = step.endpoint.is_terminated() && !hellos.is_scarce(budget);
        holds.then(|| Flight::new(hellos, budget, &self.account.conn))
    }

    fn bytes_sent(&self) -> bool {
        self.account.conn.bytes_in.load(Relaxed) > 0
    }

    /// Encrypts bytes of the application and holds them as long as there is room; false if nothing can be encrypted.
    fn send(&mut self, bytes: &[u8], held: &mut Option<Flight>) -> bool {
        if self.session.seal(&self.stream, bytes).is_err() {
            return false;
        }
        let conn = &self.account.conn;
        conn.moved(&conn.bytes_in, bytes.len(), self.worker.live.coarse_now());
        if held.as_mut().is_some_and(|held| held.extend(bytes).is_err()) {
            *held = None;
        }
        true
    }

    fn poll(&mut self, cx: &mut Context<'_>, held: &mut Option<Flight>) -> Poll<Event> {
        if self.account.conn.came_of_age() {
            socket::keep_alive_or_say(&self.stream, &self.worker.process.fixed.tcp, self.account.conn.id);
        }
        loop {
            if self.session.has_early() {
                return Poll::Ready(Event::Spoke);
            }
            // The server's refusal counts even if the application has spoken since.
            match self.session.poll_read_early(cx, &mut self.stream) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Event::Broken(Broken::Closed)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) if self.session.has_early() => return Poll::Ready(Event::Spoke),
                Poll::Ready(Err(broken)) => return Poll::Ready(Event::Broken(broken)),
                Poll::Pending => break,
            }
        }
        let spoke = match held {
            None => self.poll_first_byte(cx),
            Some(_) => self.poll_application(cx, held),
        };
        let _pending = self.session.poll_flush(cx, &self.stream, || {});
        spoke
    }

    fn poll_first_byte(&self, cx: &mut Context<'_>) -> Poll<Event> {
        poll_client(self.client, cx).map(|heard| match heard {
            answer::Client::Spoke | answer::Client::Closed => Event::Spoke,
            answer::Client::Reset => Event::ClientReset,
        })
    }

    /// Sends what the application sends. Ready once its bytes cannot be held any more, and at its end.
    fn poll_application(&mut self, cx: &mut Context<'_>, held: &mut Option<Flight>) -> Poll<Event> {
        loop {
            let length = match held {
                Some(held) if !self.account.conn.is_hello_revoked() => held.bytes().len(),
                _ => return Poll::Ready(Event::Spoke),
            };
            if length >= MOST_HELD {
                return self.poll_first_byte(cx);
            }
            let client = self.client;
            let read = poll_through_shared(client, cx, MOST_HELD - length, |bytes| {
                (bytes.len(), self.send(bytes, held))
            });
            match read {
                Poll::Ready(Ok((0, _))) => return Poll::Ready(Event::Spoke),
                Poll::Ready(Ok((_, true))) => {}
                Poll::Ready(Ok((_, false))) => return Poll::Ready(Event::Broken(Broken::Reset)),
                Poll::Ready(Err(_)) => return Poll::Ready(Event::ClientReset),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Decides what a server's end means for the connection.
    fn after(self, broken: &Broken, held: Option<Flight>) -> Result<Server, Failure> {
        let is_promise =
            matches!(broken, Broken::Tls(rustls::Error::AlertReceived(AlertDescription::InternalError)));
        match (held, self.bytes_sent()) {
            (Some(held), _) if is_promise => {
                self.account.identities.failed(broken);
                Err(Failure::Undelivered(held))
            }
            (_, false) => {
                self.account.identities.failed(broken);
                Err(Failure::Refused(refusal(broken)))
            }
            (_, true) => {
                let is_orderly = matches!(broken, Broken::Closed);
                Ok(self.server(if is_orderly { Reply::Closed } else { Reply::Reset }))
            }
        }
    }

    fn server(self, said: Reply) -> Server {
        Server { leg: Leg { stream: self.stream, speaks: Speaks::Tls(self.session) }, said }
    }
}

fn refusal(broken: &Broken) -> Reason {
    match broken {
        Broken::Tls(_) => broken.reason(),
        _ => Reason::UpstreamRejected,
    }
}
