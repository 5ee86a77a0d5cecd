//! A pass of rotation: brings every file to what the state says, then takes each step that is due. The next pass
//! completes one that was killed at any point.

use std::fmt;
use std::fs;
use std::io;

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use time::OffsetDateTime;

use super::issuing::Seen;
use super::{Awaited, Home, HomeError, ROOT_CERTIFICATE, Rollover, State, Step, is_there, renew_at};
use crate::authority::BACKDATE;
use crate::facts::Facts;
use crate::pem;

/// A roll-over begins by itself when this share of the root's life is left, in percent.
const ROOT_RESERVE: u32 = 20;

/// What a pass did.
#[derive(Debug, Default)]
pub struct Pass {
    /// The changes, in order.
    pub done: Vec<Done>,
    /// The failures. The next pass retries them; until then no roll-over takes its next step.
    pub problems: Vec<HomeError>,
    /// The acknowledgements that a due step of a roll-over waits for.
    pub awaited: Option<Awaited>,
    /// When the next pass has something to do.
    pub next: Option<OffsetDateTime>,
}

/// A change made by a pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "done", rename_all = "snake_case")]
pub enum Done {
    /// A new root and key.
    RootMade {
        /// Its number.
        root: u64,
    },
    /// The roots of the own bundle changed.
    BundlePublished {
        /// The number of roots.
        roots: usize,
    },
    /// A new certificate and key of an intermediate.
    IntermediateRenewed {
        /// The cluster.
        cluster: String,
    },
    /// The roots beside an intermediate changed.
    IntermediateRoots {
        /// The cluster.
        cluster: String,
    },
    /// A new certificate and key of a leaf.
    LeafRenewed {
        /// The name of the leaf.
        leaf: String,
    },
    /// The roots beside a leaf changed.
    LeafRoots {
        /// The name of the leaf.
        leaf: String,
    },
    /// The deny-list was signed again.
    DenyListSigned,
    /// A roll-over took a step, or ended.
    Stepped {
        /// The step it is at; none at its end.
        step: Option<Step>,
        /// The root that signs.
        root: u64,
    },
    /// A root that is no longer in the bundle was deleted, with its key.
    RootRemoved {
        /// Its number.
        root: u64,
    },
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootMade { root } => write!(f, "made root {root}"),
            Self::BundlePublished { roots } => write!(f, "published the bundle with its {roots} root(s)"),
            Self::IntermediateRenewed { cluster } => {
                write!(f, "renewed the intermediate of cluster {cluster}")
            }
            Self::IntermediateRoots { cluster } => {
                write!(f, "updated the trusted roots beside the intermediate of cluster {cluster}")
            }
            Self::LeafRenewed { leaf } => write!(f, "renewed leaf {leaf}"),
            Self::LeafRoots { leaf } => write!(f, "updated the trusted roots beside leaf {leaf}"),
            Self::DenyListSigned => write!(f, "signed the deny-list again"),
            Self::Stepped { step: Some(step), root } => write!(f, "roll-over: {step}; root {root} signs"),
            Self::Stepped { step: None, root } => {
                write!(f, "roll-over: complete; only root {root} is trusted")
            }
            Self::RootRemoved { root } => write!(f, "removed root {root} and its key"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adding => "adding the new root to the bundle",
            Self::Trusted => "the new root is trusted but does not sign yet",
            Self::Switching => "signing everything with the new root",
            Self::Used => "the new root signs; the old one is still trusted",
            Self::Dropping => "dropping the old root from the bundle",
        })
    }
}

/// A certificate in the directory, with its renewal.
#[derive(Debug, Clone, Serialize)]
pub struct Standing {
    /// `root`, `intermediate` or `leaf`.
    pub kind: &'static str,
    /// The root's number, the cluster, the leaf's name.
    pub name: String,
    /// The content of the certificate.
    pub facts: Facts,
    /// When it is renewed (a root: rolled over).
    #[serde(with = "time::serde::rfc3339")]
    pub renewal: OffsetDateTime,
}

impl Home {
    /// Begins a root roll-over, unless one is in progress; returns whether it did. [`Home::rotate`] carries it out.
    pub fn begin_rollover(&mut self, now: OffsetDateTime) -> Result<bool, HomeError> {
        match self.state.begin(now) {
            None => Ok(false),
            Some(begun) => {
                self.state = begun;
                self.save()?;
                Ok(true)
            }
        }
    }

    /// Makes a pass: does what is due at `now`. Validity of what it signs begins at the real time.
    pub fn rotate(&mut self, now: OffsetDateTime) -> Pass {
        let mut pass = Pass::default();
        if let Err(problem) = self.rotate_in(now, &mut pass) {
            pass.problems.push(problem);
        }
        let renewals = self.standings().into_iter().map(|standing| standing.renewal);
        let step = pass.awaited.as_ref().map_or_else(|| self.state.due(), |awaited| awaited.until);
        pass.next = renewals.chain(step).min();
        pass
    }

