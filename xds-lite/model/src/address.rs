//! Parses addresses and names of YAML files: `IP:PORT`, `NAME:PORT`, CIDRs, hosts. An IPv4-mapped IPv6
//! address becomes the IPv4 address everywhere. Resolves no names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use rustix::net::netdevice::name_to_index;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::host::{HostName, HostPattern, NameError};

use super::units::{Scalar, Wrong};

/// An address to listen on, `IP:PORT` or `[IPV6]:PORT`. Port 0 picks a free one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct ListenAddress(String);

/// A server's address, `IP:PORT` or `[IPV6]:PORT`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct ServerAddress(String);

/// The address of an endpoint: `IP:PORT`, `[IPV6]:PORT` or `NAME:PORT`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct TargetAddress(String);

/// An endpoint's address as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum Target {
    /// An IP address and port.
    Address(SocketAddr),
    /// A name, resolved again when its TTL ends; every address of it is an endpoint.
    Name {
        /// The name to resolve.
        host: HostName,
        /// The port at each address.
        port: u16,
    },
}

/// The addresses that another cluster's gateways may have: these ranges or, without any, all but loopback and
/// link-local ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Ranges(pub Vec<IpNet>);

impl Ranges {
    /// Whether the address is allowed.
    #[must_use]
    pub fn allow(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        if !self.0.is_empty() {
            return self.0.iter().any(|range| range.contains(&ip));
        }
        let is_of_the_link = match ip {
            IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || is_of_the_link)
    }
}

/// An IP address.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Ip(String);

/// A range of addresses, `10.0.0.0/8` or `2001:db8::/32`; a single address is a range of one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Cidr(String);

/// A host name, or `*.suffix` for every name under a suffix.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct Host(String);

/// One DNS label.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline, extend("pattern" = "^[A-Za-z0-9_-]{1,63}$"))]
pub struct Label(String);

impl Scalar for ListenAddress {
    type Value = SocketAddr;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<SocketAddr, Wrong> {
        read_socket(&self.0)?.ok_or(Wrong {
            what: "is not an address to listen on",
            remedy: "write IP:PORT or [IPV6]:PORT, such as 0.0.0.0:15443",
        })
    }
}

impl From<String> for ServerAddress {
    fn from(text: String) -> ServerAddress {
        ServerAddress(text)
    }
}

impl Scalar for ServerAddress {
    type Value = SocketAddr;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<SocketAddr, Wrong> {
        read_socket(&self.0)?
            .filter(|address| address.port() != 0)
            .ok_or(Wrong { what: "is not a server's address", remedy: "write IP:PORT or [IPV6]:PORT" })
    }
}

impl Scalar for TargetAddress {
    type Value = Target;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<Target, Wrong> {
        self.0.parse()
    }
}

