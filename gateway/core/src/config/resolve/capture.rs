//! Resolves `capture:`: the ranges, the DNS servers and who is excluded. No range may contain an address that the gateway
//! itself uses, or its own connections would come back to it.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use isthmus_model::address::Target;
use isthmus_model::at::{At, Spot};
use isthmus_model::problem::{Place, Quoted, Report};
use isthmus_model::services::Table;

use super::listeners::Ports;
use crate::config::defaults;
use crate::config::raw;
use crate::config::settings::{Bind, Capture, Sockets};

/// What the gateway uses beside the section.
pub(super) struct Surroundings<'a> {
    pub(super) raw: &'a raw::File,
    pub(super) binds: &'a [Option<Bind>],
    pub(super) ports: &'a Ports,
    pub(super) services: &'a Table<'a>,
}

pub(super) fn capture(
    report: &mut Report,
    capture: &At<raw::Capture>,
    around: &Surroundings<'_>,
) -> Option<Capture> {
    let (place, raw) = (Place::Root.key("capture"), &capture.value);
    let ranges = report.values(raw.ranges.as_ref(), place.key("ranges"));
    if raw.ranges.as_ref().is_none_or(Vec::is_empty) {
        let what = format_args!("{place} has no ranges");
        report.add(capture.spot, what, "add 'ranges: [CIDR, …]' with the virtual addresses");
    }
    let dns = report.values(raw.dns.as_ref(), place.key("dns"));
    for (is_ipv4, name) in [(true, "IPv4"), (false, "IPv6")] {
        if dns.iter().filter(|server| server.is_ipv4() == is_ipv4).count() > 1 {
            let what = format_args!("{}: has two {name} addresses", place.key("dns"));
            report.add(capture.spot, what, "write one of each family");
        }
    }
    let exclude_users = users(report, place.key("exclude_users"), raw.exclude_users.as_deref());
    if raw.dns.is_some() && exclude_users.is_empty() {
        let what =
            format_args!("{place} has dns but no exclude_users, so the agent's own queries would loop");
        report.add(capture.spot, what, "add 'exclude_users: [USER]' with the user that the agent runs as");
    }
    let (marks, default) = (defaults::CAPTURE_MARKS, defaults::CAPTURE_MARK);
    let mark = report.count(raw.mark.as_ref(), place.key("mark"), marks, default);
    let spots: Vec<Spot> = raw.ranges.iter().flatten().map(|range| range.spot).collect();
    if spots.len() == ranges.len() {
        for (index, (range, spot)) in ranges.iter().zip(spots).enumerate() {
            let place = place.key("ranges");
            listened_to(report, (place.item(index), spot), *range, around);
            unused(report, (place.item(index), spot), *range, &dns, around);
        }
    }
    Some(Capture { ranges, dns, exclude_users, mark })
}

/// Names or numbers, which become part of nftables' rules.
fn users(report: &mut Report, place: Place<'_>, raw: Option<&[At<String>]>) -> Vec<String> {
    let mut users = Vec::new();
    for (index, user) in raw.unwrap_or_default().iter().enumerate() {
        let text = &user.value;
        let is_number = text.parse::<u32>().is_ok_and(|number| number.to_string() == *text);
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
        let rest = |byte: u8| letter(byte) || byte.is_ascii_digit() || byte == b'-';
        let is_name = text.len() <= 32 && text.bytes().next().is_some_and(letter) && text.bytes().all(rest);
        if is_number || is_name {
            users.push(text.clone());
        } else {
            let what = format_args!("{}: {} is not a user", place.item(index), Quoted(text));
            report.add(user.spot, what, "write a name as in /etc/passwd, or a user's number");
        }
    }
    users
}

/// Some listener must take what is captured of the range's family.
fn listened_to(
    report: &mut Report,
    (place, spot): (Place<'_>, Spot),
    range: IpNet,
    around: &Surroundings<'_>,
) {
    let is_ipv4 = range.addr().is_ipv4();
    let listeners = around.raw.listeners.iter().flat_map(|listeners| &listeners.value);
    let is_heard = listeners.zip(around.binds).any(|(listener, bind)| {
        let captures = listener.value.original_destination.is_some();
        captures && bind.as_ref().is_none_or(|bind| bind.accepts(is_ipv4).is_some_and(|at| at.port() != 0))
    });
    if !is_heard {
        let family = if is_ipv4 { "IPv4" } else { "IPv6" };
        let what =
            format_args!("{place}: no listener with original_destination accepts {family} at a fixed port");
        let remedy = "add 'mode: originate' and 'original_destination: redirect' to an outbound listener of the family";
        report.add(spot, what, remedy);
    }
}

/// No address that is listened on or connected to may be in the range.
fn unused(
    report: &mut Report,
    (place, spot): (Place<'_>, Spot),
    range: IpNet,
    dns: &[SocketAddr],
    around: &Surroundings<'_>,
) {
    let mut refuse = |ip: IpAddr, what: &str| {
        if range.contains(&ip.to_canonical()) {
            let what = format_args!("{place}: {range} contains {ip}, {what}");
            report.add(spot, what, "choose a range of which nothing else has an address");
        }
    };
    for bind in around.binds.iter().flatten() {
        match &bind.sockets {
            Sockets::Address(address) | Sockets::Transparent(address) => {
                refuse(address.ip(), &format!("the address of listener {}", bind.name));
            }
            Sockets::Ports(ip, _) => refuse(*ip, &format!("the address of listener {}", bind.name)),
            Sockets::Virtual => {}
        }
    }
    let Ports { admin, metrics, health } = around.ports;
    for (address, what) in
        [(admin, "admin.address"), (metrics, "metrics.address"), (health, "health.address")]
    {
        refuse(address.ip(), what);
    }
    for server in dns {
        refuse(server.ip(), "an address of capture.dns");
    }
    for entry in around.services.entries() {
        for endpoint in &entry.service.endpoints {
            if let Target::Address(address) = &endpoint.address {
                refuse(address.ip(), &format!("the address of an endpoint of {}", entry.service.host));
            }
        }
    }
    let agents = around.raw.xds.iter().flat_map(|xds| xds.value.agents.iter().flatten());
    for agent in agents {
        if let Ok(Target::Address(address)) = isthmus_model::units::Scalar::read(&agent.value) {
            refuse(address.ip(), "the address of an agent");
        }
    }
}
