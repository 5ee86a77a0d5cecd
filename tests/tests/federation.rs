//! Two clusters whose agents exchange exports: a registry file in one directs clients in the other, if both
//! sides allow it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use isthmus_tests::client::{alert, send};
use isthmus_tests::cluster::{Cluster, east_west, outbound, until_status};
use isthmus_tests::endpoint::Scripted;
use isthmus_tests::gateway::Gateway;
use isthmus_tests::hello::hello;
use isthmus_tests::wait::{until, until_some, within};
use isthmus_tests::workload::{Caller, Demands, endpoint};
use serde_json::{Value, json};

const HOST: &str = "details.bookinfo.svc.cluster.local";
const UNRECOGNIZED_NAME: u8 = 112;
const INTERNAL_ERROR: u8 = 80;
const A_WHILE: Duration = Duration::from_millis(300);

/// East exports, west imports; each has a gateway.
struct World {
    east: Cluster,
    west: Cluster,
    east_gateway: Gateway,
    west_gateway: Gateway,
}

impl World {
    /// `exports` are east's, `imports` west's.
    fn new(exports: &str, imports: &str) -> World {
        let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
        east.trust_cluster(&west);
        west.trust_cluster(&east);
        // The gateway's port is known once it runs, which requires its agent.
        east.start();
        let east_gateway = east.gateway("gw-1");
        east.stop();
        west.start();
        let port = east_west(&east_gateway).port();
        east.set("gateways", &format!("[{{ name: gw-1, address: 127.0.0.1, port: {port} }}]"));
        east.set("exports", exports);
        east.set("peers", &format!("[{}]", west.as_peer()));
        west.set("peers", &format!("[{}]", east.as_peer()));
        west.set("imports", imports);
        west.stop();
        east.start();
        west.start();
        let west_gateway = west.gateway("gw-1");
        World { east, west, east_gateway, west_gateway }
    }

    fn usual() -> World {
        let imports = "[{ cluster: east, hosts: ['*.bookinfo.svc.cluster.local', src-db.pxc], gatewayCIDRs: [127.0.0.0/8] }]";
        World::new("[{ workspace: [bookinfo], instances: [db-0] }]", imports)
    }
}

fn service(host: &str, endpoint: &Scripted, more: &str) -> String {
    format!(
        "services: [{{ host: {host}, allow_unauthenticated: true, {more}endpoints: [{{ address: '{}', instance: db-0, aliases: [src-db.pxc] }}] }}]",
        endpoint.address()
    )
}

fn leads_to(gateway: SocketAddr, name: &str, greeting: &[u8]) -> bool {
    let mut answer = vec![0; greeting.len()];
    send(gateway, &hello(name)).read_exact(&mut answer).unwrap();
    answer == greeting
}

fn is_unknown(gateway: SocketAddr, name: &str) -> bool {
    leads_to(gateway, name, &alert(UNRECOGNIZED_NAME))
}

#[test]
fn registry_file_in_east_directs_clients_in_west() {
    let (one, two) = (Scripted::echo(b"one...."), Scripted::echo(b"two...."));
    let world = World::usual();
    let west = outbound(&world.west_gateway);
    assert!(is_unknown(west, HOST));
    world.east.register("details.yaml", &service(HOST, &one, ""));
    until("west reaches the service", || leads_to(west, HOST, b"one...."));
    assert!(leads_to(west, &format!("outbound_.443_._.{HOST}"), b"one...."));
    assert!(leads_to(west, &format!("db-0.{HOST}"), b"one...."), "an instance exported by name");
    assert!(leads_to(west, "src-db.pxc", b"one...."), "an alias of the instance");
    assert!(is_unknown(west, &format!("db-1.{HOST}")));
    assert!(is_unknown(east_west(&world.west_gateway), HOST), "west's east-west listener offers imports");
    world.east.register("details.yaml", &service(HOST, &two, ""));
    until("new connections go to the new endpoint", || leads_to(west, HOST, b"two...."));
    let log = world.west_gateway.log();
    until("the access log names the cluster", || {
        log.lines().iter().any(|line| line.text("cluster") == "east")
    });
    world.east.forget("details.yaml");
    until("the name is unknown", || is_unknown(west, HOST));
    assert!(is_unknown(outbound(&world.east_gateway), HOST));
}

