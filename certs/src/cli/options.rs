//! What each command takes. Not what it does with it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use isthmus_certs::crl::StaleCrl;
use isthmus_certs::home::Home;
use isthmus_certs::{IdPattern, KeyKind, KeyPin, SpiffeId, TrustDomain};

#[derive(Debug, Args)]
pub(super) struct Where {
    /// The authority's directory
    #[arg(long, value_name = "DIR", env = "ISTHMUS_CERTS_DIR", default_value = "pki")]
    pub(super) dir: PathBuf,
}

impl Where {
    pub(super) fn open(&self) -> anyhow::Result<Home> {
        Ok(Home::open(&self.dir)?)
    }
}

#[derive(Debug, Args)]
pub(super) struct InitOptions {
    /// The trust domain, such as east.example
    #[arg(long, value_name = "NAME")]
    pub(super) trust_domain: TrustDomain,
    /// The directory to make it in
    #[arg(long, value_name = "DIR", env = "ISTHMUS_CERTS_DIR", default_value = "pki")]
    pub(super) out: PathBuf,
    /// The kind of its keys: p256, p384 or ed25519
    #[arg(long, value_name = "KIND", default_value_t)]
    pub(super) key: KeyKind,
    /// How long a root lives
    #[arg(long, value_name = "TIME", default_value = "10years", value_parser = humantime::parse_duration)]
    pub(super) root_lifetime: Duration,
    /// How long an intermediate lives
    #[arg(long, value_name = "TIME", default_value = "1year", value_parser = humantime::parse_duration)]
    pub(super) intermediate_lifetime: Duration,
    /// How long each wait of a root roll-over is at least
    #[arg(long, value_name = "TIME", default_value = "7days", value_parser = humantime::parse_duration)]
    pub(super) overlap: Duration,
    /// Lose the authority that is there, with all its keys
    #[arg(long)]
    pub(super) force: bool,
}

#[derive(Debug, Args)]
pub(super) struct IntermediateOptions {
    /// The cluster's name
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: String,
    #[command(flatten)]
    pub(super) at: Where,
}

#[derive(Debug, Args)]
pub(super) struct IssueOptions {
    /// The identity
    #[arg(long, value_name = "ID")]
    pub(super) spiffe: SpiffeId,
    /// A DNS name beside it; again for more
    #[arg(long, value_name = "NAME")]
    pub(super) dns: Vec<String>,
    /// An IP address beside it; again for more
    #[arg(long, value_name = "IP")]
    pub(super) ip: Vec<IpAddr>,
    /// How long it lives
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    pub(super) ttl: Duration,
    /// The cluster whose intermediate signs [default: the only one, or the root if there is none]
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// A request (PKCS#10) whose key is certified; the chain goes to --out or standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "key"])]
    pub(super) csr: Option<PathBuf>,
    /// Its name here [default: the identity's path]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// The directory for tls.crt, tls.key and ca.crt [default: DIR/leaves/NAME]; with --csr a file
    #[arg(long, value_name = "PATH")]
    pub(super) out: Option<PathBuf>,
    /// The kind of its key: p256, p384 or ed25519
    #[arg(long, value_name = "KIND", default_value_t)]
    pub(super) key: KeyKind,
    #[command(flatten)]
    pub(super) at: Where,
}

#[derive(Debug, Args)]
pub(super) struct BundleOptions {
    #[command(subcommand)]
    pub(super) change: Option<BundleChange>,
    /// Whom it is for
    #[arg(long = "for", value_enum, value_name = "WHOM", default_value_t = Audience::People)]
    pub(super) audience: Audience,
    /// Only this domain's [default: all for people and openssl, the own one otherwise]
    #[arg(long, value_name = "NAME")]
    pub(super) trust_domain: Option<TrustDomain>,
    /// Write to a file
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) at: Where,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Audience {
    /// A table
    People,
    /// The roots of one domain, PEM
    Pem,
    /// The SPIFFE bundle of one domain, JSON with its sequence number
    Spiffe,
    /// One file for programs that know no bundles per domain
    Openssl,
}

