//! Runs a real Envoy, and reads its admin pages.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::{env, fs};

use isthmus_certs::SpiffeId;
use isthmus_envoy::export::EAST_WEST;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{AGENT, GATEWAY, World};
use crate::world::until;

const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// Skips a test, with the reason; fails it under `ISTHMUS_REQUIRE_PEERS=1`.
pub(crate) fn skip(why: &str) {
    assert!(env::var("ISTHMUS_REQUIRE_PEERS").as_deref() != Ok("1"), "required, but: {why}");
    eprintln!("SKIPPED: {why}");
}

/// Envoy: from `ISTHMUS_ENVOY`, where `tests/run` installs it, or on the path.
pub(crate) fn installed() -> Option<PathBuf> {
    let peers = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/bin/envoy");
    let places = [env::var_os("ISTHMUS_ENVOY"), Some(peers.into()), Some("envoy".into())];
    let runs = |place: &PathBuf| {
        Command::new(place).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    places.into_iter().flatten().map(PathBuf::from).find(runs)
}

/// A running Envoy, killed on drop.
pub(crate) struct Envoy {
    child: Child,
    admin: SocketAddr,
    /// Its files.
    _folder: TempDir,
}

/// A folder with a gateway's certificate and key, and the root that it trusts.
pub(crate) fn credentials(world: &World) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let id = SpiffeId::parse(GATEWAY).unwrap();
    let identity = world.authority.issue(&id, &[], std::time::Duration::from_secs(3600)).unwrap();
    fs::write(folder.path().join("tls.crt"), identity.chain_pem()).unwrap();
    fs::write(folder.path().join("tls.key"), identity.key_pem()).unwrap();
    fs::write(folder.path().join("ca.crt"), world.authority.certificate_pem()).unwrap();
    folder
}

impl Envoy {
    /// Starts an Envoy that knows its agent only, and uses this xDS protocol.
    pub(crate) fn start(program: &PathBuf, world: &World, agent: SocketAddr, api: &str) -> Envoy {
        let folder = credentials(world);
        let config = bootstrap(agent, api);
        fs::write(folder.path().join("envoy.json"), config.to_string()).unwrap();
        let mut child = Command::new("setpriv")
            .arg("--pdeathsig=KILL")
            .arg(program)
            .args(["-c", "envoy.json", "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"])
            .args(["--admin-address-path", "admin"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut admin = None;
        until("Envoy has written its admin address", || {
            assert!(child.try_wait().unwrap().is_none(), "Envoy ended; its file:\n{config:#}");
            let text = fs::read_to_string(folder.path().join("admin")).unwrap_or_default();
            admin = text.trim().parse().ok();
            admin.is_some()
        });
        Envoy { child, admin: admin.unwrap(), _folder: folder }
    }

    /// An admin page.
    pub(crate) fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.") && head.contains(" 200"), "{path}: {head}");
        let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        if is_chunked { unchunk(body) } else { body.to_owned() }
    }

    /// A counter or gauge; zero if there is none.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        let page = self.page("/stats");
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// The address of its east-west listener, if there is one.
    pub(crate) fn east_west(&self) -> Option<SocketAddr> {
        let page = self.page("/listeners");
        page.lines().find_map(|line| line.strip_prefix(EAST_WEST)?.strip_prefix("::")?.parse().ok())
    }

    /// Its dynamic configuration, with endpoints.
    pub(crate) fn dump(&self) -> String {
        self.page("/config_dump?include_eds")
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, tail)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body += &tail[..size];
        rest = tail[size..].trim_start_matches("\r\n");
    }
    body
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn bootstrap(agent: SocketAddr, api: &str) -> Value {
    let file = |name: &str| json!({ "filename": name });
    let tls = json!({
        "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "common_tls_context": {
            "alpn_protocols": ["h2"],
            "tls_certificates": [{ "certificate_chain": file("tls.crt"), "private_key": file("tls.key") }],
            "validation_context": {
                "trusted_ca": file("ca.crt"),
                "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": AGENT } }],
            },
        },
    });
    let http2 = json!({
        "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": { "http2_protocol_options": {} },
    });
    let agent = json!({
        "name": "xds_cluster",
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2 },
        "transport_socket": { "name": "tls", "typed_config": tls },
        "load_assignment": {
            "cluster_name": "xds_cluster",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(agent) } }] }],
        },
    });
    let from_ads = json!({ "ads": {}, "resource_api_version": "V3" });
    json!({
        "node": { "id": "g", "cluster": "east" },
        "admin": { "address": address(([127, 0, 0, 1], 0).into()) },
        "static_resources": { "clusters": [agent] },
        "dynamic_resources": {
            "ads_config": {
                "api_type": api,
                "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds_cluster" } }],
            },
            "cds_config": from_ads,
            "lds_config": from_ads,
        },
    })
}
