//! Tests joining over real sockets and TLS: valid, repeated, expired and foreign tokens, interception, garbage, a
//! thousand strangers, and connections cut anywhere. A failed join stores nothing.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic anywhere")]

mod strangers;
mod world;

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use isthmus_certs::{Authority, Bundle, Role, Trust, TrustDomain, spiffe_bundle};
use isthmus_model::address::Target;
use isthmus_trust::join::cli::{JoinArgs, TokenCommand};
use isthmus_trust::join::{
    Context, CreateError, Guest, JoinCause, JoinError, MeetError, Peer, PresentedError, Progress, Refusal,
    State, Token, create, join, peers,
};
use rustls::pki_types::UnixTime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use world::{Endpoint, HOUR, Raw, Side, acceptor, copy, heard, showing, somebody};

fn block<T>(work: impl Future<Output = T>) -> T {
    Runtime::new().unwrap().block_on(work)
}

fn try_join(side: &Side, token: &Token) -> Result<Peer, JoinError> {
    block(join(&side.context, token))
}

fn refused(outcome: Result<Peer, JoinError>) -> (Progress, JoinCause, String) {
    let error = outcome.unwrap_err();
    let text = error.to_string();
    (error.progress, *error.cause, text)
}

fn known(side: &Side) -> Vec<Peer> {
    peers(&isthmus_trust::join::store(&side.dir.path().join("state"))).unwrap().peers
}

fn duplicate(authority: &Authority) -> Authority {
    let domain = authority.trust_domain().clone();
    Authority::from_pem(domain, authority.certificate_pem(), authority.key_pem().unwrap()).unwrap()
}

/// The same token with another address.
fn through(at: SocketAddr, token: &Token) -> Token {
    let mut token = token.clone();
    token.address = Target::Address(at);
    token
}

