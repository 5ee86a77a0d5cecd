//! Measures the CPU time of all programs on a path: both ends, the gateway and the ingress. It excludes the
//! emulated WAN, and with it the kernel's processing of arriving packets.

use std::io;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::service::Service;
use crate::proc::Process;

/// The programs on the paths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meters<'a> {
    pub(super) service: &'a Service,
    pub(super) gateway: u32,
    pub(super) ingress: u32,
}

/// CPU time of one action.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) client: Duration,
    pub(super) service: Duration,
    pub(super) gateway: Duration,
    pub(super) ingress: Duration,
}

impl Meters<'_> {
    /// Measures an action of the calling thread, which is the client.
    pub(super) fn during<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<(T, Cost)> {
        let others = self.others()?;
        let client = thread_cpu();
        let done = act()?;
        let client = thread_cpu().saturating_sub(client);
        let now = self.others()?;
        let cost = Cost {
            client,
            service: now.service.saturating_sub(others.service),
            gateway: now.gateway.saturating_sub(others.gateway),
            ingress: now.ingress.saturating_sub(others.ingress),
        };
        Ok((done, cost))
    }

    fn others(&self) -> io::Result<Cost> {
        let of = |pid: u32| Ok::<_, io::Error>(Process::sum(&[pid])?.on_cpu);
        let (gateway, ingress) = (of(self.gateway)?, of(self.ingress)?);
        Ok(Cost { client: Duration::ZERO, service: self.service.cpu(), gateway, ingress })
    }
}

impl Cost {
    /// The CPU time of client and service.
    pub(super) fn ends(&self) -> Duration {
        self.client + self.service
    }

    pub(super) fn total(&self) -> Duration {
        self.ends() + self.gateway + self.ingress
    }
}

/// CPU time of the calling thread.
pub(super) fn thread_cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}
