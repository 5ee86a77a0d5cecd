//! Decides when services missing from a rewritten file are gone. Writers in place truncate a file first, so
//! until it was closed and quiet for a while, missing services stay and new ones are added at once. Does no
//! I/O; time is an argument.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_model::Problems;
use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;
use isthmus_watch::Written;

/// Quiet time after which services missing from a file, or a removed file, are gone.
pub(super) const QUIET: Duration = Duration::from_millis(500);
/// Writing for longer than this is reported.
const LONG: Duration = Duration::from_secs(10);

/// Tracks whether a file is complete.
#[derive(Debug, Default)]
pub(super) struct Settling {
    writer: Writer,
    /// The first write since it was complete, and the last one; `None`: it is complete.
    since: Option<(Instant, Instant)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writer {
    /// No writer has it open.
    #[default]
    Done,
    /// A writer has it open.
    Writing,
    /// The file system does not tell.
    Unknown,
}

impl Settling {
    /// Records a write event.
    pub(super) fn note(&mut self, written: Written, now: Instant) {
        match written {
            Written::Replaced => *self = Settling::default(),
            Written::Open | Written::Closed => {
                self.writer = if written == Written::Open { Writer::Writing } else { Writer::Done };
                self.touch(now);
            }
        }
    }

    /// Records a change in place.
    pub(super) fn stir(&mut self, now: Instant) {
        // No event has told of a writer.
        if self.since.is_none() {
            self.writer = Writer::Unknown;
        }
        self.touch(now);
    }

    /// Records another file in its place. Without an event it counts as renamed there.
    pub(super) fn displace(&mut self) {
        if self.since.is_none() || self.writer == Writer::Unknown {
            self.settle();
        }
    }

    fn touch(&mut self, now: Instant) {
        let first = self.since.map_or(now, |(first, _)| first);
        self.since = Some((first, now));
    }

    /// Forgets the writer, since events may have been lost.
    pub(super) fn lose_track(&mut self) {
        if self.writer == Writer::Writing {
            self.writer = Writer::Unknown;
        }
    }

    /// Whether the content may end in the middle.
    pub(super) fn may_be_torn(&self) -> bool {
        self.writer != Writer::Done
    }

    /// Whether the content is complete.
    pub(super) fn is_whole(&self, now: Instant) -> bool {
        self.since.is_none() || self.is_whole_at().is_some_and(|whole| now >= whole)
    }

    /// When the content is complete if no further event arrives; none: it is, or a writer has it open.
    pub(super) fn is_whole_at(&self) -> Option<Instant> {
        let (_, last) = self.since.filter(|_| self.writer != Writer::Writing)?;
        last.checked_add(QUIET)
    }

    /// Marks the file as complete.
    pub(super) fn settle(&mut self) {
        *self = Settling::default();
    }

    /// The part of the content that is certain. If the file may be torn, that excludes its last line, which
    /// may be partial, and the last service of the rest, of which lines may follow.
    pub(super) fn certain(
        &self,
        text: &str,
        read: impl FnOnce(&str) -> Result<Vec<Service>, Problems>,
    ) -> Result<Vec<Service>, Problems> {
        if !self.may_be_torn() {
            return read(text);
        }
        let mut services = read(text.rsplit_once('\n').map_or("", |(lines, _)| lines))?;
        services.pop();
        Ok(services)
    }

    /// Whether writing has taken suspiciously long.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.is_late_at().is_some_and(|late| now >= late)
    }

    /// When writing counts as suspiciously long.
    pub(super) fn is_late_at(&self) -> Option<Instant> {
        self.since.and_then(|(first, _)| first.checked_add(LONG))
    }
}

/// The services that count while a file is incomplete: everything read, and what is missing from it of the
/// previous content.
pub(super) fn with_what_lacks(before: &[Arc<Service>], reading: &[Arc<Service>]) -> Vec<Arc<Service>> {
    let mut all = reading.to_vec();
    let places: HashMap<_, _> =
        reading.iter().enumerate().map(|(place, new)| ((&new.host, new.port), place)).collect();
    let with_bare: HashSet<_> = reading.iter().filter(|new| new.default_port).map(|new| &new.host).collect();
    let aliases: HashSet<_> = reading.iter().flat_map(|new| &new.aliases).collect();
    // A name that moved to another service is not missing from this one.
    let lacked =
        |old: &Service| old.aliases.iter().filter(|alias| !aliases.contains(alias)).cloned().collect();
    for old in before {
        match places.get(&(&old.host, old.port)).and_then(|place| all.get_mut(*place)) {
            Some(new) if *new != *old => *new = Arc::new(with_what_one_lacks(new, old, lacked(old))),
            Some(_) => {}
            None => all.push(Arc::new(Service {
                default_port: old.default_port && !with_bare.contains(&old.host),
                aliases: lacked(old),
                ..(**old).clone()
            })),
        }
    }
    all
}

