//! Which services gateways guard with the certificate of which identity, and the names in that certificate.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_certs::SpiffeId;
use isthmus_model::host::HostPattern;
use isthmus_model::services::{Service, TlsMode};

use super::{OwnServices, State};

/// Names of one certificate. An identity of more services gets a certificate without any: it is sent in each handshake.
const MAX_NAMES: usize = 256;
/// Their bytes together.
const MAX_BYTES: usize = 16 << 10;

/// The hosts of terminated services, by each identity that they name.
#[derive(Debug, Default)]
pub(super) struct Doors(BTreeMap<SpiffeId, BTreeSet<HostPattern>>);

impl Doors {
    /// Replaces the services of a host.
    pub(super) fn replace(&mut self, host: &HostPattern, before: &[Service], after: &[Service]) {
        for id in identities(before) {
            if let Some(hosts) = self.0.get_mut(id) {
                hosts.remove(host);
                if hosts.is_empty() {
                    self.0.remove(id);
                }
            }
        }
        for id in identities(after) {
            self.0.entry(id.clone()).or_default().insert(host.clone());
        }
    }

    fn hosts(&self, id: &SpiffeId) -> impl Iterator<Item = &HostPattern> {
        self.0.get(id).into_iter().flatten()
    }
}

fn identities(services: &[Service]) -> impl Iterator<Item = &SpiffeId> {
    services.iter().filter(|service| service.tls_mode() == TlsMode::Terminate).flat_map(Service::identities)
}

impl OwnServices {
    /// The names of the services that gateways guard with an identity's certificate: hosts and aliases.
    pub(in crate::agent) fn names_of_doors(&self, id: &SpiffeId) -> Vec<String> {
        let names = self.state.lock().names_of_doors(id);
        match bounded(names) {
            Ok(names) => names,
            Err(count) => {
                tracing::warn!(identity = %id, names = count, "certificate without DNS names: the services of this identity have more than {MAX_NAMES}, or longer ones than fit");
                Vec::new()
            }
        }
    }
}

impl State {
    fn names_of_doors(&self, id: &SpiffeId) -> BTreeSet<String> {
        let services = self.doors.hosts(id).filter_map(|host| self.services.get(host)).flatten();
        let doors = services
            .filter(|service| service.tls_mode() == TlsMode::Terminate && service.identities().contains(id));
        let mut names = BTreeSet::new();
        for name in doors.flat_map(Service::certificate_names) {
            names.insert(name);
            // One more than fit shows that there are too many.
            if names.len() > MAX_NAMES {
                break;
            }
        }
        names
    }
}

/// The names as they are, if they fit into a certificate; else their number.
fn bounded(names: BTreeSet<String>) -> Result<Vec<String>, usize> {
    let bytes: usize = names.iter().map(String::len).sum();
    if names.len() > MAX_NAMES || bytes > MAX_BYTES {
        return Err(names.len());
    }
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use isthmus_model::registry_file;

    use super::*;

    fn services(text: &str) -> Vec<Service> {
        registry_file(text, Path::new("r.yaml")).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn doors_list_the_hosts_of_an_identity_until_they_are_gone() {
        let id = |name: &str| SpiffeId::parse(&format!("spiffe://east.example/ns/shop/sa/{name}")).unwrap();
        let host = HostPattern::parse("stock.shop").unwrap();
        let both = services(
            "services: [{ host: stock.shop, tls: terminate, identities: ['spiffe://east.example/ns/shop/sa/stock', 'spiffe://east.example/ns/shop/sa/old'] }]",
        );
        let passed = services(
            "services: [{ host: stock.shop, identities: ['spiffe://east.example/ns/shop/sa/stock'] }]",
        );
        let mut doors = Doors::default();
        doors.replace(&host, &[], &both);
        assert_eq!(doors.hosts(&id("stock")).collect::<Vec<_>>(), [&host]);
        assert_eq!(doors.hosts(&id("old")).collect::<Vec<_>>(), [&host]);
        doors.replace(&host, &both, &passed);
        assert!(doors.0.is_empty(), "{doors:?}");
        doors.replace(&host, &passed, &[]);
        assert!(doors.0.is_empty());
    }

    #[test]
    fn certificate_has_all_names_or_none() {
        let names =
            |count: usize, length: usize| (0..count).map(|index| format!("{index:0length$}")).collect();
        assert_eq!(bounded(names(MAX_NAMES, 4)).unwrap().len(), MAX_NAMES);
        assert_eq!(bounded(names(MAX_NAMES + 1, 4)), Err(MAX_NAMES + 1));
        assert_eq!(bounded(names(MAX_NAMES, 253)), Err(MAX_NAMES));
    }
}
