//! `isthmus-agent enrol`: gets a certificate for a workload without a gateway, and optionally renews it.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use isthmus_certs::{Trust, TrustFiles};

use super::{EnrolError, Folder, FolderError, Keeper, KeeperError, Standing, first};
use crate::join::{Guest, Token, TokenError};

/// Size limit of a token on standard input.
const LONGEST_INPUT: u64 = 4_096;

/// Examples of `isthmus-agent enrol`, for its help.
pub const HELP: &str = "\
Examples:
  isthmus-agent enrol isthmus1.AAAA… --out /etc/mysql/tls
  isthmus-agent enrol - --out /etc/mysql/tls --follow < token.txt
  isthmus-agent enrol --out /etc/mysql/tls --follow

The directory has tls.crt, tls.key and ca.crt, swapped together, and bundles/. If its certificate is
valid, no token is needed, and a given one is not used. --follow renews the certificate until
SIGTERM. Other users can see arguments in the process list, but not standard input.";

/// The arguments of `enrol`.
#[derive(Debug, Args)]
pub struct EnrolArgs {
    /// The output of `token create --workload` or `--gateway` on the agent; `-` reads it from standard input
    #[arg(value_name = "TOKEN")]
    pub token: Option<String>,
    /// The directory for the certificate
    #[arg(long, value_name = "DIRECTORY")]
    pub out: PathBuf,
    /// Keep running, and renew the certificate before it expires
    #[arg(long)]
    pub follow: bool,
}

/// Why the command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The argument is not a token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Standard input is unreadable.
    #[error("cannot read standard input: {0}")]
    Input(io::Error),
    /// There is neither a valid certificate nor a token.
    #[error("{}: {why}; give a token from `isthmus-agent token create`", out.display())]
    Needed {
        /// The output directory.
        out: PathBuf,
        /// The reason.
        why: String,
    },
    /// The directory holds another identity.
    #[error("{} has a certificate for {found}, but {}; use another directory", out.display(), .wanted.purpose())]
    Other {
        /// The output directory.
        out: PathBuf,
        /// The identity of its certificate.
        found: String,
        /// The token's purpose.
        wanted: Box<Guest>,
    },
    /// The agent issued no certificate.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The directory is unusable.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The stored certificate cannot be loaded.
    #[error(transparent)]
    Load(#[from] isthmus_certs::trust::LoadError),
    /// Renewal cannot start.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

/// A directory with a valid certificate.
#[derive(Debug)]
pub struct Enrolled {
    folder: Folder,
    files: TrustFiles,
    trust: Trust,
}

impl EnrolArgs {
    /// Ensures that the directory has a valid certificate.
    ///
    /// # Errors
    /// Why it has none.
    pub async fn run(&self) -> Result<Enrolled, CliError> {
        let folder = Folder::new(&self.out);
        let files = folder.files(TrustFiles::default());
        let token = self.token()?;
        let why = match folder.standing(&files) {
            Standing::Good(trust) => {
                self.fits(&trust, token.as_ref())?;
                return Ok(Enrolled { folder, files, trust });
            }
            Standing::Absent => "no certificate found".to_owned(),
            Standing::Bad(error) => error.to_string(),
        };
        let token = token.ok_or_else(|| CliError::Needed { out: self.out.clone(), why })?;
        match self.follow {
            true => {
                first(&token, &folder, |error| tracing::warn!("enrolment failed, retrying: {error}")).await?
            }
            false => super::keep::attempt(&token, &folder).await?,
        }
        let trust = Trust::load(&files)?;
        Ok(Enrolled { folder, files, trust })
    }

    fn fits(&self, trust: &Trust, token: Option<&Token>) -> Result<(), CliError> {
        let found = trust.current().identity.id().clone();
        match token.map(|token| &token.guest) {
            Some(wanted) if *wanted != (Guest::Identity { identity: found.clone() }) => {
                let (found, wanted) = (found.to_string(), Box::new(wanted.clone()));
                Err(CliError::Other { out: self.out.clone(), found, wanted })
            }
            _ => Ok(()),
        }
    }

    fn token(&self) -> Result<Option<Token>, CliError> {
        let mut text = match self.token.as_deref() {
            None => return Ok(None),
            Some("-") => Vec::new(),
            Some(token) => return Ok(Some(token.parse()?)),
        };
        io::stdin().lock().take(LONGEST_INPUT).read_to_end(&mut text).map_err(CliError::Input)?;
        Ok(Some(String::from_utf8_lossy(&text).parse()?))
    }
}

impl Enrolled {
    /// The output of the command.
    #[must_use]
    pub fn report(&self) -> String {
        let trusted = self.trust.current();
        let leaf = self.trust.expiries().into_iter().next();
        let left = leaf.map(|leaf| leaf.left(SystemTime::now()).max(0.0)).unwrap_or_default();
        let left = humantime::format_duration(std::time::Duration::from_secs_f64(left.round()));
        format!("{} in {}, valid for another {left}", trusted.identity.id(), self.folder.path().display())
    }

    /// Renews the certificate until dropped.
    ///
    /// # Errors
    /// The renewing agent is unknown.
    pub async fn run(self) -> Result<(), CliError> {
        let origin = self.folder.origin()?;
        let Enrolled { folder, files, trust } = self;
        Keeper::new(folder, files, trust, vec![origin.address], origin.cluster)?.run().await;
        Ok(())
    }
}
