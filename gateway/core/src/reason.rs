//! Defines why a connection ended: a closed set of words, used as the label of counters, as a field of the access log
//! and in tests. Details are in the log's other fields.

use std::fmt;

/// The TLS alert sent to a refused client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Alert {
    /// 49: the name exists, but this source may not use it.
    AccessDenied = 49,
    /// 50: the bytes are not an acceptable ClientHello.
    DecodeError = 50,
    /// 80: a limit, or a failure of the gateway or the endpoint.
    InternalError = 80,
    /// 112: no service has this name.
    UnrecognizedName = 112,
}

impl Alert {
    /// Content type of its TLS record.
    pub const RECORD: u8 = 21;
}

/// The kind of a [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes were relayed before the end.
    Ended,
    /// The gateway refused to serve the client.
    Refused(Option<Alert>),
    /// The gateway tried to serve the client and could not.
    Failed(Option<Alert>),
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal, $kind:expr;)+) => {
        /// The one word that says why a connection ended or was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason, in the order of their discriminants.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// Returns the word for logs and labels.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Reason::$name => $word,)+ }
            }

            /// Returns the meaning in one sentence, the same as in the documentation.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Reason::$name => concat!($($doc,)+).trim_ascii(),)+ }
            }

            /// Returns the kind, with its alert.
            #[must_use]
            pub const fn kind(self) -> Kind {
                match self { $(Reason::$name => $kind,)+ }
            }
        }
    };
}

const BAD_HELLO: Kind = Kind::Refused(Some(Alert::DecodeError));
const NO_NAME: Kind = Kind::Refused(Some(Alert::UnrecognizedName));
const DENIED: Kind = Kind::Refused(Some(Alert::AccessDenied));
const LIMIT: Kind = Kind::Refused(Some(Alert::InternalError));
const FAILED: Kind = Kind::Failed(Some(Alert::InternalError));

