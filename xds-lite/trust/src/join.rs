//! Joins two clusters with a token that one agent prints and the other is given. Both prove their
//! certificate's key and the token's secret over one TLS session, then exchange bundles and addresses;
//! docs/decisions/0022 has the protocol and its threat model. The same store holds the tokens for first
//! certificates of gateways and workloads (`enrolment`; decision 0025).

pub mod cli;
pub(crate) mod disk;
pub mod enrolment;
mod guest;
mod host;
mod joined;
mod offer;
mod peer;
mod place;
mod presented;
mod secret;
mod takeover;
mod text;
mod tls;
mod token;
mod tokens;
mod wire;

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isthmus_certs::{SpiffeId, Trust, TrustDomain};
use isthmus_store::{Embedded, Store, StoreError};
use serde::{Deserialize, Serialize};

use isthmus_model::address::Target;
use isthmus_model::slice::Cluster;

pub use disk::ReadError;
pub use guest::{JoinCause, JoinError, Progress, join};
pub use host::serve;
pub use joined::JoinedClusters;
pub use offer::OfferError;
pub use peer::{Joined, Peer, forget, forget_lost, peers};
pub use place::PlaceError;
pub use presented::PresentedError;
pub use secret::{NoTokenId, TokenId, Verifier};
pub use tls::MeetError;
pub use token::{Token, TokenError};
pub use tokens::{Ending, Record, RevokeError, State, Tokens};
pub use wire::{Refusal, WireError};

/// The longest lifetime of a token.
pub const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The default port of the join endpoint.
pub const PORT: u16 = 15_011;

/// Gateways in an introduction.
const MOST_GATEWAYS: usize = 64;
/// Bytes of a network's name.
const LONGEST_NETWORK: usize = 253;

/// A cluster and its trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Party {
    /// The cluster's name.
    #[serde(with = "text::name")]
    pub cluster: Cluster,
    /// The trust domain of its agents.
    pub trust_domain: TrustDomain,
}

impl Party {
    /// The cluster and trust domain of an agent's identity; `None` if it is not an agent's.
    #[must_use]
    pub fn of_agent(id: &SpiffeId) -> Option<Party> {
        let mut segments = id.path().strip_prefix("/isthmus/")?.split('/');
        let (cluster, role, name) = (segments.next()?, segments.next()?, segments.next()?);
        if role != "agent" || name.is_empty() || segments.next().is_some() {
            return None;
        }
        Some(Party { cluster: cluster.parse().ok()?, trust_domain: id.trust_domain().clone() })
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.cluster, self.trust_domain)
    }
}

/// The party that a token was made for, and its purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Guest {
    /// A cluster, to join.
    Cluster(Party),
    /// A gateway or workload, to get its first certificate.
    Identity {
        /// The identity of the certificate.
        identity: SpiffeId,
    },
}

impl Guest {
    /// The purpose of the token, as the beginning of a sentence.
    #[must_use]
    pub fn purpose(&self) -> String {
        match self {
            Guest::Cluster(party) => format!("the token was made for {party} to join"),
            Guest::Identity { identity } => {
                format!("the token was made for the first certificate of {identity}")
            }
        }
    }

    fn texts(&self) -> [String; 2] {
        match self {
            Guest::Cluster(party) => [party.cluster.to_string(), party.trust_domain.to_string()],
            Guest::Identity { identity } => [String::new(), identity.to_string()],
        }
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Guest::Cluster(party) => party.fmt(f),
            Guest::Identity { identity } => identity.fmt(f),
        }
    }
}

/// What one side of a join tells the other about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its cluster and trust domain.
    #[serde(flatten)]
    pub party: Party,
    /// The network of its endpoints.
    pub network: String,
    /// The address where its agent serves other agents (ADS).
    #[serde(with = "text::address")]
    pub address: Target,
    /// The addresses of its gateways.
    #[serde(with = "text::addresses")]
    pub gateways: Vec<Target>,
}

/// Why an introduction is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntroductionError {
    /// The network name is invalid.
    #[error("the network name is longer than {LONGEST_NETWORK} bytes or contains control characters")]
    Network,
    /// There are too many gateways.
    #[error("{0} gateways are listed; the limit is {MOST_GATEWAYS}")]
    Gateways(usize),
    /// The address can be listened on but not reached.
    #[error("{0} is not reachable from another cluster; use a routable address")]
    Unreachable(Target),
}

impl Introduction {
    fn check(&self) -> Result<(), IntroductionError> {
        if self.network.len() > LONGEST_NETWORK || self.network.chars().any(char::is_control) {
            return Err(IntroductionError::Network);
        }
        if self.gateways.len() > MOST_GATEWAYS {
            return Err(IntroductionError::Gateways(self.gateways.len()));
        }
        let mut addresses = self.gateways.iter().chain([&self.address]);
        match addresses.find(|address| !is_reachable(address)) {
            Some(address) => Err(IntroductionError::Unreachable(address.clone())),
            None => Ok(()),
        }
    }
}

fn is_reachable(address: &Target) -> bool {
    let of_nobody = |ip: IpAddr| ip.is_unspecified() || ip.is_multicast();
    !matches!(address, Target::Address(address) if of_nobody(address.ip()))
}

