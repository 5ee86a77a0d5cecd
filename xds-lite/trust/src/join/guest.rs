//! The side that was given a token: it goes to who made it, and to nobody else. Whatever fails, it says what has
//! become of the token, and nothing is left here.

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
use super::wire::{self, BRIEF, LONG, Message, Refusal, WireError};
use super::{Context, Guest, Party, Peer, Token};

/// Longer than the other side waits, so that its reason is heard.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why a join has failed, and what has become of the token.
#[derive(Debug)]
pub struct JoinError {
    /// How far it came.
    pub progress: Progress,
    /// What has failed.
    pub cause: Box<JoinCause>,
}

/// What has become of the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It can be used still.
    Unused,
    /// Nobody here knows.
    Uncertain,
    /// It cannot be used again.
    Used,
}

/// What has failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinCause {
    /// The token is for somebody else.
    #[error("{}, and this agent is of {own}", .guest.purpose())]
    OtherGuest {
        /// For whom it was made.
        guest: Guest,
        /// Who this is.
        own: Party,
    },
    /// The token is of a cluster with the own one's name.
    #[error(
        "the token is of a cluster named {0}, as this one is; clusters that are joined have different names"
    )]
    Own(isthmus_model::slice::Cluster),
    /// The own bundle or deny-list cannot be offered.
    #[error("the own offer: {0}")]
    OwnOffer(#[source] OfferError),
    /// The other side is not there, or not who it must be.
    #[error(transparent)]
    Meet(#[from] MeetError),
    /// The session has no keys to prove over.
    #[error("the exporter: {0}")]
    Exporter(#[from] TlsError),
    /// The other side hung up, or speaks otherwise.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The other side says no.
    #[error("the other side refuses: {0}")]
    Refused(Refusal),
    /// It does not know the secret.
    #[error("the other side does not know the token's secret; it is not who made the token")]
    Unproven,
    /// What it offers is of no use.
    #[error("the other side's offer: {0}")]
    Offer(#[source] OfferError),
    /// What it offers cannot be kept.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Too slow.
    #[error("the other side did not answer within {DEADLINE:?}")]
    Deadline,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let make = "make a new one with `isthmus-agent token create` on the other side";
        write!(f, "{}", self.cause)?;
        match (&*self.cause, self.progress) {
            // They say it themselves.
            (JoinCause::Refused(Refusal::Used | Refusal::Expired | Refusal::Void | Refusal::Unknown), _) => {
                Ok(())
            }
            (_, Progress::Unused) => {
                f.write_str("; the token is not used up: join with it again when that is right")
            }
            (_, Progress::Uncertain) => {
                write!(f, "; the token may be used up: try it again, and if it is refused {make}")
            }
            (_, Progress::Used) => write!(
                f,
                "; the token is used up and nothing was kept here: {make} and join with that, which is safe on both sides"
            ),
        }
    }
}

impl std::error::Error for JoinError {}

/// Joins the cluster that made a token. What both sides have learned is on their disks when this returns; it waits
/// for this side's. Dropping it leaves nothing here.
///
/// # Errors
/// What has failed; nothing was kept here, and the error says whether the token can be used again.
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
    place::believe(context, &host.shown, &host.chain, Role::Server)?;
    prove(&mut host, token, progress).await?;
    wire::send(&mut host.stream, &Message::Offer(Box::new(own))).await?;
    let theirs = match wire::receive(&mut host.stream, LONG).await? {
        Message::Offer(theirs) => *theirs,
        other => return Err(unexpected(&other)),
    };
    let accepted = offer::accept(theirs, &host.shown, &host.chain, Role::Server, UnixTime::now());
    let kept = place::keep(context, accepted.map_err(JoinCause::Offer)?, SystemTime::now())?;
    wire::send(&mut host.stream, &Message::Kept).await?;
    match wire::receive(&mut host.stream, BRIEF).await? {
        Message::Done => Ok(kept.commit()),
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

/// Both sides prove the secret. From here on the token is used up.
async fn prove(
    host: &mut Met<TlsStream<TcpStream>>,
    token: &Token,
    progress: &mut Progress,
) -> Result<(), JoinCause> {
    let session = tls::session(host.stream.get_ref().1, token.id(), &token.issuer, &token.guest)?;
    let proof = token.secret.prove(&session);
    *progress = Progress::Uncertain;
    wire::send(&mut host.stream, &Message::Prove { token: token.id().to_string(), proof }).await?;
    match wire::receive(&mut host.stream, BRIEF).await? {
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

/// What has become of a token whose proof was answered with a refusal.
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