#[test]
fn service_without_export_or_import_stays_local() {
    let one = Scripted::echo(b"one....");
    let world = World::usual();
    let hidden = "secret.payroll.svc.cluster.local";
    world.east.register("details.yaml", &service(HOST, &one, ""));
    world.east.register("hidden.yaml", &service(hidden, &one, "").replace(", aliases: [src-db.pxc]", ""));
    let (west, east) = (outbound(&world.west_gateway), &world.east_gateway);
    until("west reaches the exported service", || leads_to(west, HOST, b"one...."));
    until("local clients reach the hidden service", || leads_to(outbound(east), hidden, b"one...."));
    assert!(is_unknown(east_west(east), hidden), "the east-west listener offers the hidden service");
    assert!(is_unknown(east_west(east), &format!("outbound_.443_._.{hidden}")));
    assert!(is_unknown(east_west(east), &format!("db-0.{hidden}")));
    assert!(is_unknown(west, hidden));

    let refusing =
        World::new("[{ workspace: ['*/bookinfo'] }]", "[{ cluster: east, hosts: [other.example] }]");
    refusing.east.register("details.yaml", &service(HOST, &one, ""));
    until("east offers the service", || leads_to(east_west(&refusing.east_gateway), HOST, b"one...."));
    assert!(
        !within(A_WHILE, || !is_unknown(outbound(&refusing.west_gateway), HOST)),
        "west imports without consent"
    );
}

#[test]
fn peer_outage_and_restarts_keep_working_services() {
    let (one, two) = (Scripted::echo(b"one...."), Scripted::echo(b"two...."));
    let mut world = World::usual();
    for (cluster, name) in [(&mut world.east, "east"), (&mut world.west, "west")] {
        let state = cluster.path("state").display().to_string();
        cluster.set("state", &state);
        cluster.stop();
        cluster.start();
        assert_eq!(cluster.name(), name);
    }
    let west = outbound(&world.west_gateway);
    world.east.register("details.yaml", &service(HOST, &one, ""));
    until("west reaches the service", || leads_to(west, HOST, b"one...."));
    world.east.stop();
    world.east.start();
    fs::remove_dir_all(world.east.path("gw-1")).unwrap();
    let unchanged = world.east.gateway("gw-1");
    until("the unchanged service is served after a restart", || {
        leads_to(outbound(&unchanged), HOST, b"one....")
    });
    drop(unchanged);
    world.east.stop();
    world.west.stop();
    world.west.start();
    fs::remove_dir_all(world.west.path("gw-1")).unwrap();
    let kept = world.west.gateway("gw-1");
    until("west serves the import after its own restart", || leads_to(outbound(&kept), HOST, b"one...."));
    until("west's gateway has persisted its tables", || {
        let state = kept.admin("GET", "/status").json()["state"].clone();
        state["usable"] == true && state["behind"] == false
    });
    drop(kept);
    world.west.stop();
    let kept = world.west.gateway("gw-1");
    assert!(
        leads_to(outbound(&kept), HOST, b"one...."),
        "a gateway without an agent serves its persisted tables at once"
    );
    world.east.register("details.yaml", &service(HOST, &two, ""));
    world.west.start();
    world.east.start();
    until("west has caught up with the change", || leads_to(west, HOST, b"two...."));
    until("everywhere", || leads_to(outbound(&kept), HOST, b"two...."));
    world.east.stop();
    world.east.forget("details.yaml");
    world.east.start();
    until("the withdrawn service is unknown", || is_unknown(west, HOST));
}