/// The store of a state directory: tokens, joined clusters and their acknowledgements. Takes over what older versions
/// stored. Blocks on the disk; a store that cannot be used now can be later.
#[must_use]
pub fn store(state: &Path) -> Embedded {
    let store = Embedded::new("trust", state, "trust.db");
    if let Err(error) = takeover::take_over(&store, state) {
        tracing::warn!(%error, "cannot take over the state of an older version yet");
    }
    store
}

/// Encodes the value of a record.
fn encode(record: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(record).map_err(|error| StoreError::Unusable(error.to_string()))
}

/// The directories that a join writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// The agent's state.
    pub state: PathBuf,
    /// The bundles of the agent's trust; a joined domain's becomes `DOMAIN.json` in it.
    pub bundles: PathBuf,
    /// The deny-lists of the agent's trust. Without it, peers' lists are not stored.
    pub deny: Option<PathBuf>,
}

/// One side of a join: its identity, its trust, and its directories.
#[derive(Debug)]
pub struct Context {
    trust: Trust,
    introduction: Introduction,
    folders: Folders,
    store: Arc<dyn Store>,
    tokens: Tokens,
}

/// Why an agent can neither join nor be joined.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The certificate belongs to another identity.
    #[error("the certificate is for {found}, but joining needs one of an agent of {expected}")]
    Identity {
        /// The identity in the certificate.
        found: SpiffeId,
        /// The cluster whose agent it must be.
        expected: Party,
    },
    /// The introduction is invalid.
    #[error(transparent)]
    Introduction(#[from] IntroductionError),
}

impl Context {
    /// A context with its tokens and joined clusters in a store.
    ///
    /// # Errors
    /// The identity is not an agent's of the introduced cluster, or the introduction is invalid.
    pub fn new(
        trust: Trust,
        introduction: Introduction,
        folders: Folders,
        store: Arc<dyn Store>,
    ) -> Result<Context, ContextError> {
        introduction.check()?;
        let found = trust.current().identity.id().clone();
        if Party::of_agent(&found).as_ref() != Some(&introduction.party) {
            return Err(ContextError::Identity { found, expected: introduction.party });
        }
        let tokens = Tokens::new(Arc::clone(&store), &folders.state);
        Ok(Context { trust, introduction, folders, store, tokens })
    }

    /// The tokens that this side has made.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    fn party(&self) -> &Party {
        &self.introduction.party
    }
}

/// Why a token cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The lifetime is too short or too long.
    #[error("the lifetime of a token must be 1 second to 24 hours, not {}", humantime::format_duration(*.0))]
    Lifetime(Duration),
    /// The address is not reachable.
    #[error("{0} is not reachable for joiners; use a routable address of this endpoint")]
    Address(Target),
    /// A cluster cannot join itself.
    #[error(
        "this cluster is itself named {0}; a token is for another cluster, and joined clusters need different names"
    )]
    Own(Cluster),
    /// The cluster is known with another trust domain.
    #[error(transparent)]
    Known(#[from] PlaceError),
    /// The agent's own certificate is unusable.
    #[error("this agent's certificate: {0}")]
    Identity(#[from] PresentedError),
    /// The system provides no randomness.
    #[error("the system provides no random numbers")]
    Random,
    /// The token cannot be stored.
    #[error("token store: {0}")]
    Store(#[from] StoreError),
}

/// Creates a token with which one cluster of one trust domain can join at `address`. Another process may
/// serve that endpoint. Blocks on the store.
///
/// # Errors
/// A join with the token would fail, or the store fails.
pub fn create(
    context: &Context,
    address: Target,
    guest: Party,
    lifetime: Duration,
) -> Result<Token, CreateError> {
    if guest.cluster == context.party().cluster {
        return Err(CreateError::Own(guest.cluster));
    }
    place::check(context, &guest)?;
    let maker =
        TokenMaker { trust: &context.trust, issuer: context.party().clone(), tokens: &context.tokens };
    maker.make(address, Guest::Cluster(guest), lifetime)
}

/// Creates and stores a token.
struct TokenMaker<'a> {
    trust: &'a Trust,
    issuer: Party,
    tokens: &'a Tokens,
}

impl TokenMaker<'_> {
    fn make(self, address: Target, guest: Guest, lifetime: Duration) -> Result<Token, CreateError> {
        if lifetime < Duration::from_secs(1) || lifetime > LONGEST_LIFETIME {
            return Err(CreateError::Lifetime(lifetime));
        }
        if !is_reachable(&address) {
            return Err(CreateError::Address(address));
        }
        let root = tls::root(&self.trust.current())?;
        let now = unix_seconds(SystemTime::now());
        let secret = secret::Secret::generate().map_err(|_| CreateError::Random)?;
        let token =
            Token { address, issuer: self.issuer, root, guest, expires: now + lifetime.as_secs(), secret };
        let (id, verifier) = (token.id(), token.secret.verifier());
        self.tokens.sweep(now)?;
        self.tokens.put(&Record { id, guest: token.guest.clone(), expires: token.expires, verifier })?;
        Ok(token)
    }
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Seconds since 1970, displayed as RFC 3339.
struct Rfc3339(u64);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // RFC 3339 ends with the year 9999.
        const LAST: u64 = 253_402_300_799;
        let time = UNIX_EPOCH + Duration::from_secs(self.0.min(LAST));
        humantime::format_rfc3339_seconds(time).fmt(f)
    }
}

impl fmt::Debug for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
