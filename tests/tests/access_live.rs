//! Live connections after a change of rules, of callers' addresses or of trust: those that would be refused by now are
//! closed, and no others.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use isthmus_tests::audit::Audit;
use isthmus_tests::client::{End, dial, dial_from, echo, rest};
use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::ends::{Domains, HOST, connect, id};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::log::Line;
use isthmus_tests::setup::{Setup, service};
use isthmus_tests::tls::ClientStream;
use isthmus_tests::wait::{DEADLINE, throughout, until, within};

/// Longer than a check after a change waits.
const A_WHILE: Duration = Duration::from_secs(3);

/// A plaintext service that echoes until its client closes.
fn echoing() -> Scripted {
    Scripted::unread(|mut stream| {
        let _gone = stream.try_clone().and_then(|mut from| io::copy(&mut from, &mut stream));
    })
}

/// The same, and it keeps its side open for a while.
fn staying() -> Scripted {
    Scripted::unread(|mut stream| {
        let _gone = stream.try_clone().and_then(|mut from| io::copy(&mut from, &mut stream));
        thread::sleep(DEADLINE);
    })
}

fn tls_echo(tls: &mut ClientStream) {
    tls.write_all(b"ping").unwrap();
    let mut got = [0; 4];
    tls.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
}

/// The line of a client whose connection was closed, which saw a reset.
#[track_caller]
fn closed(gateway: &Gateway, tls: &mut ClientStream) -> Line {
    let peer = tls.sock.local_addr().unwrap();
    assert_eq!(rest(&mut tls.sock).1, End::Reset);
    gateway.log().line_of(peer)
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Sends blocks and expects each back, until stopped; returns how many.
fn blocks(mut tls: ClientStream, stop: &AtomicBool) -> usize {
    let mut blocks = 0;
    while !stop.load(Relaxed) {
        let block = vec![u8::try_from(blocks % 251).unwrap(); 64 * 1024];
        let mut got = vec![0; block.len()];
        tls.write_all(&block).unwrap();
        tls.read_exact(&mut got).unwrap();
        assert!(got == block, "block {blocks} came back changed");
        blocks += 1;
    }
    blocks
}

fn is_denied(line: &Line, peer: SocketAddr) -> bool {
    line.text("verdict") == "denied" && line.text("source") == peer.to_string()
}

/// ztunnel#772: one caller idle, half-closed and in its handshake, and another one in a transfer.
#[test]
fn access_recheck_closes_every_connection_of_the_denied_and_no_other() {
    let domains = Domains::new();
    for name in ["a", "b"] {
        domains.issue("east", name);
    }
    let (audit, backend) = (Audit::new(), staying());
    let east = domains.terminating(&["a", "b"], backend.address()).with(&audit.yaml()).start();
    let b = domains.client("east", "b");
    let mut idle = connect(&b, east.address());
    tls_echo(&mut idle);
    let mut half_closed = connect(&b, east.address());
    tls_echo(&mut half_closed);
    half_closed.conn.send_close_notify();
    half_closed.flush().unwrap();
    // Its ClientHello is there; its certificate comes after the change. It has no session to resume.
    let mut shaking = connect(&domains.client("east", "b"), east.address());
    shaking.conn.write_tls(&mut shaking.sock).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Also if an assertion fails.
        let _stop = Stop(&stop);
        let transfer = scope.spawn(|| blocks(connect(&domains.client("east", "a"), east.address()), &stop));
        east.edit(&id("east", "b"), &id("east", "c"));
        let peers = [&idle, &half_closed].map(|tls| tls.sock.local_addr().unwrap());
        for tls in [&mut idle, &mut half_closed] {
            let line = closed(&east, tls);
            assert_eq!(
                (line.reason(), line.text("caller")),
                ("identity_denied", &*id("east", "b")),
                "{line:?}"
            );
        }
        let peer = shaking.sock.local_addr().unwrap();
        let seen = shaking.write_all(b"x").and_then(|()| shaking.read(&mut [0])).unwrap_err().to_string();
        assert!(seen.contains("AccessDenied"), "{seen}");
        assert_eq!(east.log().line_of(peer).reason(), "identity_denied");
        for peer in peers.into_iter().chain([peer]) {
            let line = audit.wait("the end of each", |line| is_denied(line, peer));
            assert_eq!(
                (line.reason(), line.text("caller")),
                ("identity_denied", &*id("east", "b")),
                "{line:?}"
            );
        }
        stop.store(true, Relaxed);
        assert!(transfer.join().unwrap() > 0);
    });
    assert!(
        !audit
            .lines()
            .iter()
            .any(|line| { line.text("verdict") == "denied" && line.text("caller") == id("east", "a") })
    );
}

