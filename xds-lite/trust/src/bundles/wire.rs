//! What is said of a trust domain as a message, both ways. Every text is bounded before it is read.

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

/// What an agent says of a trust domain.
///
/// # Errors
/// It has no form, which would be a fault of this program.
pub fn encode(domain: &TrustDomain, bundle: &Bundle, envelope: Option<&str>) -> Result<Vec<u8>, FormatError> {
    let message = TrustBundle {
        trust_domain: domain.to_string(),
        sequence: bundle.sequence,
        bundle: spiffe_bundle::write(bundle)?,
        deny_list: envelope.unwrap_or_default().to_owned(),
    };
    Ok(message.encode_to_vec())
}

/// The message under a name. Nothing in it has been looked at but its size and whom it is about.
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

/// Of a text that may be anybody's.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}
