//! Names of services as applications resolve them: `dig`, glibc, musl, and name servers in front of the agent's or behind
//! it. Requires root, for namespaces.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod in_front;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use isthmus_tests::cluster::Cluster;
use isthmus_tests::netns::Star;
use isthmus_tests::or_skip;
use isthmus_tests::resolver::{Dig, HOST, Machine};
use isthmus_tests::wait::until;

const PAGE: &str = "productpage.bookinfo.svc.cluster.local";
const RANGES: &str = "{ ipv6: 'fd00:1:2:3::/64', ipv4: 240.15.0.0/16 }";

/// The agent of a machine, with a few services, of which one exports its instances.
fn agent(machine: &Machine, dns: &str) -> Cluster {
    let mut east = Cluster::new("east").inside(machine.namespace());
    east.set("virtual_addresses", RANGES);
    east.set("dns", dns);
    east.set("exports", "[{ hosts: ['*.pxc.svc.cluster.local'], instances: ['*'] }]");
    let many: String = (1..=60)
        .map(|port| format!("- {{ host: many.mesh.example, port: {port}, endpoints: [] }}\n"))
        .collect();
    east.register("services.yaml", &format!(
        "services:\n\
         - {{ host: {PAGE}, port: 9080, aliases: [page.mesh.example], endpoints: [{{ address: '10.9.0.1:9080' }}] }}\n\
         - {{ host: src-db.pxc.svc.cluster.local, port: 3306, client_certificate: declared, endpoints: [\
           {{ address: '10.9.0.2:3306', instance: src-db-0, aliases: [src-db-0.pxc.svc.cluster.local] }}] }}\n{many}"
    ));
    east.start();
    until("the last service resolves", || {
        machine.dig(&format!("{} +short many.mesh.example", at(&east))).0.contains("240.15.")
    });
    east
}

/// The server's address as `dig` takes it.
fn at(cluster: &Cluster) -> String {
    let address = cluster.address("dns");
    format!("@{} -p {}", address.ip(), address.port())
}

fn questions(cluster: &Cluster, answer: &str) -> u64 {
    cluster.ask("/status")["names"]["dns"]["questions"][answer].as_u64().unwrap()
}

#[test]
fn dns_ipv4_only_service_has_no_other_records_and_its_address_leads_back() {
    let machine = or_skip!(Machine::new());
    let _upstream = or_skip!(machine.dnsmasq(5300, &["--address=/#/192.0.2.9"]));
    let mut east = agent(&machine, "{ upstreams: ['127.0.0.1:5300'] }");
    east.set("virtual_addresses", "{ ipv4: 240.15.0.0/16 }");
    east.stop();
    east.start();
    let ask = |words: &str| machine.dig(&format!("{} {words}", at(&east)));
    for kind in ["AAAA", "TXT", "TYPE65", "MX"] {
        let empty = ask(&format!("{PAGE} {kind}"));
        assert_eq!((empty.status(), empty.answers().len()), (Some("NOERROR"), 0), "{kind}");
        assert_eq!(empty.records("AUTHORITY").len(), 1, "{kind} has an SOA: {empty:?}");
    }
    let [address] = &ask(&format!("{PAGE} A")).answers()[..] else { panic!("one address") };
    assert_eq!(ask(&format!("-x {address}")).answers(), [format!("{PAGE}.")]);
    assert_eq!(ask(&format!("_9080._tcp.{PAGE} SRV")).answers(), [format!("0 0 9080 {PAGE}.")]);
    assert_eq!((questions(&east, "forwarded"), questions(&east, "failed")), (0, 0));
    assert_eq!(ask("www.example").answers(), ["192.0.2.9"], "the other server is there");
}