/// A removed bundle and a deny-list entry close connections, an expired certificate does not.
#[test]
fn access_recheck_ends_with_trust_and_not_with_time() {
    let domains = Domains::new();
    for (domain, name) in [("east", "denied"), ("west", "app")] {
        domains.issue(domain, name);
    }
    domains.issue_for("east", "late", Duration::from_secs(4));
    let (audit, backend) = (Audit::new(), echoing());
    let files = domains.issue("east", "server").replace(", key", "\n  key");
    let rules = "access: { allow: [{ trust_domains: [east.example, west.example] }] }";
    let services = service(HOST, &["tls: terminate", &files, rules], &[backend.address()]);
    let east = Setup::new(services).with(&domains.trust_yaml()).with(&audit.yaml()).start();
    let open = |domain: &str, name: &str| {
        let mut tls = connect(&domains.client(domain, name), east.address());
        tls_echo(&mut tls);
        tls
    };
    let (mut denied, mut west, mut late) =
        (open("east", "denied"), open("west", "app"), open("east", "late"));
    domains.deny("east", "denied");
    let peer = denied.sock.local_addr().unwrap();
    assert_eq!(closed(&east, &mut denied).reason(), "identity_denied");
    let line = audit.wait("the denied one", |line| is_denied(line, peer));
    assert!(line.text("cause").contains("deny-list"), "{line:?}");
    tls_echo(&mut west);
    thread::sleep(Duration::from_secs(4));
    domains.distrust("west");
    let peer = west.sock.local_addr().unwrap();
    assert_eq!(closed(&east, &mut west).reason(), "identity_denied");
    let line = audit.wait("the one without a bundle", |line| is_denied(line, peer));
    assert!(line.text("cause").contains("without a bundle"), "{line:?}");
    throughout(A_WHILE, "the connection whose certificate has expired lives", || {
        tls_echo(&mut late);
        true
    });
    let mut resumed = connect(&domains.client("east", "late"), east.address());
    resumed.write_all(b"x").and_then(|()| resumed.read(&mut [0])).expect_err("it has expired");
}

/// Also where the application has not spoken yet.
#[test]
fn access_recheck_ends_connections_of_an_address_with_another_identity() {
    let domains = Domains::new();
    let backend = echoing();
    let east = domains.terminating(&["one", "two"], backend.address()).start();
    let caller = |name: &str, sources: &str| {
        format!("{{ sources: [{sources}], identity: {}, {} }}", id("east", name), domains.issue("east", name))
    };
    let callers = [caller("one", "127.1.2.3"), caller("two", "127.1.2.4")].join(", ");
    let identities = format!("identities: [{}]", id("east", "server"));
    let audit = Audit::new();
    let west = Setup::new(service(HOST, &[&identities], &[east.address()]))
        .with(&domains.trust_yaml())
        .with(&audit.yaml())
        .listeners(&format!(
            "- {{ address: \"ADDRESS\", side: outbound, mode: originate, service: {HOST}, callers: [{callers}] }}"
        ))
        .start();
    let from = |source: &str| dial_from(source.parse().unwrap(), west.address());
    let (mut silent, mut speaking, mut other) = (from("127.1.2.3"), from("127.1.2.3"), from("127.1.2.4"));
    echo(&mut speaking, b"one");
    echo(&mut other, b"two");
    audit.wait("the silent one", |line| {
        line.text("source") == silent.local_addr().unwrap().to_string()
            && line.text("server") == id("east", "server")
    });
    west.edit("127.1.2.3", "127.1.2.5");
    for app in [&mut silent, &mut speaking] {
        assert_eq!(rest(app), (Vec::new(), End::Reset));
        let peer = app.local_addr().unwrap();
        assert_eq!(west.log().line_of(peer).reason(), "identity_denied");
        let line = audit.wait("the reason", |line| is_denied(line, peer));
        assert!(line.text("cause").contains("has no identity any more"), "{line:?}");
    }
    echo(&mut other, b"still two");
    domains.deny("east", "server");
    assert_eq!(rest(&mut other).1, End::Reset, "its server is not trusted any more");
}

