//! `enrol` of the command line: a certificate for a workload that has no gateway's process to keep it.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use isthmus_certs::{Trust, TrustFiles};

use super::{EnrolError, Folder, FolderError, Keeper, KeeperError, Standing, first};
use crate::join::{Guest, Token, TokenError};

/// Longer is no token.
const LONGEST_INPUT: u64 = 4_096;

/// Examples of `isthmus-agent enrol`, for its help.
pub const HELP: &str = "\
Examples:
  isthmus-agent enrol isthmus1.AAAA… --out /etc/mysql/tls
  isthmus-agent enrol - --out /etc/mysql/tls --follow < token.txt
  isthmus-agent enrol --out /etc/mysql/tls --follow

The directory has tls.crt, tls.key and ca.crt, swapped together, and bundles/. Where it has a good
certificate no token is needed, and one that is given is not used. --follow renews it, until
SIGTERM. Other users see arguments in the list of processes, and not what `-` reads.";

/// What `enrol` takes.
#[derive(Debug, Args)]
pub struct EnrolArgs {
    /// What `token create --workload` or `--gateway` printed at the agent; `-` reads it from standard input
    #[arg(value_name = "TOKEN")]
    pub token: Option<String>,
    /// The directory for the certificate
    #[arg(long, value_name = "DIRECTORY")]
    pub out: PathBuf,
    /// Stay, and renew the certificate before each end
    #[arg(long)]
    pub follow: bool,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// What was given is no token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Standard input cannot be read.
    #[error("standard input: {0}")]
    Input(io::Error),
    /// Neither a certificate nor a token.
    #[error("{}: {why}; give a token that `isthmus-agent token create` printed", out.display())]
    Needed {
        /// Which directory.
        out: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The directory is of somebody else.
    #[error("{} has the certificate of {found}, and {}; use another directory", out.display(), .wanted.purpose())]
    Other {
        /// Which directory.
        out: PathBuf,
        /// Whose certificate it has.
        found: String,
        /// For whom the token is.
        wanted: Box<Guest>,
    },
    /// The agent gave none.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    /// The directory cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// What was written cannot be read.
    #[error(transparent)]
    Load(#[from] isthmus_certs::trust::LoadError),
    /// It cannot be kept.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

/// A certificate that is there.
#[derive(Debug)]
pub struct Enrolled {
    folder: Folder,
    files: TrustFiles,
    trust: Trust,
}

impl EnrolArgs {
    /// Sees to it that the directory has a good certificate.
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
            Standing::Absent => "there is no certificate in it".to_owned(),
            Standing::Bad(error) => error.to_string(),
        };
        let token = token.ok_or_else(|| CliError::Needed { out: self.out.clone(), why })?;
        match self.follow {
            true => first(&token, &folder, |error| tracing::warn!("{error}; it is tried again")).await?,
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
    /// What to print.
    #[must_use]
    pub fn shown(&self) -> String {
        let trusted = self.trust.current();
        let leaf = self.trust.expiries().into_iter().next();
        let left = leaf.map(|leaf| leaf.left(SystemTime::now()).max(0.0)).unwrap_or_default();
        let left = humantime::format_duration(std::time::Duration::from_secs_f64(left.round()));
        format!("{} in {}, for another {left}", trusted.identity.id(), self.folder.path().display())
    }

    /// Renews the certificate until this is dropped.
    ///
    /// # Errors
    /// Who renews it is not known.
    pub async fn follow(self) -> Result<(), CliError> {
        let origin = self.folder.origin()?;
        let Enrolled { folder, files, trust } = self;
        Keeper::new(folder, files, trust, vec![origin.address], origin.cluster)?.run().await;
        Ok(())
    }
}
