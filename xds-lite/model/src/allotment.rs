//! Allots the places of a range (addresses, ports) to names. A name has its place from its own hash, so that most
//! places follow from the name alone; on a collision the next free one. A place never moves while its name is wanted;
//! a freed one is quarantined, and returns to its own name alone. Pure: time is an argument, storing is elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::Hash;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How long a freed place goes to nobody else.
pub const QUARANTINE: Duration = Duration::from_hours(24);
/// Names of one range, quarantined ones included.
pub const MAX_NAMES: usize = 262_144;

/// A place of a range, such as an address or a port.
pub trait Place: Copy + Eq + Hash + fmt::Display {
    /// Its number; neighbours have neighbouring numbers.
    fn number(self) -> u128;

    /// The place of a number; `None` if there is none.
    fn of_number(number: u128) -> Option<Self>;
}

/// A range of places, with both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceRange<P> {
    /// The first place.
    pub first: P,
    /// The last place, not before the first.
    pub last: P,
}

/// The places of a range by name.
#[derive(Clone, Debug)]
pub struct Allotment<N, P> {
    range: PlaceRange<P>,
    names: BTreeMap<N, Allotted<P>>,
    places: HashMap<P, N>,
}

/// A name's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allotted<P> {
    place: P,
    /// Set once the name is no longer wanted.
    freed: Option<SystemTime>,
}

/// No place is left for a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// All places are taken or quarantined.
    #[error(
        "no place is left for {name} in {range}: {wanted} are in use, {quarantined} are quarantined for up to 24h; \
         configure a larger range"
    )]
    Range {
        /// The name.
        name: String,
        /// The range.
        range: String,
        /// Places in use.
        wanted: usize,
        /// Places that were freed lately.
        quarantined: usize,
    },
    /// There are too many names.
    #[error(
        "no place is left for {name} in {range}: it has {MAX_NAMES} names already, quarantined ones included"
    )]
    Names {
        /// The name.
        name: String,
        /// The range.
        range: String,
    },
}

impl Exhausted {
    /// The name, and the range that has no place for it.
    #[must_use]
    pub fn subject(&self) -> (&str, &str) {
        let (Exhausted::Range { name, range, .. } | Exhausted::Names { name, range }) = self;
        (name, range)
    }
}

/// One entry of the stored form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored<N, P> {
    /// The name.
    pub name: N,
    /// Its place.
    pub place: P,
    /// When the name was last wanted; `None`: it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freed: Option<SystemTime>,
}

impl<N: Clone + Ord + Hash + fmt::Display, P: Place> Allotment<N, P> {
    /// A range of which nothing is allotted.
    #[must_use]
    pub fn new(range: PlaceRange<P>) -> Allotment<N, P> {
        Allotment { range, names: BTreeMap::new(), places: HashMap::new() }
    }

    /// Restores the stored form. Returns the entries that do not fit, too: outside the range, or a second name or place.
    /// They have no place until they are wanted again, and then another one.
    #[must_use]
    pub fn restored(
        range: PlaceRange<P>,
        stored: impl IntoIterator<Item = Stored<N, P>>,
    ) -> (Allotment<N, P>, Vec<Stored<N, P>>) {
        let mut allotment = Allotment::new(range);
        let mut unfit = Vec::new();
        for entry in stored {
            let is_new =
                !allotment.names.contains_key(&entry.name) && !allotment.places.contains_key(&entry.place);
            if is_new && range.contains(entry.place) && allotment.names.len() < MAX_NAMES {
                let allotted = Allotted { place: entry.place, freed: entry.freed };
                allotment.names.insert(entry.name.clone(), allotted);
                allotment.places.insert(entry.place, entry.name);
            } else {
                unfit.push(entry);
            }
        }
        (allotment, unfit)
    }

    /// The stored form, in the order of names.
    pub fn stored(&self) -> impl Iterator<Item = Stored<N, P>> {
        let entry = |(name, allotted): (&N, &Allotted<P>)| Stored {
            name: name.clone(),
            place: allotted.place,
            freed: allotted.freed,
        };
        self.names.iter().map(entry)
    }

    /// The place of a name that is wanted.
    #[must_use]
    pub fn get(&self, name: &N) -> Option<P> {
        self.names.get(name).filter(|allotted| allotted.freed.is_none()).map(|allotted| allotted.place)
    }

