//! What the two sides say to each other: JSON behind its length, each message bounded by what it may be at its
//! place in the talk. Nothing of the other side's text is in any error. The version is the ALPN's (`tls`).

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Introduction;
use super::secret::Proof;

/// Bytes of anything but an offer: all that is read of somebody who has proven nothing.
pub(super) const BRIEF: usize = 512;
/// Bytes of an offer.
pub(super) const LONG: usize = 1 << 20;

/// One message, in the order of the talk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(super) enum Message {
    /// The joiner's first word.
    Prove { token: String, proof: Proof },
    /// The answer: the token is used up from here on.
    Proven { proof: Proof },
    /// The joiner's, then the other's.
    Offer(Box<Offer>),
    /// The joiner has kept what it was offered.
    Kept,
    /// So has the other side; all is done.
    Done,
    /// There will be no more.
    Refused { why: Refusal },
}

/// What changes hands.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) introduction: Introduction,
    /// The own trust domain's bundle, in SPIFFE's format.
    pub(super) bundle: String,
    /// Its deny-list in its envelope, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) denied: Option<String>,
}

/// Why one side goes no further. Who has not proven the secret hears `Unknown` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No such token, or not its secret.
    #[error("it does not know this token; was it made there, by this cluster, in the last hours?")]
    Unknown,
    /// Used before.
    #[error("the token has been used; make a new one there")]
    Used,
    /// Too late.
    #[error("the token has expired; make a new one there")]
    Expired,
    /// Ended by wrong proofs.
    #[error("wrong proofs have ended the token: somebody may be in between; make a new one there")]
    Void,
    /// Made for somebody else.
    #[error(
        "the token was made for another cluster or trust domain than the one of this agent's certificate"
    )]
    OtherGuest,
    /// What is known there of this cluster or trust domain says otherwise.
    #[error("what it knows of this cluster or trust domain says otherwise; its log says what")]
    Conflict,
    /// The offer is not usable.
    #[error("it cannot use what it was offered; its log says why")]
    Offer,
    /// Too many are joining.
    #[error("too many are joining it at this moment; try again")]
    Busy,
    /// Its own fault.
    #[error("it has a fault of its own; its log says which")]
    Fault,
}

/// Why a message was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    /// The other side hung up.
    #[error("the other side closed the connection")]
    Closed,
    /// Longer than it may be.
    #[error("a message of {found} bytes came; at most {most} are read")]
    Large {
        /// Its length.
        found: usize,
        /// What it may be.
        most: usize,
    },
    /// No message.
    #[error("what came is no message of joining (byte {0} of it)")]
    Malformed(usize),
    /// A message at the wrong time.
    #[error("a message came out of its order")]
    Order,
    /// The own message is too long to be read by the other side.
    #[error("the own bundle and deny-list take {0} bytes; at most {LONG} can be handed over")]
    OwnLarge(usize),
}

/// Sends one message.
pub(super) async fn send<W: AsyncWrite + Unpin>(to: &mut W, message: &Message) -> Result<(), WireError> {
    let content = serde_json::to_vec(message).map_err(io::Error::from)?;
    let length = u32::try_from(content.len()).ok().filter(|_| content.len() <= LONG);
    let length = length.ok_or(WireError::OwnLarge(content.len()))?;
    to.write_all(&[&length.to_be_bytes()[..], &content].concat()).await?;
    to.flush().await?;
    Ok(())
}

/// Receives one message of at most so many bytes. Memory is taken for what has come, not for what is announced.
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
    // Its place, and not its text, which would be theirs.
    serde_json::from_slice(&content).map_err(|error| WireError::Malformed(error.column()))
}

/// Closing without TLS's own word for it is an error to rustls, and no other ending to us.
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
    fn every_message_but_an_offer_is_brief() {
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
            let again = read(&bytes, BRIEF).unwrap();
            assert_eq!(serde_json::to_value(&again).unwrap(), serde_json::to_value(&message).unwrap());
            for end in 0..bytes.len() {
                assert!(matches!(read(&bytes[..end], BRIEF), Err(WireError::Closed)), "cut off after {end}");
            }
        }
    }

    #[test]
    fn errors_say_nothing_that_the_other_side_wrote() {
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
            let error = read(&bytes, BRIEF).unwrap_err();
            assert!(matches!(error, WireError::Malformed(_)), "{content}: {error}");
            assert!(!error.to_string().contains("evil") && !format!("{error:?}").contains("evil"));
        }
    }

    #[test]
    fn what_is_announced_too_long_is_not_read() {
        for length in [BRIEF + 1, 1 << 26, u32::MAX as usize] {
            let bytes = u32::try_from(length).unwrap().to_be_bytes();
            assert!(matches!(read(&bytes, BRIEF), Err(WireError::Large { found, .. }) if found == length));
        }
    }

    /// No panic; what is read is read the same after it was sent; an error has nothing of what came.
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
            match read(&wire, LONG) {
                Ok(message) => {
                    let again = read(&written(&message), LONG).unwrap();
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
