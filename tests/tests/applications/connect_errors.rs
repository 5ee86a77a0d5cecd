//! A server that blocks a host after a few connections without a login (`max_connect_errors`): neither clients that a
//! gateway refuses, nor probes, nor clients that only look whether a port is open make it block the gateway.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;

use isthmus_tests::ends::{Domains, HOST, connect, id};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::log::Line;
use isthmus_tests::netns::{Star, inside};
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::wait::until;
use isthmus_tests::{figure, skip};
use rustls::ClientConfig;

use crate::mariadb::{Mariadb, Server};
use crate::program::{Site, done, said, two_sites};

const LOGIN: (&str, &str) = ("app", "secret");
/// Connections of its own machine to it come from this address, which has a name: without one it counts no errors.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 1, 11);
const DATABASE: SocketAddr = SocketAddr::new(IpAddr::V4(ADDRESS), 3306);
/// East's door, and west's listener for it.
const DOOR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 78, 1, 1), 15_443);
const NEAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 78, 2, 1), 3306);

/// The services of the server that west probes, each once a second.
const PROBED: usize = 40;
const PROBES: f64 = 200.0;
/// The server of west that replicates it.
const REPLICA: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 78, 2, 1), 3307);

/// Makes this many connections in a namespace and closes each at once.
fn bare_connects(namespace: &str, to: SocketAddr, count: usize) {
    inside(namespace, move || (0..count).for_each(|_| drop(TcpStream::connect(to).unwrap())));
}

/// Makes this many TLS connections to the door, each of which must be refused.
fn refused(namespace: &str, config: &Arc<ClientConfig>, count: usize) {
    let config = Arc::clone(config);
    inside(namespace, move || {
        for _ in 0..count {
            let mut tls = connect(&config, DOOR.into());
            let answer = tls.write_all(b"hello").and_then(|()| tls.read(&mut [0]));
            assert!(answer.is_err(), "{answer:?}");
        }
    });
}

/// Both sites; in east the gateway and the server have names.
fn sites(net: &Star) -> [Site; 2] {
    net.adopt(1, ADDRESS).unwrap();
    let names = [format!("{} gateway.east.example", DOOR.ip()), format!("{ADDRESS} db.east.example")];
    [Site::new(net.leg(1), &names), Site::new(net.leg(2), &[])]
}

/// The gateways before the server.
fn gateways(domains: &Domains, net: &Star) -> [Gateway; 2] {
    gateways_of(domains, net, &[HOST.to_owned()], &[])
}

/// The gateways before the server's services; west's has more keys of each. Applications get the first.
fn gateways_of(domains: &Domains, net: &Star, hosts: &[String], keys: &[&str]) -> [Gateway; 2] {
    let door = SocketAddr::from(DOOR);
    let terminated = hosts.iter().map(|host| domains.terminated(host, &["app"], &[], DATABASE));
    let east = Setup::new(terminated.collect::<String>())
        .with(&domains.trust_yaml())
        .listeners(&format!("- address: \"{door}\""))
        .namespace(net.leg(1));
    let files = domains.issue("east", "app");
    let identities = format!("identities: [{}]", id("east", "server"));
    let keys = [&[identities.as_str()], keys].concat();
    let originated = hosts.iter().map(|host| service(host, &keys, &[door]));
    let west = Setup::new(originated.collect::<String>())
        .with(&domains.trust_yaml())
        .listeners(&format!(
            "- {{ address: \"{NEAR}\", side: outbound, mode: originate, service: {}, identity: {}, {files}, \
             sources: [10.78.2.0/24] }}",
            hosts[0],
            id("east", "app")
        ))
        .namespace(net.leg(2));
    [east, west].map(|setup| setup.start())
}

/// What the tests are about: a few bare connections on a direct way are enough.
fn assert_the_server_counts(mariadb: &Mariadb, server: &Server<'_>, site: &Site) {
    let login = || mariadb.login(Some(site), &ADDRESS.to_string(), DATABASE.port(), LOGIN);
    done(&mut login());
    bare_connects(site.namespace(), DATABASE, 10);
    until("the server blocks the host", || {
        said(&login().output().unwrap()).contains("is blocked because of many")
    });
    server.ask("FLUSH HOSTS");
    done(&mut login());
}

