//! Issues certificates at an agent: the intermediate, the policy of who may have one, status and metrics. Signing
//! itself is `isthmus_trust::issuing`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::facts::Facts;
use isthmus_certs::issuer::{Grant, Signing, Wanted};
use isthmus_certs::{
    Bundle, Csr, IdPattern, Issuer, Leaf, Policy, SpiffeId, SpiffeIdError, Trust, TrustDomain, pem,
};
use tonic::service::Routes;

use isthmus_grpc::serve::IssuingService;
use isthmus_model::address::Target;
use isthmus_model::admin::agent;
use isthmus_trust::issuing::{Certificates, Intermediate, Names, Rooted, Tally};
use isthmus_trust::join::cli::First;
use isthmus_trust::join::enrolment::{self, TokenAuthenticator};
use isthmus_trust::join::{self, CreateError, Party, Token, Tokens};

use super::Error;
use super::config::Settings;

/// How often the intermediate's files are checked for changes.
const PACE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Issuing {
    intermediate: Intermediate,
    tally: Arc<Tally>,
    authenticator: Arc<TokenAuthenticator>,
    policy: Policy,
    longest: Duration,
    trust: Trust,
}

impl Issuing {
    /// Opens the intermediate, if the file has `issuing:` and a state directory.
    pub(super) fn open(
        settings: &Settings,
        trust: &Trust,
        tokens: Option<Tokens>,
    ) -> Result<Option<Arc<Issuing>>, Error> {
        let Some((issuing, tokens)) = settings.issuing.clone().zip(tokens) else {
            return Ok(None);
        };
        let trust_domain = trust.current().identity.id().trust_domain().clone();
        let renewals = grantees(settings, &trust_domain)?.into_iter();
        let renewals = renewals.map(|requester| (requester, Wanted::Own));
        let grants =
            renewals.chain(granted_workloads(settings, &trust_domain)?).map(|(requester, identity)| {
                // Names of services are set by the agent; nobody may ask for one.
                Grant { requester, identity, dns: Vec::new(), longest: issuing.longest }
            });
        let policy = Policy { grants: grants.collect() };
        let issuer = Party { cluster: settings.cluster.clone(), trust_domain };
        Ok(Some(Arc::new(Issuing {
            intermediate: Intermediate::open(issuing.files, trust.clone())?,
            tally: Arc::default(),
            authenticator: Arc::new(TokenAuthenticator::new(trust.clone(), issuer, tokens)),
            policy,
            longest: issuing.longest,
            trust: trust.clone(),
        })))
    }

    /// The gRPC service, for holders of a certificate and of a token. Certificates for the services of gateways get
    /// their `names`.
    pub(super) fn certificates(self: &Arc<Self>, names: Names) -> Arc<Certificates> {
        let trust = self.trust.clone();
        let roots = Arc::new(move || rooted(&trust));
        let issuer = Arc::clone(self) as Arc<dyn Issuer>;
        let certificates = Certificates::new(issuer, self.policy.clone(), self.longest, roots);
        let certificates = certificates.with(Arc::clone(&self.authenticator), Arc::clone(&self.tally));
        Arc::new(certificates.naming(names))
    }

    /// Access for clients that are served certificates only.
    pub(super) fn service(self: &Arc<Self>, certificates: &Arc<Certificates>) -> IssuingService {
        let policy = self.policy.clone();
        IssuingService {
            renews: Arc::new(move |id| policy.grants.iter().any(|grant| grant.requester.matches(id))),
            tokens: Arc::clone(&self.authenticator) as _,
            routes: Routes::new(Arc::clone(certificates).service()),
        }
    }

    /// Reloads the intermediate when its files change, until dropped.
    pub(super) async fn run(&self) {
        let mut pace = tokio::time::interval(PACE);
        loop {
            pace.tick().await;
            self.intermediate.poll();
        }
    }

    /// The section `issuing` of the status page.
    pub(super) fn page(&self) -> agent::Issuing {
        let facts = Facts::read(self.intermediate.current().certificate()).ok();
        let until = facts.as_ref().map(|facts| std::time::SystemTime::from(facts.not_after));
        agent::Issuing {
            serial: facts.map(|facts| facts.serial),
            until: until.map(|until| humantime::format_rfc3339_seconds(until).to_string()),
            signed: self.tally.signed(),
            refused: self.tally.refused(),
            problem: self.intermediate.problem(),
        }
    }

    /// Counters for metrics.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }
}

impl Issuer for Issuing {
    fn sign<'a>(&'a self, csr: &'a Csr, leaf: &'a Leaf) -> Signing<'a> {
        self.intermediate.sign(csr, leaf)
    }
}

/// Why a token for a first certificate cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The agent has no intermediate.
    #[error("the agent issues no certificates: add `issuing: {{ certificate: …, key: … }}` to the file")]
    NotIssuing,
    /// The gateway is not listed.
    #[error("gateway {0:?} is not in the file; list it under `gateways:` and restart the agent")]
    Gateway(String),
    /// The gateway's name is not valid in an identity.
    #[error("gateways: {0}")]
    Name(#[from] SpiffeIdError),
    /// The identity is not a workload's of this trust domain.
    #[error("{found} is not a workload of this trust domain; write {domain}/ns/NAMESPACE/sa/ACCOUNT", domain = .domain.id())]
    Workload {
        /// The requested identity.
        found: SpiffeId,
        /// The agent's own domain.
        domain: TrustDomain,
    },
    /// The token would carry no address of the agent.
    #[error(
        "the token must carry this agent's address: give --address NAME:15012, or add `xds: {{ advertise: NAME:15012 }}` to the file"
    )]
    Address,
    /// The token cannot be created.
    #[error(transparent)]
    Create(#[from] CreateError),
}

/// Creates a token for a first certificate. The agent itself may be running.
///
/// # Errors
/// Why it cannot be created.
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
    Ok(enrolment::create(trust, issuer, &tokens(state), address, identity, lifetime)?)
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

/// The tokens in an agent's state directory.
#[must_use]
pub fn tokens(state: &Path) -> Tokens {
    Tokens::new(Arc::new(join::store(state)), state)
}

/// Identities that may renew their own certificate: the cluster's gateways, and every workload of its trust domain.
fn grantees(settings: &Settings, domain: &TrustDomain) -> Result<Vec<IdPattern>, Error> {
    let gateway = |name: &str| SpiffeId::gateway(domain, settings.cluster.as_str(), name);
    let gateways = settings.gateways.iter().map(|listed| gateway(&listed.name));
    let gateways = gateways.map(|id| Ok(IdPattern::parse(&id?.to_string())?));
    gateways.chain([Ok(workloads(domain)?)]).collect()
}

/// Workloads whose certificates gateways may request.
fn granted_workloads(settings: &Settings, domain: &TrustDomain) -> Result<Vec<(IdPattern, Wanted)>, Error> {
    let mut granted = Vec::new();
    for gateway in &settings.gateways {
        let requester = SpiffeId::gateway(domain, settings.cluster.as_str(), &gateway.name)?;
        for pattern in &gateway.identities {
            if pattern.trust_domain() != domain {
                let (gateway, pattern, domain) = (gateway.name.clone(), pattern.clone(), domain.clone());
                return Err(Error::ForeignWorkload { gateway, pattern, domain });
            }
            granted.push((IdPattern::parse(&requester.to_string())?, Wanted::Of(pattern.clone())));
        }
    }
    Ok(granted)
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
