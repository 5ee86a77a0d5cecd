//! Scenarios of an Envoy at an agent, in both protocols.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use isthmus_envoy::export::MAX_CHAINS;
use isthmus_proto::envoy::config::cluster::v3 as cds;
use isthmus_proto::type_url::CLUSTER;
use prost::Message as _;

use crate::common::{ANY, Agent, World};
use crate::process::{Envoy, installed, skip};
use crate::world::{App, Tables, ask, nobody, service, until, withdrawn};

const CDS: &str = "cluster_manager.cds";
const LDS: &str = "listener_manager.lds";
const A: &str = "outbound_.443_._.a.b";
const C: &str = "outbound_.443_._.c.d";

struct Scene {
    world: World,
    tables: Arc<Tables>,
    agent: Agent,
    envoy: Envoy,
    one: App,
    two: App,
}

impl Scene {
    fn begin(program: &PathBuf, api: &str) -> Scene {
        let world = World::new();
        let (one, two) = (App::start(&world, "one"), App::start(&world, "two"));
        let tables = Tables::new(&[service("a.b", &[one.address])]);
        let agent = tables.serve(&world, ANY);
        let envoy = Envoy::start(program, &world, agent.at, api);
        until("Envoy listens", || envoy.east_west().is_some());
        Scene { world, tables, agent, envoy, one, two }
    }

    fn at(&self) -> SocketAddr {
        self.envoy.east_west().unwrap()
    }

    /// The name of the application that answers; empty on failure.
    fn who(&self, sni: &str) -> String {
        ask(&self.world, self.at(), sni).unwrap_or_default()
    }

    fn updates(&self) -> [u64; 3] {
        [CDS, LDS, &format!("cluster.{A}")].map(|of| self.envoy.stat(&format!("{of}.update_success")))
    }

    /// Stops the agent, waits until Envoy has noticed, and starts another one with these tables.
    fn restart_agent_with(&mut self, tables: Arc<Tables>) {
        let at = self.agent.at;
        // The old one must be gone before the new one binds.
        let elsewhere = tables.serve(&self.world, ANY);
        drop(std::mem::replace(&mut self.agent, elsewhere));
        until("Envoy has noticed the loss", || self.envoy.stat("control_plane.connected_state") == 0);
        self.tables = tables;
        self.agent = self.tables.serve(&self.world, at);
        until("Envoy is reconnected and has everything", || {
            self.envoy.stat("control_plane.connected_state") == 1 && self.tables.are_taken()
        });
    }
}

#[test]
fn envoy_follows_over_delta() {
    let Some(program) = installed() else { return skip("envoy is not installed (tests/run installs it)") };
    change_assignment(&mut Scene::begin(&program, "DELTA_GRPC"));
}

#[test]
fn envoy_follows_over_state_of_the_world() {
    let Some(program) = installed() else { return skip("envoy is not installed (tests/run installs it)") };
    change_assignment(&mut Scene::begin(&program, "GRPC"));
}

/// As many services as the tables hold: over delta, the state comes in parts.
#[test]
fn envoy_takes_ten_thousand_services() {
    let Some(program) = installed() else { return skip("envoy is not installed (tests/run installs it)") };
    let world = World::new();
    let app = App::start(&world, "one");
    let host = |number: usize| format!("s{number}.many");
    let services: Vec<_> = (0..MAX_CHAINS).map(|it| service(&host(it), &[app.address])).collect();
    let tables = Tables::new(&services);
    let agent = tables.serve(&world, ANY);
    let envoy = Envoy::start(&program, &world, agent.at, "DELTA_GRPC");
    until("Envoy has everything", || envoy.east_west().is_some() && tables.are_taken());
    for number in [0, 1, MAX_CHAINS / 2, MAX_CHAINS - 1] {
        assert_eq!(ask(&world, envoy.east_west().unwrap(), &host(number)).unwrap(), "one", "{number}");
    }
    tables.change(&[service("one.more", &[app.address])]);
    assert!(tables.0.problems()[0].starts_with("1 services and instances are left out"));
    tables.change(&[withdrawn(&host(0))]);
    until("there is room for it", || {
        ask(&world, envoy.east_west().unwrap(), "one.more").is_ok_and(|answer| answer == "one")
    });
    assert_eq!(tables.0.problems(), [""; 0]);
    assert_eq!(
        envoy.stat(&format!("{LDS}.update_rejected")) + envoy.stat(&format!("{CDS}.update_rejected")),
        0
    );
}

fn change_assignment(scene: &mut Scene) {
    first_sync_and_endpoints(scene);
    added_under_fire(scene);
    cluster_changes(scene);
    refused(scene);
    removed_and_emptied(scene);
    away(scene);
    failover(scene);
    assert_eq!(scene.envoy.stat(&format!("{LDS}.update_rejected")), 0);
    assert_eq!(scene.envoy.stat(&format!("{CDS}.update_rejected")), 1, "the invalid cluster of this test");
    assert_eq!(scene.envoy.stat("tcp.isthmus-east-west.downstream_cx_no_route"), 0);
}

