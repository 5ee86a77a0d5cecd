//! The joining side: connects only to the agent that made the token. A failure reports whether the token can
//! be used again, and leaves nothing on this side's disk.

use std::fmt;
use std::time::{Duration, SystemTime};

use isthmus_certs::Role;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::Error as TlsError;
use tokio_rustls::rustls::pki_types::UnixTime;

use super::offer::{self, OfferError};
use super::place::{self, PlaceError};
use super::tls::{self, MeetError, Met};
use super::wire::{self, LONG_LIMIT, Message, Refusal, SHORT_LIMIT, WireError};
use super::{Context, Guest, Party, Peer, Token};

/// Longer than the other side's deadline, so that its reason arrives.
const DEADLINE: Duration = Duration::from_secs(15);

/// A failed join, with the state of the token.
#[derive(Debug)]
pub struct JoinError {
    /// Whether the token can be used again.
    pub progress: Progress,
    /// The reason.
    pub cause: Box<JoinCause>,
}

/// The state of the token after a failed join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The token is unused.
    Unused,
    /// The token may be used.
    Uncertain,
    /// The token is used.
    Used,
}

/// Why a join failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinCause {
    /// The token was made for another party.
    #[error("{}, but this agent is of {own}", .guest.purpose())]
    OtherGuest {
        /// The party that the token was made for.
        guest: Guest,
        /// This agent's party.
        own: Party,
    },
    /// The token is from a cluster of the same name.
    #[error("the token is from a cluster named {0}, as is this one; joined clusters need different names")]
    Own(isthmus_model::slice::Cluster),
    /// This agent's bundle or deny-list cannot be sent.
    #[error("cannot send this agent's bundle: {0}")]
    OwnOffer(#[source] OfferError),
    /// The other side is unreachable, or is not the one that made the token.
    #[error(transparent)]
    Meet(#[from] MeetError),
    /// The session has no keying material.
    #[error("cannot export keying material: {0}")]
    Exporter(#[from] TlsError),
    /// The connection failed, or the other side broke the protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The other side refused the join.
    #[error("the other side refused the join: {0}")]
    Refused(Refusal),
    /// The other side did not prove the secret.
    #[error("the other side did not prove the token's secret, so it is not the agent that made the token")]
    Unproven,
    /// The other side's offer is invalid.
    #[error("the other side's offer: {0}")]
    Offer(#[source] OfferError),
    /// The other side's offer cannot be stored.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The other side was too slow.
    #[error("the other side did not answer within {DEADLINE:?}")]
    Deadline,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let make = "make a new one with `isthmus-agent token create` on the other side";
        write!(f, "{}", self.cause)?;
        match (&*self.cause, self.progress) {
            // These refusals state it themselves.
            (JoinCause::Refused(Refusal::Used | Refusal::Expired | Refusal::Void | Refusal::Unknown), _) => {
                Ok(())
            }
            (_, Progress::Unused) => {
                f.write_str("; the token is still valid: use it again after fixing this")
            }
            (_, Progress::Uncertain) => {
                write!(f, "; the token may be used up: try it again, and if it is refused {make}")
            }
            (_, Progress::Used) => write!(
                f,
                "; the token is used up and nothing was stored here: {make} and join with that, which is safe on both sides"
            ),
        }
    }
}

impl std::error::Error for JoinError {}

/// Joins the cluster that made a token. On return both sides have stored what they learned. Blocks on this
/// side's disk. Dropping the future leaves nothing behind.
///
/// # Errors
/// The join failed; nothing was stored here, and the error says whether the token can be used again.
pub async fn join(context: &Context, token: &Token) -> Result<Peer, JoinError> {
    let mut progress = Progress::Unused;
    let deadline = Instant::now() + DEADLINE;
    let joined = timeout_at(deadline, talk(context, token, &mut progress)).await;
    joined.unwrap_or(Err(JoinCause::Deadline)).map_err(|cause| JoinError { progress, cause: Box::new(cause) })
}

async fn talk(context: &Context, token: &Token, progress: &mut Progress) -> Result<Peer, JoinCause> {
    fits(context, token)?;
    place::check(context, &token.issuer)?;
    place::prepare(context)?;
    let own = offer::own(context).map_err(JoinCause::OwnOffer)?;
    let mut host = tls::connect(token, &context.trust).await?;
    place::check_trusted(context, &host.shown, &host.chain, Role::Server)?;
    prove(&mut host, token, progress).await?;
    wire::send(&mut host.stream, &Message::Offer(Box::new(own))).await?;
    let theirs = match wire::receive(&mut host.stream, LONG_LIMIT).await? {
        Message::Offer(theirs) => *theirs,
        other => return Err(unexpected(&other)),
    };
    let accepted = offer::accept(theirs, &host.shown, &host.chain, Role::Server, UnixTime::now());
    let pending = place::keep(context, accepted.map_err(JoinCause::Offer)?, SystemTime::now())?;
    wire::send(&mut host.stream, &Message::Kept).await?;
    match wire::receive(&mut host.stream, SHORT_LIMIT).await? {
        Message::Done => Ok(pending.commit()),
        other => Err(unexpected(&other)),
    }
}

fn fits(context: &Context, token: &Token) -> Result<(), JoinCause> {
    let own = context.party();
    if token.guest != Guest::Cluster(own.clone()) {
        return Err(JoinCause::OtherGuest { guest: token.guest.clone(), own: own.clone() });
    }
    if token.issuer.cluster == own.cluster {
        return Err(JoinCause::Own(own.cluster.clone()));
    }
    Ok(())
}

/// Both sides prove the secret. The token is consumed from here on.
async fn prove(
    host: &mut Met<TlsStream<TcpStream>>,
    token: &Token,
    progress: &mut Progress,
) -> Result<(), JoinCause> {
    let session = tls::session(host.stream.get_ref().1, token.id(), &token.issuer, &token.guest)?;
    let proof = token.secret.prove(&session);
    *progress = Progress::Uncertain;
    wire::send(&mut host.stream, &Message::Prove { token: token.id().to_string(), proof }).await?;
    match wire::receive(&mut host.stream, SHORT_LIMIT).await? {
        Message::Proven { proof } if token.secret.admits(&session, &proof) => {
            *progress = Progress::Used;
            Ok(())
        }
        Message::Proven { .. } => Err(JoinCause::Unproven),
        Message::Refused { why } => {
            *progress = after(why);
            Err(JoinCause::Refused(why))
        }
        _ => Err(WireError::Order.into()),
    }
}

/// The state of a token whose proof was refused.
fn after(why: Refusal) -> Progress {
    match why {
        Refusal::Used | Refusal::Expired | Refusal::Void => Progress::Used,
        Refusal::Unknown | Refusal::Offer | Refusal::Fault => Progress::Uncertain,
        Refusal::OtherGuest | Refusal::Conflict | Refusal::Busy => Progress::Unused,
    }
}

fn unexpected(message: &Message) -> JoinCause {
    match message {
        Message::Refused { why } => JoinCause::Refused(*why),
        _ => WireError::Order.into(),
    }
}
