//! Tests certificates over Istio's API and real mTLS: a gateway renews its own certificate, and gets no other.

#![expect(clippy::unwrap_used, reason = "a test may panic anywhere")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{AGENT, ANY, GATEWAY, World};
use isthmus_certs::facts::Facts;
use isthmus_certs::{IdPattern, Identity, KeyKind, Policy, pem};
use isthmus_grpc::dial::dial;
use isthmus_proto::istio::v1::auth::IstioCertificateRequest;
use isthmus_trust::issuing::{Certificates, Rooted};
use isthmus_trust::stubs::istio_certificate_service_client::IstioCertificateServiceClient;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::runtime::Runtime;
use tonic::service::Routes;
use tonic::{Code, Status};

const HOUR: Duration = Duration::from_secs(3600);

fn request(key: &rcgen::KeyPair) -> IstioCertificateRequest {
    let csr = rcgen::CertificateParams::default().serialize_request(key).unwrap().pem().unwrap();
    IstioCertificateRequest { csr, validity_duration: 24 * 3600, metadata: None }
}

/// Requests a certificate as a client with this identity.
fn ask(world: &World, who: &str, request: IstioCertificateRequest) -> Result<Vec<String>, Status> {
    let intermediate = world.authority.intermediate("east", KeyKind::P256, HOUR * 24).unwrap();
    let gateways = IdPattern::parse("spiffe://east.example/isthmus/east/gateway/*").unwrap();
    let root = world.authority.certificate_pem();
    let certificates = Certificates::new(
        Arc::new(intermediate),
        Policy::renewals(gateways, HOUR),
        HOUR,
        Arc::new(move || Rooted { sequence: 7, roots: vec![root.clone()] }),
    );
    let agent = world.agent(Routes::new(Arc::new(certificates).service()), ANY);
    let tls = world.client(who, AGENT);
    Runtime::new().unwrap().block_on(async {
        let channel = dial(&agent.at.to_string().parse().unwrap(), &tls).await.unwrap();
        let answer = IstioCertificateServiceClient::new(channel).create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    })
}

#[test]
fn gateway_renews_its_certificate_with_its_own_key() {
    let world = World::new();
    let key = KeyKind::P256.generate().unwrap();
    let chain = ask(&world, GATEWAY, request(&key)).unwrap();
    assert_eq!(chain.len(), 3, "leaf, intermediate, root");
    assert_eq!(chain[2], world.authority.certificate_pem());
    let identity = Identity::from_pem(chain.concat(), key.serialize_pem()).unwrap();
    assert_eq!(identity.id().to_string(), GATEWAY);
    let facts = Facts::read(&pem::certificates(&chain[0]).unwrap()[0]).unwrap();
    let life = facts.not_after - facts.not_before;
    assert!(life < HOUR * 2, "shortened to the policy's limit: {life}");
    let trusted = world.trust(AGENT).current();
    let proven = trusted.bundles.verify(identity.chain(), isthmus_certs::Role::Client, now());
    assert_eq!(proven.unwrap().id.to_string(), GATEWAY);
}

fn now() -> rustls::pki_types::UnixTime {
    rustls::pki_types::UnixTime::now()
}

#[test]
fn certificate_request_outside_the_policy_is_refused() {
    let world = World::new();
    let key = KeyKind::P256.generate().unwrap();
    let impersonates = |id: &str| {
        let value = Value { kind: Some(Kind::StringValue(id.to_owned())) };
        let fields = BTreeMap::from([("ImpersonatedIdentity".to_owned(), value)]);
        IstioCertificateRequest { metadata: Some(Struct { fields }), ..request(&key) }
    };
    let other = "spiffe://east.example/isthmus/east/gateway/other";
    let stranger = "spiffe://east.example/ns/a/sa/b";
    let cases = [
        (
            "another's identity",
            GATEWAY,
            impersonates(other),
            Code::PermissionDenied,
            "may not have a certificate",
        ),
        ("no identity", GATEWAY, impersonates("gateway"), Code::InvalidArgument, "starts with `spiffe://`"),
        (
            "an unlisted client",
            stranger,
            request(&key),
            Code::PermissionDenied,
            "is neither one of this cluster's gateways",
        ),
        (
            "no request",
            GATEWAY,
            IstioCertificateRequest { csr: "no".to_owned(), ..request(&key) },
            Code::InvalidArgument,
            "it must hold one -----BEGIN CERTIFICATE REQUEST----- block",
        ),
        (
            "a life below zero",
            GATEWAY,
            IstioCertificateRequest { validity_duration: -1, ..request(&key) },
            Code::InvalidArgument,
            "above zero",
        ),
    ];
    for (what, who, request, code, expected) in cases {
        let status = ask(&world, who, request).unwrap_err();
        assert_eq!(status.code(), code, "{what}: {status}");
        assert!(status.message().contains(expected), "{what}: {status}");
    }
}
