//! The commands and their help. Each command is a module below.

mod bundle;
mod chains;
mod deny;
mod inspect;
mod issue;
mod options;
mod rotate;
mod say;
mod verify;

use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use isthmus_certs::home::{Home, OVERLAP, Plan};
use isthmus_certs::input;
use serde_json::json;

use options::{
    BundleOptions, DenyOptions, InitOptions, InspectOptions, IntermediateOptions, IssueOptions,
    RotateOptions, VerifyOptions, Where,
};

pub(crate) use say::complain;
use say::{Answer, say};

/// Issues SPIFFE certificates, manages trust bundles and deny-lists, and rotates all of them.
#[derive(Debug, Parser)]
#[command(name = "isthmus-certs", version, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON instead of text
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

The root key is pki/roots/1/root-key.pem, readable by its owner only. It is needed to make and renew
intermediates and for a root roll-over; at other times it can be stored elsewhere.")]
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
    /// Issue a leaf for a SPIFFE ID; `rotate` renews it
    #[command(after_help = "\
Examples:
  isthmus-certs issue --spiffe spiffe://east.example/ns/bookinfo/sa/reviews
  isthmus-certs issue --spiffe spiffe://east.example/ns/db/sa/mariadb --dns db-0.db --out /etc/mysql/tls
  isthmus-certs issue --spiffe spiffe://east.example/ns/a/sa/b --csr request.pem > chain.pem

A leaf has exactly one URI name, its SPIFFE ID. Of a certificate request (--csr) only the key is used, never
its names; `rotate` does not renew such a leaf: its holder requests a new one before it expires.")]
    Issue(IssueOptions),
    /// Print trust bundles; make, add and remove them
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "\
Examples:
  isthmus-certs bundle
  isthmus-certs bundle --for spiffe --out east.example.json      # to give to other domains
  isthmus-certs bundle add west.example.json --trust-domain west.example
  isthmus-certs bundle --for openssl --out trusted.pem           # nginx, HAProxy, MariaDB, ...
  isthmus-certs bundle make root.pem --trust-domain west.example --out west.example.json"
    )]
    Bundle(BundleOptions),
    /// Show the certificates of a file or of a live endpoint: names, time left, and why a peer would refuse them
    #[command(after_help = "\
Examples:
  isthmus-certs inspect pki/leaves/reviews/tls.crt
  isthmus-certs inspect 127.0.0.1:15443 --sni reviews.bookinfo.svc.cluster.local --bundles pki/bundles")]
    Inspect(InspectOptions),
    /// Verify a chain exactly as a gateway would: exit 0, or 1 with the first error and its remedy
    #[command(after_help = "\
Examples:
  isthmus-certs verify tls.crt --bundles pki/bundles
  isthmus-certs verify tls.crt --bundles pki/bundles --deny pki/deny --role client \\
    --expect 'spiffe://east.example/ns/bookinfo/*'")]
    Verify(VerifyOptions),
    /// Renew what is due and roll over the root, once or until stopped
    #[command(after_help = "\
Examples:
  isthmus-certs rotate                 # one pass, for cron or a systemd timer
  isthmus-certs rotate --watch         # until SIGTERM
  isthmus-certs rotate --root          # begin a root roll-over; later passes carry it out
  isthmus-certs rotate --acknowledged /var/lib/isthmus/agent/acknowledged.json
  isthmus-certs status                 # the step it is at

Leaves and intermediates are renewed after two thirds of their life, with jitter. A root roll-over adds
the new root to the bundle, waits (7 days unless init set --overlap), signs everything again with it, waits
as long again and until everything that the old root signed has expired, and drops the old root. It begins by
itself when a fifth of a root's life is left. The next pass completes one that was killed. With --acknowledged
it also waits until every peer of this domain's agents has acknowledged the new root, and prints what it
waits for.")]
    Rotate(RotateOptions),
    /// Show all certificates with their expiry and renewal, and the step of a root roll-over
    #[command(after_help = "Example:\n  isthmus-certs status --dir pki --json")]
    Status {
        #[command(flatten)]
        at: Where,
    },
    /// Deny certificates and identities before they expire: the signed deny-list
    #[command(after_help = "\
Examples:
  isthmus-certs deny                                             # print the lists
  isthmus-certs deny add spiffe://east.example/ns/bookinfo/sa/reviews
  isthmus-certs deny add 'spiffe://east.example/ns/bookinfo/*'
  isthmus-certs deny add pki/leaves/reviews/tls.crt              # this certificate, by its serial number
  isthmus-certs deny add 4f:1b:...                               # a serial number
  isthmus-certs deny remove spiffe://east.example/ns/bookinfo/sa/reviews
  isthmus-certs deny take west.example.json --trust-domain west.example

The list is pki/deny/TRUST-DOMAIN.json; copy it with the bundle to everything that verifies. The next `rotate`
renews a leaf whose serial number is denied.")]
    Deny(DenyOptions),
    /// Print a shell completion script
    #[command(
        after_help = "Example:\n  isthmus-certs completions bash > /etc/bash_completion.d/isthmus-certs"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the command and prints its answer.
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
    let plan = Plan {
        key: options.key,
        root_lifetime: options.root_lifetime,
        intermediate_lifetime: options.intermediate_lifetime,
        overlap: options.overlap,
        ..Plan::new(options.trust_domain.clone())
    };
    // Before --force removes anything.
    plan.check()?;
    if options.force {
        Home::destroy(&options.out)?;
    }
    let home = Home::create(&options.out, &plan)?;
    let (folder, domain) = (home.folder().display(), &options.trust_domain);
    let mut text = format!("made the authority of {domain} in {folder}\n");
    text += &format!("next: isthmus-certs intermediate --cluster NAME --dir {folder}\n");
    text += &format!(
        "      isthmus-certs issue --spiffe spiffe://{domain}/ns/NAMESPACE/sa/ACCOUNT --dir {folder}"
    );
    if options.overlap < OVERLAP {
        text += "\nwarning: with so short an overlap, every peer must take over a new root just as fast in a roll-over";
    }
    Ok(Answer::new(text, json!({ "trust_domain": domain, "dir": home.folder() })))
}

fn completions(shell: Shell) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "isthmus-certs", &mut script);
    let script = String::from_utf8_lossy(&script).trim_end().to_owned();
    Answer::new(script.clone(), json!({ "script": script }))
}

/// No certificate, bundle or list is larger.
const MAX_FILE: u64 = 16 * 1024 * 1024;

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = path.display();
    input::read_argument(path, MAX_FILE).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => anyhow!("{shown} is larger than 16 MiB; is it the right file?"),
        _ => anyhow::Error::new(error).context(format!("{shown}: cannot be read")),
    })
}
