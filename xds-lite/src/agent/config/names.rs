//! Resolves `virtual_addresses:`, `originate_ports:` and `dns:` of an agent's file.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use isthmus_model::address::{Cidr, ServerAddress, Target};
use isthmus_model::allotment::PlaceRange;
use isthmus_model::at::{At, Spot};
use isthmus_model::binding::Callers;
use isthmus_model::host::HostName;
use isthmus_model::problem::{Place, Quoted, Report};
use isthmus_model::virtual_address::VirtualRanges;

use super::resolve::listen;
use super::{DNS, Gateway, raw};

/// The smallest ranges: an address for a handful of names.
const LONGEST_V4: u8 = 30;
const LONGEST_V6: u8 = 126;
/// Servers that questions are forwarded to, at most.
const MAX_UPSTREAMS: usize = 8;
/// Entries of `dns.clients` and `dns.zones`, at most: each question is compared with them.
const MAX_ENTRIES: usize = 256;

/// Ranges of what is allotted to names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameRanges {
    /// Virtual addresses.
    pub addresses: VirtualRanges,
    /// Ports of the gateways' originating listeners; none: no port is allotted.
    pub ports: Option<PlaceRange<u16>>,
}

/// The DNS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// The address of UDP and TCP.
    pub listen: SocketAddr,
    /// Who may ask.
    pub clients: Clients,
    /// Who answers what the tables do not.
    pub upstreams: Upstreams,
    /// Names under these suffixes exist in the tables or nowhere.
    pub zones: Vec<HostName>,
}

/// Who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Addresses in these ranges.
    Listed(Vec<IpNet>),
    /// This machine, and the callers of the file: whose queries `capture` sends here.
    MachineAndCallers(Callers),
}

/// Who answers what the tables do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// The name servers of this machine.
    System,
    /// Nobody.
    Off,
    /// These servers, in order.
    At(Vec<SocketAddr>),
}

pub(super) fn ranges(
    report: &mut Report,
    addresses: Option<&At<raw::names::VirtualAddresses>>,
    ports: Option<&At<isthmus_model::port_range::Ports>>,
    gateways: &[Gateway],
) -> NameRanges {
    let place = Place::Root.key("virtual_addresses");
    let mut ranges = VirtualRanges::default();
    if let Some(whole) = addresses {
        let (v6, v4) = (whole.value.ipv6.as_ref(), whole.value.ipv4.as_ref());
        if v6.is_none() && v4.is_none() {
            report.add(
                whole.spot,
                format_args!("{place} has no range"),
                "add 'ipv6: RANGE' or 'ipv4: RANGE'",
            );
        }
        let net = report.value(v6, place.key("ipv6"));
        ranges.v6 = v6.zip(net).and_then(|(at, net)| range_v6(report, place.key("ipv6"), at.spot, net));
        let net = report.value(v4, place.key("ipv4"));
        ranges.v4 = v4.zip(net).and_then(|(at, net)| range_v4(report, place.key("ipv4"), at.spot, net));
    }
    let place = Place::Root.key("originate_ports");
    let range = report.value(ports, place);
    if let Some((written, range)) = ports.zip(range) {
        let taken = gateways.iter().flat_map(|gateway| &gateway.addresses).map(port);
        if let Some(taken) = taken.into_iter().find(|port| range.contains(*port)) {
            let what = format_args!("{place}: {range} contains {taken}, the port of a gateway");
            report.add(written.spot, what, "choose ports that nothing else listens on");
        }
    }
    NameRanges { addresses: ranges, ports: range }
}

fn port(address: &Target) -> u16 {
    match address {
        Target::Address(address) => address.port(),
        Target::Name { port, .. } => *port,
    }
}

fn range_v6(report: &mut Report, place: Place<'_>, spot: Spot, net: IpNet) -> Option<Ipv6Net> {
    let IpNet::V6(range) = net else {
        report.add(spot, format_args!("{place}: {net} is an IPv4 range"), "write it under 'ipv4'");
        return None;
    };
    let special = ["::1/128", "fe80::/10", "ff00::/8", "::ffff:0:0/96"];
    let special = special.iter().filter_map(|net| net.parse().ok());
    check_range(report, place, spot, (net, LONGEST_V6), special);
    Some(range)
}

fn range_v4(report: &mut Report, place: Place<'_>, spot: Spot, net: IpNet) -> Option<Ipv4Net> {
    let IpNet::V4(range) = net else {
        report.add(spot, format_args!("{place}: {net} is an IPv6 range"), "write it under 'ipv6'");
        return None;
    };
    let special = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"];
    let special = special.iter().filter_map(|net| net.parse().ok());
    check_range(report, place, spot, (net, LONGEST_V4), special);
    Some(range)
}

