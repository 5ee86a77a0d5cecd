//! Session resumption works while nothing changes, and never outlives the trust it rests on. N peers hold valid
//! tickets, one thing changes, and none of the N resumes: a resumed handshake presents no certificate, so nothing would
//! check the change.

use std::time::{Duration, Instant};

use rustls::HandshakeKind::{self, Full, Resumed};
use rustls::SupportedProtocolVersion;
use rustls::client::Resumption;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::ServerSessionMemoryCache;
use rustls::version::{TLS12, TLS13};
use time::OffsetDateTime;

use super::world::*;
use super::*;
use crate::crl::tests::list;
use crate::crl::{Crls, StaleCrl};
use crate::facts::Facts;
use crate::{Authority, DenyList, IdPattern, Trust};

const PEERS: usize = 20;
const SHORT: Duration = Duration::from_secs(5);
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A server and N clients that follow their trust.
struct Scene {
    world: World,
    server_trust: Trust,
    server: Server,
    /// One trust for all clients.
    client_trust: Trust,
    clients: Vec<Client>,
}

impl Scene {
    fn new() -> Self {
        let world = World::new();
        let [server, client] = [&world.server, &world.client].map(copy);
        Self::between(world, server, client)
    }

    /// A scene whose server and clients have other bundles than their test peers.
    fn with_bundles(world: World, bundles: TrustBundles) -> Self {
        let [server, client] = [&world.server, &world.client].map(copy);
        let scene = Self::between(world, server, client);
        let bundles = Arc::new(bundles);
        for trust in [&scene.server_trust, &scene.client_trust] {
            trust.replace(Arc::clone(&trust.current().identity), Arc::clone(&bundles));
        }
        scene
    }

    fn between(world: World, server: Identity, client: Identity) -> Self {
        let all = |authority: &Authority| Peer::Domain(authority.trust_domain().clone());
        let server_trust = Trust::new(server, Arc::clone(&world.bundles));
        let client_trust = Trust::new(client, Arc::clone(&world.bundles));
        let server = Server::new(server_trust.clone(), all(&world.west), &[b"h2"]).unwrap();
        let client = || Client::new(client_trust.clone(), all(&world.east), &[b"h2"]).unwrap();
        let clients = (0..PEERS).map(|_| client()).collect();
        Self { server_trust, server, client_trust, clients, world }
    }

    /// Clients of west that would always resume, each with a large store of its own.
    fn willing_clients(&self, version: &'static SupportedProtocolVersion) -> Vec<Arc<ClientConfig>> {
        let identity = self.client_trust.current().identity.clone();
        let all_east = Peer::Domain(self.world.east.trust_domain().clone());
        let one = || {
            let chain = identity.chain();
            let mut config = showing_client(chain, &identity, &self.world.bundles, all_east.clone(), version);
            config.resumption = Resumption::in_memory_sessions(4096);
            config.alpn_protocols = vec![b"h2".to_vec()];
            Arc::new(config)
        };
        (0..PEERS).map(|_| one()).collect()
    }

