//! A MariaDB replica in one site follows its source in another by the source's own name, whatever changes on the way.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::Duration;

use isthmus_tests::cluster::Cluster;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::netns::Star;
use isthmus_tests::setup::Setup;
use isthmus_tests::sidecarless::{
    CAPTURE, DNS, LISTENER, capture, cluster, issued, managed, requirements, route,
};
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
const REPLICA: &str = "spiffe://west.example/ns/pxc/sa/replica";
const SOURCE: &str = "spiffe://east.example/ns/pxc/sa/db";
const CUT: Duration = Duration::from_secs(20);
/// Time without rows, longer than the gateways' idle timeout.
const QUIET: Duration = Duration::from_secs(7);
/// Certificates live this long, and are renewed after two thirds of it.
const LIFETIME: &str = "30s";
const REPLICATION: (&str, &str) = ("repl", "secret");
const EAST: usize = 1;
const WEST: usize = 2;
/// The name server of west's machine is not there: `capture` leads to the agent.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// The address of a server in east.
fn at(instance: usize) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 78, 1, 10 + u8::try_from(instance).unwrap()), PORT)
}

/// The two sites, each with its agent.
struct World {
    clusters: [Cluster; 2],
    setups: [Setup; 2],
    east: Site,
    west: Site,
    net: Star,
}

impl World {
    fn new() -> Result<World, String> {
        let net = two_sites()?;
        requirements(&[])?;
        for place in 0..4 {
            net.adopt(EAST, *at(place).ip())?;
        }
        route(&net, WEST, EAST)?;
        let mut clusters =
            [("east", EAST), ("west", WEST)].map(|(name, leg)| cluster(name, (&net, leg), LIFETIME));
        let [east, west] = &mut clusters;
        east.trust_cluster(west);
        west.trust_cluster(east);
        for (key, value) in [
            (
                "gateways",
                format!("[{{ name: gw-1, address: {}, identities: ['{SOURCE}'] }}]", Star::address(EAST)),
            ),
            ("exports", "[{ hosts: ['*.pxc.svc.cluster.local'], instances: ['*'] }]".to_owned()),
            ("peers", format!("[{}]", west.as_peer())),
        ] {
            east.set(key, &value);
        }
        for (key, value) in [
            ("gateways", format!("[{{ name: gw-1, identities: ['{REPLICA}'] }}]")),
            (
                "imports",
                "[{ cluster: east, hosts: ['*.pxc.svc.cluster.local'], gatewayCIDRs: [10.78.0.0/16] }]"
                    .to_owned(),
            ),
            ("virtual_addresses", "{ ipv4: 240.15.0.0/16 }".to_owned()),
            ("dns", DNS.to_owned()),
            ("callers", format!("[{{ sources: [10.78.2.0/24], identity: '{REPLICA}' }}]")),
            ("peers", format!("[{}]", east.as_peer())),
        ] {
            west.set(key, &value);
        }
        register(east, [at(0), at(1), at(2)]);
        clusters.iter_mut().for_each(Cluster::start);
        let [east, west] = &clusters;
        let drain = "drain: { accept_for: 0s, window: 1s }";
        let door = Setup::new("").listeners("- { name: east-west, address: '0.0.0.0:15443' }").with(drain);
        let apps = Setup::new("").listeners(LISTENER).with(CAPTURE).with(drain);
        let setups = [managed(east, door), managed(west, apps)];
        let (east, west) = (Site::new(net.leg(EAST), &[]), Site::asking(net.leg(WEST), NOBODY));
        Ok(World { clusters, setups, east, west, net })
    }

    /// Starts both gateways, and leads the applications of west to its own.
    fn gateways(&self) -> [Gateway; 2] {
        let gateways = self.setups.each_ref().map(Setup::start);
        capture(&self.clusters[1], &gateways[1]);
        gateways
    }
}