fn first_sync_and_endpoints(scene: &Scene) {
    for sni in ["a.b", A, "A.B"] {
        assert_eq!(scene.who(sni), "one", "{sni}");
    }
    for sni in ["c.d", "xds_cluster", "outbound_.444_._.a.b", "x.a.b"] {
        assert_eq!(scene.who(sni), "", "{sni}");
    }
    let before = scene.updates();
    scene.tables.change(&[service("a.b", &[scene.two.address])]);
    until("the other endpoint answers", || scene.who("a.b") == "two");
    let [cds, lds, eds] = before;
    assert_eq!(scene.updates(), [cds, lds, eds + 1], "an endpoint costs its own resource");
}

/// Once a connection has found the new name, all later ones do: the cluster is warm before the Listener uses it.
fn added_under_fire(scene: &Scene) {
    let (stop, at) = (AtomicBool::new(false), scene.at());
    thread::scope(|scope| {
        let fire = scope.spawn(|| {
            let mut answers = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                answers.push(ask(&scene.world, at, "c.d").unwrap_or_default());
            }
            answers
        });
        scene.tables.change(&[service("c.d", &[scene.one.address])]);
        until("the new service answers", || scene.who("c.d") == "one");
        stop.store(true, Ordering::Relaxed);
        let answers = fire.join().unwrap();
        let served = answers.iter().skip_while(|answer| answer.is_empty());
        assert!(served.clone().all(|answer| answer == "one"), "{answers:?}");
    });
    assert_eq!(scene.who("a.b"), "two");
    assert!(scene.envoy.stat("listener_manager.listener_in_place_updated") >= 1, "connections stay");
}

/// Envoy warms a changed cluster, and does not request its endpoints.
fn cluster_changes(scene: &Scene) {
    let mut changed = service("a.b", &[scene.two.address]);
    changed.offer.as_mut().unwrap().ports[0].max_connections = Some(77);
    scene.tables.change(&[changed]);
    until("the change is in force", || {
        scene.envoy.dump().contains("\"max_connections\": 77") && scene.tables.are_taken()
    });
    until("nothing is warming", || scene.envoy.stat("cluster_manager.warming_clusters") == 0);
    assert_eq!(scene.who("a.b"), "two");
    assert_eq!(scene.envoy.stat(&format!("cluster.{A}.init_fetch_timeout")), 0);
    scene.tables.change(&[service("a.b", &[scene.two.address])]);
    until("it is as before", || scene.tables.are_taken() && scene.who("a.b") == "two");
}

fn refused(scene: &Scene) {
    use cds::cluster::{ClusterDiscoveryType, DiscoveryType};
    let clusters = scene.tables.0.view(CLUSTER).unwrap();
    let bad = cds::Cluster {
        name: "bad".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        ..cds::Cluster::default()
    };
    clusters.change(|view| _ = view.set("bad", bad.encode_to_vec()));
    let refusal = || clusters.all().first().and_then(|follower| follower.refusal.clone());
    until("the refusal is known", || refusal().is_some());
    assert!(refusal().unwrap().contains("bad"), "{:?}", refusal());
    assert_eq!(scene.who("a.b"), "two", "the last accepted tables stay");
    clusters.change(|view| _ = view.remove("bad"));
    until("Envoy has ACKed", || refusal().is_none() && scene.tables.are_taken());
}

fn removed_and_emptied(scene: &Scene) {
    let removed = scene.envoy.stat("cluster_manager.cluster_removed");
    scene.tables.change(&[withdrawn("c.d")]);
    until("its cluster is gone", || {
        scene.envoy.stat("cluster_manager.cluster_removed") > removed && !scene.envoy.dump().contains(C)
    });
    assert_eq!(scene.who("c.d"), "");
    scene.tables.change(&[service("a.b", &[])]);
    until("nobody serves it", || scene.who("a.b").is_empty());
    assert!(scene.envoy.dump().contains(A), "it is emptied, not removed");
    assert_eq!(scene.envoy.stat(&format!("cluster.{A}.membership_total")), 0);
    scene.tables.change(&[service("a.b", &[scene.one.address]), service("c.d", &[scene.two.address])]);
    until("both serve", || scene.who("a.b") == "one" && scene.who("c.d") == "two");
}

fn away(scene: &mut Scene) {
    until("everything is taken", || scene.tables.are_taken());
    let before = scene.updates();
    let same = [service("c.d", &[scene.two.address]), service("a.b", &[scene.one.address])];
    scene.restart_agent_with(Tables::new(&same));
    assert_eq!(scene.updates(), before, "another process has the same versions: nothing is sent again");
    assert_eq!(scene.who("a.b") + &scene.who("c.d"), "onetwo");

    // Services change and are removed while the agent is stopped.
    let mut changed = service("a.b", &[scene.two.address]);
    changed.offer.as_mut().unwrap().ports[0].max_connections = Some(78);
    scene.restart_agent_with(Tables::new(&[changed]));
    until("the removed service is gone", || !scene.envoy.dump().contains(C));
    until("the changed service is in force", || scene.who("a.b") == "two");
    assert_eq!(scene.who("c.d"), "");
    assert_eq!(
        scene.envoy.stat(&format!("cluster.{A}.init_fetch_timeout")),
        0,
        "its endpoints came unrequested"
    );
}

fn failover(scene: &Scene) {
    scene.tables.change(&[service("a.b", &[nobody(), scene.one.address])]);
    until("the first try goes elsewhere", || scene.who("a.b") == "one");
    for _ in 0..10 {
        assert_eq!(scene.who("a.b"), "one");
    }
    assert!(scene.envoy.stat(&format!("cluster.{A}.upstream_cx_connect_fail")) >= 1);
}
