//! Encodes local bindings as messages and decodes them. What a reader does not know, and what is out of its limits,
//! refuses the resource.

use std::collections::HashSet;
use std::net::IpAddr;

use isthmus_certs::{IdPattern, SpiffeId};
use prost::Message as _;

use super::{Binding, BoundPort, Caller, Callers, Granted, LocalBinding};
use crate::host::HostName;
use crate::virtual_address::NameAddresses;
use isthmus_proto::isthmus::v1 as pb;
use pb::local_binding::Binding as Kind;

/// The name of the resource with the callers.
pub const CALLERS: &str = "callers";
const NAME: &str = "name/";
const GRANTED: &str = "granted/";
/// Bytes of a message: more than the longest list of callers has, and what a store takes as one record.
const MAX_MESSAGE: usize = 512 << 10;
const MAX_ADDRESSES: usize = 2;
/// Ports of one host.
pub const MAX_PORTS: usize = 256;

/// Why a message is not a valid binding.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The message is too large.
    #[error("the binding has {0} bytes; the limit is {MAX_MESSAGE}")]
    TooLarge(usize),
    /// The message is not valid protobuf.
    #[error("the binding cannot be decoded: {0}")]
    Malformed(prost::DecodeError),
    /// It is of a kind that this version does not know.
    #[error("the binding is of a kind that this version does not know; upgrade it")]
    Unknown,
    /// A field is missing or invalid.
    #[error("{field}: {what}")]
    Field {
        /// The field.
        field: &'static str,
        /// The error.
        what: String,
    },
    /// The resource has the name of another one.
    #[error("is the binding {0}")]
    Name(String),
}

type Result<T> = std::result::Result<T, WireError>;

fn wrong<T>(field: &'static str, what: impl ToString) -> Result<T> {
    Err(WireError::Field { field, what: what.to_string() })
}

/// The name of the resource of a host.
#[must_use]
pub fn resource_name(host: &HostName) -> String {
    format!("{NAME}{host}")
}

/// The name of the resource with the list of a gateway.
#[must_use]
pub fn granted_name(gateway: &SpiffeId) -> String {
    format!("{GRANTED}{gateway}")
}

/// Whether a resource's name is that of a gateway's list.
#[must_use]
pub fn is_granted_name(name: &str) -> bool {
    name.starts_with(GRANTED)
}

impl LocalBinding {
    /// The name of its resource.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            LocalBinding::Name(binding) => resource_name(&binding.host),
            LocalBinding::Callers(_) => CALLERS.to_owned(),
            LocalBinding::Granted(granted) => granted_name(granted.gateway()),
        }
    }

    /// The message. Equal bindings have equal bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let kind = match self {
            LocalBinding::Name(binding) => Kind::Name(binding.to_message()),
            LocalBinding::Callers(callers) => Kind::Callers(callers.to_message()),
            LocalBinding::Granted(granted) => Kind::Granted(granted.to_message()),
        };
        pb::LocalBinding { binding: Some(kind) }.encode_to_vec()
    }

    /// Decodes the resource of a name.
    ///
    /// # Errors
    /// The first error in it, or that it has another name.
    pub fn decode(name: &str, bytes: &[u8]) -> Result<LocalBinding> {
        if bytes.len() > MAX_MESSAGE {
            return Err(WireError::TooLarge(bytes.len()));
        }
        let message = pb::LocalBinding::decode(bytes).map_err(WireError::Malformed)?;
        let binding = match message.binding {
            Some(Kind::Name(message)) => LocalBinding::Name(Binding::from_message(&message)?),
            Some(Kind::Callers(message)) => LocalBinding::Callers(Callers::from_message(message)?),
            Some(Kind::Granted(message)) => LocalBinding::Granted(Granted::from_message(&message)?),
            None => return Err(WireError::Unknown),
        };
        let own = binding.name();
        if own == name { Ok(binding) } else { Err(WireError::Name(own)) }
    }
}

impl Binding {
    fn to_message(&self) -> pb::NameBinding {
        let port = |bound: &BoundPort| pb::PortBinding {
            port: bound.port.into(),
            listener_port: bound.listener_port.unwrap_or_default().into(),
        };
        pb::NameBinding {
            host: self.host.to_string(),
            addresses: self.addresses().map(|address| address.to_string()).collect(),
            ports: self.ports.iter().map(port).collect(),
        }
    }

