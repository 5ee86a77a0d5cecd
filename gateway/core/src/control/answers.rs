//! What the host names of endpoints resolved to, and since when that is in doubt: for status. The tables
//! hold the addresses themselves.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use isthmus_model::HostName;

/// What is known of each name, for status: an answer may be old.
#[derive(Debug, Default)]
pub struct Answers {
    known: Mutex<BTreeMap<HostName, Answer>>,
    /// Names that are neither resolved yet nor failed to.
    awaited: AtomicUsize,
}

/// What is known of one name.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Answer {
    /// In use; sorted. None before the first answer.
    pub addresses: Vec<IpAddr>,
    /// When they were last confirmed.
    #[serde(serialize_with = "as_text")]
    pub confirmed: Option<SystemTime>,
    /// Why all or some of them could not be confirmed since.
    pub problem: Option<String>,
}

impl Answer {
    fn is_awaited(&self) -> bool {
        self.confirmed.is_none() && self.problem.is_none()
    }
}

impl Answers {
    /// Of every name that endpoints are given by, in order.
    #[must_use]
    pub fn all(&self) -> BTreeMap<HostName, Answer> {
        self.lock().clone()
    }

    /// The addresses that a name has, as far as that is known.
    pub(crate) fn of(&self, name: &HostName) -> Vec<IpAddr> {
        self.lock().get(name).map(|answer| answer.addresses.clone()).unwrap_or_default()
    }

    /// Some name was neither resolved yet nor failed to. Waits for nobody.
    #[must_use]
    pub fn are_awaited(&self) -> bool {
        self.awaited.load(Relaxed) > 0
    }

    /// Notes the addresses in use, when they were confirmed, if they were, and why all or some were not.
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

    /// Forgets all names but these, and lists those that are new.
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

fn as_text<S: serde::Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    serde::Serialize::serialize(&time.map(crate::log::rfc3339), serializer)
}