#[test]
fn expiring_slices_go_with_unreachable_cluster_and_return_with_it() {
    let one = Scripted::echo(b"one....");
    let mut world = World::usual();
    let west = outbound(&world.west_gateway);
    world.east.register("details.yaml", &service(HOST, &one, "stale: 1s, "));
    until("west reaches the service", || leads_to(west, HOST, b"one...."));
    world.east.stop();
    until("the import has expired", || is_unknown(west, HOST));
    world.east.start();
    until("the service is back", || leads_to(west, HOST, b"one...."));
}

/// Meanwhile their names lead to nobody else.
#[test]
fn probed_slices_lose_unreachable_gateways_and_return_with_them() {
    let (one, other) = (Scripted::echo(b"one...."), Scripted::echo(b"other.."));
    let mut world = World::usual();
    let west = outbound(&world.west_gateway);
    world.east.register("details.yaml", &service(HOST, &one, "stale: probe, "));
    world.west.register("any.yaml", &service("'*.bookinfo.svc.cluster.local'", &other, ""));
    until("west reaches the service", || leads_to(west, HOST, b"one...."));
    until("west reaches the wildcard", || leads_to(west, "any.bookinfo.svc.cluster.local", b"other.."));
    let probed = |cluster: &Cluster| cluster.status().imports.probed;
    assert_eq!(
        probed(&world.west).addresses,
        0,
        "the remote gateway is probed although its agent is reachable"
    );
    world.east.stop();
    until("the remote gateway is probed", || probed(&world.west).addresses == 1);
    assert!(leads_to(west, HOST, b"one...."), "the gateway answers");
    let again = world.east.setup("gw-1").ports_of(&world.east_gateway);
    let at = east_west(&world.east_gateway).to_string();
    drop(world.east_gateway);
    let explained = until_some("the import is unreachable", || {
        let import = world.west.ask(&format!("/explain?host={HOST}"))["imports"][0].clone();
        import["held"].as_str().is_some_and(|why| why.contains(&at)).then_some(import)
    });
    until("the service has no endpoint", || leads_to(west, HOST, &alert(INTERNAL_ERROR)));
    assert_eq!(
        (&explained["stale"]["rule"], &explained["stale"]["down"][0]["address"]),
        (&"probe".into(), &at.into())
    );
    assert!(world.west.metrics().contains("\nisthmus_agent_stale_down 1\n"));
    world.east_gateway = again.start();
    until("the remote gateway answers", || leads_to(west, HOST, b"one...."));
    assert_eq!(probed(&world.west).down, 0);
    world.east.start();
    until("the remote agent is reachable", || probed(&world.west).addresses == 0);
    assert!(leads_to(west, HOST, b"one...."));
}

/// The documented table matches the metrics of a running agent: names, types, labels and meanings.
#[test]
fn agent_metrics_match_documentation() {
    let mut world = World::usual();
    let state = world.west.path("state").display().to_string();
    world.west.set("state", &state);
    world.west.stop();
    world.west.start();
    let text = world.west.metrics();
    let field = |what: &str, name: &str| {
        let start = format!("# {what} {name} ");
        text.lines()
            .find_map(|line| line.strip_prefix(&start))
            .unwrap_or_else(|| panic!("{start}"))
            .to_owned()
    };
    let row = |name: &str| {
        let series = |line: &&str| line.split(['{', ' ']).next() == Some(name);
        let line = text.lines().find(series).unwrap_or_else(|| panic!("{name} has no series"));
        let pairs = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
        let labels: Vec<_> =
            pairs.split_terminator(',').map(|pair| pair.split('=').next().unwrap()).collect();
        let labels = if labels.is_empty() { "–".to_owned() } else { format!("`{}`", labels.join("`, `")) };
        format!("| `{name}` | {} | {labels} | {} |", field("TYPE", name), field("HELP", name))
    };
    let series = text.lines().filter(|line| !line.starts_with('#'));
    let exported: BTreeSet<_> = series.map(|line| row(line.split(['{', ' ']).next().unwrap())).collect();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    let page = fs::read_to_string(path).unwrap();
    let (_gateway, documentation) = page.split_once("\n## Agent\n").unwrap();
    let documented = documentation.lines().filter(|line| line.starts_with("| `isthmus_agent_"));
    let documented: BTreeSet<_> = documented.map(str::to_owned).collect();
    assert!(exported.len() > 10, "{exported:#?}");
    assert_eq!(exported, documented);
}

