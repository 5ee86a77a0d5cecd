//! Follows what supplies services beside the file: nothing, agents, or a control plane, after the first certificate
//! has been issued. Runs on a thread of its own, which decodes what arrives and compiles the tables.

use std::io;
use std::sync::Arc;

use isthmus_certs::Trust;

use crate::config::settings::{ControlPlane, Source, Target};
use crate::control::Control;
use crate::drain::Phase;
use crate::enrol::{self, First, Startup};
use crate::{control_plane, learn, report};

/// The source of the gateway's services.
pub(crate) enum ServiceSource {
    /// The gateway's own file alone.
    File,
    /// Agents or control plane, after the first certificate has been issued.
    Enrolling(First),
    Agents(Box<learn::Follow>, Workloads),
    ControlPlane(ControlPlane, Trust),
}

/// Who issues the certificates of callers and services, and to whom.
pub(crate) struct Workloads {
    agents: Vec<Target>,
    trust: Trust,
}

impl ServiceSource {
    /// Sets up the source before any connection is accepted, so that persisted tables serve the first one.
    ///
    /// # Errors
    /// TLS cannot be configured from the trust.
    pub(crate) fn begin(startup: Startup, control: &Arc<Control>) -> io::Result<ServiceSource> {
        match startup {
            Startup::Enrolling(first) => Ok(ServiceSource::Enrolling(first)),
            Startup::NoIdentity | Startup::Ready(_) => ServiceSource::with_identity(control),
        }
    }

    fn with_identity(control: &Arc<Control>) -> io::Result<ServiceSource> {
        let fixed = &control.process.fixed;
        let Some((xds, trust)) = fixed.xds.clone().zip(control.process.trust.get().cloned()) else {
            return Ok(ServiceSource::File);
        };
        Ok(match xds.source {
            Source::Agents(agents) => {
                let workloads = Workloads { agents: agents.clone(), trust: trust.clone() };
                let follow = learn::Follow::begin(agents, xds.state.as_deref(), trust, Arc::clone(control))?;
                ServiceSource::Agents(Box::new(follow), workloads)
            }
            Source::ControlPlane(one) => ServiceSource::ControlPlane(one, trust),
        })
    }

    /// Follows until the gateway has ended. Blocks its thread while tables are compiled.
    pub(crate) async fn follow_until_over(self, control: Arc<Control>) -> io::Result<()> {
        let mut phase = control.phase.subscribe();
        tokio::select! {
            // First: once the gateway has ended, the runtime's timers may be gone.
            biased;
            _ = phase.wait_for(|phase| *phase == Phase::Over) => Ok(()),
            followed = self.run(Arc::clone(&control)) => followed,
        }
    }

    async fn run(self, control: Arc<Control>) -> io::Result<()> {
        match self {
            ServiceSource::File => Ok(()),
            ServiceSource::Enrolling(first) => {
                let _files = match enrol::awaited(&first, &control).await {
                    Ok(files) => files,
                    Err(error) => {
                        control.give_up(format!("trust: {error}"));
                        return Ok(());
                    }
                };
                let next = ServiceSource::with_identity(&control)?;
                Box::pin(next.run(control)).await
            }
            ServiceSource::Agents(follow, Workloads { agents, trust }) => {
                let reporting = report::keep(agents.clone(), trust.clone(), Arc::clone(&control));
                let reporting = tokio::spawn(reporting);
                let issuing = tokio::spawn(enrol::workloads::keep(agents, trust, Arc::clone(&control)));
                let renewing = tokio::spawn(enrol::keep(control));
                let (followed, renewed, issued, reported) =
                    tokio::join!(follow.run(), renewing, issuing, reporting);
                let others = [renewed, issued, reported];
                others.into_iter().try_fold((), |(), ended| ended.map_err(io::Error::other)?).and(followed)
            }
            ServiceSource::ControlPlane(one, trust) => {
                let renewing = tokio::spawn(enrol::keep(Arc::clone(&control)));
                let (followed, renewed) = tokio::join!(control_plane::run(one, trust, control), renewing);
                followed.and(renewed.map_err(io::Error::other)?)
            }
        }
    }
}