#[test]
fn dns_answers_with_sixty_records_fit_what_the_client_takes() {
    let machine = or_skip!(Machine::new());
    let hosts: String = (1..=60).map(|last| format!("192.0.2.{last} many.example\n")).collect();
    fs::write(machine.path("hosts"), hosts).unwrap();
    let hosts = format!("--addn-hosts={}", machine.path("hosts").display());
    let _upstream = or_skip!(machine.dnsmasq(5300, &[&hosts]));
    let east = agent(&machine, "{ upstreams: ['127.0.0.1:5300'] }");
    for name in ["many.mesh.example SRV", "many.example A"] {
        let ask = |words: &str| machine.dig(&format!("{} {name} +ignore {words}", at(&east)));
        let plain = ask("+noedns");
        assert!(plain.size() <= 512 && plain.has_flag("tc") && !plain.has_edns(), "{plain:?}");
        let large = ask("+bufsize=1232");
        assert!(large.size() <= 1_232 && large.has_edns(), "{large:?}");
        let whole = ask("+tcp +noedns");
        assert_eq!((whole.answers().len(), whole.has_flag("tc"), whole.has_edns()), (60, false, false));
        let retried = machine.dig(&format!("{} {name}", at(&east)));
        assert_eq!(retried.answers().len(), 60, "dig goes on to TCP by itself");
    }
}

#[test]
fn dns_name_resolves_in_any_letters_and_in_each_of_its_forms() {
    let machine = or_skip!(Machine::new());
    let log = machine.path("queries.log");
    let facility = format!("--log-facility={}", log.display());
    let _upstream = or_skip!(machine.dnsmasq(5300, &["--log-queries", &facility, "--address=/unknown/"]));
    let east = agent(&machine, "{ upstreams: ['127.0.0.1:5300'], zones: [mesh.example] }");
    let ask = |words: &str| machine.dig(&format!("{} {words}", at(&east)));
    let both = |name: &str| [ask(&format!("{name} A")).answers(), ask(&format!("{name} AAAA")).answers()];
    let expected = both(PAGE);
    assert!(expected.iter().all(|answers| answers.len() == 1), "{expected:?}");
    for name in
        ["Page.MESH.example.", "productpage.BOOKINFO.", "productpage.bookinfo.svc.", "pRODUCTPAGE.bookinfo"]
    {
        assert_eq!(both(name), expected, "{name}");
        let absolute = format!("{}.", name.trim_end_matches('.'));
        assert!(ask(&format!("{name} A")).0.contains(&format!(";{absolute}\t")), "{name} is echoed");
    }
    let instance = both("src-db-0.src-db.pxc.svc.cluster.local");
    assert_ne!(instance, both("src-db.pxc"));
    for name in ["src-db-0.src-db.pxc", "src-db-0.pxc.svc.cluster.local", "src-db-0.pxc"] {
        assert_eq!(both(name), instance, "{name}");
    }
    assert_eq!(ask("nobody.mesh.example").status(), Some("NXDOMAIN"));
    assert_eq!(ask("unknown.").status(), Some("NXDOMAIN"));
    let asked = fs::read_to_string(&log).unwrap();
    let names: BTreeSet<_> =
        asked.lines().filter_map(|line| line.split_once("query[A] ")?.1.split(' ').next()).collect();
    assert_eq!(names, BTreeSet::from(["unknown"]), "nothing is appended, and nothing else is asked");
}

