//! Tests endpoints with host names against a real DNS server whose zone changes, disappears, and returns bad
//! addresses.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic anywhere")]

mod common;

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use common::{Answer, Client, World, backend, connect, head, hello, open, served_by, until};
use hickory_server::Server;
use hickory_server::proto::op::{Message, MessageType, ResponseCode};
use hickory_server::proto::rr::rdata::{A, AAAA, CNAME, SOA};
use hickory_server::proto::rr::{Name, RData, Record, RecordType, RrKey};
use hickory_server::store::in_memory::InMemoryZoneHandler;
use hickory_server::zone_handler::{AxfrPolicy, Catalog, ZoneHandler, ZoneType};
use isthmus_core::control::Answer as Known;
use isthmus_core::reason::Reason;
use isthmus_core::snapshot::Service;
use tempfile::TempDir;
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

/// A DNS server for `.test` on UDP and TCP; it stops when dropped.
struct Dns {
    address: SocketAddr,
    zone: Arc<InMemoryZoneHandler>,
    runtime: Runtime,
    thread: Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
}

impl Dns {
    fn start() -> Dns {
        let zone = InMemoryZoneHandler::empty(name("test"), ZoneType::Primary, AxfrPolicy::Deny);
        let zone = Arc::new(zone);
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let mut catalog = Catalog::new();
        catalog.upsert(name("test").into(), vec![Arc::clone(&zone) as Arc<dyn ZoneHandler>]);
        let thread = thread::spawn(move || {
            runtime().block_on(async move {
                let (udp, tcp) = sockets().await;
                let address = udp.local_addr().unwrap();
                let mut server = Server::new(catalog);
                server.register_socket(udp);
                server.register_listener(tcp, Duration::from_secs(5), 64);
                tell.send(address).unwrap();
                let _stopped = stopped.await;
            });
        });
        let dns =
            Dns { address: told.recv().unwrap(), zone, runtime: runtime(), thread: Some((stop, thread)) };
        let soa = SOA::new(name("ns.test"), name("root.test"), 1, 60, 60, 60, 1);
        dns.set("test", RecordType::SOA, 1, [RData::SOA(soa)]);
        dns
    }

    /// Replaces the records of `of` and `kind`.
    fn set(&self, of: &str, kind: RecordType, ttl: u32, data: impl IntoIterator<Item = RData>) {
        self.runtime.block_on(async {
            self.zone.records_mut().await.remove(&RrKey::new(name(of).into(), kind));
            for data in data {
                assert!(self.zone.upsert(Record::from_rdata(name(of), ttl, data), 1).await);
            }
        });
    }

    fn set_a<const N: usize>(&self, of: &str, ttl: u32, addresses: [[u8; 4]; N]) {
        self.set(of, RecordType::A, ttl, addresses.map(|address| RData::A(A(Ipv4Addr::from(address)))));
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            thread.join().unwrap();
        }
    }
}

/// How a half-broken server treats AAAA queries.
#[derive(Clone, Copy)]
enum Aaaa {
    Silence,
    ServFail,
}

/// Answers every A query with 127.0.0.2 and a TTL of a second. It runs until the test process ends.
fn half_broken(aaaa: Aaaa) -> SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, asker)) = socket.recv_from(&mut question) {
            let Ok(mut message) = Message::from_vec(&question[..length]) else { continue };
            let query = message.queries[0].clone();
            message.metadata.message_type = MessageType::Response;
            message.additionals.clear();
            message.edns = None;
            match (query.query_type(), aaaa) {
                (RecordType::A, _) => {
                    let data = RData::A(A(TWO.into()));
                    message.answers.push(Record::from_rdata(query.name().clone(), 1, data));
                }
                (_, Aaaa::ServFail) => message.metadata.response_code = ResponseCode::ServFail,
                (_, Aaaa::Silence) => continue,
            }
            let _sent = socket.send_to(&message.to_vec().unwrap(), asker);
        }
    });
    address
}

