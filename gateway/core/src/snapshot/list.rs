//! Keeps services in the order of host and port in a persistent tree: a list with one service more or less shares all
//! but a few pieces with its predecessor. Connections are looked up in `names`.

use std::sync::Arc;

use isthmus_model::HostPattern;

use super::Service;

/// Maximum items in one piece.
const WIDE: usize = 64;
/// Neighbouring pieces with at most this many items together are merged.
const NARROW: usize = WIDE / 2;

/// Services by host and port, which are unique.
#[derive(Clone, Debug)]
pub(crate) struct List {
    root: Arc<Piece>,
    length: usize,
}

/// A node of the tree. Only the root of an empty list is empty; all leaves have the same depth.
#[derive(Clone, Debug)]
enum Piece {
    Services(Vec<Arc<Service>>),
    Pieces(Vec<Arc<Piece>>),
}

impl Default for List {
    fn default() -> List {
        List { root: Arc::new(Piece::Services(Vec::new())), length: 0 }
    }
}

impl List {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn insert(&mut self, service: Arc<Service>) {
        self.length += 1;
        if let Some(right) = Arc::make_mut(&mut self.root).insert(service) {
            let left = Arc::clone(&self.root);
            self.root = Arc::new(Piece::Pieces(vec![left, right]));
        }
    }

    /// Removes this service by identity; false if it is not in the list.
    pub(crate) fn remove(&mut self, service: &Arc<Service>) -> bool {
        let is_there = Arc::make_mut(&mut self.root).remove(service);
        self.length -= usize::from(is_there);
        while let Piece::Pieces(pieces) = &*self.root {
            let [only] = &pieces[..] else { break };
            self.root = Arc::clone(only);
        }
        is_there
    }

    /// Returns the services of one host.
    pub(crate) fn of_host(&self, host: &HostPattern) -> Vec<Arc<Service>> {
        let mut found = Vec::new();
        self.root.of_host(host, &mut found);
        found
    }

    pub(crate) fn iter(&self) -> Iter<'_> {
        Iter { pieces: vec![std::slice::from_ref(&self.root).iter()], services: [].iter() }
    }
}

/// All services of a list, in order.
#[derive(Debug)]
pub(crate) struct Iter<'a> {
    pieces: Vec<std::slice::Iter<'a, Arc<Piece>>>,
    services: std::slice::Iter<'a, Arc<Service>>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<Service>;

    fn next(&mut self) -> Option<&'a Arc<Service>> {
        loop {
            if let Some(service) = self.services.next() {
                return Some(service);
            }
            match self.pieces.last_mut()?.next().map(|piece| &**piece) {
                Some(Piece::Services(services)) => self.services = services.iter(),
                Some(Piece::Pieces(pieces)) => self.pieces.push(pieces.iter()),
                None => _ = self.pieces.pop(),
            }
        }
    }
}

fn key(service: &Service) -> (&HostPattern, u16) {
    (&service.host, service.port)
}