    fn from_message(message: &pb::NameBinding) -> Result<Binding> {
        let host = HostName::parse(&message.host).or_else(|error| wrong("host", error))?;
        if message.addresses.len() > MAX_ADDRESSES {
            return wrong("addresses", format!("has more than {MAX_ADDRESSES} items"));
        }
        let mut addresses = NameAddresses::default();
        for text in &message.addresses {
            let address: IpAddr = text.parse().or_else(|error| wrong("addresses", error))?;
            if !addresses.insert(address).or_else(|error| wrong("addresses", error))? {
                return wrong("addresses", "has two of one family");
            }
        }
        if message.ports.len() > MAX_PORTS {
            return wrong("ports", format!("has more than {MAX_PORTS} items"));
        }
        let ports = message.ports.iter().map(BoundPort::from_message).collect::<Result<Vec<_>>>()?;
        let (mut own, mut listeners) = (HashSet::new(), HashSet::new());
        if !ports.iter().all(|bound| own.insert(bound.port)) {
            return wrong("ports", "has a port twice");
        }
        if !ports.iter().filter_map(|bound| bound.listener_port).all(|port| listeners.insert(port)) {
            return wrong("ports", "has a listener's port twice");
        }
        Ok(Binding { host, addresses, ports })
    }
}

impl BoundPort {
    fn from_message(message: &pb::PortBinding) -> Result<BoundPort> {
        let number = |number: u32| u16::try_from(number).or_else(|_| wrong("port", "is above 65535"));
        let port = number(message.port)?;
        if port == 0 {
            return wrong("port", "must be from 1 to 65535");
        }
        let listener_port = Some(number(message.listener_port)?).filter(|port| *port != 0);
        Ok(BoundPort { port, listener_port })
    }
}

impl Callers {
    fn to_message(&self) -> pb::CallerList {
        let entry = |caller: &Caller| pb::CallerEntry {
            sources: caller.sources.iter().map(ToString::to_string).collect(),
            identity: caller.identity.to_string(),
        };
        pb::CallerList { callers: self.iter().map(entry).collect() }
    }

    fn from_message(message: pb::CallerList) -> Result<Callers> {
        let caller = |entry: pb::CallerEntry| {
            let identity = SpiffeId::parse(&entry.identity).or_else(|error| wrong("identity", error))?;
            if identity.path().is_empty() {
                return wrong("identity", format!("{identity} is not a workload's"));
            }
            let ranges = entry.sources.iter().map(|range| range.parse());
            let sources: std::result::Result<Vec<_>, ipnet::AddrParseError> = ranges.collect();
            Ok(Caller { sources: sources.or_else(|error| wrong("sources", error))?, identity })
        };
        let list = message.callers.into_iter().map(caller).collect::<Result<Vec<_>>>()?;
        Callers::new(list).or_else(|error| wrong("callers", error))
    }
}

impl Granted {
    fn to_message(&self) -> pb::GrantedIdentities {
        let identities = self.identities().iter().map(ToString::to_string).collect();
        pb::GrantedIdentities { gateway: self.gateway().to_string(), identities }
    }

    fn from_message(message: &pb::GrantedIdentities) -> Result<Granted> {
        let gateway = SpiffeId::parse(&message.gateway).or_else(|error| wrong("gateway", error))?;
        let patterns = message.identities.iter().map(|text| IdPattern::parse(text));
        let patterns = patterns.collect::<std::result::Result<Vec<_>, _>>();
        Granted::new(gateway, patterns.or_else(|error| wrong("identities", error))?)
            .or_else(|error| wrong("identities", error))
    }
}

#[cfg(test)]
mod tests {
    use super::super::MAX_GRANTED;
    use super::*;

    fn binding() -> Binding {
        let mut addresses = NameAddresses::default();
        for address in ["fd00:15::7", "240.15.0.7"] {
            assert!(addresses.insert(address.parse().unwrap()).unwrap());
        }
        let port = |port, listener_port| BoundPort { port, listener_port };
        let ports = vec![port(3306, Some(20_001)), port(9080, None)];
        Binding { host: HostName::parse("orders.shop").unwrap(), addresses, ports }
    }

    fn gateway() -> SpiffeId {
        SpiffeId::parse("spiffe://east.example/isthmus/east/gateway/gw-1").unwrap()
    }

    fn refusal(change: impl FnOnce(&mut pb::NameBinding)) -> String {
        let mut message = binding().to_message();
        change(&mut message);
        let bytes = pb::LocalBinding { binding: Some(Kind::Name(message)) }.encode_to_vec();
        LocalBinding::decode("name/orders.shop", &bytes).unwrap_err().to_string()
    }