#[test]
fn endpoints_without_mtls_are_not_exported() {
    let world = World::usual();
    let good = endpoint(&world.east, Demands::Certificate, b"greeting");
    let open = endpoint(&world.east, Demands::Nothing, b"greeting");
    let (good, open) = (good.address(), open.address());
    let caller = Caller::in_cluster(&world.west);
    let west = outbound(&world.west_gateway);
    let file = |endpoint: SocketAddr| {
        format!("services: [{{ host: {HOST}, endpoints: [{{ address: '{endpoint}' }}] }}]")
    };
    world.east.register("details.yaml", &file(open));
    let why = until_status(&world.east, "the service is not exported", |status| {
        let held = status["exports"]["held_back"].as_array()?.iter().find(|held| held["host"] == HOST)?;
        Some(held["why"].to_string()).filter(|why| why.contains("without asking for a client certificate"))
    });
    assert!(why.contains("not_mtls") && why.contains("set `client_certificate` on the service"), "{why}");
    assert!(is_unknown(west, HOST) && is_unknown(east_west(&world.east_gateway), HOST));
    world.east.register("details.yaml", &file(good));
    until("west reaches the exported service", || caller.call(west, HOST).is_ok());
    let server = caller.call(west, HOST).unwrap().server;
    assert_eq!(server, "spiffe://east.example/ns/bookinfo/sa/server", "identity is end to end");
    let both = file(good).replace("}] }]", &format!("}}, {{ address: '{open}' }}] }}]"));
    world.east.register("details.yaml", &both);
    until("local clients reach both endpoints", || {
        world.east_gateway.admin("GET", &format!("/services?name={HOST}")).body.contains(&open.to_string())
    });
    for _ in 0..10 {
        caller.call(west, HOST).expect("other clusters reach the mTLS endpoint only");
    }
    assert_eq!(world.east.ask(&format!("/explain?host={HOST}"))["offer"]["ports"][0]["exposed"], 1);
}

#[test]
fn status_shows_imports_and_quarantine_reasons() {
    let one = Scripted::echo(b"one....");
    let world = World::usual();
    let other = "secret.payroll.svc.cluster.local";
    world.east.register("details.yaml", &service(HOST, &one, ""));
    world.west.register("mine.yaml", &service(other, &one, "").replace(", aliases: [src-db.pxc]", ""));
    until("west reaches the service", || leads_to(outbound(&world.west_gateway), HOST, b"one...."));
    let status = world.west.ask("/status");
    assert_eq!(status["imports"]["imported"][0]["host"], HOST);
    assert_eq!(status["peers"]["east"]["connected"], true);
    until("west's agent has read its own file", || {
        let explained = world.west.ask(&format!("/explain?host={other}"));
        explained["registry"]["why_not"] == "no export rule selects it"
    });
    until_status(&world.east, "the peer has acknowledged the export", |status| {
        let peers = status["nodes"]["peers"].as_array()?;
        peers.iter().find(|peer| {
            peer["peer"].as_str().unwrap().contains("/isthmus/west/agent/") && peer["settled"] == true
        })?;
        Some(())
    });
    world.west.register("own.yaml", &service(HOST, &one, "").replace(", aliases: [src-db.pxc]", ""));
    let why = until_status(&world.west, "the local service takes precedence", |status| {
        Some(status["imports"]["held_back"].as_array()?.first()?["held"].to_string())
    });
    assert!(why.contains("has the name of a service of this cluster"), "{why}");
    let gateway = world.west_gateway.admin("GET", "/status").body;
    assert!(gateway.contains("\"connected\":true") || gateway.contains("\"connected\": true"), "{gateway}");
}

