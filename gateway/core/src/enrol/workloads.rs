//! Requests the certificates of callers and services from the agents: one at a time, each anew before it expires or when its
//! names change, with a growing pause after a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isthmus_certs::{SpiffeId, Trust};
use isthmus_trust::enrolment::{Backoff, NotIssued, Workloads};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::gateway_of;
use crate::config::settings::Target;
use crate::control::Control;
use crate::issued::{Issued, Wanted};

/// Bounds a sleep: clocks are set, and machines are suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Keeps certificates for everything that the tables need, until dropped.
///
/// # Errors
/// The gateway's own certificate cannot be used in TLS, or is not a gateway's.
pub(crate) async fn keep(agents: Vec<Target>, trust: Trust, control: Arc<Control>) -> io::Result<()> {
    let own = trust.current().identity.id().clone();
    let cluster = gateway_of(&own).and_then(|cluster| cluster.parse().ok());
    // Agents answer gateways of their cluster alone; that such a gateway is refused is seen in its slices.
    let Some(cluster) = cluster else { return std::future::pending().await };
    let agents = Workloads::new(trust.clone(), agents, &cluster).map_err(io::Error::other)?;
    let issued = Arc::clone(&control.process.tables.load().ends.issued);
    let (changed, changes) = (Arc::new(Notify::new()), Arc::clone(&issued));
    let tell = Arc::clone(&changed);
    trust.on_change(move || tell.notify_one());
    let bundles = async {
        loop {
            changed.notified().await;
            changes.use_bundles(&trust.current().bundles);
        }
    };
    let requests = Requests { agents, issued, trust: trust.clone(), asked: BTreeMap::new(), away: None };
    tokio::select! {
        () = bundles => Ok(()),
        () = requests.run(&control) => Ok(()),
    }
}

/// The requests for all identities.
struct Requests {
    agents: Workloads,
    issued: Arc<Issued>,
    trust: Trust,
    asked: BTreeMap<SpiffeId, Asked>,
    /// No agent answers: one pause for all identities.
    away: Option<Pause>,
}

/// The requests for one identity.
#[derive(Default)]
struct Asked {
    /// The names that its certificate is needed for.
    names: BTreeSet<String>,
    /// Those that it was issued for.
    issued_for: BTreeSet<String>,
    /// When it was last requested.
    at: Option<Instant>,
    /// The pause after failures.
    pause: Option<Pause>,
}

struct Pause {
    until: Instant,
    backoff: Backoff,
}

impl Pause {
    /// A pause longer than the one before.
    fn after(before: Option<Pause>) -> Pause {
        let mut backoff = before.map(|before| before.backoff).unwrap_or_default();
        Pause { until: Instant::now() + backoff.pause(), backoff }
    }
}

impl Requests {
    async fn run(mut self, control: &Control) {
        let (mut wanted, mut following) = (control.wanted.subscribe(), control.following.subscribe());
        let mut was_connected = false;
        wanted.mark_changed();
        loop {
            if wanted.has_changed().unwrap_or_default() {
                let wanted = wanted.borrow_and_update().clone();
                self.want(&wanted);
            }
            let pause = match self.next() {
                Step::Request(id) => {
                    self.request(&id).await;
                    continue;
                }
                Step::Pause(pause) => pause,
            };
            tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => wanted.mark_changed(),
                    Err(_) => return,
                },
                Ok(()) = following.changed() => {
                    let is_connected = following.borrow_and_update().connected;
                    // An agent that is back may know more than before.
                    if is_connected && !was_connected {
                        self.retry_all();
                    }
                    was_connected = is_connected;
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn want(&mut self, wanted: &Wanted) {
        let identities = wanted.identities();
        self.asked.retain(|id, _| identities.contains_key(id));
        self.issued.keep_only(identities.keys());
        for (id, names) in identities {
            let asked = self.asked.entry(id.clone()).or_default();
            if asked.names != *names {
                asked.names.clone_from(names);
                asked.pause = None;
            }
        }
        if wanted.left_out() > 0 {
            tracing::error!(
                identities = identities.len(),
                left_out = wanted.left_out(),
                "too many identities need a certificate of the agent; those left out refuse connections"
            );
        }
    }

    fn retry_all(&mut self) {
        self.away = None;
        self.asked.values_mut().for_each(|asked| asked.pause = None);
    }

    /// The identity to request now: of those that are due, the one whose last request is longest ago.
    fn next(&self) -> Step {
        let now = Instant::now();
        let away =
            self.away.as_ref().map_or(Duration::ZERO, |pause| pause.until.saturating_duration_since(now));
        let waits = self.asked.iter().map(|(id, asked)| (self.wait(id, asked, now).max(away), asked.at, id));
        match waits.min_by_key(|(wait, at, _)| (*wait, *at)) {
            Some((Duration::ZERO, _, id)) => Step::Request(id.clone()),
            Some((wait, ..)) => Step::Pause(wait.min(LONGEST_SLEEP)),
            None => Step::Pause(LONGEST_SLEEP),
        }
    }

    fn wait(&self, id: &SpiffeId, asked: &Asked, now: Instant) -> Duration {
        let until_due = self.issued.due(id).filter(|_| asked.names == asked.issued_for);
        let until_due = until_due.map(|due| due.duration_since(SystemTime::now()).unwrap_or_default());
        let pause = asked.pause.as_ref().map(|pause| pause.until.saturating_duration_since(now));
        until_due.unwrap_or_default().max(pause.unwrap_or_default())
    }

    async fn request(&mut self, id: &SpiffeId) {
        let trusted = self.trust.current();
        let domain = trusted.identity.id().trust_domain();
        let answer = if id.trust_domain() == domain {
            self.agents.certificate(id, trusted.bundles.get(domain)).await
        } else {
            Err(NotIssued::Refused(format!("it is of another trust domain than this gateway ({domain})")))
        };
        let Some(asked) = self.asked.get_mut(id) else { return };
        asked.at = Some(Instant::now());
        let why = match answer {
            Ok(identity) => {
                tracing::info!(identity = %id, "certificate received from the agent");
                self.issued.accept(identity, &self.trust.current().bundles);
                asked.issued_for.clone_from(&asked.names);
                // Whatever the certificate says, the next request is not at once.
                (asked.pause, self.away) = (Some(Pause::after(None)), None);
                return;
            }
            Err(NotIssued::Unanswered(why)) => {
                self.away = Some(Pause::after(self.away.take()));
                why
            }
            Err(NotIssued::Refused(why)) => why,
        };
        asked.pause = Some(Pause::after(asked.pause.take()));
        if self.issued.failed(id, why.clone()) {
            tracing::warn!(identity = %id, problem = ?why, "no certificate from the agent; retrying");
        }
    }
}

enum Step {
    Request(SpiffeId),
    Pause(Duration),
}
