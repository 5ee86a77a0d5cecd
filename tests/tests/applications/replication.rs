//! A MariaDB replica in one site follows its source in another by the source's own name, whatever changes on the way.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use isthmus_tests::ends::{Domains, id};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::netns::Star;
use isthmus_tests::setup::{Setup, service, service_of};
use isthmus_tests::skip;
use isthmus_tests::wait::until;
use rustix::process::Signal;

use crate::mariadb::{Mariadb, Server};
use crate::program::{Site, done, two_sites};

const NAMES: [&str; 3] = [
    "src-db-pxc-0.pxc.svc.cluster.local",
    "src-db-pxc-1.pxc.svc.cluster.local",
    "src-db-pxc-2.pxc.svc.cluster.local",
];
const PORT: u16 = 3306;
const CUT: Duration = Duration::from_secs(20);
/// Time without rows, longer than the gateways' idle timeout.
const QUIET: Duration = Duration::from_secs(7);
const REPLICATION: (&str, &str) = ("repl", "secret");

/// The address of an instance's server in east, or of its listener in west.
fn at(leg: u8, instance: usize) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 78, leg, 10 + u8::try_from(instance).unwrap()), PORT)
}

/// The two sites and the identities of their gateways.
struct World {
    domains: Domains,
    net: Star,
    east: Site,
    west: Site,
}

impl World {
    fn new() -> Result<World, String> {
        let net = two_sites()?;
        for place in 0..4 {
            for leg in [1, 2] {
                net.adopt(leg.into(), *at(leg, place).ip())?;
            }
        }
        let names: Vec<_> =
            NAMES.iter().enumerate().map(|(place, name)| format!("{} {name}", at(2, place).ip())).collect();
        let domains = Domains::new();
        domains.issue("east", "server");
        domains.issue("west", "replica");
        Ok(World { domains, east: Site::new(net.leg(1), &[]), west: Site::new(net.leg(2), &names), net })
    }

    /// The gateway of east: three named instances behind a door that only the replica of west may use.
    fn gateway_east(&self, instances: &[SocketAddrV4]) -> Setup {
        let endpoints: Vec<_> = instances
            .iter()
            .zip(NAMES)
            .enumerate()
            .map(|(place, (address, name))| {
                format!("{{ address: \"{address}\", instance: db-pxc-{place}, aliases: [{name}] }}")
            })
            .collect();
        let files = self.domains.files("east", "server").replace(", key", "\n  key");
        let access = format!("access: {{ allow: [{}] }}", id("west", "replica"));
        let keys = ["port: 3306", "tls: terminate", &files, &access];
        let services = service_of("db-pxc.pxc.svc.cluster.local", &keys, &endpoints);
        self.gateway(services, 1, &format!("- address: \"{}:15443\"", Star::address(1)))
    }

    /// The gateway of west: a listener with the port of the database for each name.
    fn gateway_west(&self) -> Setup {
        let identities = format!("identities: [{}]", id("east", "server"));
        let gateway = SocketAddr::from((Star::address(1), 15_443));
        let services = NAMES.map(|name| service(name, &["port: 3306", &identities], &[gateway]));
        let (caller, files) = (id("west", "replica"), self.domains.files("west", "replica"));
        let listener = |(place, name): (usize, &str)| {
            let address = at(2, place);
            format!(
                "- {{ name: db-{place}, address: \"{address}\", side: outbound, mode: originate, service: {name}, \
                 port: {PORT}, identity: {caller}, {files}, sources: [10.78.2.0/24] }}"
            )
        };
        let listeners: Vec<_> = NAMES.into_iter().enumerate().map(listener).collect();
        self.gateway(services.concat(), 2, &listeners.join("\n"))
    }

    fn gateway(&self, services: String, leg: usize, listeners: &str) -> Setup {
        Setup::new(services)
            .with(&self.domains.trust_yaml())
            .with("timeouts: { idle: 5s }")
            .with("drain: { accept_for: 0s, window: 1s }")
            .listeners(listeners)
            .namespace(self.net.leg(leg))
    }
}

/// Takes a gateway out of service as an upgrade does, and starts it again.
fn restart(gateway: &mut Gateway, setup: &Setup) {
    gateway.signal(Signal::TERM);
    assert!(gateway.wait_end().success());
    assert_eq!(gateway.log().count(|line| line.reason() == "idle_timeout"), 0);
    *gateway = setup.start();
}

/// Adds rows at the source.
fn add_rows(source: &Server<'_>, why: &str) {
    source
        .ask(&format!("USE shop; INSERT INTO orders (note) SELECT CONCAT('{why} ', seq) FROM seq_1_to_500"));
}

