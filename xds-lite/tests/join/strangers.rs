//! Tests the join endpoint against invalid clients: garbage before and inside TLS, over-long and misordered messages,
//! false offers, a thousand silent connections; and what is logged of them.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use isthmus_certs::{Authority, Bundle, Trust, spiffe_bundle};
use isthmus_trust::join::{JoinCause, Progress, State, Token};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{HOUR, Raw, Side, acceptor, connector, framed, showing, somebody};
use crate::{World, block, eventually, known, through, try_join};

/// Far longer than any deadline of either side.
const PATIENCE: Duration = Duration::from_secs(60);
/// Control characters that a terminal would act on.
const EVIL: &str = "\u{1b}[2Jevil\r\n\u{7}";

async fn ends(mut stream: impl tokio::io::AsyncRead + Unpin) {
    let _ended = stream.read_to_end(&mut Vec::new()).await;
}

#[test]
fn garbage_is_refused_and_does_not_block_joins() {
    let world = World::new();
    let at = world.endpoint.at;
    let hello = [0x16, 3, 1, 0x40, 0];
    let floods: [&[u8]; 5] = [b"", b"GET / HTTP/1.1\r\n\r\n", EVIL.as_bytes(), &hello, &[0; 70_000]];
    block(async {
        for bytes in floods {
            let mut stream = TcpStream::connect(at).await.unwrap();
            let _sent = stream.write_all(bytes).await;
            stream.shutdown().await.ok();
            ends(stream).await;
        }
        let long = |length: u32| length.to_be_bytes().to_vec();
        let inside: [Vec<u8>; 8] = [
            Vec::new(),
            framed(b""),
            framed(EVIL.as_bytes()),
            framed(b"{\"message\": \"offer\"}"),
            framed(json!({ "message": "kept" }).to_string().as_bytes()),
            framed(
                json!({ "message": "prove", "token": EVIL, "proof": "A".repeat(43) }).to_string().as_bytes(),
            ),
            [long(513), vec![b'['; 513]].concat(),
            [long(u32::MAX), vec![b'['; 70_000]].concat(),
        ];
        for bytes in inside {
            let mut raw = Raw::connect_as(&world.west, at).await;
            raw.bytes(&bytes).await;
            raw.stream.shutdown().await.ok();
            match raw.hear().await {
                None => {}
                Some(answer) => assert_eq!(answer, json!({ "message": "refused", "why": "unknown" })),
            }
        }
    });
    world.assert_nothing_stored();
    world.assert_joins(&world.token());
}

#[test]
fn joiner_needs_the_protocol_and_an_agents_certificate() {
    let world = World::new();
    let at = world.endpoint.at;
    let trusted = Trust::load(&world.west.files).unwrap().current();
    let agent = &trusted.identity;
    let gateway = "spiffe://west.example/isthmus/west/gateway/g".parse().unwrap();
    let gateway = world.west.root.issue(&gateway, &[], HOUR).unwrap();
    let other = Authority::generate(world.west.party.trust_domain.clone()).unwrap();
    for (what, shown, alpn) in [
        ("another protocol", showing(agent, &[&world.west.root], agent), "h2"),
        ("a gateway", showing(&gateway, &[&world.west.root], &gateway), "isthmus-join/1"),
        ("no root", showing(agent, &[], agent), "isthmus-join/1"),
        ("another root", showing(agent, &[&other], agent), "isthmus-join/1"),
        ("without the key", showing(agent, &[&world.west.root], &gateway), "isthmus-join/1"),
    ] {
        let answer = block(async {
            let stream = TcpStream::connect(at).await.unwrap();
            let shaken = connector(shown, alpn).connect(at.ip().into(), stream).await;
            // The server verifies a client's certificate after the client's handshake is complete.
            let mut stream = match shaken {
                Ok(stream) => stream,
                Err(error) => return Err(error),
            };
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.map(|_| answer)
        });
        let error = answer.unwrap_err().to_string();
        assert!(error.contains("alert"), "{what}: {error}");
    }
    world.assert_nothing_stored();
    world.assert_joins(&world.token());
}

/// The last answer to a joiner that has proven the secret and then sends these bytes.
async fn after_the_proof(side: &Side, at: SocketAddr, token: &Token, bytes: &[u8]) -> Option<Value> {
    let mut raw = Raw::connect_as(side, at).await;
    let proof = raw.proof(token);
    raw.say(&proof).await;
    assert_eq!(raw.hear().await.unwrap()["message"], "proven");
    raw.bytes(bytes).await;
    raw.stream.shutdown().await.ok();
    let mut last = None;
    while let Some(message) = raw.hear().await {
        last = Some(message);
    }
    last
}

