//! The part of an agent that issues certificates: what it signs with, for whom, and what it tells of that. Not the
//! signing: that is `isthmus_trust::issuing`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::facts::Facts;
use isthmus_certs::issuer::{Grant, Signing, Wanted};
use isthmus_certs::{
    Bundle, Csr, IdPattern, Issuer, Leaf, Policy, SpiffeId, SpiffeIdError, Trust, TrustDomain, pem,
};
use serde_json::{Value, json};
use tonic::service::Routes;

use isthmus_grpc::serve::IssuingService;
use isthmus_model::address::Target;
use isthmus_trust::issuing::{Certificates, Intermediate, Rooted, Tally};
use isthmus_trust::join::cli::First;
use isthmus_trust::join::enrolment::{self, TokenDesk};
use isthmus_trust::join::{CreateError, Folder, Party, Token, Tokens};

use super::Error;
use super::config::Settings;

/// How often it is looked for another intermediate.
const PACE: Duration = Duration::from_secs(1);

/// What issues.
#[derive(Debug)]
pub(super) struct Issuing {
    intermediate: Intermediate,
    tally: Arc<Tally>,
    desk: Arc<TokenDesk>,
    policy: Policy,
    longest: Duration,
    trust: Trust,
}

impl Issuing {
    /// What the file says, if it says anything.
    pub(super) fn open(settings: &Settings, trust: &Trust) -> Result<Option<Arc<Issuing>>, Error> {
        let Some((issuing, state)) = settings.issuing.clone().zip(settings.state.as_deref()) else {
            return Ok(None);
        };
        let trust_domain = trust.current().identity.id().trust_domain().clone();
        let grants = grantees(settings, &trust_domain)?.into_iter().map(|requester| Grant {
            requester,
            identity: Wanted::Own,
            dns: Vec::new(),
            longest: issuing.longest,
        });
        let policy = Policy { grants: grants.collect() };
        let issuer = Party { cluster: settings.cluster.clone(), trust_domain };
        Ok(Some(Arc::new(Issuing {
            intermediate: Intermediate::open(issuing.files, trust.clone())?,
            tally: Arc::default(),
            desk: Arc::new(TokenDesk::new(trust.clone(), issuer, tokens(state))),
            policy,
            longest: issuing.longest,
            trust: trust.clone(),
        })))
    }

    /// The service, for who has a certificate and who has a token.
    pub(super) fn certificates(self: &Arc<Self>) -> Arc<Certificates> {
        let trust = self.trust.clone();
        let roots = Arc::new(move || rooted(&trust));
        let issuer = Arc::clone(self) as Arc<dyn Issuer>;
        let certificates = Certificates::new(issuer, self.policy.clone(), self.longest, roots);
        Arc::new(certificates.with(Arc::clone(&self.desk), Arc::clone(&self.tally)))
    }

    /// Those who come for a certificate, and are served nothing else.
    pub(super) fn service(self: &Arc<Self>, certificates: &Arc<Certificates>) -> IssuingService {
        let policy = self.policy.clone();
        IssuingService {
            renews: Arc::new(move |id| policy.grants.iter().any(|grant| grant.requester.matches(id))),
            tokens: Arc::clone(&self.desk) as _,
            routes: Routes::new(Arc::clone(certificates).service()),
        }
    }

    /// Follows the intermediate's files until it is dropped.
    pub(super) async fn follow(&self) {
        let mut pace = tokio::time::interval(PACE);
        loop {
            pace.tick().await;
            self.intermediate.look();
        }
    }

    /// For status.
    pub(super) fn shown(&self) -> Value {
        let facts = Facts::of(self.intermediate.current().certificate()).ok();
        let until = facts.as_ref().map(|facts| std::time::SystemTime::from(facts.not_after));
        json!({
            "serial": facts.map(|facts| facts.serial),
            "until": until.map(|until| humantime::format_rfc3339_seconds(until).to_string()),
            "signed": self.tally.signed(),
            "refused": self.tally.refused(),
            "problem": self.intermediate.problem(),
        })
    }

    /// For metrics.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }
}

