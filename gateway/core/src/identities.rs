//! Who is at the ends of TLS that the gateway itself speaks, and what the rules for callers said, for the access log.
//! Nothing of it decides anything but the caller.

use std::fmt::Display;

use isthmus_certs::SpiffeId;
use isthmus_model::access::{Decision, Verdict};
use serde::Serialize;

/// Maximum characters of a TLS error in the log; a peer may have chosen some of them.
const MAX_ERROR: usize = 512;

/// Maximum dry-run rules of a connection in the log.
const MAX_DRY_RUN: usize = 8;

/// What is known of one connection; nothing where TLS passes through for everybody.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Identities(Option<Box<Known>>);

#[derive(Debug, Default, Serialize)]
struct Known {
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<SpiffeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_identity: Option<SpiffeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    access_dry_run: Vec<String>,
    /// What the audit log was told last.
    #[serde(skip)]
    audited: Option<Verdict>,
}

impl Identities {
    fn known(&mut self) -> &mut Known {
        self.0.get_or_insert_default()
    }

    /// Records whose identity the client has; `None` for a client that has not proven any.
    pub(crate) fn calls_as(&mut self, caller: Option<SpiffeId>) {
        self.known().caller = caller;
    }

    /// Returns the client's identity.
    pub(crate) fn caller(&self) -> Option<&SpiffeId> {
        self.0.as_ref().and_then(|known| known.caller.as_ref())
    }

    /// Returns the identity that the server has proven.
    pub(crate) fn server(&self) -> Option<&SpiffeId> {
        self.0.as_ref().and_then(|known| known.server_identity.as_ref())
    }

    /// Returns why TLS failed.
    pub(crate) fn error(&self) -> Option<&str> {
        self.0.as_ref().and_then(|known| known.tls_error.as_deref())
    }

    /// Records the identity that the server has proven; earlier attempts no longer matter.
    pub(crate) fn answers_as(&mut self, server: Option<SpiffeId>) {
        let known = self.known();
        (known.server_identity, known.tls_error) = (server, None);
    }

    /// Records what the rules for callers say; an earlier decision no longer matters.
    pub(crate) fn decided(&mut self, decision: &Decision<'_>) {
        let known = self.known();
        known.access = Some(decision.to_string());
        known.access_dry_run = decision.dry_run.iter().take(MAX_DRY_RUN).map(ToString::to_string).collect();
    }

    /// Records what the audit log is told; false if it was told that before.
    pub(crate) fn audit(&mut self, verdict: Verdict) -> bool {
        self.known().audited.replace(verdict) != Some(verdict)
    }

    /// Records why TLS failed.
    pub(crate) fn failed(&mut self, error: &impl Display) {
        let text = error.to_string().escape_debug().take(MAX_ERROR).collect();
        self.known().tls_error = Some(text);
    }
}
