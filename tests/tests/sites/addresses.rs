//! A site whose gateways have one host name: every address of it is used, and a changed one is picked up.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use isthmus_tests::netns::Star;
use isthmus_tests::wait::until;
use isthmus_tests::{figure, skip};
use rustix::process::{Pid, Signal, kill_process};

use crate::outage::{failed, pace};
use crate::world::{EAST, NORTH, SECOND, Sites, WEST, host};

const SHOP: &str = "shop";
const NAME: &str = "gateways.east.example";
/// West's name server.
const SERVER: &str = "127.0.0.1:5353";

/// A name server of one name, killed when it is dropped.
struct Names {
    child: Child,
    file: std::path::PathBuf,
}

impl Names {
    fn start(namespace: &str, folder: &Path, addresses: &[Ipv4Addr]) -> Result<Names, String> {
        let file = folder.join("names");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "nsenter"]).arg(format!("--net=/run/netns/{namespace}"));
        command.args([
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
        ]);
        command.args(["--user=root", "--pid-file=", "--port=5353", "--listen-address=127.0.0.1"]);
        command.args(["--bind-interfaces", "--local-ttl=1"]).arg(format!("--addn-hosts={}", file.display()));
        write(&file, addresses);
        let child = command.stderr(Stdio::null()).spawn().map_err(|error| format!("dnsmasq: {error}"))?;
        Ok(Names { child, file })
    }

    fn change(&self, addresses: &[Ipv4Addr]) {
        write(&self.file, addresses);
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), Signal::HUP).unwrap();
    }
}

fn write(file: &Path, addresses: &[Ipv4Addr]) {
    let lines: String = addresses.iter().map(|address| format!("{address} {NAME}\n")).collect();
    fs::write(file, lines).unwrap();
}

impl Drop for Names {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The sites; east's gateways have a name, which leads to the first of them at first.
fn sites(first: Ipv4Addr) -> Result<(Sites, Names), String> {
    if Command::new("dnsmasq").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Err("dnsmasq is not installed (tests/run installs it)".to_owned());
    }
    let mut sites = Sites::prepare()?;
    sites.clusters[EAST].set("gateways", &format!("[{{ name: gw-1, address: {NAME} }}, {{ name: gw-2 }}]"));
    let names = Names::start(sites.net.leg(WEST + 1), sites.clusters[WEST].folder(), &[first])?;
    for site in [EAST, WEST, NORTH] {
        sites.clusters[site].start();
    }
    sites.start_gateway(EAST, "gw-1");
    sites.start_gateway(EAST, "gw-2");
    let of_west =
        sites.clusters[WEST].setup("gw-1").with(&format!("dns: {{ servers: ['{SERVER}'], max_ttl: 1s }}"));
    sites.put_gateway(WEST, "gw-1", &of_west);
    Ok((sites, names))
}

#[test]
fn gateway_host_name_leads_to_each_of_its_addresses_as_they_change() {
    let (first, second) = (Star::address(EAST + 1), Ipv4Addr::from(SECOND));
    let (mut sites, names) = match sites(first) {
        Ok(all) => all,
        Err(why) => skip!("{why}"),
    };
    sites.deploy(SHOP, &[EAST]);
    let knows = |sites: &Sites, wanted: &[Ipv4Addr]| {
        let mut ways: Vec<_> = sites.ways(SHOP).iter().map(|way| way.ip()).collect();
        ways.sort_unstable();
        ways == wanted
    };
    until("west knows the first address", || knows(&sites, &[first]));
    let start = Instant::now();
    let caller = sites.call(SHOP, pace(1));
    let served = |sites: &Sites, name| {
        sites.gateways[&(EAST, name)].log().count(|line| line.text("sni") == host(SHOP))
    };
    until("the first gateway serves", || served(&sites, "gw-1") > 0);
    assert_eq!(served(&sites, "gw-2"), 0);

    names.change(&[first, second]);
    until("west knows both", || knows(&sites, &[first, second]));
    let before = ["gw-1", "gw-2"].map(|name| served(&sites, name));
    until("both gateways serve", || {
        served(&sites, "gw-1") > before[0] + 20 && served(&sites, "gw-2") > before[1] + 20
    });

    names.change(&[second]);
    until("west knows the second address only", || knows(&sites, &[second]));
    let (known, before) = (Instant::now(), served(&sites, "gw-2"));
    until("calls that began before have ended", || caller.since(known).len() > 100);
    sites.gateways.get_mut(&(EAST, "gw-1")).unwrap().kill();
    until("the second gateway serves", || served(&sites, "gw-2") > before + 100);
    let calls = caller.end();
    let failed = failed(&calls, start);
    figure!("{} calls, {} failed while the addresses changed", calls.len(), failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
}
