//! The generated code is what the protos generate. `ISTHMUS_REGENERATE=1` writes it anew.

#![expect(clippy::unwrap_used, reason = "a test may panic anywhere")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const PROTOS: [&str; 11] = [
    "isthmus/v1/slice.proto",
    "isthmus/v1/trust.proto",
    "envoy/service/discovery/v3/ads.proto",
    "istio/v1/auth/ca.proto",
    "envoy/config/listener/v3/listener.proto",
    "envoy/config/cluster/v3/cluster.proto",
    "envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto",
    "envoy/extensions/filters/network/rbac/v3/rbac.proto",
    "envoy/extensions/filters/network/http_connection_manager/v3/http_connection_manager.proto",
    "envoy/extensions/transport_sockets/tls/v3/tls.proto",
    "envoy/extensions/transport_sockets/proxy_protocol/v3/upstream_proxy_protocol.proto",
];

#[test]
fn the_generated_code_is_what_the_protos_generate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let descriptors = protox::compile(PROTOS, [root.join("proto")]).unwrap();
    tonic_prost_build::configure().out_dir(out.path()).compile_fds(descriptors).unwrap();
    let committed = root.join("src/proto");
    let made = files(out.path());
    if std::env::var_os("ISTHMUS_REGENERATE").is_some() {
        for (name, content) in &made {
            fs::write(committed.join(name), content).unwrap();
        }
    }
    assert_eq!(made.keys().collect::<Vec<_>>(), files(&committed).keys().collect::<Vec<_>>());
    for (name, content) in files(&committed) {
        assert!(
            made[&name] == content,
            "{name} is not what the protos generate; ISTHMUS_REGENERATE=1 writes it"
        );
    }
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
        .collect()
}
