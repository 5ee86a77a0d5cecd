//! Picks where a connection goes once its attempts are used up: each priority with a healthy endpoint gets one. Pure, as
//! `pick` is.

use crate::pick::{Choice, pick};
use crate::snapshot::{Endpoint, Group, Service};

/// Picks a healthy endpoint of a priority of which no endpoint was tried; `None` if there is no such priority.
pub(crate) fn pick_in_untried_priority<'s>(
    service: &'s Service,
    choice: &Choice<'_>,
    random: &mut fastrand::Rng,
) -> Option<&'s Endpoint> {
    let is_tried = |endpoint: &Endpoint| choice.tried.contains(&endpoint.address);
    let was_tried = |group: &&Group| group.endpoints(service).iter().any(is_tried);
    let beside = service.groups().filter(was_tried).flat_map(|group| group.endpoints(service));
    let tried: Vec<_> = choice.tried.iter().copied().chain(beside.map(|endpoint| endpoint.address)).collect();
    pick(service, &Choice { tried: &tried, ..*choice }, random)
        .filter(|endpoint| endpoint.state.healthy(choice.now))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::path::Path;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::config::settings::{Ejection, Side};
    use crate::family::Off;
    use crate::snapshot::{Resolved, Snapshot};

    const ALWAYS: Ejection = Ejection {
        failures: 1,
        base: Duration::from_secs(30),
        max: Duration::from_secs(30),
        max_percent: 100,
    };

    fn address(last: u8) -> SocketAddr {
        (Ipv4Addr::new(10, 0, 0, last), 80).into()
    }

    /// A service with one endpoint for each of these priorities.
    fn service(priorities: &[u8]) -> Arc<Service> {
        let endpoints: Vec<_> =
            (1..).zip(priorities).map(|(last, _)| format!("{{ address: '{}' }}", address(last))).collect();
        let text = format!(
            "listeners: [{{ address: '127.0.0.1:0' }}]\nservices: [{{ host: a.example, endpoints: [{}] }}]\n",
            endpoints.join(", ")
        );
        let mut live = crate::config::parse(&text, Path::new("test.yaml")).unwrap().live;
        let endpoints = &mut Arc::make_mut(&mut live.services[0]).endpoints;
        for (endpoint, priority) in endpoints.iter_mut().zip(priorities) {
            endpoint.priority = *priority;
        }
        let tables = Snapshot::compile(live, &Resolved::new(), None, &|_| false);
        Arc::clone(tables.services().next().unwrap())
    }

    fn next(service: &Service, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let choice = Choice {
            instance: None,
            side: Side::Outbound,
            tried,
            source: IpAddr::V4(Ipv4Addr::LOCALHOST),
            identity: None,
            turn: 0,
            off: Off::NONE,
            now: 0,
        };
        let picked = pick_in_untried_priority(service, &choice, &mut fastrand::Rng::with_seed(7));
        picked.map(|endpoint| endpoint.address)
    }

    #[test]
    fn untried_priorities_come_in_their_order_and_once_each() {
        let service = service(&[0, 0, 0, 0, 1, 1, 2]);
        let mut tried = vec![address(1), address(2), address(3)];
        let beyond: Vec<_> = std::iter::from_fn(|| {
            let next = next(&service, &tried)?;
            tried.push(next);
            Some(next)
        })
        .collect();
        assert_eq!(beyond, [address(5), address(7)]);
    }

    #[test]
    fn untried_priority_without_a_healthy_endpoint_is_passed_over() {
        let service = service(&[0, 1, 2]);
        assert!(service.failed(&service.endpoints[1], 0, &ALWAYS));
        assert_eq!(next(&service, &[address(1)]), Some(address(3)));
        assert!(service.failed(&service.endpoints[2], 0, &ALWAYS));
        assert_eq!(next(&service, &[address(1)]), None);
    }
}