#[derive(Debug, Subcommand)]
pub(super) enum BundleChange {
    /// Believe another domain's bundle
    Add {
        /// The bundle: SPIFFE JSON, or roots as PEM
        file: PathBuf,
        /// Whose it is; the file does not say
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        #[command(flatten)]
        at: Where,
    },
    /// No longer believe another domain
    Remove {
        /// Which
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        #[command(flatten)]
        at: Where,
    },
    /// Make a SPIFFE bundle of roots that some other authority gave
    Make {
        /// Roots, PEM
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Whose they are
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        /// Grows with each change
        #[arg(long, value_name = "NUMBER", default_value_t = 1)]
        sequence: u64,
        /// Write to a file
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Judges {
    /// A directory of bundles: TRUST-DOMAIN.json or TRUST-DOMAIN.pem
    #[arg(long, value_name = "DIR")]
    pub(super) bundles: Option<PathBuf>,
    /// A directory of deny-lists: TRUST-DOMAIN.json
    #[arg(long, value_name = "DIR", requires = "bundles")]
    pub(super) deny: Option<PathBuf>,
    /// A directory of revocation lists: TRUST-DOMAIN.pem or TRUST-DOMAIN.crl
    #[arg(long, value_name = "DIR", requires = "bundles")]
    pub(super) crls: Option<PathBuf>,
    /// What is done with a stale revocation list
    #[arg(long, value_enum, default_value_t = Stale::Refuse)]
    pub(super) stale_crl: Stale,
    /// How long a publisher of revocation lists may be away: each list must live longer
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    pub(super) outage_budget: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Stale {
    Refuse,
    Accept,
}

impl From<Stale> for StaleCrl {
    fn from(stale: Stale) -> Self {
        match stale {
            Stale::Refuse => Self::Refuse,
            Stale::Accept => Self::Accept,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct InspectOptions {
    /// A PEM file, or HOST:PORT
    #[arg(value_name = "FILE|HOST:PORT")]
    pub(super) what: String,
    /// The name to ask for [default: HOST]
    #[arg(long, value_name = "NAME")]
    pub(super) sni: Option<String>,
    /// The protocols to offer, separated by commas
    #[arg(long, value_name = "PROTOCOLS", value_delimiter = ',')]
    pub(super) alpn: Vec<String>,
    #[command(flatten)]
    pub(super) judges: Judges,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("judged").args(["bundles"]).required(true)))]
pub(super) struct VerifyOptions {
    /// The chain, leaf first, PEM
    pub(super) file: PathBuf,
    /// As what it is shown
    #[arg(long, value_enum, default_value_t = As::Both)]
    pub(super) role: As,
    /// An identity that is expected, or ID/* for all below; again for more
    #[arg(long, value_name = "ID")]
    pub(super) expect: Vec<IdPattern>,
    /// The key of the intermediate that must have signed it, as `inspect` prints it
    #[arg(long, value_name = "PIN")]
    pub(super) pin: Option<KeyPin>,
    #[command(flatten)]
    pub(super) judges: Judges,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum As {
    Client,
    Server,
    Both,
}

#[derive(Debug, Args)]
pub(super) struct RotateOptions {
    /// Go on until SIGTERM or SIGINT
    #[arg(long)]
    pub(super) watch: bool,
    /// Begin a root roll-over
    #[arg(long)]
    pub(super) root: bool,
    /// Roll-overs wait until every peer in these files has acknowledged the new root: the
    /// acknowledged.json of each agent of this domain. Remembered for later passes
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "by_time")]
    pub(super) acknowledged: Vec<PathBuf>,
    /// Roll-overs wait for nobody's word any more
    #[arg(long)]
    pub(super) by_time: bool,
    #[command(flatten)]
    pub(super) at: Where,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct DenyOptions {
    #[command(subcommand)]
    pub(super) change: Option<DenyChange>,
    /// Only this domain's [default: all]
    #[arg(long, value_name = "NAME")]
    pub(super) trust_domain: Option<TrustDomain>,
    #[command(flatten)]
    pub(super) at: Where,
}

#[derive(Debug, Subcommand)]
pub(super) enum DenyChange {
    /// Deny identities and certificates
    Add {
        /// SPIFFE IDs, ID/* for all below, serial numbers, or certificate files
        #[arg(required = true)]
        what: Vec<String>,
        #[command(flatten)]
        at: Where,
    },
    /// No longer deny them
    Remove {
        /// As they were added
        #[arg(required = true)]
        what: Vec<String>,
        #[command(flatten)]
        at: Where,
    },
    /// Take over another domain's signed list
    Take {
        /// The list
        file: PathBuf,
        /// Whose it is
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        #[command(flatten)]
        at: Where,
    },
}
