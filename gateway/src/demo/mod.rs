//! `demo`: two clusters of different trust domains on loopback and in one process, east with services that demand
//! mTLS, west with their client. They join by a token; then west discovers and calls what east exports. It takes the
//! product's own way everywhere: agents and gateways on their files, real sockets, real certificates; the only things
//! arranged are that an endpoint dies and an agent ends. Not a test of speed.

mod agent;
mod call;
mod cluster;
mod domain;
mod failover;
mod joining;
mod next;
mod outage;
mod reload;
mod screen;
mod service;
mod tour;
mod world;

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_certs::signals::{self, Heard, end_within};
use tokio::sync::Notify;

use self::screen::Screen;
use self::world::World;
use isthmus_core::drain::Phase;

/// Everything up to "what to try next", on a slow machine too.
const LONGEST: Duration = Duration::from_secs(60);

/// For what agents and gateways tell each other; the slowest of them look once a second, and wait a few before they
/// come back to who was away.
const PATIENCE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(10);
/// Its four parts may take a second each to end.
const END: Duration = Duration::from_secs(5);

/// Why the demo did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// Something that the demo stands on is missing.
    #[error("cannot {what}")]
    Cannot {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// It did not come to its end.
    #[error("the demo did not finish within {LONGEST:?}; is the machine overloaded?")]
    TooSlow,
    /// Ctrl-C or SIGTERM before everything was shown.
    #[error("stopped before everything was shown")]
    Stopped,
    /// What was promised did not happen.
    #[error("{} of {of} promises broken: {}", .broken.len(), .broken.join("; "))]
    Promises {
        /// Each broken promise.
        broken: Vec<String>,
        /// How many were checked.
        of: usize,
    },
}

impl Broken {
    fn cannot<E: Into<Box<dyn Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> Broken {
        move |cause| Broken::Cannot { what, cause: cause.into() }
    }
}

/// Runs the demo on stdout; with `once` to its end, otherwise until Ctrl-C or SIGTERM.
///
/// # Errors
/// Whatever kept it from running, or every promise that was broken.
pub(crate) fn run(once: bool) -> Result<(), Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Broken::cannot("start a runtime"))?;
    runtime.block_on(demo(once))
}

async fn demo(once: bool) -> Result<(), Broken> {
    let stop = Stop::listen().map_err(Broken::cannot("listen for signals"))?;
    let mut screen = Screen::new();
    let story = tokio::time::timeout(LONGEST, story(&mut screen));
    let world = tokio::select! {
        shown = story => shown.map_err(|_| Broken::TooSlow)??,
        () = stop.asked() => return Err(Broken::Stopped),
    };
    if !once {
        next::show(&mut screen, &world)?;
        let phases = [&world.east, &world.west].map(|cluster| cluster.gateway.control.phase.subscribe());
        let [mut east, mut west] = phases;
        tokio::select! {
            () = stop.asked() => {}
            _ = east.wait_for(|phase| *phase == Phase::Over) => {}
            _ = west.wait_for(|phase| *phase == Phase::Over) => {}
        }
    }
    screen.step("Shutdown");
    screen.promise("both gateways and both agents stopped cleanly", world.close().await);
    if once {
        screen.dim("Without --once the demo keeps running and prints curl and openssl commands to try.");
    }
    screen.verdict()
}

async fn story(screen: &mut Screen) -> Result<World, Broken> {
    let mut world = World::start(screen).await?;
    joining::call_in_vain(screen, &world).await?;
    let joined = joining::join_by_token(screen, &world).await?;
    tour::call_by_name(screen, &world, joined).await;
    reload::add_a_service(screen, &world).await?;
    tour::meet_refusals(screen, &world).await?;
    failover::kill_under_traffic(screen, &mut world).await?;
    outage::end_an_agent(screen, &mut world).await?;
    Ok(world)
}

/// Tries until there is something, for [`PATIENCE`] at most.
async fn until<T>(mut attempt: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        let found = attempt().await;
        if found.is_some() || Instant::now() >= end {
            return found;
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Somebody wants the demo to end.
struct Stop(Arc<Notify>);

impl Stop {
    fn listen() -> io::Result<Stop> {
        let asked = Arc::new(Notify::new());
        let stop = Stop(Arc::clone(&asked));
        signals::follow(move |heard| match heard {
            Heard::End => {
                end_within(END);
                asked.notify_one();
            }
            Heard::LookAgain => tracing::warn!("SIGHUP: ignored; edits are applied without it"),
            Heard::Useless(name) => tracing::warn!("{name}: ignored; SIGTERM ends the demo"),
        })?;
        Ok(stop)
    }

    async fn asked(&self) {
        self.0.notified().await;
    }
}