/// Resolves a name by musl.
fn musl(machine: &Machine) -> Result<String, String> {
    let (source, program) = (machine.path("resolve.c"), machine.path("resolve"));
    let text = r#"
        #include <arpa/inet.h>
        #include <netdb.h>
        #include <stdio.h>
        int main(int count, char **words) {
            struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *all = 0, *one;
            int error = getaddrinfo(words[count - 1], 0, &hints, &all);
            if (error) { printf("%s\n", gai_strerror(error)); return 1; }
            for (one = all; one; one = one->ai_next) {
                char text[INET6_ADDRSTRLEN];
                void *address = one->ai_family == AF_INET
                    ? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
                    : (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
                puts(inet_ntop(one->ai_family, address, text, sizeof text));
            }
        }"#;
    fs::write(&source, text).unwrap();
    let built = Command::new("musl-gcc").args(["-static", "-o"]).args([&program, &source]).status();
    match built {
        Ok(status) if status.success() => Ok(program.display().to_string()),
        Ok(status) => Err(format!("musl-gcc: {status}")),
        Err(error) => Err(format!("musl-gcc: {error}")),
    }
}

#[test]
fn dns_resolvers_of_glibc_and_musl_find_names_behind_their_search_domains() {
    let machine = or_skip!(Machine::new());
    let musl = or_skip!(musl(&machine));
    let options = ["--local=/example/", "--host-record=www.other,192.0.2.1,2001:db8::1"];
    let _upstream = or_skip!(machine.dnsmasq(5300, &options));
    let east = agent(&machine, "{ listen: 127.0.0.1:53, upstreams: ['127.0.0.1:5300'] }");
    machine.set_resolver("nameserver 127.0.0.1\nsearch search.example more.example\noptions ndots:5\n");
    let glibc = |name: &str| -> BTreeSet<String> {
        let found = machine.output(&["getent", "ahosts", name]);
        found.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    };
    let of_musl = |name: &str| -> BTreeSet<String> {
        machine.output(&[&musl, name]).lines().map(str::to_owned).collect()
    };
    let ask = |kind: &str| machine.dig(&format!("{} {PAGE} {kind}", at(&east))).answers().remove(0);
    let expected = BTreeSet::from([ask("A"), ask("AAAA")]);
    for name in [PAGE, "productpage.bookinfo", "page.mesh.example"] {
        assert_eq!(glibc(name), expected, "glibc, {name}");
        assert_eq!(of_musl(name), expected, "musl, {name}");
    }
    let expected = BTreeSet::from(["192.0.2.1", "2001:db8::1"].map(str::to_owned));
    for name in ["www.other", "www.other."] {
        assert_eq!(glibc(name), expected, "glibc, {name}");
        assert_eq!(of_musl(name), expected, "musl, {name}");
    }
    assert!(glibc("nobody.example").is_empty());
}

/// What `capture` sends to the server comes from where the application would have asked from.
#[test]
fn dns_answers_its_machine_by_each_address_and_callers_by_default() {
    let star = or_skip!(Star::new(2));
    let [own, caller] = [1, 2].map(Star::address);
    let [second, other] = [Ipv4Addr::new(10, 78, 1, 2), Ipv4Addr::new(10, 78, 2, 2)];
    star.adopt(1, second).unwrap();
    star.adopt(2, other).unwrap();
    let mut east = Cluster::new("east").inside(star.leg(1));
    east.set("virtual_addresses", RANGES);
    east.set("dns", "{ listen: '0.0.0.0:15053', upstreams: off }");
    let identity = "spiffe://east.example/ns/shop/sa/web";
    east.set("callers", &format!("[{{ sources: [{caller}/32], identity: {identity} }}]"));
    east.register("a.yaml", "services: [{ host: a.mesh.example, endpoints: [] }]");
    east.start();
    let is_answered = |leg: usize, from: Ipv4Addr| {
        let mut dig = Command::new("ip");
        dig.args(["netns", "exec", star.leg(leg), "dig", "+tcp", "+tries=1", "+time=10"]);
        dig.args(["-b", &from.to_string(), &format!("@{own}"), "-p", "15053", "a.mesh.example"]);
        Dig(String::from_utf8(dig.output().unwrap().stdout).unwrap()).status() == Some("NOERROR")
    };
    until("own names resolve", || is_answered(1, Ipv4Addr::LOCALHOST));
    assert!(is_answered(1, own) && is_answered(1, second) && is_answered(2, caller));
    assert!(!is_answered(2, other), "a neighbour that is no caller");
}

#[test]
fn dns_upstream_that_leads_back_to_the_server_fails_and_costs_nothing() {
    let machine = or_skip!(Machine::new());
    for itself in ["127.0.0.1:5353".to_owned(), format!("{HOST}:5353")] {
        let dns = format!("{{ listen: '0.0.0.0:5353', clients: [127.0.0.0/8], upstreams: ['{itself}'] }}");
        let mut east = Cluster::new("east").inside(machine.namespace());
        east.set("virtual_addresses", RANGES);
        east.set("dns", &dns);
        east.register("a.yaml", "services: [{ host: a.mesh.example, endpoints: [] }]");
        east.start();
        let ask = |name: &str| machine.dig(&format!("@127.0.0.1 -p 5353 {name}"));
        until("own names resolve", || ask("a.mesh.example").answers().len() == 1);
        for number in 0..20 {
            assert_eq!(ask(&format!("n{number}.example")).status(), Some("SERVFAIL"), "{itself}");
        }
        assert_eq!((questions(&east, "failed"), questions(&east, "looped")), (20, 0), "none goes round");
        let upstream = &east.ask("/status")["names"]["dns"]["upstreams"][0];
        assert!(upstream["problem"].as_str().unwrap().starts_with("is this server itself"), "{upstream}");
        assert_eq!(ask("a.mesh.example").answers().len(), 1);
    }
}

#[test]
fn dns_recovers_with_its_upstream_and_a_new_service_resolves_at_once() {
    let machine = or_skip!(Machine::new());
    let www = ["--address=/www.example/192.0.2.1"];
    let upstream = or_skip!(machine.dnsmasq(5300, &www));
    // The first of them is dead for ever.
    let east = agent(&machine, "{ upstreams: ['127.0.0.1:5299', '127.0.0.1:5300'], zones: [mesh.example] }");
    let ask = |name: &str| machine.dig(&format!("{} {name}", at(&east)));
    assert_eq!(ask("www.example").answers(), ["192.0.2.1"]);
    drop(upstream);
    assert_eq!(ask("www.example").status(), Some("SERVFAIL"));
    let _upstream = or_skip!(machine.dnsmasq(5300, &www));
    assert_eq!(ask("www.example").answers(), ["192.0.2.1"]);
    assert_eq!(ask("new.mesh.example").status(), Some("NXDOMAIN"));
    east.register("new.yaml", "services: [{ host: new.mesh.example, endpoints: [] }]");
    until("the new service resolves", || ask("new.mesh.example").answers().len() == 1);
}

/// The addresses of all names, asked one after the other.
fn addresses(machine: &Machine, cluster: &Cluster, names: &[String]) -> BTreeMap<String, String> {
    let file = machine.path("names");
    fs::write(&file, names.iter().map(|name| format!("{name} A\n")).collect::<String>()).unwrap();
    let all = machine.dig(&format!("{} -f {} +noall +answer", at(cluster), file.display())).0;
    let records = all.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.trim_end_matches('.').to_owned(), words.next_back()?.to_owned()))
    });
    records.collect()
}