/// A VM's registration.
fn registration(cluster: &Cluster, name: &str, host: &str, endpoint: &Scripted) -> String {
    let path = cluster.path(name);
    let body = format!(
        "{{\"host\": \"{host}\", \"instance\": \"vm-0\", \"endpoints\": [{{\"address\": \"{}\"}}]}}",
        endpoint.address()
    );
    fs::write(&path, body).unwrap();
    path.display().to_string()
}

#[test]
fn cli_registration_reaches_other_clusters_and_requires_proof() {
    const OTHER: &str = "ratings.bookinfo.svc.cluster.local";
    let (one, thief) = (Scripted::echo(b"one...."), Scripted::echo(b"thief.."));
    let mut world = World::usual();
    let (state, token) = (world.east.path("state"), world.east.path("token"));
    fs::write(&token, "a-token-of-the-vms\n").unwrap();
    world.east.set("state", &state.display().to_string());
    world.east.set("registration", &format!("{{ tokens: {{ vms: {} }} }}", token.display()));
    world.east.stop();
    world.east.start();
    let west = outbound(&world.west_gateway);
    world.east.register(
        "open.yaml",
        &format!(
            "services: [{{ host: {HOST}, allow_unauthenticated: true, registered: true, endpoints: [] }}]"
        ),
    );
    world.east.register("shut.yaml", &service(OTHER, &one, ""));
    until("the service of a file is reachable", || leads_to(west, OTHER, b"one...."));
    let body = registration(&world.east, "vm.json", HOST, &one);
    // Through the socket in the agent's configuration.
    let reply = world.east.command(&["register", &body]).unwrap();
    let lease: Value = serde_json::from_str(&reply).unwrap();
    let lease = lease["lease"].as_str().unwrap();
    until("west reaches the service", || leads_to(west, HOST, b"one...."));
    assert_eq!(world.east.ask("/status")["registry"]["registrars"].as_object().unwrap().len(), 1);
    // Refused over TCP and to other users of the machine; no registration overrides a file's service.
    let stolen = registration(&world.east, "thief.json", OTHER, &thief);
    let admin = world.east.address("admin").to_string();
    let why = world.east.command(&["register", &stolen, "--admin", &admin]).unwrap_err();
    assert!(why.contains("registering needs a proof"), "{why}");
    let by_token = ["--admin", &*admin, "--token-file", token.to_str().unwrap()];
    let why = world.east.command(&[&["register", &*stolen], &by_token[..]].concat()).unwrap_err();
    assert!(why.contains("without `registered: true`"), "{why}");
    let instance = registration(&world.east, "thief.json", &format!("db-0.{OTHER}"), &thief);
    let why = world.east.command(&["register", &instance]).unwrap_err();
    assert!(why.contains("is already a name of ratings.bookinfo.svc.cluster.local"), "{why}");
    world.east.command(&["heartbeat", lease]).unwrap();
    assert!(leads_to(west, OTHER, b"one....") && thief.hellos().is_empty());
    // A file that closes the service removes the VM.
    world.east.register("open.yaml", &service(HOST, &thief, ""));
    until("only the file's own endpoint is left", || {
        leads_to(west, HOST, b"thief..") && leads_to(west, HOST, b"thief..")
    });
    world.east.register(
        "open.yaml",
        &format!(
            "services: [{{ host: {HOST}, allow_unauthenticated: true, registered: true, endpoints: [] }}]"
        ),
    );
    until("the service is back", || leads_to(west, HOST, b"one...."));
    world.east.command(&["deregister", lease]).unwrap();
    until("the service is gone", || !leads_to(west, HOST, b"one...."));
}

