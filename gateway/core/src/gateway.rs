//! Runs a whole gateway: binds its sockets, starts and supervises its threads. There is one thread for each worker,
//! one for control, one for the source of services, one each for admin, metrics and health, and one for the access log.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::trust;
use isthmus_grpc::budget::raise_descriptor_limit;
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::audit::AuditFile;
use crate::binding_sockets::BindingSockets;
use crate::config::settings::Settings;
use crate::control::Control;
use crate::drain::{self, Phase};
use crate::ends::{self, Ends};
use crate::enrol::{self, Startup};
use crate::limits::Limits;
use crate::listen::{self, Accepted, Lane};
use crate::live::Live;
use crate::log::LineLog;
use crate::metrics::Metrics;
use crate::service_source::ServiceSource;
use crate::snapshot::{Resolved, Snapshot};
use crate::socket;
use crate::threads::{Ended, Threads, spawn_apart};
use crate::worker::{Bound, Logs, Process, Worker};
use crate::{admin, matrix, prober, recheck, resolve, watch as file};

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    control: Arc<Control>,
    bound: Vec<Bound>,
    threads: Threads,
    writes_log: bool,
    _trust: Option<trust::Watch>,
}

/// Why a gateway did not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address could not be bound.
    #[error("cannot listen on {address} ({what}): {source}; {}", remedy_of(source))]
    Bind {
        /// `listener NAME`, `admin`, `metrics` or `health`.
        what: String,
        /// The configured address.
        address: SocketAddr,
        /// The kernel's error.
        source: io::Error,
    },
    /// The identity or the trust cannot be used.
    #[error("trust: {0}")]
    Trust(#[from] enrol::Error),
    /// The certificate of a caller or of a service cannot be used.
    #[error(transparent)]
    Ends(#[from] ends::Error),
    /// The audit log cannot be written.
    #[error("audit_log: cannot append to {}: {source}; name a regular file that this user may write", file.display())]
    Audit {
        /// The file.
        file: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Something the gateway needs was refused while it ran.
    #[error("{0}")]
    GivenUp(String),
    /// A thread or runtime could not be created.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    /// The connection to agents or a control plane cannot be set up.
    #[error("xds: {0}")]
    Follow(io::Error),
    /// A core thread ended, so the process must end.
    #[error("a core thread ended unexpectedly; this is a bug, please report it with the log above")]
    CoreEnded,
}

fn remedy_of(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM) => {
            "TPROXY needs CAP_NET_RAW: add it (AmbientCapabilities), or use `original_destination: redirect`"
        }
        _ => "is another process there? check with `ss -ltnp`",
    }
}

/// Descriptors for everything but connections, pipes and lingering refusals: runtimes, admin connections, logs, the
/// resolver, and probes.
const RESERVE: u64 = 48 + prober::DESCRIPTORS + matrix::AT_ONCE as u64;
const RESERVE_PER_WORKER: u64 = 8;
/// At most one pipe for this many descriptors.
const PIPE_SHARE: u64 = 32;

impl Gateway {
    /// Binds all sockets and starts the threads. With `file`, its edits are applied.
    ///
    /// # Errors
    /// [`Error::Bind`] or [`Error::Thread`].
    pub fn start(settings: Settings, file: Option<PathBuf>) -> Result<Gateway, Error> {
        let startup = Startup::load(settings.fixed.trust.as_ref())?;
        let ends = Ends::load(&settings.live, settings.fixed.trust.as_ref(), &Ends::default())?;
        let process = Arc::new(process(&settings, &startup, ends));
        let fixed = &process.fixed;
        let mut sockets = BoundSockets::open(&settings)?;
        let bound = std::mem::take(&mut sockets.bound);
        let _once = process.own.set(bound.clone());
        for bound in &bound {
            tracing::info!(what = %bound.what, address = %bound.address, "listening");
        }
        let workers: Vec<_> = (0..)
            .zip(&process.metrics.workers)
            .map(|(index, counters)| Arc::new(Worker::new(index, &process, counters)))
            .collect();
        process.limits.hellos.watch(workers.iter().map(|worker| Arc::clone(&worker.live)).collect());
        let log = fixed.access_log.enabled.then(|| process.logs.access.start(io::stdout())).transpose()?;
        start_audit(&process)?;
        let trust = process.trust.get().zip(fixed.trust.as_ref());
        let trust = trust.map(|(trust, trusts)| trust.watch(trusts.files())).transpose()?;
        let control = Arc::new(Control::new(settings, Arc::clone(&process), workers.clone()));

        let services = ServiceSource::begin(startup, &control).map_err(Error::Follow)?;
        let (lanes, takers): (Vec<_>, Vec<_>) = workers
            .iter()
            .map(|worker| {
                let (door, taker) = mpsc::unbounded_channel();
                (Lane { worker: Arc::clone(worker), door }, taker)
            })
            .unzip();
        let lanes: Arc<[Lane]> = lanes.into();
        let mut threads = Threads::none();
        for ((worker, taker), listeners) in workers.iter().zip(takers).zip(sockets.listeners) {
            let work = Work {
                listeners,
                lanes: Arc::clone(&lanes),
                taker,
                worker: Arc::clone(worker),
                control: Arc::clone(&control),
            };
            threads.spawn(format!("worker-{}", worker.index), work.run())?;
        }
        threads.spawn("control".into(), supervise(Arc::clone(&control), file, services))?;
        let [admin, metrics, health] = sockets.plain;
        // Separate threads: heavy use of one does not delay the others, and none waits for table compilation.
        let on = || Arc::clone(&control);
        threads.spawn("admin".into(), serve_until_over(on(), admin::serve_admin(admin, on())))?;
        threads.spawn("metrics".into(), serve_until_over(on(), admin::serve_metrics(metrics, on())))?;
        threads.spawn("health".into(), serve_until_over(on(), admin::serve_health(health, on())))?;
        // Likewise: making ClientHellos takes a part of a core.
        threads.spawn("prober".into(), serve_until_over(on(), prober::run(on())))?;
        Ok(Gateway { control, bound, threads, writes_log: log.is_some(), _trust: trust })
    }

