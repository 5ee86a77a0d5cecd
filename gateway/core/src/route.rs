//! Routes SNI, protocols and source address to a service. Pure: it reads one snapshot. A name that is not in the
//! tables does not exist, in any form.

use std::net::IpAddr;
use std::sync::Arc;

use isthmus_model::host::PROBE;
use isthmus_model::{HostName, sni};

use crate::config::settings::Side;
use crate::hello::Alpn;
use crate::reason::Reason;
use crate::snapshot::{Claim, Service, Snapshot};

/// The service for a hello.
#[derive(Clone, Debug)]
pub struct Route {
    /// The service.
    pub service: Arc<Service>,
    /// The instance that was named, if any.
    pub instance: Option<HostName>,
    /// The side of the listener.
    pub side: Side,
}

/// The input of a look-up.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// Index of the listener.
    pub listener: usize,
    /// The SNI.
    pub sni: Option<&'a HostName>,
    /// The offered protocols; none: those of the service, whichever it is.
    pub alpn: Option<&'a Alpn>,
    /// The client's address, an IPv4-mapped one already made IPv4.
    pub source: IpAddr,
}

/// Finds the service: exact name, then an instance by its alias or its label, then the longest `*.suffix`, then the
/// listener's default. A name that exists leads to its owner or nowhere: if the owner cannot be reached by it (another
/// port, not exported), neither a shorter suffix nor the default applies.
///
/// # Errors
/// `gateway_probe` for the name by which gateways probe each other; `no_sni`, `sni_unmatched`, or the condition of the services that the client does not meet.
pub fn route(snapshot: &Snapshot, query: Query<'_>) -> Result<Route, Reason> {
    if query.sni.is_some_and(|sni| sni.as_str() == PROBE) {
        return Err(Reason::GatewayProbe);
    }
    let side = snapshot.live.listeners.get(query.listener).map(|listener| listener.side).unwrap_or_default();
    let named = query.sni.and_then(|sni| find(snapshot, sni, side, query));
    match named {
        Some(answer) => answer,
        None => {
            let default = snapshot.live.listeners.get(query.listener).and_then(|listener| listener.default);
            match default.and_then(|index| snapshot.in_file(index)) {
                Some(service) => meets(service, query).map(|()| Route {
                    service: Arc::clone(service),
                    instance: None,
                    side,
                }),
                None if query.sni.is_none() => Err(Reason::NoSni),
                None => Err(Reason::SniUnmatched),
            }
        }
    }
}

/// Returns `None` if the name does not exist, so that the listener's default applies.
fn find(snapshot: &Snapshot, sni: &HostName, side: Side, query: Query<'_>) -> Option<Result<Route, Reason>> {
    let (name, port) = sni::split(sni.as_str());
    let names = &snapshot.names;
    let choose = |claims, part| choose(claims, Asked { port, part, side, query });
    if let Some(answer) = choose(names.exact(name), Part::Whole) {
        return Some(answer);
    }
    if let Some(answer) = choose(names.instance(name), Part::Alias(name)) {
        return Some(answer);
    }
    if let Some((label, parent)) = name.split_once('.')
        && let Some(answer) = choose(names.exact(parent), Part::Label(label))
    {
        return Some(answer);
    }
    if exists(snapshot, sni::host_of_other_form(name).unwrap_or(name)) {
        return Some(Err(Reason::SniUnmatched));
    }
    let suffixes = std::iter::successors(Some(name), |suffix| suffix.split_once('.').map(|(_, rest)| rest));
    let claims = suffixes.skip(1).map(|suffix| names.suffix(suffix)).find(|claims| !claims.is_empty())?;
    Some(choose(claims, Part::Whole).unwrap_or(Err(Reason::SniUnmatched)))
}

/// Whether a name exists as a whole, whether or not it may be reached.
fn exists(snapshot: &Snapshot, name: &str) -> bool {
    let names = &snapshot.names;
    let is_instance = |(label, parent): (&str, &str)| {
        names.exact(parent).iter().any(|claim| claim.service.has_instance(label))
    };
    !names.exact(name).is_empty()
        || !names.instance(name).is_empty()
        || name.split_once('.').is_some_and(is_instance)
}

/// The part of a service that a name refers to.
#[derive(Clone, Copy)]
enum Part<'a> {
    Whole,
    /// The instance with this label.
    Label(&'a str),
    /// The instance with this alias.
    Alias(&'a str),
}

#[derive(Clone, Copy)]
struct Asked<'a> {
    port: Option<u16>,
    part: Part<'a>,
    side: Side,
    query: Query<'a>,
}

