//! Slices survive a round trip; an invalid message is refused by field; other bytes are refused.

mod policies;

use proptest::collection::vec;
use proptest::option;
use std::net::SocketAddr;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::labels::Labels;
use crate::locality::Locality;
use crate::services::{Balance, HealthCheck, Probe, ServiceTimeouts};
use crate::slice::Tls;

fn host() -> impl Strategy<Value = HostPattern> {
    "(\\*\\.)?[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\\.[a-z]{1,6}){1,3}"
        .prop_map(|text| HostPattern::parse(&text).unwrap())
}

fn address() -> impl Strategy<Value = Target> {
    let ip = (any::<std::net::IpAddr>(), 1..=u16::MAX)
        .prop_map(|(ip, port)| Target::Address(SocketAddr::new(ip.to_canonical(), port)));
    let name = ("[a-z]{1,8}\\.[a-z]{1,8}", 1..=u16::MAX)
        .prop_map(|(name, port)| Target::Name { host: HostName::parse(name).unwrap(), port });
    prop_oneof![ip, name]
}

fn place() -> impl Strategy<Value = Locality> {
    ("[a-z]{0,5}", "[a-z]{0,5}", "[a-z]{0,5}").prop_map(|(region, zone, sub_zone)| Locality {
        region,
        zone,
        sub_zone,
    })
}

fn mode() -> impl Strategy<Value = Tls> {
    prop_oneof![Just(Tls::Mutual), Just(Tls::Unauthenticated), Just(Tls::Terminated)]
}

fn labels() -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map("([a-z]{1,4}/)?[a-z]{1,3}", "[a-zA-Z0-9]{0,3}", 0..3).prop_map(|pairs| {
        Labels::new(pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()))).unwrap()
    })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let health = prop_oneof![Just(Health::Ready), Just(Health::NotReady), Just(Health::Draining)];
    let identity = option::of(Just(SpiffeId::parse("spiffe://east.example/ns/a/sa/b").unwrap()));
    let settings = (any::<bool>(), option::of(mode()), identity, labels());
    (address(), place(), any::<u16>(), health, settings).prop_map(
        |(address, locality, weight, health, (instance_exported, tls, identity, labels))| Endpoint {
            address,
            locality,
            weight,
            health,
            instance: None,
            instance_exported,
            tls,
            identity,
            exposed: instance_exported,
            aliases: Vec::new(),
            labels,
        },
    )
}

fn health() -> impl Strategy<Value = HealthCheck> {
    let port = || option::of(1..=u16::MAX);
    let http = (port(), "/[a-z?=&%.]{0,9}").prop_map(|(port, path)| Probe::Http { port, path: path.into() });
    let tcp = port().prop_map(|port| Probe::Tcp { port });
    let probe = prop_oneof![Just(Probe::Off), Just(Probe::Tls), http, tcp];
    let millis = || any::<u64>().prop_map(Duration::from_millis);
    let windows = (option::of(millis()), option::of(millis()));
    (probe, millis(), millis(), any::<(u8, u8)>(), windows).prop_map(
        |(probe, interval, timeout, (down_after, up_after), (slow_start, close_on_unhealthy))| {
            HealthCheck {
                probe: Some(probe),
                interval,
                timeout,
                down_after,
                up_after,
                slow_start,
                close_on_unhealthy,
            }
            .within_bounds()
        },
    )
}

