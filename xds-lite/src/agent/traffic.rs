//! The policies of traffic by host while the agent runs: `traffic` is the only key of the agent's file that is live. An
//! edit publishes the slices of the hosts that it concerns to the own gateways, and nothing else. An invalid edit changes
//! nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isthmus_model::host::HostPattern;
use isthmus_registry::exports::covers;
use isthmus_registry::traffic::TrafficRules;
use isthmus_watch::FileWatcher;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::config::{self, Settings};
use super::own_services::OwnServices;
use super::{Owners, blocking};

/// A file with the same content for this long is complete.
const QUIET: Duration = Duration::from_millis(50);
/// The same while a writer has it open, or while it cannot be read.
const WRITING: Duration = Duration::from_secs(2);
/// Longest interval between reads, for file systems without events.
const POLL: Duration = Duration::from_secs(5);

/// The policies in use.
#[derive(Default)]
pub(super) struct LiveTraffic {
    rules: Mutex<Arc<TrafficRules>>,
    edit: Mutex<Edit>,
}

/// The last edit of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Edit {
    /// Why it is not in use.
    pub(super) refused: Option<String>,
    /// Keys have changed that are read at start only.
    pub(super) needs_restart: bool,
}

impl LiveTraffic {
    pub(super) fn new(rules: TrafficRules) -> LiveTraffic {
        LiveTraffic { rules: Mutex::new(Arc::new(rules)), edit: Mutex::default() }
    }

    /// The policies. Who publishes slices by them asks under the lock of that change: what is replaced meanwhile is
    /// published again after it.
    pub(super) fn rules(&self) -> Arc<TrafficRules> {
        Arc::clone(&self.rules.lock())
    }

    /// What became of the last edit.
    pub(super) fn edit(&self) -> Edit {
        self.edit.lock().clone()
    }

    fn replace(&self, rules: &TrafficRules) -> Arc<TrafficRules> {
        std::mem::replace(&mut *self.rules.lock(), Arc::new(rules.clone()))
    }

    /// Records what became of an edit. Returns the one before.
    fn record(&self, edit: Edit) -> Edit {
        std::mem::replace(&mut *self.edit.lock(), edit)
    }
}

/// Applies edits of the agent's file, until dropped.
pub(super) async fn run(file: Option<PathBuf>, settings: Arc<Settings>, owners: Owners) {
    let Some(file) = file else { return std::future::pending().await };
    let news = Arc::new(Notify::new());
    let wake = Arc::clone(&news);
    let watcher = FileWatcher::new("the agent's file", move || wake.notify_one());
    let mut following = Following { file, watcher, settings, owners, seen: None, judged: None };
    loop {
        let (after, wait) = blocking(move || {
            let wait = following.poll();
            (following, wait)
        })
        .await;
        following = after;
        match wait {
            // Another event does not make it complete any earlier.
            Wait::Settle(time) => sleep(time).await,
            Wait::News => _ = timeout(POLL, news.notified()).await,
        }
    }
}

/// What the next read waits for.
enum Wait {
    /// The content is to be the same after this time.
    Settle(Duration),
    News,
}

struct Following {
    file: PathBuf,
    watcher: FileWatcher,
    /// The settings of the start.
    settings: Arc<Settings>,
    owners: Owners,
    /// The content of the last read, which may be incomplete.
    seen: Option<Content>,
    /// The content that was judged last.
    judged: Option<Content>,
}

/// A text, or why there is none.
type Content = Result<String, String>;

impl Following {
    fn poll(&mut self) -> Wait {
        // Before the file is read, so that no edit is missed in between.
        self.watcher.turn_to(&self.file);
        let content = config::text(&self.file).map_err(|problems| problems.to_string());
        if self.judged.as_ref() == Some(&content) {
            self.seen = None;
            return Wait::News;
        }
        if self.seen.as_ref() != Some(&content) {
            let is_readable = content.is_ok() && !self.watcher.is_being_written();
            self.seen = Some(content);
            return Wait::Settle(if is_readable { QUIET } else { WRITING });
        }
        self.judge(&content);
        self.judged = self.seen.take();
        Wait::News
    }