    /// A server of east that would always resume.
    fn willing_server(&self, version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
        let identity = self.server_trust.current().identity.clone();
        let all_west = Peer::Domain(self.world.west.trust_domain().clone());
        let chain = identity.chain();
        let mut config = showing_server(chain, &identity, &self.world.bundles, all_west, version);
        config.session_storage = ServerSessionMemoryCache::new(4096);
        config.send_tls13_tickets = 8;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// The bundles with a change.
    fn bundles(&self, change: impl FnOnce(&mut TrustBundles)) -> TrustBundles {
        let mut bundles = TrustBundles::clone(&self.world.bundles);
        change(&mut bundles);
        bundles
    }
}

fn copy(identity: &Identity) -> Identity {
    Identity::from_pem(identity.chain_pem(), identity.key_pem()).unwrap()
}

/// The kind of a successful handshake, on which both ends agree.
fn kind(outcome: Outcome) -> HandshakeKind {
    let kinds = [outcome.client.unwrap().handshake_kind(), outcome.server.unwrap().handshake_kind()];
    assert_eq!((outcome.received.as_slice(), outcome.answered.as_slice()), (REQUEST, REPLY));
    // Only one end of a full handshake knows that it took a second round trip.
    assert_eq!(kinds[0] == Some(Resumed), kinds[1] == Some(Resumed));
    if kinds[0] == Some(Resumed) { Resumed } else { Full }
}

type Pairs = Vec<(Arc<ClientConfig>, Arc<ServerConfig>)>;

fn at_our_server(scene: &Scene, version: &'static SupportedProtocolVersion) -> Pairs {
    scene.willing_clients(version).into_iter().map(|client| (client, scene.server.config())).collect()
}

fn our_clients(scene: &Scene, willing: &Arc<ServerConfig>) -> Pairs {
    scene.clients.iter().map(|client| (client.config(), Arc::clone(willing))).collect()
}

/// Gives each pair tickets, and checks that they are resumed.
fn hold_tickets(pairs: &Pairs) {
    for (client, server) in pairs {
        let first = kind(connect(Arc::clone(client), Arc::clone(server)));
        let second = kind(connect(Arc::clone(client), Arc::clone(server)));
        assert_eq!((first, second), (Full, Resumed));
    }
}

/// rustls forgets it by itself only where it also keeps the bytes that arrive.
#[test]
fn forgotten_session_of_tls12_is_not_resumed() {
    let scene = Scene::new();
    let pairs = our_clients(&scene, &scene.willing_server(&TLS12));
    hold_tickets(&pairs);
    for (client, (config, server)) in scene.clients.iter().zip(pairs) {
        client.forget(&ServerName::try_from("any.name.at.all").unwrap());
        assert_eq!(kind(connect(config, server)), Full);
    }
}

/// A change on one side, and the reason of the refusal; none if a full handshake succeeds.
type Change = (&'static str, Option<&'static str>);

/// Clients that would resume connect to a server under test, before and after `change`.
fn none_resume_at_our_server(scene: &Scene, (name, refused): Change, change: impl Fn(&Scene)) {
    for version in VERSIONS {
        let before = scene.server_trust.current();
        let held = at_our_server(scene, version);
        hold_tickets(&held);
        change(scene);
        let outcomes = held.into_iter().map(|(client, _)| connect(client, scene.server.config()));
        match refused {
            Some(reason) => outcomes.for_each(|o| assert_eq!(server_refusal(o).reason(), reason, "{name}")),
            None => outcomes.for_each(|o| assert_eq!(kind(o), Full, "{name}")),
        }
        println!("{name}: {version:?}: 0 of {PEERS} clients resumed at our server, {refused:?}");
        scene.server_trust.replace(Arc::clone(&before.identity), Arc::clone(&before.bundles));
    }
}

/// Clients under test connect to a server that would resume, before and after `change`.
fn none_of_our_clients_resume(scene: &Scene, (name, refused): Change, change: impl Fn(&Scene)) {
    for version in VERSIONS {
        let before = scene.client_trust.current();
        let server = scene.willing_server(version);
        hold_tickets(&our_clients(scene, &server));
        change(scene);
        let outcomes = scene.clients.iter().map(|client| connect(client.config(), Arc::clone(&server)));
        match refused {
            Some(reason) => outcomes.for_each(|o| assert_eq!(client_refusal(o).reason(), reason, "{name}")),
            None => outcomes.for_each(|o| assert_eq!(kind(o), Full, "{name}")),
        }
        println!("{name}: {version:?}: 0 of {PEERS} of our clients resumed, {refused:?}");
        scene.client_trust.replace(Arc::clone(&before.identity), Arc::clone(&before.bundles));
    }
}

/// Changes the bundles on each side, about the other one.
fn none_resume_after(
    name: &'static str,
    reason: &'static str,
    change: impl Fn(&mut TrustBundles, &World, &Identity),
) {
    let scene = Scene::new();
    none_resume_at_our_server(&scene, (name, Some(reason)), |scene| {
        let bundles = scene.bundles(|bundles| change(bundles, &scene.world, &scene.world.client));
        scene.server_trust.replace(Arc::clone(&scene.server_trust.current().identity), bundles);
    });
    none_of_our_clients_resume(&scene, (name, Some(reason)), |scene| {
        let bundles = scene.bundles(|bundles| change(bundles, &scene.world, &scene.world.server));
        scene.client_trust.replace(Arc::clone(&scene.client_trust.current().identity), bundles);
    });
}

#[test]
fn session_is_resumed_while_nothing_changes() {
    let scene = Scene::new();
    for client in &scene.clients {
        let kinds = [(); 4].map(|()| kind(connect(client.config(), scene.server.config())));
        assert_eq!(kinds, [Full, Resumed, Resumed, Resumed], "ours with ours");
    }
    for version in VERSIONS {
        let scene = Scene::new();
        hold_tickets(&at_our_server(&scene, version));
        hold_tickets(&our_clients(&scene, &scene.willing_server(version)));
    }
}

#[test]
fn session_is_not_resumed_once_its_identity_is_denied() {
    none_resume_after("identity denied", "denied", |bundles, _, peer| {
        let mut list = DenyList::new(peer.id().trust_domain().clone());
        list.add_identity(IdPattern::Exactly(peer.id().clone()));
        bundles.deny(list);
    });
}

#[test]
fn session_is_not_resumed_once_its_serial_number_is_denied() {
    none_resume_after("serial number denied", "denied", |bundles, _, peer| {
        let mut list = DenyList::new(peer.id().trust_domain().clone());
        list.add_serial(Facts::read(&peer.chain()[0]).unwrap().serial.parse().unwrap(), None);
        bundles.deny(list);
    });
}

#[test]
fn session_is_not_resumed_once_its_certificate_is_revoked() {
    none_resume_after("revoked", "revoked", |bundles, world, peer| {
        let now = OffsetDateTime::now_utc();
        let domain = peer.id().trust_domain();
        let authority = [&world.east, &world.west].into_iter().find(|a| a.trust_domain() == domain).unwrap();
        let list = list(authority, &[&peer.chain()[0]], now - HOUR, now + HOUR);
        bundles.revoke(domain.clone(), Crls::read(&list, StaleCrl::Refuse, HOUR).unwrap());
    });
}

#[test]
fn session_is_not_resumed_once_its_root_is_gone() {
    none_resume_after("root dropped", "unknown_issuer", |bundles, _, peer| {
        let domain = peer.id().trust_domain();
        let next = authority(domain.as_str());
        bundles.insert(domain.clone(), crate::Bundle::new(domain, 1, [next.certificate()]).unwrap());
    });
    none_resume_after("bundle dropped", "no_bundle", |bundles, _, peer| {
        bundles.insert(peer.id().trust_domain().clone(), crate::Bundle::default());
    });
}

#[test]
fn session_is_not_resumed_after_a_rotation_of_the_identity() {
    let scene = Scene::new();
    none_resume_at_our_server(&scene, ("server rotated", None), |scene| {
        let next = scene.world.east.issue(scene.world.server.id(), &[], HOUR).unwrap();
        scene.server_trust.replace(next, Arc::clone(&scene.world.bundles));
    });
    none_of_our_clients_resume(&scene, ("client rotated", None), |scene| {
        let next = scene.world.west.issue(scene.world.client.id(), &[], HOUR).unwrap();
        scene.client_trust.replace(next, Arc::clone(&scene.world.bundles));
    });
}

#[test]
fn session_of_a_client_is_not_resumed_once_its_leaf_has_expired() {
    let begun = VERSIONS.map(|version| {
        let world = World::new();
        let (client, end) = brief(&world.west, world.client.id());
        let server = copy(&world.server);
        let scene = Scene::between(world, server, client);
        let held = at_our_server(&scene, version);
        hold_tickets(&held);
        (scene, held, end)
    });
    for ((scene, held, end), version) in begun.into_iter().zip(VERSIONS) {
        past(end);
        // Both the configuration from before and the current one refuse.
        for (client, old) in held {
            for server in [old, scene.server.config()] {
                assert_eq!(server_refusal(connect(Arc::clone(&client), server)).reason(), "expired");
            }
        }
        println!("client's leaf expired: {version:?}: 0 of {PEERS} clients resumed at our server");
    }
}

#[test]
fn session_of_a_server_is_not_resumed_once_its_leaf_has_expired() {
    let begun = VERSIONS.map(|version| {
        let world = World::new();
        let (server, end) = brief(&world.east, world.server.id());
        let client = copy(&world.client);
        let scene = Scene::between(world, server, client);
        let server = scene.willing_server(version);
        let held = our_clients(&scene, &server);
        hold_tickets(&held);
        (scene, held, end)
    });
    for ((scene, held, end), version) in begun.into_iter().zip(VERSIONS) {
        past(end);
        for ((old, server), client) in held.into_iter().zip(&scene.clients) {
            for client in [old, client.config()] {
                assert_eq!(client_refusal(connect(client, Arc::clone(&server))).reason(), "expired");
            }
        }
        println!("server's leaf expired: {version:?}: 0 of {PEERS} of our clients resumed");
    }
}

/// An identity that lives just long enough to get tickets, and when it expires.
fn brief(authority: &Authority, id: &SpiffeId) -> (Identity, i64) {
    let identity = authority.issue(id, &[], SHORT).unwrap();
    let end = Facts::read(&identity.chain()[0]).unwrap().not_after;
    (identity, end.unix_timestamp())
}

#[test]
fn session_is_not_resumed_once_the_revocation_list_is_stale() {
    let world = World::new();
    let now = OffsetDateTime::now_utc();
    let end = now + SHORT;
    let mut bundles = TrustBundles::clone(&world.bundles);
    for authority in [&world.east, &world.west] {
        let list = list(authority, &[], now - HOUR, end);
        let crls = Crls::read(&list, StaleCrl::Refuse, HOUR / 2).unwrap();
        bundles.revoke(authority.trust_domain().clone(), crls);
    }
    let scene = Scene::with_bundles(world, bundles);
    let theirs = at_our_server(&scene, &TLS13);
    let willing = scene.willing_server(&TLS13);
    let ours = our_clients(&scene, &willing);
    hold_tickets(&ours);
    hold_tickets(&theirs);
    past(end.unix_timestamp());
    for (client, _) in theirs {
        assert_eq!(server_refusal(connect(client, scene.server.config())).reason(), "crl_stale");
    }
    for client in &scene.clients {
        assert_eq!(client_refusal(connect(client.config(), Arc::clone(&willing))).reason(), "crl_stale");
    }
}

/// Waits until a time, in seconds since 1970, is past.
fn past(end: i64) {
    let deadline = Instant::now() + HOUR / 60;
    while UnixTime::now().as_secs() <= u64::try_from(end).unwrap() {
        assert!(Instant::now() < deadline, "the clock stands still");
        std::thread::sleep(Duration::from_millis(20));
    }
}
