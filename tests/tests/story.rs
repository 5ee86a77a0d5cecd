//! The whole story: two clusters in network namespaces, each with an agent and a gateway. In west an unchanged `curl` calls
//! a service of east by its own name; neither speaks TLS, and the service learns who calls. Requires root, `nft` and `curl`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Output};
use std::sync::Arc;

use isthmus_certs::{Peer, Server, Trust, peer_id};
use isthmus_tests::cluster::Cluster;
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::gateway::Gateway;
use isthmus_tests::netns::{Star, inside, ip};
use isthmus_tests::setup::Setup;
use isthmus_tests::sidecarless::{
    CAPTURE, DNS, LISTENER, capture, cluster, issued, managed, requirements, route,
};
use isthmus_tests::wait::{until, until_some};
use isthmus_tests::workload::files;
use isthmus_tests::{is_root, skip};
use rustls::{ServerConnection, StreamOwned};

const EAST: usize = 1;
const WEST: usize = 2;
const WEB: &str = "spiffe://west.example/ns/shop/sa/web";
const OTHER: &str = "spiffe://west.example/ns/shop/sa/other";
const PAGE: &str = "spiffe://east.example/ns/bookinfo/sa/productpage";
const REVIEWS: &str = "reviews.bookinfo.svc.cluster.local";
/// Addresses of west's machine: of the application that may call, of one that may not, and of one that nobody knows.
const APPS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 78, 2, 1), Ipv4Addr::new(10, 78, 2, 2), Ipv4Addr::new(10, 78, 2, 3)];
/// TLV of PROXY v2 with the SPIFFE ID.
const IDENTITY_TLV: u8 = 0xd0;

struct World {
    star: Star,
    east: Cluster,
    west: Cluster,
    page: Scripted,
    reviews: Scripted,
    east_gateway: Gateway,
    west_gateway: Gateway,
}

/// A service that speaks plain HTTP and answers with the identity in the PROXY header.
fn productpage(namespace: &str) -> Scripted {
    let endpoint = inside(namespace, || Endpoint::at(SocketAddr::from((Star::address(EAST), 9_080))));
    Scripted::unread_at(endpoint, |mut stream| {
        let mut head = [0; 16];
        if stream.read_exact(&mut head).is_err() {
            return;
        }
        let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
        if stream.read_exact(&mut rest).is_ok() {
            let addresses = if head[13] == 0x11 { 12 } else { 36 };
            answer(&mut stream, &identity(&rest[addresses..]));
        }
    })
}

fn identity(mut tlvs: &[u8]) -> String {
    while let [kind, high, low, rest @ ..] = tlvs {
        let (value, others) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        if *kind == IDENTITY_TLV {
            return String::from_utf8(value.to_vec()).unwrap();
        }
        tlvs = others;
    }
    "nobody".to_owned()
}

fn answer(stream: &mut (impl Read + Write), caller: &str) {
    let mut lines = BufReader::new(&mut *stream).lines();
    if lines.by_ref().any(|line| line.is_ok_and(|line| line.is_empty())) {
        let body = format!("hello {caller}\n");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let _gone = stream.write_all((head + &body).as_bytes());
    }
}

/// A service that speaks HTTPS and requires a client certificate.
fn reviews(east: &Cluster) -> Scripted {
    let issued = east
        .certs(&["issue", "--spiffe", "spiffe://east.example/ns/bookinfo/sa/reviews", "--name", "reviews"])
        .args(["--dns", REVIEWS])
        .output()
        .unwrap();
    assert!(issued.status.success(), "{issued:?}");
    let trust = Trust::load(&files(east, "reviews")).unwrap();
    let config = Server::new(trust, Peer::Trusted, &[]).unwrap().config();
    let at = SocketAddr::from((Star::address(EAST), 9_443));
    let endpoint = inside(east.namespace().unwrap(), move || Endpoint::at(at));
    Scripted::unread_at(endpoint, move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        if tls.conn.complete_io(&mut tls.sock).is_ok() {
            let caller = tls.conn.peer_certificates().and_then(|chain| peer_id(chain).ok());
            answer(&mut tls, &caller.map_or_else(|| "nobody".to_owned(), |id| id.to_string()));
            tls.conn.send_close_notify();
            let _gone = tls.flush();
        }
    })
}

