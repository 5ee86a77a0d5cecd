//! Maps names to services in a persistent hash table: tables with one name more or less share all but a few pieces,
//! and a look-up touches as little memory as in one large table. `route` chooses between services with the same name.

use std::cmp::Reverse;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use isthmus_model::{HostName, HostPattern};

use super::Service;

/// Branches of a table, and pages of a branch: a power of two, whose exponent is below.
const WIDE: usize = 64;
const BITS: u32 = 6;

/// Names of services.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    keys: RandomState,
    exact: Table,
    suffixes: Table,
    /// Aliases of instances.
    instances: Table,
}

/// One service that has a name.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The bits of the name's hash that do not select branch and page.
    tag: u32,
    place: Place,
    name: HostName,
    /// The service.
    pub(crate) service: Arc<Service>,
}

/// Precedence among services with the same name: the file's services come first, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(u32);

impl Place {
    /// A learned service; ordered by host and port among others.
    pub(crate) const LEARNED: Place = Place(u32::MAX);

    /// The position in the file.
    pub(crate) fn in_file(index: usize) -> Place {
        Place(u32::try_from(index).map_or(u32::MAX - 1, |index| index.min(u32::MAX - 1)))
    }

    pub(crate) fn is_learned(self) -> bool {
        self == Place::LEARNED
    }
}

impl Claim {
    pub(crate) fn is_learned(&self) -> bool {
        self.place.is_learned()
    }

    /// Services with conditions are tried before those without.
    fn rank(&self) -> impl Ord {
        let service = &self.service;
        (Reverse(service.rules.specificity()), self.place, service.host.clone(), service.port)
    }
}

impl Names {
    /// Returns the claims on an exact name, the most specific conditions first.
    pub(crate) fn exact(&self, name: &str) -> &[Claim] {
        self.exact.get(self.hash(name), name)
    }

    /// Returns the claims on all names under a suffix.
    pub(crate) fn suffix(&self, name: &str) -> &[Claim] {
        self.suffixes.get(self.hash(name), name)
    }

    /// Returns the claims on an instance alias.
    pub(crate) fn instance(&self, name: &str) -> &[Claim] {
        self.instances.get(self.hash(name), name)
    }

    pub(crate) fn pattern(&self, pattern: &HostPattern) -> &[Claim] {
        match pattern {
            HostPattern::Exact(name) => self.exact(name.as_str()),
            HostPattern::Suffix(name) => self.suffix(name.as_str()),
        }
    }

    pub(crate) fn add(&mut self, service: &Arc<Service>, place: Place) {
        self.for_each(service, |table, hash, name| table.add(hash, name, service, place));
    }

    /// Removes every claim of this service.
    pub(crate) fn remove(&mut self, service: &Arc<Service>) {
        self.for_each(service, |table, hash, name| table.remove(hash, name.as_str(), service));
    }

    fn for_each(&mut self, service: &Service, mut act: impl FnMut(&mut Table, u64, &HostName)) {
        for pattern in std::iter::once(&service.host).chain(service.aliases()) {
            let (table, name) = match pattern {
                HostPattern::Exact(name) => (&mut self.exact, name),
                HostPattern::Suffix(name) => (&mut self.suffixes, name),
            };
            act(table, self.keys.hash_one(name.as_str()), name);
        }
        for name in service.whole_names() {
            act(&mut self.instances, self.keys.hash_one(name.as_str()), name);
        }
    }

    fn hash(&self, name: &str) -> u64 {
        self.keys.hash_one(name)
    }
}

/// Claims by the hash of their names: the first bits select the branch, the next the page. Pages have any length; with
/// a hundred thousand names each has about 24 claims.
#[derive(Clone, Debug)]
struct Table {
    branches: Arc<[Branch; WIDE]>,
}

type Branch = Arc<[Page; WIDE]>;
/// Claims in the order of tag, name and rank.
type Page = Option<Arc<[Claim]>>;

impl Default for Table {
    fn default() -> Table {
        let empty: Branch = Arc::new(std::array::from_fn(|_| None));
        Table { branches: Arc::new(std::array::from_fn(|_| Arc::clone(&empty))) }
    }
}

/// Splits a hash into branch, page and tag.
#[expect(clippy::cast_possible_truncation, reason = "the bits are chosen")]
fn steps(hash: u64) -> (usize, usize, u32) {
    let (branch, page) = (hash >> (64 - BITS), hash >> (64 - 2 * BITS));
    (branch as usize % WIDE, page as usize % WIDE, hash as u32)
}

