//! What is known of endpoints that are to be exported: whether each demands a client certificate. Pure: it says
//! which to look at next, and takes what was seen. Not the look itself.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use isthmus_model::address::Target;
use isthmus_model::host::HostPattern;

/// Looks at once.
const AT_ONCE: usize = 32;
/// Until one that was good is looked at again.
const GOOD: Duration = Duration::from_secs(60);
/// Until one that was not is.
const BAD: Duration = Duration::from_secs(3);

/// An endpoint under the name that it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The service.
    pub host: HostPattern,
    /// Where.
    pub address: Target,
}

/// What was seen of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MtlsCheck {
    /// Nothing yet.
    Awaited,
    /// It refuses clients that have no certificate.
    Required,
    /// It does not, and what it did.
    NotRequired(String),
    /// It was not reached, or speaks no TLS.
    Unreachable(String),
}

/// What is known of each.
#[derive(Debug, Default)]
pub struct MtlsChecks {
    known: HashMap<HostPattern, HashMap<Target, Known>>,
    running: usize,
}

#[derive(Debug)]
struct Known {
    proof: MtlsCheck,
    /// When it is to be looked at; none while it is.
    due: Option<Instant>,
    wanted: bool,
}

impl MtlsChecks {
    /// Of this host these are to be exported from now on, and no others. Says whether one of them is not known
    /// yet.
    pub fn want(
        &mut self,
        host: &HostPattern,
        addresses: impl IntoIterator<Item = Target>,
        now: Instant,
    ) -> bool {
        let addresses: HashSet<Target> = addresses.into_iter().collect();
        let of_host = self.known.entry(host.clone()).or_default();
        of_host.retain(|address, known| {
            known.wanted = addresses.contains(address);
            // One that is being looked at stays until that is over.
            known.wanted || known.due.is_none()
        });
        let before = of_host.len();
        for address in addresses {
            let new = || Known { proof: MtlsCheck::Awaited, due: Some(now), wanted: true };
            of_host.entry(address).or_insert_with(new);
        }
        let is_new = of_host.len() > before;
        if of_host.is_empty() {
            self.known.remove(host);
        }
        is_new
    }

    /// Those to look at now; each is given out once until it is answered.
    pub fn next(&mut self, now: Instant) -> Vec<Subject> {
        let all =
            self.known.iter_mut().flat_map(|(host, known)| known.iter_mut().map(move |one| (host, one)));
        let due = all.filter(|(_, (_, known))| known.due.is_some_and(|due| due <= now));
        let mut given = Vec::new();
        for (host, (address, known)) in due.take(AT_ONCE.saturating_sub(self.running)) {
            known.due = None;
            given.push(Subject { host: host.clone(), address: address.clone() });
        }
        self.running += given.len();
        given
    }

    /// Takes what was seen. Says whether that changes what is known. One that cannot be reached is no worse
    /// than it was: nobody can reach it.
    pub fn seen(&mut self, subject: &Subject, proof: MtlsCheck, now: Instant) -> bool {
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
        let keeps = known.proof == MtlsCheck::Required && matches!(proof, MtlsCheck::Unreachable(_));
        let proof = if keeps { MtlsCheck::Required } else { proof };
        known.due = Some(now + if proof == MtlsCheck::Required { GOOD } else { BAD });
        std::mem::replace(&mut known.proof, proof.clone()) != proof
    }

    /// What is known of one.
    #[must_use]
    pub fn of(&self, subject: &Subject) -> MtlsCheck {
        self.get(subject).map_or(MtlsCheck::Awaited, |known| known.proof.clone())
    }

    /// Whether it was seen to demand a certificate.
    #[must_use]
    pub fn demands(&self, subject: &Subject) -> bool {
        self.get(subject).is_some_and(|known| known.proof == MtlsCheck::Required)
    }

    /// Whether there is one of which nothing was seen yet.
    #[must_use]
    pub fn awaits(&self) -> bool {
        let mut all = self.known.values().flat_map(HashMap::values);
        all.any(|known| known.wanted && known.proof == MtlsCheck::Awaited)
    }

    /// Whether nothing was seen of it yet.
    #[must_use]
    pub fn is_awaited(&self, subject: &Subject) -> bool {
        self.get(subject).is_some_and(|known| known.proof == MtlsCheck::Awaited)
    }

    fn get(&self, subject: &Subject) -> Option<&Known> {
        self.known.get(&subject.host)?.get(&subject.address)
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
    fn each_is_looked_at_once_at_a_time_and_again_after_a_while() {
        let (mut checks, start) = (MtlsChecks::default(), Instant::now());
        let one = subject("10.0.0.1:1");
        assert!(!checks.awaits());
        assert!(want(&mut checks, [&one], start));
        assert!(!want(&mut checks, [&one], start) && checks.awaits());
        assert_eq!(checks.next(start), std::slice::from_ref(&one));
        assert_eq!(checks.next(start + GOOD), [], "it is being looked at");
        assert!(checks.awaits());
        assert!(checks.seen(&one, MtlsCheck::Required, start));
        assert!(checks.demands(&one) && !checks.awaits());
        assert_eq!(checks.next(start + BAD), []);
        assert_eq!(checks.next(start + GOOD), std::slice::from_ref(&one));
        assert!(!checks.seen(&one, MtlsCheck::Unreachable("refused".to_owned()), start), "nobody reaches it");
        assert!(checks.demands(&one));
        assert!(checks.seen(&one, MtlsCheck::NotRequired("anybody".to_owned()), start));
        assert!(!checks.demands(&one));
        want(&mut checks, [], start);
        assert_eq!(checks.of(&one), MtlsCheck::Awaited, "it is forgotten");
    }

    #[test]
    fn only_so_many_are_looked_at_at_once() {
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
        assert_eq!(checks.next(start + GOOD).len(), AT_ONCE, "places are free again");
    }
}