#[test]
fn mariadb_counts_no_connect_errors_of_refused_clients_and_probes() {
    let Some(mariadb) = Mariadb::find() else { skip!("mariadbd is not installed (tests/run installs it)") };
    let net = match two_sites() {
        Ok(net) => net,
        Err(why) => skip!("{why}"),
    };
    let [site_east, site_west] = sites(&net);
    let database = mariadb.database(1);
    let server = database.start(Some(&site_east), DATABASE, &["--max-connect-errors=5"]);
    let (user, password) = LOGIN;
    server.ask(&format!("CREATE USER {user} IDENTIFIED BY '{password}'"));
    assert_the_server_counts(&mariadb, &server, &site_east);

    let domains = Domains::new();
    domains.issue("east", "denied");
    let [east, west] = gateways(&domains, &net);
    let login = || done(&mut mariadb.login(Some(&site_west), &NEAR.ip().to_string(), NEAR.port(), LOGIN));
    login();

    // As envoy#9023: refused clients, and then as many probes as an agent makes in days.
    let before = server.status("Connections");
    refused(net.leg(2), &domains.anonymous(rustls::DEFAULT_VERSIONS), 50);
    refused(net.leg(2), &domains.client("east", "denied"), 50);
    refused(net.leg(2), &domains.anonymous(rustls::DEFAULT_VERSIONS), 200);
    bare_connects(net.leg(2), DOOR.into(), 200);
    let is_refusal = |line: &Line| ["tls_failed", "identity_denied"].contains(&line.reason());
    until("the refusals are logged", || east.log().count(is_refusal) == 300);
    assert_eq!(server.status("Connections"), before + 1, "only the question itself has connected");
    login();

    // As MariaDB/server#2413.
    let before = (server.status("Connections"), west.log().lines().len());
    bare_connects(net.leg(2), NEAR.into(), 50);
    until("all have ended", || west.log().lines().len() >= before.1 + 50);
    let reached = server.status("Connections") - before.0 - 1;
    figure!("of 50 bare connections through both gateways the server saw {reached}");
    login();
}

#[test]
fn mariadb_probed_200_times_accepts_its_replica() {
    let Some(mariadb) = Mariadb::find() else { skip!("mariadbd is not installed (tests/run installs it)") };
    let net = match two_sites() {
        Ok(net) => net,
        Err(why) => skip!("{why}"),
    };
    let [site_east, site_west] = sites(&net);
    let [own, other] = [1, 2].map(|number| mariadb.database(number));
    let server = own.start(Some(&site_east), DATABASE, &["--max-connect-errors=5"]);
    let (user, password) = LOGIN;
    server.ask(&format!(
        "CREATE USER {user} IDENTIFIED BY '{password}'; GRANT REPLICATION SLAVE ON *.* TO {user}"
    ));
    assert_the_server_counts(&mariadb, &server, &site_east);

    let domains = Domains::new();
    let hosts: Vec<_> = (0..PROBED).map(|number| format!("db-{number}.east.example")).collect();
    let before = server.status("Connections");
    let [_east, west] = gateways_of(&domains, &net, &hosts, &["health: { probe: tls, interval: 1s }"]);
    let probes = || west.metrics().sum("isthmus_probes_total", &["probe=\"tls\"", "result=\"answered\""]);
    until("west has probed the door", || probes() >= PROBES);
    assert_eq!(server.status("Connections"), before + 1, "only the question itself has connected");
    figure!("{} probes, none of which reached the server", probes());

    let replica = other.start(Some(&site_west), REPLICA, &[]);
    server.ask("CREATE DATABASE shop");
    replica.ask(&format!(
        "CHANGE MASTER TO MASTER_HOST='{}', MASTER_PORT={}, MASTER_USER='{user}', MASTER_PASSWORD='{password}'; START SLAVE",
        NEAR.ip(),
        NEAR.port()
    ));
    until("the replica follows", || replica.ask("SHOW DATABASES LIKE 'shop'") == "shop");
}
