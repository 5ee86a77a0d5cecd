//! Encodes slices as messages and decodes them. An unknown setting refuses only its slice; every list and
//! text is bounded.

mod access;
mod health;
mod traffic;
mod words;

use std::collections::HashSet;
use std::hash::Hash;
use std::time::Duration;

use isthmus_certs::SpiffeId;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::{Cluster, Endpoint, Gateway, Health, Instance, Key, Offer, Order, Port, Ready, Slice, Staleness};
use crate::access::Access;
use crate::address::{Ranges, Target};
use crate::host::{HostName, HostPattern};
use crate::traffic::Traffic;
use crate::units::Wrong;
use isthmus_proto::isthmus::v1 as pb;

use traffic::{labels, labels_message};
use words::{
    balance, balance_number, locality, locality_message, timeouts, timeouts_message, tls, tls_number,
};

/// The limit of bytes of a slice's message.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;
const MAX_PORTS: usize = 256;
const MAX_ENDPOINTS: usize = 65_536;
const MAX_LIST: usize = 1_024;
const MAX_TEXT: usize = 253;

/// Why a message is not a valid slice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The message is too large.
    #[error("the slice has {0} bytes; the limit is {MAX_MESSAGE}")]
    TooLarge(usize),
    /// The message is not valid protobuf.
    #[error("the slice cannot be decoded: {0}")]
    Malformed(prost::DecodeError),
    /// The slice requires an unknown feature.
    #[error("the slice requires {0:?}, which this version does not support; upgrade it")]
    Requires(String),
    /// A field is missing or invalid.
    #[error("{field}: {what}")]
    Field {
        /// The path of the field.
        field: String,
        /// The error.
        what: String,
    },
}

type Result<T> = std::result::Result<T, WireError>;

fn wrong<T>(field: &str, what: impl ToString) -> Result<T> {
    Err(WireError::Field { field: field.to_owned(), what: what.to_string() })
}

/// Prefixes the field of an error with its part.
fn within<T>(part: impl FnOnce() -> String, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        WireError::Field { field, what } => WireError::Field { field: format!("{}.{field}", part()), what },
        other => other,
    })
}

impl Slice {
    /// The message. Equal slices have equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.to_message().encode_to_vec()
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// The first error in it.
    pub fn decode(bytes: &[u8]) -> Result<Slice> {
        if bytes.len() > MAX_MESSAGE {
            return Err(WireError::TooLarge(bytes.len()));
        }
        Slice::from_message(pb::ServiceSlice::decode(bytes).map_err(WireError::Malformed)?)
    }

    fn to_message(&self) -> pb::ServiceSlice {
        let mut message = pb::ServiceSlice {
            cluster: self.key.cluster.to_string(),
            host: self.key.host.to_string(),
            incarnation: self.order.incarnation,
            revision: self.order.revision,
            withdrawn: self.offer.is_none(),
            ..pb::ServiceSlice::default()
        };
        if let Some(offer) = &self.offer {
            message.network.clone_from(&offer.network);
            message.aliases = texts(&offer.aliases);
            if offer.ports.iter().any(|port| port.access.restricts()) {
                message.requires.push(access::WORD.to_owned());
            }
            message.ports = offer.ports.iter().map(Port::to_message).collect();
            message.gateways = offer.gateways.iter().map(Gateway::to_message).collect();
            message.staleness = Some(offer.staleness.to_message());
            message.merge = offer.merge;
            message.exposed_on.clone_from(&offer.exposed_on);
            message.gateway_ranges = texts(&offer.gateway_ranges.0);
        }
        message
    }

    fn from_message(message: pb::ServiceSlice) -> Result<Slice> {
        if let Some(word) = message.requires.iter().find(|word| *word != access::WORD) {
            return Err(WireError::Requires(word.chars().take(64).collect()));
        }
        let cluster = message.cluster.parse::<Cluster>().or_else(|error| wrong("cluster", error))?;
        let host = HostPattern::parse(&message.host).or_else(|error| wrong("host", error))?;
        let (incarnation, revision) = (message.incarnation, message.revision);
        if incarnation == 0 || revision == 0 {
            return wrong("revision", "must be at least 1, as must the incarnation");
        }
        let order = Order { incarnation, revision };
        let offer = if message.withdrawn { None } else { Some(Offer::from_message(message)?) };
        Ok(Slice { key: Key { cluster, host }, order, offer })
    }
}

