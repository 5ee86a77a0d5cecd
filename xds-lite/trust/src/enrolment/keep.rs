//! Renews certificates: requests the first until it succeeds, and each next one well before expiry. The
//! previous certificate stays in use until the new one is complete.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use isthmus_certs::facts::Facts;
use isthmus_certs::home::renew_at;
use isthmus_certs::{Client, ConfigError, IdPattern, Peer, SpiffeId, SpiffeIdError, Trust, TrustFiles};

use super::{ControlPlane, EnrolError, Folder, Origin, by_certificate, by_token};
use crate::join::Token;
use isthmus_model::address::Target;
use isthmus_model::slice::Cluster;

const SOONEST: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(60);
/// Bounds a sleep: clocks are set, and machines are suspended.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Gets the first certificate into a directory, retrying while the agent is unreachable; `failed` is called
/// for each failed attempt.
///
/// # Errors
/// The token is refused, which is final.
pub async fn first(
    token: &Token,
    folder: &Folder,
    mut failed: impl FnMut(&EnrolError),
) -> Result<(), EnrolError> {
    let mut backoff = Backoff::default();
    loop {
        match attempt(token, folder).await {
            Err(error) if !error.is_final() => failed(&error),
            settled => return settled,
        }
        backoff.wait().await;
    }
}

pub(super) async fn attempt(token: &Token, folder: &Folder) -> Result<(), EnrolError> {
    folder.prepare()?;
    let granted = by_token(token).await?;
    Ok(folder.put(&granted, &Origin::new(token.address.clone(), &token.issuer))?)
}

/// Gets the first certificate from a control plane into a directory, retrying even refusals, because its
/// token file is replaced. `failed` is called for each failed attempt.
pub async fn first_of(plane: &ControlPlane, folder: &Folder, mut failed: impl FnMut(&EnrolError)) {
    let mut backoff = Backoff::default();
    while let Err(error) = attempt_of(plane, folder).await {
        failed(&error);
        backoff.wait().await;
    }
}

async fn attempt_of(plane: &ControlPlane, folder: &Folder) -> Result<(), EnrolError> {
    folder.prepare()?;
    Ok(folder.put_alone(&plane.certificate().await?)?)
}

/// The state of a renewal.
#[derive(Debug, Default)]
pub struct Renewal(Mutex<Shown>);

#[derive(Clone, Debug, Default)]
struct Shown {
    due: Option<SystemTime>,
    problem: Option<String>,
}

impl Renewal {
    /// When the renewal is due.
    #[must_use]
    pub fn due(&self) -> Option<SystemTime> {
        self.lock().due
    }

    /// Why a due renewal, or the first request, has not succeeded.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// Records a failure.
    pub fn failed(&self, why: String) {
        self.lock().problem = Some(why);
    }

    fn is_due(&self, at: SystemTime) {
        self.lock().due = Some(at);
    }

