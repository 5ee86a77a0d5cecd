//! Two agents of different clusters meet by a token that one prints and the other is given: each proves its
//! certificate's key and the token's secret over one TLS session, then their bundles and addresses change hands.
//! docs/decisions/0022 has the protocol and what it withstands. Not what is done with a peer afterwards. In the same
//! store are the tokens by which gateways and workloads get their first certificate (`first`; decision 0025).

pub mod cli;
pub(crate) mod disk;
pub mod enrolment;
mod guest;
mod host;
mod offer;
pub(crate) mod peer;
mod place;
mod secret;
mod shown;
mod text;
mod tls;
mod token;
mod tokens;
mod wire;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use isthmus_certs::{SpiffeId, Trust, TrustDomain};
use serde::{Deserialize, Serialize};

use isthmus_model::address::Target;
use isthmus_model::slice::Cluster;

pub use disk::ReadError;
pub use guest::{JoinCause, JoinError, Progress, join};
pub use host::serve;
pub use offer::OfferError;
pub use peer::{Joined, Peer, peers};
pub use place::PlaceError;
pub use secret::{NoTokenId, TokenId, Verifier};
pub use shown::ShownError;
pub use tls::MeetError;
pub use token::{Token, TokenError};
pub use tokens::{Ending, Folder, Record, State, StoreError, Tokens};
pub use wire::{Refusal, WireError};

/// The longest that a token can be used.
pub const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Where joiners come, unless configured otherwise.
pub const PORT: u16 = 15_011;

/// Gateways of one cluster that are introduced.
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
    /// Whose agent this is, if it is one.
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

/// For whom a token was made, and what for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Guest {
    /// For a cluster, to join.
    Cluster(Party),
    /// For a gateway or workload, to get its first certificate.
    Identity {
        /// Whose certificate.
        identity: SpiffeId,
    },
}

impl Guest {
    /// What the token was made for, as the beginning of a sentence.
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

/// What one side tells the other about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its cluster and trust domain.
    #[serde(flatten)]
    pub party: Party,
    /// The network that its endpoints stand in.
    pub network: String,
    /// Where its agent serves other clusters' agents (ADS).
    #[serde(with = "text::address")]
    pub address: Target,
    /// Where its gateways are reached.
    #[serde(with = "text::addresses")]
    pub gateways: Vec<Target>,
}

/// Why an introduction is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntroductionError {
    /// Not a name.
    #[error(
        "the network's name is longer than {LONGEST_NETWORK} bytes, or has characters that are not printed"
    )]
    Network,
    /// Too many.
    #[error("{0} gateways are named; at most {MOST_GATEWAYS} can be")]
    Gateways(usize),
    /// An address to listen on, and not to reach.
    #[error("{0} is no address that another cluster can reach; give the one that leads here from there")]
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

/// Where joining keeps things.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// The agent's state: `tokens/` and `peers/` are made in it.
    pub state: PathBuf,
    /// The bundles that the agent's trust is loaded from; another domain's becomes `DOMAIN.json` in it.
    pub bundles: PathBuf,
    /// The deny-lists that it is loaded from. Without it, other domains' lists are not kept.
    pub deny: Option<PathBuf>,
}

/// One side: who it is, whom it believes, and where it keeps what it learns.
#[derive(Debug)]
pub struct Context {
    trust: Trust,
    introduction: Introduction,
    folders: Folders,
    tokens: Arc<dyn Tokens>,
}

/// Why a side can neither join nor be joined.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The certificate is somebody else's.
    #[error("the certificate is of {found}, but joining needs an agent's of {expected}")]
    Identity {
        /// Whose it is.
        found: SpiffeId,
        /// Whose agent's it must be.
        expected: Party,
    },
    /// What it says of itself.
    #[error(transparent)]
    Introduction(#[from] IntroductionError),
}

impl Context {
    /// One side with its tokens in `tokens/` of its state.
    ///
    /// # Errors
    /// The identity is not an agent's of the cluster that is introduced, or the introduction is of no use.
    pub fn new(trust: Trust, introduction: Introduction, folders: Folders) -> Result<Context, ContextError> {
        introduction.check()?;
        let found = trust.current().identity.id().clone();
        if Party::of_agent(&found).as_ref() != Some(&introduction.party) {
            return Err(ContextError::Identity { found, expected: introduction.party });
        }
        let tokens = Arc::new(Folder::of_state(&folders.state));
        Ok(Context { trust, introduction, folders, tokens })
    }

    /// With its tokens in a store that the cluster's agents share.
    #[must_use]
    pub fn with_tokens(self, tokens: Arc<dyn Tokens>) -> Context {
        Context { tokens, ..self }
    }

    /// Where the tokens are.
    #[must_use]
    pub fn tokens(&self) -> &Arc<dyn Tokens> {
        &self.tokens
    }

    fn party(&self) -> &Party {
        &self.introduction.party
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Too short or too long.
    #[error("a token can be used for 1 second to 24 hours, not for {}", humantime::format_duration(*.0))]
    Lifetime(Duration),
    /// Nobody could come there.
    #[error(
        "{0} is no address that joiners can reach; give the one that leads to this endpoint from their side"
    )]
    Address(Target),
    /// A cluster does not join itself.
    #[error(
        "a token is for another cluster, and this one is {0}; clusters that are joined have different names"
    )]
    Own(Cluster),
    /// Something else is known of that cluster.
    #[error(transparent)]
    Known(#[from] PlaceError),
    /// The own identity cannot be shown.
    #[error("the own certificate: {0}")]
    Identity(#[from] ShownError),
    /// The system gave no random numbers.
    #[error("the system gives no random numbers")]
    Random,
    /// It could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Makes a token for one cluster of one trust domain, which finds this side's endpoint at `address`. Another
/// process may be serving it. Waits for the store.
///
/// # Errors
/// Whatever the token would fail at later, and the store's faults.
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
    let maker = Maker { trust: &context.trust, issuer: context.party().clone(), tokens: &*context.tokens };
    maker.make(address, Guest::Cluster(guest), lifetime)
}

/// Who makes a token, and where it is kept.
struct Maker<'a> {
    trust: &'a Trust,
    issuer: Party,
    tokens: &'a dyn Tokens,
}

impl Maker<'_> {
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

/// Seconds since 1970 as people and files write them.
struct Rfc3339(u64);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond the year 9999 there is no such text.
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