/// Waits: the other side finishes a moment after this one.
fn eventually(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

struct World {
    east: Side,
    west: Side,
    endpoint: Endpoint,
    before: [Stored; 2],
}

type Stored = std::collections::BTreeMap<std::path::PathBuf, String>;

impl World {
    fn new() -> World {
        let (east, west) = (Side::new("east", "east.example"), Side::new("west", "west.example"));
        let endpoint = east.serve();
        let before = [east.stored(), west.stored()];
        World { east, west, endpoint, before }
    }

    fn token(&self) -> Token {
        self.east.token(self.endpoint.at, &self.west.party)
    }

    fn assert_nothing_stored(&self) {
        assert_eq!(self.east.stored(), self.before[0], "east");
        assert_eq!(self.west.stored(), self.before[1], "west");
    }

    /// Joins, and checks that both sides know each other.
    fn assert_joins(&self, token: &Token) {
        let peer = try_join(&self.west, token).unwrap();
        assert_eq!(peer.introduction.party, self.east.party);
        assert_eq!(known(&self.east)[0].introduction.party, self.west.party);
        assert!(self.east.trusts(&self.west) && self.west.trusts(&self.east));
    }
}

#[test]
fn token_joins_two_clusters() {
    let world = World::new();
    let World { east, west, .. } = &world;
    let denied = "spiffe://east.example/ns/a/sa/denied";
    east.deny(denied, 1);
    assert!(!east.trusts(west) && !west.trusts(east));
    let token: Token = world.token().reveal().parse().unwrap();
    let peer = try_join(west, &token).unwrap();
    assert_eq!(peer.introduction.party, east.party);
    assert_eq!(peer.introduction.address.to_string(), "192.0.2.7:15012");
    assert_eq!(peer.introduction.gateways[0].to_string(), "gw.east.example:15443");
    assert_eq!(peer.introduction.network, "east-net");
    assert_eq!(known(west), [Peer { joined_at: known(west)[0].joined_at, ..peer }]);
    let joined = known(east);
    assert_eq!(joined.len(), 1);
    assert_eq!(joined[0].introduction.party, west.party);
    assert!(joined[0].joined_at.elapsed().unwrap() < HOUR);
    assert!(east.trusts(west) && west.trusts(east));
    let trusted = Trust::load(&west.files).unwrap().current();
    let list = trusted.bundles.denied(&east.party.trust_domain).unwrap();
    assert_eq!(list.identities().map(ToString::to_string).collect::<Vec<_>>(), [denied]);
    assert_eq!(east.states(), [State::Used]);
}

#[test]
fn join_takes_effect_in_running_agents() {
    let world = World::new();
    let trusts = |one: &Side, other: &Side| {
        let chain = other.trust.current().identity.chain().to_vec();
        one.trust.current().bundles.verify(&chain, Role::Server, UnixTime::now()).is_ok()
    };
    let World { east, west, .. } = &world;
    assert!(!trusts(east, west) && !trusts(west, east));
    world.assert_joins(&world.token());
    eventually("the running agents trust each other", || trusts(east, west) && trusts(west, east));
}

#[test]
fn token_is_valid_once() {
    let world = World::new();
    let token = world.token();
    world.assert_joins(&token);
    let after = [world.east.stored(), world.west.stored()];
    let (progress, cause, text) = refused(try_join(&world.west, &token));
    assert!(matches!(cause, JoinCause::Refused(Refusal::Used)), "{text}");
    assert_eq!(progress, Progress::Used);
    assert!(text.contains("has been used; make a new one"), "{text}");
    assert_eq!([world.east.stored(), world.west.stored()], after);
}

#[test]
fn token_stays_used_when_the_agent_stops_during_the_join() {
    let mut world = World::new();
    let token = world.token();
    let proven = block(async {
        let mut raw = Raw::connect_as(&world.west, world.endpoint.at).await;
        let proof = raw.proof(&token);
        raw.say(&proof).await;
        raw.hear().await.unwrap()["message"].to_string()
    });
    assert_eq!(proven, "\"proven\"");
    // The next agent knows only what is on disk.
    world.endpoint = world.east.serve();
    let (_, cause, text) = refused(try_join(&world.west, &through(world.endpoint.at, &token)));
    assert!(matches!(cause, JoinCause::Refused(Refusal::Used)), "{text}");
    world.assert_nothing_stored();
    world.assert_joins(&world.token());
}

#[test]
fn token_used_concurrently_joins_one_cluster() {
    let world = World::new();
    // The same agent, in several places.
    let others: Vec<Side> = (0..4).map(|_| Side::under(duplicate(&world.west.root), "west", 1)).collect();
    for _ in 0..10 {
        let token = world.token();
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let joining: Vec<_> = others.iter().map(|side| scope.spawn(|| try_join(side, &token))).collect();
            joining.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let (joined, failed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        assert_eq!((joined.len(), failed.len()), (1, 3));
        for outcome in failed {
            let (_, cause, text) = refused(outcome);
            assert!(matches!(cause, JoinCause::Refused(Refusal::Used)), "{text}");
        }
    }
}

#[test]
fn token_expires() {
    let world = World::new();
    let at = Target::Address(world.endpoint.at);
    let guest = world.west.party.clone();
    let token = create(&world.east.context, at, guest, Duration::from_secs(1)).unwrap();
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(token.expires);
    eventually("the token's end", || SystemTime::now() >= end);
    let (_, cause, text) = refused(try_join(&world.west, &token));
    assert!(matches!(cause, JoinCause::Refused(Refusal::Expired)), "{text}");
    assert!(text.contains("make a new one"), "{text}");
    assert_eq!(world.east.states(), [State::Open], "it is unused");
    world.assert_nothing_stored();
    world.assert_joins(&world.token());
}

#[test]
fn token_of_another_store_is_unknown() {
    let world = World::new();
    // A cluster of the same name, domain and root that did not make the token.
    let twin = Side::under(duplicate(&world.east.root), "east", 1);
    let token = twin.token(world.endpoint.at, &world.west.party);
    let (_, cause, text) = refused(try_join(&world.west, &token));
    assert!(matches!(cause, JoinCause::Refused(Refusal::Unknown)), "{text}");
    world.assert_nothing_stored();
}

#[test]
fn token_is_for_one_cluster_of_one_domain() {
    let world = World::new();
    let north = Side::new("north", "west.example");
    let abroad = Side::new("west", "north.example");
    let token = world.token();
    for other in [&north, &abroad] {
        let (progress, cause, text) = refused(try_join(other, &token));
        assert!(matches!(cause, JoinCause::OtherGuest { .. }), "{text}");
        assert!(text.contains("west (west.example)") && text.contains("still valid"), "{text}");
        assert_eq!(progress, Progress::Unused);
        // A joiner that skips the check, with the secret.
        block(async {
            let mut raw = Raw::connect_as(other, world.endpoint.at).await;
            let proof = raw.proof(&token);
            raw.say(&proof).await;
            assert_eq!(raw.hear().await.unwrap()["why"], "other_guest");
        });
        // A joiner that changes the token to name itself.
        let mut forged = token.clone();
        forged.guest = Guest::Cluster(other.party.clone());
        let (_, cause, text) = refused(try_join(other, &forged));
        assert!(matches!(cause, JoinCause::Refused(Refusal::Unknown)), "{text}");
        assert_eq!(other.stored().len(), 1, "its own bundle");
    }
    world.assert_nothing_stored();
    world.assert_joins(&token);
}

#[test]
fn issuer_must_be_the_cluster_that_the_token_names() {
    let world = World::new();
    // Another cluster's agent, under the root that the token names.
    let north = Side::under(duplicate(&world.east.root), "north", 1);
    let endpoint = north.serve();
    let token = through(endpoint.at, &world.token());
    let (progress, cause, text) = refused(try_join(&world.west, &token));
    assert!(
        matches!(cause, JoinCause::Meet(MeetError::Presented(PresentedError::OtherParty { .. }))),
        "{text}"
    );
    assert_eq!(progress, Progress::Unused);
    world.assert_nothing_stored();
}

/// An attacker at the token's address, with another chain than the token names, who records all that he receives.
#[test]
fn joiner_sends_nothing_to_an_impostor() {
    let world = World::new();
    let mallory =
        Side::under(Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap(), "east", 1);
    let [his, true_one] =
        [&mallory, &world.east].map(|side| Trust::load(&side.files).unwrap().current().identity.clone());
    let cases = [
        ("his own root", showing(&his, &[&mallory.root], &his), "no root with the token's key"),
        (
            "his own chain beside the true root",
            showing(&his, &[&mallory.root, &world.east.root], &his),
            "does not verify",
        ),
        (
            "the true chain without its key",
            showing(&true_one, &[&world.east.root], &his),
            "TLS handshake failed",
        ),
        ("no root", showing(&true_one, &[], &true_one), "no root with the token's key"),
    ];
    for (what, shown, expected) in cases {
        let (told, heard) = std::sync::mpsc::channel();
        let acceptor = acceptor(shown);
        let endpoint = somebody(move |stream| {
            let (acceptor, told) = (acceptor.clone(), told.clone());
            async move {
                let mut bytes = Vec::new();
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    let _ended = stream.read_to_end(&mut bytes).await;
                }
                told.send(bytes).unwrap();
            }
        });
        let token = world.token();
        let elsewhere = through(endpoint.at, &token);
        let (progress, _, text) = refused(try_join(&world.west, &elsewhere));
        assert!(text.contains(expected) && text.contains("still valid"), "{what}: {text}");
        assert_eq!(progress, Progress::Unused, "{what}");
        assert_eq!(heard.recv().unwrap(), b"", "{what}: the impostor received bytes");
        world.assert_nothing_stored();
        world.assert_joins(&token);
        restore(&world);
    }
}

/// Removes everything that joins have stored.
fn restore(world: &World) {
    for (side, before) in [&world.east, &world.west].into_iter().zip(&world.before) {
        for name in side.stored().keys().filter(|name| !before.contains_key(*name)) {
            if name.starts_with("bundles") || name.starts_with("deny") {
                fs::remove_file(side.dir.path().join(name)).unwrap();
            }
        }
        let store = isthmus_trust::join::store(&side.dir.path().join("state"));
        for peer in known(side) {
            let cluster = &peer.introduction.party.cluster;
            assert!(isthmus_trust::join::forget(&store, cluster).unwrap());
        }
    }
}

/// The strongest attacker: he holds a key and a certificate of an agent of the issuing cluster, so that the joiner
/// trusts him, and his own root for the joiner's domain, so that the issuer accepts his connection. He relays every
/// message. The TLS exporter differs on his two legs.
#[test]
fn relay_between_two_tls_sessions_gains_nothing() {
    let world = World::new();
    let stolen = Side::under(duplicate(&world.east.root), "east", 1);
    let posing = Side::new("west", "west.example");
    let [towards_west, towards_east] = [&stolen, &posing].map(|side| {
        let identity = Trust::load(&side.files).unwrap().current().identity.clone();
        showing(&identity, &[&side.root], &identity)
    });
    let at = world.endpoint.at;
    let (passed, messages) = std::sync::mpsc::channel();
    let acceptor = acceptor(towards_west);
    let relay = somebody(move |stream| {
        let (acceptor, shown, passed) = (acceptor.clone(), Arc::clone(&towards_east), passed.clone());
        async move {
            let mut joiner = acceptor.accept(stream).await.unwrap();
            let mut issuer = Raw::connect(at, shown).await;
            let first = heard(&mut joiner).await.unwrap();
            passed.send(first.to_string()).unwrap();
            issuer.say(&first).await;
            let (mut from_joiner, mut to_joiner) = tokio::io::split(joiner);
            let (mut from_issuer, mut to_issuer) = tokio::io::split(issuer.stream);
            tokio::join!(copy(&mut from_joiner, &mut to_issuer), copy(&mut from_issuer, &mut to_joiner));
        }
    });
    let token = world.token();
    let relayed = through(relay.at, &token);
    for _ in 0..4 {
        let (progress, cause, text) = refused(try_join(&world.west, &relayed));
        assert!(matches!(cause, JoinCause::Refused(Refusal::Unknown)), "{text}");
        assert_eq!(progress, Progress::Uncertain);
        assert!(messages.recv().unwrap().contains("prove"), "the relay did forward the proof");
        world.assert_nothing_stored();
        assert_eq!(world.east.states(), [State::Open]);
    }
    // Without the relay the token is still valid.
    world.assert_joins(&token);
    restore(&world);

    let token = world.token();
    let relayed = through(relay.at, &token);
    for _ in 0..5 {
        refused(try_join(&world.west, &relayed));
    }
    let (_, cause, text) = refused(try_join(&world.west, &token));
    assert!(matches!(cause, JoinCause::Refused(Refusal::Void)), "{text}");
    assert!(text.contains("possible interception"), "{text}");
    world.assert_nothing_stored();
}

/// A relay of bytes stands for the network: it cuts the connection after any byte.
#[test]
fn connection_cut_anywhere_stores_nothing_at_the_joiner() {
    let world = World::new();
    let at = world.endpoint.at;
    let (mut failed, mut joined, mut used) = (0, 0, 0);
    // From the issuer's first byte to after its last: hello, certificates, proof, offer, end.
    for cut in (0..6_000_u64).step_by(97) {
        let relay = somebody(move |mut joiner| async move {
            let mut issuer = TcpStream::connect(at).await.unwrap();
            let (mut from_joiner, mut to_joiner) = joiner.split();
            let (from_issuer, mut to_issuer) = issuer.split();
            let mut until = from_issuer.take(cut);
            tokio::select! {
                () = async { _ = tokio::io::copy(&mut from_joiner, &mut to_issuer).await; } => {}
                () = async { _ = tokio::io::copy(&mut until, &mut to_joiner).await; } => {}
            }
            let _flushed = to_joiner.flush().await;
        });
        let token = world.token();
        let relayed = through(relay.at, &token);
        match try_join(&world.west, &relayed) {
            Ok(_) => {
                joined += 1;
                assert_eq!(known(&world.east).len(), 1, "cut after {cut}: the joiner may rely on it");
                restore(&world);
            }
            Err(error) => {
                failed += 1;
                let text = error.to_string();
                assert_eq!(world.west.stored(), world.before[1], "cut after {cut}: {text}");
                match error.progress {
                    Progress::Unused => assert!(text.contains("still valid"), "{text}"),
                    Progress::Uncertain => assert!(text.contains("may be used up: try it again"), "{text}"),
                    Progress::Used => {
                        used += 1;
                        assert!(text.contains("nothing was stored here: make a new one"), "{text}");
                    }
                }
                if error.progress == Progress::Unused {
                    world.assert_joins(&token);
                }
                // Whatever the issuer has stored, a new token works.
                world.assert_joins(&world.token());
                restore(&world);
            }
        }
    }
    println!("{failed} connections cut, {used} after the token was used, {joined} came through");
    assert!(failed > 20 && used > 2 && joined > 2, "{failed} failed, {used} after use, {joined} joined");
}

#[test]
fn join_does_not_overwrite_a_known_cluster_or_domain() {
    let world = World::new();
    world.assert_joins(&world.token());
    let after = [world.east.stored(), world.west.stored()];
    // A known cluster's name, in another domain.
    let west = Side::new("west", "north.example");
    let made =
        create(&world.east.context, Target::Address(world.endpoint.at), west.party.clone(), world::QUARTER);
    let error = made.unwrap_err();
    assert!(matches!(error, CreateError::Known(_)), "{error}");
    assert!(error.to_string().contains("is known here with trust domain west.example"), "{error}");
    // A known domain with another root: another authority of the same name.
    let north = Side::new("north", "west.example");
    let west = &world.west.party.trust_domain;
    eventually("east's running agent knows west", || world.east.trust.current().bundles.get(west).is_some());
    let token = world.east.token(world.endpoint.at, &north.party);
    let (progress, cause, text) = refused(try_join(&north, &token));
    assert!(matches!(cause, JoinCause::Refused(Refusal::Conflict)), "{text}");
    assert_eq!(progress, Progress::Unused);
    assert!(world.east.states().contains(&State::Open), "refused before it was used up");
    assert_eq!(north.stored().len(), 1);
    // The same at the joiner.
    let (other_east, east) = (Side::new("east", "east.example"), &world.east.party.trust_domain);
    eventually("west's running agent knows east", || world.west.trust.current().bundles.get(east).is_some());
    let endpoint = other_east.serve();
    let token = other_east.token(endpoint.at, &world.west.party);
    let (progress, cause, text) = refused(try_join(&world.west, &token));
    assert!(matches!(cause, JoinCause::Place(_)), "{text}");
    assert!(text.contains("does not trust the agent") && text.contains("still valid"), "{text}");
    assert_eq!(progress, Progress::Unused);
    assert_eq!([world.east.stored(), world.west.stored()], after);
}

#[test]
fn bundle_with_an_additional_root_is_refused_after_the_proof() {
    let world = World::new();
    // Its agent's certificate is of the known root; the bundle has another root besides.
    let domain = world.west.party.trust_domain.clone();
    let other = Authority::generate(domain.clone()).unwrap();
    let known = Bundle::new(&domain, 1, [world.west.root.certificate()]).unwrap();
    let path = world.east.files.bundles.join("west.example.json");
    fs::write(&path, spiffe_bundle::write(&known).unwrap()).unwrap();
    let before = world.east.stored();
    let both = Bundle::new(&domain, 2, [world.west.root.certificate(), other.certificate()]).unwrap();
    fs::write(world.west.files.bundles.join("west.example.json"), spiffe_bundle::write(&both).unwrap())
        .unwrap();
    let wests = world.west.stored();
    let error = block(join(&world.west.at_address("192.0.2.8:15012"), &world.token())).unwrap_err();
    assert!(matches!(*error.cause, JoinCause::Refused(Refusal::Conflict)), "{error}");
    assert_eq!(error.progress, Progress::Used);
    assert_eq!(world.east.stored(), before);
    assert_eq!(world.west.stored(), wests, "the joiner's own writes are rolled back");
}

#[test]
fn repeated_join_replaces_the_addresses() {
    let world = World::new();
    world.assert_joins(&world.token());
    let moved = world.west.at_address("192.0.2.99:15012");
    block(join(&moved, &world.token())).unwrap();
    let known = known(&world.east);
    assert_eq!(known.len(), 1);
    assert_eq!(known[0].introduction.address.to_string(), "192.0.2.99:15012");
}

#[test]
fn join_keeps_a_newer_deny_list_and_a_pem_bundle() {
    let world = World::new();
    let World { east, west, .. } = &world;
    let pem = west.files.bundles.join("east.example.pem");
    fs::write(&pem, east.root.certificate_pem()).unwrap();
    let list = || {
        let trusted = Trust::load(&west.files).unwrap().current();
        trusted.bundles.denied(&east.party.trust_domain).map(isthmus_certs::DenyList::sequence)
    };
    // Another cluster of east's domain may have told west more than east knows.
    for (offered, kept) in [(7, 7), (6, 7), (8, 8)] {
        east.deny("spiffe://east.example/ns/a/sa/denied", offered);
        world.assert_joins(&world.token());
        assert_eq!(list(), Some(kept), "{offered} was offered");
    }
    assert_eq!(fs::read_to_string(pem).unwrap(), east.root.certificate_pem());
    assert!(
        !west.files.bundles.join("east.example.json").exists(),
        "a second file would conflict with the PEM bundle"
    );
}

#[test]
fn clusters_of_one_domain_join_without_touching_its_bundle() {
    let east = Side::new("east", "one.example");
    let north = Side::under(duplicate(&east.root), "north", 7);
    let endpoint = east.serve();
    let bundles = |side: &Side| fs::read_to_string(side.files.bundles.join("one.example.json")).unwrap();
    let before = [bundles(&east), bundles(&north)];
    assert_ne!(before[0], before[1], "another sequence number");
    try_join(&north, &east.token(endpoint.at, &north.party)).unwrap();
    assert_eq!([bundles(&east), bundles(&north)], before);
    assert_eq!((known(&east).len(), known(&north).len()), (1, 1));
    // Another root of the same domain name is refused.
    let false_one = Side::new("south", "one.example");
    let (_, cause, text) = refused(try_join(&false_one, &east.token(endpoint.at, &false_one.party)));
    assert!(matches!(cause, JoinCause::Meet(_) | JoinCause::Place(_)), "{text}");
    assert_eq!((known(&east).len(), known(&false_one).len()), (1, 0));
}

#[test]
fn denied_agent_cannot_join_by_token() {
    let world = World::new();
    world.west.deny("spiffe://west.example/isthmus/west/agent/a", 1);
    let (_, cause, text) = refused(try_join(&world.west, &world.token()));
    // Its own domain denies it: its offer denies itself.
    assert!(matches!(cause, JoinCause::Refused(Refusal::Offer)), "{text}");
    world.assert_east_stored_nothing();
}

impl World {
    fn assert_east_stored_nothing(&self) {
        assert_eq!(self.east.stored(), self.before[0], "east");
    }
}

#[test]
fn token_lifetime_address_and_guest_are_validated() {
    let world = World::new();
    let at = || Target::Address(world.endpoint.at);
    let guest = || world.west.party.clone();
    for lifetime in [Duration::ZERO, Duration::from_millis(999), Duration::from_secs(24 * 3600 + 1)] {
        let error = create(&world.east.context, at(), guest(), lifetime).unwrap_err();
        assert!(matches!(error, CreateError::Lifetime(_)), "{error}");
    }
    let error = create(&world.east.context, "0.0.0.0:15011".parse().unwrap(), guest(), HOUR).unwrap_err();
    assert!(matches!(error, CreateError::Address(_)), "{error}");
    let error = create(&world.east.context, at(), world.east.party.clone(), HOUR).unwrap_err();
    assert!(matches!(error, CreateError::Own(_)), "{error}");
    assert_eq!(world.east.states(), []);
}

#[derive(Debug, Parser)]
enum Cli {
    #[command(subcommand)]
    Token(TokenCommand),
    Join(JoinArgs),
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split(' '))
}

