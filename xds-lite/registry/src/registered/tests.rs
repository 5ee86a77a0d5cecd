//! Registrations: conflicts, limits and restarts, and any sequence of requests against a plain list.

mod model;

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::select;

use super::records::of_before;
use super::*;
use crate::source::{Snapshot, merge};
use isthmus_model::registry_file;

const ROOT: Registrar = Registrar::User(0);
const TTL: Duration = Duration::from_secs(30);

fn id(number: u8) -> LeaseId {
    LeaseId::from_bytes([number; 16])
}

/// `NAME @ ADDRESS`, of db.pxc:3306 unless `more` sets another host.
fn said(instance: &str, address: &str, more: &str) -> Registration {
    let text = format!(
        "{{\"instance\":\"{instance}\",\"endpoints\":[{{\"address\":\"{address}\"}}]{more}{}}}",
        if more.contains("\"host\"") { "" } else { ",\"host\":\"db.pxc\",\"port\":3306" }
    );
    Registration::parse(text.as_bytes()).unwrap()
}

fn with(lease: LeaseId, mut registration: Registration) -> Registration {
    registration.lease = Some(lease);
    registration
}

fn files(text: &str) -> Vec<Service> {
    registry_file(&format!("services: [{text}]"), Path::new("r.yaml")).unwrap()
}

fn addresses(registered: &Registered) -> Vec<String> {
    let services = registered.services();
    let endpoints = services.iter().flat_map(|service| {
        service.endpoints.iter().map(move |endpoint| {
            let instance = endpoint.instance.as_ref().unwrap();
            format!("{instance}.{}:{} {}", service.host, service.port, endpoint.address)
        })
    });
    endpoints.collect()
}

/// The stored records.
fn records(registered: &Registered) -> BTreeMap<String, Vec<u8>> {
    let record = |key: String| (key.clone(), registered.record(&key).unwrap());
    registered.keys().into_iter().map(record).collect()
}

/// The registrations after a restart of the agent.
fn restarted(records: &BTreeMap<String, Vec<u8>>, now: Instant) -> Registered {
    let mut registered = Registered::default();
    records.iter().for_each(|(key, record)| registered.restore(key, record, now).unwrap());
    registered
}

/// The refusal; nothing may have changed.
#[track_caller]
fn refused(registered: &mut Registered, new: Registration, files: &[Service], now: Instant) -> String {
    let before = records(registered);
    let why = registered.register(new, &ROOT, files, id(99), now).unwrap_err();
    assert_eq!(records(registered), before);
    why.to_string()
}

#[test]
fn registration_lives_as_long_as_its_heartbeats() {
    let (start, mut all) = (Instant::now(), Registered::default());
    let at = |seconds| start + Duration::from_secs(seconds);
    let lease = all.register(said("db-0", "10.0.0.1:1", ""), &ROOT, &[], id(1), at(0)).unwrap();
    assert_eq!((lease.id, lease.ttl), (Some(id(1)), TTL));
    assert!(all.poll(at(0)).is_some() && all.poll(at(0)).is_none());
    assert!(!all.expire(at(29)));
    assert_eq!(all.heartbeat(&id(1), at(29)).unwrap().ttl, TTL);
    assert!(all.poll(at(58)).is_none(), "a heartbeat is not a change");
    // The same registration again is a heartbeat, too, for VMs that lost their lease; they are not told it.
    assert_eq!(all.register(said("db-0", "10.0.0.1:1", ""), &ROOT, &[], id(2), at(58)).unwrap().id, None);
    assert_eq!(all.heartbeat(&id(2), at(58)), Err(Refused::Unknown));
    assert!(!all.expire(at(87)) && all.expire(at(88)) && !all.expire(at(89)));
    assert!(all.poll(at(89)).is_some());
    assert_eq!((all.heartbeat(&id(1), at(89)), all.count()), (Err(Refused::Unknown), 0));
    assert_eq!(all.bytes, 0);
    all.register(said("db-0", "10.0.0.1:1", ",\"ttl\":\"5s\""), &ROOT, &[], id(3), at(90)).unwrap();
    assert_eq!(all.heartbeat(&id(3), at(95)), Err(Refused::Unknown), "too late, swept or not");
}

