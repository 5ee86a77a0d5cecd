//! The side that made a token: it waits for joiners on a listener of its own. Who comes is nobody until the
//! secret is proven, costs a bounded amount until then, and makes room for who comes later.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_certs::Role;
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
use super::tokens::{Ending, Record, State, StoreError, Wrong};
use super::wire::{self, BRIEF, LONG, Message, Refusal, WireError};
use super::{Context, Guest, Introduction, Party, Peer, unix_seconds};

/// From accept to the end, whatever comes.
const DEADLINE: Duration = Duration::from_secs(10);
/// Joiners that have proven nothing, at once; with buffers of TLS and a brief message, some 100 KiB each.
const UNPROVEN: usize = 64;
/// Joiners that have, at once; each may send an offer.
const PROVEN: usize = 64;
/// Accepting again after it failed.
const PAUSE: Duration = Duration::from_millis(100);
/// Characters of a cause in the log.
const LONGEST_CAUSE: usize = 512;
const SWEEP: Duration = Duration::from_secs(60);

type Joiner = Met<TlsStream<TcpStream>>;

/// Why a joiner got no further.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Meet(#[from] MeetError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the exporter: {0}")]
    Exporter(#[from] TlsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("its offer: {0}")]
    Offer(OfferError),
    #[error("the own offer: {0}")]
    OwnOffer(OfferError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error("a thread has ended: {0}")]
    Thread(#[from] tokio::task::JoinError),
    #[error("refused: {0}")]
    Refused(Refusal),
    #[error("it took longer than {DEADLINE:?}")]
    Deadline,
}

impl Failed {
    /// What the joiner is told; nothing where it broke the talk off itself.
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

    /// For the log: causes may repeat what certificates say.
    fn shown(&self) -> String {
        self.to_string().chars().take(LONGEST_CAUSE).collect()
    }
}

/// Waits for joiners until it is dropped.
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
                    // Descriptors have run out, or the joiner went before it was accepted.
                    tracing::warn!(%error, "a joiner could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
            _ = sweep.tick() => {
                tokio::spawn(Arc::clone(&host).sweep());
                continue;
            }
        };
        unproven.retain(|one| !one.is_finished());
        // Who waits to be let in does not keep others out: the one that came first goes.
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

/// A joiner that has proven the secret of a token that is open and its own.
struct Admitted {
    id: TokenId,
    /// This side's.
    proof: Proof,
}

impl Host {
    /// Up to the proof. This task can be ended at any time: nothing has changed yet.
    async fn meet(self: Arc<Self>, stream: TcpStream) {
        let deadline = Instant::now() + DEADLINE;
        let met = timeout_at(deadline, async {
            let mut joiner = tls::accept(stream, &self.context.trust).await?;
            let admitted = self.listen(&mut joiner).await;
            Ok((tell(&mut joiner, admitted).await?, joiner))
        });
        match met.await.unwrap_or(Err(Failed::Deadline)) {
            Ok((admitted, joiner)) => _ = tokio::spawn(self.welcome(joiner, admitted, deadline)),
            Err(error) => tracing::debug!(error = ?error.shown(), "a joiner was not admitted"),
        }
    }

    /// Hears the proof. Only to who knows the secret is anything said of the token.
    async fn listen(&self, joiner: &mut Joiner) -> Result<Admitted, Failed> {
        let Message::Prove { token, proof } = wire::receive(&mut joiner.stream, BRIEF).await? else {
            return Err(WireError::Order.into());
        };
        let id: TokenId = token.parse().map_err(|_| Failed::Refused(Refusal::Unknown))?;
        let found = self.apart(move |context| context.tokens.find(id)).await??;
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
                let check = move |context: &Context| place::believe(context, &shown, &chain, Role::Client);
                self.apart(check).await?.map_err(Failed::Place)
            }
        };
        if let Err(error) = &judged {
            let (token, peer) = (id.short(), &joiner.shown.id);
            tracing::warn!(token, %peer, error = ?error.shown(), "a joiner who knows the secret was refused");
        }
        judged.map(|()| Admitted { id, proof: record.verifier.prove(&session) })
    }

    /// Counts a wrong proof, and ends the token that has had too many.
    async fn count(&self, id: TokenId, state: State) -> Result<(), Failed> {
        if state != State::Open {
            return Ok(());
        }
        if self.wrong.is_enough(id)
            && self.apart(move |context| context.tokens.end(id, Ending::Void)).await??
        {
            tracing::warn!(token = id.short(), "wrong proofs have ended a token; make a new one");
        }
        Ok(())
    }

    /// From the proof on.
    async fn welcome(self: Arc<Self>, mut joiner: Joiner, admitted: Admitted, deadline: Instant) {
        let talk = timeout_at(deadline, async {
            let exchanged = self.exchange(&mut joiner, admitted).await;
            tell(&mut joiner, exchanged).await
        });
        match talk.await.unwrap_or(Err(Failed::Deadline)) {
            Ok(peer) => {
                let Introduction { party, address, .. } = &peer.introduction;
                tracing::info!(peer = %joiner.shown.id, cluster = %party.cluster, %address, "a cluster has joined");
            }
            Err(error) => {
                tracing::warn!(peer = %joiner.shown.id, error = ?error.shown(), "a join has failed after the proof");
            }
        }
    }

    /// The token is used up, then offers change hands, and then the peer is kept.
    async fn exchange(&self, joiner: &mut Joiner, admitted: Admitted) -> Result<Peer, Failed> {
        let _permit = self.proven.try_acquire().map_err(|_| Failed::Refused(Refusal::Busy))?;
        // What this side lacks does not cost the token.
        let own = self.apart(offer::own).await?.map_err(Failed::OwnOffer)?;
        let Admitted { id, proof } = admitted;
        if !self.apart(move |context| context.tokens.end(id, Ending::Used)).await?? {
            return Err(Failed::Refused(Refusal::Used));
        }
        wire::send(&mut joiner.stream, &Message::Proven { proof }).await?;
        let Message::Offer(theirs) = wire::receive(&mut joiner.stream, LONG).await? else {
            return Err(WireError::Order.into());
        };
        let accepted = offer::accept(*theirs, &joiner.shown, &joiner.chain, Role::Client, UnixTime::now());
        let accepted = accepted.map_err(Failed::Offer)?;
        wire::send(&mut joiner.stream, &Message::Offer(Box::new(own))).await?;
        let Message::Kept = wire::receive(&mut joiner.stream, BRIEF).await? else {
            return Err(WireError::Order.into());
        };
        let kept = self.apart(move |context| place::keep(context, accepted, SystemTime::now())).await??;
        let peer = kept.commit();
        if close(joiner, &Message::Done).await.is_err() {
            tracing::warn!(peer = %joiner.shown.id, "a joiner hung up before it heard that it was kept");
        }
        Ok(peer)
    }

    async fn sweep(self: Arc<Self>) {
        if let Err(error) = self.forget().await {
            tracing::warn!(error = ?error.shown(), "tokens could not be swept");
        }
    }

    /// Forgets what has ended, and the wrong proofs of what is gone.
    async fn forget(&self) -> Result<(), Failed> {
        let now = unix_seconds(SystemTime::now());
        self.apart(move |context| context.tokens.sweep(now)).await??;
        let left = self.apart(|context| context.tokens.list()).await??;
        let left: HashSet<_> = left.into_iter().map(|(record, _)| record.id).collect();
        self.wrong.keep_only(&left);
        Ok(())
    }

    /// On a thread that may wait.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Context) -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        let context = Arc::clone(&self.context);
        spawn_blocking(move || work(&context)).await
    }
}

/// Why the holder of the secret may not join with this token, if so.
fn judge(record: &Record, state: State, guest: &Party, now: u64) -> Option<Refusal> {
    match state {
        State::Used => Some(Refusal::Used),
        State::Void => Some(Refusal::Void),
        State::Open if now >= record.expires => Some(Refusal::Expired),
        State::Open if record.guest != Guest::Cluster(guest.clone()) => Some(Refusal::OtherGuest),
        State::Open => None,
    }
}

/// Tells the joiner why it gets no further, if it does not.
async fn tell<T>(joiner: &mut Joiner, outcome: Result<T, Failed>) -> Result<T, Failed> {
    if let Err(error) = &outcome
        && let Some(why) = error.why()
    {
        // Whether it hears it or not.
        let _told = close(joiner, &Message::Refused { why }).await;
    }
    outcome
}

/// The last word.
async fn close(joiner: &mut Joiner, message: &Message) -> Result<(), WireError> {
    wire::send(&mut joiner.stream, message).await?;
    Ok(joiner.stream.shutdown().await?)
}