fn port(number: u16) -> impl Strategy<Value = Port> {
    let balance = prop_oneof![
        Just(Balance::RoundRobin),
        Just(Balance::LeastConnections),
        Just(Balance::Random),
        Just(Balance::SourceHash)
    ];
    let sources = vec(Just("10.0.0.0/8".parse().unwrap()), 0..2);
    let most = option::of(1..u32::MAX);
    let ready = (place(), any::<u32>()).prop_map(|(locality, ready)| Ready {
        locality,
        ready,
        instances: vec![Instance {
            name: HostName::parse("db-0").unwrap(),
            aliases: vec![HostName::parse("src-db-0.pxc").unwrap()],
        }],
    });
    let lists = (vec("[a-z0-9]{1,5}", 0..3), sources, vec(endpoint(), 0..4), vec(ready, 0..2));
    let traffic = option::of(crate::traffic::tests::policies().prop_map(Arc::new));
    // Boxed: the strategies of a whole slice do not fit the stack of a test.
    let policies = (traffic, option::of(health().prop_map(Box::new))).boxed();
    (mode(), balance, most, any::<bool>(), lists.boxed(), policies).prop_map(
        move |(
            tls,
            balance,
            max_connections,
            send_proxy,
            (alpn, sources, mut endpoints, ready),
            (traffic, health),
        )| {
            endpoints.dedup_by(|a, b| a.address == b.address);
            endpoints.truncate(1 + usize::from(number % 2));
            for (place, endpoint) in endpoints.iter_mut().enumerate() {
                endpoint.instance = Some(HostName::parse(format!("i-{place}")).unwrap());
            }
            Port {
                number,
                default_port: number == 1,
                tls,
                alpn,
                sources,
                balance,
                max_connections,
                send_proxy,
                endpoints,
                ready,
                timeouts: ServiceTimeouts::default(),
                health,
                exported: send_proxy,
                access: Access::unwritten(tls),
                identities: Vec::new(),
                traffic,
            }
        },
    )
}

fn offer() -> impl Strategy<Value = Offer> {
    let staleness = prop_oneof![
        Just(Staleness::Keep),
        Just(Staleness::Probe),
        any::<u32>().prop_map(|seconds| Staleness::ExpireAfter(Duration::from_secs(seconds.into())))
    ];
    let gateway = (address(), place()).prop_map(|(address, locality)| Gateway { address, locality });
    let ports = (port(1), port(2)).prop_map(|(one, two)| vec![one, two]);
    ("[a-z-]{0,9}", vec(host(), 0..3), ports, vec(gateway, 0..3), staleness, any::<bool>()).prop_map(
        |(network, aliases, ports, gateways, staleness, merge)| Offer {
            network,
            aliases,
            ports,
            gateways,
            staleness,
            merge,
            exposed_on: vec!["gw-1".to_owned()],
            gateway_ranges: Ranges(vec!["203.0.113.0/24".parse().unwrap(), "2001:db8::/32".parse().unwrap()]),
        },
    )
}

fn slice() -> impl Strategy<Value = Slice> {
    let order =
        (1..u64::MAX, 1..u64::MAX).prop_map(|(incarnation, revision)| Order { incarnation, revision });
    (host(), order, option::of(offer())).prop_map(|(host, order, offer)| Slice {
        key: Key { cluster: "east".parse().unwrap(), host },
        order,
        offer,
    })
}

proptest! {
    #[test]
    fn slice_survives_a_round_trip(slice in slice()) {
        let bytes = slice.encode();
        prop_assert_eq!(&Slice::decode(&bytes).unwrap(), &slice);
        prop_assert_eq!(version(&bytes), version(&slice.encode()));
    }

    #[test]
    fn slice_decoder_is_total(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Slice::decode(&bytes);
    }

    #[test]
    fn slice_with_a_changed_byte_does_not_panic(slice in slice(), at in any::<prop::sample::Index>(), byte: u8) {
        let mut bytes = slice.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(read) = Slice::decode(&bytes) {
            prop_assert_eq!(Slice::decode(&read.encode()).unwrap(), read);
        }
    }
}

fn message() -> pb::ServiceSlice {
    pb::ServiceSlice {
        cluster: "east".to_owned(),
        host: "db.pxc".to_owned(),
        incarnation: 1,
        revision: 1,
        ports: vec![pb::Port {
            number: 3306,
            bare: true,
            tls: pb::Tls::Mutual.into(),
            balance: pb::Balance::RoundRobin.into(),
            endpoints: vec![pb::Endpoint {
                address: "10.0.0.1:3306".to_owned(),
                health: pb::Health::Ready.into(),
                weight: 1,
                ..pb::Endpoint::default()
            }],
            timeouts: Some(timeouts_message(&ServiceTimeouts::default())),
            ..pb::Port::default()
        }],
        staleness: Some(Staleness::Keep.to_message()),
        ..pb::ServiceSlice::default()
    }
}

