//! The section `services:`, shared by gateway and registry files: its written form, and the services resolved
//! from it. An invalid service cannot be represented. Ownership and visibility are elsewhere.

pub mod defaults;
pub mod health;
mod names;
pub mod raw;
mod resolve;
mod scope;
mod table;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use isthmus_certs::SpiffeId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::access::{Access, AccessError, AccessRules, RemoteAccess, Scopes};
use crate::host::{HostName, HostPattern};
use crate::labels::Labels;
use crate::locality::Locality;
use crate::traffic::{self, Traffic};

use super::address::Target;
use super::units;

pub use health::{HealthCheck, Probe};
pub use resolve::{Refusal, timeouts};
pub use scope::{ClientCertificate, ExportMeta, Named, RemoteGateway, Scope, Staleness};
pub use table::{Entry, Table};
pub use tls::{CertificateFiles, ServiceAccess, ServiceTls};

/// One service: a host, a port, and its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// The host, exact or `*.suffix`; unique together with the port.
    pub host: HostPattern,
    /// The port in `outbound_.PORT_._.HOST`.
    pub port: u16,
    /// Whether the bare host, the aliases and `INSTANCE.HOST` mean this port.
    #[serde(rename = "bare")]
    pub default_port: bool,
    /// Other names.
    pub aliases: Vec<HostPattern>,
    /// Condition: the client offers one of these protocols. Empty: no condition.
    pub alpn: Vec<String>,
    /// Condition: the client's address is in one of these. Empty: no condition.
    pub sources: Vec<IpNet>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// Limit of concurrent connections; `None`: no limit.
    #[serde(serialize_with = "units::count_or_off")]
    pub max_connections: Option<u32>,
    /// Whether to send a PROXY v2 header with the client's address and the SNI.
    pub send_proxy: bool,
    /// The deadlines, with general ones filled in.
    pub timeouts: ServiceTimeouts,
    /// The policy of its traffic; `None` where none is written.
    #[serde(serialize_with = "traffic::in_use")]
    pub traffic: Option<Arc<Traffic>>,
    /// How the health of its endpoints is learned; `None` where nothing is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Box<HealthCheck>>,
    /// The endpoints; may be empty.
    pub endpoints: Vec<Endpoint>,
    /// Whether connections from other clusters may use it.
    pub exposed: bool,
    /// Metadata for the agent only; `None` where nothing is set.
    pub about: Option<Box<ExportMeta>>,
    /// How a gateway begins or ends TLS for it, and who may connect; `None` where TLS passes through for everybody.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Box<ServiceTls>>,
}

impl Service {
    /// Who speaks TLS with its clients.
    #[must_use]
    pub fn tls_mode(&self) -> TlsMode {
        self.tls.as_ref().map(|tls| tls.mode).unwrap_or_default()
    }

    /// The identities of its endpoints. Empty: TLS cannot be originated to it.
    #[must_use]
    pub fn identities(&self) -> &[SpiffeId] {
        self.tls.as_ref().map(|tls| tls.identities.as_slice()).unwrap_or_default()
    }

    /// Its own rules for callers, if a file has any.
    #[must_use]
    pub fn access(&self) -> Option<&AccessRules> {
        match self.tls.as_ref()?.access.as_ref()? {
            ServiceAccess::Written(rules) => Some(rules),
            ServiceAccess::Combined(_) => None,
        }
    }

    /// The access that a gateway enforces: by the rules of all scopes, or by its own where a file has them and no wider
    /// scope is known. `None`: everybody may connect.
    ///
    /// # Errors
    /// The rules are too large, or ask for the own trust domain.
    pub fn enforced_access(&self) -> Result<Option<Arc<Access>>, AccessError> {
        if let Some(ServiceAccess::Combined(access)) = self.tls.as_ref().and_then(|tls| tls.access.as_ref()) {
            return Ok(Some(Arc::clone(access)));
        }
        let (service, mode) = (self.access(), self.tls_mode());
        if service.is_none() && mode == TlsMode::Passthrough {
            return Ok(None);
        }
        let alone = Scopes { own: None, cluster: None, workspaces: &[], namespace: None, service };
        alone.access(mode).map(|access| Some(Arc::new(access)))
    }

