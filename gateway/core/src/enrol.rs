//! Obtains the gateway's certificate: loads it at start, or enrols with a token, and renews it through the agent or
//! control plane. The requests are in `isthmus_trust::enrolment`.

pub(crate) mod workloads;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use isthmus_certs::files::make_folder;
use isthmus_certs::trust::{LoadError, Watch};
use isthmus_certs::{SpiffeId, Trust, TrustFiles};
use isthmus_trust::enrolment::{ControlPlane, EnrolError, Keeper, Known, Standing, first, first_of, token};
use isthmus_trust::join::Token;
use rustls::pki_types::DnsName;

use crate::config::settings::{self, FirstToken, Fixed, ManagedTrust, Source, Trusts};
use crate::config::{gateway_of, is_default_cluster, read_token};
use crate::control::Control;

/// Why a gateway cannot get an identity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The directory has no usable certificate, and there is no token.
    #[error(
        "{}: {why}; add `token: …` to trust, with the output of `isthmus-agent token create --gateway NAME`",
        directory.display()
    )]
    NoToken {
        /// The directory.
        directory: PathBuf,
        /// The problem.
        why: String,
    },
    /// The token file cannot be used.
    #[error("token_file: {}: {why}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// The directory belongs to another gateway.
    #[error(
        "{} has the certificate of {found}, but the token is for {wanted}; use another directory",
        directory.display()
    )]
    Other {
        /// The directory.
        directory: PathBuf,
        /// Identity of the certificate found.
        found: SpiffeId,
        /// Identity the token is for.
        wanted: SpiffeId,
    },
    /// The certificate in the directory is not a gateway's.
    #[error(
        "{} has the certificate of {found}, which is not a gateway identity, so agents would refuse it; use another directory",
        directory.display()
    )]
    NoGateway {
        /// The directory.
        directory: PathBuf,
        /// Identity of the certificate found.
        found: SpiffeId,
    },
    /// A thread could not be created.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    /// The agent refused a certificate.
    #[error(transparent)]
    Refused(#[from] EnrolError),
}

/// The identity of a gateway at start.
#[derive(Debug)]
pub(crate) enum Startup {
    /// It has no identity and needs none.
    NoIdentity,
    /// It has an identity.
    Ready(Trust),
    /// It must enrol first.
    Enrolling(First),
}

/// How a gateway gets its first certificate.
#[derive(Debug)]
pub(crate) enum First {
    /// By an agent's token, for this identity.
    Token(Box<Token>, SpiffeId),
    /// By the credentials that the control plane accepts.
    ControlPlane,
}

impl Startup {
    /// Determines the identity from the settings.
    pub(crate) fn load(trusts: Option<&Trusts>) -> Result<Startup, Error> {
        match trusts {
            None => Ok(Startup::NoIdentity),
            Some(Trusts::Files(files)) => Ok(Startup::Ready(Trust::load(files)?)),
            Some(trusts @ Trusts::ManagedTrust(kept)) => stored_or_enrolling(kept, &trusts.files()),
        }
    }

    /// Takes the cluster name from the identity if the file does not set one.
    pub(crate) fn complete(&self, fixed: &mut Fixed) {
        let id = match self {
            Startup::NoIdentity | Startup::Enrolling(First::ControlPlane) => return,
            Startup::Ready(trust) => trust.current().identity.id().clone(),
            Startup::Enrolling(First::Token(_, id)) => id.clone(),
        };
        if let Some(cluster) = gateway_of(&id).filter(|_| is_default_cluster(&fixed.node.cluster)) {
            cluster.clone_into(&mut fixed.node.cluster);
        }
    }
}

fn stored_or_enrolling(kept: &ManagedTrust, files: &TrustFiles) -> Result<Startup, Error> {
    let directory = || kept.directory.clone();
    make_lists(kept);
    let why = match kept.folder().standing(files) {
        Standing::Good(trust) => {
            let found = trust.current().identity.id().clone();
            return match &kept.token {
                FirstToken::Token(_, wanted) if *wanted != found => {
                    Err(Error::Other { directory: directory(), found, wanted: wanted.clone() })
                }
                _ if kept.bundles.is_none() && gateway_of(&found).is_none() => {
                    Err(Error::NoGateway { directory: directory(), found })
                }
                _ => Ok(Startup::Ready(trust)),
            };
        }
        Standing::Absent => "it has no certificate yet".to_owned(),
        Standing::Bad(error) => error.to_string(),
    };
    match &kept.token {
        _ if kept.bundles.is_some() => Ok(Startup::Enrolling(First::ControlPlane)),
        FirstToken::None => Err(Error::NoToken { directory: directory(), why }),
        FirstToken::Token(token, id) => Ok(Startup::Enrolling(First::Token(token.clone(), id.clone()))),
        FirstToken::File(path) => {
            let failure = |why| Error::TokenFile { path: path.clone(), why };
            let text = token(path).map_err(|error| failure(error.to_string()))?;
            let (token, id) = read_token(&text).map_err(failure)?;
            Ok(Startup::Enrolling(First::Token(Box::new(token), id)))
        }
    }
}

