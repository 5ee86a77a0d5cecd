//! Encodes and parses tokens: `isthmus1.` and the base64url of all that the holder must know. Pure. Whether a
//! token is still valid is known only to the side that made it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use isthmus_certs::{KeyPin, SpiffeId, TrustDomain};
use sha2::{Digest as _, Sha256};

use super::secret::{SECRET, Secret, TokenId};
use super::text;
use super::{Guest, Party, Rfc3339};
use isthmus_model::address::Target;

/// The prefix, with the version.
const PREFIX: &str = "isthmus1.";
/// The prefix in any version.
const ANY_PREFIX: &str = "isthmus";
/// Two domains, two clusters and an address stay below this.
const LONGEST: usize = 2_048;
const CHECKSUM: usize = 4;

/// A token that one side prints, and the other uses to join or to get its first certificate. It is a secret:
/// only [`Token::reveal`] shows all of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The endpoint of the side that made it.
    pub address: Target,
    /// The party that made it.
    pub issuer: Party,
    /// The key of the root of that party's agent.
    pub root: KeyPin,
    /// The only party that may use it.
    pub guest: Guest,
    /// Its expiry, in seconds since 1970, by the clock of the side that made it.
    pub expires: u64,
    pub(super) secret: Secret,
}

/// Why a text is not a valid token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is something else.
    #[error("not a token: a token begins with `{PREFIX}`; copy the whole line that `token create` printed")]
    Prefix,
    /// It has another version.
    #[error("the token has another version than `{PREFIX}`; use the same release on both sides")]
    Version,
    /// It is too long.
    #[error("the token is longer than {LONGEST} characters; copy only the line that `token create` printed")]
    TooLong,
    /// It is truncated or changed.
    #[error("the token is damaged or incomplete; copy the whole line that `token create` printed again")]
    Damaged,
    /// It is intact but has an invalid field.
    #[error("the token has an invalid {0}; make it with the same release as this one")]
    Field(&'static str),
}

impl Token {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> TokenId {
        self.secret.id()
    }

    /// The whole token with its secret: for the terminal of its maker, never for a log.
    #[must_use]
    pub fn reveal(&self) -> String {
        let mut bytes = self.expires.to_be_bytes().to_vec();
        bytes.extend(self.root.as_bytes());
        bytes.extend(self.secret.as_bytes());
        let texts =
            [self.address.to_string(), self.issuer.cluster.to_string(), self.issuer.trust_domain.to_string()];
        for text in texts.into_iter().chain(self.guest.texts()) {
            // Addresses and names are bounded far below.
            let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
            bytes.extend(length.to_be_bytes());
            bytes.extend(text.as_bytes());
        }
        bytes.extend(checksum(&bytes));
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// What both proofs cover besides the session: the token's id and both parties.
    pub(super) fn context(id: TokenId, issuer: &Party, guest: &Guest) -> Vec<u8> {
        let mut context = id.to_be_bytes().to_vec();
        let issuer = [issuer.cluster.to_string(), issuer.trust_domain.to_string()];
        for text in issuer.into_iter().chain(guest.texts()) {
            context.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
            context.extend(text.as_bytes());
        }
        context
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// White space is ignored everywhere: terminals and mails break lines.
    fn from_str(text: &str) -> Result<Token, TokenError> {
        if text.len() > LONGEST {
            return Err(TokenError::TooLong);
        }
        let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let body = match text.strip_prefix(PREFIX) {
            Some(body) => body,
            None if is_of_another_version(&text) => return Err(TokenError::Version),
            None => return Err(TokenError::Prefix),
        };
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| TokenError::Damaged)?;
        let (content, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(TokenError::Damaged)?;
        if checksum(content) != *sum {
            return Err(TokenError::Damaged);
        }
        read(Rest(content))
    }
}

fn is_of_another_version(text: &str) -> bool {
    let rest = text.strip_prefix(ANY_PREFIX).and_then(|rest| rest.split_once('.'));
    rest.is_some_and(|(version, _)| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
}

fn read(mut rest: Rest<'_>) -> Result<Token, TokenError> {
    let expires = u64::from_be_bytes(*rest.array()?);
    let root = KeyPin::from(*rest.array()?);
    let secret = Secret::from_bytes(*rest.array::<SECRET>()?);
    let address = text::target(rest.text()?).map_err(|_| TokenError::Field("address"))?;
    let issuer = rest.party()?;
    let guest = rest.guest()?;
    if !rest.0.is_empty() {
        return Err(TokenError::Damaged);
    }
    Ok(Token { address, issuer, root, guest, expires, secret })
}

/// Detects accidental changes; not a defence.
fn checksum(content: &[u8]) -> [u8; CHECKSUM] {
    let hash: [u8; 32] = Sha256::new().chain_update(PREFIX).chain_update(content).finalize().into();
    hash.first_chunk().copied().unwrap_or_default()
}

fn party(cluster: &str, domain: &str) -> Result<Party, TokenError> {
    let cluster = cluster.parse().map_err(|_| TokenError::Field("cluster"))?;
    let trust_domain = TrustDomain::new(domain).map_err(|_| TokenError::Field("trust domain"))?;
    Ok(Party { cluster, trust_domain })
}

/// The bytes not parsed yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], TokenError> {
        let (array, rest) = self.0.split_first_chunk().ok_or(TokenError::Damaged)?;
        self.0 = rest;
        Ok(array)
    }

    fn text(&mut self) -> Result<&'a str, TokenError> {
        let length = usize::from(u16::from_be_bytes(*self.array()?));
        let (text, rest) = self.0.split_at_checked(length).ok_or(TokenError::Damaged)?;
        self.0 = rest;
        str::from_utf8(text).map_err(|_| TokenError::Damaged)
    }

