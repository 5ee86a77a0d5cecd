//! The words of the command line and their help. What they do is in the modules below.

mod bundle;
mod chains;
mod deny;
mod inspect;
mod issue;
mod rotate;
mod say;
mod verify;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use isthmus_certs::crl::StaleCrl;
use isthmus_certs::home::{Home, OVERLAP, Plan};
use isthmus_certs::{IdPattern, KeyKind, KeyPin, SpiffeId, TrustDomain};
use serde_json::json;

pub(crate) use say::complain;
use say::{Answer, say};

/// SPIFFE identities: authorities, leaves, federated trust, rotation.
#[derive(Debug, Parser)]
#[command(name = "isthmus-certs", version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// JSON for machines instead of text for people
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the authority of a trust domain: its root, and its bundle
    #[command(after_help = "\
Examples:
  isthmus-certs init --trust-domain east.example --out pki
  isthmus-certs init --trust-domain east.example --out pki --key p384 --root-lifetime 5years

The root key is pki/roots/1/root-key.pem, readable by you only. It is needed to make and renew
intermediates and for a root roll-over; at other times it can be kept elsewhere.")]
    Init(InitOptions),
    /// Make the intermediate of a cluster, in the layouts of Istio's cacerts and cert-manager
    #[command(after_help = "\
Examples:
  isthmus-certs intermediate --cluster east --dir pki
  kubectl create secret generic cacerts -n istio-system \\
    --from-file=pki/clusters/east/ca-cert.pem --from-file=pki/clusters/east/ca-key.pem \\
    --from-file=pki/clusters/east/root-cert.pem --from-file=pki/clusters/east/cert-chain.pem
  kubectl create secret generic isthmus-ca -n cert-manager \\
    --from-file=pki/clusters/east/tls.crt --from-file=pki/clusters/east/tls.key \\
    --from-file=pki/clusters/east/ca.crt

Clusters under one root are one security domain: each can sign every identity of the trust domain.
Give clusters that must not speak for each other a trust domain each, or pin a cluster's intermediate
by its key where it is verified (verify --pin).")]
    Intermediate(IntermediateOptions),
    /// Issue a leaf for a SPIFFE ID, and keep it renewed by `rotate`
    #[command(after_help = "\
Examples:
  isthmus-certs issue --spiffe spiffe://east.example/ns/bookinfo/sa/reviews
  isthmus-certs issue --spiffe spiffe://east.example/ns/db/sa/mariadb --dns db-0.db --out /etc/mysql/tls
  isthmus-certs issue --spiffe spiffe://east.example/ns/a/sa/b --csr request.pem > chain.pem

A leaf has exactly one URI name, its SPIFFE ID. Of a request only the key is taken, never its names; its
holder asks again before the certificate ends.")]
    Issue(IssueOptions),
    /// Print trust bundles; make, add and remove them
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "\
Examples:
  isthmus-certs bundle
  isthmus-certs bundle --for spiffe --out east.example.json      # for other domains
  isthmus-certs bundle add west.example.json --trust-domain west.example
  isthmus-certs bundle --for openssl --out trusted.pem           # nginx, HAProxy, MariaDB, ...
  isthmus-certs bundle make root.pem --trust-domain west.example --out west.example.json"
    )]
    Bundle(BundleOptions),
    /// Show a certificate file, or what a live endpoint shows: names, time left, what a peer would object to
    #[command(after_help = "\
Examples:
  isthmus-certs inspect pki/leaves/reviews/tls.crt
  isthmus-certs inspect 127.0.0.1:15443 --sni reviews.bookinfo.svc.cluster.local --bundles pki/bundles")]
    Inspect(InspectOptions),
    /// Check a chain exactly as a gateway would: exit 0, or 1 with the first thing wrong and its remedy
    #[command(after_help = "\
Examples:
  isthmus-certs verify tls.crt --bundles pki/bundles
  isthmus-certs verify tls.crt --bundles pki/bundles --deny pki/deny --role client \\
    --expect 'spiffe://east.example/ns/bookinfo/*'")]
    Verify(VerifyOptions),
    /// Renew what is due; roll over the root; once, or for as long as it runs
    #[command(after_help = "\
Examples:
  isthmus-certs rotate                 # one pass, for cron or a systemd timer
  isthmus-certs rotate --watch         # until SIGTERM
  isthmus-certs rotate --root          # begin a root roll-over; later passes carry it out
  isthmus-certs status                 # where it is