/// A range of ordinary addresses, large enough for a few names.
fn check_range(
    report: &mut Report,
    place: Place<'_>,
    spot: Spot,
    (net, longest): (IpNet, u8),
    mut special: impl Iterator<Item = IpNet>,
) {
    if net.prefix_len() > longest {
        let remedy = format!("write a prefix of at most {longest}");
        report.add(spot, format_args!("{place}: {net} is too small"), remedy);
    }
    if let Some(special) = special.find(|special| special.contains(&net) || net.contains(special)) {
        let what = format_args!("{place}: {net} overlaps {special}, which has a meaning of its own");
        report.add(spot, what, "write a range such as fd00:1:2:3::/64 or 240.15.0.0/16 that nothing uses");
    }
}

pub(super) fn dns(
    report: &mut Report,
    raw: &At<raw::names::Dns>,
    ranges: VirtualRanges,
    callers: &Callers,
) -> Option<Dns> {
    let place = Place::Root.key("dns");
    if ranges == VirtualRanges::default() {
        let what = format_args!("{place} needs virtual_addresses: names would have no address");
        report.add(raw.spot, what, "add 'virtual_addresses: { ipv6: RANGE, ipv4: RANGE }'");
    }
    let listen = listen(report, place, "listen", raw.value.listen.as_ref(), DNS)?;
    let upstreams = upstreams(report, place.key("upstreams"), raw.value.upstreams.as_ref());
    let clients = match &raw.value.clients {
        Some(written) => Clients::Listed(listed(report, place.key("clients"), (raw.spot, written))),
        None => machine_and(report, place, (raw.spot, listen.ip()), callers),
    };
    let ranges: Vec<_> = match &clients {
        Clients::Listed(ranges) => ranges.iter().collect(),
        Clients::MachineAndCallers(callers) => callers.iter().flat_map(|caller| &caller.sources).collect(),
    };
    if upstreams != Upstreams::Off && ranges.iter().any(|range| range.prefix_len() == 0) {
        let what =
            format_args!("{}: everybody could use this server as an open resolver", place.key("clients"));
        report.add(raw.spot, what, "write the networks of the applications, or 'upstreams: off'");
    }
    let mut zones = Vec::new();
    for (index, written) in raw.value.zones.iter().flatten().enumerate().take(MAX_ENTRIES) {
        match HostName::parse(&written.value) {
            Ok(zone) => zones.push(zone),
            Err(error) => {
                let place = place.key("zones");
                let what = format_args!("{}: {}: {error}", place.item(index), Quoted(&written.value));
                report.add(written.spot, what, "write a suffix such as mesh.example, without '*.'");
            }
        }
    }
    Some(Dns { listen, clients, upstreams, zones })
}

/// Without callers only a server on loopback has clients that need not be named.
fn machine_and(
    report: &mut Report,
    place: Place<'_>,
    (spot, listen): (Spot, IpAddr),
    callers: &Callers,
) -> Clients {
    if callers.is_empty() && !listen.is_loopback() {
        let what =
            format_args!("{place} has no clients, and {} is not a loopback address", place.key("listen"));
        report.add(spot, what, "add 'clients: [CIDR]' with the networks of the applications that ask");
    }
    Clients::MachineAndCallers(callers.clone())
}

fn listed(report: &mut Report, place: Place<'_>, (spot, written): (Spot, &Vec<At<Cidr>>)) -> Vec<IpNet> {
    if written.len() > MAX_ENTRIES {
        report.add(spot, format_args!("{place}: more than {MAX_ENTRIES} ranges"), "merge ranges");
    }
    report.values(Some(written), place)
}