/// Checks that the name resolves by its A record, keeps doing so, and that status reports the missing family.
fn resolves_by_its_a(aaaa: Aaaa) {
    let port = backends([TWO]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.yaml");
    let service = format!("- {{host: a.test, endpoints: [{{address: 'db.test:{port}'}}]}}");
    let servers = format!("dns: {{servers: ['{}'], min_ttl: 1s}}", half_broken(aaaa));
    fs::write(&file, format!("{}{servers}\nservices:\n{service}\n", head())).unwrap();
    let world = World::start(&file);
    until("the name is resolved", || addresses(&world) == [ip(TWO)]);
    assert_eq!(served_by(world.address(), &hello("a.test")), Some((TWO, port).into()));
    let first = known(&world, "db.test");
    assert!(first.problem.unwrap().starts_with("AAAA: "), "status does not report the missing family");
    until("it is confirmed again", || known(&world, "db.test").confirmed > first.confirmed);
    assert_eq!(addresses(&world), [ip(TWO)]);
}

async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

/// Starts a backend on each of these addresses, all with the same port.
fn backends<const N: usize>(addresses: [[u8; 4]; N]) -> u16 {
    loop {
        let port = backend(([127, 0, 0, 9], 0).into()).unwrap().port();
        if addresses.iter().all(|address| backend((*address, port).into()).is_ok()) {
            return port;
        }
    }
}

fn configured(servers: &[&Dns], services: &[(&str, String)]) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("gateway.yaml");
    fs::write(&file, text(servers, services)).unwrap();
    (directory, file)
}

fn text(servers: &[&Dns], services: &[(&str, String)]) -> String {
    let servers: Vec<_> = servers.iter().map(|dns| format!("'{}'", dns.address)).collect();
    let services: String = services
        .iter()
        .map(|(host, endpoint)| format!("- {{host: {host}, endpoints: [{{address: '{endpoint}'}}]}}\n"))
        .collect();
    format!("{}dns: {{servers: [{}]}}\nservices:\n{services}", head(), servers.join(", "))
}

fn service(world: &World) -> Arc<Service> {
    Arc::clone(world.gateway().control().process.tables.load().services().next().unwrap())
}

fn addresses(world: &World) -> Vec<IpAddr> {
    service(world).endpoints.iter().map(|endpoint| endpoint.address.ip()).collect()
}

fn known(world: &World, name: &str) -> Known {
    world.gateway().control().answers.all().remove(name).unwrap_or_default()
}

fn ip(address: [u8; 4]) -> IpAddr {
    address.into()
}

const ONE: [u8; 4] = [127, 0, 0, 1];
const TWO: [u8; 4] = [127, 0, 0, 2];
const THREE: [u8; 4] = [127, 0, 0, 3];

#[test]
fn dns_name_uses_all_addresses_and_follows_changes() {
    let port = backends([TWO, THREE]);
    let dns = Dns::start();
    dns.set_a("db.test", 1, [TWO, THREE]);
    let (_directory, file) = configured(&[&dns], &[("a.test", format!("db.test:{port}"))]);
    let world = World::start(&file);
    let hello = hello("a.test");
    until("the name is resolved", || addresses(&world).len() == 2);
    let mut clients: Vec<_> = (0..2).map(|_| open(world.address(), &hello)).collect();
    clients.sort_by_key(Client::backend);
    let backends: Vec<_> = clients.iter().map(Client::backend).collect();
    assert_eq!(backends, [SocketAddr::from((TWO, port)), (THREE, port).into()]);

    dns.set_a("db.test", 1, [THREE]);
    until("the change is seen", || addresses(&world) == [ip(THREE)]);
    for _ in 0..4 {
        assert_eq!(served_by(world.address(), &hello), Some((THREE, port).into()));
    }
    assert!(clients.iter_mut().all(|client| client.echo("established")), "established connections stay");
}

#[test]
fn dns_outage_keeps_last_good_addresses() {
    let port = backends([TWO]);
    let dns = Dns::start();
    dns.set_a("db.test", 1, [TWO]);
    let (_directory, file) = configured(&[&dns], &[("a.test", format!("db.test:{port}"))]);
    let world = World::start(&file);
    until("the name is resolved", || addresses(&world) == [ip(TWO)]);
    let stays = |why: &str| {
        until(why, || known(&world, "db.test").problem.is_some());
        let known = known(&world, "db.test");
        assert_eq!(known.addresses, [ip(TWO)]);
        assert!(known.confirmed.is_some());
        assert_eq!(served_by(world.address(), &hello("a.test")), Some((TWO, port).into()));
    };

    dns.set_a("db.test", 1, []);
    stays("there are no records");
    dns.set_a("db.test", 1, [TWO]);
    until("the name is confirmed again", || known(&world, "db.test").problem.is_none());
    drop(dns);
    stays("the server is gone");
}

#[test]
fn dns_server_silent_on_aaaa_resolves_by_a() {
    resolves_by_its_a(Aaaa::Silence);
}

#[test]
fn dns_server_failing_on_aaaa_resolves_by_a() {
    resolves_by_its_a(Aaaa::ServFail);
}

