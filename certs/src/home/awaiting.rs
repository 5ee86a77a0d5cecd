//! Whose word a root roll-over waits for, beside the time: the peers of this domain's agents, as the files say that
//! those agents write. What has not been acknowledged is not relied on, and what is missing holds the roll-over.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use time::OffsetDateTime;

use super::{Home, HomeError, Step};
use crate::acknowledged::Acknowledged;
use crate::facts::fingerprint;

/// What a roll-over waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Awaited {
    /// Those who do not have the new root yet.
    pub missing: Vec<Missing>,
    /// With nobody missing: when the last one has had it for as long as each wait lasts.
    #[serde(skip)]
    pub until: Option<OffsetDateTime>,
}

/// Somebody who is not known to have the new root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The cluster; without a peer its own agent is meant.
    pub cluster: String,
    /// Its peer.
    pub peer: Option<String>,
    /// The last bundle that was acknowledged or, without a peer, is offered.
    pub sequence: Option<u64>,
    /// The file that says so.
    pub file: PathBuf,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, peer, sequence, file } = self;
        match (peer, sequence) {
            (Some(peer), Some(sequence)) => {
                write!(
                    f,
                    "{peer:?}, a peer of {cluster:?}, whose last acknowledged bundle ({sequence}) lacks it"
                )?;
            }
            (Some(peer), None) => {
                write!(f, "{peer:?}, a peer of {cluster:?}, which has acknowledged no bundle yet")?
            }
            (None, Some(sequence)) => {
                write!(f, "the agent of {cluster:?}, whose bundle ({sequence}) lacks it")?
            }
            (None, None) => write!(f, "the agent of {cluster:?}, which offers no bundle")?,
        }
        write!(f, " ({})", file.display())
    }
}

impl Home {
    /// Lets roll-overs, this one and later ones, wait for what these files say; none is by time alone.
    pub fn wait_for(&mut self, files: Vec<PathBuf>) -> Result<(), HomeError> {
        if self.state.acknowledged != files {
            self.state.acknowledged = files;
            self.save()?;
        }
        Ok(())
    }

    /// Whom the roll-over that is under way waits for before its next step; a step that needs nobody waits for
    /// nobody. A file that cannot be read is an error, and a reason to wait.
    pub fn awaited(&self) -> Result<Awaited, HomeError> {
        let mut awaited = Awaited::default();
        let Some(rollover) = &self.state.rollover else { return Ok(awaited) };
        let new = match rollover.step {
            Step::Trusted => rollover.other,
            Step::Used => self.state.root,
            Step::Adding | Step::Switching | Step::Dropping => return Ok(awaited),
        };
        let root = fingerprint(&self.root_certificate(new)?);
        let mut last = None;
        for file in &self.state.acknowledged {
            let said = self.said_in(file)?;
            let missing = |peer: Option<&String>, sequence| Missing {
                cluster: said.cluster.clone(),
                peer: peer.cloned(),
                sequence,
                file: file.clone(),
            };
            if said.offered.as_ref().is_none_or(|offered| !offered.roots.contains(&root)) {
                awaited.missing.push(missing(None, said.offered.as_ref().map(|offered| offered.sequence)));
            }
            for (peer, word) in &said.peers {
                match &word.acknowledged {
                    Some(taken) if taken.edition.roots.contains(&root) => last = last.max(Some(taken.at)),
                    taken => {
                        let sequence = taken.as_ref().map(|taken| taken.edition.sequence);
                        awaited.missing.push(missing(Some(peer), sequence));
                    }
                }
            }
        }
        // Who hears of the new root late has as long as the others until it signs.
        if rollover.step == Step::Trusted && awaited.missing.is_empty() {
            awaited.until = last.map(|last| last + self.state.overlap);
        }
        Ok(awaited)
    }

    fn said_in(&self, file: &Path) -> Result<Acknowledged, HomeError> {
        let unread = |cause| HomeError::Acknowledged { path: file.to_owned(), cause };
        let said = Acknowledged::read(file).map_err(|cause| unread(cause.to_string()))?;
        let own = &self.state.trust_domain;
        if said.trust_domain != *own {
            return Err(unread(format!("it is of an agent of {}, not of {own}", said.trust_domain)));
        }
        Ok(said)
    }
}
