//! Tracks whether each endpoint to export requires a client certificate: which endpoint to check next, and the results.
//! Pure; the agent makes the connections.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;

/// Concurrent checks.
const AT_ONCE: usize = 32;
/// Time until the next check of an endpoint that requires a certificate.
const GOOD: Duration = Duration::from_secs(60);
/// Time until the next check of any other endpoint.
const BAD: Duration = Duration::from_secs(3);

/// An endpoint, with the name under which it is checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    /// The host of the service.
    pub host: HostPattern,
    /// The address.
    pub address: Target,
}

/// The result of an mTLS check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MtlsCheck {
    /// Not checked yet.
    Awaited,
    /// It refuses clients without a certificate.
    Required,
    /// It accepts them: what it did.
    NotRequired(String),
    /// It is unreachable or does not speak TLS: why.
    Unreachable(String),
}

/// The mTLS checks of all endpoints to export.
#[derive(Debug, Default)]
pub struct MtlsChecks {
    known: HashMap<HostPattern, HashMap<Target, Known>>,
    /// The next check of each endpoint that is not being checked.
    due: BTreeSet<(Instant, Subject)>,
    running: usize,
    /// Wanted endpoints without a result.
    awaited: usize,
}

#[derive(Debug)]
struct Known {
    result: MtlsCheck,
    /// When the next check is due; none during a check.
    due: Option<Instant>,
    wanted: bool,
}

impl MtlsChecks {
    /// Sets the endpoints of a host to check. Returns whether one of them is new.
    pub fn want(
        &mut self,
        host: &HostPattern,
        addresses: impl IntoIterator<Item = Target>,
        now: Instant,
    ) -> bool {
        let addresses: HashSet<Target> = addresses.into_iter().collect();
        if addresses.is_empty() && !self.known.contains_key(host) {
            return false;
        }
        let MtlsChecks { known, due, awaited, .. } = self;
        let of_host = known.entry(host.clone()).or_default();
        *awaited -= of_host.values().filter(|known| known.is_awaited()).count();
        of_host.retain(|address, known| {
            known.wanted = addresses.contains(address);
            if let Some(at) = known.due.filter(|_| !known.wanted) {
                due.remove(&(at, Subject { host: host.clone(), address: address.clone() }));
            }
            // An endpoint stays until its running check ends.
            known.wanted || known.due.is_none()
        });
        let before = of_host.len();
        for address in addresses {
            let subject = || Subject { host: host.clone(), address: address.clone() };
            of_host.entry(address.clone()).or_insert_with(|| {
                due.insert((now, subject()));
                Known { result: MtlsCheck::Awaited, due: Some(now), wanted: true }
            });
        }
        *awaited += of_host.values().filter(|known| known.is_awaited()).count();
        let is_new = of_host.len() > before;
        if of_host.is_empty() {
            known.remove(host);
        }
        is_new
    }

    /// The endpoints to check now, longest wait first; each is returned once until its result arrives.
    pub fn next(&mut self, now: Instant) -> Vec<Subject> {
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        let given: Vec<_> = due.take(AT_ONCE.saturating_sub(self.running)).cloned().collect();
        for (at, subject) in &given {
            let of_host = self.known.get_mut(&subject.host);
            if let Some(known) = of_host.and_then(|of_host| of_host.get_mut(&subject.address)) {
                known.due = None;
            }
            self.due.remove(&(*at, subject.clone()));
        }
        self.running += given.len();
        given.into_iter().map(|(_, subject)| subject).collect()
    }

    /// When the next check is due; none while only a new endpoint or a result can lead to one.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().filter(|_| self.running < AT_ONCE).map(|(due, _)| *due)
    }

    /// Records a result. Returns whether it changes what is known. An unreachable endpoint keeps the result `Required`:
    /// no client can reach it.
    pub fn seen(&mut self, subject: &Subject, result: MtlsCheck, now: Instant) -> bool {
        self.running = self.running.saturating_sub(1);
        let Some(of_host) = self.known.get_mut(&subject.host) else { return false };
        let Some(known) = of_host.get_mut(&subject.address) else { return false };
        if !known.wanted {
            of_host.remove(&subject.address);
            if of_host.is_empty() {
                self.known.remove(&subject.host);
            }
            return false;
        }
        let keeps = known.result == MtlsCheck::Required && matches!(result, MtlsCheck::Unreachable(_));
        let result = if keeps { MtlsCheck::Required } else { result };
        let due = now + if result == MtlsCheck::Required { GOOD } else { BAD };
        known.due = Some(due);
        self.due.insert((due, subject.clone()));
        let before = std::mem::replace(&mut known.result, result.clone());
        self.awaited -= usize::from(before == MtlsCheck::Awaited);
        before != result
    }

    /// The result of an endpoint.
    #[must_use]
    pub fn result(&self, subject: &Subject) -> MtlsCheck {
        self.get(subject).map_or(MtlsCheck::Awaited, |known| known.result.clone())
    }

    /// Whether the endpoint is known to require a certificate.
    #[must_use]
    pub fn demands(&self, subject: &Subject) -> bool {
        self.get(subject).is_some_and(|known| known.result == MtlsCheck::Required)
    }

    /// Whether an endpoint has not been checked yet.
    #[must_use]
    pub fn awaits(&self) -> bool {
        self.awaited > 0
    }

    /// Whether this endpoint has not been checked yet.
    #[must_use]
    pub fn is_awaited(&self, subject: &Subject) -> bool {
        self.get(subject).is_some_and(|known| known.result == MtlsCheck::Awaited)
    }

    fn get(&self, subject: &Subject) -> Option<&Known> {
        self.known.get(&subject.host)?.get(&subject.address)
    }
}