#[test]
fn dns_name_of_own_listener_is_loop() {
    let dns = Dns::start();
    let (_directory, file) = configured(&[&dns], &[]);
    let world = World::start(&file);
    // The listener is only on 127.0.0.1: the same port on 127.0.0.2 belongs to a backend.
    let port = world.address().port();
    backend((TWO, port).into()).unwrap();
    dns.set_a("me.test", 1, [TWO]);
    fs::write(&file, text(&[&dns], &[("a.test", format!("me.test:{port}"))])).unwrap();
    let hello = hello("a.test");
    until("the edit is live", || world.gateway().control().process.tables.load().len() == 1);
    until("the name is resolved", || addresses(&world) == [ip(TWO)]);
    assert_eq!(served_by(world.address(), &hello), Some((TWO, port).into()));

    dns.set_a("me.test", 1, [ONE]);
    until("the change is seen", || addresses(&world).is_empty());
    assert!(service(&world).leads_back);
    match connect(world.address(), &hello) {
        Answer::Refused(alert) => assert_eq!(Some(alert), Reason::Loop.alert().map(|alert| alert as u8)),
        Answer::Served(client) => panic!("served by {}", client.backend()),
    }
    let workers = &world.gateway().control().process.metrics.workers;
    until("the loop is counted", || {
        let ended = |index: usize| workers[index].listeners[0].ended[Reason::Loop as usize].load(Relaxed);
        ended(0) + ended(1) == 1
    });

    dns.set_a("me.test", 1, [ONE, TWO]);
    until("one address is somebody else's", || addresses(&world) == [ip(TWO)]);
    assert_eq!(served_by(world.address(), &hello), Some((TWO, port).into()));
}

#[test]
fn dns_resolves_both_families_cnames_and_tcp_answers() {
    let dns = Dns::start();
    let many: Vec<_> = (0..200).map(|last| Ipv4Addr::new(127, 1, 0, last)).collect();
    dns.set("many.test", RecordType::A, 60, many.iter().map(|address| RData::A(A(*address))));
    // The mapped address is 127.0.0.3; the unspecified one is ignored.
    let v6 = ["::1", "::ffff:127.0.0.3", "::"].map(|address| RData::AAAA(AAAA(address.parse().unwrap())));
    dns.set("both.test", RecordType::AAAA, 60, v6);
    dns.set_a("both.test", 60, [TWO]);
    dns.set("alias.test", RecordType::CNAME, 60, [RData::CNAME(CNAME(name("both.test")))]);
    let service = |name: &str| ["a.", name].concat();
    let names = ["many.test", "both.test", "alias.test"];
    let hosts = names.map(service);
    let services: Vec<_> =
        hosts.iter().zip(names).map(|(host, name)| (host.as_str(), format!("{name}:9"))).collect();
    let (_directory, file) = configured(&[&dns], &services);
    let world = World::start(&file);
    let both = [ip(TWO), ip(THREE), "::1".parse().unwrap()];
    until("all are resolved", || names.iter().all(|name| known(&world, name).confirmed.is_some()));
    assert_eq!(known(&world, "many.test").addresses, many, "by TCP: this is too long for UDP");
    assert_eq!(known(&world, "both.test").addresses, both);
    assert_eq!(known(&world, "alias.test").addresses, both);
}

#[test]
fn dns_resolves_hundreds_of_names_and_forgets_removed_ones() {
    const NAMES: usize = 500;
    let dns = Dns::start();
    let names: Vec<_> = (0..NAMES).map(|index| format!("n{index}.test")).collect();
    for name in &names {
        dns.set_a(name, 60, [TWO]);
    }
    let services: Vec<_> = names.iter().map(|name| (name.as_str(), format!("{name}:9"))).collect();
    let (_directory, file) = configured(&[&dns], &services);
    let world = World::start(&file);
    let answers = || world.gateway().control().answers.all();
    let confirmed = || answers().values().filter(|known| known.confirmed.is_some()).count();
    until("all are resolved", || confirmed() == NAMES);
    assert!(answers().values().all(|known| known.addresses == [ip(TWO)] && known.problem.is_none()));
    until("all are in the tables", || {
        let tables = world.gateway().control().process.tables.load_full();
        tables.services().all(|service| service.endpoints.len() == 1)
    });
    assert!(world.epoch() < NAMES as u64 / 4, "{} swaps: answers go live in batches", world.epoch());

    fs::write(&file, text(&[&dns], &services[..1])).unwrap();
    until("the others are forgotten", || answers().len() == 1);
}

#[test]
fn dns_without_servers_uses_system_resolver() {
    let port = backend((ONE, 0).into()).unwrap().port();
    let (_directory, file) = configured(&[], &[("a.test", format!("localhost:{port}"))]);
    let world = World::start(&file);
    until("localhost is resolved", || known(&world, "localhost").confirmed.is_some());
    until("it is served", || served_by(world.address(), &hello("a.test")) == Some((ONE, port).into()));
}
