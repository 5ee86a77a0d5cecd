//! A hostile peer with a valid identity: its resources are refused by name, and no other cluster is affected.
//! Row 15 of the hazards.

use std::fs;
use std::io::Write as _;
use std::sync::Arc;

use isthmus_certs::{Authority, Bundle, Peer, Trust, TrustDomain, server_config, spiffe_bundle};
use isthmus_proto::isthmus::v1::Gateway;
use isthmus_proto::type_url::TRUST_BUNDLE;
use isthmus_tests::certs::snapshot;
use isthmus_tests::cluster::{Cluster, until_status};
use isthmus_tests::endpoint::{Endpoint, Scripted};
use isthmus_tests::netns::{Star, inside};
use isthmus_tests::wait::until;
use isthmus_tests::workload::files;
use isthmus_tests::world::World;
use isthmus_tests::{figure, skip};
use isthmus_trust::bundles::encode;
use prost::Message as _;
use rustls::{ServerConnection, StreamOwned};

use super::busy::{Busy, busy};
use super::impostor::{Impostor, named, resource, resource_of, slice};
use super::{BOOKINFO, DETAILS, MIB, PAYROLL, RATINGS, held, imported, is_connected, restart, said_of};

/// An address within the range allowed for south's gateways.
const GATEWAY: &str = "10.78.3.1:15443";

/// West continuously calls east and also has south as a peer, whose agent is simulated.
pub(crate) struct Hostile {
    pub(crate) busy: Busy,
    pub(crate) west: Cluster,
    pub(crate) south: Cluster,
    /// West's memory before south's first message.
    pub(crate) before: u64,
    _east: Cluster,
    _net: Star,
}

#[test]
fn hostile_peer_is_refused_by_name_and_disturbs_nobody() {
    let world = match World::peers(["east", "west", "south"]) {
        Ok(world) => Hostile::new(world),
        Err(why) => skip!("{why}"),
    };
    world.noise_is_refused();
    world.peer_without_agent_identity_is_refused();
    let south = Impostor::in_cluster(&world.south, "agent");
    until("west follows south", || is_connected(&world.west, "south"));
    world.invalid_slices_are_refused_by_name_and_valid_one_is_accepted(&south);
    world.older_slice_is_refused(&south);
    world.slices_without_consent_are_quarantined(&south);
    world.overlong_name_is_truncated_in_reports(&south);
    world.bundles_of_other_domains_are_refused(&south);
    world.oversized_messages_are_refused(&south);
    world.busy.end(50);
}

impl Hostile {
    pub(crate) fn new(world: World<3>) -> Hostile {
        let World { clusters: [mut east, mut west, south], net } = world;
        // Only west follows south.
        let peer = west.as_peer();
        east.set("peers", &format!("[{peer}]"));
        let busy = busy(&mut east, &mut west);
        let of_east = format!("{{ cluster: east, hosts: [{BOOKINFO}] }}");
        let of_south = format!("{{ cluster: south, hosts: [{BOOKINFO}], gatewayCIDRs: [10.78.3.0/24] }}");
        west.set("imports", &format!("[{of_east}, {of_south}]"));
        restart(&mut west);
        until("west is connected to east", || is_connected(&west, "east"));
        Hostile { before: west.process().memory(), busy, west, south, _east: east, _net: net }
    }

    /// Asserts that exactly these hosts are imported and calls continue.
    #[track_caller]
    fn assert_imports(&self, expected: &[String]) {
        self.busy.goes_on();
        let mut imported = imported(&self.west);
        imported.sort();
        assert_eq!(imported, expected);
    }

    #[track_caller]
    fn assert_valid_imports(&self) {
        self.assert_imports(&[format!("east/{DETAILS}"), format!("south/{RATINGS}")]);
    }

    /// South's agent completes the TLS handshake and continues with noise.
    fn noise_is_refused(&self) {
        let noise = babbler(&self.south);
        let error = until_status(&self.west, "west reports the noise", |status| {
            let error = status["peers"]["south"]["error"].as_str()?.to_owned();
            Some(error).filter(|error| !error.contains("Connection refused"))
        });
        assert!(noise.accepted() > 0 && !is_connected(&self.west, "south"), "{error}");
        drop(noise);
        self.assert_imports(&[format!("east/{DETAILS}")]);
    }

