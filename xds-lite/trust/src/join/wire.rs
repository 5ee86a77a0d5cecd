//! The messages of a join: JSON with a length prefix, each bounded by what is possible at its point of the
//! exchange. Errors never quote the other side. The ALPN carries the version (`tls`).

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Introduction;
use super::secret::Proof;

/// Bytes of any message but an offer, which is all that is read before a proof.
pub(super) const SHORT_LIMIT: usize = 512;
/// Bytes of an offer.
pub(super) const LONG_LIMIT: usize = 1 << 20;

/// The messages, in the order of the exchange.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum Message {
    /// The joiner's first message.
    Prove { token: String, proof: Proof },
    /// The answer: the token is consumed from here on.
    Proven { proof: Proof },
    /// The joiner's, then the other side's.
    Offer(Box<Offer>),
    /// The joiner has stored the offer.
    Kept,
    /// So has the other side; the join is complete.
    Done,
    /// The exchange ends here.
    Refused { why: Refusal },
}

/// What each side sends the other.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) introduction: Introduction,
    /// The bundle of the sender's trust domain, in SPIFFE's format.
    pub(super) bundle: String,
    /// Its deny-list in its envelope, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) denied: Option<String>,
}

/// Why a side refuses. Before the proof a joiner is told only `Unknown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The token does not exist, or the proof is wrong.
    #[error("it does not know this token; was it made there, by this cluster, in the last hours?")]
    Unknown,
    /// The token was used.
    #[error("the token has been used; make a new one there")]
    Used,
    /// The token has expired.
    #[error("the token has expired; make a new one there")]
    Expired,
    /// The token was revoked.
    #[error(
        "the token was revoked after too many wrong proofs (possible interception); make a new one there"
    )]
    Void,
    /// The token is for another party.
    #[error(
        "the token was made for another cluster or trust domain than the one in this agent's certificate"
    )]
    OtherGuest,
    /// Data known there contradicts this cluster or trust domain.
    #[error("its records of this cluster or trust domain contradict the join; see its log")]
    Conflict,
    /// The offer is invalid.
    #[error("it cannot use this agent's offer; see its log")]
    Offer,
    /// Too many clusters join at once.
    #[error("too many clusters are joining it; try again")]
    Busy,
    /// An internal error.
    #[error("it had an internal error; see its log")]
    Fault,
}

/// Why a message cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection failed.
    #[error("connection lost: {0}")]
    Broken(#[from] io::Error),
    /// The other side closed the connection.
    #[error("the other side closed the connection")]
    Closed,
    /// The message is too long.
    #[error("received a message of {found} bytes; the limit is {most}")]
    Large {
        /// Its length.
        found: usize,
        /// The limit.
        most: usize,
    },
    /// The message is malformed.
    #[error("received a malformed message (at byte {0})")]
    Malformed(usize),
    /// The message is out of order.
    #[error("received an unexpected message")]
    Order,
    /// The own message exceeds the other side's limit.
    #[error("this agent's bundle and deny-list take {0} bytes; the limit is {LONG_LIMIT}")]
    OwnLarge(usize),
}

/// Sends one message.
pub(super) async fn send<W: AsyncWrite + Unpin>(to: &mut W, message: &Message) -> Result<(), WireError> {
    let content = serde_json::to_vec(message).map_err(io::Error::from)?;
    let length = u32::try_from(content.len()).ok().filter(|_| content.len() <= LONG_LIMIT);
    let length = length.ok_or(WireError::OwnLarge(content.len()))?;
    to.write_all(&[&length.to_be_bytes()[..], &content].concat()).await?;
    to.flush().await?;
    Ok(())
}

/// Receives one message of at most `most` bytes. Allocates for what has arrived, not for what is announced.
pub(super) async fn receive<R: AsyncRead + Unpin>(from: &mut R, most: usize) -> Result<Message, WireError> {
    let mut length = [0; 4];
    from.read_exact(&mut length).await.map_err(ended)?;
    let found = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if found > most {
        return Err(WireError::Large { found, most });
    }
    let mut content = Vec::new();
    from.take(found as u64).read_to_end(&mut content).await.map_err(ended)?;
    if content.len() < found {
        return Err(WireError::Closed);
    }
    // The position only: the text is the other side's.
    serde_json::from_slice(&content).map_err(|error| WireError::Malformed(error.column()))
}