/// Makes the directory for the agents' deny-lists. Where that fails, loading the trust names the directory.
fn make_lists(kept: &ManagedTrust) {
    if let Some(lists) = kept.agents_lists().filter(|_| kept.directory.exists()) {
        let _reported_by_load = make_folder(&lists);
    }
}

/// Waits for the first certificate and puts it in use.
///
/// # Errors
/// No certificate will be issued.
pub(crate) async fn awaited(by: &First, control: &Control) -> Result<Option<Watch>, Error> {
    let Some(trusts @ Trusts::ManagedTrust(kept)) = &control.process.fixed.trust else { return Ok(None) };
    tracing::info!("waiting for the first certificate");
    let failed = |error: &EnrolError| {
        tracing::warn!(problem = ?error.to_string(), "first certificate not issued yet; retrying");
        control.renewal.failed(error.to_string());
    };
    match (by, control_plane(&control.process.fixed, kept)) {
        (First::Token(token, _), _) => first(token, &kept.folder(), failed).await?,
        (First::ControlPlane, Some(plane)) => first_of(&plane, &kept.folder(), failed).await,
        (First::ControlPlane, None) => return Ok(None),
    }
    make_lists(kept);
    let files = trusts.files();
    let trust = Trust::load(&files)?;
    tracing::info!(identity = %trust.current().identity.id(), "first certificate received");
    let _once = control.process.trust.set(trust.clone());
    control.renewal.came_about();
    Ok(Some(trust.watch(files)?))
}

/// Renews the certificate while the gateway runs, if the gateway manages it.
pub(crate) async fn keep(control: Arc<Control>) -> io::Result<()> {
    let fixed = &control.process.fixed;
    let (Some(trusts @ Trusts::ManagedTrust(kept)), Some(trust)) =
        (&fixed.trust, control.process.trust.get())
    else {
        return Ok(());
    };
    let (folder, files) = (kept.folder(), trusts.files());
    let keeper = match fixed.xds.as_ref().map(|xds| &xds.source) {
        Some(Source::Agents(agents)) => {
            let own = trust.current().identity.id().clone();
            let cluster = gateway_of(&own).and_then(|cluster| cluster.parse().ok());
            let cluster = cluster.ok_or_else(|| {
                io::Error::other(format!("{own} is not the identity of a cluster's gateway"))
            })?;
            Keeper::new(folder, files, trust.clone(), agents.clone(), cluster).map_err(io::Error::other)?
        }
        Some(Source::ControlPlane(_)) => match control_plane(fixed, kept) {
            Some(plane) => Keeper::of_control_plane(folder, files, trust.clone(), plane),
            None => return Ok(()),
        },
        None => return Ok(()),
    };
    keeper.telling(Arc::clone(&control.renewal)).run().await;
    Ok(())
}

/// Returns the control plane that issues the certificate, if any.
fn control_plane(fixed: &Fixed, kept: &ManagedTrust) -> Option<ControlPlane> {
    let Source::ControlPlane(plane) = &fixed.xds.as_ref()?.source else { return None };
    let FirstToken::File(token_file) = &kept.token else { return None };
    let named = plane.metadata.get("CLUSTER_ID").and_then(|id| id.as_str()).map(str::to_owned);
    let own = Some(fixed.node.cluster.clone()).filter(|cluster| !is_default_cluster(cluster));
    Some(ControlPlane {
        addresses: plane.addresses.clone(),
        server: match &plane.server {
            settings::Known::Identity(id) => Known::Identity(id.clone()),
            settings::Known::Name(name) => Known::Name(DnsName::try_from(name.as_str().to_owned()).ok()?),
        },
        bundles: kept.bundles.clone()?,
        token_file: token_file.clone(),
        cluster: named.or(own),
    })
}
