//! Whose certificates a gateway may have.

use isthmus_certs::{IdPattern, SpiffeId};

/// Patterns of one gateway.
pub const MAX_GRANTED: usize = 1_000;
/// Bytes of all patterns of one gateway, so that a store takes the list as one record.
const MAX_BYTES: usize = 256 << 10;

/// The workloads whose certificates a gateway may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    gateway: SpiffeId,
    identities: Vec<IdPattern>,
}

/// Why a list is not one of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantedError {
    /// There are too many patterns.
    #[error("there are {0} patterns; the limit is {MAX_GRANTED}")]
    Patterns(usize),
    /// They are too long.
    #[error("the patterns have {0} bytes; the limit is {MAX_BYTES}")]
    Bytes(usize),
}

impl Granted {
    /// Checks a list.
    ///
    /// # Errors
    /// It is over a limit.
    pub fn new(gateway: SpiffeId, identities: Vec<IdPattern>) -> Result<Granted, GrantedError> {
        check_limits(&identities)?;
        Ok(Granted { gateway, identities })
    }

    /// The gateway.
    #[must_use]
    pub fn gateway(&self) -> &SpiffeId {
        &self.gateway
    }

    /// The workloads.
    #[must_use]
    pub fn identities(&self) -> &[IdPattern] {
        &self.identities
    }

    /// Whether the gateway may have the certificate of a workload.
    #[must_use]
    pub fn covers(&self, workload: &SpiffeId) -> bool {
        self.identities.iter().any(|pattern| pattern.matches(workload))
    }
}

/// Checks the limits of one gateway's patterns.
///
/// # Errors
/// They are over a limit.
pub fn check_limits(identities: &[IdPattern]) -> Result<(), GrantedError> {
    if identities.len() > MAX_GRANTED {
        return Err(GrantedError::Patterns(identities.len()));
    }
    let bytes = identities.iter().map(|pattern| pattern.to_string().len()).sum();
    if bytes > MAX_BYTES { Err(GrantedError::Bytes(bytes)) } else { Ok(()) }
}
