//! Asks other servers: one after the other until one answers, and each question once, however many clients have it.
//! Nothing is cached: who has been told "not now" may ask again at once.

use std::collections::HashMap;
use std::sync::Arc;

use isthmus_dns::{Relayed, Transport};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::Limits;
use super::asked::OwnSockets;
use super::exchange::{Exchanged, exchange};
use super::upstreams::Upstreams;

/// An answer, once it is there; `None` in it: there is none.
type Awaited = watch::Receiver<Option<Option<Arc<[u8]>>>>;

/// Asks other servers.
#[derive(Debug)]
pub(super) struct Forwarder {
    pub(super) upstreams: Upstreams,
    pub(super) sockets: OwnSockets,
    limits: Limits,
    /// Open questions. There are no more of them than places of clients.
    open: Mutex<HashMap<(Relayed, Transport), Awaited>>,
}

impl Forwarder {
    pub(super) fn new(upstreams: Upstreams, limits: Limits) -> Forwarder {
        Forwarder { upstreams, sockets: OwnSockets::default(), limits, open: Mutex::default() }
    }

    /// The answer of another server. A question that is open already is not asked again: one that goes in a circle through
    /// other resolvers waits for itself, and ends with its deadline.
    pub(super) async fn ask(self: &Arc<Self>, relayed: Relayed, transport: Transport) -> Option<Arc<[u8]>> {
        let mut awaited = self.join((relayed, transport));
        // The guard must not be held: it locks the value.
        let answer = timeout(self.limits.total, awaited.wait_for(Option::is_some)).await;
        answer.ok()?.ok()?.clone().flatten()
    }

    /// Joins the others that wait for an answer, or begins.
    fn join(self: &Arc<Self>, question: (Relayed, Transport)) -> Awaited {
        let mut open = self.open.lock();
        // Without its sender the task that asked has ended, in whatever way.
        if let Some(awaited) = open.get(&question).filter(|awaited| awaited.has_changed().is_ok()) {
            return awaited.clone();
        }
        let (sender, awaited) = watch::channel(None);
        open.insert(question.clone(), awaited.clone());
        let forwarder = Arc::clone(self);
        tokio::spawn(async move {
            let answer = forwarder.first_answer(&question.0, question.1).await;
            forwarder.open.lock().remove(&question);
            let _nobody_waits = sender.send(Some(answer.map(Into::into)));
        });
        awaited
    }

    /// The first answer; where no server has one, the word of the first that said it cannot answer.
    async fn first_answer(&self, relayed: &Relayed, transport: Transport) -> Option<Vec<u8>> {
        let end = Instant::now() + self.limits.total;
        let mut failure = None;
        for server in self.upstreams.in_order() {
            let asking = timeout(self.limits.attempt, exchange(relayed, server, transport, &self.sockets));
            match timeout_at(end, asking).await {
                Ok(Ok(Ok(Exchanged::Answered(answer)))) => {
                    self.upstreams.has_answered(server);
                    return Some(answer);
                }
                Ok(Ok(Ok(Exchanged::Failed(answer)))) => {
                    failure.get_or_insert(answer);
                }
                Ok(Ok(Err(error))) => self.upstreams.has_failed(server, &error.to_string()),
                Ok(Err(_)) => self.upstreams.has_failed(server, "no answer in time"),
                Err(_) => break,
            }
        }
        failure
    }
}
