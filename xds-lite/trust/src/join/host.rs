//! The side that made the token: accepts joiners on a listener of its own. Until it has proven the secret, a
//! joiner has no rights, costs a bounded amount, and may be evicted for a later one.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_certs::Role;
use isthmus_store::StoreError;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tokio_rustls::rustls::Error as TlsError;
use tokio_rustls::rustls::pki_types::UnixTime;
use tokio_rustls::server::TlsStream;

use super::offer::{self, OfferError};
use super::place::{self, PlaceError};
use super::secret::{Proof, TokenId};
use super::tls::{self, MeetError, Met};
use super::tokens::{Ending, Record, State, Wrong};
use super::wire::{self, LONG_LIMIT, Message, Refusal, SHORT_LIMIT, WireError};
use super::{Context, Guest, Introduction, Party, Peer, unix_seconds};

/// From accept to the end of the join.
const DEADLINE: Duration = Duration::from_secs(10);
/// Concurrent joiners before their proof; with TLS buffers and a brief message, some 100 KiB each.
const UNPROVEN: usize = 64;
/// Concurrent joiners after their proof; each may send an offer.
const PROVEN: usize = 64;
/// Pause after a failed accept.
const PAUSE: Duration = Duration::from_millis(100);
/// Characters of an error in the log.
const LONGEST_CAUSE: usize = 512;
const SWEEP: Duration = Duration::from_secs(60);

type Joiner = Met<TlsStream<TcpStream>>;

/// Why a joiner failed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Meet(#[from] MeetError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("cannot export keying material: {0}")]
    Exporter(#[from] TlsError),
    #[error("token store: {0}")]
    Store(#[from] StoreError),
    #[error("the joiner's offer: {0}")]
    Offer(OfferError),
    #[error("this agent's offer: {0}")]
    OwnOffer(OfferError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("a blocking task failed: {0}")]
    Thread(#[from] tokio::task::JoinError),
    #[error("refused: {0}")]
    Refused(Refusal),
    #[error("the joiner took longer than {DEADLINE:?}")]
    Deadline,
}

impl Failed {
    /// The refusal to send; `None` where the joiner itself ended the exchange.
    fn why(&self) -> Option<Refusal> {
        match self {
            Failed::Meet(_) | Failed::Wire(_) | Failed::Deadline => None,
            Failed::Refused(why) => Some(*why),
            Failed::Offer(_) => Some(Refusal::Offer),
            Failed::Place(error) if error.is_conflict() => Some(Refusal::Conflict),
            Failed::Place(_)
            | Failed::Exporter(_)
            | Failed::Store(_)
            | Failed::OwnOffer(_)
            | Failed::Thread(_) => Some(Refusal::Fault),
        }
    }

    /// Shortened for the log: errors may quote certificates.
    fn printable(&self) -> String {
        self.to_string().chars().take(LONGEST_CAUSE).collect()
    }
}

/// Accepts joiners until dropped.
pub async fn serve(listener: TcpListener, context: Arc<Context>) {
    let host = Arc::new(Host { context, wrong: Wrong::default(), proven: Semaphore::new(PROVEN) });
    let mut unproven: VecDeque<AbortHandle> = VecDeque::new();
    let mut sweep = interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, or the joiner disconnected before the accept.
                    tracing::warn!(%error, "cannot accept a joiner");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
            _ = sweep.tick() => {
                tokio::spawn(Arc::clone(&host).sweep());
                continue;
            }
        };
        unproven.retain(|task| !task.is_finished());
        // Unproven joiners must not keep others out: evict the oldest.
        if unproven.len() >= UNPROVEN
            && let Some(first) = unproven.pop_front()
        {
            first.abort();
        }
        unproven.push_back(tokio::spawn(Arc::clone(&host).meet(stream)).abort_handle());
    }
}

struct Host {
    context: Arc<Context>,
    wrong: Wrong,
    proven: Semaphore,
}

/// A joiner that proved the secret of an open token made for it.
struct Admitted {
    id: TokenId,
    /// This side's proof.
    proof: Proof,
}

impl Host {
    /// Up to the proof. The task can be aborted at any time: nothing has changed yet.
    async fn meet(self: Arc<Self>, stream: TcpStream) {
        let deadline = Instant::now() + DEADLINE;
        let met = timeout_at(deadline, async {
            let mut joiner = tls::accept(stream, &self.context.trust).await?;
            let admitted = self.verify_proof(&mut joiner).await;
            Ok((report_refusal(&mut joiner, admitted).await?, joiner))
        });
        match met.await.unwrap_or(Err(Failed::Deadline)) {
            Ok((admitted, joiner)) => _ = tokio::spawn(self.complete(joiner, admitted, deadline)),
            Err(error) => tracing::debug!(error = ?error.printable(), "joiner not admitted"),
        }
    }