    fn judge(&self, content: &Content) {
        let traffic = &self.owners.views.traffic;
        let outcome = content.clone().and_then(|text| {
            let edited = config::parse(&text, &self.file).map_err(|problems| problems.to_string())?;
            check(&edited, &self.owners.own)?;
            Ok(edited)
        });
        let edit = match &outcome {
            Err(why) => Edit { refused: Some(why.clone()), ..traffic.edit() },
            Ok(edited) => {
                Edit { refused: None, needs_restart: !edited.differ_only_in_traffic(&self.settings) }
            }
        };
        let needs_restart = edit.needs_restart;
        let before = traffic.record(edit);
        match outcome {
            Err(why) => {
                tracing::error!(file = %self.file.display(), "edit refused; keeping the last `traffic`:\n{why}")
            }
            Ok(edited) => self.apply(&edited),
        }
        if needs_restart && !before.needs_restart {
            tracing::warn!(file = %self.file.display(), "keys besides `traffic` have changed; they take effect at the next start");
        }
    }

    fn apply(&self, edited: &Settings) {
        let Owners { own, peers, views, .. } = &self.owners;
        let rules = &edited.traffic.rules;
        let before = views.traffic.replace(rules);
        if *before == *rules {
            return;
        }
        let is_concerned = |host: &HostPattern| rules.differ(&before, host);
        let count = own.publish_traffic(is_concerned) + peers.publish_traffic(is_concerned);
        tracing::info!(file = %self.file.display(), slices = count, "traffic policies changed");
    }
}