    /// The name of a place, if it is wanted.
    #[must_use]
    pub fn name_of(&self, place: P) -> Option<&N> {
        self.places.get(&place).filter(|name| self.get(name).is_some())
    }

    /// The names that are wanted, with their places.
    pub fn wanted(&self) -> impl Iterator<Item = (&N, P)> {
        self.names
            .iter()
            .filter(|(_, allotted)| allotted.freed.is_none())
            .map(|(name, allotted)| (name, allotted.place))
    }

    /// Frees the places of all other names and gives each of these one. The result does not depend on their order.
    /// Returns an error for each name without a place; the others have theirs. A range that is full costs its newcomers
    /// one search together.
    pub fn want(&mut self, names: &BTreeSet<N>, now: SystemTime) -> Vec<Exhausted> {
        for (name, allotted) in &mut self.names {
            if names.contains(name) {
                // A wanted name keeps its place, however late it returns.
                allotted.freed = None;
            } else {
                allotted.freed.get_or_insert(now);
            }
        }
        self.end_quarantines(now);
        let newcomers: Vec<&N> = names.iter().filter(|name| !self.names.contains_key(name)).collect();
        let placed = newcomers.iter().take_while(|name| self.allot(name)).count();
        let without = newcomers.get(placed..).unwrap_or_default();
        if without.is_empty() {
            return Vec::new();
        }
        let wanted = self.wanted().count();
        without.iter().map(|name| self.exhausted(name, wanted)).collect()
    }

    /// Forgets names that were freed long ago.
    fn end_quarantines(&mut self, now: SystemTime) {
        let is_over = |freed: SystemTime| match now.duration_since(freed) {
            Ok(since) => since >= QUARANTINE,
            // The clock was set back, by so much that waiting for it may take for ever.
            Err(ahead) => ahead.duration() > QUARANTINE,
        };
        let places = &mut self.places;
        self.names.retain(|_, allotted| {
            let stays = allotted.freed.is_none_or(|freed| !is_over(freed));
            if !stays {
                places.remove(&allotted.place);
            }
            stays
        });
    }

    /// Gives a new name a place; false: none is left.
    fn allot(&mut self, name: &N) -> bool {
        if self.names.len() >= MAX_NAMES {
            return false;
        }
        let places = self.range.from(hash(name)).take(self.names.len().saturating_add(1));
        let free = places.flatten().find(|place| !self.places.contains_key(place));
        let Some(place) = free else { return false };
        self.names.insert(name.clone(), Allotted { place, freed: None });
        self.places.insert(place, name.clone());
        true
    }

    fn exhausted(&self, name: &N, wanted: usize) -> Exhausted {
        let (name, range) = (name.to_string(), self.range.to_string());
        if self.names.len() >= MAX_NAMES {
            return Exhausted::Names { name, range };
        }
        let quarantined = self.names.len().saturating_sub(wanted);
        Exhausted::Range { name, range, wanted, quarantined }
    }
}

impl<P: Place> PlaceRange<P> {
    /// Whether the place is in the range.
    #[must_use]
    pub fn contains(&self, place: P) -> bool {
        (self.first.number()..=self.last.number()).contains(&place.number())
    }

    /// All places once, from the one that the hash points at, around the end.
    fn from(self, hash: u128) -> impl Iterator<Item = Option<P>> {
        let (first, last) = (self.first.number(), self.last.number());
        let size = last.saturating_sub(first).saturating_add(1);
        let start = first.saturating_add(hash % size);
        (start..=last).chain(first..start).map(P::of_number)
    }
}

impl<P: Place> fmt::Display for PlaceRange<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

fn hash(name: &impl fmt::Display) -> u128 {
    let digest = Sha256::digest(name.to_string());
    digest.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte))
}

impl Place for u16 {
    fn number(self) -> u128 {
        self.into()
    }

    fn of_number(number: u128) -> Option<u16> {
        u16::try_from(number).ok()
    }
}

impl Place for std::net::Ipv4Addr {
    fn number(self) -> u128 {
        self.to_bits().into()
    }

    fn of_number(number: u128) -> Option<Self> {
        u32::try_from(number).ok().map(Self::from_bits)
    }
}

impl Place for std::net::Ipv6Addr {
    fn number(self) -> u128 {
        self.to_bits()
    }

    fn of_number(number: u128) -> Option<Self> {
        Some(Self::from_bits(number))
    }
}

#[cfg(test)]
mod tests;
