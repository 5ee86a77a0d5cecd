//! Name servers that stand in front of the agent's, with the configuration of `docs/names.md`.

use std::fs;
use std::path::Path;

use isthmus_tests::or_skip;
use isthmus_tests::resolver::Machine;
use isthmus_tests::wait::until;

use super::{PAGE, agent};

/// The folder of programs that `tests/run` installs.
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers");

#[test]
fn dns_names_resolve_through_dnsmasq() {
    let machine = or_skip!(Machine::new());
    let _agent = agent(&machine, "{ upstreams: off }");
    let options = [
        "--server=/mesh.example/127.0.0.1#15053",
        "--server=/bookinfo/127.0.0.1#15053",
        "--server=/svc.cluster.local/127.0.0.1#15053",
        "--address=/www.example/192.0.2.1",
        "--max-cache-ttl=30",
    ];
    let _front = or_skip!(machine.dnsmasq(53, &options));
    let resolve = |name: &str| machine.output(&["getent", "ahostsv4", name]);
    for name in [PAGE, "productpage.bookinfo", "page.mesh.example"] {
        assert!(resolve(name).starts_with("240.15."), "{name}");
    }
    assert!(resolve("www.example").starts_with("192.0.2.1"));
}

/// The program of systemd-resolved, installed or unpacked by `tests/run`.
fn resolved() -> Result<String, String> {
    let unpacked = format!("{PEERS}/systemd-resolved/lib/systemd/systemd-resolved");
    let installed = "/lib/systemd/systemd-resolved".to_owned();
    let found = [unpacked, installed].into_iter().find(|program| Path::new(program).exists());
    found.ok_or_else(|| "systemd-resolved is not installed; tests/run unpacks it".to_owned())
}

#[test]
fn dns_names_resolve_through_systemd_resolved() {
    let machine = or_skip!(Machine::new());
    let program = or_skip!(resolved());
    let _agent = agent(&machine, "{ upstreams: off }");
    let configuration =
        "[Resolve]\nDNS=127.0.0.1:15053\nDomains=~mesh.example ~bookinfo ~svc.cluster.local\n";
    fs::write(machine.path("resolved.conf"), configuration).unwrap();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let user = "systemd-resolve:x:998:65534::/:/usr/sbin/nologin\n";
    fs::write(machine.path("passwd"), passwd + user).unwrap();
    // It drops its rights to a user of its own, and keeps its files where another one of this machine may have them.
    let script = "mkdir -p /run/systemd; mount -t tmpfs tmpfs /run/systemd; mkdir /run/systemd/resolved.conf.d;\
                  cp \"$2\" /run/systemd/resolved.conf.d/isthmus.conf; mount --bind \"$3\" /etc/passwd; exec \"$1\"";
    let paths = ["resolved.conf", "passwd"].map(|name| machine.path(name).display().to_string());
    let _resolved = or_skip!(machine.start(machine.script(script, &[&program, &paths[0], &paths[1]])));
    machine.set_resolver("nameserver 127.0.0.53\noptions edns0 trust-ad\n");
    for name in [PAGE, "productpage.bookinfo", "page.mesh.example"] {
        until("the name resolves", || machine.output(&["getent", "ahostsv4", name]).starts_with("240.15."));
    }
}

/// The configuration that the documentation has for CoreDNS.
fn corefile() -> &'static str {
    let page = include_str!("../../../docs/names.md");
    let (_, section) = page.split_once("**CoreDNS**").unwrap();
    let (_, block) = section.split_once("```text\n").unwrap();
    block.split_once("```").unwrap().0
}

#[test]
fn dns_names_resolve_through_coredns() {
    let machine = or_skip!(Machine::new());
    let program = format!("{PEERS}/coredns/coredns");
    let installed =
        Path::new(&program).exists().then_some(()).ok_or("CoreDNS is not installed; tests/run builds it");
    or_skip!(installed);
    let _agent = agent(&machine, "{ upstreams: off }");
    let others = ".:53 {\n    hosts {\n        192.0.2.1 www.example\n    }\n}\n";
    let file = machine.path("Corefile");
    fs::write(&file, format!("{}{others}", corefile())).unwrap();
    let words = [&program, "-quiet", "-conf", &file.display().to_string()];
    let _front = or_skip!(machine.start(machine.command(&words)));
    let resolve = |name: &str| machine.output(&["getent", "ahostsv4", name]);
    for name in [PAGE, "productpage.bookinfo", "page.mesh.example"] {
        until("the name resolves", || resolve(name).starts_with("240.15."));
    }
    assert!(resolve("www.example").starts_with("192.0.2.1"));
}