    /// How it is known that its endpoints require a client certificate.
    #[must_use]
    pub fn client_certificate(&self) -> ClientCertificate {
        self.about.as_ref().map_or_else(ClientCertificate::default, |about| about.client_certificate)
    }

    /// Whether it is exported without a check that its endpoints require a client certificate: where a gateway ends the
    /// TLS, the gateway requires it.
    #[must_use]
    pub fn skips_mtls_check(&self) -> bool {
        self.tls_mode() == TlsMode::Terminate || self.client_certificate() != ClientCertificate::Probed
    }

    /// The identity whose certificate the agent issues for it: its first one, where a gateway ends its TLS and the file
    /// names no certificate.
    #[must_use]
    pub fn issued_identity(&self) -> Option<&SpiffeId> {
        let tls = self.tls.as_ref()?;
        tls.identities.first().filter(|_| tls.mode == TlsMode::Terminate && tls.files.is_none())
    }

    /// Whether one of its endpoints has this address.
    #[must_use]
    pub fn has_endpoint(&self, address: &Target) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.address == *address)
    }

    /// Its host and aliases, as names in a certificate.
    pub fn certificate_names(&self) -> impl Iterator<Item = String> {
        std::iter::once(&self.host).chain(&self.aliases).map(ToString::to_string)
    }

    /// Whether VMs may register themselves for it.
    #[must_use]
    pub fn takes_registrations(&self) -> bool {
        self.about.as_ref().is_some_and(|about| about.registered)
    }
}

/// Who speaks TLS with the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TlsMode {
    /// The endpoints.
    #[default]
    Passthrough,
    /// The gateway, which passes plaintext to the endpoints.
    Terminate,
}

/// How an endpoint is chosen among the healthy ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// Of two chosen at random, the one with fewer connections for its weight.
    LeastConnections,
    /// At random, by weight.
    Random,
    /// By the client's address: the same endpoint while it lives.
    SourceHash,
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// One address that serves a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Its address.
    pub address: Target,
    /// Its stable name, one label, unique in the service.
    pub instance: Option<HostName>,
    /// Its weight; 0 gets no new connections.
    pub weight: u32,
    /// Its locality.
    pub locality: Locality,
    /// Other names of the instance.
    pub aliases: Box<[HostName]>,
    /// Its labels, which a split selects by.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The clients that may use it.
    pub reach: Scope,
    /// The rules for callers of the cluster that it belongs to, where that is another one and has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<Arc<RemoteAccess>>,
    /// Its priority: 0 is tried first, a higher one only if no lower one is healthy.
    pub priority: u8,
    /// Its part of the split; no part has what is `u8::MAX`.
    #[serde(skip)]
    pub part: u8,
    /// Whether its registry says that it accepts connections. One that does not has the weight 0 and counts as unhealthy.
    #[serde(skip)]
    pub is_ready: bool,
}

/// The deadlines of one service. `None`: no limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ServiceTimeouts {
    /// One connect attempt.
    #[serde(serialize_with = "units::duration")]
    pub connect: Duration,
    /// All connect attempts together.
    #[serde(serialize_with = "units::duration")]
    pub connect_total: Duration,
    /// No byte in either direction.
    #[serde(serialize_with = "units::duration_or_off")]
    pub idle: Option<Duration>,
    /// One side closed, the other silent.
    #[serde(serialize_with = "units::duration_or_off")]
    pub half_closed: Option<Duration>,
    /// From connect to the server's first byte.
    #[serde(serialize_with = "units::duration_or_off")]
    pub first_byte: Option<Duration>,
    /// From accept to the end.
    #[serde(serialize_with = "units::duration_or_off")]
    pub max_duration: Option<Duration>,
}

impl Default for ServiceTimeouts {
    /// The defaults of a service without deadlines.
    fn default() -> ServiceTimeouts {
        ServiceTimeouts {
            connect: defaults::CONNECT,
            connect_total: defaults::CONNECT_TOTAL,
            idle: defaults::IDLE,
            half_closed: defaults::HALF_CLOSED,
            first_byte: defaults::FIRST_BYTE,
            max_duration: defaults::MAX_DURATION,
        }
    }
}