/// A close without TLS's close_notify is an error in rustls, and an ordinary end here.
fn ended(error: io::Error) -> WireError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => WireError::Closed,
        _ => WireError::Broken(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::secret::{Secret, Session};

    fn read(bytes: &[u8], most: usize) -> Result<Message, WireError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(receive(&mut &bytes[..], most))
    }

    fn written(message: &Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(send(&mut bytes, message)).unwrap();
        bytes
    }

    #[test]
    fn message_other_than_an_offer_is_brief() {
        let secret = Secret::generate().unwrap();
        let proof = secret.prove(&Session([1; 32]));
        let id = secret.id().to_string();
        let whys = [Refusal::Unknown, Refusal::OtherGuest, Refusal::Fault];
        let refused = whys.map(|why| Message::Refused { why });
        let others = [
            Message::Prove { token: id, proof: proof.clone() },
            Message::Proven { proof },
            Message::Kept,
            Message::Done,
        ];
        for message in others.into_iter().chain(refused) {
            let bytes = written(&message);
            let again = read(&bytes, SHORT_LIMIT).unwrap();
            assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&message).unwrap());
            for end in 0..bytes.len() {
                assert!(
                    matches!(read(&bytes[..end], SHORT_LIMIT), Err(WireError::Closed)),
                    "cut off after {end}"
                );
            }
        }
    }

    #[test]
    fn message_errors_never_quote_the_other_side() {
        let evil = "\u{1b}[2Jevil";
        for content in [
            format!("{{\"message\": \"{evil}\"}}"),
            format!("{{\"message\": \"refused\", \"why\": \"{evil}\"}}"),
            format!("{{\"message\": \"prove\", \"token\": \"\", \"proof\": \"{evil}\"}}"),
            evil.to_owned(),
            "[".repeat(500),
        ] {
            let bytes =
                [&u32::try_from(content.len()).unwrap().to_be_bytes()[..], content.as_bytes()].concat();
            let error = read(&bytes, SHORT_LIMIT).unwrap_err();
            assert!(matches!(error, WireError::Malformed(_)), "{content}: {error}");
            assert!(!error.to_string().contains("evil") && !format!("{error:?}").contains("evil"));
        }
    }

    #[test]
    fn message_announced_too_long_is_not_read() {
        for length in [SHORT_LIMIT + 1, 1 << 26, u32::MAX as usize] {
            let bytes = u32::try_from(length).unwrap().to_be_bytes();
            assert!(
                matches!(read(&bytes, SHORT_LIMIT), Err(WireError::Large { found, .. }) if found == length)
            );
        }
    }

    /// No panic; a parsed message survives a round trip; an error quotes nothing.
    #[test]
    fn fuzz_join_wire() {
        let starts = [
            "",
            "{\"message\":\"",
            "{\"message\":\"prove\",\"token\":\"",
            "{\"message\":\"refused\",\"why\":\"",
            "{\"message\":\"offer\",\"introduction\":{",
            "{\"message\":\"proven\",\"proof\":\"",
        ];
        let ends = ["", "\"}", "}}"];
        let check = bolero::check!().with_test_time(std::time::Duration::from_secs(3));
        check.with_type::<(Vec<u8>, u8, u8, bool)>().for_each(|(bytes, start, end, whole)| {
            let start = starts[usize::from(*start) % starts.len()].as_bytes();
            let content = [start, bytes, ends[usize::from(*end) % ends.len()].as_bytes()].concat();
            let length = u32::try_from(content.len()).unwrap().to_be_bytes();
            let wire = if *whole { [&length[..], &content].concat() } else { content };
            match read(&wire, LONG_LIMIT) {
                Ok(message) => {
                    let again = read(&written(&message), LONG_LIMIT).unwrap();
                    let [one, other] = [&message, &again].map(|one| serde_json::to_value(one).unwrap());
                    assert_eq!(one, other);
                }
                Err(error) => {
                    assert!(error.to_string().is_ascii() && error.to_string().len() < 200, "{error}")
                }
            }
        });
    }
}