impl Table {
    fn page(&self, branch: usize, page: usize) -> &[Claim] {
        let page = self.branches.get(branch).and_then(|branch| branch.get(page)?.as_ref());
        page.map(|page| &page[..]).unwrap_or_default()
    }

    fn get(&self, hash: u64, name: &str) -> &[Claim] {
        let (branch, page, tag) = steps(hash);
        let (start, length) = span(self.page(branch, page), tag, name);
        self.page(branch, page).get(start..start + length).unwrap_or_default()
    }

    fn add(&mut self, hash: u64, name: &HostName, service: &Arc<Service>, place: Place) {
        let (branch, page, tag) = steps(hash);
        let claims = self.page(branch, page);
        let (start, length) = span(claims, tag, name.as_str());
        let others = claims.get(start..start + length).unwrap_or_default();
        // A service may list one name twice.
        if others.iter().any(|claim| Arc::ptr_eq(&claim.service, service)) {
            return;
        }
        let new = Claim { tag, place, name: name.clone(), service: Arc::clone(service) };
        let at = start + others.partition_point(|claim| claim.rank() <= new.rank());
        let (before, after) = claims.split_at_checked(at).unwrap_or((claims, &[]));
        let claims = before.iter().cloned().chain([new]).chain(after.iter().cloned());
        self.set_page(branch, page, claims.collect::<Vec<_>>());
    }

    fn remove(&mut self, hash: u64, name: &str, service: &Arc<Service>) {
        let (branch, page, tag) = steps(hash);
        let claims = self.page(branch, page);
        let (start, length) = span(claims, tag, name);
        let is_meant = |(at, claim): &(usize, &Claim)| {
            (start..start + length).contains(at) && Arc::ptr_eq(&claim.service, service)
        };
        if claims.iter().enumerate().any(|one| is_meant(&one)) {
            let stays = claims.iter().enumerate().filter(|one| !is_meant(one));
            let claims: Vec<_> = stays.map(|(_, claim)| claim.clone()).collect();
            self.set_page(branch, page, claims);
        }
    }

    fn set_page(&mut self, branch: usize, page: usize, claims: Vec<Claim>) {
        let branch = Arc::make_mut(&mut self.branches).get_mut(branch);
        if let Some(page) = branch.and_then(|branch| Arc::make_mut(branch).get_mut(page)) {
            *page = (!claims.is_empty()).then(|| claims.into());
        }
    }
}

/// Returns where the claims on a name begin in a page, and their number. Tags are evenly spread, so the search starts
/// at the expected position and takes a step or two, which touches less memory than a binary search.
fn span(page: &[Claim], tag: u32, name: &str) -> (usize, usize) {
    let is_before = |claim: &Claim| (claim.tag, claim.name.as_str()) < (tag, name);
    let share = (u64::from(tag) * page.len() as u64) >> u32::BITS;
    let mut start = usize::try_from(share).unwrap_or_default();
    while start.checked_sub(1).and_then(|left| page.get(left)).is_some_and(|claim| !is_before(claim)) {
        start -= 1;
    }
    while page.get(start).is_some_and(is_before) {
        start += 1;
    }
    let rest = page.iter().skip(start);
    (start, rest.take_while(|claim| claim.tag == tag && claim.name.as_str() == name).count())
}

#[cfg(test)]
impl Names {
    /// Number of items copied or created since `before`, in pages and in the arrays above them.
    pub(super) fn copied(&self, before: &Names) -> usize {
        let tables = [&self.exact, &self.suffixes, &self.instances];
        let earlier = [&before.exact, &before.suffixes, &before.instances];
        tables.iter().zip(earlier).map(|(table, earlier)| table.copied(earlier)).sum()
    }
}

#[cfg(test)]
impl Table {
    fn copied(&self, before: &Table) -> usize {
        if Arc::ptr_eq(&self.branches, &before.branches) {
            return 0;
        }
        let branches =
            self.branches.iter().zip(&*before.branches).filter(|(one, other)| !Arc::ptr_eq(one, other));
        let of_branch = |(branch, before): (&Branch, &Branch)| {
            let pages = branch.iter().zip(&**before).filter_map(|(page, before)| {
                let page = page.as_ref()?;
                before.as_ref().is_none_or(|before| !Arc::ptr_eq(page, before)).then_some(page.len())
            });
            WIDE + pages.sum::<usize>()
        };
        WIDE + branches.map(of_branch).sum::<usize>()
    }
}
