//! The words of the command line and their help. What they do is in the modules below.

mod bundle;
mod chains;
mod deny;
mod inspect;
mod issue;
mod options;
mod rotate;
mod say;
mod verify;

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use isthmus_certs::home::{Home, OVERLAP, Plan};
use serde_json::json;

use options::{
    BundleOptions, DenyOptions, InitOptions, InspectOptions, IntermediateOptions, IssueOptions,
    RotateOptions, VerifyOptions, Where,
};

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
  isthmus-certs rotate --acknowledged /var/lib/isthmus/agent/acknowledged.json
  isthmus-certs status                 # where it is

Leaves and intermediates are renewed after two thirds of their life, with jitter. A root roll-over trusts
the new root, waits (7 days unless init said otherwise), signs all anew with it, waits until what the old
one signed has run out and at least as long again, and drops the old one. It begins by itself when a fifth
of a root's life is left. A pass that was killed is completed by the next. With --acknowledged it also waits
until every peer of this domain's agents has said that it has the new root; what it waits for is printed.")]
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
    let plan = Plan {
        key: options.key,
        root_lifetime: options.root_lifetime,
        intermediate_lifetime: options.intermediate_lifetime,
        overlap: options.overlap,
        ..Plan::new(options.trust_domain.clone())
    };
    // Before anything is lost.
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

/// Larger than any certificate, bundle or list.
const MAX_FILE: u64 = 16 * 1024 * 1024;

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("{} cannot be read", path.display()))?;
    if bytes.len() as u64 > MAX_FILE {
        bail!("{} is larger than 16 MiB; is it the right file?", path.display());
    }
    Ok(bytes)
}
