//! The addresses of all other names stay, whatever happens to one.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::allotment::QUARANTINE;

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn ranges() -> VirtualRanges {
    VirtualRanges {
        v6: Some("fd00:1:2:3::/64".parse().unwrap()),
        v4: Some("240.240.0.0/20".parse().unwrap()),
    }
}

fn fresh() -> VirtualAddresses {
    VirtualAddresses::restored(ranges(), StoredAddresses::default()).0
}

fn restart(addresses: &VirtualAddresses) -> VirtualAddresses {
    let text = serde_json::to_string(&addresses.stored()).unwrap();
    let (restored, unfit) = VirtualAddresses::restored(ranges(), serde_json::from_str(&text).unwrap());
    assert_eq!(unfit, StoredAddresses::default());
    restored
}

/// The addresses of all names; no two names share one.
fn all(addresses: &VirtualAddresses, names: &BTreeSet<HostName>) -> BTreeMap<HostName, NameAddresses> {
    let all: BTreeMap<_, _> = names.iter().map(|name| (name.clone(), addresses.get(name))).collect();
    let v6: BTreeSet<_> = all.values().filter_map(|each| each.v6).collect();
    let v4: BTreeSet<_> = all.values().filter_map(|each| each.v4).collect();
    assert_eq!((v6.len(), v4.len()), (names.len(), names.len()));
    for (name, each) in &all {
        assert_eq!(addresses.name_of(each.v6.unwrap().into()), Some(name));
        assert_eq!(addresses.name_of(each.v4.unwrap().to_ipv6_mapped().into()), Some(name));
    }
    all
}

#[test]
fn virtual_addresses_of_a_thousand_services_stay_whatever_happens_to_one() {
    let mut names: BTreeSet<HostName> =
        (0..1_000).map(|name| host(&format!("s{name}.shop.example"))).collect();
    let mut addresses = fresh();
    assert_eq!(addresses.want(&names, start()), []);
    let mut before = all(&addresses, &names);

    let gone = host("s500.shop.example");
    names.remove(&gone);
    let gone = before.remove(&gone).unwrap();
    assert_eq!(addresses.want(&names, start()), []);
    assert_eq!(all(&addresses, &names), before, "after a delete");
    assert_eq!(addresses.name_of(gone.v6.unwrap().into()), None);
    assert_eq!(addresses.name_of(gone.v4.unwrap().into()), None);

    names.insert(host("renamed.shop.example"));
    assert_eq!(addresses.want(&names, start()), []);
    let mut after = all(&addresses, &names);
    let renamed = after.remove(&host("renamed.shop.example")).unwrap();
    assert_eq!(after, before, "after a rename");
    assert!(renamed.v6 != gone.v6 && renamed.v4 != gone.v4);

    addresses = restart(&addresses);
    let reordered: BTreeSet<HostName> = names.iter().rev().cloned().collect();
    assert_eq!(addresses.want(&reordered, start() + QUARANTINE * 2), []);
    after.insert(host("renamed.shop.example"), renamed);
    assert_eq!(all(&addresses, &names), after, "after a restart and a reload");
}

#[test]
fn virtual_addresses_follow_from_the_name() {
    let (one, other) = (host("db.pxc.svc.cluster.local"), host("db-0.db.pxc.svc.cluster.local"));
    let (mut first, mut second) = (fresh(), fresh());
    first.want(&[one.clone()].into(), start());
    second.want(&[one.clone(), other.clone()].into(), start());
    assert_eq!(first.get(&one), second.get(&one));
    assert_eq!(first.get(&other), NameAddresses::default());
    assert_ne!(second.get(&one), second.get(&other));
}

#[test]
fn virtual_ranges_keep_the_addresses_of_the_network() {
    let v4 = |net: &str| hosts_v4(net.parse().unwrap()).to_string();
    assert_eq!(v4("240.0.0.0/30"), "240.0.0.1-240.0.0.2");
    assert_eq!(v4("240.0.0.0/31"), "240.0.0.0-240.0.0.1");
    assert_eq!(v4("240.0.0.7/32"), "240.0.0.7-240.0.0.7");
    assert_eq!(v4("0.0.0.0/0"), "0.0.0.1-255.255.255.254");
    let v6 = |net: &str| hosts_v6(net.parse().unwrap()).to_string();
    assert_eq!(v6("fd00::/126"), "fd00::1-fd00::3");
    assert_eq!(v6("fd00::7/128"), "fd00::7-fd00::7");
    assert!(fresh().want(&BTreeSet::new(), start()).is_empty());
}

#[test]
fn virtual_range_that_is_exhausted_names_itself_and_spares_the_other_family() {
    let ranges = VirtualRanges { v4: Some("240.0.0.0/30".parse().unwrap()), ..ranges() };
    let mut addresses = VirtualAddresses::restored(ranges, StoredAddresses::default()).0;
    let names: BTreeSet<_> = ["a.x", "b.x", "c.x"].map(host).into();
    let errors = addresses.want(&names, start());
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].to_string().contains("no place is left for c.x in 240.0.0.1-240.0.0.2"),
        "{}",
        errors[0]
    );
    assert!(names.iter().all(|name| addresses.get(name).v6.is_some()));
}

#[test]
fn virtual_addresses_outside_a_changed_range_are_given_anew() {
    let mut addresses = fresh();
    let names: BTreeSet<_> = ["a.x", "b.x"].map(host).into();
    addresses.want(&names, start());
    let before = addresses.stored();
    let smaller = VirtualRanges { v4: Some("240.250.0.0/20".parse().unwrap()), ..ranges() };
    let (mut restored, unfit) = VirtualAddresses::restored(smaller, before.clone());
    assert_eq!((unfit.v4, unfit.v6), (before.v4.clone(), Vec::new()));
    assert_eq!(restored.want(&names, start()), []);
    assert!(names.iter().all(|name| restored.get(name).v6 == addresses.get(name).v6));
    assert!(names.iter().all(|name| smaller.v4.unwrap().contains(&restored.get(name).v4.unwrap())));
    let (mut none, unfit) = VirtualAddresses::restored(VirtualRanges::default(), before);
    assert_eq!((unfit.v4.len(), unfit.v6.len()), (2, 2));
    assert_eq!(none.want(&names, start()), []);
    assert_eq!(none.get(&host("a.x")), NameAddresses::default());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn virtual_addresses_stored_form_is_refused_or_consistent(text in "\\{\"v4\":\\[(\\{\"name\":\"[a-b.]{1,3}\",\"place\":\"240.240.0.[0-9]{1,3}\"\\},?){0,4}\\]\\}") {
        if let Ok(stored) = serde_json::from_str::<StoredAddresses>(&text) {
            let (mut addresses, _) = VirtualAddresses::restored(ranges(), stored);
            let names: BTreeSet<_> = ["a", "b", "ab"].map(host).into();
            prop_assert_eq!(addresses.want(&names, start()), []);
            all(&addresses, &names);
        }
    }
}