Leaves and intermediates are renewed after two thirds of their life, with jitter. A root roll-over trusts
the new root, waits (7 days unless init said otherwise), signs all anew with it, waits until what the old
one signed has run out and at least as long again, and drops the old one. It begins by itself when a fifth
of a root's life is left. A pass that was killed is completed by the next.")]
    Rotate(RotateOptions),
    /// Show what there is, when it ends, when it is renewed, and where a root roll-over is
    #[command(after_help = "Example:\n  isthmus-certs status --dir pki --json")]
    Status {
        #[command(flatten)]
        at: Where,
    },
    /// Take certificates and identities back before they end: the signed deny-list
    #[command(after_help = "\
Examples:
  isthmus-certs deny                                             # print it
  isthmus-certs deny add spiffe://east.example/ns/bookinfo/sa/reviews
  isthmus-certs deny add 'spiffe://east.example/ns/bookinfo/*'
  isthmus-certs deny add pki/leaves/reviews/tls.crt              # that certificate, by its serial number
  isthmus-certs deny add 4f:1b:...                               # a serial number
  isthmus-certs deny remove spiffe://east.example/ns/bookinfo/sa/reviews
  isthmus-certs deny take west.example.json --trust-domain west.example

The list is pki/deny/TRUST-DOMAIN.json; it travels beside the bundle to everything that verifies. A leaf
that is denied by its serial number gets a new one at the next `rotate`.")]
    Deny(DenyOptions),
    /// Print a completion script
    #[command(
        after_help = "Example:\n  isthmus-certs completions bash > /etc/bash_completion.d/isthmus-certs"
    )]
    Completions {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
struct Where {
    /// The authority's directory
    #[arg(long, value_name = "DIR", env = "ISTHMUS_CERTS_DIR", default_value = "pki")]
    dir: PathBuf,
}

impl Where {
    fn open(&self) -> anyhow::Result<Home> {
        Ok(Home::open(&self.dir)?)
    }
}

#[derive(Debug, Args)]
struct InitOptions {
    /// The trust domain, such as east.example
    #[arg(long, value_name = "NAME")]
    trust_domain: TrustDomain,
    /// The directory to make it in
    #[arg(long, value_name = "DIR", env = "ISTHMUS_CERTS_DIR", default_value = "pki")]
    out: PathBuf,
    /// The kind of its keys: p256, p384 or ed25519
    #[arg(long, value_name = "KIND", default_value_t)]
    key: KeyKind,
    /// How long a root lives
    #[arg(long, value_name = "TIME", default_value = "10years", value_parser = humantime::parse_duration)]
    root_lifetime: Duration,
    /// How long an intermediate lives
    #[arg(long, value_name = "TIME", default_value = "1year", value_parser = humantime::parse_duration)]
    intermediate_lifetime: Duration,
    /// How long each wait of a root roll-over is at least
    #[arg(long, value_name = "TIME", default_value = "7days", value_parser = humantime::parse_duration)]
    overlap: Duration,
    /// Lose the authority that is there, with all its keys
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct IntermediateOptions {
    /// The cluster's name
    #[arg(long, value_name = "NAME")]
    cluster: String,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Args)]
struct IssueOptions {
    /// The identity
    #[arg(long, value_name = "ID")]
    spiffe: SpiffeId,
    /// A DNS name beside it; again for more
    #[arg(long, value_name = "NAME")]
    dns: Vec<String>,
    /// An IP address beside it; again for more
    #[arg(long, value_name = "IP")]
    ip: Vec<IpAddr>,
    /// How long it lives
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// The cluster whose intermediate signs [default: the only one, or the root if there is none]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// A request (PKCS#10) whose key is certified; the chain goes to --out or standard output
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "key"])]
    csr: Option<PathBuf>,
    /// Its name here [default: the identity's path]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The directory for tls.crt, tls.key and ca.crt [default: DIR/leaves/NAME]; with --csr a file
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// The kind of its key: p256, p384 or ed25519
    #[arg(long, value_name = "KIND", default_value_t)]
    key: KeyKind,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Args)]