impl Issuer for Issuing {
    fn sign<'a>(&'a self, csr: &'a Csr, leaf: &'a Leaf) -> Signing<'a> {
        self.intermediate.sign(csr, leaf)
    }
}

/// Why there is no token for a first certificate.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The agent signs nothing.
    #[error("the agent issues no certificates: add `issuing: {{ certificate: …, key: … }}` to the file")]
    NotIssuing,
    /// A gateway that would not be served.
    #[error("there is no gateway {0:?} in the file; list it under `gateways:`, and restart the agent")]
    Gateway(String),
    /// A gateway whose name makes no identity.
    #[error("gateways: {0}")]
    Name(#[from] SpiffeIdError),
    /// No workload of this domain.
    #[error("{found} is no workload of this trust domain; a workload is {domain}/ns/NAMESPACE/sa/ACCOUNT", domain = .domain.id())]
    Workload {
        /// What was asked for.
        found: SpiffeId,
        /// The agent's own domain.
        domain: TrustDomain,
    },
    /// Its holder would not find the agent.
    #[error(
        "the token must say where this agent is found: give --address NAME:15012, or add `xds: {{ advertise: NAME:15012 }}` to the file"
    )]
    Address,
    /// It could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
}

/// Makes a token for a first certificate. The agent itself may be running.
///
/// # Errors
/// Why there is none.
pub fn token(
    settings: &Settings,
    trust: &Trust,
    whom: &First<'_>,
    address: Option<Target>,
    lifetime: Duration,
) -> Result<Token, TokenError> {
    let state = settings.state.as_deref().filter(|_| settings.issuing.is_some());
    let state = state.ok_or(TokenError::NotIssuing)?;
    let trust_domain = trust.current().identity.id().trust_domain().clone();
    let identity = identity(settings, &trust_domain, whom)?;
    let bound = Some(settings.address).filter(|at| !at.ip().is_unspecified() && at.port() != 0);
    let address = address.or_else(|| settings.advertise.clone()).or(bound.map(Target::Address));
    let issuer = Party { cluster: settings.cluster.clone(), trust_domain };
    let address = address.ok_or(TokenError::Address)?;
    Ok(enrolment::create(trust, issuer, &*tokens(state), address, identity, lifetime)?)
}

fn identity(settings: &Settings, domain: &TrustDomain, whom: &First<'_>) -> Result<SpiffeId, TokenError> {
    match whom {
        First::Gateway(name) if !settings.gateways.iter().any(|listed| listed.name == *name) => {
            Err(TokenError::Gateway((*name).to_owned()))
        }
        First::Gateway(name) => Ok(SpiffeId::gateway(domain, settings.cluster.as_str(), name)?),
        First::Workload(id) if !workloads(domain)?.matches(id) => {
            Err(TokenError::Workload { found: (*id).clone(), domain: domain.clone() })
        }
        First::Workload(id) => Ok((*id).clone()),
    }
}

/// Where an agent's tokens are.
#[must_use]
pub fn tokens(state: &Path) -> Arc<dyn Tokens> {
    Arc::new(Folder::of_state(state))
}

/// Whoever may have a certificate, its own: the cluster's gateways, and every workload of its trust domain.
fn grantees(settings: &Settings, domain: &TrustDomain) -> Result<Vec<IdPattern>, Error> {
    let gateway = |name: &str| SpiffeId::gateway(domain, settings.cluster.as_str(), name);
    let gateways = settings.gateways.iter().map(|listed| gateway(&listed.name));
    let gateways = gateways.map(|id| Ok(IdPattern::parse(&id?.to_string())?));
    gateways.chain([Ok(workloads(domain)?)]).collect()
}

fn workloads(domain: &TrustDomain) -> Result<IdPattern, SpiffeIdError> {
    IdPattern::parse(&format!("{}/ns/*", domain.id()))
}

fn rooted(trust: &Trust) -> Rooted {
    let trusted = trust.current();
    let bundle = trusted.bundles.get(trusted.identity.id().trust_domain());
    let rooted =
        |bundle: &Bundle| Rooted { sequence: bundle.sequence, roots: pem::encode_each(bundle.roots()) };
    bundle.map(rooted).unwrap_or_default()
}