#[test]
fn registration_is_moved_or_ended_with_its_lease_only() {
    let (now, mut all) = (Instant::now(), Registered::default());
    all.register(said("db-0", "10.0.0.1:1", ""), &ROOT, &[], id(1), now).unwrap();
    let why = refused(&mut all, said("db-0", "10.0.0.2:1", ""), &[], now);
    assert!(
        why.starts_with("db-0 of db.pxc:3306 is already registered at 10.0.0.1:1; show its lease"),
        "{why}"
    );
    refused(&mut all, with(id(2), said("db-0", "10.0.0.2:1", "")), &[], now);
    let moved = with(id(1), said("db-0", "10.0.0.2:1", ""));
    assert_eq!(all.register(moved, &ROOT, &[], id(9), now).unwrap().id, Some(id(1)));
    assert_eq!(addresses(&all), ["db-0.db.pxc:3306 10.0.0.2:1"]);
    // Other attributes may change without it.
    let lighter = said("db-0", "10.0.0.2:1", ",\"balance\":\"random\"");
    assert_eq!(all.register(lighter, &ROOT, &[], id(9), now).unwrap().id, None);
    assert_eq!(all.services()[0].balance, isthmus_model::services::Balance::Random);
    assert_eq!(all.deregister(&id(9)), Err(Refused::Unknown));
    assert_eq!(all.deregister(&id(1)).unwrap().to_string(), "db-0 of db.pxc:3306");
    assert_eq!((all.count(), all.services().len(), all.bytes), (0, 0, 0));
}

#[test]
fn registration_agrees_with_other_instances_or_omits_attributes() {
    let (now, mut all) = (Instant::now(), Registered::default());
    let mut add = |text: Registration, lease| all.register(text, &ROOT, &[], id(lease), now).map(|_| ());
    add(said("db-0", "10.0.0.1:1", ""), 0).unwrap();
    add(said("db-1", "10.0.0.2:1", ",\"alpn\":[\"mysql\"]"), 1).unwrap();
    add(said("db-2", "10.0.0.3:1", ",\"alpn\":[\"mysql\"],\"max_connections\":7"), 2).unwrap();
    let why = refused(&mut all, said("db-3", "10.0.0.4:1", ",\"max_connections\":8"), &[], now);
    assert_eq!(
        why,
        "db-3 of db.pxc:3306: max_connections differs from that of db-2 of db.pxc:3306; use the same value, or omit it"
    );
    let why = refused(&mut all, said("db-3", "10.0.0.2:1", ""), &[], now);
    assert!(why.contains("10.0.0.2:1 is already registered as db-1 of db.pxc:3306"), "{why}");
    let [service] = &all.services()[..] else { panic!("one service") };
    assert_eq!((service.alpn.len(), service.max_connections, service.endpoints.len()), (1, Some(7), 3));
    assert!(service.default_port);
}

#[test]
fn registration_does_not_change_the_default_port() {
    let (now, mut all) = (Instant::now(), Registered::default());
    let on = |port: u16, more: &str| {
        said("a", &format!("10.0.0.1:{port}"), &format!(",\"host\":\"db.pxc\",\"port\":{port}{more}"))
    };
    all.register(on(2, ""), &ROOT, &[], id(2), now).unwrap();
    for other in ["", ",\"sni_port\":1"] {
        let why = refused(&mut all, on(1, other), &[], now);
        assert!(why.ends_with("db.pxc without a port already means port 2; set \"sni_port\": 2"), "{why}");
    }
    all.register(on(1, ",\"sni_port\":2"), &ROOT, &[], id(1), now).unwrap();
    let bare =
        |all: &Registered| all.services().iter().map(|it| (it.port, it.default_port)).collect::<Vec<_>>();
    assert_eq!(bare(&all), [(1, false), (2, true)]);
    assert_eq!(bare(&restarted(&records(&all), now)), [(1, false), (2, true)]);
    refused(&mut all, on(3, ",\"sni_port\":3"), &[], now);
    all.deregister(&id(2)).unwrap();
    assert_eq!(bare(&all), [(1, false)], "it does not move to another port");
}