    /// A server in the agent's place, of its cluster but without an agent's identity.
    fn peer_without_agent_identity_is_refused(&self) {
        let other = Impostor::in_cluster(&self.south, "gw-1");
        let error =
            said_of(&self.west, "south", "error", "spiffe://south.example/isthmus/south/gateway/gw-1");
        assert!(other.streams() == 0 && !is_connected(&self.west, "south"), "{error}");
        drop(other);
        self.assert_imports(&[format!("east/{DETAILS}")]);
    }

    fn invalid_slices_are_refused_by_name_and_valid_one_is_accepted(&self, south: &Impostor) {
        let good = slice("south", RATINGS, 5, GATEWAY);
        let outside = slice("south", "outside.bookinfo.svc.cluster.local", 1, "10.78.1.1:15443");
        let mut mixed = slice("south", "mixed.bookinfo.svc.cluster.local", 1, GATEWAY);
        mixed.gateways.push(Gateway { address: "127.0.0.1:15014".to_owned(), ..Gateway::default() });
        let foreign = slice("east", DETAILS, u64::MAX, GATEWAY);
        let garbage: Vec<u8> = (0..=255).rev().cycle().take(4096).collect();
        south.say(
            "many",
            vec![
                named(&outside),
                named(&mixed),
                named(&foreign),
                named(&good),
                resource("south/noise.bookinfo.svc.cluster.local", garbage),
                resource("south/other.bookinfo.svc.cluster.local", good.encode_to_vec()),
            ],
        );
        let why = south.answer("many").expect("a refusal");
        for (name, word) in [
            ("south/outside.bookinfo", "10.78.1.1:15443, which `imports` does not allow"),
            ("south/mixed.bookinfo", "127.0.0.1:15014, which `imports` does not allow"),
            ("east/details.bookinfo", "south may publish only its own slices"),
            ("south/noise.bookinfo", "cannot be decoded"),
            ("south/other.bookinfo", "is the slice of south/ratings"),
        ] {
            assert!(why.contains(name) && why.contains(word), "{name}: {why}");
        }
        assert!(!why.contains(&format!("south/{RATINGS}: ")), "a valid slice is named: {why}");
        self.assert_valid_imports();
        assert_eq!(self.west.ask("/status")["peers"]["south"]["refusals"], 5);
    }

    fn older_slice_is_refused(&self, south: &Impostor) {
        south.say("old", vec![named(&slice("south", RATINGS, 4, "10.78.3.9:15443"))]);
        let why = south.answer("old").expect("a refusal");
        assert!(why.contains("an old slice never replaces a newer one"), "{why}");
        assert!(said_of(&self.west, "south", "refusal", "of revision 1.4").contains(RATINGS));
        self.assert_valid_imports();
    }

    /// Slices that south owns but west does not consent to.
    fn slices_without_consent_are_quarantined(&self, south: &Impostor) {
        let (secret, stolen) = (slice("south", PAYROLL, 1, GATEWAY), slice("south", DETAILS, 1, GATEWAY));
        south.say("names", vec![named(&secret), named(&stolen)]);
        assert_eq!(south.answer("names"), None);
        assert!(held(&self.west, "south", PAYROLL).unwrap().contains("was not granted"));
        assert!(held(&self.west, "south", DETAILS).unwrap().contains("has the name of a service of east"));
        self.assert_valid_imports();
    }

