//! Tests where services and trust come from: agents, a control plane, a directory.

use super::*;

#[test]
fn xds_takes_agents_or_authenticated_control_plane() {
    let xds = |rest: &str| {
        with_listener(&format!("trust: {{certificate: a, key: b, bundles: c}}\nxds: {{{rest}}}\n"))
    };
    let shown = |rest: &str| serde_json::to_value(good(&xds(rest)).fixed.xds).unwrap();
    assert_eq!(
        shown("agents: ['10.0.0.1:15012']"),
        serde_json::json!({ "agents": ["10.0.0.1:15012"], "state": null })
    );
    assert_eq!(
        shown(
            "control_plane: {addresses: ['a.b:1'], identity: 'spiffe://d/x', node_id: me, metadata: {A: [1, {b: ~}]}}"
        ),
        serde_json::json!({ "control_plane": {
            "addresses": [{ "host": "a.b", "port": 1 }], "identity": "spiffe://d/x", "port": 15443, "node_id": "me",
            "metadata": { "A": [1, { "b": null }] },
        }, "state": null })
    );
    bad(&xds(""), &["3:6: xds has no agents; add 'agents: [ADDRESS:15012]'"]);
    bad(
        &xds("agents: ['10.0.0.1:1'], control_plane: {addresses: ['a:1'], tls_name: a}"),
        &["3:6: xds has both agents and a control_plane; remove one of them"],
    );
    bad(
        &xds("state: s, control_plane: {addresses: ['a:1'], tls_name: a}"),
        &["3:14: xds.state: tables of a control_plane cannot be persisted yet; remove it"],
    );
    bad(
        &xds("control_plane: {port: 0}"),
        &[
            "3:22: xds.control_plane has no addresses; add 'addresses: [ADDRESS:15012]'",
            "3:22: xds.control_plane has no identity; add 'identity: spiffe://…' or 'tls_name: …' to authenticate \
             the control plane",
            "3:29: xds.control_plane.port: '0' is out of range; write 1 to 65535",
        ],
    );
    bad(
        &xds("control_plane: {addresses: ['a:1'], tls_name: a, identity: 'spiffe://d/x'}"),
        &["3:22: xds.control_plane has both an identity and a tls_name; remove one of them"],
    );
    bad(
        &xds("control_plane: {addresses: ['a:1'], tls_name: '*.a', node_id: ''}"),
        &[
            "3:53: xds.control_plane.tls_name: '*.a' is not a DNS name: a label has characters other than ASCII \
             letters, digits, '-' and '_'; write a name of its certificate, such as istiod.istio-system.svc",
            "3:69: xds.control_plane.node_id: '' cannot be used; write 1 to 1024 bytes without control characters",
        ],
    );
    bad(
        &with_listener("xds: {agents: ['10.0.0.1:1']}\n"),
        &[
            "2:6: xds needs trust: agents serve only clients with a certificate; add 'trust: …' with this gateway's \
             certificate",
        ],
    );
}

#[test]
fn trust_directory_replaces_trust_files() {
    let xds = "xds: {agents: ['10.0.0.1:15012']}\n";
    let with = |trust: &str| with_listener(&format!("trust: {{{trust}}}\n{xds}"));
    let settings = good(&with("directory: a, token_file: b, deny: d"));
    let Some(Trusts::ManagedTrust(kept)) = &settings.fixed.trust else { panic!("a directory") };
    assert!(matches!(&kept.token, FirstToken::File(file) if file.ends_with("b")));
    // The token may be removed once it was used, without a restart.
    assert_eq!(settings.fixed, good(&with("directory: a, deny: d")).fixed);
    assert_ne!(settings.fixed, good(&with("directory: c, deny: d")).fixed);
    let shown = serde_json::to_value(&settings.fixed.trust).unwrap();
    assert!(shown["directory"] == "a" && shown.get("token").is_none(), "{shown}");
    for (trust, why) in [
        (
            "directory: a, certificate: b",
            "remove one of them; the gateway keeps its own files in the directory",
        ),
        ("token: x", "trust has a token but no directory for the certificate"),
        ("directory: a, token: x, token_file: y", "trust has both a token and a token_file"),
        ("directory: a, token: secret-x", "trust.token: not a token: a token begins with `isthmus1.`"),
        ("certificate: a", "trust has no key; add 'key: …'"),
    ] {
        let problems = parse(&with(trust), Path::new("gateway.yaml")).unwrap_err().to_string();
        assert!(problems.contains(why) && !problems.contains("secret-x"), "{trust}: {problems}");
    }
    let foreign = |trust: &str| {
        let xds = "xds: {control_plane: {addresses: ['10.0.0.1:15012'], tls_name: istiod.example}}";
        with_listener(&format!("trust: {{{trust}}}\n{xds}\n"))
    };
    let settings = good(&foreign("directory: a, bundles: b, token_file: c"));
    assert_eq!(settings.fixed.trust.unwrap().files().bundles, Path::new("b"));
    let problems = parse(&foreign("directory: a, token: x"), Path::new("x")).unwrap_err().to_string();
    for why in ["but no bundles for the", "but no token_file for the", "has both a directory and token;"] {
        assert!(problems.contains(why), "{problems}");
    }
    let alone = parse(&with_listener("trust: {directory: a}\n"), Path::new("x")).unwrap_err().to_string();
    assert!(alone.contains("its certificate would not be renewed"), "{alone}");
}