    fn rotate_in(&mut self, now: OffsetDateTime, pass: &mut Pass) -> Result<(), HomeError> {
        let is_due = |facts: &Facts| now >= rollover_at(facts);
        let root = Facts::read(&self.root_certificate(self.state.root)?);
        if root.is_ok_and(|root| is_due(&root)) {
            self.begin_rollover(now)?;
        }
        loop {
            self.see_to_all(now, pass)?;
            match self.state.next(now) {
                Some(next) if pass.problems.is_empty() => {
                    let awaited = self.awaited()?;
                    if !awaited.missing.is_empty() || awaited.until.is_some_and(|until| now < until) {
                        pass.awaited = Some(awaited);
                        return Ok(());
                    }
                    // The new root signs nothing until its key is available for everything.
                    self.root(next.root)?;
                    self.step(next, pass)?;
                }
                _ => return Ok(()),
            }
        }
    }

    fn step(&mut self, next: State, pass: &mut Pass) -> Result<(), HomeError> {
        self.state = next;
        self.save()?;
        let step = self.state.rollover.as_ref().map(|rollover| rollover.step);
        pass.done.push(Done::Stepped { step, root: self.state.root });
        Ok(())
    }

    /// Brings every file to what the state says.
    fn see_to_all(&mut self, now: OffsetDateTime, pass: &mut Pass) -> Result<(), HomeError> {
        for root in self.state.trusted() {
            let rollover = self.state.rollover.as_mut().filter(|rollover| rollover.other == root);
            let is_unused = |rollover: &&mut Rollover| matches!(rollover.step, Step::Adding | Step::Trusted);
            if let Some(rollover) = rollover.filter(is_unused)
                && !is_there(&self.folder.join("roots").join(root.to_string()).join(ROOT_CERTIFICATE))?
            {
                // A root lost before it signed anything is replaced by a new one, which no peer trusts yet.
                rollover.step = Step::Adding;
                rollover.since = now;
                self.save()?;
                self.make_root(root)?;
                pass.done.push(Done::RootMade { root });
            }
        }
        if self.publish_bundle(now)? {
            pass.done.push(Done::BundlePublished { roots: self.state.trusted().len() });
        }
        for cluster in self.state.clusters.clone() {
            let seen = self.see_to_cluster(&cluster, now);
            pass.note(
                seen,
                || Done::IntermediateRenewed { cluster: cluster.clone() },
                || Done::IntermediateRoots { cluster: cluster.clone() },
            );
        }
        for leaf in self.state.leaves.keys().cloned().collect::<Vec<_>>() {
            let seen = self.see_to_leaf(&leaf, now);
            pass.note(
                seen,
                || Done::LeafRenewed { leaf: leaf.clone() },
                || Done::LeafRoots { leaf: leaf.clone() },
            );
        }
        if self.see_to_deny_list(now)? {
            pass.done.push(Done::DenyListSigned);
        }
        self.remove_roots(pass)
    }

    fn remove_roots(&mut self, pass: &mut Pass) -> Result<(), HomeError> {
        let folder = self.folder.join("roots");
        let failed = |cause: io::Error| HomeError::Read { path: folder.clone(), cause };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            // Only older roots: a newer one belongs to a state that was lost.
            let is_old = |root: &u64| *root < self.state.root && !self.state.trusted().contains(root);
            if let Some(root) = number.filter(is_old) {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
                pass.done.push(Done::RootRemoved { root });
            }
        }
        Ok(())
    }

    /// Every readable certificate in the directory, with its renewal.
    pub fn standings(&self) -> Vec<Standing> {
        let roots = self.state.trusted().into_iter().map(|number| {
            let facts = self.root_certificate(number).ok().and_then(|root| Facts::read(&root).ok());
            facts.map(|facts| Standing {
                kind: "root",
                name: number.to_string(),
                renewal: rollover_at(&facts),
                facts,
            })
        });
        let clusters = self.state.clusters.iter().map(|cluster| {
            let file = self.cluster_folder(cluster).join("ca-cert.pem");
            standing("intermediate", cluster, first_of(&file)?)
        });
        let leaves = self.state.leaves.iter().map(|(name, kept)| {
            standing("leaf", name, first_of(&self.folder_of(name, kept).join("tls.crt"))?)
        });
        roots.chain(clusters).chain(leaves).flatten().collect()
    }
}

fn standing(kind: &'static str, name: &str, certificate: CertificateDer<'static>) -> Option<Standing> {
    let facts = Facts::read(&certificate).ok()?;
    Some(Standing { kind, name: name.to_owned(), renewal: renew_at(&facts), facts })
}

fn first_of(file: &std::path::Path) -> Option<CertificateDer<'static>> {
    pem::certificates(super::read_bytes(file).ok()?).ok()?.into_iter().next()
}

fn rollover_at(root: &Facts) -> OffsetDateTime {
    let life = root.not_after - (root.not_before + BACKDATE).min(root.not_after);
    root.not_after - life * ROOT_RESERVE / 100
}

impl Pass {
    fn note(
        &mut self,
        seen: Result<Option<Seen>, HomeError>,
        renewed: impl FnOnce() -> Done,
        roots: impl FnOnce() -> Done,
    ) {
        match seen {
            Ok(None) => {}
            Ok(Some(Seen::Renewed)) => self.done.push(renewed()),
            Ok(Some(Seen::Roots)) => self.done.push(roots()),
            Err(problem) => self.problems.push(problem),
        }
    }
}