fn upstreams(report: &mut Report, place: Place<'_>, raw: Option<&At<raw::names::Upstreams>>) -> Upstreams {
    let Some(raw) = raw else { return Upstreams::System };
    let mut unknown = |what: &dyn Display| {
        let what = format_args!("{place}: {what} is none of its words");
        report.add(raw.spot, what, "write system, off or a list of IP:PORT");
        Upstreams::Off
    };
    let list = match &raw.value {
        raw::names::Upstreams::Word(word) if word == "system" => return Upstreams::System,
        raw::names::Upstreams::Word(word) if word == "off" => return Upstreams::Off,
        raw::names::Upstreams::Flag(false) => return Upstreams::Off,
        raw::names::Upstreams::Flag(true) => return unknown(&true),
        raw::names::Upstreams::Word(word) => return unknown(&Quoted(word)),
        raw::names::Upstreams::Servers(list) => list,
    };
    if list.is_empty() || list.len() > MAX_UPSTREAMS {
        let what = format_args!("{place} has {} servers", list.len());
        report.add(raw.spot, what, format_args!("write 1 to {MAX_UPSTREAMS} of them, or off"));
    }
    let mut servers = Vec::new();
    for (index, text) in list.iter().enumerate() {
        let written = At { value: ServerAddress::from(text.clone()), spot: raw.spot };
        servers.extend(report.value(Some(&written), place.item(index)));
    }
    Upstreams::At(servers)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::agent::config::{Settings, parse};

    const FILE: &str = "cluster: east\n\
        trust: { certificate: tls.crt, key: tls.key, bundles: bundles }\n\
        registry: { files: ./registry }\n\
        gateways: [{ name: gw-1, address: 10.0.0.1, port: 20443 }]\n";
    const RANGES: &str = "virtual_addresses: { ipv6: 'fd00:1::/64', ipv4: 240.15.0.0/16 }\n";

    fn settings(more: &str) -> Settings {
        parse(&format!("{FILE}{more}"), Path::new("agent.yaml")).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn names_sections_are_parsed_with_defaults() {
        let none = settings("");
        assert_eq!((none.names, none.dns), (NameRanges::default(), None));
        let all = settings(&format!("{RANGES}originate_ports: 20000-20099\ndns: {{}}\n"));
        assert_eq!(all.names.ports, Some(PlaceRange { first: 20_000, last: 20_099 }));
        assert!(all.names.addresses.contain("240.15.9.9".parse().unwrap()));
        let dns = all.dns.unwrap();
        assert_eq!((dns.listen.to_string(), dns.upstreams), (DNS.to_owned(), Upstreams::System));
        assert!(dns.clients == Clients::MachineAndCallers(Callers::default()) && dns.zones.is_empty());
        let more = "dns: { listen: '10.0.0.2:53', clients: [10.0.0.0/8], upstreams: ['10.0.0.3:53'], zones: [Mesh.] }\n";
        let dns = settings(&format!("{RANGES}{more}")).dns.unwrap();
        assert_eq!(dns.upstreams, Upstreams::At(vec!["10.0.0.3:53".parse().unwrap()]));
        assert_eq!(dns.zones[0].as_str(), "mesh");
        assert_eq!(dns.clients, Clients::Listed(vec!["10.0.0.0/8".parse().unwrap()]));
        let open = "dns: { listen: '0.0.0.0:53', clients: [0.0.0.0/0], upstreams: off }\n";
        assert_eq!(settings(&format!("{RANGES}{open}")).dns.unwrap().upstreams, Upstreams::Off);
        let of_callers = format!("{RANGES}dns: {{ listen: '10.0.0.2:53' }}\n{}", callers("10.1.0.0/16"));
        let Clients::MachineAndCallers(callers) = settings(&of_callers).dns.unwrap().clients else {
            panic!()
        };
        assert!(callers.get("10.1.2.3".parse().unwrap()).is_some());
    }

    fn callers(source: &str) -> String {
        format!("callers: [{{ sources: [{source}], identity: spiffe://east.example/ns/shop/sa/web }}]\n")
    }

    #[test]
    fn names_sections_with_problems_are_refused_with_their_remedy() {
        for (more, expected) in [
            ("virtual_addresses: {}\n", "virtual_addresses has no range"),
            ("virtual_addresses: { ipv4: 'fd00::/64' }\n", "is an IPv6 range"),
            ("virtual_addresses: { ipv6: 10.0.0.0/8 }\n", "is an IPv4 range"),
            ("virtual_addresses: { ipv4: 127.1.0.0/16 }\n", "overlaps 127.0.0.0/8"),
            ("virtual_addresses: { ipv6: '::/0' }\n", "overlaps ::1/128"),
            ("virtual_addresses: { ipv4: 240.15.0.0/31 }\n", "is too small"),
            ("originate_ports: 20000\n", "is not a range of ports"),
            ("originate_ports: 20000-29999\n", "contains 20443, the port of a gateway"),
            ("dns: {}\n", "dns needs virtual_addresses"),
        ] {
            refused(more, expected);
        }
        for (dns, expected) in [
            ("listen: '10.0.0.1:53'", "dns has no clients"),
            ("clients: ['::/0']", "open resolver"),
            ("upstreams: some", "'some' is none of its words"),
            ("upstreams: []", "dns.upstreams has 0 servers"),
            ("upstreams: [10.0.0.1]", "dns.upstreams[0]: '10.0.0.1'"),
            ("zones: ['*.mesh']", "dns.zones[0]: '*.mesh'"),
        ] {
            refused(&format!("{RANGES}dns: {{ {dns} }}\n"), expected);
        }
        refused(&format!("{RANGES}dns: {{}}\n{}", callers("'::/0'")), "open resolver");
    }

    #[track_caller]
    fn refused(more: &str, expected: &str) {
        let problems = parse(&format!("{FILE}{more}"), Path::new("agent.yaml")).unwrap_err();
        let lines: Vec<_> = problems.list().iter().map(ToString::to_string).collect();
        assert!(lines.iter().any(|line| line.contains(expected)), "{more}: {lines:#?}");
    }
}