    /// Returns the bound addresses.
    #[must_use]
    pub fn bound(&self) -> &[Bound] {
        &self.bound
    }

    /// Returns the control handle.
    #[must_use]
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Starts a drain; [`Gateway::wait`] returns when it has finished.
    pub fn drain(&self) {
        self.control.drain();
    }

    /// Closes open connections at once and ends.
    pub fn end(&self) {
        self.control.end();
    }

    /// Waits for the end and for the last access log line, but at most a second after the gateway has ended, whatever
    /// a thread or the reader of the log does.
    ///
    /// # Errors
    /// [`Error::CoreEnded`].
    pub fn wait(self) -> Result<(), Error> {
        let ended = self.threads.end_within(THREAD_TIME);
        if ended == Ended::NotYet {
            tracing::error!("a thread did not stop in time; exiting without it");
        }
        let logs = &self.control.process.logs;
        if self.writes_log && !logs.access.close(LOG_TIME) {
            tracing::warn!("standard output is not read; the last access log lines are lost");
        }
        if logs.audit.as_ref().is_some_and(|audit| !audit.close(LOG_TIME)) {
            tracing::warn!("the disk of the audit log hangs; its last lines are lost");
        }
        match self.control.why_given_up() {
            Some(why) => Err(Error::GivenUp(why.to_owned())),
            None if ended != Ended::Panicked && !self.control.is_broken() => Ok(()),
            None => Err(Error::CoreEnded),
        }
    }
}

/// Opens the audit log and starts its thread, if there is one.
fn start_audit(process: &Process) -> Result<(), Error> {
    let Some((log, path)) = process.logs.audit.as_ref().zip(process.fixed.audit_log.clone()) else {
        return Ok(());
    };
    let file = AuditFile::append_to(path.clone()).map_err(|source| Error::Audit { file: path, source })?;
    log.start(file)?;
    Ok(())
}

/// The sockets bound at start.
struct BoundSockets {
    /// One socket for each worker and each listener that has an address of its own, with the listener's index.
    listeners: Vec<Vec<(usize, TcpListener)>>,
    /// Admin, metrics, health.
    plain: [TcpListener; 3],
    bound: Vec<Bound>,
}

impl BoundSockets {
    fn open(settings: &Settings) -> Result<BoundSockets, Error> {
        let fixed = &settings.fixed;
        let mut bound = Vec::new();
        let mut listeners: Vec<Vec<_>> = (0..fixed.workers).map(|_| Vec::new()).collect();
        for (index, bind) in fixed.binds.iter().enumerate() {
            let Some(written) = bind.sockets.address() else { continue };
            let what = format!("listener {}", bind.name);
            let failed = |source| Error::Bind { what: what.clone(), address: written, source };
            socket::check_free(bind, written).map_err(failed)?;
            let mut address = written;
            for worker in &mut listeners {
                let listener = socket::listen(bind, address, &fixed.tcp).map_err(failed)?;
                address = listener.local_addr().map_err(failed)?;
                worker.push((index, listener));
            }
            bound.push(Bound { what, address, ipv6_only: bind.ipv6_only });
        }
        let mut plain = |what: &str, address: SocketAddr| {
            let failed = |source| Error::Bind { what: what.to_owned(), address, source };
            let listener = TcpListener::bind(address).map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            let address = listener.local_addr().map_err(failed)?;
            bound.push(Bound { what: what.to_owned(), address, ipv6_only: false });
            Ok::<_, Error>(listener)
        };
        let plain =
            [plain("admin", fixed.admin)?, plain("metrics", fixed.metrics)?, plain("health", fixed.health)?];
        Ok(BoundSockets { listeners, plain, bound })
    }
}