/// The kernel reports the user of the socket's client.
#[test]
fn registration_by_another_user_is_refused() {
    if !isthmus_tests::is_root() {
        isthmus_tests::skip!("another user requires root");
    }
    let one = Scripted::echo(b"one....");
    let mut east = Cluster::new("east");
    let run = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let socket = run.path().join("agent.sock").display().to_string();
    let body = run.path().join("vm.json");
    fs::copy(registration(&east, "vm.json", HOST, &one), &body).unwrap();
    let program = run.path().join("isthmus-agent");
    fs::copy(isthmus_tests::binary::agent(), &program).unwrap();
    let tell = |user: u32| {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
        let command = command.arg(&program).arg("register").arg(&body).args(["--socket", &socket]);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    east.set("registration", &format!("{{ socket: {socket}, users: [65533] }}"));
    east.start();
    until("the socket exists", || tell(0).0);
    let (done, why) = tell(65534);
    assert!(!done && why.contains("user 65534 may not register here"), "{why}");
    let (done, why) = tell(65533);
    assert!(
        !done && why.contains("registered by another user"),
        "another user's registration was overridden: {why}"
    );
}

#[test]
fn joined_agent_name_that_resolves_to_loopback_is_not_dialled() {
    let (mut east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.trust_cluster(&west);
    let local = TcpListener::bind("127.0.0.1:0").unwrap();
    local.set_nonblocking(true).unwrap();
    east.set("state", &east.path("state").display().to_string());
    fs::create_dir_all(east.path("state/peers")).unwrap();
    let record = json!({
        "cluster": "west", "trust_domain": "west.example", "network": "west-net",
        "address": format!("localhost:{}", local.local_addr().unwrap().port()), "gateways": [],
        "joined_at": "2026-11-21T13:00:00Z",
    });
    fs::write(east.path("state/peers/west.json"), record.to_string()).unwrap();
    east.start();
    until_status(&east, "the agent reports why it does not follow west", |status| {
        status["peers"]["west"]["error"].as_str()?.contains("may not lead there").then_some(())
    });
    assert_eq!(local.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "no connection was made");
}

#[test]
fn clusters_join_by_token() {
    let one = Scripted::echo(b"one....");
    let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
    east.start();
    let east_gateway = east.gateway("gw-1");
    west.start();
    let west_gateway = west.gateway("gw-1");
    let port = east_west(&east_gateway).port();
    east.set("gateways", &format!("[{{ name: gw-1, address: 127.0.0.1, port: {port} }}]"));
    east.set("exports", "[{ workspace: ['*/bookinfo'] }]");
    west.set("exports", "[{ workspace: ['*/bookinfo'] }]");
    west.set("imports", "[{ cluster: east, gatewayCIDRs: [127.0.0.0/8] }]");
    for cluster in [&mut east, &mut west] {
        let (state, address) = (cluster.path("state").display().to_string(), cluster.agent_address());
        cluster.set("state", &state);
        cluster.set("xds", &format!("{{ address: '{address}', advertise: '{address}' }}"));
    }
    east.set("join", "{ address: '127.0.0.1:0', advertise: '127.0.0.1:1' }");
    for cluster in [&mut east, &mut west] {
        cluster.stop();
        cluster.start();
    }
    let place = east.address("join");
    east.set("join", &format!("{{ address: '{place}', advertise: '{place}' }}"));
    let create = ["token", "create", "--for", "west", "--trust-domain", "west.example", "--json"];
    let token: Value = serde_json::from_str(&east.command(&create).unwrap()).unwrap();
    let token = token["token"].as_str().unwrap();
    east.register("details.yaml", &service(HOST, &one, "").replace(", aliases: [src-db.pxc]", ""));
    assert!(is_unknown(outbound(&west_gateway), HOST));
    west.command(&["join", token]).unwrap();
    until("west reaches a service of the shared workspace", || {
        leads_to(outbound(&west_gateway), HOST, b"one....")
    });
    let again = west.command(&["join", token]).unwrap_err();
    assert!(again.contains("token"), "{again}");
}