fn registered(names: impl Iterator<Item = String>) -> String {
    let one = |name: String| format!("- {{ host: {name}, endpoints: [] }}\n");
    format!("services:\n{}", names.map(one).collect::<String>())
}

#[test]
fn dns_addresses_of_a_thousand_services_stay_through_edits_and_restarts() {
    let machine = or_skip!(Machine::new());
    let mut east = Cluster::new("east").inside(machine.namespace());
    let state = east.path("state").display().to_string();
    east.set("state", &state);
    east.set("virtual_addresses", "{ ipv4: 240.15.0.0/16 }");
    east.set("dns", "{ upstreams: off }");
    let mut names: Vec<_> = (0..1_000).map(|number| format!("s{number}.mesh.example")).collect();
    east.register("all.yaml", &registered(names.iter().cloned()));
    east.start();
    let count = |cluster: &Cluster| cluster.ask("/status")["names"]["count"].as_u64().unwrap();
    until("all are there", || count(&east) == 1_000);
    let before = addresses(&machine, &east, &names);
    let distinct: BTreeSet<_> = before.values().collect();
    assert_eq!((before.len(), distinct.len()), (1_000, 1_000));

    let deleted = names.remove(500);
    names[7] = "renamed.mesh.example".to_owned();
    names.reverse();
    east.register("all.yaml", &registered(names.iter().cloned()));
    until("one less is there", || count(&east) == 999);
    let after = addresses(&machine, &east, &names);
    let freed = [&before[&deleted], &before["s7.mesh.example"]];
    for (name, address) in &after {
        match before.get(name) {
            Some(earlier) => assert_eq!(address, earlier, "{name}"),
            None => assert!(!freed.contains(&address), "{name} has a freed address"),
        }
    }
    let pointer = machine.dig(&format!("{} -x {}", at(&east), freed[0]));
    assert_eq!(pointer.status(), Some("NXDOMAIN"), "a freed address has no name");

    // Neither registry nor any other service is known: only the state can answer.
    east.stop();
    let registry = east.path("registry");
    fs::rename(&registry, registry.with_extension("away")).unwrap();
    east.start();
    assert_eq!(addresses(&machine, &east, &names), after);
    fs::rename(registry.with_extension("away"), &registry).unwrap();
    east.register("again.yaml", &registered([deleted.clone()].into_iter()));
    until("the deleted name is back", || {
        addresses(&machine, &east, std::slice::from_ref(&deleted)).get(&deleted) == Some(freed[0])
    });
    assert_eq!(addresses(&machine, &east, &names), after);
}