/// Returns the first service, most specific first, that has the port and the instance and whose conditions are met.
/// `None` if none of them has that port or that instance.
fn choose(claims: &[Claim], asked: Asked<'_>) -> Option<Result<Route, Reason>> {
    let Asked { port, part, side, query } = asked;
    let mut answer = None;
    for service in claims.iter().map(|claim| &claim.service) {
        let is_open = side == Side::Outbound || service.rules.exposed;
        if !is_open || port.map_or(!service.rules.default_port, |port| service.port != port) {
            continue;
        }
        let named = match part {
            Part::Whole => None,
            Part::Label(label) => Some(service.instance(side, |name, _| name.as_str() == label)),
            Part::Alias(alias) => {
                Some(service.instance(side, |_, names| names.iter().any(|name| name.as_str() == alias)))
            }
        };
        if matches!(named, Some(None)) {
            continue;
        }
        match meets(service, query) {
            Ok(()) => {
                let instance = named.flatten().cloned();
                return Some(Ok(Route { service: Arc::clone(service), instance, side }));
            }
            Err(reason) => answer = Some(Err(reason)),
        }
    }
    answer
}

fn meets(service: &Service, query: Query<'_>) -> Result<(), Reason> {
    let rules = &service.rules;
    if !rules.sources.is_empty() && !rules.sources.iter().any(|net| net.contains(&query.source)) {
        return Err(Reason::SourceDenied);
    }
    if let Some(alpn) = query.alpn
        && !rules.alpn.is_empty()
        && !rules.alpn.iter().any(|protocol| alpn.offers(protocol))
    {
        return Err(Reason::AlpnUnmatched);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Resolved;
    use std::path::Path;

    fn tables(services: &str) -> Snapshot {
        let text = format!("listeners:\n- address: 127.0.0.1:0\nservices:\n{services}");
        let settings = crate::config::parse(&text, Path::new("test.yaml")).unwrap();
        Snapshot::compile(settings.live, &Resolved::new(), None, &|_| false)
    }

    fn ask(tables: &Snapshot, sni: &str, alpn: &[&str], source: &str) -> Result<String, Reason> {
        let name = HostName::parse(sni).ok();
        let alpn = Alpn::from_protocols(alpn.iter().copied());
        let query =
            Query { listener: 0, sni: name.as_ref(), alpn: Some(&alpn), source: source.parse().unwrap() };
        route(tables, query).map(|route| match route.instance {
            Some(instance) => format!("{}/{instance}", route.service.name()),
            None => route.service.name().to_string(),
        })
    }

    fn plain(tables: &Snapshot, sni: &str) -> Result<String, Reason> {
        ask(tables, sni, &[], "192.0.2.1")
    }

    const BOOKINFO: &str = "
- host: productpage.bookinfo.svc
  port: 9080
  sni_port: 9080
  aliases: [productpage.bookinfo]
  endpoints: [{ address: 10.0.0.1:9080, instance: productpage-0 }]
- host: productpage.bookinfo.svc
  port: 9443
  endpoints: [{ address: 10.0.0.1:9443, instance: admin-0 }]
- host: '*.apps.example'
  endpoints: []
- host: '*.deep.apps.example'
  endpoints: []
- host: exact.deep.apps.example
  endpoints: []
- host: two.example
  port: 1
- host: two.example
  port: 2
";

    #[test]
    fn route_matches_every_name_form_of_a_service() {
        let tables = tables(BOOKINFO);
        let cases = [
            ("productpage.bookinfo.svc", "productpage.bookinfo.svc:9080"),
            ("ProductPage.BookInfo.svc.", "productpage.bookinfo.svc:9080"),
            ("productpage.bookinfo", "productpage.bookinfo.svc:9080"),
            ("outbound_.9080_._.productpage.bookinfo.svc", "productpage.bookinfo.svc:9080"),
            ("outbound_.9443_._.productpage.bookinfo.svc", "productpage.bookinfo.svc:9443"),
            ("productpage-0.productpage.bookinfo.svc", "productpage.bookinfo.svc:9080/productpage-0"),
            ("productpage-0.productpage.bookinfo", "productpage.bookinfo.svc:9080/productpage-0"),
            ("outbound_.9443_._.admin-0.productpage.bookinfo.svc", "productpage.bookinfo.svc:9443/admin-0"),
            ("a.apps.example", "*.apps.example:443"),
            ("a.b.apps.example", "*.apps.example:443"),
            ("a.deep.apps.example", "*.deep.apps.example:443"),
            ("exact.deep.apps.example", "exact.deep.apps.example:443"),
            ("outbound_.443_._.a.apps.example", "*.apps.example:443"),
            ("outbound_.2_._.two.example", "two.example:2"),
        ];
        for (sni, service) in cases {
            assert_eq!(plain(&tables, sni).as_deref(), Ok(service), "{sni}");
        }
        for sni in [
            "apps.example",
            "two.example",
            "admin-0.productpage.bookinfo.svc",
            "productpage-1.productpage.bookinfo.svc",
            "outbound_.1_._.productpage.bookinfo.svc",
            "outbound_.9080_.v1_.productpage.bookinfo.svc",
            "outbound_.x_._.productpage.bookinfo.svc",
            "outbound_.09080_._.productpage.bookinfo.svc",
            "outbound_.9080_._.",
            "svc",
            "xds_cluster",
        ] {
            assert_eq!(plain(&tables, sni), Err(Reason::SniUnmatched), "{sni}");
        }
    }

    const BESIDE_WILDCARDS: &str = "
- host: db.example
  port: 1
  endpoints: [{ address: 10.0.0.1:1, instance: db-0 }]
- host: db.example
  port: 2
- host: one.deep.example
  port: 3
- host: '*.deep.example'
  port: 4
  sni_port: 4
- host: '*.example'
";

    #[test]
    fn route_of_existing_name_never_falls_through_to_wildcard_or_default() {
        let listeners = "listeners: [{ address: '127.0.0.1:0', default: '*.example' }]";
        let text = format!("{listeners}\nservices:\n{BESIDE_WILDCARDS}");
        let settings = crate::config::parse(&text, Path::new("test.yaml")).unwrap();
        let tables = Snapshot::compile(settings.live, &Resolved::new(), None, &|_| false);
        for sni in [
            "db.example",
            "DB.example.",
            "outbound_.3_._.db.example",
            "outbound_.01_._.db.example",
            "outbound_.x_._.db.example",
            "outbound_.1_.v1_.db.example",
            "outbound_.01_._.db-0.db.example",
            "db-0.db.example",
            "outbound_.2_._.db-0.db.example",
            "outbound_.4_._.one.deep.example",
            "outbound_.443_._.a.deep.example",
        ] {
            assert_eq!(plain(&tables, sni), Err(Reason::SniUnmatched), "{sni}");
        }
        for (sni, service) in [
            ("outbound_.2_._.db.example", "db.example:2"),
            ("outbound_.1_._.db-0.db.example", "db.example:1/db-0"),
            ("www.db.example", "*.example:443"),
            ("outbound_.443_._.www.example", "*.example:443"),
            ("one.deep.example", "one.deep.example:3"),
            ("two.deep.example", "*.deep.example:4"),
            ("elsewhere.test", "*.example:443"),
        ] {
            assert_eq!(plain(&tables, sni).as_deref(), Ok(service), "{sni}");
        }
    }

    /// An unexported name beside an exported wildcard, for clients from other clusters; local clients reach both.
    #[test]
    fn route_of_unexported_name_never_falls_through_to_exported_wildcard() {
        let text = "listeners: [{ address: '127.0.0.1:0' }, { name: out, address: '127.0.0.1:0', side: outbound }]\n\
                    services: [{ host: secret.example }, { host: '*.example' }, { host: '*.inner.example' }]\n";
        let mut live = crate::config::parse(text, Path::new("test.yaml")).unwrap().live;
        for service in &mut live.services {
            let is_exported = service.host.to_string() == "*.example";
            let service = Arc::make_mut(service);
            service.exposed = is_exported;
        }
        let tables = Snapshot::compile(live, &Resolved::new(), None, &|_| false);
        let ask = |sni: &str, listener| {
            let name = HostName::parse(sni).unwrap();
            let query = Query {
                listener,
                sni: Some(&name),
                alpn: Some(&Alpn::default()),
                source: [192, 0, 2, 1].into(),
            };
            route(&tables, query).map(|route| route.service.name().to_string())
        };
        for sni in ["secret.example", "outbound_.443_._.secret.example", "a.inner.example"] {
            assert_eq!(ask(sni, 0), Err(Reason::SniUnmatched), "{sni}");
        }
        assert_eq!(ask("www.example", 0).as_deref(), Ok("*.example:443"));
        assert_eq!(ask("secret.example", 1).as_deref(), Ok("secret.example:443"));
        assert_eq!(ask("a.inner.example", 1).as_deref(), Ok("*.inner.example:443"));
    }

    #[test]
    fn route_conditions_select_or_refuse_without_falling_through() {
        let text = "listeners: [{ address: '127.0.0.1:0', default: web.example }]\nservices:\n\
             - { host: web.example, sources: [10.0.0.0/8] }\n\
             - { host: acme.example, aliases: [web.example], alpn: [acme-tls/1] }\n\
             - { host: inner.example, aliases: [web.example], sources: [192.168.0.0/16] }\n";
        let settings = crate::config::parse(text, Path::new("test.yaml")).unwrap();
        let tables = Snapshot::compile(settings.live, &Resolved::new(), None, &|_| false);
        assert_eq!(ask(&tables, "web.example", &[], "10.2.0.1").as_deref(), Ok("web.example:443"));
        assert_eq!(ask(&tables, "web.example", &[], "192.168.0.1").as_deref(), Ok("inner.example:443"));
        assert_eq!(
            ask(&tables, "web.example", &["acme-tls/1"], "192.0.2.1").as_deref(),
            Ok("acme.example:443")
        );
        assert_eq!(ask(&tables, "acme.example", &["h2"], "192.0.2.1"), Err(Reason::AlpnUnmatched));
        assert_eq!(ask(&tables, "inner.example", &[], "192.0.2.1"), Err(Reason::SourceDenied));
        assert_eq!(ask(&tables, "other.example", &[], "10.2.0.1").as_deref(), Ok("web.example:443"));
        assert_eq!(ask(&tables, "other.example", &[], "192.0.2.1"), Err(Reason::SourceDenied));
        assert_eq!(ask(&tables, "", &[], "10.2.0.1").as_deref(), Ok("web.example:443"));
    }

    #[test]
    fn route_without_sni_and_default_is_refused() {
        assert_eq!(plain(&tables(BOOKINFO), ""), Err(Reason::NoSni));
    }
}
