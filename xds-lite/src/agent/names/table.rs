//! The DNS table of all names. Where several services claim one name, a host or instance goes before an alias, an alias
//! before a short name, and what is of the own registry before what is imported.

use std::collections::HashMap;
use std::sync::Arc;

use isthmus_dns::{Records, Table};
use isthmus_model::host::HostName;
use isthmus_model::virtual_address::VirtualRanges;

use super::{Name, Names};

/// How long an answer may be cached, in seconds. Addresses do not move, and a freed one leads nowhere for a day.
const TTL: u32 = 30;
/// What stands between a service's name and namespace and the rest.
const SERVICES: &str = ".svc.";

/// The table of these names. Under `zones` there are no others.
pub(in crate::agent) fn table(names: &Names, ranges: VirtualRanges, zones: &[HostName]) -> Table {
    let named: Vec<_> = names.names.iter().map(|(host, name)| (host, name, records(name))).collect();
    let (own, imported): (Vec<_>, Vec<_>) = named.iter().partition(|(_, name, _)| name.is_own);
    let mut all: HashMap<HostName, &Arc<Records>> =
        named.iter().map(|(host, _, records)| ((*host).clone(), records)).collect();
    for (_, name, records) in own.iter().chain(&imported) {
        for alias in &name.aliases {
            all.entry(alias.clone()).or_insert(records);
        }
    }
    for (host, name, records) in own.iter().chain(&imported) {
        for short in name.aliases.iter().chain([*host]).flat_map(short_names) {
            all.entry(short).or_insert(records);
        }
    }
    let mut table = Table::default();
    table.ranges = ranges.v6.map(Into::into).into_iter().chain(ranges.v4.map(Into::into)).collect();
    table.zones = zones.to_vec();
    table.absent = names.unused.iter().cloned().collect();
    for (host, name) in &names.names {
        table.pointers.extend(name.addresses.iter().map(|address| (address, host.clone())));
    }
    all.into_iter().for_each(|(name, records)| table.insert(name, Arc::clone(records)));
    table
}

fn records(name: &Name) -> Arc<Records> {
    Arc::new(Records {
        addresses: name.addresses.iter().collect(),
        ports: name.ports.iter().map(|port| port.port).collect(),
        ttl: TTL,
    })
}

/// `NAME.NAMESPACE` and `NAME.NAMESPACE.svc` of `NAME.NAMESPACE.svc.…`; of an instance's name as well.
fn short_names(name: &HostName) -> impl Iterator<Item = HostName> {
    let short =
        name.as_str().split_once(SERVICES).map(|(short, _)| short).filter(|short| short.contains('.'));
    let names = short.map(|short| [short.to_owned(), format!("{short}.svc")]);
    names.into_iter().flatten().filter_map(|name| HostName::parse(name).ok())
}

#[cfg(test)]
mod tests {
    use isthmus_dns::{Outcome, Transport, answer};
    use isthmus_model::virtual_address::NameAddresses;

    use super::super::NamePort;
    use super::*;

    fn host(name: &str) -> HostName {
        HostName::parse(name).unwrap()
    }

    fn name(last: u8, aliases: &[&str], is_own: bool) -> Arc<Name> {
        Arc::new(Name {
            aliases: aliases.iter().map(|alias| host(alias)).collect(),
            addresses: NameAddresses { v6: None, v4: Some([240, 15, 0, last].into()) },
            ports: vec![NamePort { port: 9080, listener_port: None }],
            is_own,
        })
    }

    /// The last byte of the address that a name has in an answer; none if others are to be asked.
    fn last(table: &Table, name: &str) -> Option<u8> {
        let labels = name
            .split('.')
            .flat_map(|label| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat());
        let header = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let packet: Vec<u8> = header.into_iter().chain(labels).chain([0, 0, 1, 0, 1]).collect();
        match answer(table, &packet, Transport::Udp) {
            Outcome::Reply(reply) => reply.last().copied(),
            _ => None,
        }
    }

    #[test]
    fn dns_table_has_hosts_aliases_and_short_names_of_the_own_registry_first() {
        let names = [
            ("page.shop.svc.cluster.local", name(1, &["page", "db.shop"], true)),
            ("page.shop.svc.a.local", name(2, &["www.page"], false)),
            ("db.shop.svc.cluster.local", name(3, &["pxc.db.svc.cluster.local"], true)),
            ("db-0.db.shop.svc.cluster.local", name(4, &[], true)),
            ("page.shop.svc", name(5, &["page"], false)),
            ("svc.local", name(6, &[], true)),
        ];
        let names = names.map(|(name, records)| (host(name), records));
        let names = Names { names: names.into(), unused: [host("secret.shop.svc.cluster.local")].into() };
        let ranges = VirtualRanges { v6: None, v4: Some("240.15.0.0/16".parse().unwrap()) };
        let table = table(&names, ranges, &[host("mesh")]);
        for (asked, expected) in [
            ("page.shop.svc.cluster.local", 1),
            ("page.shop", 1),
            ("page", 1),
            ("db.shop", 1),
            ("www.page", 2),
            ("page.shop.svc.a.local", 2),
            ("db.shop.svc", 3),
            ("pxc.db", 3),
            ("db-0.db.shop", 4),
            ("db-0.db.shop.svc", 4),
            ("page.shop.svc", 5),
            ("svc.local", 6),
        ] {
            assert_eq!(last(&table, asked), Some(expected), "{asked}");
        }
        for forwarded in ["shop.svc", "other.shop", "local"] {
            assert_eq!(last(&table, forwarded), None, "{forwarded}");
        }
        assert_eq!(table.absent.len(), 1);
        let pointed = table.pointers[&"240.15.0.2".parse().unwrap()].to_string();
        assert_eq!(pointed, "page.shop.svc.a.local");
    }
}