/// What the agent passes on: rules of a registry file and of the agent's own, which are edited while connections live
/// (linkerd2#15548).
#[test]
fn access_of_the_agent_is_enforced_for_new_and_live_connections() {
    let backend = Scripted::echo(b"....");
    let mut cluster = Cluster::new("east");
    let host = "a.shop.svc.cluster.local";
    let file = |rules: &str| {
        format!(
            "services: [{{ host: {host}, client_certificate: none, access: {rules}, endpoints: [{{ address: '{}' }}] }}]",
            backend.address()
        )
    };
    let opened = "[{ name: shop, access: { allow: [{ name: ours, sources: [127.0.9.0/24] }] } }]";
    cluster.set("namespaces", opened);
    cluster.register("a.yaml", &file("{ deny: [{ name: bad, sources: [127.0.9.9] }] }"));
    cluster.start();
    let gateway = cluster.gateway("gw-1");
    let open = |last: u8| {
        let mut stream = dial_from([127, 0, 9, last].into(), outbound(&gateway));
        stream.write_all(&hello(host)).unwrap();
        let mut got = [0; 4];
        stream.read_exact(&mut got).ok().filter(|()| &got == b"....").map(|()| stream)
    };
    until("the service is known", || open(1).is_some());
    assert!(open(9).is_none(), "by the service's rule");
    assert!({
        let mut other = dial(outbound(&gateway));
        other.write_all(&hello(host)).unwrap();
        rest(&mut other).0 == isthmus_tests::client::alert(49)
    });
    let (mut one, mut two) = (open(1).unwrap(), open(2).unwrap());
    let decision =
        |last: u8| gateway.admin("GET", &format!("/explain?sni={host}&from=127.0.9.{last}")).json();
    assert_eq!(decision(9)["decision"]["rule"]["name"], "bad");
    let page = decision(1);
    assert_eq!(
        (&page["decision"]["rule"]["of"], &page["decision"]["rule"]["name"]),
        (&"shop".into(), &"ours".into())
    );

    cluster.register("a.yaml", &file("{ deny: [{ sources: [127.0.9.1, 127.0.9.9] }] }"));
    assert_eq!(rest(&mut one).1, End::Reset);
    assert_eq!(gateway.log().line_of(one.local_addr().unwrap()).reason(), "source_denied");
    echo(&mut two, b"....");
    // Deleting what the rule names denies at once, without a restart of the gateway.
    cluster.set("namespaces", &opened.replace("127.0.9.0/24", "127.0.8.0/24"));
    cluster.stop();
    cluster.start();
    assert_eq!(rest(&mut two).1, End::Reset);
    assert!(open(2).is_none());
    let asked = cluster.ask(&format!("/explain?host={host}&from=127.0.8.1"));
    assert_eq!(asked["access"][0]["verdict"], "allowed", "{asked}");
    assert_eq!(
        cluster.ask(&format!("/explain?host={host}&from=127.0.9.2"))["access"][0]["verdict"],
        "denied"
    );
}

/// Rules that nobody could enforce close a service, and are named.
#[test]
fn access_of_the_agent_that_cannot_be_enforced_admits_nobody() {
    let backend = Scripted::echo(b"....");
    let mut cluster = Cluster::new("east");
    cluster.set("access", "{ deny: [spiffe://east.example/ns/a/sa/b] }");
    cluster.register(
        "a.yaml",
        &format!("services: [{{ host: a.example, endpoints: [{{ address: '{}' }}] }}]", backend.address()),
    );
    cluster.start();
    let gateway = cluster.gateway("gw-1");
    until("the service is refused to everybody", || {
        let mut stream = dial(outbound(&gateway));
        stream.write_all(&hello("a.example")).unwrap();
        rest(&mut stream).0 == isthmus_tests::client::alert(49)
    });
    let problems = cluster.ask("/status")["registry"]["problems"].to_string();
    assert!(problems.contains("a.example:443: nobody may connect"), "{problems}");
    assert!(problems.contains("advisory: true"), "{problems}");
}

/// The audit log is opened again after a rotation.
#[test]
fn access_audit_log_survives_its_rotation() {
    let backend = Scripted::echo(b"....");
    let audit = Audit::new();
    let rules = "access: { deny: [{ name: bad, sources: [127.0.9.9] }] }";
    let gateway = Setup::new(service(HOST, &[rules], &[backend.address()])).with(&audit.yaml()).start();
    let refused = || {
        let mut stream = dial_from([127, 0, 9, 9].into(), gateway.address());
        stream.write_all(&hello(HOST)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let _alert = rest(&mut stream);
        stream.local_addr().unwrap()
    };
    let first = refused();
    audit.wait("the first", |line| is_denied(line, first));
    std::fs::rename(audit.path(), audit.path().with_extension("1")).unwrap();
    let second = refused();
    audit.wait("the second", |line| is_denied(line, second));
    assert_eq!(audit.lines().len(), 1);
    assert!(within(A_WHILE, || gateway.metrics().sum("isthmus_audit_log_dropped_total", &[]) == 0.0));
}
