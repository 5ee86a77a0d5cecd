//! Who is at the ends of TLS that the gateway itself speaks, for the access log. Nothing of it decides anything but the
//! caller.

use std::fmt::Display;

use isthmus_certs::SpiffeId;
use serde::Serialize;

/// Maximum characters of a TLS error in the log; a peer may have chosen some of them.
const MAX_ERROR: usize = 512;

/// What is known of one connection; nothing in passthrough.
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

    /// Records the identity that the server has proven; earlier attempts no longer matter.
    pub(crate) fn answers_as(&mut self, server: Option<SpiffeId>) {
        let known = self.known();
        (known.server_identity, known.tls_error) = (server, None);
    }

    /// Records why TLS failed.
    pub(crate) fn failed(&mut self, error: &impl Display) {
        let text = error.to_string().escape_debug().take(MAX_ERROR).collect();
        self.known().tls_error = Some(text);
    }
}