fn offer(side: &Side, change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let bundle = Bundle::new(&side.party.trust_domain, 1, [side.root.certificate()]).unwrap();
    let mut offer = json!({
        "message": "offer",
        "introduction": {
            "cluster": side.party.cluster.as_str(), "trust_domain": side.party.trust_domain.as_str(),
            "network": "west-net", "address": "192.0.2.7:15012", "gateways": [],
        },
        "bundle": spiffe_bundle::write(&bundle).unwrap(),
    });
    change(&mut offer);
    framed(offer.to_string().as_bytes())
}

#[test]
fn false_offer_is_refused_and_nothing_is_stored() {
    let world = World::new();
    let west = &world.west;
    let other = Authority::generate(west.party.trust_domain.clone()).unwrap();
    let bundle_of = |roots: &[&Authority]| {
        let roots = roots.iter().map(|root| root.certificate());
        spiffe_bundle::write(&Bundle::new(&west.party.trust_domain, 1, roots).unwrap()).unwrap()
    };
    let many: Vec<_> =
        (0..17).map(|_| Authority::generate(west.party.trust_domain.clone()).unwrap()).collect();
    let many: Vec<_> = many.iter().chain([&west.root]).collect();
    let gateways: Vec<_> = (0..65).map(|n| format!("192.0.2.7:{}", n + 1)).collect();
    let lies: Vec<(&str, Vec<u8>)> = vec![
        ("another cluster", offer(west, |offer| offer["introduction"]["cluster"] = json!("north"))),
        (
            "another domain",
            offer(west, |offer| offer["introduction"]["trust_domain"] = json!("east.example")),
        ),
        (
            "no address to reach",
            offer(west, |offer| offer["introduction"]["address"] = json!("0.0.0.0:15012")),
        ),
        ("a network that is no name", offer(west, |offer| offer["introduction"]["network"] = json!(EVIL))),
        ("many gateways", offer(west, |offer| offer["introduction"]["gateways"] = json!(gateways))),
        ("another root", offer(west, |offer| offer["bundle"] = json!(bundle_of(&[&other])))),
        ("many roots", offer(west, |offer| offer["bundle"] = json!(bundle_of(&many)))),
        ("no bundle", offer(west, |offer| offer["bundle"] = json!(EVIL))),
        ("a deny-list of nobody", offer(west, |offer| offer["denied"] = json!(EVIL))),
    ];
    for (what, bytes) in lies {
        let answer = block(after_the_proof(west, world.endpoint.at, &world.token(), &bytes));
        assert_eq!(answer, Some(json!({ "message": "refused", "why": "offer" })), "{what}");
    }
    let broken: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("no address", offer(west, |offer| offer["introduction"]["address"] = json!(EVIL))),
        ("no cluster", offer(west, |offer| offer["introduction"]["cluster"] = json!("../../etc/passwd"))),
        ("no domain", offer(west, |offer| offer["introduction"]["trust_domain"] = json!("../west"))),
        ("too long", (1_u32 << 20).saturating_add(1).to_be_bytes().to_vec()),
        ("out of order", framed(br#"{"message": "kept"}"#)),
    ];
    for (what, bytes) in broken {
        let answer = block(after_the_proof(west, world.endpoint.at, &world.token(), &bytes));
        assert_eq!(answer, None, "{what}");
    }
    assert!(world.east.states().iter().all(|state| *state == State::Used), "proven tokens are used up");
    world.assert_nothing_stored();
    world.assert_joins(&world.token());
}

#[test]
fn joiner_is_stored_only_after_its_acknowledgement() {
    let world = World::new();
    let token = world.token();
    let last = block(after_the_proof(&world.west, world.endpoint.at, &token, &offer(&world.west, |_| {})));
    assert_eq!(last.unwrap()["message"], "offer", "it received the offer, and closed");
    world.assert_nothing_stored();
    // The same joiner, with the acknowledgement.
    let token = world.token();
    let bytes = [offer(&world.west, |_| {}), framed(br#"{"message": "kept"}"#)].concat();
    let last = block(after_the_proof(&world.west, world.endpoint.at, &token, &bytes));
    assert_eq!(last, Some(json!({ "message": "done" })));
    assert_eq!(known(&world.east).len(), 1);
}

#[test]
fn stalled_joiner_is_cut_off() {
    let world = World::new();
    let at = world.endpoint.at;
    block(async {
        let silent = TcpStream::connect(at).await.unwrap();
        let shaken = Raw::connect_as(&world.west, at).await;
        let mut proven = Raw::connect_as(&world.west, at).await;
        let proof = proven.proof(&world.token());
        proven.say(&proof).await;
        assert_eq!(proven.hear().await.unwrap()["message"], "proven");
        let all = async { tokio::join!(ends(silent), ends(shaken.stream), ends(proven.stream)) };
        tokio::time::timeout(PATIENCE, all).await.unwrap();
    });
    world.assert_nothing_stored();
    world.assert_joins(&world.token());
}

#[test]
fn joiner_gives_up_at_its_deadline() {
    let world = World::new();
    let identity = Trust::load(&world.east.files).unwrap().current().identity.clone();
    let acceptor = acceptor(showing(&identity, &[&world.east.root], &identity));
    let mute = somebody(|stream| async move {
        let _held = stream;
        std::future::pending().await
    });
    let mute_later = somebody(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let _held = acceptor.accept(stream).await.unwrap();
            std::future::pending().await
        }
    });
    let token = world.token();
    std::thread::scope(|scope| {
        for (host, progress) in [(&mute, Progress::Unused), (&mute_later, Progress::Uncertain)] {
            let token = through(host.at, &token);
            let west = &world.west;
            scope.spawn(move || {
                let error = try_join(west, &token).unwrap_err();
                assert!(matches!(*error.cause, JoinCause::Deadline), "{error}");
                assert_eq!(error.progress, progress);
            });
        }
    });
    world.assert_nothing_stored();
    world.assert_joins(&token);
}

/// Resident memory in KiB.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn thousand_strangers_cost_little_and_do_not_block_a_join() {
    const UNKNOWN_CALLERS: usize = 1_000;
    let world = World::new();
    let token = world.token();
    world.assert_joins(&world.token());
    // The first three records of the longest ClientHello that TLS allows; the rest is never sent.
    let mut hello = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0];
    hello.resize(5 + 0x4000, 0);
    for _ in 0..2 {
        hello.extend([0x16, 3, 1, 0x40, 0]);
        hello.resize(hello.len() + 0x4000, 0);
    }
    let before = memory();
    let strangers: Vec<std::net::TcpStream> = (0..UNKNOWN_CALLERS)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(world.endpoint.at).unwrap();
            let _sent = stream.write_all(&hello);
            stream.set_nonblocking(true).unwrap();
            stream
        })
        .collect();
    let is_open = |mut stream: &std::net::TcpStream| matches!(io::Read::read(&mut stream, &mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
    let open = || strangers.iter().filter(|stream| is_open(stream)).count();
    eventually("all but 64 are closed", || open() <= 64);
    let (kept, grown) = (open(), memory().saturating_sub(before));
    println!("{UNKNOWN_CALLERS} strangers: {kept} held, {grown} KiB");
    assert!(grown < 32 << 10, "{grown} KiB");
    // The newest strangers are still connected, and a joiner after them is served.
    world.assert_joins(&token);
}

#[test]
fn log_of_strangers_is_escaped_and_without_secrets() {
    let log = log();
    let world = World::new();
    let at = world.endpoint.at;
    // A self-signed certificate with control characters in its names.
    let shown = evil_certificate();
    block(async {
        let stream = TcpStream::connect(at).await.unwrap();
        if let Ok(stream) = connector(shown, "isthmus-join/1").connect(at.ip().into(), stream).await {
            ends(stream).await;
        }
        let mut raw = Raw::connect_as(&world.west, at).await;
        raw.say(&json!({ "message": "prove", "token": EVIL, "proof": EVIL })).await;
        ends(raw.stream).await;
        let lie = offer(&world.west, |offer| offer["denied"] = json!(EVIL));
        after_the_proof(&world.west, at, &world.token(), &lie).await;
    });
    let token = world.token();
    world.assert_joins(&token);
    assert_eq!(try_join(&world.west, &token).unwrap_err().progress, Progress::Used);
    let said = |part: &str| log.lock().unwrap().windows(part.len()).any(|window| window == part.as_bytes());
    for part in ["not admitted", "join failed", "cluster joined", "Used"] {
        let part = if part == "Used" { "has been used" } else { part };
        eventually(part, || said(part));
    }
    let text = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    assert!(text.lines().all(|line| line.len() < 2_000), "bounded");
    let secret = token.reveal();
    assert!(!text.contains(secret.strip_prefix("isthmus1.").unwrap()), "no token is logged");
    assert!(!text.contains(&token.id().to_string()), "no whole token ID is logged");
}

fn evil_certificate() -> Arc<rustls::sign::CertifiedKey> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    let name = format!("spiffe://west.example/{EVIL}");
    params.subject_alt_names = vec![rcgen::SanType::URI(name.try_into().unwrap())];
    params.distinguished_name.push(rcgen::DnType::CommonName, EVIL);
    let certificate = params.self_signed(&key).unwrap();
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(
        &rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    );
    Arc::new(rustls::sign::CertifiedKey::new(vec![certificate.der().clone()], signing.unwrap()))
}

type Log = Arc<Mutex<Vec<u8>>>;

/// The log of this process from now on, including that of other tests.
fn log() -> Log {
    static LOG: OnceLock<Log> = OnceLock::new();
    let start = || {
        let log = Log::default();
        let writer = Arc::clone(&log);
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(move || Writer(Arc::clone(&writer)))
            .init();
        log
    };
    Arc::clone(LOG.get_or_init(start))
}

struct Writer(Log);

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