impl Known {
    fn is_awaited(&self) -> bool {
        self.wanted && self.result == MtlsCheck::Awaited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(address: &str) -> Subject {
        Subject { host: HostPattern::parse("a.b").unwrap(), address: address.parse().unwrap() }
    }

    fn want<'a>(
        checks: &mut MtlsChecks,
        subjects: impl IntoIterator<Item = &'a Subject>,
        now: Instant,
    ) -> bool {
        let addresses: Vec<_> = subjects.into_iter().map(|subject| subject.address.clone()).collect();
        checks.want(&HostPattern::parse("a.b").unwrap(), addresses, now)
    }

    #[test]
    fn mtls_check_runs_once_at_a_time_and_repeats_by_result() {
        let (mut checks, start) = (MtlsChecks::default(), Instant::now());
        let one = subject("10.0.0.1:1");
        assert!(!checks.awaits());
        assert!(want(&mut checks, [&one], start));
        assert!(!want(&mut checks, [&one], start) && checks.awaits());
        assert_eq!(checks.next(start), std::slice::from_ref(&one));
        assert_eq!(checks.next(start + GOOD), [], "a check is running");
        assert!(checks.awaits());
        assert!(checks.seen(&one, MtlsCheck::Required, start));
        assert!(checks.demands(&one) && !checks.awaits());
        assert_eq!(checks.next(start + BAD), []);
        assert_eq!(checks.next(start + GOOD), std::slice::from_ref(&one));
        assert!(
            !checks.seen(&one, MtlsCheck::Unreachable("refused".to_owned()), start),
            "an unreachable endpoint keeps its result"
        );
        assert!(checks.demands(&one));
        assert!(checks.seen(&one, MtlsCheck::NotRequired("anybody".to_owned()), start));
        assert!(!checks.demands(&one));
        want(&mut checks, [], start);
        assert_eq!(checks.result(&one), MtlsCheck::Awaited, "it is forgotten");
    }

    #[test]
    fn mtls_checks_run_in_bounded_number() {
        let (mut checks, start) = (MtlsChecks::default(), Instant::now());
        let many: Vec<_> = (1..=100).map(|port| subject(&format!("10.0.0.1:{port}"))).collect();
        want(&mut checks, &many, start);
        let first = checks.next(start);
        assert_eq!(first.len(), AT_ONCE);
        want(&mut checks, [], start);
        for one in &first {
            assert!(!checks.seen(one, MtlsCheck::Required, start) || checks.get(one).is_some());
        }
        want(&mut checks, &many, start);
        assert_eq!(checks.next(start + GOOD).len(), AT_ONCE, "finished checks free their places");
    }

    #[test]
    fn mtls_check_schedule_names_the_next_moment_and_keeps_one_place_for_each_endpoint() {
        let (mut checks, start) = (MtlsChecks::default(), Instant::now());
        assert_eq!(checks.next_due(), None);
        let two = [subject("10.0.0.1:1"), subject("10.0.0.1:2")];
        want(&mut checks, &two, start);
        assert_eq!(checks.next_due(), Some(start));
        assert_eq!(checks.next(start), two);
        assert_eq!(checks.next_due(), None, "both are running");
        checks.seen(&two[0], MtlsCheck::Required, start);
        assert!(checks.awaits(), "one has no result");
        checks.seen(&two[1], MtlsCheck::Unreachable("refused".to_owned()), start);
        assert_eq!((checks.awaits(), checks.next_due()), (false, Some(start + BAD)));
        want(&mut checks, &two, start);
        assert_eq!(checks.due.len(), 2, "wanted again, not scheduled again");
        want(&mut checks, &two[..1], start);
        assert_eq!((checks.due.len(), checks.next_due()), (1, Some(start + GOOD)));
        want(&mut checks, [], start);
        assert_eq!((checks.due.len(), checks.known.len(), checks.awaited), (0, 0, 0));
    }
}
