//! Registrations outlive the agent: one value in a [`Store`], a line for each. Whoever was registered when the
//! agent went is given a whole TTL when it comes back. Not when it is written: its owner decides that.

use std::sync::Arc;
use std::time::Instant;

use serde::Deserialize;
use serde_json::Value;

use crate::config::problem::Plain;
use crate::registry::store::{Store, StoreError, Version};

use super::lease::Digest;
use super::registration::Registration;
use super::{Refused, Registered};

/// What it is called in the store.
pub const KEY: &str = "registered.json";
/// Where one that could not be read goes.
pub const DAMAGED: &str = "registered.json.damaged";
const FORMAT: u32 = 1;
/// What is left out by name; more is only counted.
const SHOWN: usize = 100;

/// Where registrations are kept, and what stands there.
pub struct Kept {
    store: Arc<dyn Store>,
    version: Option<Version>,
    saved: u64,
}

/// What is to be kept, as it was at one moment.
#[derive(Debug)]
pub struct Draft {
    revision: u64,
    text: String,
}

/// Registrations were not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The store does not take them.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It holds something else than what was last written.
    #[error("{KEY} was changed by another hand; what it says is not read, and is replaced next time")]
    Elsewhere,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    registrations: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    lease: String,
    registration: Value,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Kept { store: _, version, saved } = self;
        f.debug_struct("Kept").field("version", version).field("saved", saved).finish_non_exhaustive()
    }
}

impl Kept {
    /// Reads what was kept, with what is wrong with it: a registration that cannot be read is left out, or all of
    /// them are, and what stood there is set aside.
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn load(
        store: Arc<dyn Store>,
        now: Instant,
    ) -> Result<(Kept, Registered, Vec<String>), StoreError> {
        let mut kept = Kept { store, version: None, saved: 0 };
        let Some(found) = kept.store.get(KEY).await? else {
            return Ok((kept, Registered::default(), Vec::new()));
        };
        kept.version = Some(found.version);
        let (registered, mut problems) = match Registered::read(&found.value, now) {
            Ok(read) => read,
            Err(why) => (Registered::default(), vec![format!("{KEY} is damaged: {why}")]),
        };
        kept.saved = registered.revision();
        if !problems.is_empty() {
            let aside = kept.store.get(DAMAGED).await?.map(|aside| aside.version);
            kept.store.compare_and_swap(DAMAGED, aside, found.value).await?;
            problems
                .push(format!("{KEY} is set aside as {DAMAGED}; the VMs that are left out register again"));
            // Whatever there is now, it is not what stands there.
            kept.saved = u64::MAX;
        }
        Ok((kept, registered, problems))
    }

    /// What is to be saved; none where nothing has changed since it last was.
    #[must_use]
    pub fn draft(&self, registered: &Registered) -> Option<Draft> {
        let revision = registered.revision();
        (revision != self.saved).then(|| Draft { revision, text: registered.written() })
    }

    /// Saves it: whole, or what was there stays.
    ///
    /// # Errors
    /// It was not saved, and the next draft says as much again.
    pub async fn save(&mut self, draft: Draft) -> Result<(), KeepError> {
        let value = draft.text.into_bytes();
        if let Some(version) = self.store.compare_and_swap(KEY, self.version, value).await? {
            self.version = Some(version);
            self.saved = draft.revision;
            return Ok(());
        }
        self.version = self.store.get(KEY).await?.map(|found| found.version);
        Err(KeepError::Elsewhere)
    }
}

impl Registered {
    /// All of it as text: JSON with a line for each registration.
    #[must_use]
    pub fn written(&self) -> String {
        let all = self.ports.values().flat_map(|instances| instances.values());
        let lines: Vec<_> = all
            .map(|held| {
                // What was registered is JSON on one line already.
                let (lease, text) = (held.lease.shown(), &held.registration.text);
                format!("{{\"lease\":\"{lease}\",\"registration\":{text}}}")
            })
            .collect();
        format!("{{\"format\":{FORMAT},\"registrations\":[\n{}\n]}}\n", lines.join(",\n"))
    }

    /// Reads what [`Registered::written`] wrote: each lease begins anew. Gives also what was left out, and why.
    ///
    /// # Errors
    /// The whole cannot be read.
    pub fn read(text: &[u8], now: Instant) -> Result<(Registered, Vec<String>), String> {
        let file: File = serde_json::from_slice(text).map_err(|why| Plain(&why.to_string()).to_string())?;
        if file.format != FORMAT {
            return Err(format!("format {}, and this agent reads {FORMAT}", file.format));
        }
        let mut registered = Registered::default();
        let (mut problems, mut more) = (Vec::new(), 0_usize);
        for (index, line) in file.registrations.iter().enumerate() {
            match registered.restore(line, now) {
                Ok(()) => {}
                Err(_) if problems.len() >= SHOWN => more += 1,
                Err(why) => problems.push(format!("{KEY}: registrations[{index}] is left out: {why}")),
            }
        }
        if more > 0 {
            problems.push(format!("{KEY}: {more} more are left out"));
        }
        Ok((registered, problems))
    }

    fn restore(&mut self, line: &Line, now: Instant) -> Result<(), Refused> {
        let lease = Digest::parse(&line.lease).filter(|lease| !self.leases.contains_key(lease));
        let lease = lease.ok_or_else(|| Refused::Wrong("lease: not one, or another's".to_owned()))?;
        let registration = Registration::parse(line.registration.to_string().as_bytes())?;
        let identity = registration.identity();
        if self.held(&identity).is_some() {
            return Err(Refused::Wrong(format!("{identity} stands twice")));
        }
        self.check(&registration, &identity)?;
        self.put(registration, identity, lease, now)
    }
}