type Change = fn(&mut pb::ServiceSlice);

#[track_caller]
fn assert_refused((expected, change): (&str, Change)) {
    let mut message = message();
    change(&mut message);
    let error = Slice::decode(&message.encode_to_vec()).unwrap_err().to_string();
    assert!(error.starts_with(expected) || error.contains(expected), "{expected}: {error}");
}

#[test]
fn slice_error_names_its_field() {
    let cases: [(&str, Change); 30] = [
        ("requires \"quotas\"", |m| m.requires = vec!["quotas".to_owned()]),
        ("cluster: ", |m| m.cluster = "a/b".to_owned()),
        ("host: ", |m| m.host = "a..b".to_owned()),
        ("revision: ", |m| m.revision = 0),
        ("revision: ", |m| m.incarnation = 0),
        ("network: ", |m| m.network = "a\nb".to_owned()),
        ("aliases: ", |m| m.aliases = vec!["*".to_owned()]),
        ("aliases: ", |m| m.aliases = vec!["a.b".to_owned(); 2000]),
        ("ports: must have at least one", |m| m.ports.clear()),
        ("ports: has duplicates", |m| {
            let mut again = m.ports[0].clone();
            again.bare = false;
            m.ports.push(again);
        }),
        ("ports: must have at most one default port", |m| {
            let again = pb::Port { number: 1, ..m.ports[0].clone() };
            m.ports.push(again);
        }),
        ("ports[0].port: ", |m| m.ports[0].number = 65_536),
        ("ports[0].tls: must be set", |m| m.ports[0].tls = 0),
        ("ports[0].tls: has an unknown value", |m| m.ports[0].tls = 9),
        ("ports[0].balance: ", |m| m.ports[0].balance = 0),
        ("ports[0].alpn: ", |m| m.ports[0].alpn = vec![String::new()]),
        ("ports[0].sources: ", |m| m.ports[0].sources = vec!["10.0.0.0/99".to_owned()]),
        ("ports[0].endpoints[0].address: ", |m| m.ports[0].endpoints[0].address = "10.0.0.256:1".to_owned()),
        ("ports[0].endpoints[0].weight: ", |m| m.ports[0].endpoints[0].weight = 65_536),
        ("ports[0].endpoints[0].health: ", |m| m.ports[0].endpoints[0].health = 7),
        ("ports[0].endpoints[0].instance: ", |m| m.ports[0].endpoints[0].instance = "a.b".to_owned()),
        ("ports[0].endpoints[0].identity: ", |m| {
            m.ports[0].endpoints[0].identity = "spiffe://x/*".to_owned()
        }),
        ("ports[0].endpoints: has duplicates", |m| {
            let again = m.ports[0].endpoints[0].clone();
            m.ports[0].endpoints.push(again);
        }),
        ("ports[0].identities[0].identity: ", |m| m.ports[0].identities = vec!["spiffe://x/*".to_owned()]),
        ("ports[0].endpoints[0].labels: has 33 items; the limit is 32", |m| {
            m.ports[0].endpoints[0].labels = vec![pb::Label::default(); 33];
        }),
        ("ports[0].endpoints[0].labels: '' is not a label key", |m| {
            m.ports[0].endpoints[0].labels = vec![pb::Label::default()];
        }),
        ("ports[0].endpoints[0].labels: 'a' is listed twice", |m| {
            m.ports[0].endpoints[0].labels = vec![pb::Label { key: "a".to_owned(), value: String::new() }; 2];
        }),
        ("staleness: ", |m| m.staleness = None),
        ("ports[0].timeouts: ", |m| m.ports[0].timeouts = None),
        ("ports[0].timeouts: ", |m| m.ports[0].timeouts.as_mut().unwrap().connect = 0),
    ];
    assert!(Slice::decode(&message().encode_to_vec()).is_ok());
    cases.into_iter().for_each(assert_refused);
    // A staleness rule of a later version must not become one of this version.
    let mut later = pb::ServiceSlice { staleness: None, ..message() }.encode_to_vec();
    later.extend([10 << 3 | 2, 2, 9 << 3, 1]);
    let error = Slice::decode(&later).unwrap_err().to_string();
    assert_eq!(error, "staleness: has an unknown value");
    assert_eq!(Slice::decode(&vec![0; MAX_MESSAGE + 1]), Err(WireError::TooLarge(MAX_MESSAGE + 1)));
}

