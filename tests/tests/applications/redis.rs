//! A Redis replica behind the gateways of its site: it resynchronises in part after a gateway's restart, Sentinel knows it
//! by the address that it announces, and a failover changes the direction.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use isthmus_tests::endpoint::free;
use isthmus_tests::ends::{Domains, id};
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::skip;
use isthmus_tests::wait::until;
use tempfile::TempDir;

use crate::program::{Program, command, done, find};

/// A running Redis or Sentinel.
struct Redis {
    address: SocketAddr,
    _program: Program,
    _folder: TempDir,
}

impl Redis {
    /// Starts a server at an address with more lines of configuration.
    fn start(address: SocketAddr, arguments: &[&str], lines: &str) -> Redis {
        let folder = tempfile::Builder::new().prefix("isthmus-redis-").tempdir().unwrap();
        let file = folder.path().join("redis.conf");
        let common = format!("bind 127.0.0.1\nport {}\ndir {}\n", address.port(), folder.path().display());
        fs::write(&file, common + lines).unwrap();
        let mut run = command("redis-server");
        let mut program = Program::start(run.arg(&file).args(arguments), &folder.path().join("log"));
        until("Redis answers", || {
            program.assert_runs();
            let answer = cli(address, &["PING"]).output().unwrap();
            answer.stdout.starts_with(b"PONG")
        });
        Redis { address, _program: program, _folder: folder }
    }

    #[track_caller]
    fn ask(&self, words: &[&str]) -> String {
        done(&mut cli(self.address, words))
    }

    /// A field of `INFO`; empty while a change of its role closes connections.
    fn info(&self, field: &str) -> String {
        let output = cli(self.address, &["INFO"]).output().unwrap();
        let all = String::from_utf8_lossy(&output.stdout);
        let value =
            all.lines().find_map(|line| line.trim().strip_prefix(&format!("{field}:")).map(str::to_owned));
        value.unwrap_or_default()
    }
}

fn cli(address: SocketAddr, words: &[&str]) -> Command {
    let mut command = command("redis-cli");
    command.args(["-h", "127.0.0.1", "-p", &address.port().to_string()]).args(words);
    command
}

/// The gateway of a site: a door before its own server, and a listener for the other site's.
fn gateway(
    domains: &Domains,
    own: (&str, SocketAddr),
    other: (&str, SocketAddr),
    [door, listener]: [SocketAddr; 2],
) -> Setup {
    let (own_host, server) = own;
    let (other_host, other_door) = other;
    let identities = format!("identities: [{}]", id("east", "server"));
    let services = [
        domains.terminated(own_host, &["redis"], &[], server),
        service(other_host, &[&identities], &[other_door]),
    ];
    Setup::new(services.concat())
        .with(&domains.trust_yaml())
        .with("drain: { accept_for: 0s, window: 1s }")
        .listeners(&format!(
            "- {{ name: door, address: \"{door}\" }}\n\
             - {{ name: redis, address: \"{listener}\", side: outbound, mode: originate, service: {other_host}, \
             identity: {}, {} }}",
            id("east", "redis"),
            domains.files("east", "redis")
        ))
}

/// As redis#107 of OT-CONTAINER-KIT.
#[test]
fn redis_replica_resynchronises_in_part_and_takes_over() {
    if ["redis-server", "redis-cli"].into_iter().any(|program| find(program).is_none()) {
        skip!("redis-server is not installed (tests/run installs it)");
    }
    let domains = Domains::new();
    domains.issue("east", "redis");
    let [one, two, door_east, door_west, to_two, to_one] = [(); 6].map(|()| free());
    let east =
        gateway(&domains, ("redis-0.example", one), ("redis-1.example", door_west), [door_east, to_two]);
    let west =
        gateway(&domains, ("redis-1.example", two), ("redis-0.example", door_east), [door_west, to_one]);
    let (_gateway_east, mut gateway_west) = (east.start(), west.start());

    let announced = to_two.port();
    let source = Redis::start(one, &[], "repl-diskless-sync-delay 0\n");
    let replica = Redis::start(
        two,
        &[],
        &format!(
            "repl-diskless-sync-delay 0\nreplicaof 127.0.0.1 {}\nreplica-announce-ip 127.0.0.1\nreplica-announce-port {announced}\n",
            to_one.port()
        ),
    );
    until("the replica is in sync", || replica.info("master_link_status") == "up");
    source.ask(&["SET", "first", "1"]);
    until("a key arrives", || replica.ask(&["GET", "first"]) == "1");

    gateway_west.signal(rustix::process::Signal::TERM);
    assert!(gateway_west.wait_end().success());
    source.ask(&["SET", "second", "2"]);
    let _gateway_west = west.start();
    until("the replica catches up", || replica.ask(&["GET", "second"]) == "2");
    let synchronised = ["sync_full", "sync_partial_ok"].map(|field| source.info(field));
    assert_eq!(synchronised, ["1", "1"], "in part, not anew");

    let sentinel = Redis::start(
        free(),
        &["--sentinel"],
        &format!(
            "sentinel monitor cache 127.0.0.1 {} 1\nsentinel down-after-milliseconds cache 1000\n\
         sentinel failover-timeout cache 5000\n",
            one.port()
        ),
    );
    let listed = || sentinel.ask(&["SENTINEL", "REPLICAS", "cache"]);
    until("Sentinel lists the replica by the address that it announces", || {
        listed().contains(&format!("127.0.0.1:{announced}"))
            && !listed().contains(&format!(":{}\n", two.port()))
    });
    until("Sentinel accepts a failover", || sentinel.ask(&["SENTINEL", "FAILOVER", "cache"]) == "OK");
    until("the replica is the source", || replica.info("role") == "master");
    until("the old source follows it", || {
        source.info("role") == "slave" && source.info("master_link_status") == "up"
    });
    assert_eq!(source.info("master_port"), announced.to_string());
    replica.ask(&["SET", "third", "3"]);
    until("a key goes the other way", || source.ask(&["GET", "third"]) == "3");
}