struct BundleOptions {
    #[command(subcommand)]
    change: Option<BundleChange>,
    /// Whom it is for
    #[arg(long = "for", value_enum, value_name = "WHOM", default_value_t = Audience::People)]
    audience: Audience,
    /// Only this domain's [default: all for people and openssl, the own one otherwise]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    /// Write to a file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Audience {
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
enum BundleChange {
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
struct Judges {
    /// A directory of bundles: TRUST-DOMAIN.json or TRUST-DOMAIN.pem
    #[arg(long, value_name = "DIR")]
    bundles: Option<PathBuf>,
    /// A directory of deny-lists: TRUST-DOMAIN.json
    #[arg(long, value_name = "DIR", requires = "bundles")]
    deny: Option<PathBuf>,
    /// A directory of revocation lists: TRUST-DOMAIN.pem or TRUST-DOMAIN.crl
    #[arg(long, value_name = "DIR", requires = "bundles")]
    crls: Option<PathBuf>,
    /// What is done with a stale revocation list
    #[arg(long, value_enum, default_value_t = Stale::Refuse)]
    stale_crl: Stale,
    /// How long a publisher of revocation lists may be away: each list must live longer
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    outage_budget: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Stale {
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
struct InspectOptions {
    /// A PEM file, or HOST:PORT
    #[arg(value_name = "FILE|HOST:PORT")]
    what: String,
    /// The name to ask for [default: HOST]
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The protocols to offer, separated by commas
    #[arg(long, value_name = "PROTOCOLS", value_delimiter = ',')]
    alpn: Vec<String>,
    #[command(flatten)]
    judges: Judges,
}

#[derive(Debug, Args)]
struct VerifyOptions {
    /// The chain, leaf first, PEM
    file: PathBuf,
    /// As what it is shown
    #[arg(long, value_enum, default_value_t = As::Both)]
    role: As,
    /// An identity that is expected, or ID/* for all below; again for more
    #[arg(long, value_name = "ID")]
    expect: Vec<IdPattern>,
    /// The key of the intermediate that must have signed it, as `inspect` prints it
    #[arg(long, value_name = "PIN")]
    pin: Option<KeyPin>,
    #[command(flatten)]
    judges: Judges,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum As {
    Client,
    Server,
    Both,
}

#[derive(Debug, Args)]
struct RotateOptions {
    /// Go on until SIGTERM or SIGINT
    #[arg(long)]
    watch: bool,
    /// Begin a root roll-over
    #[arg(long)]
    root: bool,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
struct DenyOptions {
    #[command(subcommand)]
    change: Option<DenyChange>,
    /// Only this domain's [default: all]
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Subcommand)]
enum DenyChange {
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

/// Does what was asked for.
pub(crate) fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let answer = match &cli.command {
        Command::Init(options) => init(options),
        Command::Intermediate(options) => issue::intermediate(options),
        Command::Issue(options) => issue::issue(options),
        Command::Bundle(options) => bundle::bundle(options),
        Command::Inspect(options) => inspect::inspect(options),
        Command::Verify(options) => return verify::verify(options, cli.json),
        Command::Rotate(options) => return rotate::rotate(options, cli.json),
        Command::Status { at } => rotate::status(at),
        Command::Deny(options) => deny::deny(options),
        Command::Completions { shell } => Ok(completions(*shell)),
    }?;
    say(&answer, cli.json)?;
    Ok(ExitCode::SUCCESS)
}

fn init(options: &InitOptions) -> anyhow::Result<Answer> {
    if options.force {
        Home::destroy(&options.out)?;
    }
    let plan = Plan {
        key: options.key,
        root_lifetime: options.root_lifetime,
        intermediate_lifetime: options.intermediate_lifetime,
        overlap: options.overlap,
        ..Plan::new(options.trust_domain.clone())
    };
    let home = Home::create(&options.out, &plan)?;
    let (folder, domain) = (home.folder().display(), &options.trust_domain);
    let mut text = format!("made the authority of {domain} in {folder}\n");
    text += &format!("next: isthmus-certs intermediate --cluster NAME --dir {folder}\n");
    text += &format!(
        "      isthmus-certs issue --spiffe spiffe://{domain}/ns/NAMESPACE/sa/ACCOUNT --dir {folder}"
    );
    if options.overlap < OVERLAP {
        text += "\nnote: a root roll-over with such a short overlap needs everybody to follow as fast";
    }
    Ok(Answer::new(text, json!({ "trust_domain": domain, "dir": home.folder() })))
}

fn completions(shell: Shell) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "isthmus-certs", &mut script);
    let script = String::from_utf8_lossy(&script).trim_end().to_owned();
    Answer::new(script.clone(), json!({ "script": script }))
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}