    fn party(&mut self) -> Result<Party, TokenError> {
        let [cluster, domain] = [self.text()?, self.text()?];
        party(cluster, domain)
    }

    fn guest(&mut self) -> Result<Guest, TokenError> {
        match [self.text()?, self.text()?] {
            // No cluster has the empty name, so older releases refuse the token.
            ["", identity] => {
                let identity = SpiffeId::parse(identity).map_err(|_| TokenError::Field("identity"))?;
                Ok(Guest::Identity { identity })
            }
            [cluster, domain] => Ok(Guest::Cluster(party(cluster, domain)?)),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("id", &self.id())
            .field("address", &self.address)
            .field("issuer", &self.issuer)
            .field("root", &self.root)
            .field("guest", &self.guest)
            .field("expires", &Rfc3339(self.expires))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn party(cluster: &str, domain: &str) -> Party {
        Party { cluster: cluster.parse().unwrap(), trust_domain: TrustDomain::new(domain).unwrap() }
    }

    fn token(address: &str) -> Token {
        Token {
            address: address.parse().unwrap(),
            issuer: party("east", "east.example"),
            root: KeyPin::new(b"a key"),
            guest: Guest::Cluster(party("west", "west.example")),
            expires: 1_800_000_000,
            secret: Secret::from_bytes([7; SECRET]),
        }
    }

    #[test]
    fn token_is_parsed_as_it_was_written() {
        let longest = format!("{}.example:65535", ["a".repeat(63), "b".repeat(63), "c".repeat(63)].join("."));
        for address in ["192.0.2.7:15011", "[2001:db8::1]:1", "join.east.example:15011", longest.as_str()] {
            let token = token(address);
            let text = token.reveal();
            assert_eq!(text.parse(), Ok(token), "{text}");
            assert!(text.len() < LONGEST / 2, "{}", text.len());
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)));
        }
        let broken = token("192.0.2.7:15011").reveal().replace('A', "\n A\r\n\t");
        assert_eq!(format!(" {broken}\n").parse(), Ok(token("192.0.2.7:15011")), "as a mail breaks it");
    }

    #[test]
    fn token_for_an_identity_differs_from_one_for_a_cluster() {
        let identity = SpiffeId::parse("spiffe://east.example/isthmus/east/gateway/gw-1").unwrap();
        let guest = Guest::Identity { identity };
        let one = Token { guest: guest.clone(), ..token("192.0.2.7:15012") };
        let text = one.reveal();
        assert_eq!(text.parse(), Ok(one.clone()), "{text}");
        let context = |guest: &Guest| Token::context(one.id(), &one.issuer, guest);
        assert_ne!(context(&guest), context(&token("192.0.2.7:15012").guest));
    }

    #[test]
    fn token_refusal_names_its_own_reason() {
        let text = token("192.0.2.7:15011").reveal();
        let with = |content: Vec<u8>| {
            let sum = checksum(&content);
            format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([content, sum.to_vec()].concat()))
        };
        let mut no_address = vec![0; 8 + 32 + 16];
        no_address.extend([0, 1, b'x']);
        for (text, why) in [
            (String::new(), TokenError::Prefix),
            ("hello".to_owned(), TokenError::Prefix),
            ("isthmus.x".to_owned(), TokenError::Prefix),
            (text.replace("isthmus1", "isthmus2"), TokenError::Version),
            (text.replace("isthmus1", "isthmus12"), TokenError::Version),
            ("isthmus1.".to_owned(), TokenError::Damaged),
            ("isthmus1.????".to_owned(), TokenError::Damaged),
            (text.to_lowercase(), TokenError::Damaged),
            (with(vec![0; 8 + 32 + 15]), TokenError::Damaged),
            (with(no_address), TokenError::Field("address")),
            (text.clone() + &"A".repeat(LONGEST), TokenError::TooLong),
        ] {
            assert_eq!(text.parse::<Token>(), Err(why), "{text}");
        }
        for end in 0..text.len() {
            assert!(text[..end].parse::<Token>().is_err(), "cut off after {end}");
        }
    }

    #[test]
    fn token_debug_hides_the_secret() {
        let token = token("192.0.2.7:15011");
        let shown = format!("{token:?} {token:#?}");
        assert!(shown.contains("east.example") && shown.contains("2027-01-15T08:00:00Z"), "{shown}");
        let secret = URL_SAFE_NO_PAD.encode([7; SECRET]);
        assert!(!shown.contains(&secret) && !shown.contains("7, 7") && !shown.contains("07070707"));
    }

    proptest! {
        #[test]
        fn token_with_a_changed_character_is_refused(place in 0..1_000_usize, other in "[A-Za-z0-9_-]") {
            let mut text = token("192.0.2.7:15011").reveal();
            let place = PREFIX.len() + place % (text.len() - PREFIX.len());
            text.replace_range(place..=place, &other);
            if let Ok(read) = text.parse::<Token>() {
                prop_assert_eq!(read, token("192.0.2.7:15011"));
            }
        }

        #[test]
        fn token_parser_is_total(text in "\\PC{0,80}", content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = text.parse::<Token>();
            let sum = checksum(&content);
            let _ = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode([content, sum.to_vec()].concat())).parse::<Token>();
        }
    }
}
