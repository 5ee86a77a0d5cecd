//! Holds the resources of one type for one kind of client, by name and in the order of their last change. A stream has
//! a position in that order, so the cost of a change does not depend on the number of resources.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use bytes::Bytes;

use isthmus_model::slice::version;

/// A position in the order of changes.
pub type Position = u64;

/// Resources of one type.
#[derive(Debug, Default)]
pub struct View {
    entries: HashMap<Arc<str>, Entry>,
    /// The last change of each name.
    changes: BTreeMap<Position, Arc<str>>,
    /// The changes that removed a name.
    gone: BTreeSet<Position>,
    /// The changes that are sent before others.
    priority: BTreeSet<Position>,
    last: Position,
}

#[derive(Debug)]
struct Entry {
    changed: Position,
    /// None once removed, until every stream has passed the removal.
    resource: Option<Resource>,
}

/// A resource as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// A hash of the bytes.
    pub version: Arc<str>,
    /// The encoded message.
    pub bytes: Bytes,
}

impl View {
    /// As [`View::set`], for a resource that is sent before all other changes, however many they are.
    pub fn set_priority(&mut self, name: &str, bytes: impl Into<Bytes>) -> bool {
        let is_change = self.set(name, bytes);
        if is_change {
            self.priority.insert(self.last);
        }
        is_change
    }

    /// Sets a resource. Returns whether that is a change.
    pub fn set(&mut self, name: &str, bytes: impl Into<Bytes>) -> bool {
        let bytes = bytes.into();
        let version: Arc<str> = version(&bytes).into();
        if self.get(name).is_some_and(|standing| standing.version == version) {
            return false;
        }
        self.change(name, Some(Resource { version, bytes }));
        true
    }

    /// Removes a resource. Returns whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let was_there = self.get(name).is_some();
        if was_there {
            self.change(name, None);
        }
        was_there
    }

    fn change(&mut self, name: &str, resource: Option<Resource>) {
        self.last += 1;
        let name = match self.entries.get_key_value(name) {
            Some((name, entry)) => {
                self.changes.remove(&entry.changed);
                self.gone.remove(&entry.changed);
                self.priority.remove(&entry.changed);
                Arc::clone(name)
            }
            None => name.into(),
        };
        self.changes.insert(self.last, Arc::clone(&name));
        if resource.is_none() {
            self.gone.insert(self.last);
        }
        self.entries.insert(name, Entry { changed: self.last, resource });
    }

    /// The resource of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Resource> {
        self.entries.get(name)?.resource.as_ref()
    }

    /// All resources, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Resource)> {
        self.entries.iter().filter_map(|(name, entry)| Some((name, entry.resource.as_ref()?)))
    }

    /// The position of the last change.
    #[must_use]
    pub fn last(&self) -> Position {
        self.last
    }

    /// Each name that changed after a position, once, in the order of its last change; without a resource where it was
    /// removed.
    pub fn after(
        &self,
        position: Position,
    ) -> impl Iterator<Item = (Position, &Arc<str>, Option<&Resource>)> {
        let later = self.changes.range((Excluded(position), Unbounded));
        later.map(|(position, name)| {
            (*position, name, self.entries.get(name).and_then(|entry| entry.resource.as_ref()))
        })
    }

    /// Each name with a priority change after a position, in the order of its last change.
    pub fn priority_after(&self, position: Position) -> impl Iterator<Item = (Position, &Arc<str>)> {
        let later = self.priority.range((Excluded(position), Unbounded));
        later.filter_map(|position| Some((*position, self.changes.get(position)?)))
    }

    /// Whether the change at a position has priority.
    #[must_use]
    pub fn is_priority(&self, position: Position) -> bool {
        self.priority.contains(&position)
    }

    /// Forgets removals up to a position that every stream has passed.
    pub fn forget(&mut self, position: Position) {
        let later = self.gone.split_off(&(position + 1));
        for passed in std::mem::replace(&mut self.gone, later) {
            if let Some(name) = self.changes.remove(&passed) {
                self.entries.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(view: &View, position: Position) -> Vec<(&str, bool)> {
        view.after(position).map(|(_, name, resource)| (&**name, resource.is_some())).collect()
    }

    #[test]
    fn view_lists_each_changed_name_once_in_order() {
        let mut view = View::default();
        assert!(view.set("a", "1"));
        assert!(view.set("b", "1"));
        assert!(!view.set("a", "1"), "it is the same");
        let seen = view.last();
        assert!(view.set("a", "2") && view.remove("b") && view.set("a", "3"));
        assert!(!view.remove("b") && !view.remove("c"));
        assert_eq!(after(&view, seen), [("b", false), ("a", true)]);
        assert_eq!(after(&view, view.last()), []);
        view.forget(seen);
        assert_eq!(after(&view, seen), [("b", false), ("a", true)], "a removal that a stream has not passed");
        view.forget(view.last());
        assert_eq!(after(&view, 0), [("a", true)]);
        assert_eq!(view.iter().count(), 1);
        assert!(view.remove("a") && view.set("a", "4"), "it is back");
        view.forget(view.last());
        assert_eq!(after(&view, 0), [("a", true)]);
    }
}