reasons! {
    /// The client closed first, and both directions ended in order.
    ClientClosed = "client_closed", Kind::Ended;
    /// The server closed first, and both directions ended in order.
    ServerClosed = "server_closed", Kind::Ended;
    /// The client reset the connection; the server was reset too.
    ClientReset = "client_reset", Kind::Ended;
    /// The server reset the connection; the client was reset too.
    ServerReset = "server_reset", Kind::Ended;
    /// No byte moved in either direction for the idle timeout.
    IdleTimeout = "idle_timeout", Kind::Ended;
    /// One side had closed, and the other was silent for the half-close timeout.
    HalfCloseTimeout = "half_close_timeout", Kind::Ended;
    /// The server sent no first byte in time.
    FirstByteTimeout = "first_byte_timeout", Kind::Ended;
    /// The connection reached its maximum duration.
    MaxDuration = "max_duration", Kind::Ended;
    /// Closed in order because its endpoint turned unhealthy and the service has `close_on_unhealthy`.
    EndpointUnhealthy = "endpoint_unhealthy", Kind::Ended;
    /// Closed in order while the gateway was draining.
    Drained = "drained", Kind::Ended;
    /// Cut at the end of the drain window, or by a second signal.
    Shutdown = "shutdown", Kind::Ended;

    /// The first bytes are not a TLS handshake record.
    NotTls = "not_tls", BAD_HELLO;
    /// The client began in Postgres' own protocol (SSLRequest, GSSENCRequest, StartupMessage), not with TLS.
    PostgresPlain = "postgres_plain", Kind::Refused(None);
    /// The client sent nothing until the hello's deadline; it may wait for the server to speak first.
    ClientSilent = "client_silent", Kind::Refused(None);
    /// The ClientHello breaks the protocol: a wrong length, a duplicate extension, a bad name.
    HelloMalformed = "hello_malformed", BAD_HELLO;
    /// The ClientHello is larger than the limit.
    HelloTooLarge = "hello_too_large", BAD_HELLO;
    /// The ClientHello was not whole at the deadline.
    HelloTimeout = "hello_timeout", BAD_HELLO;
    /// The client closed or reset before its ClientHello was whole.
    HelloIncomplete = "hello_incomplete", BAD_HELLO;
    /// The ClientHello names no server, and the listener has no default.
    NoSni = "no_sni", NO_NAME;
    /// No service has that name, and the listener has no default.
    SniUnmatched = "sni_unmatched", NO_NAME;
    /// No service has the address and port that the application dialled.
    DestinationUnmatched = "destination_unmatched", Kind::Refused(None);
    /// The name exists, but not for any protocol that the client offers.
    AlpnUnmatched = "alpn_unmatched", NO_NAME;
    /// The name exists, but not for this source address.
    SourceDenied = "source_denied", DENIED;
    /// The client's identity may not use this service.
    IdentityDenied = "identity_denied", DENIED;
    /// A trusted source sent no PROXY header, or a broken one.
    ProxyMalformed = "proxy_malformed", Kind::Refused(None);
    /// A source that is not trusted to sent a PROXY header.
    ProxyDenied = "proxy_denied", Kind::Refused(None);
    /// The endpoint is one of this gateway's own addresses.
    Loop = "loop", FAILED;
    /// The listener has as many connections as it may.
    LimitListener = "limit_listener", LIMIT;
    /// The gateway has as many connections as it may.
    LimitTotal = "limit_total", LIMIT;
    /// The source address has as many connections as it may.
    LimitSource = "limit_source", LIMIT;
    /// The service has as many connections as it may.
    LimitService = "limit_service", LIMIT;
    /// The service has as many connects under way as it may.
    LimitPending = "limit_pending", LIMIT;
    /// Every endpoint of the service that could serve has as many connections as it may.
    LimitEndpoint = "limit_endpoint", LIMIT;
    /// The ClientHellos in flight use all of their memory budget.
    LimitMemory = "limit_memory", LIMIT;

    /// The service has no endpoint that takes connections.
    NoEndpoint = "no_endpoint", FAILED;
    /// Every endpoint that was tried refused; this is the last one's answer.
    ConnectRefused = "connect_refused", FAILED;
    /// Every endpoint that was tried failed; the last one did not answer in time.
    ConnectTimeout = "connect_timeout", FAILED;
    /// Every endpoint that was tried failed; the last one could not be reached.
    ConnectFailed = "connect_failed", FAILED;
    /// The server answered the ClientHello with a fatal alert, a close or a reset, and no retry was left.
    UpstreamRejected = "upstream_rejected", Kind::Failed(None);
    /// The client left before the server's first byte.
    ClientGone = "client_gone", Kind::Failed(None);
    /// A TLS handshake of the gateway's own failed.
    TlsFailed = "tls_failed", FAILED;
    /// This machine ran out of descriptors, ports or memory; the endpoint is not to blame.
    LocalResources = "local_resources", FAILED;
    /// A bug: this connection's task ended without an answer.
    Internal = "internal", FAILED;

    /// The connection never sent a byte, as load balancers' checks do; not logged by default.
    NoData = "no_data", Kind::Refused(None);
    /// A gateway of another cluster probed this one; not logged by default.
    GatewayProbe = "gateway_probe", NO_NAME;
}

impl Reason {
    /// Returns the alert for the client, if any.
    #[must_use]
    pub const fn alert(self) -> Option<Alert> {
        match self.kind() {
            Kind::Ended => None,
            Kind::Refused(alert) | Kind::Failed(alert) => alert,
        }
    }

    /// Returns a hint for the operator, for the access log.
    #[must_use]
    pub const fn hint(self) -> Option<&'static str> {
        match self {
            Reason::PostgresPlain => Some(
                "a Postgres client must begin with TLS here: sslnegotiation=direct and sslmode=require or stricter (libpq 17 or later)",
            ),
            Reason::ClientSilent => Some(
                "a client whose server speaks first (MySQL, MariaDB, SMTP) sends no name to route by: wrap its connection in TLS that names the service",
            ),
            Reason::DestinationUnmatched => Some(
                "`isthmus-gateway explain HOST` names the addresses and ports by which a service is reached; the listener itself is not one",
            ),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_discriminants_index_all_and_words_are_unique() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.word()).collect();
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
