//! The acknowledgements that a root roll-over waits for, beside the time: those of the peers of this domain's agents,
//! as recorded in the files that the agents write. A missing acknowledgement, or a missing file, stops the roll-over.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use time::OffsetDateTime;

use super::{Home, HomeError, Step};
use crate::acknowledged::Acknowledged;
use crate::facts::fingerprint;

/// The acknowledgements that a roll-over waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Awaited {
    /// The agents and peers without the new root.
    pub missing: Vec<Missing>,
    /// If none is missing: when the last one has had the new root for the whole overlap.
    #[serde(skip)]
    pub until: Option<OffsetDateTime>,
}

/// An agent or peer that is not known to have the new root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The cluster; without `peer`, its own agent is missing.
    pub cluster: String,
    /// The peer of that cluster.
    pub peer: Option<String>,
    /// The sequence number of the last acknowledged bundle or, without `peer`, of the offered one.
    pub sequence: Option<u64>,
    /// The file that records it.
    pub file: PathBuf,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, peer, sequence, file } = self;
        match (peer, sequence) {
            (Some(peer), Some(sequence)) => {
                write!(
                    f,
                    "peer {peer:?} of {cluster:?}: its last acknowledged bundle ({sequence}) lacks the new root"
                )?;
            }
            (Some(peer), None) => write!(f, "peer {peer:?} of {cluster:?}: no bundle acknowledged yet")?,
            (None, Some(sequence)) => {
                write!(f, "the agent of {cluster:?}: its bundle ({sequence}) lacks the new root")?
            }
            (None, None) => write!(f, "the agent of {cluster:?}: it offers no bundle")?,
        }
        write!(f, " ({})", file.display())
    }
}

impl Home {
    /// Makes this and later roll-overs wait for the acknowledgements in these files; without files, for time alone.
    pub fn wait_for(&mut self, files: Vec<PathBuf>) -> Result<(), HomeError> {
        if self.state.acknowledged != files {
            self.state.acknowledged = files;
            self.save()?;
        }
        Ok(())
    }

    /// The acknowledgements missing for the next step of the current roll-over; some steps need none. An unreadable
    /// file is an error, which also stops the roll-over.
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
            let known = self.read_acknowledged(file)?;
            let missing = |peer: Option<&String>, sequence| Missing {
                cluster: known.cluster.clone(),
                peer: peer.cloned(),
                sequence,
                file: file.clone(),
            };
            if known.offered.as_ref().is_none_or(|offered| !offered.roots.contains(&root)) {
                awaited.missing.push(missing(None, known.offered.as_ref().map(|offered| offered.sequence)));
            }
            for (peer, word) in &known.peers {
                match &word.acknowledged {
                    Some(taken) if taken.edition.roots.contains(&root) => last = last.max(Some(taken.at)),
                    taken => {
                        let sequence = taken.as_ref().map(|taken| taken.edition.sequence);
                        awaited.missing.push(missing(Some(peer), sequence));
                    }
                }
            }
        }
        // A peer that gets the new root late has as long as the others before the root signs.
        if rollover.step == Step::Trusted && awaited.missing.is_empty() {
            awaited.until = last.map(|last| last + self.state.overlap);
        }
        Ok(awaited)
    }

    fn read_acknowledged(&self, file: &Path) -> Result<Acknowledged, HomeError> {
        let unread = |cause| HomeError::Acknowledged { path: file.to_owned(), cause };
        let known = Acknowledged::read(file).map_err(|cause| unread(cause.to_string()))?;
        let own = &self.state.trust_domain;
        if known.trust_domain != *own {
            return Err(unread(format!(
                "it was written by an agent of {}, not of {own}",
                known.trust_domain
            )));
        }
        Ok(known)
    }
}
