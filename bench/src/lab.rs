//! What every measurement needs besides the system: the places, the window, the end of it all.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::hello::Hello;
use crate::place::Place;
use crate::stop::Stop;

/// Made once a run.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) loopback: Place,
    /// Made when first asked for, because it takes privileges; or why that failed.
    veth: OnceLock<Result<Place, String>>,
    hello: Arc<Hello>,
    pub(crate) stop: Stop,
    /// How long a measurement lasts.
    pub(crate) window: Duration,
    /// How often each is made.
    pub(crate) rounds: u16,
    /// What this program and each proxy may have open.
    pub(crate) descriptors: u64,
}

impl Lab {
    pub(crate) fn new(window: Duration, rounds: u16, descriptors: u64, stop: Stop) -> anyhow::Result<Self> {
        let hello = Arc::new(Hello::new()?);
        let loopback = Place::loopback(&hello)?;
        Ok(Self { loopback, veth: OnceLock::new(), hello, stop, window, rounds, descriptors })
    }

    /// # Errors
    /// When there are no veth pairs to be had here.
    pub(crate) fn veth(&self) -> io::Result<&Place> {
        let made = self.veth.get_or_init(|| Place::veth(&self.hello).map_err(|why| format!("{why:#}")));
        made.as_ref().map_err(|why| io::Error::new(io::ErrorKind::Unsupported, why.clone()))
    }

    pub(crate) fn place(&self, veth: bool) -> io::Result<&Place> {
        if veth { self.veth() } else { Ok(&self.loopback) }
    }
}