impl Piece {
    fn first(&self) -> Option<&Arc<Service>> {
        match self {
            Piece::Services(services) => services.first(),
            Piece::Pieces(pieces) => pieces.first()?.first(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Piece::Services(services) => services.len(),
            Piece::Pieces(pieces) => pieces.len(),
        }
    }

    /// Inserts a service. If the piece overflows, returns its second half as a new piece.
    fn insert(&mut self, service: Arc<Service>) -> Option<Arc<Piece>> {
        match self {
            Piece::Services(services) => {
                let at = services.partition_point(|one| key(one) <= key(&service));
                services.insert(at, service);
                split(services).map(|right| Arc::new(Piece::Services(right)))
            }
            Piece::Pieces(pieces) => {
                let at = leading_to(pieces, &service);
                let right = Arc::make_mut(pieces.get_mut(at)?).insert(service)?;
                pieces.insert(at + 1, right);
                split(pieces).map(|right| Arc::new(Piece::Pieces(right)))
            }
        }
    }

    fn remove(&mut self, service: &Arc<Service>) -> bool {
        match self {
            Piece::Services(services) => {
                let at = services.iter().position(|one| Arc::ptr_eq(one, service));
                at.map(|at| services.remove(at)).is_some()
            }
            Piece::Pieces(pieces) => {
                let at = leading_to(pieces, service);
                let is_there = pieces.get_mut(at).is_some_and(|piece| Arc::make_mut(piece).remove(service));
                tidy(pieces, at);
                is_there
            }
        }
    }

    fn of_host(&self, host: &HostPattern, found: &mut Vec<Arc<Service>>) {
        match self {
            Piece::Services(services) => {
                let from = services.partition_point(|one| one.host < *host);
                let meant = services.iter().skip(from).take_while(|one| one.host == *host);
                found.extend(meant.cloned());
            }
            Piece::Pieces(pieces) => {
                let is_before = |piece: &Arc<Piece>| piece.first().is_some_and(|one| one.host < *host);
                let from = pieces.partition_point(is_before).saturating_sub(1);
                let may_hold = |piece: &&Arc<Piece>| piece.first().is_some_and(|one| one.host <= *host);
                for piece in pieces.iter().skip(from).take_while(may_hold) {
                    piece.of_host(host, found);
                }
            }
        }
    }
}

/// Returns the index of the piece that may hold a service.
fn leading_to(pieces: &[Arc<Piece>], service: &Service) -> usize {
    let begins = |piece: &Arc<Piece>| piece.first().is_some_and(|one| key(one) <= key(service));
    pieces.partition_point(begins).saturating_sub(1)
}

/// Splits off the second half of an overflowing list.
fn split<T>(items: &mut Vec<T>) -> Option<Vec<T>> {
    let is_long = items.len() > WIDE;
    is_long.then(|| {
        let right = items.split_off(WIDE / 2);
        items.shrink_to_fit();
        right
    })
}

/// Removes an empty piece, or merges two small ones.
fn tidy(pieces: &mut Vec<Arc<Piece>>, at: usize) {
    if pieces.get(at).is_some_and(|piece| piece.len() == 0) {
        pieces.remove(at);
        return;
    }
    for left in [at, at.wrapping_sub(1)] {
        let (Some(one), Some(next)) = (pieces.get(left), pieces.get(left.wrapping_add(1))) else { continue };
        if one.len() + next.len() > NARROW {
            continue;
        }
        let joined = match (&**one, &**next) {
            (Piece::Services(one), Piece::Services(next)) => Piece::Services([&one[..], next].concat()),
            (Piece::Pieces(one), Piece::Pieces(next)) => Piece::Pieces([&one[..], next].concat()),
            _ => continue,
        };
        pieces.remove(left + 1);
        if let Some(place) = pieces.get_mut(left) {
            *place = Arc::new(joined);
        }
        return;
    }
}

#[cfg(test)]
impl List {
    /// Number of items in pieces that were copied or created since `before`.
    pub(super) fn copied(&self, before: &List) -> usize {
        let mut known = std::collections::HashSet::new();
        before.root.note(&mut known);
        self.root.copied(&known)
    }
}

#[cfg(test)]
impl Piece {
    fn note(self: &Arc<Self>, known: &mut std::collections::HashSet<*const Piece>) {
        known.insert(Arc::as_ptr(self));
        if let Piece::Pieces(pieces) = &**self {
            pieces.iter().for_each(|piece| piece.note(known));
        }
    }

    fn copied(self: &Arc<Self>, known: &std::collections::HashSet<*const Piece>) -> usize {
        if known.contains(&Arc::as_ptr(self)) {
            return 0;
        }
        let below = match &**self {
            Piece::Services(_) => 0,
            Piece::Pieces(pieces) => pieces.iter().map(|piece| piece.copied(known)).sum(),
        };
        self.len() + below
    }
}