fn with_what_one_lacks(new: &Service, old: &Service, aliases: Vec<HostPattern>) -> Service {
    let mut all = new.clone();
    all.aliases.extend(aliases);
    if all.alpn.is_empty() {
        all.alpn.clone_from(&old.alpn);
    }
    if all.sources.is_empty() {
        all.sources.clone_from(&old.sources);
    }
    all.max_connections = all.max_connections.or(old.max_connections);
    all.send_proxy |= old.send_proxy;
    all.traffic = all.traffic.or_else(|| old.traffic.clone());
    all.health = all.health.or_else(|| old.health.clone());
    all.about = all.about.or_else(|| old.about.clone());
    match (&mut all.tls, &old.tls) {
        (Some(new), Some(old)) => new.keep_from(old),
        (new, old) => *new = new.take().or_else(|| old.clone()),
    }
    let addresses: HashSet<_> = new.endpoints.iter().map(|endpoint| &endpoint.address).collect();
    let instances: HashSet<_> =
        new.endpoints.iter().filter_map(|endpoint| endpoint.instance.as_ref()).collect();
    let lacks = old.endpoints.iter().filter(|endpoint| {
        let is_moved = endpoint.instance.as_ref().is_some_and(|instance| instances.contains(instance));
        !is_moved && !addresses.contains(&endpoint.address)
    });
    all.endpoints.extend(lacks.cloned());
    all
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use isthmus_model::registry_file;

    fn services(text: &str) -> Vec<Arc<Service>> {
        registry_file(text, Path::new("r.yaml")).unwrap().into_iter().map(Arc::new).collect()
    }

    #[test]
    fn settling_file_is_whole_once_closed_and_quiet() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut file = Settling::default();
        assert!(file.is_whole(start), "nothing wrote it");
        file.note(Written::Open, start);
        assert!(!file.is_whole(at(60_000)), "it is open, however long");
        assert!(file.is_late(at(60_000)) && !file.is_late(at(9_999)));
        file.note(Written::Closed, at(60_000));
        assert!(!file.is_whole(at(60_499)) && file.is_whole(at(60_500)));
        file.note(Written::Open, at(60_400));
        file.note(Written::Replaced, at(60_401));
        assert!(file.is_whole(at(60_401)), "a renamed file is complete");
        file.stir(at(61_000));
        file.stir(at(61_300));
        assert!(!file.is_whole(at(61_700)) && file.is_whole(at(61_800)), "the writer is unknown");
        file.note(Written::Open, at(62_000));
        file.lose_track();
        assert!(file.is_whole(at(62_500)), "the close event may have been lost");
    }

    #[test]
    fn unfinished_file_adds_at_once_and_takes_nothing_away() {
        let before = services(
            "services:\n- { host: a.b, port: 1, aliases: [x, y], sources: [10.0.0.0/8], endpoints: [{ address: '10.0.0.1:1', instance: i }, { address: '10.0.0.2:1' }] }\n- { host: c.d, aliases: [z] }\n",
        );
        let reading = services(
            "services:\n- { host: a.b, port: 1, balance: random, endpoints: [{ address: '10.0.0.3:1', instance: i }] }\n- { host: e.f, aliases: [x, z] }\n",
        );
        let all = with_what_lacks(&before, &reading);
        let shown: Vec<_> = all.iter().map(|one| one.host.to_string()).collect();
        assert_eq!(shown, ["a.b", "e.f", "c.d"]);
        let addresses: Vec<_> = all[0].endpoints.iter().map(|one| one.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.3:1", "10.0.0.2:1"], "i has moved, the other endpoint is missing");
        assert_eq!((all[0].balance, all[0].sources.len()), (reading[0].balance, 1));
        let aliases = |place: usize| all[place].aliases.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!((aliases(0), aliases(1)), (vec!["y".to_owned()], vec!["x".to_owned(), "z".to_owned()]));
        assert!(all[2].aliases.is_empty(), "z has moved");
    }

    const WHOLE: &str = "services:\n- host: a.b\n  port: 1\n  endpoints:\n  - address: 10.0.0.1:80\n  \
        - address: 10.0.0.2:8080\n- host: c.d\n  aliases: [c]\n- host: e.f\n  endpoints:\n  \
        - address: 10.0.0.3:1\n";

    proptest! {
        /// A file that is truncated anywhere and then written again unchanged changes nothing.
        #[test]
        fn torn_file_that_is_written_again_unchanged_changes_nothing(cut in 0..WHOLE.len()) {
            let before = services(WHOLE);
            let read = |text: &str| registry_file(text, Path::new("r.yaml"));
            let mut file = Settling::default();
            file.note(Written::Open, Instant::now());
            if let Ok(reading) = file.certain(&WHOLE[..cut], read) {
                let reading: Vec<_> = reading.into_iter().map(Arc::new).collect();
                let mut all = with_what_lacks(&before, &reading);
                all.sort_by_key(|one| one.host.clone());
                prop_assert_eq!(all, before);
            }
        }
    }
}
