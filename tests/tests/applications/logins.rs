//! Logins at MariaDB: by a plugin that signs a challenge, as on a direct connection, and behind a PROXY header, with the
//! address of the client's gateway.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};

use isthmus_tests::client::dial;
use isthmus_tests::endpoint::free;
use isthmus_tests::ends::Domains;
use isthmus_tests::setup::Setup;
use isthmus_tests::skip;
use isthmus_tests::wait::until;

use crate::Way;
use crate::mariadb::{Mariadb, has_plugin};
use crate::program::{done, said};

/// As proxysql#5985, with the challenge that MariaDB has.
#[test]
fn mariadb_login_by_ed25519_is_as_on_a_direct_connection() {
    let Some(mariadb) = Mariadb::find() else { skip!("mariadbd is not installed (tests/run installs it)") };
    if !has_plugin("auth_ed25519.so") {
        skip!("MariaDB has no plugin auth_ed25519 (tests/run installs it)");
    }
    let (database, address) = (mariadb.database(1), free());
    let server = database.start(None, address, &["--plugin-load-add=auth_ed25519"]);
    server.ask("CREATE USER fresh IDENTIFIED VIA ed25519 USING PASSWORD('right'); GRANT REPLICATION SLAVE ON *.* TO fresh");
    let domains = Domains::new();
    let way = Way::to(&domains, address);
    let at = |port: u16, password: &str| {
        let output = mariadb.login(None, "127.0.0.1", port, ("fresh", password)).output().unwrap();
        (output.status.code(), said(&output))
    };
    for (password, is_right) in [("right", true), ("wrong", false), ("", false), ("right", true)] {
        let direct = at(address.port(), password);
        assert_eq!(
            (direct.0, direct.1.contains("ERROR 1045")),
            (Some(i32::from(!is_right)), !is_right),
            "{direct:?}"
        );
        assert_eq!(at(way.address().port(), password), direct, "{password}");
    }
}

/// As percona-server#4237: the header comes although the client waits for the server. That a client's own header stays
/// data is shown in `ends.rs`; MariaDB takes such data for a second header.
#[test]
fn mariadb_behind_a_proxy_header_sees_the_clients_gateway() {
    let Some(mariadb) = Mariadb::find() else { skip!("mariadbd is not installed (tests/run installs it)") };
    let site: IpAddr = Ipv4Addr::new(127, 0, 7, 7).into();
    let (database, address) = (mariadb.database(1), free());
    let server =
        database.start(None, address, &["--skip-name-resolve", "--proxy-protocol-networks=127.0.0.1"]);
    server.ask("CREATE USER app IDENTIFIED BY 'secret'");
    let domains = Domains::new();
    let terminated = domains.terminated("db.example", &["app"], &["proxy_protocol: v2"], address);
    let east = Setup::new(terminated).with(&domains.trust_yaml()).start();
    let west = domains
        .originating("app", &[east.address()])
        .with(&format!("upstream: {{ source_addresses: [{site}] }}"))
        .start();
    let login = || done(&mut mariadb.login(None, "127.0.0.1", west.address().port(), ("app", "secret")));
    assert_eq!(login(), format!("1 app@{site}"));

    // A silent client gets the greeting, and has its gateway's address before it says a word.
    let mut client = dial(west.address());
    let mut greeting = [0; 5];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting[3..], [0, 10], "sequence 0, protocol 10");
    until("the silent client is listed", || {
        let list =
            server.ask("SELECT HOST FROM information_schema.PROCESSLIST WHERE USER = 'unauthenticated user'");
        list.starts_with(&format!("{site}:"))
    });
    drop(client);
    assert_eq!(login(), format!("1 app@{site}"));
    let line = east.log().wait("the login", |line| line.text("peer").starts_with(&site.to_string()));
    assert_eq!(line.text("sni"), "db.example");
}