#[test]
fn dns_imports_resolve_and_those_without_consent_do_not_exist() {
    let machine = or_skip!(Machine::new());
    let (mut east, mut west) =
        (Cluster::new("east").inside(machine.namespace()), Cluster::new("west").inside(machine.namespace()));
    east.trust_cluster(&west);
    west.trust_cluster(&east);
    east.start();
    west.start();
    east.set("gateways", "[{ name: gw-1, address: 10.79.0.1 }]");
    east.set("exports", "[{ hosts: ['*.svc.cluster.local', www.example.com], instances: ['*'] }]");
    east.set("peers", &format!("[{}]", west.as_peer()));
    west.set("peers", &format!("[{}]", east.as_peer()));
    west.set(
        "imports",
        "[{ cluster: east, hosts: ['*.pxc.svc.cluster.local'], gatewayCIDRs: [10.79.0.0/24] }]",
    );
    west.set("virtual_addresses", RANGES);
    west.set("dns", "{ upstreams: off }");
    let service = |host: &str| {
        format!(
            "- {{ host: {host}, client_certificate: declared, endpoints: [{{ address: '10.9.0.1:1', instance: src-db-0 }}] }}\n"
        )
    };
    let hosts = ["src-db.pxc.svc.cluster.local", "secret.bank.svc.cluster.local", "www.example.com"];
    east.register("all.yaml", &format!("services:\n{}", hosts.map(service).concat()));
    for cluster in [&mut east, &mut west] {
        cluster.stop();
        cluster.start();
    }
    let ask = |name: &str| machine.dig(&format!("{} {name}", at(&west)));
    until("the import resolves", || ask("src-db.pxc").answers().len() == 1);
    assert_eq!(ask("src-db-0.src-db.pxc.svc.cluster.local").answers().len(), 1, "and its instance");
    until("the other does not exist", || ask("secret.bank.svc.cluster.local").status() == Some("NXDOMAIN"));
    assert_eq!(ask("www.example.com").status(), Some("REFUSED"), "a peer does not decide about any name");
    assert_eq!(ask("other.bank.svc.cluster.local").status(), Some("REFUSED"));
    east.forget("all.yaml");
    until("the import is gone", || ask("src-db.pxc").status() == Some("REFUSED"));
}
