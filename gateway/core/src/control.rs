//! Turns settings, learned services and resolved names into the tables that workers read. Only this module makes
//! and frees snapshots: dropping 100 000 services takes 90 ms, too long for a worker. Tables are compiled on threads
//! that may wait; health checks, pages and metrics read atomics, the current snapshot and summaries.

mod answers;
mod certificates;
mod following;
mod restart;
mod retired;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use isthmus_model::{HostName, HostPattern};
use isthmus_report::Report;
use isthmus_store::Health;
use isthmus_trust::enrolment::Renewal;
use tokio::sync::{Notify, watch};

pub use self::answers::{Answer, Answers};
pub use self::following::{Following, Probed, Unreached};
use self::restart::needs_restart;
use self::retired::Retired;
use crate::config::settings::{Fixed, Live, Service, Settings};
use crate::drain::Phase;
use crate::gateways::{Found, Gateways};
use crate::issued::Wanted;
use crate::snapshot::{CompilerState, LearnedBindings, Resolved, SnapshotBuilder};
use crate::socket;
use crate::worker::{Process, Worker};

/// The state of the control thread.
#[derive(Debug)]
pub struct Control {
    /// The process it controls.
    pub process: Arc<Process>,
    /// All workers.
    pub workers: Vec<Arc<Worker>>,
    /// The phase between start and end.
    pub phase: watch::Sender<Phase>,
    /// Draining, or over.
    is_leaving: AtomicBool,
    /// An agent or control plane has delivered tables, possibly empty ones.
    has_tables: AtomicBool,
    /// Host names used as endpoint addresses.
    pub names: watch::Sender<Vec<HostName>>,
    /// The addresses these names resolved to.
    pub answers: Answers,
    /// The identities that need a certificate of the agent.
    pub wanted: watch::Sender<Wanted>,
    /// The gateway addresses of other clusters that endpoints have.
    pub(crate) gateways: Arc<Gateways>,
    /// What probes of these found.
    pub matrix: Found,
    /// The report for the agent, if one is configured.
    pub(crate) report: watch::Sender<Arc<Report>>,
    /// Connection state of the agent, if one is configured.
    pub following: watch::Sender<Following>,
    /// Health of the slice store, if one is configured.
    pub state: OnceLock<Arc<Health>>,
    /// Renewal state of the certificate, if the gateway manages it.
    pub renewal: Arc<Renewal>,
    /// When the process started.
    pub started: SystemTime,
    /// The fixed settings as written in the file; each edit is compared with them.
    written: Fixed,
    /// Locked while tables are compiled, which may take a second.
    compiler: Mutex<Compiler>,
    /// Data for status; never locked for long.
    status: Mutex<StatusData>,
    retired: Retired,
    /// Notified when the configuration file must be checked.
    pub(crate) recheck: Notify,
    leave: Notify,
    broken: AtomicBool,
    given_up: OnceLock<String>,
}

#[derive(Debug)]
struct Compiler {
    resolved: Resolved,
    state: CompilerState,
}

#[derive(Debug)]
struct StatusData {
    /// When the tables last changed.
    changed: SystemTime,
    refused: Option<Refused>,
}

/// The last edit, if it was refused.
#[derive(Clone, Debug)]
pub struct Refused {
    /// All problems of the edit.
    pub why: String,
    /// When the edit was seen.
    pub at: SystemTime,
}

impl Control {
    pub(crate) fn new(settings: Settings, process: Arc<Process>, workers: Vec<Arc<Worker>>) -> Control {
        let tables = process.tables.load_full();
        let state = CompilerState::of_file(&tables);
        let names = state.targets();
        let answers = Answers::default();
        answers.keep_only(&names);
        Control {
            names: watch::Sender::new(names),
            wanted: watch::Sender::new(certificates::wanted(&tables, &state)),
            answers,
            gateways: state.gateways(),
            matrix: Found::default(),
            report: watch::Sender::default(),
            process,
            workers,
            phase: watch::Sender::new(Phase::Serving),
            is_leaving: AtomicBool::new(false),
            has_tables: AtomicBool::new(false),
            following: watch::Sender::new(Following::nobody()),
            state: OnceLock::new(),
            renewal: Arc::default(),
            started: SystemTime::now(),
            written: settings.fixed,
            compiler: Mutex::new(Compiler { resolved: Resolved::new(), state }),
            status: Mutex::new(StatusData { changed: SystemTime::now(), refused: None }),
            retired: Retired::default(),
            recheck: Notify::new(),
            leave: Notify::new(),
            broken: AtomicBool::new(false),
            given_up: OnceLock::new(),
        }
    }

    fn compiler(&self) -> MutexGuard<'_, Compiler> {
        self.compiler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> MutexGuard<'_, StatusData> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the fixed settings as written; `process.fixed` has them after the descriptor limit was applied.
    pub(crate) fn written(&self) -> &Fixed {
        &self.written
    }

    /// Whether the gateway runs on exactly these settings.
    pub(crate) fn runs(&self, settings: &Settings) -> bool {
        self.written == settings.fixed && *self.configured() == settings.live
    }

