//! What can fail at a site, and how it is made to fail and mended.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use isthmus_tests::netns::Star;
use rustix::process::Signal;

use crate::backend::Manner;
use crate::world::{EAST, NAMES, Sites, WEST};

/// A shape of failure of one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The endpoint's process is killed.
    Refuses,
    /// Packets to the endpoint vanish.
    BlackHole,
    /// The endpoint accepts and closes.
    Closes,
    /// The endpoint accepts and resets.
    Resets,
    /// The endpoint accepts and never answers.
    Hangs,
    /// The endpoint's process dies and is back, again and again.
    Flaps,
    /// One of the site's gateways is killed.
    OneGateway,
    /// All gateways of the site are killed.
    Gateways,
    /// The site's link is down.
    Partition,
    /// Nothing from west arrives at the site.
    NothingArrives,
    /// Nothing from the site arrives at west.
    NothingReturns,
    /// Endpoints, gateways and agent are killed.
    Site,
    /// The site's gateways stop and go on, several times a second.
    SlowGateways,
}

/// Half of the time of a flap.
const FLAP: Duration = Duration::from_millis(500);
/// How long a slow gateway stops and goes on.
const SLOW: [Duration; 2] = [Duration::from_millis(150), Duration::from_millis(50)];

impl Fault {
    /// A name for services and tables of nftables.
    pub(crate) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Begins the failure of a site, or of its endpoint of a service.
    pub(crate) fn inject(self, sites: &mut Sites, service: &str, site: usize) {
        match self {
            Fault::Refuses | Fault::Flaps => sites.backend(service, site).kill(),
            Fault::BlackHole => {
                let port = sites.backend(service, site).address().port();
                self.drop_packets(sites, site, "input", &format!("tcp dport {port}"));
            }
            Fault::Closes => sites.backend(service, site).behave(Manner::Close),
            Fault::Resets => sites.backend(service, site).behave(Manner::Reset),
            Fault::Hangs => sites.backend(service, site).behave(Manner::Hang),
            Fault::OneGateway => sites.gateways.get_mut(&(site, "gw-1")).unwrap().kill(),
            Fault::Gateways => kill_gateways(sites, site),
            Fault::Partition => sites.net.cut(site + 1).unwrap(),
            Fault::NothingArrives => {
                self.drop_packets(sites, site, "input", &format!("ip saddr {}", net_of(WEST)))
            }
            Fault::NothingReturns => {
                self.drop_packets(sites, site, "output", &format!("ip daddr {}", net_of(WEST)));
            }
            Fault::Site => {
                sites.clusters[site].stop();
                kill_gateways(sites, site);
                sites.backends_of(site).for_each(|backend| backend.kill());
            }
            Fault::SlowGateways => signal_gateways(sites, site, Signal::STOP),
        }
    }

    /// Lets the failure last for a while; the caller does nothing else meanwhile.
    pub(crate) fn last(self, sites: &mut Sites, service: &str, site: usize, time: Duration) {
        match self {
            Fault::Flaps => {
                for _ in 0..time.as_millis() / (2 * FLAP.as_millis()) {
                    thread::sleep(FLAP);
                    sites.backend(service, site).rise();
                    thread::sleep(FLAP);
                    sites.backend(service, site).kill();
                }
            }
            Fault::SlowGateways => {
                let [stopped, going] = SLOW;
                for _ in 0..time.as_millis() / (stopped + going).as_millis() {
                    thread::sleep(stopped);
                    signal_gateways(sites, site, Signal::CONT);
                    thread::sleep(going);
                    signal_gateways(sites, site, Signal::STOP);
                }
            }
            _ => thread::sleep(time),
        }
    }

    /// Ends the failure.
    pub(crate) fn mend(self, sites: &mut Sites, service: &str, site: usize) {
        match self {
            Fault::Refuses | Fault::Flaps => sites.backend(service, site).rise(),
            Fault::BlackHole | Fault::NothingArrives | Fault::NothingReturns => {
                nft(sites, site, &format!("delete table inet {}", self.name()));
            }
            Fault::Closes | Fault::Resets | Fault::Hangs => {
                sites.backend(service, site).behave(Manner::Serve)
            }
            Fault::OneGateway => sites.start_gateway(site, "gw-1"),
            Fault::Gateways => start_gateways(sites, site),
            Fault::Partition => sites.net.mend(site + 1).unwrap(),
            Fault::Site => {
                sites.backends_of(site).for_each(|backend| backend.rise());
                sites.clusters[site].start();
                start_gateways(sites, site);
            }
            Fault::SlowGateways => signal_gateways(sites, site, Signal::CONT),
        }
    }

    fn drop_packets(self, sites: &Sites, site: usize, hook: &str, which: &str) {
        let name = self.name();
        let chain = format!("type filter hook {hook} priority -10; policy accept; {which} drop;");
        nft(sites, site, &format!("table inet {name} {{\nchain {hook} {{ {chain} }}\n}}"));
    }
}

/// The addresses of a site.
fn net_of(site: usize) -> String {
    format!("{}/24", Star::address(site + 1))
}

/// Loads rules of nftables at a site.
pub(crate) fn nft(sites: &Sites, site: usize, rules: &str) {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", sites.net.leg(site + 1))).args(["nft", "-f", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft at {}: {rules}", NAMES[site]);
}

fn kill_gateways(sites: &mut Sites, site: usize) {
    gateways_of(sites, site).for_each(|gateway| gateway.kill());
}

fn start_gateways(sites: &mut Sites, site: usize) {
    sites.start_gateway(site, "gw-1");
    if site == EAST {
        sites.start_gateway(site, "gw-2");
    }
}

fn signal_gateways(sites: &mut Sites, site: usize, signal: Signal) {
    gateways_of(sites, site).for_each(|gateway| gateway.signal(signal));
}

fn gateways_of(sites: &mut Sites, site: usize) -> impl Iterator<Item = &mut isthmus_tests::gateway::Gateway> {
    sites.gateways.iter_mut().filter(move |((own, _), _)| *own == site).map(|(_, gateway)| gateway)
}
