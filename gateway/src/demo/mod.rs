//! `demo`: services that demand mTLS behind one gateway, called by name, on loopback and in one process. It
//! takes the product's own way everywhere: a configuration file, real sockets, real certificates; the only
//! thing arranged is that an endpoint dies. Not a test of speed, and not two clusters yet.

mod call;
mod failover;
mod next;
mod reload;
mod screen;
mod service;
mod tour;
mod trust;
mod world;

use std::error::Error;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::screen::Screen;
use self::world::World;
use crate::drain::Phase;

/// Everything up to "what to try next", on a slow machine too.
const LONGEST: Duration = Duration::from_secs(60);

/// Why the demo did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
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
    #[error("the demo did not end within {LONGEST:?}; is the machine overloaded?")]
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
pub fn run(once: bool) -> Result<(), Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Broken::cannot("start a runtime"))?;
    runtime.block_on(demo(once))
}

async fn demo(once: bool) -> Result<(), Broken> {
    let mut stop = Stop::listen().map_err(Broken::cannot("listen for signals"))?;
    let mut screen = Screen::new();
    let story = tokio::time::timeout(LONGEST, story(&mut screen));
    let world = tokio::select! {
        shown = story => shown.map_err(|_| Broken::TooSlow)??,
        () = stop.asked() => return Err(Broken::Stopped),
    };
    if !once {
        next::show(&mut screen, &world)?;
        let mut phase = world.control.phase.subscribe();
        tokio::select! {
            () = stop.asked() => {}
            _ = phase.wait_for(|phase| *phase == Phase::Over) => {}
        }
    }
    screen.step("The end");
    screen.promise("the gateway ended in order", world.close());
    if once {
        screen.dim("Without --once it keeps running here, with curl and openssl lines to try.");
    }
    screen.verdict()
}

async fn story(screen: &mut Screen) -> Result<World, Broken> {
    let mut world = World::start(screen).await?;
    tour::call_by_name(screen, &world).await;
    tour::meet_refusals(screen, &world).await;
    failover::kill_under_traffic(screen, &mut world).await?;
    reload::add_a_service(screen, &world).await?;
    Ok(world)
}

/// Somebody wants the demo to end.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> io::Result<Stop> {
        Ok(Stop { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
