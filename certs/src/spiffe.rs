//! Parses SPIFFE IDs and trust domains once, by the rules of the SPIFFE ID standard; afterwards they are compared byte
//! by byte. `svid` finds the ID in a certificate.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const SCHEME: &str = "spiffe://";
const MAX_ID: usize = 2048;
const MAX_TRUST_DOMAIN: usize = 255;

/// The name of a trust domain, e.g. `east.example`: 1 to 255 bytes of `a-z 0-9 . - _`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

/// A SPIFFE ID, e.g. `spiffe://east.example/ns/bookinfo/sa/productpage`, of at most 2048 bytes.
///
/// The path may be empty: such an ID names the trust domain itself, as a root certificate does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    /// Empty, or `/segment` once or more.
    path: String,
}

/// A pattern of SPIFFE IDs: one ID, or all IDs below a path.
///
/// Written as an ID, or as an ID followed by `/*`: `spiffe://east.example/ns/bookinfo/*` is every ID whose path
/// continues after these whole segments, and `spiffe://east.example/*` is every ID of a domain. No other character is
/// special.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum IdPattern {
    /// This ID and no other.
    Exactly(SpiffeId),
    /// Every ID below this one, but not this one itself.
    Below(SpiffeId),
}

/// Why a text is not a SPIFFE ID or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Longer than 2048 bytes.
    #[error("the SPIFFE ID has {0} bytes; at most {MAX_ID} are allowed")]
    TooLong(usize),
    /// The scheme is missing or wrong.
    #[error("a SPIFFE ID starts with `spiffe://`, in lower case")]
    Scheme,
    /// The trust domain is empty.
    #[error("the trust domain is empty; write `spiffe://TRUST-DOMAIN/PATH`")]
    TrustDomainEmpty,
    /// Longer than 255 bytes.
    #[error("the trust domain has {0} bytes; at most {MAX_TRUST_DOMAIN} are allowed")]
    TrustDomainTooLong(usize),
    /// A character that is not allowed in a trust domain.
    #[error("the trust domain has {0:?}; only a-z, 0-9, `.`, `-` and `_` are allowed (no port, no user)")]
    TrustDomainCharacter(char),
    /// An empty path segment, namespace or account.
    #[error("the path has an empty segment; write one `/` between segments")]
    EmptySegment,
    /// `/` at the end.
    #[error("the path ends with `/`; remove it")]
    TrailingSlash,
    /// A segment `.` or `..`.
    #[error("the path has the segment `.` or `..`; a SPIFFE ID is never relative")]
    DotSegment,
    /// A character that is not allowed in a path.
    #[error(
        "the path has {0:?}; only A-Z, a-z, 0-9, `.`, `-` and `_` are allowed (no percent-encoding, query or fragment)"
    )]
    PathCharacter(char),
}

impl TrustDomain {
    /// Parses a bare name, without `spiffe://`.
    pub fn new(name: &str) -> Result<Self, SpiffeIdError> {
        if name.is_empty() {
            return Err(SpiffeIdError::TrustDomainEmpty);
        }
        if name.len() > MAX_TRUST_DOMAIN {
            return Err(SpiffeIdError::TrustDomainTooLong(name.len()));
        }
        let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
        match name.chars().find(|c| !allowed(*c)) {
            Some(c) => Err(SpiffeIdError::TrustDomainCharacter(c)),
            None => Ok(Self(name.to_owned())),
        }
    }

    /// The bare name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID of the domain itself, `spiffe://NAME`, which no workload may have.
    pub fn id(&self) -> SpiffeId {
        SpiffeId { trust_domain: self.clone(), path: String::new() }
    }
}

impl SpiffeId {
    /// Parses an ID. Nothing is normalised: any other spelling is refused.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        if text.len() > MAX_ID {
            return Err(SpiffeIdError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (name, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let trust_domain = TrustDomain::new(name)?;
        if let Some(segments) = path.strip_prefix('/') {
            if segments.is_empty() || segments.ends_with('/') {
                return Err(SpiffeIdError::TrailingSlash);
            }
            segments.split('/').try_for_each(check_segment)?;
        }
        Ok(Self { trust_domain, path: path.to_owned() })
    }

    /// The ID of a workload: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn workload(
        trust_domain: &TrustDomain,
        namespace: &str,
        account: &str,
    ) -> Result<Self, SpiffeIdError> {
        // Checked separately: `a/b` as a namespace would otherwise pass as two segments.
        check_segment(namespace)?;
        check_segment(account)?;
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{account}"))
    }

    /// The ID of an Isthmus agent: `spiffe://TRUST-DOMAIN/isthmus/CLUSTER/agent/NAME`.
    pub fn agent(trust_domain: &TrustDomain, cluster: &str, name: &str) -> Result<Self, SpiffeIdError> {
        Self::own(trust_domain, cluster, "agent", name)
    }

