//! Changes in any order.

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Contact(usize, bool),
    Expire,
    Answer(bool),
    Take(usize, usize, bool),
    Withdraw(usize, usize),
    Leave(usize, usize),
    Own(usize, bool),
    OwnGone(usize),
}

const CLUSTERS: [&str; 3] = ["east", "south", "north"];
const HOSTS: [&str; 3] = ["a.shop", "b.shop", "c.shop"];

fn event() -> impl Strategy<Value = Event> {
    let (cluster, host) = (0..CLUSTERS.len(), 0..HOSTS.len());
    prop_oneof![
        4 => (cluster.clone(), host.clone(), any::<bool>()).prop_map(|(c, h, alias)| Event::Take(c, h, alias)),
        1 => (cluster.clone(), host.clone()).prop_map(|(c, h)| Event::Withdraw(c, h)),
        1 => (cluster, host.clone()).prop_map(|(c, h)| Event::Leave(c, h)),
        1 => (0..CLUSTERS.len(), any::<bool>()).prop_map(|(c, heard)| Event::Contact(c, heard)),
        1 => Just(Event::Expire),
        2 => any::<bool>().prop_map(Event::Answer),
        1 => (host.clone(), any::<bool>()).prop_map(|(h, alias)| Event::Own(h, alias)),
        1 => host.prop_map(Event::OwnGone),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// After any events, the published changes add up to a full evaluation with its reasons, and each name has one
    /// owner.
    #[test]
    fn import_changes_add_up_to_the_whole(events in proptest::collection::vec(event(), 1..30)) {
        let mut imports = Imports::new(CLUSTERS.map(consent).to_vec());
        let mut passed: BTreeMap<String, String> = BTreeMap::new();
        let mut own: BTreeSet<&str> = BTreeSet::new();
        let now = Instant::now();
        for (revision, event) in (2..).zip(events) {
            let make = |of: &str, host: &str, alias: bool| {
                let mut made = with(slice(of, host), |offer| {
                    // The next host's name as an alias makes every kind of conflict.
                    if alias { offer.aliases = vec![pattern(if host == "a.shop" { "b.shop" } else { "a.shop" })]; }
                    let minute = Duration::from_secs(60);
                    offer.staleness =
                        if host == "c.shop" { Staleness::ExpireAfter(minute) } else { Staleness::Probe };
                });
                made.order.revision = revision;
                made
            };
            match event {
                Event::Contact(c, heard) => imports.set_unreachable_since(&cluster(CLUSTERS[c]), (!heard).then_some(now)),
                Event::Answer(true) => {
                    imports.poll_probes(vec![("203.0.113.7:15443".parse().unwrap(), Answer::Reached)], 64, now);
                }
                Event::Answer(false) => fail(&mut imports, &["203.0.113.7:15443"], now),
                Event::Expire => imports.expire(now + Duration::from_secs(60)),
                Event::Take(c, h, alias) => take(&mut imports, CLUSTERS[c], &make(CLUSTERS[c], HOSTS[h], alias)).unwrap(),
                Event::Withdraw(c, h) => {
                    let gone = Slice { offer: None, ..make(CLUSTERS[c], HOSTS[h], false) };
                    take(&mut imports, CLUSTERS[c], &gone).unwrap();
                }
                Event::Leave(c, h) => _ = imports.forget(&cluster(CLUSTERS[c]), &pattern(HOSTS[h])),
                Event::Own(h, alias) => { own.insert(HOSTS[h]); imports.own(&make("west", HOSTS[h], alias)); }
                Event::OwnGone(h) => {
                    own.remove(HOSTS[h]);
                    imports.own(&Slice { offer: None, ..make("west", HOSTS[h], false) });
                }
            }
            loop {
                let changes = imports.changes(1);
                if changes.is_empty() { break }
                for (key, verdict) in changes {
                    match verdict {
                        Verdict::Imported(_) => _ = passed.insert(key.to_string(), String::new()),
                        Verdict::Unreachable(_, why) | Verdict::Quarantined(why) => _ = passed.insert(key.to_string(), why),
                        Verdict::Withdrawn => _ = passed.remove(&key.to_string()),
                    }
                }
            }
        }
        prop_assert_eq!(&passed, &standing(&imports));
        let stands: BTreeSet<_> = passed.into_iter().filter(|(_, why)| why.is_empty()).map(|(key, _)| key).collect();
        for host in HOSTS {
            let owners = CLUSTERS.iter().filter(|of| stands.contains(&format!("{of}/{host}"))).count();
            prop_assert!(owners + usize::from(own.contains(host)) <= 1, "{host} has {owners} owners");
        }
    }
}