    /// Verifies the proof. Only a holder of the secret learns anything about the token.
    async fn verify_proof(&self, joiner: &mut Joiner) -> Result<Admitted, Failed> {
        let Message::Prove { token, proof } = wire::receive(&mut joiner.stream, SHORT_LIMIT).await? else {
            return Err(WireError::Order.into());
        };
        let id: TokenId = token.parse().map_err(|_| Failed::Refused(Refusal::Unknown))?;
        let found = self.blocking(move |context| context.tokens.find(id)).await??;
        let (record, state) = found.ok_or(Failed::Refused(Refusal::Unknown))?;
        let session = tls::session(joiner.stream.get_ref().1, id, self.context.party(), &record.guest)?;
        if !record.verifier.admits(&session, &proof) {
            self.count(id, state).await?;
            return Err(Failed::Refused(Refusal::Unknown));
        }
        let judged = match judge(&record, state, &joiner.shown.party, unix_seconds(SystemTime::now())) {
            Some(why) => Err(Failed::Refused(why)),
            None => {
                let (shown, chain) = (joiner.shown.clone(), joiner.chain.clone());
                let check =
                    move |context: &Context| place::check_trusted(context, &shown, &chain, Role::Client);
                self.blocking(check).await?.map_err(Failed::Place)
            }
        };
        if let Err(error) = &judged {
            let (token, peer) = (id.short(), &joiner.shown.id);
            tracing::warn!(token, %peer, error = ?error.printable(), "refused a joiner that proved the token's secret");
        }
        judged.map(|()| Admitted { id, proof: record.verifier.prove(&session) })
    }

    /// Counts a wrong proof, and revokes the token after too many.
    async fn count(&self, id: TokenId, state: State) -> Result<(), Failed> {
        if state != State::Open {
            return Ok(());
        }
        if self.wrong.is_enough(id)
            && self.blocking(move |context| context.tokens.end(id, Ending::Void)).await??
        {
            tracing::warn!(token = id.short(), "token revoked after too many wrong proofs; make a new one");
        }
        Ok(())
    }

    /// After the proof.
    async fn complete(self: Arc<Self>, mut joiner: Joiner, admitted: Admitted, deadline: Instant) {
        let talk = timeout_at(deadline, async {
            let exchanged = self.exchange(&mut joiner, admitted).await;
            report_refusal(&mut joiner, exchanged).await
        });
        match talk.await.unwrap_or(Err(Failed::Deadline)) {
            Ok(peer) => {
                let Introduction { party, address, .. } = &peer.introduction;
                tracing::info!(peer = %joiner.shown.id, cluster = %party.cluster, %address, "cluster joined");
            }
            Err(error) => {
                tracing::warn!(peer = %joiner.shown.id, error = ?error.printable(), "join failed after the proof");
            }
        }
    }

    /// Consumes the token, exchanges offers, then stores the peer.
    async fn exchange(&self, joiner: &mut Joiner, admitted: Admitted) -> Result<Peer, Failed> {
        let _permit = self.proven.try_acquire().map_err(|_| Failed::Refused(Refusal::Busy))?;
        // An error on this side must not consume the token.
        let own = self.blocking(offer::own).await?.map_err(Failed::OwnOffer)?;
        let Admitted { id, proof } = admitted;
        if !self.blocking(move |context| context.tokens.end(id, Ending::Used)).await?? {
            return Err(Failed::Refused(Refusal::Used));
        }
        wire::send(&mut joiner.stream, &Message::Proven { proof }).await?;
        let Message::Offer(theirs) = wire::receive(&mut joiner.stream, LONG_LIMIT).await? else {
            return Err(WireError::Order.into());
        };
        let accepted = offer::accept(*theirs, &joiner.shown, &joiner.chain, Role::Client, UnixTime::now());
        let accepted = accepted.map_err(Failed::Offer)?;
        wire::send(&mut joiner.stream, &Message::Offer(Box::new(own))).await?;
        let Message::Kept = wire::receive(&mut joiner.stream, SHORT_LIMIT).await? else {
            return Err(WireError::Order.into());
        };
        let pending =
            self.blocking(move |context| place::keep(context, accepted, SystemTime::now())).await??;
        let peer = pending.commit();
        if close(joiner, &Message::Done).await.is_err() {
            tracing::warn!(peer = %joiner.shown.id, "joiner disconnected before the join was confirmed; it is stored here");
        }
        Ok(peer)
    }

    async fn sweep(self: Arc<Self>) {
        if let Err(error) = self.forget().await {
            tracing::warn!(error = ?error.printable(), "cannot delete expired tokens");
        }
    }

    /// Deletes ended tokens, and the counts of wrong proofs of deleted tokens.
    async fn forget(&self) -> Result<(), Failed> {
        let now = unix_seconds(SystemTime::now());
        self.blocking(move |context| context.tokens.sweep(now)).await??;
        let left = self.blocking(|context| context.tokens.list()).await??;
        let left: HashSet<_> = left.into_iter().map(|(record, _)| record.id).collect();
        self.wrong.keep_only(&left);
        Ok(())
    }

    /// Runs blocking work on a blocking thread.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Context) -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        let context = Arc::clone(&self.context);
        spawn_blocking(move || work(&context)).await
    }
}

/// Why the holder of the secret may not join with this token.
fn judge(record: &Record, state: State, guest: &Party, now: u64) -> Option<Refusal> {
    match state {
        State::Used => Some(Refusal::Used),
        State::Void => Some(Refusal::Void),
        State::Open if now >= record.expires => Some(Refusal::Expired),
        State::Open if record.guest != Guest::Cluster(guest.clone()) => Some(Refusal::OtherGuest),
        State::Open => None,
    }
}

/// Sends the joiner the refusal, if there is one.
async fn report_refusal<T>(joiner: &mut Joiner, outcome: Result<T, Failed>) -> Result<T, Failed> {
    if let Err(error) = &outcome
        && let Some(why) = error.why()
    {
        // Best effort: the joiner may be gone.
        let _sent = close(joiner, &Message::Refused { why }).await;
    }
    outcome
}

/// Sends the last message and closes.
async fn close(joiner: &mut Joiner, message: &Message) -> Result<(), WireError> {
    wire::send(&mut joiner.stream, message).await?;
    Ok(joiner.stream.shutdown().await?)
}
