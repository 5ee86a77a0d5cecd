//! Merges the sources of services: files, registered VMs, later Kubernetes. Reading each source is elsewhere.

use std::collections::{HashMap, HashSet};

use isthmus_model::host::HostPattern;
use isthmus_model::services::Service;

use super::files::Found;
use super::registered::Registered;

/// The services of some sources, and what was ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Each host and port once.
    pub services: Vec<Service>,
    /// What was ignored, where, and why; for the log and for status.
    pub problems: Vec<String>,
}

/// A source of services.
pub trait Source {
    /// The services of a host.
    fn services_for(&self, host: &HostPattern) -> Vec<Service>;

    /// What was ignored, where, and why; for the log and for status.
    fn problems(&self) -> Vec<String>;
}

impl Source for Found {
    fn services_for(&self, host: &HostPattern) -> Vec<Service> {
        self.services_for(host).iter().map(|service| (**service).clone()).collect()
    }

    fn problems(&self) -> Vec<String> {
        self.summary().problems.clone()
    }
}

impl Source for Registered {
    fn services_for(&self, host: &HostPattern) -> Vec<Service> {
        self.services_for(host)
    }

    fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Merges snapshots. Where two have a host and port, the earlier one defines the service, and the endpoints
/// of the later one are added if the earlier one accepts registrations. A host of an earlier one gets no
/// further port.
#[must_use]
pub fn merge(snapshots: impl IntoIterator<Item = Snapshot>) -> Snapshot {
    let mut merged = Snapshot::default();
    let mut places: HashMap<(HostPattern, u16), usize> = HashMap::new();
    let mut hosts: HashSet<HostPattern> = HashSet::new();
    for snapshot in snapshots {
        merged.problems.extend(snapshot.problems);
        let before = merged.services.len();
        for service in snapshot.services {
            let key = (service.host.clone(), service.port);
            let held = places.get(&key).and_then(|place| merged.services.get_mut(*place));
            match held {
                Some(held) if held.takes_registrations() => {
                    add_endpoints(held, service, &mut merged.problems);
                }
                held if held.is_some() || hosts.contains(&service.host) => {
                    merged.problems.push(left_out(&service, "a registry file defines that service"));
                }
                _ => {
                    places.insert(key, merged.services.len());
                    merged.services.push(service);
                }
            }
        }
        let new = merged.services.get(before..).unwrap_or_default();
        hosts.extend(new.iter().map(|service| service.host.clone()));
    }
    merged
}

/// The problem of registrations that no file accepts.
fn left_out(service: &Service, why: &str) -> String {
    format!(
        "{}:{}: ignoring {} registered endpoints: {why} without `registered: true`",
        service.host,
        service.port,
        service.endpoints.len()
    )
}

/// The registered services of a host, unless a wildcard in a file covers it.
pub fn registered_of(host: &HostPattern, registered: &Registered, files: &Found) -> Snapshot {
    let services = registered.services_for(host);
    let wildcards = wildcards_over(host).into_iter();
    let taken = wildcards
        .filter(|_| !services.is_empty())
        .find(|wildcard| files.services_for(wildcard).iter().any(|service| !service.takes_registrations()));
    match taken {
        None => Snapshot { services, problems: Vec::new() },
        Some(wildcard) => {
            let why = format!("a registry file defines {wildcard}");
            let problems = services.iter().map(|service| left_out(service, &why)).collect();
            Snapshot { services: Vec::new(), problems }
        }
    }
}

fn wildcards_over(host: &HostPattern) -> Vec<HostPattern> {
    let HostPattern::Exact(name) = host else { return Vec::new() };
    let dots = name.as_str().match_indices('.');
    let suffixes = dots.filter_map(|(dot, _)| name.as_str().get(dot..));
    suffixes.filter_map(|suffix| HostPattern::parse(&format!("*{suffix}")).ok()).collect()
}

fn add_endpoints(held: &mut Service, more: Service, problems: &mut Vec<String>) {
    let mut addresses: HashSet<_> = held.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect();
    let mut instances: HashSet<_> =
        held.endpoints.iter().filter_map(|endpoint| endpoint.instance.clone()).collect();
    for endpoint in more.endpoints {
        let named = endpoint.instance.as_ref().is_some_and(|instance| instances.contains(instance));
        if named || addresses.contains(&endpoint.address) {
            let instance = endpoint.instance.as_ref().map_or("-", |instance| instance.as_str());
            problems.push(format!(
                "{}:{}: ignoring the endpoint {} (instance {instance}): another source already has its {}",
                held.host,
                held.port,
                endpoint.address,
                if named { "instance" } else { "address" },
            ));
            continue;
        }
        addresses.insert(endpoint.address.clone());
        instances.extend(endpoint.instance.clone());
        held.endpoints.push(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use isthmus_model::registry_file;

    fn snapshot(text: &str) -> Snapshot {
        let services = registry_file(&format!("services: [{text}]"), Path::new("r.yaml")).unwrap();
        Snapshot { services, problems: Vec::new() }
    }

    #[test]
    fn source_merge_adds_endpoints_and_keeps_the_first_definition() {
        let files = snapshot(
            "{ host: a.b, port: 1, registered: true, balance: random, endpoints: [{ address: '10.0.0.1:1', instance: i-0 }] }",
        );
        let others = snapshot(
            "{ host: a.b, port: 1, endpoints: [{ address: '10.0.0.2:1', instance: i-1 }, \
               { address: '10.0.0.1:1', instance: i-2 }, { address: '10.0.0.3:1', instance: i-0 }] }, \
             { host: c.d, aliases: [e] }",
        );
        let merged = merge([files.clone(), others]);
        let shown: Vec<_> = merged.services.iter().map(|service| service.host.to_string()).collect();
        assert_eq!(shown, ["a.b", "c.d"]);
        let first = &merged.services[0];
        assert_eq!((first.endpoints.len(), first.balance), (2, files.services[0].balance));
        assert_eq!(merged.problems.len(), 2, "{:?}", merged.problems);
        assert!(merged.problems[0].contains("10.0.0.1:1 (instance i-2)"), "{:?}", merged.problems);
        assert!(merged.problems[1].ends_with("already has its instance"), "{:?}", merged.problems);
    }

    #[test]
    fn source_merge_takes_nothing_that_a_file_defines() {
        let merged = merge([
            snapshot("{ host: a.b, port: 1, endpoints: [{ address: '10.0.0.1:1' }] }"),
            snapshot(
                "{ host: a.b, port: 1, endpoints: [{ address: '10.0.0.9:1' }] }, \
                 { host: a.b, port: 2, endpoints: [{ address: '10.0.0.9:1' }] }, { host: c.d, port: 3 }",
            ),
        ]);
        let shown: Vec<_> =
            merged.services.iter().map(|service| (service.port, service.endpoints.len())).collect();
        assert_eq!(shown, [(1, 1), (3, 0)]);
        assert_eq!(merged.problems.len(), 2, "{:?}", merged.problems);
        assert!(
            merged
                .problems
                .iter()
                .all(|why| why.starts_with("a.b:") && why.ends_with("without `registered: true`")),
            "{:?}",
            merged.problems
        );
    }
}