/// Waits until the replica has the source's rows; what is wrong is in its status.
#[track_caller]
fn follows(replica: &Server<'_>, source: &Server<'_>, when: &str) {
    let count = "SELECT COUNT(*) FROM shop.orders";
    let rows = source.ask(count);
    until(&format!("the replica has all rows {when}"), || {
        let has = replica.ask("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'shop'");
        has == "1" && replica.ask(count) == rows
    });
}

/// Each name leads to its own server.
fn assert_names_are_instances(mariadb: &Mariadb, world: &World) {
    for (place, name) in NAMES.iter().enumerate() {
        let answer = done(&mut mariadb.login(Some(&world.west), name, PORT, REPLICATION));
        assert!(answer.starts_with(&format!("{} {}@", place + 1, REPLICATION.0)), "{name}: {answer}");
    }
}

/// Heartbeats count as traffic, and live connections go on with the certificates that they began with.
fn assert_silence_and_rotation_end_nothing(
    world: &World,
    gateways: &[Gateway; 2],
    source: &Server<'_>,
    replica: &Server<'_>,
) {
    let ended = || gateways.each_ref().map(|gateway| gateway.log().count(|_| true));
    let serials = || gateways.each_ref().map(serials);
    let before = (ended(), serials());
    thread::sleep(QUIET);
    add_rows(source, "after silence");
    follows(replica, source, "after a quiet time");
    world.domains.issue("east", "server");
    world.domains.issue("west", "replica");
    until("both gateways use the new certificates", || {
        serials().iter().zip(&before.1).all(|(new, old)| new != old)
    });
    add_rows(source, "after rotation");
    follows(replica, source, "after the rotation of certificates");
    assert_eq!(ended(), before.0);
}

/// The serial numbers of a gateway's certificates.
fn serials(gateway: &Gateway) -> Vec<String> {
    let all = gateway.admin("GET", "/status").json()["trust"]["certificates"].clone();
    all.as_array().unwrap().iter().map(|one| one["serial"].to_string()).collect()
}

#[test]
fn mariadb_replica_follows_its_source_through_every_change() {
    let Some(mariadb) = Mariadb::find() else { skip!("mariadbd is not installed (tests/run installs it)") };
    let world = match World::new() {
        Ok(world) => world,
        Err(why) => skip!("{why}"),
    };
    let options = ["--skip-name-resolve", "--slave-net-timeout=4"];
    let [one, two, three, own] = [1, 2, 3, 10].map(|number| mariadb.database(number));
    let mut source = one.start(Some(&world.east), at(1, 0), &options);
    let others = [(&two, at(1, 1)), (&three, at(1, 2))]
        .map(|(database, at)| database.start(Some(&world.east), at, &options));
    let replica = own.start(Some(&world.west), at(2, 3), &options);
    let mut gateways =
        [world.gateway_west().start(), world.gateway_east(&[at(1, 0), at(1, 1), at(1, 2)]).start()];

    let (user, password) = REPLICATION;
    for server in others.iter().chain([&source]) {
        server.ask(&format!(
            "CREATE USER {user} IDENTIFIED BY '{password}'; GRANT REPLICATION SLAVE ON *.* TO {user}"
        ));
    }
    source.ask("CREATE DATABASE shop; CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, note VARCHAR(80))");
    assert_names_are_instances(&mariadb, &world);
    replica.ask(&format!(
        "CHANGE MASTER TO MASTER_HOST='{}', MASTER_PORT={PORT}, MASTER_USER='{user}', MASTER_PASSWORD='{password}', \
         MASTER_USE_GTID=slave_pos, MASTER_CONNECT_RETRY=1; START SLAVE",
        NAMES[0]
    ));
    add_rows(&source, "first");
    follows(&replica, &source, "at first");
    assert_silence_and_rotation_end_nothing(&world, &gateways, &source, &replica);

    // The source moves to another machine.
    source.stop();
    source = one.start(Some(&world.east), at(1, 3), &options);
    let moved = world.gateway_east(&[at(1, 3), at(1, 1), at(1, 2)]);
    fs::write(gateways[1].file(), moved.yaml()).unwrap();
    add_rows(&source, "moved");
    follows(&replica, &source, "after its source has moved");

    world.net.cut(1).unwrap();
    thread::sleep(CUT / 2);
    add_rows(&source, "while cut off");
    thread::sleep(CUT / 2);
    world.net.mend(1).unwrap();
    follows(&replica, &source, "after the link was cut");

    for (gateway, setup) in gateways.iter_mut().zip([world.gateway_west(), moved]) {
        restart(gateway, &setup);
        add_rows(&source, "after a restart");
        follows(&replica, &source, "after a gateway's restart");
    }
    let sum = "CHECKSUM TABLE shop.orders EXTENDED";
    assert_eq!(replica.ask(sum), source.ask(sum));
    let status = replica.ask("SHOW SLAVE STATUS");
    assert!(status.contains(NAMES[0]) && status.contains("\tYes\tYes\t"), "{status}");
}