    /// Records a success.
    pub fn came_about(&self) {
        self.lock().problem = None;
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews the certificate of a directory.
#[derive(Debug)]
pub struct Keeper {
    folder: Folder,
    files: TrustFiles,
    trust: Trust,
    source: Source,
    renewal: Arc<Renewal>,
}

/// The issuer.
#[derive(Debug)]
enum Source {
    Agents { agents: Vec<Target>, cluster: Cluster, tls: Arc<Client> },
    ControlPlane(ControlPlane),
}

/// Why a renewal cannot start.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The TLS client cannot be built.
    #[error(transparent)]
    Tls(#[from] ConfigError),
    /// The cluster name is not valid in a SPIFFE ID.
    #[error(transparent)]
    Cluster(#[from] SpiffeIdError),
}

impl Keeper {
    /// A keeper that asks agents of a cluster in this order. `trust` is loaded from the directory's `files`.
    ///
    /// # Errors
    /// The certificate cannot be used in TLS.
    pub fn new(
        folder: Folder,
        files: TrustFiles,
        trust: Trust,
        agents: Vec<Target>,
        cluster: Cluster,
    ) -> Result<Keeper, KeeperError> {
        let domain = trust.current().identity.id().trust_domain().clone();
        let theirs = IdPattern::agents(&domain, cluster.as_str())?;
        let tls = Arc::new(Client::new(trust.clone(), Peer::Matching(vec![theirs]), &[b"h2"])?);
        let source = Source::Agents { agents, cluster, tls };
        Ok(Keeper { folder, files, trust, source, renewal: Arc::default() })
    }

    /// A keeper that asks a control plane.
    #[must_use]
    pub fn of_control_plane(folder: Folder, files: TrustFiles, trust: Trust, plane: ControlPlane) -> Keeper {
        Keeper { folder, files, trust, source: Source::ControlPlane(plane), renewal: Arc::default() }
    }

    /// Publishes the state of the renewal in `renewal`.
    #[must_use]
    pub fn telling(self, renewal: Arc<Renewal>) -> Keeper {
        Keeper { renewal, ..self }
    }

    /// Renews until dropped.
    pub async fn run(self) {
        let mut backoff = Backoff::default();
        loop {
            let due = self.due();
            self.renewal.is_due(due);
            let left = due.duration_since(SystemTime::now()).unwrap_or_default();
            if !left.is_zero() {
                tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
                continue;
            }
            match self.renew().await {
                Ok(()) => {
                    self.renewal.came_about();
                    backoff = Backoff::default();
                }
                Err(why) => {
                    tracing::warn!(problem = ?why, "certificate renewal failed; keeping the current certificate and retrying");
                    self.renewal.failed(why);
                    backoff.wait().await;
                }
            }
        }
    }

    fn due(&self) -> SystemTime {
        self.leaf().map_or_else(SystemTime::now, |leaf| renew_at(&leaf).into())
    }

    fn leaf(&self) -> Option<Facts> {
        self.trust.current().identity.chain().first().and_then(|leaf| Facts::read(leaf).ok())
    }

    async fn renew(&self) -> Result<(), String> {
        let own = self.trust.current().identity.id().clone();
        let renewed = match &self.source {
            Source::Agents { agents, cluster, tls } => self.of_agents(agents, cluster, tls, &own).await,
            Source::ControlPlane(plane) => {
                attempt_of(plane, &self.folder).await.map_err(|error| error.to_string())
            }
        };
        let has_expired = |leaf: Facts| SystemTime::from(leaf.not_after) < SystemTime::now();
        renewed.map_err(|why| match self.leaf().is_some_and(has_expired) {
            true => format!("{why}; the certificate has expired: enrol again with a new token"),
            false => why,
        })?;
        self.trust.reload(&self.files);
        // Otherwise the loop would ask again at once.
        if self.due() <= SystemTime::now() {
            return Err(format!("the new certificate was not loaded: {}", self.trust.refused().join("; ")));
        }
        tracing::info!(identity = %own, "certificate renewed");
        Ok(())
    }

    /// Asks the agents in order; an error lists all their answers.
    async fn of_agents(
        &self,
        agents: &[Target],
        cluster: &Cluster,
        tls: &Arc<Client>,
        own: &SpiffeId,
    ) -> Result<(), String> {
        let known = self.folder.bundle(own.trust_domain());
        let mut problems = Vec::new();
        for agent in agents {
            match by_certificate(agent, tls, own, known.as_ref()).await {
                Ok(granted) => {
                    let origin = Origin { address: agent.clone(), cluster: cluster.clone() };
                    return self.folder.put(&granted, &origin).map_err(|error| error.to_string());
                }
                Err(error) => problems.push(error.to_string()),
            }
        }
        Err(problems.join("; "))
    }
}

/// Exponential backoff with jitter, so that clients do not retry together.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff(SOONEST)
    }
}

impl Backoff {
    /// The next pause: half a second to a minute.
    pub fn pause(&mut self) -> Duration {
        let share = 0.5 + fastrand::f64() / 2.0;
        let pause = self.0.mul_f64(share);
        self.0 = (self.0 * 2).min(LATEST);
        pause
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.pause()).await;
    }
}
