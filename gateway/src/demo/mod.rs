//! Runs the demo: two clusters of different trust domains on loopback in one process, east with services that
//! require mTLS, west with their client. They join by a token; then west discovers and calls what east exports.
//! Agents and gateways run on their own files with real sockets and certificates; only the death of an endpoint
//! and the stop of an agent are staged. It does not measure speed.

mod agent;
mod call;
mod cluster;
mod domain;
mod failover;
mod finale;
mod joining;
mod next;
mod outage;
mod plain;
mod reload;
mod screen;
mod service;
mod tour;
mod traffic;
mod world;

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_certs::signals::{self, Signal, end_within};
use tokio::sync::Notify;

use self::screen::Screen;
use self::world::World;
use isthmus_core::drain::Phase;

/// Time limit for everything up to "What to try next", with room for a slow machine.
const LONGEST: Duration = Duration::from_secs(60);

/// Time limit for updates between agents and gateways; the slowest poll once a second and wait a few seconds
/// before they reconnect.
const PATIENCE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(10);
/// The longest end: each of the four programs may take a second, and one more for the rest.
const END: Duration = Duration::from_secs(5);

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// A prerequisite failed.
    #[error("cannot {what}")]
    Cannot {
        /// The attempted action.
        what: &'static str,
        /// The cause of the failure.
        #[source]
        cause: Box<dyn Error + Send + Sync>,
    },
    /// The time limit passed.
    #[error("the demo did not finish within {LONGEST:?}; is the machine overloaded?")]
    TooSlow,
    /// Ctrl-C or SIGTERM before everything was shown.
    #[error("stopped before everything was shown")]
    Stopped,
    /// Some promises were not kept.
    #[error("{} of {of} promises broken: {}", .broken.len(), .broken.join("; "))]
    Promises {
        /// The broken promises.
        broken: Vec<String>,
        /// Number of promises checked.
        of: usize,
    },
}

impl Broken {
    fn cannot<E: Into<Box<dyn Error + Send + Sync>>>(what: &'static str) -> impl FnOnce(E) -> Broken {
        move |cause| Broken::Cannot { what, cause: cause.into() }
    }
}

/// Runs the demo on stdout: with `once` to its end, otherwise until Ctrl-C or SIGTERM.
///
/// # Errors
/// What kept it from running, or every broken promise.
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
    plain::call_without_tls(screen, &world).await?;
    finale::move_and_return(screen, &mut world).await?;
    Ok(world)
}

/// Retries until the attempt returns a value, for [`PATIENCE`] at most.
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

/// A request to stop the demo.
struct Stop(Arc<Notify>);

impl Stop {
    fn listen() -> io::Result<Stop> {
        let asked = Arc::new(Notify::new());
        let stop = Stop(Arc::clone(&asked));
        signals::listen(move |heard| match heard {
            Signal::End => {
                end_within(END);
                asked.notify_one();
            }
            Signal::Reload => tracing::warn!("SIGHUP: ignored; edits are applied without it"),
            Signal::Unused(name) => tracing::warn!("{name}: ignored; SIGTERM ends the demo"),
        })?;
        Ok(stop)
    }

    async fn asked(&self) {
        self.0.notified().await;
    }
}
