//! The rules for callers that slices carry: those of the own cluster guard the whole service at its gateways, those of
//! another cluster its own endpoints alone, where several clusters offer one service.

use std::sync::Arc;

use isthmus_certs::TrustDomain;
use isthmus_model::access::{Access, RemoteAccess};
use isthmus_model::slice::{Port, Tls};

use crate::config::settings::ServiceAccess;

/// The rules of a port of the own cluster, if it has any.
pub(super) fn of_own(port: &Port) -> Option<ServiceAccess> {
    has_rules(port).then(|| ServiceAccess::Combined(Arc::new(port.access.clone())))
}

/// The rules of a port of another cluster, as far as they concern callers of this trust domain, if it has any.
pub(super) fn of_remote(port: &Port, domain: &TrustDomain) -> Option<Arc<RemoteAccess>> {
    has_rules(port).then(|| {
        Arc::new(RemoteAccess {
            rules: port.access.clone(),
            domain: domain.clone(),
            ends_tls: port.tls == Tls::Terminated,
        })
    })
}

fn has_rules(port: &Port) -> bool {
    port.access != Access::open()
}

#[cfg(test)]
mod tests {
    use isthmus_certs::SpiffeId;
    use isthmus_model::access::{AccessRules, Callers, RuleSettings, Scopes, Verdict};
    use isthmus_model::services::TlsMode;

    use super::*;

    fn access(tls: TlsMode) -> Access {
        let rule = RuleSettings {
            name: "ours".to_owned(),
            callers: Callers::OwnNamespaces(vec!["shop".to_owned()]),
            sources: Vec::new(),
            ports: Vec::new(),
            dry_run: false,
        };
        let rules = AccessRules { allow: Some(vec![rule]), advisory: true, ..AccessRules::default() };
        let own = TrustDomain::new("west.example").unwrap();
        let scopes = Scopes {
            own: Some(&own),
            cluster: None,
            workspaces: &[],
            namespace: None,
            service: Some(&rules),
        };
        scopes.access(tls).unwrap()
    }

    #[test]
    fn learned_rules_of_another_cluster_refuse_known_callers_alone() {
        let domain = TrustDomain::new("west.example").unwrap();
        let mut port = Port { access: access(TlsMode::Terminate), ..Port::new(443, Tls::Terminated) };
        let verdict = |port: &Port, id: Option<&str>| {
            let id = id.map(|id| SpiffeId::parse(id).unwrap());
            let caller = isthmus_model::access::Caller {
                identity: id.as_ref(),
                source: "192.0.2.1".parse().unwrap(),
                port: 443,
            };
            of_remote(port, &domain).unwrap().decide(&caller).verdict
        };
        assert_eq!(verdict(&port, Some("spiffe://west.example/ns/shop/sa/a")), Verdict::Allowed);
        assert_eq!(verdict(&port, Some("spiffe://west.example/ns/cart/sa/a")), Verdict::Denied);
        // Their rules stay at home.
        assert_eq!(verdict(&port, Some("spiffe://north.example/ns/cart/sa/a")), Verdict::Allowed);
        // The owner's gateway will see who it is.
        assert_eq!(verdict(&port, None), Verdict::Allowed);
        port = Port { access: access(TlsMode::Passthrough), ..Port::new(443, Tls::Mutual) };
        assert_eq!(verdict(&port, None), Verdict::Allowed, "advisory");
        assert!(of_own(&port).is_some() && of_own(&Port::new(443, Tls::Mutual)).is_none());
    }
}