fn process(settings: &Settings, startup: &Startup, ends: Ends) -> Process {
    let mut fixed = settings.fixed.clone();
    startup.complete(&mut fixed);
    let reserve = RESERVE + RESERVE_PER_WORKER * fixed.workers as u64 * (1 + fixed.binds.len() as u64);
    let descriptors = raise_descriptor_limit();
    // With few descriptors, connections take precedence over pipes.
    fixed.relay.pipes =
        fixed.relay.pipes.min(usize::try_from(descriptors / PIPE_SHARE).unwrap_or(usize::MAX));
    let binding_sockets = BindingSockets::new(&fixed.binds, descriptors);
    let reserve = reserve + binding_sockets.most() as u64;
    let limits = Limits::new(descriptors, fixed.relay.pipes, reserve, fixed.binds.len());
    if limits.descriptors() < settings.live.limits.connections {
        tracing::warn!(
            descriptors,
            connections = limits.descriptors(),
            "the descriptor limit allows fewer connections than limits.connections; raise it (LimitNOFILE, ulimit -n)"
        );
    }
    let metrics = Arc::new(Metrics::new(fixed.workers, fixed.binds.len(), fixed.service_metrics));
    let buffer =
        |name, lanes, dropped| LineLog::new(name, lanes, fixed.access_log.buffer, Arc::clone(dropped));
    let logs = Logs {
        access: Arc::new(buffer("access-log", fixed.workers, &metrics.log_dropped)),
        // One more lane for rechecks of live connections.
        audit: fixed
            .audit_log
            .is_some()
            .then(|| Arc::new(buffer("audit-log", fixed.workers + 1, &metrics.audit_dropped))),
    };
    let mut tables = Snapshot::compile(settings.live.clone(), &Resolved::new(), None, &|_| false);
    tables.ends = Arc::new(ends);
    binding_sockets.want(&fixed.binds, &tables.bindings);
    let process = Process::new(fixed, tables, (limits, binding_sockets), metrics, logs);
    if let Startup::Ready(trust) = startup {
        let _once = process.trust.set(trust.clone());
    }
    process
}

/// The work of one worker thread.
struct Work {
    listeners: Vec<(usize, TcpListener)>,
    lanes: Arc<[Lane]>,
    taker: mpsc::UnboundedReceiver<Accepted>,
    worker: Arc<Worker>,
    control: Arc<Control>,
}

impl Work {
    /// Runs until the gateway has ended and its connections are closed.
    async fn run(self) {
        let Work { listeners, lanes, taker, worker, control } = self;
        let _guard = PanicGuard(Arc::clone(&control));
        let phase = || control.phase.subscribe();
        let mut core: JoinSet<io::Result<()>> = JoinSet::new();
        for (index, listener) in listeners {
            let end = listen::until_leaving(phase());
            core.spawn(listen::accept(listener, index, Arc::clone(&lanes), Arc::clone(&worker), end));
        }
        core.spawn(listen::follow_binding_sockets(lanes, Arc::clone(&worker), phase()));
        core.spawn(listen::take_over(taker, Arc::clone(&worker)));
        core.spawn(Live::sweep(Arc::clone(&worker.live)));
        let closing = drain::close(Arc::clone(&worker.live), phase());
        let closing_all = async {
            closing.await;
            let gone = control.empty();
            let _in_time = tokio::time::timeout(CLOSE_TIME, gone).await;
        };
        tokio::pin!(closing_all);
        loop {
            tokio::select! {
                () = &mut closing_all => return,
                Some(ended) = core.join_next() => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => control.break_down(&error),
                    Err(error) => control.break_down(&error),
                },
            }
        }
    }
}

/// Ends the gateway if its thread panics.
struct PanicGuard(Arc<Control>);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.break_down(&"a core thread panicked");
        }
    }
}

/// Time for closing connections after the gateway has ended.
const CLOSE_TIME: Duration = Duration::from_millis(600);
/// Then the time for threads to stop, and for the last access log line: about a second in all.
const THREAD_TIME: Duration = Duration::from_millis(750);
const LOG_TIME: Duration = Duration::from_millis(150);

/// Serves pages, or probes, until the gateway has ended.
async fn serve_until_over(control: Arc<Control>, work: impl Future<Output = io::Result<()>>) {
    let _guard = PanicGuard(Arc::clone(&control));
    let mut phase = control.phase.subscribe();
    tokio::select! {
        _ = phase.wait_for(|phase| *phase == Phase::Over) => {}
        Err(error) = work => control.break_down(&error),
    }
}

/// The control thread: supervises the source of services, edits and name resolution, and drains, until the gateway has
/// ended. What decodes or compiles runs on other threads.
async fn supervise(control: Arc<Control>, file: Option<PathBuf>, services: ServiceSource) {
    let _guard = PanicGuard(Arc::clone(&control));
    let mut core: JoinSet<io::Result<()>> = JoinSet::new();
    core.spawn(Control::free_retired(Arc::clone(&control)));
    core.spawn(resolve::run(Arc::clone(&control)));
    core.spawn(matrix::run(Arc::clone(&control)));
    core.spawn(recheck::run(Arc::clone(&control)));
    spawn_apart(&mut core, services.follow_until_over(Arc::clone(&control)));
    if let Some(file) = file {
        core.spawn(file::run(file, Arc::clone(&control)));
    }
    let end = control.until_over();
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            Some(ended) = core.join_next() => match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => control.break_down(&error),
                Err(error) => control.break_down(&error),
            },
        }
    }
    // The source's thread uses the timers of this runtime until it has ended.
    core.shutdown().await;
}