/// Checks policies beside the registry as it is now, registered VMs included.
fn check(edited: &Settings, own: &OwnServices) -> Result<(), String> {
    let has = |wanted: &HostPattern| {
        own.contains(wanted) || !own.search(|host, _| covers(wanted, host).then_some(())).is_empty()
    };
    let problems = edited.traffic.problems(has);
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::time::Instant;

    use isthmus_ads::view::{Position, Resource};
    use isthmus_model::slice::Slice;
    use tempfile::TempDir;

    use super::super::busy_tests::{FILE, owners, part, resources, trust};
    use super::*;

    struct World {
        following: Following,
        folder: TempDir,
    }

    impl World {
        /// Two own hosts and an imported one.
        fn new() -> World {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("agent.yaml");
            fs::write(&file, FILE).unwrap();
            let settings = Arc::new(config::load(&file).unwrap());
            let owners = owners(&settings, &trust());
            owners.own.apply_part(part(), Instant::now());
            assert_eq!(owners.peers.apply(&"west".parse().unwrap(), &resources(), &[]).len(), 0);
            let watcher = FileWatcher::new("the agent's file", || {});
            World {
                following: Following { file, watcher, settings, owners, seen: None, judged: None },
                folder,
            }
        }

        fn edit(&mut self, text: &str) {
            fs::write(self.folder.path().join("agent.yaml"), text).unwrap();
            assert!(matches!(self.following.poll(), Wait::Settle(_)), "not before the file is quiet");
            assert!(matches!(self.following.poll(), Wait::News));
        }

        /// The gateways' slices: their versions, and the policies of their ports.
        fn slices(&self) -> BTreeMap<String, (String, Vec<String>)> {
            let view = self.following.owners.views.gateways.view();
            let slice = |bytes: &[u8]| Slice::decode(bytes).unwrap().offer.unwrap();
            let policies = |bytes: &[u8]| {
                let ports = slice(bytes).ports.into_iter();
                ports.map(|port| port.traffic.map_or_else(|| "-".to_owned(), |one| one.to_string())).collect()
            };
            let entry = |resource: &Resource| (resource.version.to_string(), policies(&resource.bytes));
            view.iter().map(|(name, resource)| (name.to_string(), entry(resource))).collect()
        }

        /// The last change of the gateways' view.
        fn position(&self) -> Position {
            self.following.owners.views.gateways.view().last()
        }

        fn positions_of_peers(&self) -> Vec<Position> {
            let views = self.following.owners.views.peers.all();
            views.iter().map(|shared| shared.view().last()).collect()
        }

        fn last_edit(&self) -> Edit {
            self.following.owners.views.traffic.edit()
        }
    }

    #[test]
    fn edit_of_traffic_changes_the_slices_that_it_concerns() {
        let mut world = World::new();
        let before = world.slices();
        assert_eq!(before.keys().collect::<Vec<_>>(), ["east/a.own", "east/b.own", "west/a.shop"]);
        let (of_peers, position) = (world.positions_of_peers(), world.position());
        let policies = "traffic: [{ hosts: [a.own], affinity: remote }, { hosts: ['*.shop'], panic: off }]\n";
        world.edit(&format!("{FILE}{policies}"));
        let after = world.slices();
        assert_eq!(after["east/a.own"].1, ["{ affinity: remote }"]);
        assert_eq!(after["west/a.shop"].1, ["{ panic: off }"]);
        assert_eq!(after["east/b.own"], before["east/b.own"]);
        let changed = world.following.owners.views.gateways.view().after(position).count();
        assert_eq!(changed, 2);
        assert_eq!(world.positions_of_peers(), of_peers, "peers are told nothing");
        // Another order of entries is no other policy.
        let position = world.position();
        world.edit(&format!(
            "{FILE}traffic: [{{ hosts: ['*.shop'], panic: off }}, {{ hosts: [a.own], affinity: remote }}]\n"
        ));
        assert_eq!(world.position(), position);
        world.edit(FILE);
        assert_eq!(world.slices(), before);
        assert_eq!(world.last_edit(), Edit::default());
    }

    #[test]
    fn invalid_edit_changes_nothing_and_is_told() {
        let mut world = World::new();
        world.edit(&format!("{FILE}traffic: [{{ hosts: [a.own], affinity: remote }}]\n"));
        let before = world.slices();
        let by_labels = "split: [{ labels: { version: v2 }, weight: 1 }] }]";
        for (traffic, expected) in [
            (
                "traffic: [{ hosts: [a.own], panic: 101 }, { hosts: [b.own], affinity: none }]".to_owned(),
                "traffic[0].panic: '101' is out of range",
            ),
            ("traffic: [{ hosts: [a.own".to_owned(), "agent.yaml:"),
            (
                format!("traffic: [{{ hosts: [a.shop], {by_labels}"),
                "a.shop is not in the registry of this cluster",
            ),
        ] {
            world.edit(&format!("{FILE}{traffic}\n"));
            let refused = world.last_edit().refused.unwrap();
            assert!(refused.contains(expected), "{refused}");
            assert_eq!(world.slices(), before);
        }
        world.edit(&format!("{FILE}traffic: [{{ hosts: [a.own], {by_labels}\n"));
        assert_eq!(world.last_edit().refused, None);
        assert_ne!(world.slices(), before);
    }

    #[test]
    fn edit_of_another_key_awaits_a_restart() {
        let mut world = World::new();
        let other = FILE.replace("'*.shop'", "'*.shop', '*.bank'");
        world.edit(&format!("{other}traffic: [{{ hosts: [a.own], affinity: remote }}]\n"));
        assert_eq!(world.last_edit(), Edit { refused: None, needs_restart: true });
        assert_eq!(world.slices()["east/a.own"].1, ["{ affinity: remote }"]);
        world.edit(FILE);
        assert_eq!(world.last_edit(), Edit::default());
    }

    #[test]
    fn missing_file_changes_nothing() {
        let mut world = World::new();
        fs::remove_file(world.folder.path().join("agent.yaml")).unwrap();
        assert!(matches!(world.following.poll(), Wait::Settle(WRITING)));
        assert!(matches!(world.following.poll(), Wait::News));
        assert!(world.last_edit().refused.unwrap().contains("cannot be read"));
        world.edit(FILE);
        assert_eq!(world.last_edit(), Edit::default());
    }
}
