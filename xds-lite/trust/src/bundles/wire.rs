//! Encodes and decodes `TrustBundle` messages. Every text is bounded before it is parsed.

use isthmus_certs::spiffe_bundle::{self, FormatError};
use isthmus_certs::{Bundle, TrustDomain};
use prost::Message as _;

use super::rule::Refusal;
use isthmus_proto::isthmus::v1::TrustBundle;

/// Bytes of a bundle: some fifty roots with the longest keys.
const MOST_BUNDLE: usize = 256 << 10;
/// Bytes of a deny-list in its envelope: some forty thousand serial numbers.
const MOST_LIST: usize = 4 << 20;
/// Bytes of the rest.
const MOST_REST: usize = 4 << 10;

/// Encodes the bundle and deny-list of a trust domain.
///
/// # Errors
/// The bundle cannot be written, which is a bug.
pub fn encode(domain: &TrustDomain, bundle: &Bundle, envelope: Option<&str>) -> Result<Vec<u8>, FormatError> {
    let message = TrustBundle {
        trust_domain: domain.to_string(),
        sequence: bundle.sequence,
        bundle: spiffe_bundle::write(bundle)?,
        deny_list: envelope.unwrap_or_default().to_owned(),
    };
    Ok(message.encode_to_vec())
}

/// Decodes the message under a name; checks only its size and trust domain.
pub(super) fn decode(name: &str, bytes: &[u8]) -> Result<TrustBundle, Refusal> {
    if bytes.len() > MOST_BUNDLE + MOST_LIST + MOST_REST {
        return Err(Refusal::TooLarge { what: "the message", size: bytes.len() });
    }
    let message = TrustBundle::decode(bytes).map_err(Refusal::Malformed)?;
    let sizes = [
        ("the bundle", message.bundle.len(), MOST_BUNDLE),
        ("the deny-list", message.deny_list.len(), MOST_LIST),
    ];
    if let Some((what, size, _)) = sizes.into_iter().find(|(_, size, most)| size > most) {
        return Err(Refusal::TooLarge { what, size });
    }
    if message.trust_domain != name {
        return Err(Refusal::OtherName(shortened(&message.trust_domain)));
    }
    Ok(message)
}

/// Shortens a text of unknown origin.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}