fn list(world: &World, line: &str) -> String {
    let Cli::Token(TokenCommand::List(args)) = parse(line).unwrap() else { panic!("{line}") };
    args.run(world.east.context.tokens()).unwrap()
}

#[test]
fn command_line_creates_lists_and_uses_tokens() {
    let world = World::new();
    let make = |line: &str| {
        let Cli::Token(TokenCommand::Create(args)) = parse(line).unwrap() else { panic!("{line}") };
        args.run(&world.east.context, Target::Address(world.endpoint.at))
    };
    let line = "isthmus-agent token create --config a.yaml --for west --trust-domain west.example";
    assert_eq!(list(&world, "isthmus-agent token list --config a.yaml"), "no tokens");
    let text = make(line).unwrap();
    assert_eq!(text.parse::<Token>().unwrap().reveal(), text, "the output is the token alone");
    let said: serde_json::Value =
        serde_json::from_str(&make(&format!("{line} --lifetime 5m --json")).unwrap()).unwrap();
    let token: Token = said["token"].as_str().unwrap().parse().unwrap();
    let left = token.expires - SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!((1..=300).contains(&left), "{left}");
    assert!(make(&format!("{line} --lifetime 25h")).unwrap_err().to_string().contains("24 hours"));

    let Cli::Join(args) = parse(&format!("isthmus-agent join --config a.yaml {text}")).unwrap() else {
        panic!()
    };
    let said = block(args.run(&world.west.context)).unwrap();
    assert_eq!(said, "joined east (east.example); its agent is at 192.0.2.7:15012");
    let again = block(args.run(&world.west.context)).unwrap_err().to_string();
    assert!(again.contains("has been used"), "{again}");

    let shown = list(&world, "isthmus-agent token list --config a.yaml");
    assert!(
        shown.contains("used ") && shown.contains("open ") && shown.contains("west (west.example)"),
        "{shown}"
    );
    let json = list(&world, "isthmus-agent token list --config a.yaml --json");
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((rows.as_array().unwrap().len(), &rows[0]["for"]["cluster"]), (2, &"west".into()));
    for text in [shown, json] {
        assert!(!text.contains(&token.reveal()[9..]) && !text.contains(&token.id().to_string()), "{text}");
    }
    for wrong in
        ["--for a/b --trust-domain x", "--for a --trust-domain X!", "--for a --trust-domain x --lifetime 5"]
    {
        parse(&format!("isthmus-agent token create --config a.yaml {wrong}")).unwrap_err();
    }
}

#[test]
fn join_context_must_be_of_the_agents_own_cluster() {
    let world = World::new();
    let trust = Trust::load(&world.east.files).unwrap();
    let mut introduction = known_introduction(&world);
    let folders = isthmus_trust::join::Folders {
        state: world.east.dir.path().join("state"),
        bundles: world.east.files.bundles.clone(),
        deny: None,
    };
    let store = Arc::new(isthmus_trust::join::store(&folders.state));
    let error =
        Context::new(trust.clone(), introduction.clone(), folders.clone(), store.clone()).unwrap_err();
    assert!(error.to_string().contains("joining needs one of an agent of west (west.example)"), "{error}");
    introduction.party = world.east.party.clone();
    introduction.address = "[::]:15012".parse().unwrap();
    let error = Context::new(trust, introduction, folders, store).unwrap_err();
    assert!(error.to_string().contains("is not reachable from another cluster"), "{error}");
}

fn known_introduction(world: &World) -> isthmus_trust::join::Introduction {
    world.assert_joins(&world.token());
    known(&world.east)[0].introduction.clone()
}