fn world() -> Result<World, String> {
    if !is_root() {
        return Err("requires root".to_owned());
    }
    requirements(&["curl"])?;
    let star = Star::new(2)?;
    for other in &APPS[1..] {
        star.adopt(WEST, *other)?;
    }
    route(&star, WEST, EAST)?;
    ip(&format!("-n {} -6 addr add fd00:78::2/64 dev veth0 nodad", star.leg(WEST)))?;
    ip(&format!("-n {} -6 route add default via fd00:78::1 dev veth0", star.leg(WEST)))?;
    let (mut east, mut west) = (cluster("east", (&star, EAST), "1h"), cluster("west", (&star, WEST), "1h"));
    east.trust_cluster(&west);
    west.trust_cluster(&east);
    let reviews = reviews(&east);
    for (key, value) in [
        ("gateways", format!("[{{ name: gw-1, address: {}, identities: ['{PAGE}'] }}]", Star::address(EAST))),
        ("exports", "[{ workspace: ['*/bookinfo'] }]".to_owned()),
        ("peers", format!("[{}]", west.as_peer())),
    ] {
        east.set(key, &value);
    }
    let [web, other, _] = APPS;
    for (key, value) in [
        ("gateways", "[{ name: gw-1, identities: ['spiffe://west.example/ns/shop/*'] }]".to_owned()),
        ("exports", "[{ workspace: ['*/bookinfo'] }]".to_owned()),
        ("imports", "[{ cluster: east, hosts: ['*.bookinfo'], gatewayCIDRs: [10.78.0.0/16] }]".to_owned()),
        ("virtual_addresses", "{ ipv4: 240.15.0.0/16, ipv6: 'fd00:15::/64' }".to_owned()),
        ("dns", DNS.to_owned()),
        (
            "callers",
            format!(
                "[{{ sources: [{web}/32, 'fd00:78::2/128'], identity: {WEB} }}, {{ sources: [{other}/32], identity: {OTHER} }}]"
            ),
        ),
        ("peers", format!("[{}]", east.as_peer())),
    ] {
        west.set(key, &value);
    }
    east.register("bookinfo.yaml", &registry());
    east.start();
    west.start();
    let east_gateway =
        managed(&east, Setup::new("").listeners("- { name: east-west, address: '0.0.0.0:15443' }")).start();
    let listeners = format!("- {{ name: tls, address: '0.0.0.0:15444', side: outbound }}\n{LISTENER}");
    let west_gateway = managed(&west, Setup::new("").listeners(&listeners).with(CAPTURE)).start();
    let page = productpage(star.leg(EAST));
    Ok(World { star, east, west, page, reviews, east_gateway, west_gateway })
}

fn registry() -> String {
    let at = Star::address(EAST);
    format!(
        "services:\n\
         - host: productpage.bookinfo.svc.cluster.local\n  port: 9080\n  tls: terminate\n  aliases: [productpage.bookinfo]\n  proxy_protocol: v2\n  \
           identities: ['{PAGE}']\n  access: {{ allow: ['{WEB}'] }}\n  endpoints: [{{ address: '{at}:9080' }}]\n\
         - host: {REVIEWS}\n  port: 443\n  endpoints: [{{ address: '{at}:9443' }}]\n"
    )
}

impl World {
    /// Runs a command on west's machine, which asks a name server that is not there.
    fn on_west(&self, command: &str) -> Output {
        let names = self.west.path("resolv.conf");
        fs::write(&names, format!("nameserver {}\noptions timeout:1\n", Star::address(EAST))).unwrap();
        let script = format!(
            "mount --make-rprivate / && mount --bind {} /etc/resolv.conf && {command}",
            names.display()
        );
        let mut all = Command::new("nsenter");
        all.arg(format!("--net=/run/netns/{}", self.star.leg(WEST)));
        all.args(["unshare", "--mount", "sh", "-c", &script]).output().unwrap()
    }

    fn curl(&self, words: &str) -> (bool, String) {
        let output = self.on_west(&format!("curl --silent --show-error --max-time 20 {words}"));
        let texts = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(texts).unwrap())
    }
}

#[test]
fn story_plain_application_calls_a_plain_service_of_another_cluster_by_its_own_name() {
    let world = match world() {
        Ok(world) => world,
        Err(why) => skip!("{why}"),
    };
    capture(&world.west, &world.west_gateway);
    let url = "http://productpage.bookinfo:9080/";
    until_some("an unchanged curl is answered", || {
        let (is_served, said) = world.curl(url);
        (is_served && said == format!("hello {WEB}\n")).then_some(())
    });
    // Both families lead there, by every name that the service has.
    for words in [
        format!("-4 --interface {} {url}", APPS[0]),
        format!("-6 {url}"),
        "http://productpage.bookinfo.svc.cluster.local:9080/".to_owned(),
    ] {
        assert_eq!(world.curl(&words), (true, format!("hello {WEB}\n")), "{words}");
    }
    // Before the gateway had its certificates, it refused.
    world
        .west_gateway
        .log()
        .wait("the call in west", |line| line.text("caller") == WEB && line.text("server_identity") == PAGE);
    let line = world.east_gateway.log().wait("the call in east", |line| line.text("caller") == WEB);
    assert_eq!(line.text("sni"), "outbound_.9080_._.productpage.bookinfo.svc.cluster.local", "{line:?}");

    // Who may not call, and who is not known, get nothing, and the service sees neither.
    let accepted = world.page.accepted();
    for app in &APPS[1..] {
        let (is_served, said) = world.curl(&format!("-4 --interface {app} {url}"));
        assert!(!is_served && said.contains("reset"), "{app}: {said}");
        let line = world.west_gateway.log().wait("the refusal", |line| {
            line.peer().is_some_and(|peer| peer.ip().to_canonical() == IpAddr::from(*app))
        });
        assert_eq!(line.reason(), "identity_denied", "{line:?}");
    }
    assert_eq!(world.page.accepted(), accepted);

    // A client that speaks mTLS itself passes through by the same tables.
    let pki = world.west.path("pki/leaves/client").display().to_string();
    let root = world.east.path("pki/roots/1/root-cert.pem");
    let words = format!(
        "--cert {pki}/tls.crt --key {pki}/tls.key --cacert {} --connect-to ::127.0.0.1:15444 https://{REVIEWS}/",
        root.display()
    );
    until_some("curl reaches the mTLS service", || {
        let (is_served, said) = world.curl(&words);
        (is_served && said == "hello spiffe://west.example/ns/bookinfo/sa/client\n").then_some(())
    });
    assert!(world.reviews.accepted() > 0);
    until("both gateways have all certificates", || {
        [&world.east_gateway, &world.west_gateway]
            .iter()
            .all(|gateway| issued(gateway).iter().all(|one| one.problem.is_none()))
    });
}