/// No panic; a decoded slice survives a round trip.
#[test]
fn fuzz_slice() {
    let good = message().encode_to_vec();
    assert!(Slice::decode(&good).is_ok());
    let check = bolero::check!().with_test_time(Duration::from_secs(3)).with_type::<(Vec<u8>, u16, u8)>();
    check.for_each(|(bytes, from, cut)| {
        let from = usize::from(*from) % (good.len() + 1);
        let to = (from + usize::from(*cut)).min(good.len());
        for wire in [bytes.clone(), [&good[..from], bytes, &good[to..]].concat()] {
            if let Ok(slice) = Slice::decode(&wire) {
                let sent = slice.encode();
                assert_eq!(Slice::decode(&sent).as_ref(), Ok(&slice));
                assert_eq!(Slice::decode(&sent).map(|again| again.encode()), Ok(sent));
            }
        }
    });
}

fn sample() -> Slice {
    Slice::from_message(message()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn access_survives_a_round_trip(world in crate::access::tests::world()) {
        let access = world.enforceable().access().unwrap();
        prop_assert_eq!(Access::from_message(access.to_message()), Ok(access.clone()));
        let mut slice = sample();
        slice.offer.as_mut().unwrap().ports[0].access = access.clone();
        let read = Slice::decode(&slice.encode()).unwrap();
        prop_assert_eq!(&read, &slice);
        let message = pb::ServiceSlice::decode(slice.encode().as_slice()).unwrap();
        prop_assert_eq!(message.requires == ["access"], access.restricts());
        prop_assert_eq!(message.requires.is_empty(), !access.restricts());
    }
}

#[test]
fn access_that_contradicts_itself_refuses_its_slice() {
    let mut message = message();
    message.ports[0].tls = pb::Tls::Terminated.into();
    // Nothing said: nobody may connect.
    let silent = Slice::from_message(message.clone()).unwrap();
    assert_eq!(silent.offer.unwrap().ports[0].access, Access::closed());
    message.ports[0].access = Some(Access::open().to_message());
    let refused = Slice::from_message(message.clone()).unwrap_err().to_string();
    assert_eq!(refused, "ports[0].access.unmatched: must be denied where TLS is terminated");
    message.ports[0].access = Some(pb::Access::default());
    let refused = Slice::from_message(message.clone()).unwrap_err().to_string();
    assert_eq!(refused, "ports[0].access.unmatched: has an unknown value");
    let rule = pb::AccessRule { ports: vec![80], ..pb::AccessRule::default() };
    let denied = pb::Unmatched::Denied.into();
    message.ports[0].access = Some(pb::Access { unmatched: denied, deny: vec![rule], allow: Vec::new() });
    let refused = Slice::from_message(message).unwrap_err().to_string();
    assert_eq!(refused, "ports[0].access.deny[0].scope: has an unknown value");
}

#[test]
fn slice_identity_of_another_domain_is_refused() {
    let east = isthmus_certs::TrustDomain::new("east.example").unwrap();
    let mut slice = sample();
    let mut promise = |id: &str| {
        slice.offer.as_mut().unwrap().ports[0].identities = vec![SpiffeId::parse(id).unwrap()];
        let read = Slice::decode(&slice.encode()).unwrap();
        assert_eq!(read, slice);
        read.check_identities(std::slice::from_ref(&east)).map_err(|error| error.to_string())
    };
    assert_eq!(promise("spiffe://east.example/ns/a/sa/b"), Ok(()));
    let refused = promise("spiffe://west.example/ns/a/sa/b").unwrap_err();
    assert!(
        refused.contains("spiffe://west.example/ns/a/sa/b, which is of no trust domain of cluster east"),
        "{refused}"
    );
}
