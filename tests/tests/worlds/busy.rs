//! Two clusters under load: west continuously calls a service in east.

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_tests::cluster::{Cluster, outbound};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::figure;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::log::Line;
use isthmus_tests::wait::until;
use isthmus_tests::workload::{Caller, Demands, Traffic, endpoint};

use super::{BOOKINFO, DETAILS, service};

/// 50 calls per second.
pub(crate) const PACE: Duration = Duration::from_millis(20);

/// East and west, each with a gateway, and a service in east that west calls 50 times per second.
pub(crate) struct Busy {
    pub(crate) traffic: Traffic,
    pub(crate) caller: Caller,
    pub(crate) out: SocketAddr,
    pub(crate) gateways: [Gateway; 2],
    _endpoints: [Scripted; 2],
}

pub(crate) fn busy(east: &mut Cluster, west: &mut Cluster) -> Busy {
    east.set("exports", "[{ workspace: [bookinfo] }]");
    west.set("imports", &format!("[{{ cluster: {}, hosts: [{BOOKINFO}] }}]", east.name()));
    east.start();
    west.start();
    let gateways = [east.gateway("gw-1"), west.gateway("gw-1")];
    let one = endpoint(east, Demands::Certificate, b"east-one");
    let two = endpoint(east, Demands::Certificate, b"east-two");
    east.register("details.yaml", &service(DETAILS, &[&one, &two], ""));
    let (caller, out) = (Caller::in_cluster(west), outbound(&gateways[1]));
    until("west reaches the service", || caller.call(out, DETAILS).is_ok());
    let traffic = caller.traffic(out, DETAILS, PACE);
    Busy { traffic, caller, out, gateways, _endpoints: [one, two] }
}

impl Busy {
    /// Asserts that several more calls succeed.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let before = self.traffic.calls();
        until("there are more calls", || self.traffic.calls() >= before + 10);
        let failures = self.traffic.failures();
        assert!(failures.is_empty(), "{failures:#?}");
    }

    /// Asserts that all calls succeeded, according to the client and to the gateways.
    #[track_caller]
    pub(crate) fn end(self, at_least: usize) {
        let Busy { traffic, gateways, _endpoints, .. } = self;
        let (calls, failures) = traffic.end();
        figure!("{calls} calls meanwhile, {} failed", failures.len());
        assert!(failures.is_empty(), "{failures:#?}");
        assert!(calls >= at_least, "only {calls} calls");
        for gateway in gateways {
            let log = gateway.log().lines();
            let calls = || log.iter().filter(|line| line.text("sni") == DETAILS);
            // Connections before the service existed do not count.
            let first = calls().filter(|line| is_good(line.reason())).map(|line| line.text("time")).min();
            let bad = |line: &&Line| !is_good(line.reason()) && Some(line.text("time")) > first;
            let bad: Vec<_> = calls().filter(bad).collect();
            assert!(first.is_some() && bad.is_empty(), "{bad:#?}");
        }
    }
}

fn is_good(reason: &str) -> bool {
    matches!(reason, "client_closed" | "server_closed")
}