    #[test]
    fn binding_survives_the_wire() {
        let source = |range: &str| range.parse().unwrap();
        let identity = SpiffeId::parse("spiffe://east.example/ns/shop/sa/cart").unwrap();
        let sources = vec![source("10.1.0.0/24"), source("fd00::/64")];
        let callers = Callers::new(vec![Caller { sources, identity }]).unwrap();
        let workload = IdPattern::parse("spiffe://east.example/ns/shop/*").unwrap();
        let granted = Granted::new(gateway(), vec![workload]).unwrap();
        let all =
            [LocalBinding::Name(binding()), LocalBinding::Callers(callers), LocalBinding::Granted(granted)];
        for sent in all {
            assert_eq!(LocalBinding::decode(&sent.name(), &sent.encode()), Ok(sent));
        }
    }

    #[test]
    fn binding_out_of_limits_or_unknown_is_refused() {
        let port = |port, listener_port| pb::PortBinding { port, listener_port };
        for (expected, why) in [
            ("host: ", refusal(|message| message.host = "a..b".to_owned())),
            ("is the binding name/other", refusal(|message| message.host = "other".to_owned())),
            ("two of one family", refusal(|message| message.addresses = vec!["::2".into(), "::3".into()])),
            ("cannot be a virtual address", refusal(|message| message.addresses = vec!["0.0.0.0".into()])),
            ("cannot be a virtual address", refusal(|message| message.addresses = vec!["ff02::1".into()])),
            ("more than 2", refusal(|message| message.addresses = vec!["10.0.0.1".into(); 3])),
            ("addresses: ", refusal(|message| message.addresses = vec!["10.0.0.1:80".into()])),
            ("must be from 1", refusal(|message| message.ports = vec![port(0, 1)])),
            ("above 65535", refusal(|message| message.ports = vec![port(1, 65_536)])),
            ("a port twice", refusal(|message| message.ports = vec![port(1, 2), port(1, 3)])),
            ("listener's port twice", refusal(|message| message.ports = vec![port(1, 3), port(2, 3)])),
            ("more than 256", refusal(|message| message.ports = (1..=257).map(|n| port(n, 0)).collect())),
        ] {
            assert!(why.contains(expected), "{why}, not {expected}");
        }
        assert_eq!(LocalBinding::decode(CALLERS, &[]), Err(WireError::Unknown));
        // A field of a later version: another kind.
        assert_eq!(LocalBinding::decode(CALLERS, &[0x22, 0]), Err(WireError::Unknown));
        assert_eq!(
            LocalBinding::decode(CALLERS, &vec![0; MAX_MESSAGE + 1]),
            Err(WireError::TooLarge(MAX_MESSAGE + 1))
        );
    }

    #[test]
    fn callers_of_no_workload_are_refused() {
        let refusal = |sources: &[&str], identity: &str| {
            let sources = sources.iter().map(ToString::to_string).collect();
            let callers = vec![pb::CallerEntry { sources, identity: identity.to_owned() }];
            let kind = Kind::Callers(pb::CallerList { callers });
            let bytes = pb::LocalBinding { binding: Some(kind) }.encode_to_vec();
            LocalBinding::decode(CALLERS, &bytes).unwrap_err().to_string()
        };
        let id = "spiffe://east.example/ns/a/sa/b";
        assert!(refusal(&["10.0.0.0/8"], "spiffe://east.example").contains("not a workload's"));
        assert!(refusal(&["10.0.0.0/8"], "east.example").starts_with("identity: "));
        assert!(refusal(&["10.0.0.0/33"], id).starts_with("sources: "));
    }

    #[test]
    fn granted_identities_out_of_limits_or_of_another_gateway_are_refused() {
        let refusal = |gateway_id: &str, identities: &[&str]| {
            let identities = identities.iter().map(ToString::to_string).collect();
            let granted = pb::GrantedIdentities { gateway: gateway_id.to_owned(), identities };
            let bytes = pb::LocalBinding { binding: Some(Kind::Granted(granted)) }.encode_to_vec();
            LocalBinding::decode(&granted_name(&gateway()), &bytes).unwrap_err().to_string()
        };
        let own = gateway().to_string();
        let (one, long) =
            ("spiffe://east.example/ns/a/*", format!("spiffe://east.example/{}", "a".repeat(1_000)));
        assert!(refusal("gw-1", &[one]).starts_with("gateway: "));
        assert!(refusal("spiffe://east.example/a", &[one]).starts_with("is the binding granted/"));
        assert!(refusal(&own, &["*"]).starts_with("identities: "));
        assert!(refusal(&own, &vec![one; MAX_GRANTED + 1]).contains("the limit is 1000"));
        assert!(refusal(&own, &vec![long.as_str(); 300]).contains("bytes; the limit is"));
    }

    proptest::proptest! {
        #[test]
        fn binding_decoder_is_total(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            if let Ok(binding) = LocalBinding::decode(CALLERS, &bytes) {
                proptest::prop_assert_eq!(LocalBinding::decode(CALLERS, &binding.encode()), Ok(binding));
            }
        }
    }
}