    /// The ID of an Isthmus gateway: `spiffe://TRUST-DOMAIN/isthmus/CLUSTER/gateway/NAME`.
    pub fn gateway(trust_domain: &TrustDomain, cluster: &str, name: &str) -> Result<Self, SpiffeIdError> {
        Self::own(trust_domain, cluster, "gateway", name)
    }

    fn own(trust_domain: &TrustDomain, cluster: &str, role: &str, name: &str) -> Result<Self, SpiffeIdError> {
        check_segment(cluster)?;
        check_segment(name)?;
        Self::parse(&format!("{SCHEME}{trust_domain}/isthmus/{cluster}/{role}/{name}"))
    }

    /// Whether this ID's path continues the other's, after a whole segment.
    pub fn is_below(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.path.strip_prefix(&other.path).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The trust domain that must vouch for this ID.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The path with its leading `/`, or empty.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl IdPattern {
    /// Parses an ID, or an ID followed by `/*`.
    pub fn parse(text: &str) -> Result<Self, SpiffeIdError> {
        match text.strip_suffix("/*") {
            Some(above) => SpiffeId::parse(above).map(Self::Below),
            None => SpiffeId::parse(text).map(Self::Exactly),
        }
    }

    /// Every agent of a cluster: `spiffe://TRUST-DOMAIN/isthmus/CLUSTER/agent/*`.
    pub fn agents(trust_domain: &TrustDomain, cluster: &str) -> Result<Self, SpiffeIdError> {
        check_segment(cluster)?;
        Self::parse(&format!("{SCHEME}{trust_domain}/isthmus/{cluster}/agent/*"))
    }

    /// Every workload of a namespace: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/*`.
    pub fn namespace(trust_domain: &TrustDomain, namespace: &str) -> Result<Self, SpiffeIdError> {
        check_segment(namespace)?;
        Self::parse(&format!("{SCHEME}{trust_domain}/ns/{namespace}/*"))
    }

    /// The trust domain of the IDs that match.
    pub fn trust_domain(&self) -> &TrustDomain {
        match self {
            Self::Exactly(id) | Self::Below(id) => id.trust_domain(),
        }
    }

    /// Whether `id` matches the pattern.
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exactly(one) => one == id,
            Self::Below(above) => id.is_below(above),
        }
    }
}

fn check_segment(segment: &str) -> Result<(), SpiffeIdError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match segment {
        "" => Err(SpiffeIdError::EmptySegment),
        "." | ".." => Err(SpiffeIdError::DotSegment),
        _ => match segment.chars().find(|c| !allowed(*c)) {
            Some(c) => Err(SpiffeIdError::PathCharacter(c)),
            None => Ok(()),
        },
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}{}", self.trust_domain, self.path)
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(id) => id.fmt(f),
            Self::Below(id) => write!(f, "{id}/*"),
        }
    }
}

