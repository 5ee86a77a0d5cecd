//! The environment of all measurements: places, measurement window, limits and stop flag.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::ends::World;
use crate::hello::Hello;
use crate::place::Place;
use crate::stop::Stop;

/// The environment of a run.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) loopback: Place,
    /// Created on first use, as it requires privileges; or the error.
    veth: OnceLock<Result<Place, String>>,
    /// Created on first use; or the error.
    ends: OnceLock<Result<World, String>>,
    hello: Arc<Hello>,
    pub(crate) stop: Stop,
    /// Length of a measurement.
    pub(crate) window: Duration,
    /// Number of rounds.
    pub(crate) rounds: u16,
    /// Descriptor limit of this program and of each proxy.
    pub(crate) descriptors: u64,
}

impl Lab {
    pub(crate) fn new(window: Duration, rounds: u16, descriptors: u64, stop: Stop) -> anyhow::Result<Self> {
        let hello = Arc::new(Hello::new()?);
        let loopback = Place::loopback(&hello)?;
        let (veth, ends) = (OnceLock::new(), OnceLock::new());
        Ok(Self { loopback, veth, ends, hello, stop, window, rounds, descriptors })
    }

    /// # Errors
    /// If veth pairs cannot be created.
    pub(crate) fn veth(&self) -> io::Result<&Place> {
        let made = self.veth.get_or_init(|| Place::veth(&self.hello).map_err(|why| format!("{why:#}")));
        made.as_ref().map_err(|why| io::Error::new(io::ErrorKind::Unsupported, why.clone()))
    }

    /// # Errors
    /// If certificates or services with TLS cannot be made.
    pub(crate) fn ends(&self) -> io::Result<&World> {
        let plain = self.loopback.backend.address;
        let made =
            self.ends.get_or_init(|| World::start(plain, &self.hello).map_err(|why| format!("{why:#}")));
        made.as_ref().map_err(|why| io::Error::other(why.clone()))
    }

    pub(crate) fn place(&self, veth: bool) -> io::Result<&Place> {
        if veth { self.veth() } else { Ok(&self.loopback) }
    }
}