#[test]
fn registration_conflicts_with_other_sources_are_refused() {
    let (now, mut all) = (Instant::now(), Registered::default());
    let files = files(
        "{ host: db.pxc, port: 3306, registered: true, balance: random, aliases: [db], endpoints: [{ address: '10.0.0.1:1', instance: db-0, aliases: [src-0] }] }, \
         { host: shut.pxc, endpoints: [{ address: '10.0.0.1:2' }] }, { host: '*.wide.pxc' }, { host: '*.open.pxc', registered: true }",
    );
    for (new, expected) in [
        (said("db-0", "10.0.0.2:1", ""), "another source of the registry already has this instance"),
        (said("db-1", "10.0.0.1:1", ""), "another source of the registry already has this address"),
        (
            said("db-1", "10.0.0.2:1", ",\"balance\":\"source_hash\""),
            "balance differs from that of the registry's",
        ),
        (said("db-1", "10.0.0.2:1", ",\"sni_port\":1"), "sni_port differs from"),
        (said("x", "10.0.0.2:1", ",\"host\":\"x.y\",\"aliases\":[\"db\"]"), "db is already a name of db.pxc"),
        (said("x", "10.0.0.2:1", ",\"host\":\"db\""), "db is already a name of db.pxc"),
        (
            said("x", "10.0.0.2:1", ",\"host\":\"x.y\",\"aliases\":[\"db.pxc\"]"),
            "db.pxc is already a name of",
        ),
        (
            said("x", "10.0.0.2:1", ",\"host\":\"shut.pxc\""),
            "a registry file defines this service without `registered: true`",
        ),
        (said("x", "10.0.0.2:1", ",\"host\":\"db.pxc\",\"port\":1"), "without port 1; add the port there"),
        (
            said("x", "10.0.0.2:1", ",\"host\":\"x.wide.pxc\""),
            "defines *.wide.pxc without `registered: true`",
        ),
        (
            said("x", "10.0.0.2:1", ",\"host\":\"x\",\"aliases\":[\"a.wide.pxc\"]"),
            "defines *.wide.pxc without",
        ),
        (said("x", "10.0.0.2:1", ",\"host\":\"db-0.db.pxc\""), "db-0.db.pxc is already a name of db.pxc"),
        (said("x", "10.0.0.2:1", ",\"host\":\"src-0\""), "src-0 is already a name of db.pxc"),
    ] {
        let why = refused(&mut all, new, &files, now);
        assert!(why.contains(expected), "{why}");
    }
}

#[test]
fn registration_adds_to_services_that_allow_it_and_frees_names_it_drops() {
    let (now, mut all) = (Instant::now(), Registered::default());
    let files = files(
        "{ host: db.pxc, port: 3306, registered: true, balance: random, endpoints: [{ address: '10.0.0.1:1' }] }, \
         { host: shut.pxc, endpoints: [{ address: '10.0.0.1:2' }] }, { host: '*.open.pxc', registered: true }",
    );
    all.register(said("db-1", "10.0.0.2:1", ",\"balance\":\"random\""), &ROOT, &files, id(1), now).unwrap();
    all.register(said("x", "10.0.0.2:1", ",\"host\":\"x.y\",\"aliases\":[\"z\"]"), &ROOT, &files, id(2), now)
        .unwrap();
    let why = refused(&mut all, said("w", "10.0.0.2:1", ",\"host\":\"z\""), &files, now);
    assert!(why.contains("z is already a name of x.y"), "{why}");
    // The name is free once no registration has it, after an update as after an end.
    let alias = || said("v", "10.0.0.2:1", ",\"host\":\"v\",\"aliases\":[\"z\"]");
    all.register(said("x", "10.0.0.2:1", ",\"host\":\"x.y\""), &ROOT, &files, id(9), now).unwrap();
    all.register(said("w", "10.0.0.2:1", ",\"host\":\"z\""), &ROOT, &files, id(3), now).unwrap();
    refused(&mut all, alias(), &files, now);
    all.deregister(&id(3)).unwrap();
    all.register(alias(), &ROOT, &files, id(4), now).unwrap();
    all.deregister(&id(4)).unwrap();
    assert!(all.heartbeat(&id(2), now).is_ok());
    let open = files.clone();
    let merged = merge([
        Snapshot { services: files, problems: vec![] },
        Snapshot { services: all.services(), problems: vec![] },
    ]);
    let hosts: Vec<_> = merged.services.iter().map(|it| (it.host.to_string(), it.endpoints.len())).collect();
    for expected in [("db.pxc", 2), ("x.y", 1), ("shut.pxc", 1)] {
        assert!(hosts.contains(&(expected.0.to_owned(), expected.1)), "{hosts:?}");
    }
    all.register(said("x", "10.0.0.2:1", ",\"host\":\"x.open.pxc\""), &ROOT, &open, id(5), now).unwrap();
    assert!(merged.problems.is_empty(), "{:?}", merged.problems);
}

