//! Decodes the tables with grpcio and Envoy's own protos in Python, in both protocols, and compares the trimmed protos
//! with Envoy's. grpcio's xDS client is tested against a whole agent elsewhere.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use isthmus_envoy::export::EAST_WEST;
use isthmus_model::services::Balance;
use isthmus_model::slice::Slice;
use isthmus_model::{HostPattern, Locality};
use isthmus_proto::type_url::{CLUSTER, ENDPOINTS, LISTENER};
use prost::Message as _;
use serde_json::{Value, json};

use crate::common::{ANY, NAME, World};
use crate::process::{credentials, skip};
use crate::world::{Tables, service};

/// Python with grpcio and xds-protos: from `ISTHMUS_XDS_PYTHON`, or where `tests/run` installs it.
fn python() -> Option<PathBuf> {
    let peers = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers-xds/bin/python");
    let places = [env::var_os("ISTHMUS_XDS_PYTHON"), Some(peers.into())];
    let import = "import grpc, envoy.service.discovery.v3.ads_pb2_grpc";
    let runs = |place: &PathBuf| {
        Command::new(place).args(["-c", import]).output().is_ok_and(|output| output.status.success())
    };
    places.into_iter().flatten().map(PathBuf::from).find(runs)
}

#[test]
fn trimmed_protos_match_envoys_names_and_numbers() {
    let Some(python) = python() else {
        return skip("grpcio and xds-protos are not installed (tests/run installs them)");
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let mut files = Vec::new();
    protos(&root.join("envoy"), &mut files);
    protos(&root.join("xds"), &mut files);
    let descriptors = protox::compile(files, [&root]).unwrap().encode_to_vec();
    let mut child = Command::new(python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/envoy/protos.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&descriptors).unwrap();
    let ran = child.wait_with_output().unwrap();
    assert!(ran.status.success());
    let compared: usize = String::from_utf8(ran.stdout).unwrap().trim().parse().unwrap();
    assert!(compared > 400, "{compared} fields were compared");
}

fn protos(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            protos(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// A slice with every setting of a chain and a cluster.
fn full() -> Slice {
    let mut slice = service("a.b", &["10.0.0.1:443".parse().unwrap(), "10.0.0.2:443".parse().unwrap()]);
    let offer = slice.offer.as_mut().unwrap();
    offer.aliases = vec![HostPattern::parse("*.c").unwrap()];
    let port = &mut offer.ports[0];
    port.alpn = vec!["mysql".to_owned()];
    port.sources = vec!["10.0.0.0/8".parse().unwrap()];
    port.balance = Balance::SourceHash;
    port.max_connections = Some(7);
    port.send_proxy = true;
    port.endpoints[0].locality = Locality { zone: "z".to_owned(), ..Locality::default() };
    port.endpoints[0].weight = 5;
    slice
}

#[test]
fn grpcio_decodes_the_tables_in_both_protocols() {
    let Some(python) = python() else {
        return skip("grpcio and xds-protos are not installed (tests/run installs them)");
    };
    let world = World::new();
    let tables = Tables::new(&[full(), service("e.f", &[])]);
    let agent = tables.serve(&world, ANY);
    let folder = credentials(&world);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/envoy/ads.py");
    let ran = Command::new(python)
        .arg(script)
        .arg(agent.at.to_string())
        .arg(folder.path())
        .arg(NAME)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let read: Value = serde_json::from_slice(&ran.stdout).unwrap();

    let (one, two) = ("outbound_.443_._.a.b", "outbound_.443_._.e.f");
    let chain =
        |names: Value, alpn: Value, sources: Value, cluster: &str, by_source: Value, denied: Value| {
            json!({ "names": names, "alpn": alpn, "sources": sources, "transport": "tls", "cluster": cluster,
                "idle": 3600, "by_source": by_source, "denied": denied })
        };
    let cluster = |policy: &str, most: u32, socket: &str| {
        json!({ "type": "EDS", "policy": policy, "ads": "ads", "connect": 3000, "panic": 0.0, "most": most,
                "socket": socket })
    };
    let at = |zone: &str, address: &str, weight: u32| json!({ "zone": zone, "address": address, "weight": weight, "health": 1 });
    let expected = json!({
        "listener": { EAST_WEST: {
            one: chain(json!(["*.c", "a.b", one]), json!(["mysql"]), json!(["10.0.0.0/8"]), one, json!(["source_ip"]), json!([["outbound_.", one]])),
            two: chain(json!(["e.f", two]), json!([]), json!([]), two, json!([]), json!([])),
        } },
        "cluster": {
            one: cluster("MAGLEV", 7, "envoy.transport_sockets.upstream_proxy_protocol"),
            two: cluster("ROUND_ROBIN", u32::MAX, ""),
        },
        "endpoints": { one: [at("", "10.0.0.2:443", 1), at("z", "10.0.0.1:443", 5)], two: [] },
    });
    for (kind, type_url) in [("cluster", CLUSTER), ("endpoints", ENDPOINTS), ("listener", LISTENER)] {
        assert_eq!(read["states"][kind]["content"], expected[kind], "{kind}");
        let shared = tables.0.view(type_url).unwrap();
        let view = shared.view();
        let sent = read["delta"][kind].as_object().unwrap();
        assert_eq!(sent.len(), view.iter().count());
        for (name, resource) in sent {
            assert_eq!(resource["content"], expected[kind][name], "{kind} {name}");
            assert_eq!(resource["version"], *view.get(name).unwrap().version, "{kind} {name}");
        }
    }
}