/// The version of a resource: a hash of its bytes, equal on every replica and after a restart.
#[must_use]
pub fn version(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl Offer {
    fn from_message(message: pb::ServiceSlice) -> Result<Offer> {
        if message.ports.is_empty() {
            return wrong("ports", "must have at least one");
        }
        bounded("ports", message.ports.len(), MAX_PORTS)?;
        bounded("gateways", message.gateways.len(), MAX_LIST)?;
        bounded("exposed_on", message.exposed_on.len(), MAX_LIST)?;
        bounded("gateway_ranges", message.gateway_ranges.len(), MAX_LIST)?;
        let ports = each("ports", message.ports, Port::from_message)?;
        unique("ports", ports.iter().map(|port| port.number))?;
        if ports.iter().filter(|port| port.default_port).count() > 1 {
            return wrong("ports", "must have at most one default port");
        }
        Ok(Offer {
            network: text("network", message.network)?,
            aliases: patterns("aliases", &message.aliases)?,
            ports,
            gateways: each("gateways", message.gateways, Gateway::from_message)?,
            staleness: Staleness::from_message(message.staleness)?,
            merge: message.merge,
            exposed_on: each("exposed_on", message.exposed_on, |name| text("name", name))?,
            gateway_ranges: Ranges(each("gateway_ranges", message.gateway_ranges, |range| {
                range.parse().or_else(|error| wrong("range", error))
            })?),
        })
    }
}

impl Port {
    fn to_message(&self) -> pb::Port {
        pb::Port {
            number: self.number.into(),
            bare: self.default_port,
            tls: tls_number(Some(self.tls)),
            alpn: self.alpn.clone(),
            sources: texts(&self.sources),
            balance: balance_number(self.balance),
            max_connections: self.max_connections.unwrap_or(0),
            send_proxy: self.send_proxy,
            endpoints: self.endpoints.iter().map(Endpoint::to_message).collect(),
            ready: self.ready.iter().map(Ready::to_message).collect(),
            timeouts: Some(timeouts_message(&self.timeouts)),
            exported: self.exported,
            access: (self.access != Access::open()).then(|| self.access.to_message()),
            identities: texts(&self.identities),
            traffic: self.traffic.as_deref().map(Traffic::to_message),
            health: self.health.as_deref().map(health::to_message),
        }
    }

    fn from_message(message: pb::Port) -> Result<Port> {
        bounded("endpoints", message.endpoints.len(), MAX_ENDPOINTS)?;
        bounded("ready", message.ready.len(), MAX_LIST)?;
        bounded("alpn", message.alpn.len(), MAX_LIST)?;
        bounded("sources", message.sources.len(), MAX_LIST)?;
        if message.alpn.iter().any(|protocol| !(1..=255).contains(&protocol.len())) {
            return wrong("alpn", "a protocol must have 1 to 255 bytes");
        }
        let sources: std::result::Result<_, _> = message.sources.iter().map(|range| range.parse()).collect();
        let endpoints = each("endpoints", message.endpoints, Endpoint::from_message)?;
        unique("endpoints", endpoints.iter().map(|endpoint| &endpoint.address))?;
        unique("endpoints", endpoints.iter().filter_map(|endpoint| endpoint.instance.as_ref()))?;
        let tls = tls(message.tls)?.map_or_else(|| wrong("tls", "must be set"), Ok)?;
        bounded("identities", message.identities.len(), MAX_LIST)?;
        Ok(Port {
            number: port_number(message.number)?,
            default_port: message.bare,
            tls,
            alpn: message.alpn,
            sources: sources.or_else(|error: ipnet::AddrParseError| wrong("sources", error))?,
            balance: balance(message.balance)?,
            max_connections: Some(message.max_connections).filter(|most| *most > 0),
            send_proxy: message.send_proxy,
            endpoints,
            ready: each("ready", message.ready, Ready::from_message)?,
            timeouts: timeouts(message.timeouts)?,
            health: message.health.map(health::from_message).transpose()?.map(Box::new),
            exported: message.exported,
            access: Access::of_port(message.access, tls)?,
            identities: each("identities", message.identities, |id| {
                SpiffeId::parse(&id).or_else(|error| wrong("identity", error))
            })?,
            traffic: message.traffic.map(Traffic::shared).transpose()?,
        })
    }
}

impl Endpoint {
    fn to_message(&self) -> pb::Endpoint {
        pb::Endpoint {
            address: self.address.to_string(),
            locality: locality_message(&self.locality),
            weight: self.weight.into(),
            health: match self.health {
                Health::Ready => pb::Health::Ready,
                Health::NotReady => pb::Health::NotReady,
                Health::Draining => pb::Health::Draining,
            }
            .into(),
            instance: self.instance.as_ref().map(ToString::to_string).unwrap_or_default(),
            instance_exported: self.instance_exported,
            tls: tls_number(self.tls),
            identity: self.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
            exposed: self.exposed,
            aliases: texts(&self.aliases),
            labels: labels_message(&self.labels),
        }
    }

    fn from_message(message: pb::Endpoint) -> Result<Endpoint> {
        let health = match pb::Health::try_from(message.health) {
            Ok(pb::Health::Ready) => Health::Ready,
            Ok(pb::Health::NotReady) => Health::NotReady,
            Ok(pb::Health::Draining) => Health::Draining,
            Ok(pb::Health::Unspecified) | Err(_) => return wrong("health", "has an unknown value"),
        };
        let identity = Some(message.identity).filter(|id| !id.is_empty());
        let identity = identity.map(|id| SpiffeId::parse(&id).or_else(|error| wrong("identity", error)));
        let instance = Some(message.instance).filter(|name| !name.is_empty());
        Ok(Endpoint {
            address: target(&message.address)?,
            locality: locality(message.locality)?,
            weight: u16::try_from(message.weight).or_else(|_| wrong("weight", "must be at most 65535"))?,
            health,
            instance: instance.map(|name| label("instance", &name)).transpose()?,
            instance_exported: message.instance_exported,
            tls: tls(message.tls)?,
            identity: identity.transpose()?,
            exposed: message.exposed,
            aliases: names("aliases", &message.aliases)?,
            labels: labels(&message.labels)?,
        })
    }
}

impl Ready {
    fn to_message(&self) -> pb::Ready {
        pb::Ready {
            locality: locality_message(&self.locality),
            ready: self.ready,
            instances: self.instances.iter().map(Instance::to_message).collect(),
        }
    }

    fn from_message(message: pb::Ready) -> Result<Ready> {
        bounded("instances", message.instances.len(), MAX_ENDPOINTS)?;
        let instances = each("instances", message.instances, Instance::from_message)?;
        Ok(Ready { locality: locality(message.locality)?, ready: message.ready, instances })
    }
}

impl Instance {
    fn to_message(&self) -> pb::Instance {
        pb::Instance { name: self.name.to_string(), aliases: texts(&self.aliases) }
    }

    fn from_message(message: pb::Instance) -> Result<Instance> {
        Ok(Instance { name: label("name", &message.name)?, aliases: names("aliases", &message.aliases)? })
    }
}

impl Gateway {
    fn to_message(&self) -> pb::Gateway {
        pb::Gateway { address: self.address.to_string(), locality: locality_message(&self.locality) }
    }

    fn from_message(message: pb::Gateway) -> Result<Gateway> {
        let address = target(&message.address)?;
        Ok(Gateway { address, locality: locality(message.locality)? })
    }
}

fn target(text: &str) -> Result<Target> {
    text.parse()
        .or_else(|wrong_one: Wrong| wrong("address", format!("{}; {}", wrong_one.what, wrong_one.remedy)))
}

impl Staleness {
    fn to_message(self) -> pb::Staleness {
        use pb::staleness::Rule;
        let rule = match self {
            Staleness::Keep => Rule::Keep(true),
            Staleness::ExpireAfter(time) => Rule::ExpireAfterSeconds(time.as_secs()),
            Staleness::Probe => Rule::Probe(true),
        };
        pb::Staleness { rule: Some(rule) }
    }

    fn from_message(message: Option<pb::Staleness>) -> Result<Staleness> {
        use pb::staleness::Rule;
        match message.and_then(|message| message.rule) {
            Some(Rule::Keep(true)) => Ok(Staleness::Keep),
            Some(Rule::ExpireAfterSeconds(seconds)) => {
                Ok(Staleness::ExpireAfter(Duration::from_secs(seconds)))
            }
            Some(Rule::Probe(true)) => Ok(Staleness::Probe),
            Some(Rule::Keep(false) | Rule::Probe(false)) | None => wrong("staleness", "has an unknown value"),
        }
    }
}

fn port_number(number: u32) -> Result<u16> {
    match u16::try_from(number) {
        Ok(number) if number > 0 => Ok(number),
        _ => wrong("port", "must be from 1 to 65535"),
    }
}

fn text(field: &str, text: String) -> Result<String> {
    if text.len() > MAX_TEXT || text.chars().any(char::is_control) {
        return wrong(field, format!("must have at most {MAX_TEXT} bytes and no control characters"));
    }
    Ok(text)
}

fn label(field: &str, text: &str) -> Result<HostName> {
    let name = HostName::parse(text).or_else(|error| wrong(field, error))?;
    if name.as_str().contains('.') { wrong(field, "must be one label, without dots") } else { Ok(name) }
}

fn names(field: &str, texts: &[String]) -> Result<Vec<HostName>> {
    bounded(field, texts.len(), MAX_LIST)?;
    texts.iter().map(|text| HostName::parse_own(text).or_else(|error| wrong(field, error))).collect()
}

fn patterns(field: &str, texts: &[String]) -> Result<Vec<HostPattern>> {
    bounded(field, texts.len(), MAX_LIST)?;
    texts.iter().map(|text| HostPattern::parse(text).or_else(|error| wrong(field, error))).collect()
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn each<M, T>(field: &str, messages: Vec<M>, read: impl Fn(M) -> Result<T>) -> Result<Vec<T>> {
    let read = |(place, message)| within(|| format!("{field}[{place}]"), read(message));
    messages.into_iter().enumerate().map(read).collect()
}

fn bounded(field: &str, length: usize, most: usize) -> Result<()> {
    if length > most { wrong(field, format!("has {length} items; the limit is {most}")) } else { Ok(()) }
}

fn unique<T: Eq + Hash>(field: &str, items: impl Iterator<Item = T>) -> Result<()> {
    let mut seen = HashSet::new();
    let mut items = items;
    if items.all(|item| seen.insert(item)) { Ok(()) } else { wrong(field, "has duplicates") }
}

#[cfg(test)]
mod tests;
