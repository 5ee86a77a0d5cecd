//! The matrix second by second, with probes that answer at once.

use proptest::prelude::*;

use super::*;

fn place(cluster: &str, number: usize) -> Place {
    let gateway: Target = format!("gw.{cluster}.example:15443").parse().unwrap();
    let address = format!("10.0.{}.{}:15443", number / 250, number % 250 + 1).parse().unwrap();
    Place { cluster: cluster.parse().unwrap(), gateway, address }
}

fn alert(millis: u64) -> Answer {
    Answer::Alerted(Duration::from_millis(millis))
}

fn silence() -> Answer {
    Answer::Unreached("no answer within 2 s".to_owned())
}

/// A matrix whose probes answer at once, second by second.
struct World {
    matrix: Matrix,
    now: Instant,
    changes: Vec<(String, State)>,
}

impl World {
    fn probing(places: &[Place]) -> World {
        let mut world = World { matrix: Matrix::default(), now: Instant::now(), changes: Vec::new() };
        world.matrix.want(places.iter().cloned(), world.now, || 0.5);
        world
    }

    fn note(&mut self, changes: Vec<Change>) {
        self.changes
            .extend(changes.into_iter().map(|change| (change.place.cluster.to_string(), change.state)));
    }

    /// Lets time pass.
    fn pass(&mut self, seconds: u64, answer: impl Fn(&Place) -> Answer) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            for place in self.matrix.next(1_000, self.now) {
                let changes = self.matrix.answered(&place, answer(&place), self.now, 0.5);
                self.note(changes);
            }
            let changes = self.matrix.settle(self.now);
            self.note(changes);
        }
    }

    fn changes(&mut self) -> Vec<(String, State)> {
        std::mem::take(&mut self.changes)
    }

    fn down(&self) -> Vec<&str> {
        self.matrix.down().map(|place| place.cluster.as_str()).collect()
    }
}

fn changed(cluster: &str, state: State) -> (String, State) {
    (cluster.to_owned(), state)
}

#[test]
fn matrix_address_is_down_after_three_failures_and_up_after_two_answers() {
    let (east, south) = (place("east", 1), place("south", 1));
    let mut world = World::probing(&[east.clone(), south]);
    assert!(world.matrix.rows(world.now, SystemTime::now()).iter().all(|row| row.state == State::Unknown));
    world.pass(20, |_| alert(30));
    assert_eq!(world.changes(), [changed("east", State::Up), changed("south", State::Up)]);
    let dead = |place: &Place| if place.cluster.as_str() == "east" { silence() } else { alert(30) };
    let loss = |world: &World| world.matrix.rows(world.now, SystemTime::now())[0].loss_percent;
    while loss(&world) == 0 {
        world.pass(1, dead);
    }
    world.pass(1, dead);
    assert_eq!(world.down(), Vec::<&str>::new(), "two failures are not enough");
    world.pass(1, dead);
    assert_eq!((world.changes(), world.down()), (vec![changed("east", State::Down)], vec!["east"]));
    let rows = world.matrix.rows(world.now, SystemTime::now());
    assert_eq!(rows[0].why.as_deref(), Some("no answer within 2 s"));
    assert!(rows[0].loss_percent > 0 && rows[1].loss_percent == 0 && rows[1].rtt_micros == Some(30_000));
    // Every other probe is answered.
    for _ in 0..10 {
        world.pass(1, |_| alert(30));
        world.pass(6, dead);
    }
    assert_eq!(world.changes(), [], "flapping does not bring it up");
    world.pass(10, |_| alert(30));
    assert_eq!(world.changes(), [changed("east", State::Up)]);
    assert_eq!(world.matrix.rows(world.now, SystemTime::now())[0].why, None);
}

#[test]
fn matrix_keeps_the_last_good_addresses_if_all_fail() {
    let places = [place("east", 1), place("south", 1), place("west", 1)];
    let mut world = World::probing(&places);
    let west_is_dead = |place: &Place| if place.cluster.as_str() == "west" { silence() } else { alert(30) };
    world.pass(60, west_is_dead);
    assert_eq!(world.down(), ["west"]);
    world.changes();
    world.pass(20, |_| silence());
    assert!(world.matrix.cut_off_since().is_some());
    assert_eq!(world.down(), ["west"], "it was not good");
    assert_eq!(world.changes().last().map(|(_, state)| *state), Some(State::Kept));
    world.pass(600, |_| silence());
    assert_eq!((world.changes(), world.down()), (vec![], vec!["west"]));
    // South answers first; east gets the time to do so as well.
    world.pass(7, |place| if place.cluster.as_str() == "south" { alert(30) } else { silence() });
    world.pass(20, west_is_dead);
    assert_eq!(world.changes(), [changed("south", State::Up), changed("east", State::Up)]);
    assert_eq!((world.matrix.cut_off_since(), world.down()), (None, vec!["west"]));
}