#[test]
fn registration_belongs_to_its_registrar_and_each_registrar_has_a_limit() {
    let (now, mut all) = (Instant::now(), Registered::default());
    let token = Registrar::Token("db-vms".to_owned());
    all.register(said("db-0", "10.0.0.1:1", ""), &token, &[], id(1), now).unwrap();
    let again = all.register(said("db-0", "10.0.0.1:1", ",\"balance\":\"random\""), &ROOT, &[], id(2), now);
    assert!(matches!(&again, Err(Refused::Anothers(_))), "{again:?}");
    let mine = said("db-0", "10.0.0.1:1", "").owned_by(token.clone()).unwrap();
    assert!(
        matches!(all.register(mine, &token, &[], id(2), now), Err(Refused::Wrong(_))),
        "it says whose it is"
    );
    assert_eq!(all.register(said("db-0", "10.0.0.1:1", ""), &token, &[], id(2), now).unwrap().id, None);
    let taken_over = with(id(1), said("db-0", "10.0.0.1:1", ""));
    assert_eq!(all.register(taken_over, &ROOT, &[], id(2), now).unwrap().id, Some(id(1)));
    assert_eq!(all.registrars(), &BTreeMap::from([(ROOT, 1)]));
    assert_eq!(restarted(&records(&all), now).registrars(), all.registrars());

    let new =
        |number: usize| said(&format!("i-{number}"), "10.0.0.1:1", &format!(",\"host\":\"h-{number}\""));
    let lease = |number: usize| LeaseId::from_bytes((number as u128 + 1_000).to_le_bytes());
    for number in 0..Limits::default().each - 1 {
        all.register(new(number), &ROOT, &[], lease(number), now).unwrap();
    }
    let one_more = all.register(new(Limits::default().each), &ROOT, &[], id(7), now);
    assert_eq!(
        one_more.unwrap_err().to_string().split(';').next(),
        Some("user 0 already has 1000 registrations")
    );
    all.register(new(Limits::default().each), &token, &[], id(7), now).unwrap();
    all.register(new(3), &ROOT, &[], id(8), now).unwrap();
    all.deregister(&lease(3)).unwrap();
    all.register(new(3), &ROOT, &[], id(8), now).unwrap();
}

#[test]
fn registrations_are_limited_in_number_and_size() {
    assert_eq!(Registered::default().limits, Limits { all: 10_000, each: 1_000, bytes: 32 << 20 });
    // A hundredth of the limits, in the same proportion.
    let limits = Limits { all: 100, each: 10, ..Limits::default() };
    let (now, mut all) = (Instant::now(), Registered { limits, ..Registered::default() });
    let lease = |number: usize| {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        LeaseId::from_bytes(bytes)
    };
    let new =
        |number: usize| said(&format!("i-{number}"), "10.0.0.1:1", &format!(",\"host\":\"h-{number}\""));
    for number in 0..limits.all {
        let by = Registrar::User(u32::try_from(number / limits.each).unwrap());
        all.register(new(number), &by, &[], lease(number), now).unwrap();
    }
    let other = Registrar::User(99);
    let why = all.register(new(limits.all), &other, &[], id(1), now).unwrap_err().to_string();
    assert!(why.starts_with("the limit of 100 registrations or 32 MiB"), "{why}");
    all.register(new(7), &ROOT, &[], id(1), now).unwrap();
    all.deregister(&lease(7)).unwrap();
    all.register(new(limits.all), &ROOT, &[], id(1), now).unwrap();
    assert_eq!(all.count(), limits.all);
    let again = restarted(&records(&all), now);
    assert_eq!((again.count(), again.bytes), (limits.all, all.bytes));
    let sum: usize =
        all.ports.values().flat_map(|all| all.values()).map(|held| held.registration.text.len()).sum();
    assert_eq!(all.bytes, sum);
    all.bytes = limits.bytes;
    all.deregister(&id(1)).unwrap();
    assert!(matches!(
        all.register(
            said("b", "b:1", &format!(",\"alpn\":[\"{}\"]", "a".repeat(255))),
            &ROOT,
            &[],
            id(2),
            now
        ),
        Err(Refused::Full(_))
    ));
}

