//! Checks whether a slice of another cluster is to be decoded, and decodes it.

use isthmus_model::host::HostPattern;
use isthmus_model::slice::{Cluster, Slice};
use isthmus_proto::measure::{SLICE, fits};

use super::Imports;
use super::holdings::{DECODED, LARGEST, Size};
use super::peer::{is_withdrawal, names};

/// A decoded slice of another cluster, not yet checked against others.
#[derive(Debug)]
pub struct DecodedSlice<'a> {
    pub(super) slice: Slice,
    pub(super) bytes: &'a [u8],
    pub(super) names: Vec<HostPattern>,
}

impl DecodedSlice<'_> {
    /// Decodes the resource of a name. This is the largest part of the work, and needs no other state.
    ///
    /// # Errors
    /// It is larger than a peer's slice may be, or not a slice of that name.
    pub fn decode<'a>(name: &str, bytes: &'a [u8]) -> Result<DecodedSlice<'a>, String> {
        if bytes.len() > LARGEST {
            return Err(format!("has {} bytes; at most {LARGEST} are taken of a peer", bytes.len()));
        }
        fits(bytes, &SLICE, DECODED).map_err(|error| error.to_string())?;
        let slice = Slice::decode(bytes).map_err(|error| error.to_string())?;
        if slice.key.to_string() != name {
            return Err(format!("is the slice of {}", slice.key));
        }
        let names = names(&slice);
        Ok(DecodedSlice { slice, bytes, names })
    }
}

impl Imports {
    /// Whether a slice is to be decoded: its name is granted, and within the peer's limits. Of a name that is not
    /// granted only the name is recorded.
    ///
    /// # Errors
    /// Why it is refused; the previous slice stays.
    pub fn admit(&mut self, from: &Cluster, name: &str, bytes: &[u8]) -> Result<bool, String> {
        let Some(place) = self.place(from) else { return Err("is of an unknown cluster".to_owned()) };
        let Some(peer) = self.peers.get_mut(place) else { return Ok(false) };
        let is_withdrawal = is_withdrawal(bytes);
        if let Some(host) = peer.own_host(name) {
            if !peer.consent.grants(&host) {
                if peer.holdings.not_granted(&host, !is_withdrawal) {
                    self.dirty.insert((place, host));
                }
                return Ok(false);
            }
            // A slice that is too large by itself is refused for its own size, by `DecodedSlice::decode`.
            if !is_withdrawal && bytes.len() <= LARGEST {
                let least = Size { bytes: bytes.len() as u64, names: 1 };
                peer.holdings.check(&host, least, 0)?;
            }
        }
        Ok(true)
    }
}