    /// Bundles of another domain, an older one, one without a sequence, noise; then a valid one.
    fn bundles_of_other_domains_are_refused(&self, south: &Impostor) {
        let bundle = |domain: &str| {
            let text = fs::read_to_string(self.west.path(&format!("pki/bundles/{domain}.json"))).unwrap();
            spiffe_bundle::read(&TrustDomain::new(domain).unwrap(), &text).unwrap()
        };
        let domain = TrustDomain::new("south.example").unwrap();
        let known = bundle("south.example");
        let numbered = |mut bundle: Bundle, sequence| {
            bundle.sequence = sequence;
            bundle
        };
        let more = Authority::generate(domain.clone()).unwrap();
        let roots = || known.roots().iter().chain([more.certificate()]);
        let other = Bundle::new(&domain, known.sequence, roots()).unwrap();
        let later = Bundle::new(&domain, known.sequence + 1, roots()).unwrap();
        let says = |nonce: &str, name: &str, bytes: Vec<u8>| {
            south.say_of(TRUST_BUNDLE, nonce, vec![resource_of(TRUST_BUNDLE, name, bytes)]);
            south.answer(nonce)
        };
        let before = snapshot(&self.west.path("pki"));
        let of =
            |name: &str, bundle: &Bundle| encode(&TrustDomain::new(name).unwrap(), bundle, None).unwrap();
        let east = numbered(bundle("east.example"), u64::MAX);
        let own = numbered(bundle("west.example"), u64::MAX);
        for (nonce, name, bytes, expected) in [
            (
                "east's",
                "east.example",
                of("east.example", &east),
                "this peer may publish only the bundle of south.example",
            ),
            (
                "west's own",
                "west.example",
                of("west.example", &own),
                "this peer may publish only the bundle of south.example",
            ),
            ("hidden", "south.example", of("east.example", &east), "the resource is about \"east.example\""),
            (
                "older",
                "south.example",
                of("south.example", &numbered(known.clone(), known.sequence - 1)),
                "an old bundle never",
            ),
            ("unordered", "south.example", of("south.example", &other), "but different roots"),
            ("no bundle", "south.example", (0..=255).rev().cycle().take(4096).collect(), "cannot be decoded"),
        ] {
            let why = says(nonce, name, bytes).expect("a refusal");
            assert!(why.contains(&format!("{name}: ")) && why.contains(expected), "{nonce}: {why}");
            let shown = self.west.ask("/status")["peers"]["south"]["bundle"].clone();
            assert!(shown["refusal"].as_str().unwrap().contains(expected), "{nonce}: {shown}");
        }
        assert_eq!(self.west.ask("/status")["peers"]["south"]["bundle"]["refusals"], 6);
        assert_eq!(snapshot(&self.west.path("pki")), before, "a file has changed");
        assert_eq!(says("known", "south.example", of("south.example", &known)), None);
        assert_eq!(says("later", "south.example", of("south.example", &later)), None);
        assert_eq!(bundle("south.example").sequence, later.sequence);
        let shown = self.west.ask("/status")["peers"]["south"]["bundle"].clone();
        assert_eq!((&shown["taken"], &shown["refusal"]), (&later.sequence.into(), &serde_json::Value::Null));
        self.assert_valid_imports();
    }

    fn overlong_name_is_truncated_in_reports(&self, south: &Impostor) {
        let name = format!("south/\u{1b}[31m\n{}", "x".repeat(1 << 20));
        south.say("name", vec![resource(&name, Vec::new())]);
        let answer = south.answer("name").expect("a refusal");
        let refusal = self.west.ask("/status")["peers"]["south"]["refusal"].as_str().unwrap().to_owned();
        let logged = self.west.log_lines().iter().map(String::len).max().unwrap();
        assert!(answer.len() < 4096 && refusal.len() < 4096 && logged < 8192, "{} {logged}", answer.len());
        assert!(!refusal.contains(['\u{1b}', '\n']), "{refusal:?}");
        self.assert_valid_imports();
    }

    /// A message that is refused entirely, then one with a refused slice.
    fn oversized_messages_are_refused(&self, south: &Impostor) {
        let streams = south.streams();
        south.say("huge", vec![resource("south/huge.bookinfo.svc.cluster.local", vec![7; 64 << 20])]);
        until("west reconnects", || south.streams() > streams);
        until("west follows south again", || is_connected(&self.west, "south"));
        self.assert_valid_imports();
        south.say("large", vec![resource("south/large.bookinfo.svc.cluster.local", vec![7; 7 << 20])]);
        let why = south.answer("large").expect("a refusal");
        assert!(why.contains("at most 524288 are taken of a peer"), "{why}");
        self.assert_valid_imports();
        let process = self.west.process();
        let more = |memory: u64| memory.saturating_sub(self.before) / MIB;
        let (now, peak) = (more(process.memory()), more(process.peak()));
        figure!("a hostile peer: agent memory +{now} MiB, peak +{peak} MiB");
        assert!(peak <= 64, "{peak} MiB more");
    }
}

/// A server in the agent's place, with its identity, that sends noise after the handshake.
pub(crate) fn babbler(cluster: &Cluster) -> Scripted {
    let at = cluster.agent_address();
    let endpoint = match cluster.namespace() {
        Some(namespace) => inside(namespace, move || Endpoint::at(at)),
        None => Endpoint::at(at),
    };
    let trust = Trust::load(&files(cluster, "agent")).unwrap().current();
    let mut config = server_config(&trust.identity, Arc::clone(&trust.bundles), Peer::Trusted).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    Scripted::unread_at(endpoint, move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        let _gone = tls.write_all(&[0xa5; 65_536]).and_then(|()| tls.flush());
    })
}
