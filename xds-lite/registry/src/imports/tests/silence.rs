//! Imports whose cluster is unreachable.

use super::*;

#[test]
fn import_with_expire_after_expires_while_its_cluster_is_unreachable() {
    let mut imports = Imports::new(vec![consent("east")]);
    let minute = Duration::from_secs(60);
    take(&mut imports, "east", &slice("east", "a.shop")).unwrap();
    let brief = with(slice("east", "b.shop"), |offer| offer.staleness = Staleness::ExpireAfter(minute));
    take(&mut imports, "east", &brief).unwrap();
    imports.changes(usize::MAX);
    let start = Instant::now();
    imports.set_unreachable_since(&cluster("east"), Some(start));
    imports.expire(start + minute / 2);
    imports.set_unreachable_since(&cluster("east"), Some(start + minute / 2));
    assert_eq!(imports.changes(usize::MAX), []);
    imports.expire(start + minute);
    held(&imports, "east/a.shop", "");
    held(&imports, "east/b.shop", "has expired");
    assert_eq!(imports.changes(usize::MAX).len(), 1);
    imports.set_unreachable_since(&cluster("east"), None);
    assert!(matches!(&imports.changes(usize::MAX)[..], [(_, Verdict::Imported(_))]));
}

/// The targets probed in the first interval.
fn asked(imports: &mut Imports, now: Instant) -> Vec<String> {
    imports.poll_probes(Vec::new(), 0, now);
    imports
        .poll_probes(Vec::new(), 64, now + Duration::from_secs(3))
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The gateways of a changed host, if it changed.
fn gateways_of(changes: Vec<(Key, Verdict)>, host: &str) -> Option<Vec<String>> {
    let change = changes.into_iter().find(|(key, _)| key.host == pattern(host))?;
    let Verdict::Imported(Slice { offer: Some(offer), .. }) = change.1 else { return None };
    Some(offer.gateways.iter().map(|gateway| gateway.address.to_string()).collect())
}

#[test]
fn import_with_stale_probe_leaves_out_addresses_that_are_down() {
    let mut imports = Imports::new(vec![consent("east"), consent("south")]);
    let (one, two) = ("203.0.113.7:15443", "203.0.113.8:15443");
    let probed = |host: &str, addresses: &[&str]| {
        with(slice("east", host), |offer| {
            offer.staleness = Staleness::Probe;
            let at =
                |address: &&str| Gateway { address: address.parse().unwrap(), locality: Locality::default() };
            offer.gateways = addresses.iter().map(at).collect();
        })
    };
    for slice in
        [probed("a.shop", &[one, two]), probed("b.shop", &[one]), probed("c.other", &["203.0.113.9:1"])]
    {
        take(&mut imports, "east", &slice).unwrap();
    }
    take(&mut imports, "east", &slice("east", "kept.shop")).unwrap();
    imports.changes(usize::MAX);
    let start = Instant::now();
    assert_eq!(asked(&mut imports, start), [""; 0], "no probes while the cluster is reachable");
    imports.set_unreachable_since(&cluster("east"), Some(start));
    let later = start + Duration::from_secs(3);
    assert_eq!(asked(&mut imports, later), [one, two], "each once, and only for granted names");
    fail(&mut imports, &[one], later);
    let changes = imports.changes(usize::MAX);
    assert_eq!(changes.len(), 2, "the slices with that target: {changes:?}");
    assert_eq!(gateways_of(changes.clone(), "a.shop"), Some(vec![two.to_owned()]));
    let known = changes.iter().find(|(key, _)| key.host == pattern("b.shop"));
    let Some((_, Verdict::Unreachable(Slice { offer: Some(offer), .. }, _))) = known else {
        panic!("{known:?}")
    };
    assert!(offer.gateways.is_empty() && !offer.ports.is_empty(), "the name must not lead to a wildcard");
    held(&imports, "east/a.shop", "");
    held(
        &imports,
        "east/b.shop",
        "cannot be reached while its cluster is unreachable, too (stale: probe): 203.0.113.7:15443",
    );
    held(&imports, "east/kept.shop", "");
    let clock = SystemTime::now();
    let stale = imports.stale(&cluster("east"), &pattern("b.shop"), later, clock).unwrap();
    assert_eq!((stale.rule, stale.down.len(), &*stale.down[0].why), (Staleness::Probe, 1, "refused"));
    take(&mut imports, "south", &slice("south", "b.shop")).unwrap();
    held(&imports, "south/b.shop", "has the name of a service of east");

    imports.poll_probes(vec![(one.parse().unwrap(), Answer::Reached)], 0, later);
    let changes = imports.changes(usize::MAX);
    assert_eq!(gateways_of(changes.clone(), "b.shop"), Some(vec![one.to_owned()]), "it answers again");
    assert_eq!(gateways_of(changes, "a.shop").unwrap().len(), 2);
    fail(&mut imports, &[one, two], later);
    held(&imports, "east/a.shop", "cannot be reached");
    imports.changes(usize::MAX);

    imports.set_unreachable_since(&cluster("east"), None);
    let changes = imports.changes(usize::MAX);
    assert_eq!(gateways_of(changes.clone(), "a.shop").unwrap().len(), 2, "used again at once");
    assert!(gateways_of(changes, "b.shop").is_some());
    assert_eq!(imports.stale(&cluster("east"), &pattern("b.shop"), later, clock), None);
    assert_eq!((asked(&mut imports, later), imports.probes().asked()), (Vec::new(), 0));
    imports.set_unreachable_since(&cluster("east"), Some(later));
    held(&imports, "east/a.shop", "");
    assert_eq!(imports.changes(usize::MAX), [], "earlier probe results are dropped");
}

#[test]
fn endpoint_reached_without_a_gateway_is_probed_itself() {
    let near = Consent { is_near: true, endpoints: vec!["10.2.0.0/16".parse().unwrap()], ..consent("east") };
    let mut imports = Imports::new(vec![near]);
    let (one, two) = ("10.2.0.1:443", "10.2.0.2:443");
    let endpoint = |address: &str| Endpoint::new(address.parse().unwrap());
    let direct = with(slice("east", "a.shop"), |offer| {
        offer.staleness = Staleness::Probe;
        offer.ports[0].endpoints = vec![endpoint(one), endpoint(two), endpoint("10.9.0.1:443")];
    });
    take(&mut imports, "east", &direct).unwrap();
    let start = Instant::now();
    imports.set_unreachable_since(&cluster("east"), Some(start));
    let later = start + Duration::from_secs(3);
    assert_eq!(asked(&mut imports, later), [one, two], "no foreign endpoints, no unneeded gateways");
    imports.changes(usize::MAX);
    fail(&mut imports, &[one], later);
    let changes = imports.changes(usize::MAX);
    let [(_, Verdict::Imported(Slice { offer: Some(offer), .. }))] = &changes[..] else {
        panic!("{changes:?}")
    };
    let health: Vec<_> = offer.ports[0].endpoints.iter().map(|endpoint| endpoint.health).collect();
    assert_eq!(health, [Health::NotReady, Health::Ready]);
    fail(&mut imports, &[two], later);
    held(&imports, "east/a.shop", "cannot be reached");
}

/// Row 15 of the hazards: an outage of 10 minutes and more withdraws nothing with `stale: keep`.
#[test]
fn import_with_stale_keep_is_kept_for_any_time() {
    let mut imports = Imports::new(vec![consent("east")]);
    take(&mut imports, "east", &slice("east", "a.shop")).unwrap();
    imports.changes(usize::MAX);
    let start = Instant::now();
    imports.set_unreachable_since(&cluster("east"), Some(start));
    for minutes in [1, 10, 11, 60, 60 * 24 * 365] {
        let now = start + Duration::from_secs(60 * minutes);
        imports.expire(now);
        imports.set_unreachable_since(&cluster("east"), Some(now));
        assert_eq!(asked(&mut imports, now), [""; 0], "no probes");
        assert_eq!(imports.changes(usize::MAX), [], "after {minutes} minutes");
        held(&imports, "east/a.shop", "");
    }
    imports.set_unreachable_since(&cluster("east"), None);
    assert_eq!(imports.changes(usize::MAX), [], "no change is published again");
}
