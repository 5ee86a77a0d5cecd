//! Reads a file of the registry: `services:` alone, with the schema of a gateway's file. Watching and
//! ownership are elsewhere.

use std::path::Path;

use serde::Deserialize;

use super::at::At;
use super::problem::{Problems, Report};
use super::services::{Service, ServiceTimeouts, Table, raw};
use super::yaml;

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    services: Option<Vec<At<raw::Service>>>,
}

/// Parses a text as the registry file `path`; returns its services in order. An empty list is valid. A
/// registry has no general deadlines, so a service without its own gets the defaults, and any address is
/// accepted for an endpoint.
///
/// # Errors
/// All problems of the file.
pub fn registry_file(text: &str, path: &Path) -> Result<Vec<Service>, Problems> {
    let mut report = Report::new(path);
    let services = yaml::read::<File>(text, &mut report).map(|file| {
        let written = file.services.as_deref().unwrap_or_default();
        for (index, service) in written.iter().enumerate() {
            if let Some((key, spot, remedy)) = service.value.gateway_key() {
                let what = format_args!("services[{index}].{key}: an agent does not pass this on");
                report.add(spot, what, remedy);
            }
        }
        let table = Table::new(&mut report, written, &ServiceTimeouts::default(), |_| None);
        table.into_services().collect()
    });
    report.finish(services)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::address::Target;
    use crate::host::{HostName, HostPattern};
    use crate::labels::Labels;
    use crate::locality::Locality;
    use crate::services::{Balance, ClientCertificate, Endpoint, ExportMeta, Scope};
    use crate::slice::Staleness;

    fn read(text: &str) -> Result<Vec<Service>, Problems> {
        registry_file(text, Path::new("r.yaml"))
    }

    #[track_caller]
    fn good(text: &str) -> Vec<Service> {
        read(text).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// The problems must be exactly these lines.
    #[track_caller]
    fn bad(text: &str, lines: &[&str]) {
        let problems = read(text).expect_err("the text is wrong").to_string();
        assert_eq!(problems.lines().collect::<Vec<_>>(), lines);
    }

    fn host(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    #[test]
    fn registry_file_without_services_is_valid() {
        for text in ["", "# nothing yet\n", "services:\n", "services: []\n", "{}"] {
            assert_eq!(good(text), [], "{text:?}");
        }
    }

    #[test]
    fn registry_file_host_alone_gets_the_defaults() {
        let alone = Service {
            host: host("a.b"),
            port: 443,
            default_port: true,
            aliases: Vec::new(),
            alpn: Vec::new(),
            sources: Vec::new(),
            balance: Balance::RoundRobin,
            max_connections: None,
            send_proxy: false,
            traffic: None,
            timeouts: ServiceTimeouts {
                connect: Duration::from_secs(3),
                connect_total: Duration::from_secs(15),
                idle: Some(Duration::from_hours(1)),
                half_closed: Some(Duration::from_mins(1)),
                first_byte: None,
                max_duration: None,
            },
            health: None,
            endpoints: Vec::new(),
            exposed: true,
            about: None,
            tls: None,
        };
        assert_eq!(good("services:\n- host: A.b.\n"), [alone]);
    }

    /// Left out, they would open what they are to guard.
    #[test]
    fn registry_file_keys_of_a_gateway_alone_are_refused() {
        let remedy = "remove it and name the service's identity in 'identities': gateways get its certificate from the agent";
        let text = "services:\n- {host: a, tls: terminate, certificate: c, key: k}\n";
        let place = "2:42: services[0].certificate";
        bad(text, &[&format!("r.yaml:{place}: an agent does not pass this on; {remedy}")]);
    }

    #[test]
    fn registry_file_terminated_service_has_an_identity_and_no_certificate() {
        let id = "spiffe://east.example/ns/shop/sa/stock";
        let services =
            good(&format!("services: [{{host: a, tls: terminate, identities: ['{id}', '{id}2']}}]"));
        assert_eq!(services[0].issued_identity().map(ToString::to_string).as_deref(), Some(id));
        assert!(services[0].skips_mtls_check(), "the gateway is the door");
        assert_eq!(
            good(&format!("services: [{{host: a, identities: ['{id}']}}]"))[0].issued_identity(),
            None
        );
        bad(
            "services: [{host: a, tls: terminate}]",
            &[
                "r.yaml:1:12: services[0] has tls: terminate but no certificate; add 'identities: [spiffe://…]' for a \
               certificate of the agent, or 'certificate: FILE' and 'key: FILE'",
            ],
        );
    }

    const WHOLE: &str = "services:\n- host: db.example\n  port: 3306\n  sni_port: 3306\n  aliases: [db, \"*.db.example\"]\n  \
             alpn: [mysql]\n  sources: [10.0.0.0/8]\n  balance: least_connections\n  max_connections: 7\n  \
             proxy_protocol: v2\n  namespace: pxc\n  labels: {app: db}\n  allow_unauthenticated: true\n  merge: true\n  stale: 10m\n  registered: true\n  timeouts: {connect: 1s, connect_total: 2s, idle: off, half_closed: 3s, \
             first_byte: 4s, max_duration: 5m}\n  endpoints:\n  - address: \"[::ffff:10.1.0.7]:3306\"\n    \
             instance: DB-0\n    aliases: [src-db-0.pxc]\n    weight: 2\n    locality: {region: eu, zone: a, sub_zone: r1}\n  \
             - address: db-1.internal:3306\n- {host: db.example, port: 33060, balance: random}\n";

    /// Its endpoints.
    fn endpoints_of_database() -> Vec<Endpoint> {
        let locality = Locality { region: "eu".to_owned(), zone: "a".to_owned(), sub_zone: "r1".to_owned() };
        vec![
            Endpoint {
                address: Target::Address("10.1.0.7:3306".parse().unwrap()),
                instance: Some(HostName::parse("db-0").unwrap()),
                weight: 2,
                locality,
                aliases: [HostName::parse("src-db-0.pxc").unwrap()].into(),
                labels: Labels::default(),
                reach: Scope::Exported { by_name: true },
                access: None,
                priority: 0,
                part: 0,
                is_ready: true,
            },
            Endpoint {
                address: Target::Name { host: HostName::parse("db-1.internal").unwrap(), port: 3306 },
                instance: None,
                weight: 1,
                locality: Locality::default(),
                aliases: [].into(),
                labels: Labels::default(),
                reach: Scope::Exported { by_name: true },
                access: None,
                priority: 0,
                part: 0,
                is_ready: true,
            },
        ]
    }

    /// The first service in [`WHOLE`].
    fn database() -> Service {
        let seconds = Duration::from_secs;
        Service {
            host: host("db.example"),
            port: 3306,
            default_port: true,
            aliases: vec![host("db"), host("*.db.example")],
            alpn: vec!["mysql".to_owned()],
            sources: vec!["10.0.0.0/8".parse().unwrap()],
            balance: Balance::LeastConnections,
            max_connections: Some(7),
            send_proxy: true,
            traffic: None,
            timeouts: ServiceTimeouts {
                connect: seconds(1),
                connect_total: seconds(2),
                idle: None,
                half_closed: Some(seconds(3)),
                first_byte: Some(seconds(4)),
                max_duration: Some(seconds(300)),
            },
            health: None,
            endpoints: endpoints_of_database(),
            exposed: true,
            about: Some(Box::new(ExportMeta {
                namespace: Some("pxc".to_owned()),
                labels: [("app".to_owned(), "db".to_owned())].into(),
                client_certificate: ClientCertificate::None,
                merge: true,
                staleness: Staleness::ExpireAfter(seconds(600)),
                registered: true,
            })),
            tls: None,
        }
    }

    #[test]
    fn registry_file_reads_every_key_of_a_service() {
        let services = good(WHOLE);
        assert_eq!(services[0], database());
        let other = &services[1];
        assert_eq!((other.port, other.default_port, other.balance), (33060, false, Balance::Random));
    }

    #[test]
    fn registry_file_refuses_sections_of_a_gateway() {
        bad(
            "listeners: [{address: 0.0.0.0:15443}]\nservices: []\n",
            &["r.yaml:1:1: unknown key 'listeners'; expected one of services"],
        );
        bad("service: []\n", &["r.yaml:1:1: unknown key 'service'; did you mean 'services'?"]);
        bad(
            "services:\n- {host: a, adresses: []}\n",
            &[
                "r.yaml:2:13: unknown key 'adresses' in services[0]; expected one of host, port, sni_port, aliases, \
                 alpn, sources, balance, max_connections, proxy_protocol, timeouts, traffic, health, namespace, labels, client_certificate, \
                 allow_unauthenticated, merge, stale, registered, identities, tls, certificate, key, access, endpoints",
            ],
        );
        bad(
            "services:\n- host: a\n  endpoints:\n  - adress: 10.0.0.1:1\n",
            &["r.yaml:4:5: unknown key 'adress' in services[0].endpoints[0]; did you mean 'address'?"],
        );
    }

    #[test]
    fn registry_file_error_has_a_place() {
        bad(
            "services: {host: a}\n",
            &[
                "r.yaml:1:11: services: wrong kind of value; write a list: [a, b], or lines that begin with '- '",
            ],
        );
        bad(
            "services:\n- host: a\n  balance: fair\n",
            &["r.yaml:3:12: services[0].balance: unknown value 'fair'; expected one of round_robin, \
                 least_connections, random, source_hash"],
        );
        bad(
            "services:\n- host: a\n  stale: never\n- host: b\n  stale: 10ms\n",
            &[
                "r.yaml:3:10: services[0].stale: 'never' is not a valid rule; write keep, probe, or a duration of at least 1s, such as \
                 30s, 10m or 1h",
                "r.yaml:5:10: services[1].stale: '10ms' is not a valid rule; write keep, probe, or a duration of at least 1s, such as \
                 30s, 10m or 1h",
            ],
        );
        bad("services: []\nservices: []\n", &["r.yaml:2:1: duplicate key 'services'; remove one of them"]);
        bad(
            "services:\n- host: a\n    b: c\n",
            &["r.yaml:3:6: not valid YAML: mapping values are not allowed in this context"],
        );
    }

    #[test]
    fn registry_file_reports_every_wrong_value_with_its_place() {
        bad(
            "services:\n- port: 0\n- host: a..b\n  sni_port: 65536\n  alpn: [\"\"]\n  sources: [10.1.2.3/8]\n  \
             max_connections: 0\n  timeouts: {connect: 0s, idle: never}\n  endpoints:\n  - weight: 65536\n  \
             - {address: 10.0.0.1, instance: a.b}\n",
            &[
                "r.yaml:2:3: services[0] has no host; add 'host: …'",
                "r.yaml:2:9: services[0].port: '0' is out of range; write 1 to 65535",
                "r.yaml:3:9: services[1].host: 'a..b' is not a host name; write labels of letters, digits, '-' or '_' \
                 (63 bytes each, 253 in all) with dots between, with '*.' in front to match every name under it",
                "r.yaml:4:13: services[1].sni_port: '65536' is out of range; write 1 to 65535",
                "r.yaml:5:10: services[1].alpn[0]: '' is not a protocol name; write 1 to 255 bytes, such as h2",
                "r.yaml:6:13: services[1].sources[0]: '10.1.2.3/8' has bits set after its prefix; write the range's \
                 first address, or the single address without a prefix",
                "r.yaml:7:20: services[1].max_connections: '0' is out of range; write 1 to 10000000",
                "r.yaml:8:23: services[1].timeouts.connect: '0s' would let nothing succeed; write more than zero",
                "r.yaml:8:33: services[1].timeouts.idle: 'never' is not a duration; write a whole number and its unit, such as \
                 500ms, 5s, 3m or 1h, or off",
                "r.yaml:10:5: services[1].endpoints[0] has no address; add 'address: …'",
                "r.yaml:10:13: services[1].endpoints[0].weight: '65536' is out of range; write 0 to 65535",
                "r.yaml:11:15: services[1].endpoints[1].address: '10.0.0.1' has no port; write IP:PORT, [IPV6]:PORT \
                 or NAME:PORT",
                "r.yaml:11:35: services[1].endpoints[1].instance: 'a.b' is not one DNS label; write 1 to 63 letters, \
                 digits, '-' or '_', without dots",
            ],
        );
    }

    #[test]
    fn registry_file_has_policies_and_labels() {
        let services = good(
            "services: [{ host: a.b, traffic: { split: [{ labels: { version: v2 }, weight: 1 }] }, endpoints: [\
               { address: '10.0.0.1:1', labels: { version: v2, app: 'shop' } }, { address: '10.0.0.2:1', labels: {} }] }]",
        );
        let labels: Vec<_> = services[0].endpoints.iter().map(|one| one.labels.to_string()).collect();
        assert_eq!(labels, ["app=shop,version=v2", ""]);
        let traffic = services[0].traffic.as_ref().unwrap();
        assert_eq!(traffic.to_string(), "{ split: [{ labels: { version: \"v2\" }, weight: 1 }] }");
        bad(
            "services:\n- host: a.b\n  traffic: { panic: 0 }\n  endpoints:\n  - { address: 'a:1', labels: { x: 'a b' } }\n",
            &[
                "r.yaml:3:21: services[0].traffic.panic: '0' is out of range; write 1 to 100",
                "r.yaml:5:31: services[0].endpoints[0].labels: 'a b' is not a label value; write up to 63 letters, digits, \
                 '-', '_' or '.', with a letter or digit at both ends",
            ],
        );
    }

    #[test]
    fn registry_file_has_a_host_and_port_once() {
        bad(
            "services:\n- host: a.b\n- {host: A.b., port: 443}\n",
            &[
                "r.yaml:3:10: services[1]: a.b port 443 is already services[0] (line 2); merge their endpoints, or give \
               one another port",
            ],
        );
        assert_eq!(good("services: [{host: a.b}, {host: a.b, port: 80}, {host: b.a}]").len(), 3);
    }

    #[test]
    fn registry_file_refuses_conflicting_names_ports_and_endpoints() {
        bad(
            "services:\n- {host: a, aliases: [x]}\n- {host: b, aliases: [x]}\n",
            &[
                "r.yaml:3:23: services[1]: the name x is already used by services[0] (line 2); remove one of them, or \
                 let alpn or sources tell the services apart",
            ],
        );
        bad(
            "services:\n- {host: a, port: 1, sni_port: 3}\n- {host: a, port: 2}\n",
            &["r.yaml:2:32: services[0].sni_port: a has no port 3; write 1 or 2"],
        );
        bad(
            "services:\n- host: a\n  endpoints: [{address: b:1, instance: i}, {address: b:1, instance: I}]\n",
            &[
                "r.yaml:3:54: services[0].endpoints[1].address: is listed twice in this service; remove one of them; \
                 'weight: 2' gives one address two shares",
                "r.yaml:3:69: services[0].endpoints[1].instance: i is listed twice in this service; give each instance its own \
                 name",
            ],
        );
    }

    /// `count` services that share the value of one anchor.
    fn shared(count: usize, key: &str, anchored: &str) -> String {
        let rest: String = (1..count)
            .map(|index| format!("- {{ host: h{index}.example, port: 1, {key}: *shared }}\n"))
            .collect();
        format!("services:\n- {{ host: h0.example, port: 1, {key}: &shared {anchored} }}\n{rest}")
    }

    fn endpoints(count: usize) -> String {
        let one = |index: usize| format!("{{ address: '10.0.{}.{}:1' }}", index / 250, index % 250);
        format!("[{}]", (0..count).map(one).collect::<Vec<_>>().join(", "))
    }

    #[track_caller]
    fn refused(text: &str) {
        let problems = read(text).expect_err("it expands far beyond its size");
        let [problem] = problems.list() else { panic!("{problems}") };
        assert!(problem.line > 1 && problem.what.contains("its aliases expand to"), "{problem}");
        assert!(problem.remedy.contains("several files"), "{problem}");
    }

    #[test]
    fn registry_file_whose_aliases_expand_too_far_is_refused_with_place_and_remedy() {
        let bomb = shared(3_900, "endpoints", &endpoints(100));
        assert!(bomb.len() < 260_000);
        refused(&bomb);
        refused(&bomb.replace('\n', "\n# what is said beside it makes it no better\n"));
        // Nine lists of ten each, all of the list before: a billion values.
        let nested: String = (1..9)
            .map(|level| format!(", &k{level} [{}]", vec![format!("*k{}", level - 1); 10].join(",")))
            .collect();
        let nested = format!("services:\n- ? [&k0 [0,1,2,3,4,5,6,7,8,9]{nested}]\n  : host\n");
        assert!(read(&nested).is_err());
        let long = "x".repeat(1 << 20);
        refused(&shared(1_000, "namespace", &long));
        let labels: Vec<_> = (0..100).map(|label| format!("l{label}: v")).collect();
        let labels = format!("{{ {} }}", labels.join(", "));
        refused(&shared(3_900, "labels", &labels));
        refused(&shared(3_900, "labels", &labels).replace("*shared", "{ <<: *shared }"));
    }

    #[test]
    fn registry_file_with_a_large_anchor_or_many_services_is_valid() {
        let services = good(&shared(1_000, "endpoints", &endpoints(20)));
        assert_eq!((services.len(), services[999].endpoints.len()), (1_000, 20));
        let timeouts = "{ connect: 1s, connect_total: 2s, idle: off, half_closed: 3s, first_byte: 4s, max_duration: 5m }";
        assert_eq!(good(&shared(1_000, "timeouts", timeouts)).len(), 1_000);
        assert_eq!(good(&shared(100_000, "timeouts", timeouts)).len(), 100_000);
    }

    #[test]
    fn registry_file_accepts_endpoints_on_its_own_machine() {
        let services = good("services: [{host: a, endpoints: [{address: 127.0.0.1:15000}]}]");
        assert_eq!(services[0].endpoints.len(), 1);
    }

    proptest! {
        #[test]
        fn registry_file_parser_is_total(rest in "[a-z0-9:.,*&~'\"|\\-\\[\\]{} \n]{0,60}") {
            for head in ["", "services: ", "services:\n- ", "services:\n- host: a\n  endpoints:\n  - "] {
                if let Err(problems) = read(&[head, &rest].concat()) {
                    prop_assert!(problems.list().iter().all(|problem| problem.line > 0 && problem.column > 0));
                }
            }
        }
    }
}