#[test]
fn matrix_ends_a_cut_off_for_addresses_that_do_not_come_back() {
    let mut world = World::probing(&[place("east", 1), place("south", 1)]);
    world.pass(20, |_| alert(30));
    world.pass(20, |_| silence());
    world.changes();
    world.pass(30, |place| if place.cluster.as_str() == "east" { alert(30) } else { silence() });
    assert_eq!(world.changes(), [changed("east", State::Up), changed("south", State::Down)]);
}

#[test]
fn matrix_close_is_an_answer_unless_the_address_has_sent_alerts() {
    let mut world = World::probing(&[place("east", 1), place("south", 1)]);
    let closes = |_: &Place| Answer::Closed(Duration::from_millis(1));
    world.pass(20, closes);
    assert!(world.changes.iter().all(|(_, state)| *state == State::Up));
    world.pass(10, |place| if place.cluster.as_str() == "east" { alert(1) } else { closes(place) });
    world.pass(20, closes);
    assert_eq!(world.down(), ["east"]);
}

#[test]
fn matrix_prefers_the_nearer_and_a_slow_one_loses_its_preference() {
    let (near, far) = (place("near", 1), place("far", 2));
    let mut world = World::probing(&[near.clone(), far.clone()]);
    let distances = |place: &Place| if place.cluster.as_str() == "near" { alert(30) } else { alert(90) };
    world.pass(4, distances);
    let found = world.matrix.measure(world.now).unwrap();
    assert_eq!((found.class(&near.gateway), found.class(&far.gateway)), (0, 1));
    let unknown: Target = "gw.other.example:1".parse().unwrap();
    assert_eq!(found.class(&unknown), 0);
    // A death changes no distance.
    world.pass(20, |place| if place.cluster.as_str() == "near" { silence() } else { alert(90) });
    assert_eq!((world.matrix.measure(world.now), world.down()), (None, vec!["near"]));
    world.pass(20, distances);
    assert_eq!((world.matrix.measure(world.now), world.down()), (None, vec![]));
    let mut moves = Vec::new();
    for second in 0..60 {
        world.pass(1, |place| if place.cluster.as_str() == "near" { alert(300) } else { alert(90) });
        moves.extend(world.matrix.measure(world.now).map(|found| (second, found.class(&near.gateway))));
    }
    assert!(matches!(moves[..], [(10..40, 1)]), "{moves:?}");
}

#[test]
fn matrix_probes_a_bounded_number_of_addresses_spread_over_time() {
    let many = |cluster: &str, count| (0..count).map(|number| place(cluster, number)).collect::<Vec<_>>();
    let mut matrix = Matrix::default();
    let now = Instant::now();
    matrix.want(many("east", 1_000).into_iter().chain(many("south", 2)), now, || 0.5);
    assert_eq!((matrix.known.len(), matrix.left_out()), (OF_CLUSTER + 2, 984));
    let clusters = (0..100).flat_map(|number| many(&format!("c{number}"), 16));
    matrix.want(clusters, now, || 0.5);
    assert_eq!(matrix.known.len(), OF_ALL);
    let mut world = World::probing(&many("east", 16));
    world.pass(10, |_| alert(1));
    let mut probes = 0;
    for _ in 0..100 {
        world.now += Duration::from_secs(1);
        for place in world.matrix.next(1_000, world.now) {
            probes += 1;
            world.matrix.answered(&place, alert(1), world.now, 0.5);
        }
    }
    assert_eq!(probes, 16 * 20, "each every five seconds");
    world.matrix.want([], world.now, || 0.5);
    assert_eq!((world.matrix.next_due(), world.matrix.rows(world.now, SystemTime::now())), (None, vec![]));
}

proptest! {
    /// Whatever happens, each address has one place in the queue, and not all that answered lately are down.
    #[test]
    fn matrix_never_takes_all_addresses_out(
        events in proptest::collection::vec((0..4_u8, 0..5_usize, 0..12_u64), 0..200)
    ) {
        let places: Vec<_> = (0..5).map(|number| place(["a", "b", "c"][number % 3], number)).collect();
        let (mut matrix, mut now) = (Matrix::default(), Instant::now());
        matrix.want(places.clone(), now, || 0.0);
        for (what, number, seconds) in events {
            now += Duration::from_secs(seconds);
            let answer = match what {
                0 | 1 => silence(),
                2 => Answer::Closed(Duration::from_millis(5)),
                _ => alert(5),
            };
            matrix.next(number, now);
            matrix.answered(&places[number], answer, now, 0.5);
            let queued: BTreeSet<_> = matrix.due.iter().cloned().collect();
            let known: BTreeSet<_> = matrix.known.iter().map(|(place, one)| (one.due, place.clone())).collect();
            prop_assert_eq!(queued, known);
            let down = matrix.down().count();
            let answered = matrix.known.values().any(|known| known.answered.is_some());
            prop_assert!(down < places.len() || !answered, "{:?}", matrix);
        }
    }
}
