//! The secret of a registration: 128 random bits, which prove its ownership. Only their hash is stored, so
//! that neither the file nor a page reveals them.

use std::fmt;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};

use isthmus_model::admin::agent::LeaseRequest;

use super::Refused;

const BYTES: usize = 16;

/// A lease's secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LeaseId([u8; BYTES]);

/// The stored hash of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Digest([u8; 32]);

impl LeaseId {
    /// A new lease from the kernel's randomness.
    ///
    /// # Errors
    /// The kernel provides no randomness.
    pub fn random() -> io::Result<LeaseId> {
        let mut bytes = [0; BYTES];
        match getrandom(&mut bytes, GetRandomFlags::empty())? {
            BYTES => Ok(LeaseId(bytes)),
            _ => Err(io::Error::other("the kernel returned less randomness than requested")),
        }
    }

    #[cfg(test)]
    pub(super) const fn from_bytes(bytes: [u8; BYTES]) -> LeaseId {
        LeaseId(bytes)
    }

    /// The text for its owner: 32 hexadecimal digits.
    #[must_use]
    pub fn hex(&self) -> String {
        hex(&self.0)
    }

    /// Parses [`LeaseId::shown`].
    #[must_use]
    pub fn parse(text: &str) -> Option<LeaseId> {
        unhex(text).map(LeaseId)
    }

    /// Parses `{"lease": "…"}`.
    ///
    /// # Errors
    /// The body is something else.
    pub fn from_body(body: &[u8]) -> Result<LeaseId, Refused> {
        let wrong =
            || Refused::Wrong("write {\"lease\": \"…\"} with the lease that /register told".to_owned());
        let request: LeaseRequest = serde_json::from_slice(body).map_err(|_| wrong())?;
        LeaseId::parse(&request.lease).ok_or_else(wrong)
    }

    pub(super) fn digest(&self) -> Digest {
        Digest(Sha256::digest(self.0).into())
    }
}

/// Hides the secret, which may end up in a log.
impl fmt::Debug for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseId(…)")
    }
}

impl Digest {
    pub(super) fn hex(&self) -> String {
        hex(&self.0)
    }

    pub(super) fn parse(text: &str) -> Option<Digest> {
        unhex(text).map(Digest)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    // `from_str_radix` accepts a sign, too.
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_parsed_as_shown_and_hidden_in_debug() {
        let [one, other] = [LeaseId::random().unwrap(), LeaseId::random().unwrap()];
        assert_ne!(one, other);
        assert_eq!(LeaseId::parse(&one.hex()), Some(one));
        assert_eq!(Digest::parse(&one.digest().hex()), Some(one.digest()));
        assert_eq!(format!("{one:?}"), "LeaseId(…)");
        for text in ["", "0", &one.hex()[1..], &format!("{}0", one.hex()), &"+0".repeat(16), &"é".repeat(16)]
        {
            assert_eq!(LeaseId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn lease_body_with_anything_else_is_refused() {
        let id = LeaseId::random().unwrap();
        let body = |rest: &str| format!("{{\"lease\":\"{}\"{rest}}}", id.hex());
        assert_eq!(LeaseId::from_body(body("").as_bytes()), Ok(id));
        for wrong in [&*body(",\"ttl\":\"1h\""), "{}", "[]", "", "\"", "{\"lease\":7}", "{\"lease\":\"00\"}"]
        {
            assert!(matches!(LeaseId::from_body(wrong.as_bytes()), Err(Refused::Wrong(_))), "{wrong}");
        }
    }
}
