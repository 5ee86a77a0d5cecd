//! A thousand unauthenticated clients: an agent keeps serving its gateways, in unchanged memory. Row 15 of
//! the hazards.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use isthmus_certs::{Peer, Trust, TrustBundles, server_verifier};
use isthmus_tests::cluster::outbound;
use isthmus_tests::netns::inside;
use isthmus_tests::wait::until;
use isthmus_tests::workload::{Caller, Demands, endpoint, files};
use isthmus_tests::world::World;
use isthmus_tests::{figure, skip};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::busy::PACE;
use super::{DETAILS, MIB, OUTBOUND, RATINGS, REVIEWS, service};

#[test]
fn thousand_strangers_delay_no_gateway() {
    let World { clusters: [mut east, outside], net: _net } = match World::strangers(["east", "outside"]) {
        Ok(world) => world,
        Err(why) => skip!("{why}"),
    };
    east.start();
    let gateway = east.gateway("gw-1");
    let one = endpoint(&east, Demands::Certificate, b"east-one");
    let file = |host: &str| service(host, &[&one], "").replace(", aliases: [src-0.pxc]", "");
    east.register("details.yaml", &file(DETAILS));
    let (caller, out) = (Caller::in_cluster(&east), outbound(&gateway));
    until("the service is reachable", || caller.call(out, DETAILS).is_ok());
    let traffic = caller.traffic(out, DETAILS, PACE);
    let (agent, before) = (east.agent_address(), east.process().memory());

    let silent: Vec<TcpStream> = inside(outside.namespace().unwrap(), move || {
        (0..1_000).map(|_| TcpStream::connect(agent).unwrap()).collect()
    });
    let fresh = east.setup("gw-2").listeners(OUTBOUND).start();
    until("a new gateway is ready", || fresh.is_ready());
    caller.call(outbound(&fresh), DETAILS).expect("the new gateway has its tables");
    east.register("ratings.yaml", &file(RATINGS));
    until("changes arrive", || {
        caller.call(out, RATINGS).is_ok() && caller.call(outbound(&fresh), RATINGS).is_ok()
    });
    assert_eq!(silent.len(), 1_000);
    drop(silent);

    let bundles = Arc::clone(&Trust::load(&files(&east, "client")).unwrap().current().bundles);
    let refused = inside(outside.namespace().unwrap(), move || {
        (0..1_000).filter(|_| is_refused(agent, &bundles)).count()
    });
    assert_eq!(refused, 1_000, "clients without a certificate are refused");
    east.register("reviews.yaml", &file(REVIEWS));
    until("changes arrive", || caller.call(out, REVIEWS).is_ok());
    let process = east.process();
    let (now, peak) =
        (process.memory().saturating_sub(before) / MIB, process.peak().saturating_sub(before) / MIB);
    figure!(
        "agent memory: {} MiB before, +{now} MiB, peak +{peak} MiB; {} descriptors",
        before / MIB,
        process.descriptors()
    );
    assert!(peak <= 64, "{peak} MiB more at most");
    let (calls, failures) = traffic.end();
    assert!(calls >= 25 && failures.is_empty(), "{calls} calls: {failures:#?}");
}

/// Whether an agent refuses a client without a certificate.
fn is_refused(agent: SocketAddr, bundles: &Arc<TrustBundles>) -> bool {
    let provider = Arc::new(default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(Arc::clone(bundles), Peer::Trusted))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let server = ServerName::try_from("agent.example").unwrap();
    let stream = TcpStream::connect(agent).unwrap();
    let mut tls = StreamOwned::new(ClientConnection::new(Arc::new(config), server).unwrap(), stream);
    let asked =
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").and_then(|()| tls.flush());
    let mut bytes = Vec::new();
    asked.and_then(|()| tls.read_to_end(&mut bytes)).is_err() && bytes.is_empty()
}
