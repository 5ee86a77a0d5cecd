//! The arguments of each command.

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
    /// The directory of the new authority
    #[arg(long, value_name = "DIR", env = "ISTHMUS_CERTS_DIR", default_value = "pki")]
    pub(super) out: PathBuf,
    /// The key type: p256, p384 or ed25519
    #[arg(long, value_name = "KIND", default_value_t)]
    pub(super) key: KeyKind,
    /// The lifetime of roots
    #[arg(long, value_name = "TIME", default_value = "10years", value_parser = humantime::parse_duration)]
    pub(super) root_lifetime: Duration,
    /// The lifetime of intermediates
    #[arg(long, value_name = "TIME", default_value = "1year", value_parser = humantime::parse_duration)]
    pub(super) intermediate_lifetime: Duration,
    /// The shortest wait of each step of a root roll-over
    #[arg(long, value_name = "TIME", default_value = "7days", value_parser = humantime::parse_duration)]
    pub(super) overlap: Duration,
    /// Destroy the existing authority first, with all its keys
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
    /// The SPIFFE ID of the leaf
    #[arg(long, value_name = "ID")]
    pub(super) spiffe: SpiffeId,
    /// A DNS name of the leaf; repeatable
    #[arg(long, value_name = "NAME")]
    pub(super) dns: Vec<String>,
    /// An IP address of the leaf; repeatable
    #[arg(long, value_name = "IP")]
    pub(super) ip: Vec<IpAddr>,
    /// The lifetime of the leaf
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    pub(super) ttl: Duration,
    /// The cluster whose intermediate signs [default: the only cluster; without clusters, the root signs]
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
    /// A certificate request (PKCS#10) whose key to sign; the chain goes to --out or standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "key"])]
    pub(super) csr: Option<PathBuf>,
    /// The name of the leaf in this directory [default: from the path of the SPIFFE ID]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// The directory for tls.crt, tls.key and ca.crt [default: DIR/leaves/NAME]; with --csr, a file
    #[arg(long, value_name = "PATH")]
    pub(super) out: Option<PathBuf>,
    /// The key type: p256, p384 or ed25519
    #[arg(long, value_name = "KIND", default_value_t)]
    pub(super) key: KeyKind,
    #[command(flatten)]
    pub(super) at: Where,
}

#[derive(Debug, Args)]
pub(super) struct BundleOptions {
    #[command(subcommand)]
    pub(super) change: Option<BundleChange>,
    /// The output format
    #[arg(long = "for", value_enum, value_name = "WHOM", default_value_t = Audience::People)]
    pub(super) audience: Audience,
    /// Only the bundle of this trust domain [default: all for people and openssl, else this authority's own]
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
    /// A table of all bundles
    People,
    /// The roots of one trust domain, PEM
    Pem,
    /// The SPIFFE bundle of one trust domain, JSON with its sequence number
    Spiffe,
    /// One file of roots for programs without a bundle per trust domain (nginx, HAProxy, MariaDB)
    Openssl,
}

#[derive(Debug, Subcommand)]
pub(super) enum BundleChange {
    /// Trust the bundle of another domain
    Add {
        /// The bundle: SPIFFE JSON, or roots as PEM
        file: PathBuf,
        /// The trust domain of the bundle; the file does not name it
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        #[command(flatten)]
        at: Where,
    },
    /// No longer trust another domain
    Remove {
        /// The trust domain
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        #[command(flatten)]
        at: Where,
    },
    /// Make a SPIFFE bundle from roots of another authority
    Make {
        /// Files of roots, PEM
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The trust domain of the roots
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        /// The sequence number; increase it with each change
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
    /// Refuse or accept certificates under a stale revocation list
    #[arg(long, value_enum, default_value_t = Stale::Refuse)]
    pub(super) stale_crl: Stale,
    /// The publisher outage to survive: each revocation list must be valid for longer
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
    /// The server name (SNI) to send [default: HOST]
    #[arg(long, value_name = "NAME")]
    pub(super) sni: Option<String>,
    /// The protocols (ALPN) to offer, separated by commas
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
    /// Verify it as a client certificate, as a server certificate, or as both
    #[arg(long, value_enum, default_value_t = As::Both)]
    pub(super) role: As,
    /// An allowed identity, or ID/* for all identities below it; repeatable
    #[arg(long, value_name = "ID")]
    pub(super) expect: Vec<IdPattern>,
    /// The pin of the intermediate that must have signed it, as `inspect` prints it
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
    /// Run until SIGTERM or SIGINT; SIGHUP makes a pass at once
    #[arg(long)]
    pub(super) watch: bool,
    /// Begin a root roll-over
    #[arg(long)]
    pub(super) root: bool,
    /// In a roll-over, wait until every peer in these files has acknowledged the new root: the
    /// acknowledged.json of each agent of this domain. Remembered for later passes
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "by_time")]
    pub(super) acknowledged: Vec<PathBuf>,
    /// In a roll-over, no longer wait for acknowledgements
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
    /// Only the deny-list of this trust domain [default: all]
    #[arg(long, value_name = "NAME")]
    pub(super) trust_domain: Option<TrustDomain>,
    #[command(flatten)]
    pub(super) at: Where,
}

#[derive(Debug, Subcommand)]
pub(super) enum DenyChange {
    /// Deny identities and certificates
    Add {
        /// SPIFFE IDs, ID/* for all identities below, serial numbers, or certificate files
        #[arg(required = true)]
        what: Vec<String>,
        #[command(flatten)]
        at: Where,
    },
    /// No longer deny identities and certificates
    Remove {
        /// The entries, as they were added
        #[arg(required = true)]
        what: Vec<String>,
        #[command(flatten)]
        at: Where,
    },
    /// Accept the signed list of another domain
    Take {
        /// The signed list, JSON
        file: PathBuf,
        /// The trust domain of the list
        #[arg(long, value_name = "NAME")]
        trust_domain: TrustDomain,
        #[command(flatten)]
        at: Where,
    },
}
