//! Whose identity a source address has.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use isthmus_certs::SpiffeId;
use serde::Serialize;

/// Identities of one list.
pub const MAX_CALLERS: usize = 4_096;
/// Ranges of one list.
pub const MAX_RANGES: usize = 4_096;
/// Bytes of all identities of a list, so that a store takes the list as one record.
const MAX_IDENTITIES: usize = 256 << 10;

/// Callers by their addresses; of ranges that contain an address, the longest prefix decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    list: Vec<Caller>,
    /// Positions in the list.
    ranges: HashMap<IpNet, usize>,
    /// Prefix lengths of ranges of both families.
    lengths: BTreeSet<u8>,
}

/// Callers with one identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Caller {
    /// Their addresses.
    pub sources: Vec<IpNet>,
    /// Their identity.
    pub identity: SpiffeId,
}

/// Why callers cannot be told apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallersError {
    /// A range has two identities.
    #[error("{range} has two identities, {} and {}", identities.0, identities.1)]
    Ambiguous {
        /// The range.
        range: IpNet,
        /// Its identities.
        identities: Box<(SpiffeId, SpiffeId)>,
    },
    /// There are too many identities.
    #[error("there are {0} callers; the limit is {MAX_CALLERS}")]
    Callers(usize),
    /// The identities are too long.
    #[error("the identities of the callers have {0} bytes; the limit is {MAX_IDENTITIES}")]
    Identities(usize),
    /// There are too many ranges.
    #[error("the callers have {0} ranges; the limit is {MAX_RANGES}")]
    Ranges(usize),
}

impl Callers {
    /// Checks a list.
    ///
    /// # Errors
    /// A range with two identities, or a limit.
    pub fn new(list: Vec<Caller>) -> Result<Callers, CallersError> {
        if list.len() > MAX_CALLERS {
            return Err(CallersError::Callers(list.len()));
        }
        let count = list.iter().map(|caller| caller.sources.len()).sum();
        if count > MAX_RANGES {
            return Err(CallersError::Ranges(count));
        }
        let bytes = list.iter().map(|caller| caller.identity.to_string().len()).sum();
        if bytes > MAX_IDENTITIES {
            return Err(CallersError::Identities(bytes));
        }
        let mut ranges = HashMap::with_capacity(count);
        for (index, caller) in list.iter().enumerate() {
            for range in caller.sources.iter().map(IpNet::trunc) {
                let earlier = ranges.insert(range, index).and_then(|earlier: usize| list.get(earlier));
                if let Some(earlier) = earlier.filter(|earlier| earlier.identity != caller.identity) {
                    let identities = Box::new((earlier.identity.clone(), caller.identity.clone()));
                    return Err(CallersError::Ambiguous { range, identities });
                }
            }
        }
        let lengths = ranges.keys().map(IpNet::prefix_len).collect();
        Ok(Callers { list, ranges, lengths })
    }

    /// The caller with this address.
    #[must_use]
    pub fn get(&self, source: IpAddr) -> Option<&Caller> {
        let source = source.to_canonical();
        self.lengths.iter().rev().find_map(|length| {
            let range = IpNet::new(source, *length).ok()?.trunc();
            self.list.get(*self.ranges.get(&range)?)
        })
    }

    /// All callers, in the order of the list.
    pub fn iter(&self) -> impl Iterator<Item = &Caller> {
        self.list.iter()
    }

    /// The number of callers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is no caller.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn caller(name: &str, sources: &[&str]) -> Caller {
        Caller {
            sources: sources.iter().map(|range| range.parse().unwrap()).collect(),
            identity: SpiffeId::parse(&format!("spiffe://east.example/ns/shop/sa/{name}")).unwrap(),
        }
    }

    fn name_of(callers: &Callers, source: &str) -> Option<String> {
        let caller = callers.get(source.parse().unwrap())?;
        caller.identity.path().rsplit('/').next().map(str::to_owned)
    }

    #[test]
    fn caller_is_found_by_longest_prefix() {
        let callers = Callers::new(vec![
            caller("all", &["10.0.0.0/8", "fd00::/16"]),
            caller("cart", &["10.1.0.0/24", "fd00:1::/64"]),
            caller("one", &["10.1.0.7/32"]),
        ])
        .unwrap();
        for (source, expected) in [
            ("10.1.0.7", Some("one")),
            ("::ffff:10.1.0.7", Some("one")),
            ("10.1.0.8", Some("cart")),
            ("10.2.0.8", Some("all")),
            ("fd00:1::9", Some("cart")),
            ("fd00:2::9", Some("all")),
            ("11.0.0.1", None),
            ("fe80::1", None),
        ] {
            assert_eq!(name_of(&callers, source).as_deref(), expected, "{source}");
        }
        assert_eq!(Callers::default().get("10.1.0.7".parse().unwrap()), None);
    }

    #[test]
    fn callers_with_one_range_and_two_identities_are_refused() {
        let same = vec![caller("a", &["10.0.0.0/8"]), caller("a", &["10.0.0.0/8"])];
        assert!(Callers::new(same).is_ok(), "one identity, written twice");
        for other in ["10.0.0.0/8", "10.9.9.9/8"] {
            let error = Callers::new(vec![caller("a", &["10.0.0.0/8"]), caller("b", &[other])]).unwrap_err();
            assert!(error.to_string().contains("10.0.0.0/8 has two identities"), "{error}");
        }
    }

    #[test]
    fn callers_are_limited() {
        let many = vec![caller("a", &[]); MAX_CALLERS + 1];
        assert_eq!(Callers::new(many), Err(CallersError::Callers(MAX_CALLERS + 1)));
        let wide =
            Caller { sources: vec!["10.0.0.1/32".parse().unwrap(); MAX_RANGES + 1], ..caller("a", &[]) };
        assert_eq!(Callers::new(vec![wide]), Err(CallersError::Ranges(MAX_RANGES + 1)));
    }

    proptest! {
        /// As a walk over all ranges finds it.
        #[test]
        fn caller_lookup_agrees_with_a_walk(
            ranges in proptest::collection::vec((any::<[u8; 4]>(), 0u8..=32), 0..20),
            source in any::<[u8; 4]>(),
        ) {
            let mut list: Vec<Caller> = Vec::new();
            for (index, (address, length)) in ranges.into_iter().enumerate() {
                let range = IpNet::new(address.into(), length).unwrap().trunc();
                if !list.iter().any(|known| known.sources.contains(&range)) {
                    list.push(Caller { sources: vec![range], ..caller(&format!("c{index}"), &[]) });
                }
            }
            let source = IpAddr::from(source);
            let walked = list
                .iter()
                .filter(|known| known.sources[0].contains(&source))
                .max_by_key(|known| known.sources[0].prefix_len())
                .cloned();
            let callers = Callers::new(list).unwrap();
            prop_assert_eq!(callers.get(source), walked.as_ref());
        }
    }
}
