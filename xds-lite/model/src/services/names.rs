//! Assigns names to services: refuses a name that would mean two of them. Look-ups are elsewhere.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use crate::at::Spot;
use crate::host::{HostName, HostPattern};
use crate::problem::{Place, Report};
use crate::units::Scalar;

use super::table::{Entry, Table};
use super::{Service, defaults};

/// A service with a name, and the place in the file that gives it.
struct Claim<'a> {
    entry: &'a Entry<'a>,
    spot: Spot,
    /// The previous claim on the same name.
    before: Option<usize>,
}

/// All claims on names. One list for all names: most have one claim, and a list for each would cost as many
/// allocations.
#[derive(Default)]
struct Claims<'a> {
    list: Vec<Claim<'a>>,
    /// The last claim on each name.
    last: HashMap<HostPattern, usize>,
}

/// Refuses names that mean two services, unless ALPN or source conditions tell them apart.
pub(super) fn check(report: &mut Report, table: &Table<'_>) {
    let mut claims = Claims::default();
    for entry in &table.entries {
        let service = &entry.service;
        if service.default_port {
            claims.add(report, service.host.clone(), entry, entry.host_spot());
            for alias in entry.raw.value.aliases.as_deref().unwrap_or_default() {
                // An invalid name has been reported already.
                if let Ok(name) = alias.value.read() {
                    claims.add(report, name, entry, alias.spot);
                }
            }
        }
        for (name, spot) in instances(report, entry) {
            // `outbound_.PORT_._.INSTANCE.HOST` against `outbound_.PORT_._.` of a host of that very name.
            let same_port = table.entry(&name, service.port).filter(|other| meet(service, &other.service));
            match same_port {
                Some(other) => clash(report, &name, entry, spot, other, other.host_spot()),
                None if service.default_port => claims.add(report, name, entry, spot),
                None => {}
            }
        }
    }
}

impl<'a> Claims<'a> {
    /// Adds the claim, or reports its conflict.
    fn add(&mut self, report: &mut Report, name: HostPattern, entry: &'a Entry<'a>, spot: Spot) {
        let mut before = self.last.get(&name).copied();
        let first = before;
        let mut others = 0;
        while let Some(other) = before.and_then(|claim| self.list.get(claim)) {
            if meet(&other.entry.service, &entry.service) {
                return clash(report, &name, entry, spot, other.entry, other.spot);
            }
            others += 1;
            before = other.before;
        }
        if others >= defaults::CLAIMS {
            let what =
                format_args!("services[{}]: more than {others} services have the name {name}", entry.index);
            return report.add(spot, what, "give each its own name");
        }
        self.last.insert(name, self.list.len());
        self.list.push(Claim { entry, spot, before: first });
    }
}

/// `INSTANCE.HOST` and the aliases of each instance. A wildcard has none.
fn instances(report: &mut Report, entry: &Entry<'_>) -> Vec<(HostPattern, Spot)> {
    let HostPattern::Exact(host) = &entry.service.host else { return Vec::new() };
    let raw = entry.raw.value.endpoints.as_deref().unwrap_or_default();
    let (mut names, mut seen) = (Vec::new(), HashSet::new());
    for (index, endpoint) in raw.iter().enumerate() {
        let Some(instance) = &endpoint.value.instance else { continue };
        let Ok(label) = instance.value.read() else { continue };
        // A duplicate has been reported already.
        if !seen.insert(label.clone()) {
            continue;
        }
        // An invalid or partial name has been reported already.
        let aliases = endpoint.value.aliases.iter().flatten();
        names.extend(aliases.filter_map(|alias| Some((alias.value.read().ok()?, alias.spot))));
        match HostName::parse(format!("{label}.{host}")) {
            Ok(name) => names.push((HostPattern::Exact(name), instance.spot)),
            Err(error) => {
                let services = Place::Root.key("services");
                let service = services.item(entry.index);
                let endpoints = service.key("endpoints");
                let place = endpoints.item(index);
                let what = format!("{}: {label}.{host} is not a valid name: {error}", place.key("instance"));
                report.add(instance.spot, what, "shorten the instance or the host");
            }
        }
    }
    names
}

fn clash(
    report: &mut Report,
    name: &HostPattern,
    entry: &Entry<'_>,
    spot: Spot,
    other: &Entry<'_>,
    theirs: Spot,
) {
    let what = format_args!(
        "services[{}]: the name {name} is already used by services[{}] (line {})",
        entry.index, other.index, theirs.line
    );
    let remedy = if entry.index == other.index {
        "remove one of them"
    } else {
        "remove one of them, or let alpn or sources tell the services apart"
    };
    report.add(spot, what, remedy);
}

/// Whether one client could meet the conditions of both equally. A condition beats none, since it is more
/// specific.
fn meet(one: &Service, other: &Service) -> bool {
    alike(&one.alpn, &other.alpn, |a, b| a == b) && alike(&one.sources, &other.sources, overlap)
}

fn alike<T>(one: &[T], other: &[T], same: impl Fn(&T, &T) -> bool) -> bool {
    match (one.is_empty(), other.is_empty()) {
        (true, true) => true,
        (false, false) => one.iter().any(|a| other.iter().any(|b| same(a, b))),
        _ => false,
    }
}

fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}
