//! Tests a server that is unreachable for more than ten minutes, on a paused clock: the tables stay, attempts come at
//! bounded intervals, and once it is back nothing is sent twice. Row 15 of the hazards.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic anywhere")]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{AGENT, ANY, Agent, GATEWAY, World};
use isthmus_ads::client::{Client, Refused, Update};
use isthmus_ads::service::{Directory, Discovery};
use isthmus_ads::shared::Shared;
use isthmus_ads::subscribe::{Answers, Contact, Subscription, Tables};
use isthmus_certs::SpiffeId;
use isthmus_proto::envoy::config::core::v3::Node;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Status;
use tonic::service::Routes;

const TYPE: &str = "type.googleapis.com/isthmus.v1.ServiceSlice";
const AWAY: Duration = Duration::from_secs(11 * 60);
/// Longest pause between two attempts: the longest backoff, and the connect timeout.
const LONGEST: Duration = Duration::from_secs(15 + 5);

struct One(Arc<Shared>);

impl Directory for One {
    fn view(&self, _peer: &SpiffeId, _type_url: &str) -> Result<Arc<Shared>, Status> {
        Ok(Arc::clone(&self.0))
    }
}

#[derive(Default)]
struct Given {
    tables: BTreeMap<String, Vec<u8>>,
    resources: usize,
    made: usize,
    /// Each failed attempt: when, and why.
    lost: Vec<(Instant, String)>,
}

/// A client that pauses its clock at the first loss, and resumes it once the server is back.
struct Patient {
    given: Arc<Mutex<Given>>,
    /// Sent when [`AWAY`] has passed; received when the server is back.
    over: mpsc::Sender<()>,
    there: mpsc::Receiver<()>,
    is_back: Arc<AtomicBool>,
}

impl Tables for Patient {
    async fn apply(&mut self, update: &Update) -> Vec<Refused> {
        let mut given = self.given.lock().unwrap();
        given.resources += update.resources.len();
        for resource in &update.resources {
            given.tables.insert(resource.name.clone(), resource.bytes.to_vec());
        }
        given.tables.retain(|name, _| !update.removed.contains(name));
        Vec::new()
    }

    fn contact(&mut self, contact: Contact<'_>) {
        let why = match contact {
            Contact::Made(_) => return self.given.lock().unwrap().made += 1,
            Contact::Lost(_, why) => why.to_owned(),
        };
        if self.is_back.load(SeqCst) {
            return;
        }
        let now = Instant::now();
        let first = {
            let mut given = self.given.lock().unwrap();
            given.lost.push((now, why));
            given.lost.first().unwrap().0
        };
        if first == now {
            tokio::time::pause();
        } else if now - first >= AWAY {
            self.over.send(()).unwrap();
            self.there.recv().unwrap();
            tokio::time::resume();
            self.is_back.store(true, SeqCst);
        }
    }
}

#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if condition() {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("waited too long until {what}");
}

fn start(world: &World, shared: &Arc<Shared>, at: SocketAddr) -> Agent {
    world.agent(Routes::new(Discovery::service(Arc::new(One(Arc::clone(shared))))), at)
}

#[test]
fn client_keeps_tables_and_reconnects_after_a_long_outage() {
    let (world, shared) = (World::new(), Arc::new(Shared::new(|_| true)));
    for name in ["a", "b", "c"] {
        shared.change(|view| _ = view.set(name, "1"));
    }
    let agent = start(&world, &shared, ANY);
    let at = agent.at;
    let subscription = Subscription {
        servers: vec![at.to_string().parse().unwrap()],
        within: None,
        tls: world.client(GATEWAY, AGENT),
        node: Node::default(),
        answers: Answers::OF_OWN,
    };
    let (over, is_over) = mpsc::channel();
    let (is_there, there) = mpsc::channel();
    let (end, ended) = oneshot::channel::<()>();
    let (given, is_back) = (Arc::<Mutex<Given>>::default(), Arc::<AtomicBool>::default());
    let mut patient = Patient { given: Arc::clone(&given), over, there, is_back: Arc::clone(&is_back) };
    let client = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // The last pause is the shortest: it passes on a real clock.
        let random = move || if is_back.load(SeqCst) { 0.0 } else { fastrand::f64() };
        runtime.block_on(async {
            tokio::select! {
                () = subscription.follow_with(vec![Client::new(TYPE, [])], &mut patient, random) => {}
                _ = ended => {}
            }
        });
    });
    until("the first state is there", || given.lock().unwrap().tables.len() == 3);
    drop(agent);
    is_over.recv_timeout(Duration::from_secs(30)).expect("eleven minutes pass on a paused clock");
    {
        let given = given.lock().unwrap();
        let times: Vec<_> = given.lost.iter().map(|(time, _)| *time).collect();
        let waits: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(waits.iter().all(|wait| (Duration::from_millis(10)..=LONGEST).contains(wait)), "{waits:?}");
        assert!((33..500).contains(&waits.len()), "{} attempts", waits.len());
        // On a busy machine the paused clock is sometimes faster than the kernel; the attempt then times out.
        let is_attempt = |why: &str| why.starts_with("transport error");
        assert!(
            given.lost[1..].iter().all(|(_, why)| is_attempt(why)),
            "each was a real attempt: {:?}",
            given.lost
        );
        assert!(given.lost[1..].iter().any(|(_, why)| why.contains("refused")), "{:?}", given.lost);
        assert_eq!((given.tables.len(), given.resources, given.made), (3, 3, 1), "the tables stay");
    }
    let _agent = start(&world, &shared, at);
    is_there.send(()).unwrap();
    until("the client has reconnected", || given.lock().unwrap().made == 2);
    shared.change(|view| _ = view.set("d", "1"));
    until("the new resource arrives", || given.lock().unwrap().tables.contains_key("d"));
    assert_eq!(given.lock().unwrap().resources, 4, "unchanged resources were not sent again");
    end.send(()).unwrap();
    client.join().unwrap();
}
