//! Outages of agents, peers and links while a service is called continuously: no call fails, tables stay, and
//! missed changes arrive afterwards. Row 15 of the hazards, except its duration.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::netns::Star;
use isthmus_tests::skip;
use isthmus_tests::wait::{throughout, until, within};
use isthmus_tests::workload::{Call, Caller, Demands, echo, endpoint, endpoint_after};
use isthmus_tests::world::World;

use super::busy::{Busy, PACE, busy};
use super::{BOOKINFO, DETAILS, RATINGS, REVIEWS, imported, is_connected, restart, service};

const LATE: &str = "late.bookinfo.svc.cluster.local";
const SLOW: &str = "slow.bookinfo.svc.cluster.local";
/// Time limit to notice a silently lost connection, which takes 30 s.
const NOTICED: Duration = Duration::from_secs(60);

/// West continuously calls east; east may call south.
struct Returning {
    busy: Busy,
    /// A connection opened before all outages.
    long: Call,
    from_east: Caller,
    east_out: SocketAddr,
    three: Scripted,
    east: Cluster,
    west: Cluster,
    south: Cluster,
    _south_gateway: Gateway,
    net: Star,
}

#[test]
fn agent_and_link_outages_fail_no_call() {
    let mut world = match World::peers(["east", "west", "south"]) {
        Ok(world) => Returning::new(world),
        Err(why) => skip!("{why}"),
    };
    world.agents_restart_in_turn();
    world.agent_with_slow_endpoints_restarts();
    world.net.cut(3).unwrap();
    world.south.register("late.yaml", &service(LATE, &[&world.three], "").replace("src-0", "src-8"));
    world.agent_outage();
    world.peer_outage();
    echo(&mut world.long).expect("the connection from before all outages works");
    world.busy.end(500);
}

impl Returning {
    fn new(world: World<3>) -> Returning {
        let World { clusters: [mut east, mut west, mut south], net } = world;
        south.set("exports", "[{ workspace: [bookinfo] }]");
        east.set("imports", &format!("[{{ cluster: south, hosts: [{BOOKINFO}] }}]"));
        south.start();
        let south_gateway = south.gateway("gw-1");
        let three = endpoint(&south, Demands::Certificate, b"south---");
        south.register("reviews.yaml", &service(REVIEWS, &[&three], ""));
        let busy = busy(&mut east, &mut west);
        let (from_east, east_out) = (Caller::in_cluster(&east), outbound(&busy.gateways[0]));
        until("east reaches south", || from_east.call(east_out, REVIEWS).is_ok());
        let long = busy.caller.open(busy.out, DETAILS).unwrap();
        Returning {
            busy,
            long,
            from_east,
            east_out,
            three,
            east,
            west,
            south,
            _south_gateway: south_gateway,
            net,
        }
    }

    /// First with their state, then without.
    fn agents_restart_in_turn(&mut self) {
        let Returning { busy, east, west, .. } = self;
        for _ in 0..2 {
            for (cluster, other) in [(&mut *west, "east"), (&mut *east, "west")] {
                restart(cluster);
                until(&format!("{} is connected to its peer again", cluster.name()), || {
                    is_connected(cluster, other)
                });
                busy.goes_on();
                cluster.unset("state");
            }
            until("west is connected to east again", || is_connected(west, "east"));
            busy.goes_on();
        }
    }

    /// The mTLS checks of slow endpoints take a while after a restart; meanwhile no slice is withdrawn.
    fn agent_with_slow_endpoints_restarts(&mut self) {
        let Returning { busy, east, west, .. } = self;
        let slow = endpoint_after(east, Duration::from_millis(500), b"east-low");
        east.register("slow.yaml", &service(SLOW, &[&slow], "").replace("src-0", "src-7"));
        until("west reaches the slow service", || busy.caller.call(busy.out, SLOW).is_ok());
        let patient = busy.caller.traffic(busy.out, SLOW, PACE);
        restart(east);
        until("west is connected to east again", || is_connected(west, "east") && is_connected(east, "west"));
        let before = patient.calls();
        until("more calls were made", || patient.calls() >= before + 3);
        assert_eq!(patient.end().1, [""; 0], "calls failed meanwhile");
        until("east is connected to south again", || is_connected(east, "south"));
    }

    fn agent_outage(&mut self) {
        let Returning { busy, long, east, west, .. } = self;
        west.stop();
        let new = endpoint(east, Demands::Certificate, b"east-new");
        east.register("ratings.yaml", &service(RATINGS, &[&new], "").replace("src-0", "src-9"));
        until("the service is reachable in east", || {
            Caller::in_cluster(east).call(outbound(&busy.gateways[0]), RATINGS).is_ok()
        });
        throughout(Duration::from_secs(10), "the last good tables serve, and nothing else", || {
            thread::sleep(Duration::from_millis(100));
            busy.traffic.failures().is_empty() && busy.caller.is_unknown(busy.out, RATINGS)
        });
        let status = busy.gateways[1].admin("GET", "/status").json();
        assert_eq!(status["agent"]["connected"], false, "{status}");
        west.start();
        until("missed changes have arrived", || {
            busy.caller.call(busy.out, RATINGS).is_ok_and(|answer| answer.greeting == "east-new")
        });
        echo(long).expect("the connection from before works");
    }

    /// South was disconnected earlier.
    fn peer_outage(&mut self) {
        let Returning { busy, east, net, from_east, east_out, .. } = self;
        assert!(within(NOTICED, || !is_connected(east, "south")), "the outage was not noticed");
        assert_eq!(imported(east), [format!("south/{REVIEWS}")], "the imports have changed");
        let known = busy.gateways[0].admin("GET", &format!("/services?name={REVIEWS}")).body;
        assert!(known.contains("10.78.3.1:15443"), "{known}");
        net.mend(3).unwrap();
        until("the peer is back", || is_connected(east, "south"));
        until("missed changes have arrived", || imported(east).len() == 2);
        for name in [REVIEWS, LATE] {
            until(&format!("{name} is reached"), || from_east.call(*east_out, name).is_ok());
        }
    }
}
