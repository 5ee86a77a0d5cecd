//! Serializes registrations for a restart: one record each, keyed by its lease. A restored registration gets
//! a whole TTL. When and where records are written is up to the caller.

use std::collections::BTreeSet;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use isthmus_model::problem::Plain;

use super::lease::Digest;
use super::registration::Registration;
use super::{Refused, Registered, RegisteredInstance};

/// The prefix of record keys.
const KIND: &str = "registration/";
const FORMAT: u32 = 1;

/// The former single file with all registrations.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    registrations: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    lease: String,
    registration: Value,
}

/// The records in the former `registered.json`, and the error in it.
#[must_use]
pub fn of_before(text: &[u8]) -> (Vec<(String, Vec<u8>)>, Option<String>) {
    let file: File = match serde_json::from_slice(text) {
        Ok(file) => file,
        Err(why) => return (Vec::new(), Some(Plain(&why.to_string()).to_string())),
    };
    if file.format != FORMAT {
        return (Vec::new(), Some(format!("has format {}, but this agent reads {FORMAT}", file.format)));
    }
    let record = |line: &Line| Some((format!("{KIND}{}", line.lease), serde_json::to_vec(line).ok()?));
    (file.registrations.iter().filter_map(record).collect(), None)
}

impl Registered {
    /// The keys of all records.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        self.leases.keys().map(key).collect()
    }

    /// The record under a key.
    #[must_use]
    pub fn record(&self, key: &str) -> Option<Vec<u8>> {
        let lease = Digest::parse(key.strip_prefix(KIND)?)?;
        let RegisteredInstance { registration, .. } = self.held(self.leases.get(&lease)?)?;
        // The registration's text is JSON on one line already.
        Some(format!("{{\"lease\":\"{}\",\"registration\":{}}}", lease.hex(), registration.text).into_bytes())
    }

    /// The keys of records that changed or ended since the last call.
    pub fn changed(&mut self) -> Vec<String> {
        std::mem::take(&mut self.unsaved).iter().map(key).collect()
    }

    /// Restores a record after a restart, with a new TTL.
    ///
    /// # Errors
    /// The record is invalid, or contradicts another registration.
    pub fn restore(&mut self, name: &str, record: &[u8], now: Instant) -> Result<(), Refused> {
        let line: Line = serde_json::from_slice(record)
            .map_err(|why| Refused::Wrong(Plain(&why.to_string()).to_string()))?;
        let lease = Digest::parse(&line.lease).filter(|lease| !self.leases.contains_key(lease));
        let lease = lease.filter(|lease| key(lease) == name);
        let lease = lease.ok_or_else(|| Refused::Wrong("lease: invalid, or of another record".to_owned()))?;
        let registration = Registration::parse(line.registration.to_string().as_bytes())?;
        let identity = registration.identity();
        if self.held(&identity).is_some() {
            return Err(Refused::Wrong(format!("{identity} is registered twice")));
        }
        self.check(&registration, &identity)?;
        self.insert(registration, identity, lease, now)?;
        self.unsaved.remove(&lease);
        Ok(())
    }
}

pub(super) type Unsaved = BTreeSet<Digest>;

fn key(lease: &Digest) -> String {
    format!("{KIND}{}", lease.hex())
}