/// Conversions of a type that is written as one text.
macro_rules! is_text {
    ($type:ident, $parse:path) => {
        impl FromStr for $type {
            type Err = SpiffeIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                $parse(text)
            }
        }

        impl TryFrom<String> for $type {
            type Error = SpiffeIdError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                $parse(&text)
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}

is_text!(TrustDomain, TrustDomain::new);
is_text!(SpiffeId, SpiffeId::parse);
is_text!(IdPattern, IdPattern::parse);

#[cfg(test)]
mod tests {
    use super::*;
    use SpiffeIdError::*;
    use proptest::prelude::*;

    #[test]
    fn spiffe_id_parses_every_form_of_the_standard() {
        let longest_domain = format!("spiffe://{}/x", "d".repeat(255));
        let longest = format!("spiffe://a/{}", "p".repeat(2048 - 11));
        let texts = [
            "spiffe://east.example",
            "spiffe://east.example/ns/bookinfo/sa/productpage",
            "spiffe://1_2-3.x/A/b.c/..d/.../-_",
            longest_domain.as_str(),
            longest.as_str(),
        ];
        for text in texts {
            assert_eq!(SpiffeId::parse(text).map(|id| id.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn spiffe_id_malformed_forms_are_refused_each_with_its_error() {
        let table = [
            ("", Scheme),
            ("east.example/x", Scheme),
            ("https://east.example/x", Scheme),
            ("SPIFFE://east.example/x", Scheme),
            ("spiffe:/east.example/x", Scheme),
            (" spiffe://east.example/x", Scheme),
            ("spiffe://", TrustDomainEmpty),
            ("spiffe:///x", TrustDomainEmpty),
            ("spiffe://East.example/x", TrustDomainCharacter('E')),
            ("spiffe://east.example:443/x", TrustDomainCharacter(':')),
            ("spiffe://me@east.example/x", TrustDomainCharacter('@')),
            ("spiffe://east%2eexample/x", TrustDomainCharacter('%')),
            ("spiffe://east.example?x", TrustDomainCharacter('?')),
            ("spiffe://east.example#x", TrustDomainCharacter('#')),
            ("spiffe://[::1]/x", TrustDomainCharacter('[')),
            ("spiffe://éast/x", TrustDomainCharacter('é')),
            ("spiffe://east.example/", TrailingSlash),
            ("spiffe://east.example/x/", TrailingSlash),
            ("spiffe://east.example//", TrailingSlash),
            ("spiffe://east.example//x", EmptySegment),
            ("spiffe://east.example/x//y", EmptySegment),
            ("spiffe://east.example/./x", DotSegment),
            ("spiffe://east.example/x/..", DotSegment),
            ("spiffe://east.example/x%2fy", PathCharacter('%')),
            ("spiffe://east.example/x?y", PathCharacter('?')),
            ("spiffe://east.example/x#y", PathCharacter('#')),
            ("spiffe://east.example/x y", PathCharacter(' ')),
            ("spiffe://east.example/x\0", PathCharacter('\0')),
            ("spiffe://east.example/ñ", PathCharacter('ñ')),
        ];
        for (text, why) in table {
            assert_eq!(SpiffeId::parse(text), Err(why), "{text:?}");
        }
        let long_domain = format!("spiffe://{}/x", "d".repeat(256));
        assert_eq!(SpiffeId::parse(&long_domain), Err(TrustDomainTooLong(256)));
        let long = format!("spiffe://a/{}", "p".repeat(2049 - 11));
        assert_eq!(SpiffeId::parse(&long), Err(TooLong(2049)));
    }

    #[test]
    fn spiffe_id_namespace_is_one_segment() {
        let domain = TrustDomain::new("east.example").unwrap();
        let id = SpiffeId::workload(&domain, "bookinfo", "productpage").unwrap();
        assert_eq!(id.to_string(), "spiffe://east.example/ns/bookinfo/sa/productpage");
        assert_eq!(SpiffeId::workload(&domain, "a/sa/b", "c"), Err(PathCharacter('/')));
        assert_eq!(SpiffeId::workload(&domain, "..", "c"), Err(DotSegment));
        assert_eq!(SpiffeId::workload(&domain, "a", ""), Err(EmptySegment));
    }

    proptest! {
        #[test]
        fn spiffe_id_of_any_text_is_refused_or_unchanged(text in "(spiffe://)?[a-c./A%:_\\-é\0]{0,24}|\\PC*") {
            if let Ok(id) = SpiffeId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn spiffe_id_well_formed_is_accepted(text in "spiffe://[a-z0-9._-]{1,40}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}){0,6}") {
            prop_assert!(SpiffeId::parse(&text).is_ok());
        }
    }

    #[test]
    fn id_pattern_ends_at_a_whole_segment() {
        let id = |text: &str| SpiffeId::parse(text).unwrap();
        let below = IdPattern::parse("spiffe://east.example/ns/a/*").unwrap();
        assert!(below.matches(&id("spiffe://east.example/ns/a/sa/x")));
        for other in [
            "spiffe://east.example/ns/a",
            "spiffe://east.example/ns/ab/sa/x",
            "spiffe://east.example/ns",
            "spiffe://west.example/ns/a/sa/x",
            "spiffe://east.example/NS/a/sa/x",
        ] {
            assert!(!below.matches(&id(other)), "{other}");
        }
        let all = IdPattern::parse("spiffe://east.example/*").unwrap();
        assert!(all.matches(&id("spiffe://east.example/x")) && !all.matches(&id("spiffe://east.example")));
        let dots = IdPattern::parse("spiffe://east.example/ns/a.b").unwrap();
        assert!(!dots.matches(&id("spiffe://east.example/ns/axb")), "`.` is a dot");
        for bad in ["spiffe://east.example/a*", "spiffe://east.example/*/b", "spiffe://*/a", "*"] {
            assert!(IdPattern::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(below.to_string(), "spiffe://east.example/ns/a/*");
    }

    #[test]
    fn spiffe_id_of_agents_and_gateways_has_its_form() {
        let east = TrustDomain::new("east.example").unwrap();
        let gateway = SpiffeId::gateway(&east, "east", "gw-1").unwrap();
        assert_eq!(gateway.to_string(), "spiffe://east.example/isthmus/east/gateway/gw-1");
        assert_eq!(SpiffeId::agent(&east, "a/b", "x"), Err(PathCharacter('/')));
    }
}
