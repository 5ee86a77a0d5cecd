//! Keeping a certificate: the first is asked for until there is one, each is renewed well before its end, and the old
//! one stays until the new one is whole.

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
/// A clock may be set, and a machine may sleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Gets the first certificate into a directory, however long the agent is away; `failed` hears of each attempt.
///
/// # Errors
/// The token is refused, which does not get better.
pub async fn first(
    token: &Token,
    folder: &Folder,
    mut failed: impl FnMut(&EnrolError),
) -> Result<(), EnrolError> {
    let mut backoff = Backoff::new();
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
    Ok(folder.put(&granted, &Origin::of(token.address.clone(), &token.issuer))?)
}

/// Gets the first certificate of a control plane into a directory, however long it is away or refuses: its tokens are
/// replaced. `failed` hears of each attempt.
pub async fn first_of(plane: &ControlPlane, folder: &Folder, mut failed: impl FnMut(&EnrolError)) {
    let mut backoff = Backoff::new();
    while let Err(error) = attempt_of(plane, folder).await {
        failed(&error);
        backoff.wait().await;
    }
}

async fn attempt_of(plane: &ControlPlane, folder: &Folder) -> Result<(), EnrolError> {
    folder.prepare()?;
    Ok(folder.put_alone(&plane.certificate().await?)?)
}

/// How it stands with the renewal of a certificate.
#[derive(Debug, Default)]
pub struct Renewal(Mutex<Shown>);

#[derive(Clone, Debug, Default)]
struct Shown {
    due: Option<SystemTime>,
    problem: Option<String>,
}

impl Renewal {
    /// When it is due.
    #[must_use]
    pub fn due(&self) -> Option<SystemTime> {
        self.lock().due
    }

    /// Why it has not come about, though it is due; or why there is no first certificate.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// It did not come about.
    pub fn failed(&self, why: String) {
        self.lock().problem = Some(why);
    }

    fn is_due(&self, at: SystemTime) {
        self.lock().due = Some(at);
    }

    /// It did.
    pub fn came_about(&self) {
        self.lock().problem = None;
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the certificate of a directory renewed.
#[derive(Debug)]
pub struct Keeper {
    folder: Folder,
    files: TrustFiles,
    trust: Trust,
    source: Source,
    renewal: Arc<Renewal>,
}

/// Who renews.
#[derive(Debug)]
enum Source {
    Agents { agents: Vec<Target>, cluster: Cluster, tls: Arc<Client> },
    ControlPlane(ControlPlane),
}

/// Why a certificate cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// TLS cannot be made of it.
    #[error(transparent)]
    Tls(#[from] ConfigError),
    /// A cluster's name that makes no identity.
    #[error(transparent)]
    Cluster(#[from] SpiffeIdError),
}

impl Keeper {
    /// One that asks these agents of a cluster, in this order. `trust` is what is loaded from the directory's `files`.
    ///
    /// # Errors
    /// The certificate cannot be shown to anybody.
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

    /// One that asks a control plane.
    #[must_use]
    pub fn of_control_plane(folder: Folder, files: TrustFiles, trust: Trust, plane: ControlPlane) -> Keeper {
        Keeper { folder, files, trust, source: Source::ControlPlane(plane), renewal: Arc::default() }
    }

    /// One that tells how it stands.
    #[must_use]
    pub fn telling(self, renewal: Arc<Renewal>) -> Keeper {
        Keeper { renewal, ..self }
    }

    /// Renews until it is dropped.
    pub async fn run(self) {
        let mut backoff = Backoff::new();
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
                    backoff = Backoff::new();
                }
                Err(why) => {
                    tracing::warn!(problem = ?why, "the certificate is not renewed yet; the old one serves on");
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
        self.trust.current().identity.chain().first().and_then(|leaf| Facts::of(leaf).ok())
    }

    async fn renew(&self) -> Result<(), String> {
        let own = self.trust.current().identity.id().clone();
        let asked = match &self.source {
            Source::Agents { agents, cluster, tls } => self.of_agents(agents, cluster, tls, &own).await,
            Source::ControlPlane(plane) => {
                attempt_of(plane, &self.folder).await.map_err(|error| error.to_string())
            }
        };
        let has_expired = |leaf: Facts| SystemTime::from(leaf.not_after) < SystemTime::now();
        asked.map_err(|why| match self.leaf().is_some_and(has_expired) {
            true => format!("{why}; the certificate has expired: it takes a new token"),
            false => why,
        })?;
        self.trust.reload(&self.files);
        // Else it would be asked for again at once.
        if self.due() <= SystemTime::now() {
            return Err(format!("the new certificate is not taken: {}", self.trust.refused().join("; ")));
        }
        tracing::info!(identity = %own, "the certificate was renewed");
        Ok(())
    }

    /// Of the first agent that gives one; else what each of them says.
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

/// Sooner at first, later as it goes on; with jitter, so that many do not come together.
struct Backoff(Duration);

impl Backoff {
    fn new() -> Backoff {
        Backoff(SOONEST)
    }

    async fn wait(&mut self) {
        let share = 0.5 + fastrand::f64() / 2.0;
        tokio::time::sleep(self.0.mul_f64(share)).await;
        self.0 = (self.0 * 2).min(LATEST);
    }
}
