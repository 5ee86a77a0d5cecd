//! Imports: consent, ownership, order and conflicts of the slices that peers offer.

mod silence;
mod whole;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use isthmus_certs::{SpiffeId, TrustDomain};
use proptest::prelude::*;

use super::*;
use isthmus_health::schedule::Answer;
use isthmus_model::address::Ranges;
use isthmus_model::locality::Locality;
use isthmus_model::slice::{Endpoint, Gateway, Health, Instance, Order, Port, Ready, Staleness, Tls};
use isthmus_model::traffic::Traffic;

fn cluster(name: &str) -> Cluster {
    name.parse().unwrap()
}

fn pattern(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

fn consent(name: &str) -> Consent {
    Consent {
        cluster: cluster(name),
        domain: TrustDomain::new(&format!("{name}.example")).unwrap(),
        network: Some(format!("{name}-net")),
        is_reachable: true,
        is_near: false,
        hosts: vec![pattern("*.shop"), pattern("db.pxc")],
        shared: BTreeSet::from(["bookinfo".to_owned()]),
        gateways: Ranges(vec!["203.0.113.0/24".parse().unwrap()]),
        gateway_hosts: Vec::new(),
        endpoints: Vec::new(),
        limits: SliceLimits::default(),
    }
}

fn slice(of: &str, host: &str) -> Slice {
    let gateway = Gateway { address: "203.0.113.7:15443".parse().unwrap(), locality: Locality::default() };
    let port = Port { exported: true, ..Port::new(443, Tls::Mutual) };
    let offer = Offer { gateways: vec![gateway], ..Offer::new(&format!("{of}-net"), vec![port]) };
    let key = Key { cluster: cluster(of), host: pattern(host) };
    Slice { key, order: Order { incarnation: 1, revision: 1 }, offer: Some(offer) }
}

fn with(mut slice: Slice, change: impl FnOnce(&mut Offer)) -> Slice {
    change(slice.offer.as_mut().unwrap());
    slice.order.revision += 1;
    slice
}

fn withdrawn(slice: &Slice) -> Slice {
    let order = Order { revision: slice.order.revision + 100, ..slice.order };
    Slice { offer: None, order, key: slice.key.clone() }
}

fn take(imports: &mut Imports, from: &str, slice: &Slice) -> Result<(), String> {
    imports.restore(&cluster(from), &slice.key.to_string(), &slice.encode()).map(|_| ())
}

/// The verdict on each import: empty if it is used, else the reason.
fn standing(imports: &Imports) -> BTreeMap<String, String> {
    let of = |peer: &Peer| {
        let hosts = peer.facts.keys().chain(peer.holdings.all_not_granted());
        hosts.cloned().collect::<Vec<_>>()
    };
    let hosts = imports.peers.iter().flat_map(of);
    let shown = hosts.flat_map(|host| imports.shown_of(&host));
    shown.map(|one| (format!("{}/{}", one.cluster, one.host), one.quarantined.unwrap_or_default())).collect()
}

#[track_caller]
/// Three failures of each of these targets.
fn fail(imports: &mut Imports, addresses: &[&str], now: Instant) {
    for _ in 0..3 {
        let failed = |address: &&str| (address.parse().unwrap(), Answer::Unreached("refused".to_owned()));
        imports.poll_probes(addresses.iter().map(failed).collect(), 0, now);
    }
}

fn held(imports: &Imports, key: &str, why: &str) {
    let all = standing(imports);
    let found = all.get(key).unwrap_or_else(|| panic!("{key} in {all:?}"));
    assert!(if why.is_empty() { found.is_empty() } else { found.contains(why) }, "{found:?}");
}

#[test]
fn cluster_offers_its_own_slices_and_permitted_gateways_only() {
    let mut imports = Imports::new(vec![consent("east"), consent("south")]);
    let good = slice("east", "a.shop");
    take(&mut imports, "east", &good).unwrap();
    let gateway = |address: &str| {
        let address = address.parse().unwrap();
        with(good.clone(), |offer| offer.gateways[0].address = address)
    };
    let older = Slice { order: Order { incarnation: 1, revision: 0 }, ..good.clone() };
    let promising =
        |id: &str| with(good.clone(), |offer| offer.ports[0].identities = vec![SpiffeId::parse(id).unwrap()]);
    for (from, slice, why) in [
        (
            "east",
            promising("spiffe://south.example/ns/shop/sa/a"),
            "which is of no trust domain of cluster east",
        ),
        ("south", good.clone(), "may publish only its own slices"),
        ("west", good.clone(), "unknown cluster"),
        ("east", gateway("198.51.100.1:15443"), "which `imports` does not allow for east"),
        ("east", gateway("127.0.0.1:15443"), "`imports` does not allow"),
        ("east", gateway("gw.east.example:15443"), "`imports` does not allow"),
        ("east", with(good.clone(), |offer| offer.network = "north-net".to_owned()), "is in network"),
        ("east", older, "revision"),
    ] {
        let error = take(&mut imports, from, &slice).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let other_name = imports.restore(&cluster("east"), "east/b.shop", &good.encode()).unwrap_err();
    assert!(other_name.contains("is the slice of east/a.shop"), "{other_name}");
    assert!(imports.restore(&cluster("east"), "east/x.shop", b"\xff\xff").is_err());
    held(&imports, "east/a.shop", "");
    let promised = promising("spiffe://east.example/ns/shop/sa/a");
    let newer = Slice { order: Order { incarnation: 1, revision: 2 }, ..promised };
    take(&mut imports, "east", &newer).unwrap();
}

#[test]
fn gateway_without_ranges_may_be_anywhere_but_here() {
    let mut open = Consent { gateways: Ranges::default(), ..consent("east") };
    let allows = |consent: &Consent, text: &str| consent.allows(&text.parse().unwrap());
    for here in
        ["127.0.0.1:1", "[::1]:1", "0.0.0.0:1", "169.254.1.1:1", "[fe80::1]:1", "224.0.0.1:1", "localhost:1"]
    {
        assert!(!allows(&open, here), "{here}");
    }
    assert!(allows(&open, "10.0.0.1:1") && allows(&open, "gw.example:1"));
    open.gateway_hosts = vec![pattern("*.east.example")];
    assert!(allows(&open, "gw.east.example:1") && !allows(&open, "gw.example:1"));
}

#[test]
fn import_needs_a_granted_name() {
    let mut imports = Imports::new(vec![consent("east")]);
    let details = "details.bookinfo.svc.cluster.local";
    for host in ["a.shop", details, "mail.bank", "x.other.svc.cluster.local", "*.shop", "*.pxc"] {
        take(&mut imports, "east", &slice("east", host)).unwrap();
    }
    held(&imports, "east/a.shop", "");
    held(&imports, &format!("east/{details}"), "");
    held(&imports, "east/*.shop", "");
    held(&imports, "east/mail.bank", "was not granted");
    held(&imports, "east/x.other.svc.cluster.local", "was not granted");
    held(&imports, "east/*.pxc", "was not granted");
    imports.forget(&cluster("east"), &pattern("*.pxc"));
    take(&mut imports, "east", &withdrawn(&slice("east", "mail.bank"))).unwrap();
    let names: Vec<_> = standing(&imports).into_keys().collect();
    assert!(!names.iter().any(|name| name.contains("pxc") || name.contains("bank")), "{names:?}");
    let unreachable = Consent { is_reachable: false, ..consent("east") };
    let mut imports = Imports::new(vec![unreachable]);
    take(&mut imports, "east", &slice("east", "a.shop")).unwrap();
    held(&imports, "east/a.shop", "may not reach");
}

#[test]
fn slice_names_are_granted_one_by_one() {
    let near = Consent { is_near: true, endpoints: vec!["10.0.0.0/8".parse().unwrap()], ..consent("east") };
    let mut imports = Imports::new(vec![near]);
    let name = |text: &str| HostName::parse(text).unwrap();
    let instance = Instance { name: name("db-0"), aliases: vec![name("src.shop"), name("login.bank")] };
    let endpoint = |address: &str| Endpoint::new(address.parse().unwrap());
    let slice = with(slice("east", "a.shop"), |offer| {
        offer.aliases = vec![pattern("b.shop"), pattern("login.bank")];
        offer.exposed_on = vec!["gw".to_owned()];
        let port = &mut offer.ports[0];
        port.ready = vec![Ready { locality: Locality::default(), ready: 1, instances: vec![instance] }];
        port.endpoints =
            vec![endpoint("10.1.2.3:443"), endpoint("127.0.0.1:443"), endpoint("db.internal:443")];
    });
    take(&mut imports, "east", &slice).unwrap();
    let [(_, Verdict::Imported(here))] = &imports.changes(usize::MAX)[..] else { panic!("it is imported") };
    let offer = here.offer.as_ref().unwrap();
    assert_eq!(offer.aliases, [pattern("b.shop")]);
    assert_eq!(offer.ports[0].ready[0].instances[0].aliases, [name("src.shop")]);
    let addresses: Vec<_> = offer.ports[0].endpoints.iter().map(|one| one.address.to_string()).collect();
    assert_eq!(addresses, ["10.1.2.3:443"]);
    assert!(!offer.ports[0].exported && !offer.ports[0].endpoints[0].exposed, "no transit");
    assert_eq!(imports.changes(usize::MAX), []);
}

#[test]
fn import_does_not_take_over_a_taken_name() {
    let mut imports = Imports::new(vec![consent("east"), consent("south")]);
    take(&mut imports, "south", &slice("south", "a.shop")).unwrap();
    held(&imports, "south/a.shop", "");
    take(&mut imports, "east", &slice("east", "a.shop")).unwrap();
    held(&imports, "east/a.shop", "");
    held(&imports, "south/a.shop", "has the name of a service of east");
    let own = slice("west", "a.shop");
    imports.own(&own);
    held(&imports, "east/a.shop", "has the name of a service of this cluster");
    imports.own(&withdrawn(&own));
    held(&imports, "east/a.shop", "");
    take(&mut imports, "east", &withdrawn(&slice("east", "a.shop"))).unwrap();
    held(&imports, "south/a.shop", "");
    let alias = with(slice("west", "b.shop"), |offer| offer.aliases = vec![pattern("a.shop")]);
    imports.own(&alias);
    held(&imports, "south/a.shop", "is called as b.shop of this cluster is");
}

#[test]
fn import_merges_services_where_all_clusters_agree() {
    let mut imports = Imports::new(vec![consent("east"), consent("south")]);
    let merging = |of: &str| with(slice(of, "a.shop"), |offer| offer.merge = true);
    imports.own(&merging("west"));
    take(&mut imports, "east", &merging("east")).unwrap();
    take(&mut imports, "south", &slice("south", "a.shop")).unwrap();
    held(&imports, "east/a.shop", "");
    held(&imports, "south/a.shop", "with `merge: true` on both sides");
    let plain = with(merging("south"), |offer| offer.ports[0].tls = Tls::Unauthenticated);
    take(&mut imports, "south", &with(plain, |_| {})).unwrap();
    held(&imports, "south/a.shop", "differs in TLS");
}

fn limited(slices: u64, bytes: u64) -> Imports {
    let limits = SliceLimits { slices, bytes };
    Imports::new(vec![Consent { limits, ..consent("east") }, consent("south")])
}

#[test]
fn peer_slices_beyond_the_limit_are_refused_and_make_room_once_gone() {
    let size = slice("east", "a.shop").encode().len() as u64;
    let mut imports = limited(2, 1 << 20);
    for host in ["a.shop", "b.shop"] {
        take(&mut imports, "east", &slice("east", host)).unwrap();
    }
    let error = take(&mut imports, "east", &slice("east", "c.shop")).unwrap_err();
    assert!(error.contains("exceeds the limit of 2 slices") && error.contains("limits:"), "{error}");
    take(&mut imports, "east", &with(slice("east", "a.shop"), |_| {})).unwrap();
    take(&mut imports, "south", &slice("south", "c.shop")).unwrap();
    let held_by = |imports: &Imports, of: &str| imports.usage(&cluster(of)).unwrap();
    assert_eq!((held_by(&imports, "east").slices.used, held_by(&imports, "east").slices.exceeded), (2, 1));
    take(&mut imports, "east", &withdrawn(&slice("east", "a.shop"))).unwrap();
    imports.forget(&cluster("east"), &pattern("b.shop"));
    assert_eq!((held_by(&imports, "east").slices.used, held_by(&imports, "east").bytes.used), (0, 0));
    take(&mut imports, "east", &slice("east", "c.shop")).unwrap();
    let mut imports = limited(100, size * 2);
    take(&mut imports, "east", &slice("east", "a.shop")).unwrap();
    let large = with(slice("east", "b.shop"), |offer| offer.aliases = vec![pattern("a-longer-name.shop")]);
    let error = take(&mut imports, "east", &large).unwrap_err();
    assert!(error.contains(&format!("exceeds the limit of {}", size * 2)), "{error}");
    let names = |count: usize| (0..count).map(|number| pattern(&format!("n{number}.shop"))).collect();
    let mut imports = limited(2, 1 << 20);
    let many = with(slice("east", "a.shop"), |offer| offer.aliases = names(10));
    let error = take(&mut imports, "east", &many).unwrap_err();
    assert!(error.contains("has 11 names"), "{error}");
}

#[test]
fn peer_slices_of_names_never_granted_take_a_bounded_list() {
    let mut imports = limited(10, 1 << 20);
    for number in 0..10_000 {
        let name = format!("east/s{number}.never");
        let stored = imports.restore(&cluster("east"), &name, &slice("east", &name[5..]).encode());
        assert_eq!(stored, Ok(Stored::Nothing), "and nothing is stored on disk");
    }
    let held = imports.usage(&cluster("east")).unwrap();
    assert_eq!((held.slices.used, held.not_granted, held.not_granted_unlisted), (0, 1_000, true));
    assert_eq!((standing(&imports).len(), imports.changes(usize::MAX).len()), (1_000, 1_000));
    take(&mut imports, "east", &slice("east", "a.shop")).unwrap();
}

#[test]
fn withdrawals_of_a_peer_are_remembered_up_to_its_limit() {
    let mut imports = limited(3, 1 << 20);
    let mut forgotten = Vec::new();
    for number in 0..10 {
        let slice = slice("east", &format!("s{number}.shop"));
        take(&mut imports, "east", &slice).unwrap();
        let gone = withdrawn(&slice);
        let stored = imports.restore(&cluster("east"), &gone.key.to_string(), &gone.encode()).unwrap();
        let Stored::Slice { forgets } = stored else { panic!("{stored:?}") };
        forgotten.extend(forgets.map(|key| key.host.to_string()));
    }
    assert_eq!(forgotten, ["s0.shop", "s1.shop", "s2.shop", "s3.shop", "s4.shop", "s5.shop", "s6.shop"]);
    let error = take(&mut imports, "east", &slice("east", "s9.shop")).unwrap_err();
    assert!(error.contains("an old slice never replaces a newer one"), "{error}");
}

#[test]
fn alias_that_slices_share_costs_each_slice_alone() {
    let mut imports = Imports::new(vec![consent("east"), consent("south")]);
    let sharing = |of: &str, number: usize| {
        with(slice(of, &format!("{of}{number}.shop")), |offer| offer.aliases = vec![pattern("all.shop")])
    };
    for number in 0..64 {
        take(&mut imports, "south", &sharing("south", number)).unwrap();
        assert_eq!(imports.changes(usize::MAX).len(), 1, "itself only");
    }
    let error = take(&mut imports, "south", &sharing("south", 64)).unwrap_err();
    assert!(error.contains("has a name that 64 other slices"), "{error}");
    take(&mut imports, "east", &sharing("east", 0)).unwrap();
    assert_eq!(imports.changes(usize::MAX).len(), 65, "and those ranked after it");
    take(&mut imports, "south", &with(sharing("south", 7), |_| {})).unwrap();
    imports.changes(usize::MAX);
    take(&mut imports, "south", &withdrawn(&sharing("south", 7))).unwrap();
    assert_eq!(imports.changes(usize::MAX).len(), 1);
}

#[test]
fn slice_of_countless_empty_parts_is_refused_before_it_is_decoded() {
    let mut imports = Imports::new(vec![consent("east")]);
    for part in [8_u8, 9, 7] {
        let bytes = [part << 3 | 2, 0].repeat(200_000);
        let error = imports.restore(&cluster("east"), "east/a.shop", &bytes).unwrap_err();
        assert!(error.contains("so many parts"), "{error}");
    }
    let error = imports.restore(&cluster("east"), "east/a.shop", &vec![0; 600_000]).unwrap_err();
    assert!(error.contains("has 600000 bytes; at most 524288"), "{error}");
}

/// How this cluster's callers choose endpoints is said by this cluster alone.
#[test]
fn policy_of_traffic_that_a_peer_sends_is_dropped() {
    let mut imports = Imports::new(vec![consent("east")]);
    let slice = with(slice("east", "db.pxc"), |offer| {
        offer.ports.iter_mut().for_each(|port| port.traffic = Some(Traffic::unwritten()));
    });
    imports.restore(&slice.key.cluster, &slice.key.to_string(), &slice.encode()).unwrap();
    let changes = imports.changes(usize::MAX);
    let [(_, Verdict::Imported(accepted))] = &changes[..] else { panic!("{changes:?}") };
    assert!(accepted.offer.as_ref().unwrap().ports.iter().all(|port| port.traffic.is_none()));
    assert!(imports.changes(usize::MAX).is_empty());
    assert_eq!(imports.judge_hosts_again(|host| host.to_string() == "other"), 0);
    assert_eq!(imports.judge_hosts_again(|host| host.to_string() == "db.pxc"), 1);
    assert_eq!(imports.changes(usize::MAX), changes);
}

/// The addresses of a gateway's name are unknown here: the resolver gets the allowed ranges, and not from its
/// owner.
#[test]
fn gateway_name_is_passed_on_with_the_ranges_that_it_may_lead_to() {
    let named: Target = "gw.east.example:15443".parse().unwrap();
    let ips: [IpAddr; 3] = ["203.0.113.7", "127.0.0.1", "198.51.100.1"].map(|ip| ip.parse().unwrap());
    for (consent, allowed) in [
        (Consent { gateway_hosts: vec![pattern("*.east.example")], ..consent("east") }, [true, false, false]),
        (Consent { gateways: Ranges::default(), ..consent("east") }, [true, false, true]),
    ] {
        let ranges = consent.gateways.clone();
        let mut imports = Imports::new(vec![consent]);
        let slice = with(slice("east", "db.pxc"), |offer| {
            offer.gateways[0].address = named.clone();
            offer.gateway_ranges = Ranges(vec!["0.0.0.0/0".parse().unwrap()]);
        });
        imports.restore(&slice.key.cluster, &slice.key.to_string(), &slice.encode()).unwrap();
        let changes = imports.changes(usize::MAX);
        let [(_, Verdict::Imported(accepted))] = &changes[..] else { panic!("{changes:?}") };
        assert_eq!(accepted.offer.as_ref().unwrap().gateway_ranges, ranges);
        assert_eq!(ips.map(|ip| imports.may_stand_at(&named, ip)), allowed, "{ranges:?}");
    }
}