    /// Applies an edit as a whole. An edit of keys that are bound at start is refused and changes nothing.
    ///
    /// # Errors
    /// The keys that need a restart, or the certificate that cannot be used.
    pub fn apply(&self, edit: Settings) -> Result<(), String> {
        if let Some(keys) = needs_restart(&self.written, &edit.fixed) {
            return Err(format!(
                "{keys} cannot change while the gateway runs; restart the gateway or revert the change"
            ));
        }
        // Before the lock: files are read.
        let ends = self.ends_for(&edit.live)?;
        let mut compiler = self.compiler();
        if *self.configured() != edit.live {
            let live = Arc::new(edit.live);
            self.change(&mut compiler, |next| {
                next.equip(Arc::new(ends));
                next.read(live);
            });
        }
        drop(compiler);
        self.status().refused = None;
        self.process.metrics.reloads.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Replaces all learned services. Where the file has the same host and port, the file's service stays in use.
    pub fn replace_learned(&self, services: &[Arc<Service>]) {
        self.change(&mut self.compiler(), |next| next.learn_all(services));
        self.has_tables.store(true, Relaxed);
    }

    /// Replaces the learned services of these hosts only.
    pub fn replace_learned_hosts(&self, hosts: impl Iterator<Item = (HostPattern, Vec<Service>)>) {
        self.change(&mut self.compiler(), |next| {
            for (host, services) in hosts {
                next.learn(&host, services);
            }
        });
        self.has_tables.store(true, Relaxed);
    }

    /// Changes what the agent has told of bindings and callers.
    pub(crate) fn bind(&self, change: impl FnOnce(&mut LearnedBindings)) {
        self.change(&mut self.compiler(), |next| next.bind(change));
    }

    /// Returns the settings of the file, without learned services.
    pub fn configured(&self) -> Arc<Live> {
        Arc::clone(&self.process.tables.load().live)
    }

    fn change(&self, compiler: &mut Compiler, change: impl FnOnce(&mut SnapshotBuilder<'_>)) {
        if !self.swap(compiler, change) {
            return;
        }
        if compiler.state.take_new_doors() {
            self.set_wanted(certificates::wanted(&self.process.tables.load(), &compiler.state));
        }
        let Some(names) = compiler.state.take_new_targets() else { return };
        // A name that comes back later is resolved again instead of using its old addresses.
        compiler.resolved.retain(|name, _| names.binary_search(name).is_ok());
        self.names.send_if_modified(|known| {
            let is_news = *known != names;
            *known = names;
            is_news
        });
    }

    /// Records a refused edit.
    pub fn refuse(&self, why: String) {
        tracing::error!(%why, "configuration refused; keeping the last valid tables");
        self.process.metrics.reloads_refused.fetch_add(1, Relaxed);
        self.status().refused = Some(Refused { why, at: SystemTime::now() });
    }

    /// Applies resolved names. Names that are not in `answers` keep their addresses.
    pub fn replace_addresses(&self, mut answers: Resolved) {
        let mut compiler = self.compiler();
        answers.retain(|name, _| self.names.borrow().binary_search(name).is_ok());
        let changes = answers.iter().any(|(name, addresses)| compiler.resolved.get(name) != Some(addresses));
        if changes {
            compiler.resolved.extend(answers);
            self.swap(&mut compiler, |next| next.resolve());
        }
    }

    /// When the tables last changed.
    #[must_use]
    pub fn changed(&self) -> SystemTime {
        self.status().changed
    }

    /// Returns the last edit if it was refused.
    #[must_use]
    pub fn last_refused(&self) -> Option<Refused> {
        self.status().refused.clone()
    }

    /// Compiles and swaps the tables; false if nothing changed.
    fn swap(&self, compiler: &mut Compiler, change: impl FnOnce(&mut SnapshotBuilder<'_>)) -> bool {
        let started = Instant::now();
        let before = self.process.tables.load_full();
        let is_own = |address| self.process.is_own(address);
        let mut next = SnapshotBuilder::after(&before, &mut compiler.state, (&compiler.resolved, &is_own));
        change(&mut next);
        if !next.is_news() {
            return false;
        }
        let (rebuilt, probed) = (next.rebuilt(), next.take_probed());
        let after = next.done();
        tracing::info!(epoch = after.epoch, services = after.len(), rebuilt, took = ?started.elapsed(), "tables swapped");
        self.status().changed = SystemTime::now();
        let after = Arc::new(after);
        let retired = self.process.tables.swap(Arc::clone(&after));
        if !Arc::ptr_eq(&retired.bindings, &after.bindings) {
            self.process.binding_sockets.want(&self.process.fixed.binds, &after.bindings);
        }
        self.process.health.probe(probed);
        self.retired.push(retired, rebuilt);
        true
    }

    /// Ready: serving, every endpoint name looked up once, and an agent reached if any is configured. Reads atomics
    /// and never blocks.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.why_not_ready().is_none()
    }

    /// Returns the reason if the gateway is not ready.
    #[must_use]
    pub fn why_not_ready(&self) -> Option<&'static str> {
        if self.is_leaving.load(Relaxed) {
            Some("draining")
        } else if self.answers.are_awaited() {
            Some("endpoint host names are not resolved yet")
        } else if self.written.xds.is_some() && !self.has_tables.load(Relaxed) {
            Some("no agent reached yet")
        } else {
            None
        }
    }

    fn enter(&self, phase: Phase) {
        self.is_leaving.store(phase != Phase::Serving, Relaxed);
        self.phase.send_replace(phase);
    }

    /// Checks the configuration file now, without waiting for a file event.
    pub fn recheck_file(&self) {
        self.recheck.notify_one();
    }

    /// Maximum duration of a drain.
    #[must_use]
    pub fn longest_drain(&self) -> Duration {
        let rules = &self.process.tables.load().live.drain;
        rules.accept_for.saturating_add(rules.window)
    }

    /// Starts a drain; further calls have no effect.
    pub fn drain(&self) {
        self.leave.notify_one();
    }

    /// Closes open connections at once and ends.
    pub fn end(&self) {
        self.enter(Phase::Over);
    }

    /// Waits for a drain request, drains, and returns when the gateway has ended.
    pub(crate) async fn until_over(&self) {
        let mut phase = self.phase.subscribe();
        let over = phase.wait_for(|phase| *phase == Phase::Over);
        tokio::select! {
            _ = over => {}
            () = self.drain_in_order() => self.end(),
        }
    }

    async fn drain_in_order(&self) {
        self.leave.notified().await;
        let rules = self.process.tables.load().live.drain.clone();
        tracing::info!(accept_for = ?rules.accept_for, window = ?rules.window, "draining");
        self.enter(Phase::Leaving);
        tokio::time::sleep(rules.accept_for).await;
        self.enter(Phase::Closing { since: socket::now(), window: rules.window });
        let _in_time = tokio::time::timeout(rules.window, self.empty()).await;
    }

    /// Waits until no connection is open or closing.
    pub(crate) async fn empty(&self) {
        // Listeners close a moment after the phase changes; queued connections are accepted first.
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        tick.tick().await;
        loop {
            tick.tick().await;
            if self.process.tasks.load(Relaxed) == 0 {
                return;
            }
        }
    }

    /// Ends the gateway because a core task has failed.
    pub(crate) fn break_down(&self, error: &dyn std::fmt::Display) {
        tracing::error!(%error, "core task failed; stopping the gateway");
        self.broken.store(true, Relaxed);
        self.end();
    }

    /// Ends the gateway because something it needs was refused.
    pub(crate) fn give_up(&self, why: String) {
        tracing::error!(why, "stopping the gateway");
        let _first = self.given_up.set(why);
        self.end();
    }

    /// Returns why the gateway gave up, if it did.
    #[must_use]
    pub fn why_given_up(&self) -> Option<&str> {
        self.given_up.get().map(String::as_str)
    }

    /// Whether a core task failed.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;
    use std::thread;

    use super::*;
    use crate::admin::pages;
    use crate::binding_sockets::BindingSockets;
    use crate::config;
    use crate::limits::Limits;
    use crate::log::LineLog;
    use crate::metrics::{Metrics, collect};
    use crate::snapshot::Snapshot;
    use crate::worker::Logs;

    fn control(text: &str) -> Control {
        let settings = config::parse(text, Path::new("gateway.yaml")).unwrap();
        let tables = Snapshot::compile(settings.live.clone(), &Resolved::new(), None, &|_| false);
        let metrics = Arc::new(Metrics::new(1, 1, 0));
        let access = Arc::new(LineLog::new("access-log", 1, 1, Arc::clone(&metrics.log_dropped)));
        let limits = Limits::new(1_024, 0, 0, 1);
        let binding_sockets = BindingSockets::new(&settings.fixed.binds, 0);
        let logs = Logs { access, audit: None };
        let process = Process::new(settings.fixed.clone(), tables, (limits, binding_sockets), metrics, logs);
        Control::new(settings, Arc::new(process), Vec::new())
    }

    #[test]
    fn readiness_metrics_and_pages_do_not_wait_for_table_compilation() {
        let control = control(
            "listeners: [{ address: '127.0.0.1:0' }]\nxds: { agents: ['127.0.0.1:1'] }\n\
             node: { cluster: east }\ntrust: { certificate: a, key: b, bundles: c }\n",
        );
        let _compiling = control.compiler();
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(control.why_not_ready(), Some("no agent reached yet"));
                assert!(collect::text(&control).contains("isthmus_tables_epoch 1\n"));
                for path in ["/status", "/config", "/services"] {
                    let answer = pages::page(path, &pages::Params::default(), &control);
                    assert_eq!(answer.status(), hyper::StatusCode::OK, "{path}");
                }
                tell.send(())
            });
            told.recv_timeout(Duration::from_secs(30)).expect("a page waits for the compiler");
        });
    }
}