/// Three named instances behind a door that only the replica of west may use.
fn register(east: &Cluster, instances: [SocketAddrV4; 3]) {
    let endpoint = |(place, (address, name)): (usize, (SocketAddrV4, &str))| {
        format!("  - {{ address: '{address}', instance: db-pxc-{place}, aliases: [{name}] }}\n")
    };
    let endpoints: String = instances.into_iter().zip(NAMES).enumerate().map(endpoint).collect();
    east.register(
        "db.yaml",
        &format!(
            "services:\n- host: db-pxc.pxc.svc.cluster.local\n  port: {PORT}\n  tls: terminate\n  \
             identities: ['{SOURCE}']\n  access: {{ allow: ['{REPLICA}'] }}\n  timeouts: {{ idle: 5s }}\n  \
             endpoints:\n{endpoints}"
        ),
    );
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
        let mut login = mariadb.login(Some(&world.west), name, PORT, REPLICATION);
        until("the name leads to a server", || login.output().unwrap().status.success());
        let answer = done(&mut login);
        assert!(answer.starts_with(&format!("{} {}@", place + 1, REPLICATION.0)), "{name}: {answer}");
    }
}

/// Heartbeats count as traffic, and live connections go on with the certificates that they began with and without an agent.
fn assert_nothing_ends(
    world: &mut World,
    gateways: &[Gateway; 2],
    source: &Server<'_>,
    replica: &Server<'_>,
) {
    let ended = || gateways.each_ref().map(|gateway| gateway.log().count(|_| true));
    let before = ended();
    thread::sleep(QUIET);
    add_rows(source, "after silence");
    follows(replica, source, "after a quiet time");
    for cluster in &mut world.clusters {
        cluster.stop();
        add_rows(source, "without an agent");
        follows(replica, source, "without an agent");
        cluster.start();
    }
    let ends = || gateways.each_ref().map(|gateway| issued(gateway).remove(0).not_after);
    let first = ends();
    until("both gateways use new certificates", || ends().iter().zip(&first).all(|(new, old)| new != old));
    add_rows(source, "after rotation");
    follows(replica, source, "after the rotation of certificates");
    assert_eq!(ended(), before);
}

#[test]
fn mariadb_replica_follows_its_source_through_every_change() {
    let Some(mariadb) = Mariadb::find() else { skip!("mariadbd is not installed (tests/run installs it)") };
    let mut world = match World::new() {
        Ok(world) => world,
        Err(why) => skip!("{why}"),
    };
    let options = ["--skip-name-resolve", "--slave-net-timeout=4"];
    let [one, two, three, own] = [1, 2, 3, 10].map(|number| mariadb.database(number));
    let mut source = one.start(Some(&world.east), at(0), &options);
    let others = [(&two, at(1)), (&three, at(2))]
        .map(|(database, at)| database.start(Some(&world.east), at, &options));
    let replica = own.start(Some(&world.west), SocketAddrV4::new(Star::address(WEST), PORT), &options);
    let mut gateways = world.gateways();

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

    // The source moves to another machine.
    source.stop();
    source = one.start(Some(&world.east), at(3), &options);
    register(&world.clusters[0], [at(3), at(1), at(2)]);
    add_rows(&source, "moved");
    follows(&replica, &source, "after its source has moved");

    assert_nothing_ends(&mut world, &gateways, &source, &replica);

    world.net.cut(EAST).unwrap();
    thread::sleep(CUT / 2);
    add_rows(&source, "while cut off");
    thread::sleep(CUT / 2);
    world.net.mend(EAST).unwrap();
    follows(&replica, &source, "after the link was cut");

    for (gateway, setup) in gateways.iter_mut().zip(&world.setups) {
        restart(gateway, setup);
        add_rows(&source, "after a restart");
        follows(&replica, &source, "after a gateway's restart");
    }
    let sum = "CHECKSUM TABLE shop.orders EXTENDED";
    assert_eq!(replica.ask(sum), source.ask(sum));
    let status = replica.ask("SHOW SLAVE STATUS");
    assert!(status.contains(NAMES[0]) && status.contains("\tYes\tYes\t"), "{status}");
}