#[test]
fn restart_withdraws_no_registration_and_gives_each_a_whole_ttl() {
    let start = Instant::now();
    let mut all = Registered::default();
    all.register(said("db-0", "10.0.0.1:1", ",\"alpn\":[\"mysql\"]"), &ROOT, &[], id(1), start).unwrap();
    all.register(said("db-1", "10.0.0.2:1", ""), &ROOT, &[], id(2), start).unwrap();
    let mut changed = all.changed();
    changed.sort();
    let persisted = records(&all);
    assert_eq!(changed, persisted.keys().cloned().collect::<Vec<_>>());
    all.heartbeat(&id(1), start).unwrap();
    assert_eq!(all.changed(), [""; 0], "a heartbeat writes nothing");
    let text = String::from_utf8(persisted.values().flatten().copied().collect()).unwrap();
    assert!(!text.contains(&id(1).hex()), "{text}");
    let later = start + TTL * 10;
    let mut again = restarted(&persisted, later);
    assert_eq!(again.changed(), [""; 0]);
    assert_eq!(again.services(), all.services());
    assert!(again.poll(later).is_some() && !again.expire(later + TTL - Duration::from_millis(1)));
    again.heartbeat(&id(2), later + TTL - Duration::from_millis(1)).unwrap();
    assert!(again.expire(later + TTL));
    assert_eq!(addresses(&again), ["db-1.db.pxc:3306 10.0.0.2:1"]);
    let [gone] = &again.changed()[..] else { panic!("the other registration is gone") };
    assert_eq!(again.record(gone), None);
}

#[test]
fn restored_record_that_is_wrong_is_left_out_alone() {
    let now = Instant::now();
    let mut all = Registered::default();
    all.register(said("db-0", "10.0.0.1:1", ""), &ROOT, &[], id(1), now).unwrap();
    let persisted = records(&all);
    let (key, good) = persisted.first_key_value().unwrap();
    let good = String::from_utf8(good.clone()).unwrap();
    for wrong in [&good[..good.len() / 2], "", "[]", "\0\u{1b}[31m", &good.replace("10.0.0.1:1", "10.0.0.1")]
    {
        let why = Registered::default().restore(key, wrong.as_bytes(), now).unwrap_err().to_string();
        assert!(!why.contains('\u{1b}'), "{why}");
    }
    assert!(Registered::default().restore("registration/00", good.as_bytes(), now).is_err());
    assert!(all.restore(key, good.as_bytes(), now).is_err(), "it exists already");
    assert_eq!(records(&all), persisted);
}

#[test]
fn former_registrations_file_is_read_as_records() {
    let now = Instant::now();
    let mut all = Registered::default();
    all.register(said("db-0", "10.0.0.1:1", ""), &ROOT, &[], id(1), now).unwrap();
    all.register(said("db-1", "10.0.0.2:1", ""), &ROOT, &[], id(2), now).unwrap();
    let lines: Vec<_> = records(&all).into_values().map(|line| String::from_utf8(line).unwrap()).collect();
    let text = format!("{{\"format\":1,\"registrations\":[\n{}\n]}}\n", lines.join(",\n"));
    let (found, damage) = of_before(text.as_bytes());
    assert_eq!((found.into_iter().collect::<BTreeMap<_, _>>(), damage), (records(&all), None));
    for damaged in
        [&text[..text.len() / 2], "", "[]", "\0\u{1b}[31m", &text.replace("\"format\":1", "\"format\":2")]
    {
        let (found, damage) = of_before(damaged.as_bytes());
        assert!(found.is_empty() && !damage.unwrap().contains('\u{1b}'), "{damaged:?}");
    }
}
