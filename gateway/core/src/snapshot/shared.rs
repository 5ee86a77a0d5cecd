//! Deduplicates properties of services: a hundred thousand services with the same deadlines hold one copy.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::gateways::Gateways;

use super::endpoint::EndpointMeta;
use super::service::Rules;

/// Unused values are dropped once there are this many and twice as many as after the last pass.
const MANY: usize = 1_024;

/// The known values, by content.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    rules: Known<Rules>,
    traits: Known<EndpointMeta>,
    pub(super) gateways: Arc<Gateways>,
}

impl Shared {
    pub(super) fn rules(&mut self, rules: Rules) -> Arc<Rules> {
        self.rules.intern(rules)
    }

    /// Deduplicates endpoint properties, except for those with instance names, which are unique anyway.
    pub(super) fn traits(&mut self, traits: EndpointMeta) -> Arc<EndpointMeta> {
        if traits.has_names() { Arc::new(traits) } else { self.traits.intern(traits) }
    }
}

#[derive(Debug)]
struct Known<T> {
    all: HashSet<Arc<T>>,
    held: usize,
}

impl<T> Default for Known<T> {
    fn default() -> Known<T> {
        Known { all: HashSet::new(), held: 0 }
    }
}

impl<T: Eq + Hash> Known<T> {
    fn intern(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.all.get(&value) {
            return Arc::clone(known);
        }
        if self.all.len() >= (2 * self.held).max(MANY) {
            self.all.retain(|value| Arc::strong_count(value) > 1);
            self.held = self.all.len();
        }
        let value = Arc::new(value);
        self.all.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_values_without_holders_are_dropped() {
        let mut known = Known::default();
        let kept: Vec<_> = (0..10).map(|number| known.intern(number)).collect();
        for number in 0..10 * MANY {
            known.intern(number);
        }
        assert!(known.all.len() <= MANY, "{}", known.all.len());
        assert!((0..10).all(|number| Arc::ptr_eq(&known.intern(number), &kept[number])));
    }
}
