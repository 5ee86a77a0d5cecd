//! Any sequence of steps, against a plain list.

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Register {
        host: &'static str,
        instance: &'static str,
        address: &'static str,
        ttl: u64,
        shows: Shows,
    },
    Heartbeat(Shows),
    Deregister(Shows),
    Expire,
    Restart,
    /// Seconds that pass.
    Wait(u64),
}

/// The lease that is addresses: the instance's, another one, or none.
#[derive(Clone, Copy, Debug)]
enum Shows {
    Lease(u8),
    None,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let shows = || prop_oneof![2 => (0..12_u8).prop_map(Shows::Lease), 1 => Just(Shows::None)];
    let (hosts, instances) = (select(vec!["a.b", "c.d"]), select(vec!["i", "j", "k"]));
    let addresses = select(vec!["10.0.0.1:1", "10.0.0.2:1", "x.y:3"]);
    let register = (hosts, instances, addresses, select(vec![5_u64, 9]), shows());
    let step = prop_oneof![
        5 => register.prop_map(|(host, instance, address, ttl, shows)| {
            Step::Register { host, instance, address, ttl, shows }
        }),
        2 => shows().prop_map(Step::Heartbeat),
        1 => shows().prop_map(Step::Deregister),
        1 => Just(Step::Expire),
        1 => Just(Step::Restart),
        3 => (1..5_u64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..60)
}

/// One registration in the list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    host: &'static str,
    instance: &'static str,
    address: &'static str,
    ttl: u64,
    lease: u8,
    ends: u64,
}

/// A plain list, as the reference for each request.
#[derive(Default)]
struct Model(Vec<Row>);

impl Model {
    fn expire(&mut self, now: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|row| row.ends > now);
        self.0.len() < before
    }

    /// The lease in the answer, or an error for a refusal.
    fn register(&mut self, mut new: Row, addresses: Option<u8>, now: u64) -> Result<Option<u8>, ()> {
        self.expire(now);
        let of_service = self.0.iter().filter(|row| row.host == new.host);
        if of_service.clone().any(|row| row.instance != new.instance && row.address == new.address) {
            return Err(());
        }
        let place = self.0.iter().position(|row| (row.host, row.instance) == (new.host, new.instance));
        let Some(place) = place else {
            let lease = new.lease;
            self.0.push(new);
            return Ok(Some(lease));
        };
        let proven = addresses == Some(self.0[place].lease);
        if self.0[place].address != new.address && !proven {
            return Err(());
        }
        new.lease = self.0[place].lease;
        self.0[place] = new;
        Ok(proven.then_some(self.0[place].lease))
    }

    fn heartbeat(&mut self, lease: u8, now: u64) -> Option<u64> {
        self.expire(now);
        let row = self.0.iter_mut().find(|row| row.lease == lease)?;
        row.ends = now + row.ttl;
        Some(row.ttl)
    }

    fn deregister(&mut self, lease: u8) -> bool {
        let before = self.0.len();
        self.0.retain(|row| row.lease != lease);
        self.0.len() < before
    }

    fn addresses(&self) -> Vec<String> {
        let rows = self.0.iter().map(|row| format!("{}.{}:443 {}", row.instance, row.host, row.address));
        let mut rows: Vec<_> = rows.collect();
        rows.sort();
        rows
    }
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let start = Instant::now();
    let (mut persisted, mut all) = (BTreeMap::new(), Registered::default());
    let (mut model, mut now, mut fresh) = (Model::default(), 0, 0_u8);
    let at = |now: u64| start + Duration::from_secs(now);
    let number = |shows| match shows {
        Shows::Lease(number) => Some(number),
        Shows::None => None,
    };
    for step in steps {
        match step {
            Step::Register { host, instance, address, ttl, shows } => {
                fresh += 1;
                let new = said(instance, address, &format!(",\"host\":\"{host}\",\"ttl\":\"{ttl}s\""));
                let new = number(shows).map_or(new.clone(), |lease| with(id(lease), new));
                let found = all.register(new, &ROOT, &[], id(fresh), at(now)).map(|lease| lease.id);
                let row = Row { host, instance, address, ttl, lease: fresh, ends: now + ttl };
                let expected = model.register(row, number(shows), now).map(|lease| lease.map(id));
                prop_assert_eq!(found.map_err(|_| ()), expected);
            }
            Step::Heartbeat(shows) => {
                let lease = number(shows).unwrap_or(200);
                let found = all.heartbeat(&id(lease), at(now)).map(|lease| lease.ttl.as_secs()).ok();
                prop_assert_eq!(found, model.heartbeat(lease, now));
            }
            Step::Deregister(shows) => {
                let lease = number(shows).unwrap_or(200);
                prop_assert_eq!(all.deregister(&id(lease)).is_ok(), model.deregister(lease));
            }
            Step::Expire => prop_assert_eq!(all.expire(at(now)), model.expire(now)),
            Step::Restart => {
                for key in all.changed() {
                    match all.record(&key) {
                        Some(record) => _ = persisted.insert(key, record),
                        None => _ = persisted.remove(&key),
                    }
                }
                prop_assert_eq!(&persisted, &records(&all));
                all = restarted(&persisted, at(now));
                model.0.iter_mut().for_each(|row| row.ends = now + row.ttl);
            }
            Step::Wait(seconds) => now += seconds,
        }
        let mut found = addresses(&all);
        found.sort();
        prop_assert_eq!(found, model.addresses());
        prop_assert_eq!(all.count(), model.0.len());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn registered_matches_a_plain_list_for_any_sequence(steps in steps()) {
        run(steps)?;
    }
}
