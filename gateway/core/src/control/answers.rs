//! Records for status what endpoint host names resolved to and when that was last confirmed. The tables hold the
//! addresses in use.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use isthmus_model::HostName;

/// The last answer for each name; it may be old.
#[derive(Debug, Default)]
pub struct Answers {
    known: Mutex<BTreeMap<HostName, Answer>>,
    /// Number of names without any answer yet.
    awaited: AtomicUsize,
}

/// The last answer for one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Addresses in use, sorted; empty before the first answer.
    pub addresses: Vec<IpAddr>,
    /// When the addresses were last confirmed.
    pub confirmed: Option<SystemTime>,
    /// Why some or all addresses could not be confirmed since.
    pub problem: Option<String>,
}

impl Answer {
    fn is_awaited(&self) -> bool {
        self.confirmed.is_none() && self.problem.is_none()
    }
}

impl Answers {
    /// Returns the answers for all endpoint host names.
    #[must_use]
    pub fn all(&self) -> BTreeMap<HostName, Answer> {
        self.lock().clone()
    }

    /// Returns the known addresses of a name.
    pub(crate) fn get(&self, name: &HostName) -> Vec<IpAddr> {
        self.lock().get(name).map(|answer| answer.addresses.clone()).unwrap_or_default()
    }

    /// Whether some name has no answer yet. Never blocks.
    #[must_use]
    pub fn are_awaited(&self) -> bool {
        self.awaited.load(Relaxed) > 0
    }

    /// Records the addresses in use, when they were confirmed, and any problem.
    pub(crate) fn note(
        &self,
        name: &HostName,
        addresses: &[IpAddr],
        confirmed: Option<SystemTime>,
        problem: Option<String>,
    ) {
        let mut answers = self.lock();
        let Some(answer) = answers.get_mut(name) else { return };
        if answer.is_awaited() {
            self.awaited.fetch_sub(1, Relaxed);
        }
        answer.addresses = addresses.to_vec();
        answer.confirmed = confirmed.or(answer.confirmed);
        answer.problem = problem;
    }

    /// Forgets all names but these, and adds new ones.
    pub(crate) fn keep_only(&self, names: &[HostName]) {
        let mut answers = self.lock();
        let mut before = std::mem::take(&mut *answers);
        *answers = names.iter().map(|name| (name.clone(), before.remove(name).unwrap_or_default())).collect();
        self.awaited.store(answers.values().filter(|answer| answer.is_awaited()).count(), Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<HostName, Answer>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