impl FromStr for Target {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Target, Wrong> {
        let no_port = Wrong { what: "has a port out of range", remedy: "write a port from 1 to 65535" };
        if let Some(address) = read_socket(text)? {
            return if address.port() == 0 { Err(no_port) } else { Ok(Target::Address(address)) };
        }
        let (host, port) = text
            .rsplit_once(':')
            .ok_or(Wrong { what: "has no port", remedy: "write IP:PORT, [IPV6]:PORT or NAME:PORT" })?;
        if host.contains(':') && host.parse::<IpAddr>().is_ok() {
            return Err(Wrong {
                what: "is an IPv6 address without brackets",
                remedy: "write [IPV6]:PORT, such as [2001:db8::1]:443",
            });
        }
        // Digits in the last label: a mistyped IP address, which no DNS server knows.
        let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        let host = HostName::parse(host)
            .ok()
            .filter(|name| !name.as_str().rsplit('.').next().is_some_and(numeric))
            .ok_or(Wrong {
                what: "is not an address",
                remedy: "write IP:PORT, [IPV6]:PORT or NAME:PORT, such as 10.1.0.7:443",
            })?;
        match read_port(port) {
            Some(port) => Ok(Target::Name { host, port }),
            None => Err(no_port),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Address(address) => address.fmt(f),
            Target::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Scalar for Ip {
    type Value = IpAddr;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<IpAddr, Wrong> {
        let address: Result<IpAddr, _> = self.0.parse();
        address
            .map(|address| address.to_canonical())
            .map_err(|_| Wrong { what: "is not an IP address", remedy: "write an address without a port" })
    }
}

impl Scalar for Cidr {
    type Value = IpNet;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<IpNet, Wrong> {
        if let Ok(address) = self.0.parse::<IpAddr>() {
            return Ok(IpNet::from(address.to_canonical()));
        }
        let net: IpNet = self.0.parse().map_err(|_| Wrong {
            what: "is not a range of addresses",
            remedy: "write ADDRESS/PREFIX, such as 10.0.0.0/8",
        })?;
        // 10.1.2.3/8 may mean one host or sixteen million: a wrong guess could open a door.
        if net.addr() != net.network() {
            return Err(Wrong {
                what: "has bits set after its prefix",
                remedy: "write the range's first address, or the single address without a prefix",
            });
        }
        Ok(unmapped(net))
    }
}

impl Scalar for Host {
    type Value = HostPattern;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<HostPattern, Wrong> {
        read_host(&self.0)
    }
}

impl Scalar for Label {
    type Value = HostName;

    fn text(&self) -> &str {
        &self.0
    }

    fn read(&self) -> Result<HostName, Wrong> {
        HostName::parse(&self.0).ok().filter(|_| !self.0.contains('.')).ok_or(Wrong {
            what: "is not one DNS label",
            remedy: "write 1 to 63 letters, digits, '-' or '_', without dots",
        })
    }
}

/// Parses a host of a YAML file.
///
/// # Errors
/// The error and its remedy.
pub fn read_host(text: &str) -> Result<HostPattern, Wrong> {
    let host = HostPattern::parse(text).map_err(|error| match error {
        NameError::Reserved => Wrong {
            what: "is reserved: gateways probe each other by names under isthmus.invalid",
            remedy: "write another name",
        },
        _ => Wrong {
            what: "is not a host name",
            remedy: "write labels of letters, digits, '-' or '_' (63 bytes each, 253 in all) with dots between, \
                     with '*.' in front to match every name under it",
        },
    })?;
    let (HostPattern::Exact(name) | HostPattern::Suffix(name)) = &host;
    if name.as_str().starts_with("outbound_.") {
        return Err(Wrong {
            what: "is reserved for names that the gateway generates",
            remedy: "write the host alone: every service answers to outbound_.PORT_._.HOST",
        });
    }
    Ok(host)
}

/// Parses a port: 1 to 65535, digits only.
#[must_use]
pub fn read_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

fn read_socket(text: &str) -> Result<Option<SocketAddr>, Wrong> {
    let Ok(address) = text.parse::<SocketAddr>() else { return read_scoped(text) };
    Ok(Some(match address.ip() {
        // Rebuilt only when mapped: an IPv6 address keeps its scope.
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => SocketAddr::new(ip.to_canonical(), address.port()),
        _ => address,
    }))
}

/// Parses `[IPV6%INTERFACE]:PORT`, with the current index of the interface.
fn read_scoped(text: &str) -> Result<Option<SocketAddr>, Wrong> {
    let parts = text.strip_prefix('[').and_then(|rest| {
        let (address, port) = rest.split_once("]:")?;
        let (ip, interface) = address.split_once('%')?;
        Some((ip.parse::<Ipv6Addr>().ok()?, interface, port.parse::<u16>().ok()?))
    });
    let Some((ip, interface, port)) = parts else { return Ok(None) };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(|_| NO_INTERFACE)?;
    let scope = name_to_index(&socket, interface).map_err(|_| NO_INTERFACE)?;
    Ok(Some(SocketAddrV6::new(ip, port, 0, scope).into()))
}

const NO_INTERFACE: Wrong = Wrong {
    what: "names an unknown interface",
    remedy: "write [IPV6%INTERFACE]:PORT with a name or an index that `ip link` shows",
};

fn unmapped(net: IpNet) -> IpNet {
    if let IpNet::V6(net) = net
        && let Some(ip) = net.addr().to_ipv4_mapped()
        && let Some(prefix) = net.prefix_len().checked_sub(96)
        && let Ok(net) = Ipv4Net::new(ip, prefix)
    {
        return IpNet::V4(net);
    }
    net
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(text: &str) -> Result<Target, Wrong> {
        TargetAddress(text.to_owned()).read()
    }

    #[test]
    fn ranges_allow_no_address_of_this_machine_unless_listed() {
        let anywhere = Ranges::default();
        for ip in ["203.0.113.7", "10.0.0.1", "2001:db8::1", "fd00::1"] {
            assert!(anywhere.allow(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
        ] {
            assert!(!anywhere.allow(ip.parse().unwrap()), "{ip}");
        }
        let said = Ranges(vec!["127.0.0.0/8".parse().unwrap(), "203.0.113.0/28".parse().unwrap()]);
        for (ip, allowed) in
            [("127.0.0.1", true), ("::ffff:203.0.113.7", true), ("203.0.113.16", false), ("::1", false)]
        {
            assert_eq!(said.allow(ip.parse().unwrap()), allowed, "{ip}");
        }
    }

    #[test]
    fn target_is_an_address_or_a_name_with_a_port() {
        assert_eq!(target("10.0.0.1:80"), Ok(Target::Address("10.0.0.1:80".parse().unwrap())));
        assert_eq!(target("[::ffff:10.0.0.1]:80"), Ok(Target::Address("10.0.0.1:80".parse().unwrap())));
        assert_eq!(target("[2001:db8::1]:80"), Ok(Target::Address("[2001:db8::1]:80".parse().unwrap())));
        assert_eq!(target("[fe80::1%3]:80"), Ok(Target::Address("[fe80::1%3]:80".parse().unwrap())));
        assert_eq!(target("[fe80::1%lo]:80"), Ok(Target::Address("[fe80::1%1]:80".parse().unwrap())));
        assert_eq!(target("[fe80::1%nosuch0]:80"), Err(NO_INTERFACE));
        let host = HostName::parse("db-1.example").unwrap();
        assert_eq!(target("DB-1.example.:3306"), Ok(Target::Name { host, port: 3306 }));
        for (wrong, what) in [
            ("10.0.0.1", "has no port"),
            ("10.0.0.1:0", "has a port out of range"),
            ("db:0", "has a port out of range"),
            ("db:65536", "has a port out of range"),
            ("db:+1", "has a port out of range"),
            ("db:", "has a port out of range"),
            ("2001:db8::1:443", "is an IPv6 address without brackets"),
            ("10.0.0.300:80", "is not an address"),
            ("*.x:80", "is not an address"),
            (":80", "is not an address"),
            ("a b:80", "is not an address"),
        ] {
            assert_eq!(target(wrong).unwrap_err().what, what, "{wrong}");
        }
    }

    #[test]
    fn cidr_that_is_ipv4_mapped_becomes_ipv4() {
        let cidr = |text: &str| Cidr(text.to_owned()).read().map(|net| net.to_string());
        assert_eq!(cidr("10.0.0.0/8").unwrap(), "10.0.0.0/8");
        assert_eq!(cidr("10.0.0.7").unwrap(), "10.0.0.7/32");
        assert_eq!(cidr("::ffff:10.0.0.7").unwrap(), "10.0.0.7/32");
        assert_eq!(cidr("::ffff:10.0.0.0/104").unwrap(), "10.0.0.0/8");
        assert_eq!(cidr("::ffff:0:0/96").unwrap(), "0.0.0.0/0");
        assert_eq!(cidr("::/0").unwrap(), "::/0");
        assert_eq!(cidr("2001:db8::/32").unwrap(), "2001:db8::/32");
        assert_eq!(cidr("10.1.2.3/8").unwrap_err().what, "has bits set after its prefix");
        assert_eq!(cidr("10.0.0.0/33").unwrap_err().what, "is not a range of addresses");
    }

    #[test]
    fn host_may_not_be_a_name_that_the_gateway_generates() {
        assert!(read_host("outbound_.80_._.web.example").is_err());
        assert!(read_host("*.outbound_.80_._.web.example").is_err());
        assert!(read_host("outbound.example").is_ok());
        assert!(Label("a.b".to_owned()).read().is_err());
        assert!(Label("a.".to_owned()).read().is_err());
        assert!(Label("db-0".to_owned()).read().is_ok());
    }

    proptest! {
        #[test]
        fn address_parsers_are_total(text in "[0-9a-f:.%/*\\[\\]é-]{0,24}") {
            let _ = (target(&text), Cidr(text.clone()).read(), read_host(&text), read_port(&text));
        }
    }
}
