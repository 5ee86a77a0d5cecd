//! Chains that do not lead to a root of the claimed domain, or not in a valid way.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose,
};
use time::OffsetDateTime;

use super::names::unknown_extension;
use super::{Authority, HOUR, Identity, Row, World, authority, leaf, leaf_below};
use crate::{KeyKind, cross};

const EXTENDED_KEY_USAGE: [u64; 4] = [2, 5, 29, 37];
/// ecdsa-with-SHA256, which is both in the signed part and outside it.
const ECDSA_SHA256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

pub(super) fn rows(world: &World) -> Vec<Row> {
    [times(world), uses(world), signers(world), foreign(world), authorities(world), signatures(world)]
        .into_iter()
        .flatten()
        .chain([name_constraints(world), cross_signed(world), too_deep(world), too_many(world)])
        .collect()
}

fn times(world: &World) -> Vec<Row> {
    let now = OffsetDateTime::now_utc();
    let [past, future] = [now - time::Duration::minutes(1), now + time::Duration::minutes(1)];
    let old = world.west.intermediate_altered(|p| p.not_after = past);
    let early = world.west.intermediate_altered(|p| p.not_before = future);
    let row = |name, reason, detail, shown| Row::new(world, name, reason, detail, shown);
    vec![
        row("an expired leaf", "expired", "CertExpired", leaf(world, |p| p.not_after = past)),
        row("a leaf of tomorrow", "not_yet_valid", "CertNotValidYet", leaf(world, |p| p.not_before = future)),
        row("an expired intermediate", "expired", "CertExpired", leaf_below(world, &old, |_| {})),
        row(
            "an intermediate of tomorrow",
            "not_yet_valid",
            "CertNotValidYet",
            leaf_below(world, &early, |_| {}),
        ),
        row(
            "a leaf that ends before it starts",
            "validity",
            "InvalidCertValidity",
            leaf(world, |p| {
                (p.not_before, p.not_after) = (future, past);
            }),
        ),
    ]
}

fn uses(world: &World) -> Vec<Row> {
    let used = |uses: Vec<ExtendedKeyUsagePurpose>| leaf(world, |p| p.extended_key_usages = uses);
    let server_only = || vec![ExtendedKeyUsagePurpose::ServerAuth];
    let below = world.west.intermediate_altered(|p| p.extended_key_usages = server_only());
    let empty = leaf(world, |p| {
        p.extended_key_usages.clear();
        p.custom_extensions.push(CustomExtension::from_oid_content(&EXTENDED_KEY_USAGE, vec![0x30, 0]));
    });
    let row = |name, shown| Row::new(world, name, "wrong_use", "RequiredEkuNotFound", shown);
    let client_only = used(vec![ExtendedKeyUsagePurpose::ClientAuth]);
    vec![
        row("a client with a certificate for servers only", used(server_only())).only_as_client(),
        row("a server with a certificate for clients only", client_only).only_as_server(),
        row("a certificate for signing code", used(vec![ExtendedKeyUsagePurpose::CodeSigning])),
        row("a client under an intermediate for servers only", leaf_below(world, &below, |_| {}))
            .only_as_client(),
        Row::new(world, "a certificate for no use", "wrong_use", "EmptyEkuExtension", empty),
    ]
}

/// Signed by a certificate that may not sign it, or that is missing.
fn signers(world: &World) -> Vec<Row> {
    let below = world.west.intermediate("west-1", KeyKind::P256, HOUR).unwrap();
    let mut missing = leaf_below(world, &below, |_| {});
    missing.chain.truncate(1);
    // Another key under the same name, as after a restore from the wrong backup.
    let name = subject(&below);
    let namesake = world.west.intermediate_altered(|p| p.distinguished_name = name);
    let mut wrong = leaf_below(world, &below, |_| {});
    wrong.chain[1] = namesake.certificate().clone();
    let mut unrelated = leaf_below(world, &below, |_| {});
    unrelated.chain[1] = world.west.intermediate_altered(|_| {}).certificate().clone();
    let workload = world.west.intermediate_altered(like_a_leaf);
    let web = world.west.intermediate_altered(|p| {
        like_a_leaf(p);
        p.is_ca = IsCa::NoCa;
    });
    let second = below.intermediate_altered(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let row = |name, reason, detail, shown| Row::new(world, name, reason, detail, shown);
    vec![
        row("its intermediate is missing", "unknown_issuer", "UnknownIssuer", missing),
        row("another intermediate of the same domain", "unknown_issuer", "UnknownIssuer", unrelated),
        row("an intermediate of the same name with another key", "bad_signature", "InvalidSignature", wrong),
        row(
            "signed by a workload's leaf",
            "issuer_not_authority",
            "EndEntityUsedAsCa",
            leaf_below(world, &workload, |_| {}),
        ),
        row(
            "signed by a leaf without basic constraints",
            "issuer_not_authority",
            "EndEntityUsedAsCa",
            leaf_below(world, &web, |_| {}),
        ),
        row(
            "an intermediate below one that may have none",
            "path_length",
            "PathLenConstraintViolated",
            leaf_below(world, &second, |_| {}),
        ),
    ]
}

fn foreign(world: &World) -> Vec<Row> {
    let all_east = || super::Peer::Domain(world.east.trust_domain().clone());
    let row = |name, shown| Row::new(world, name, "unknown_issuer", "UnknownIssuer", shown);
    let below_east = world.east.intermediate_altered(|_| {});
    let mut with_root = world.east.issue_altered(world.client.id(), |_| {});
    with_root.chain.push(world.east.certificate().clone());
    let mut both_roots = world.east.issue_altered(world.client.id(), |_| {});
    both_roots.chain.extend([&world.west, &world.east].map(|root| root.certificate().clone()));
    let impostor = authority("west.example");
    let mut own_root = impostor.issue_altered(world.client.id(), |_| {});
    own_root.chain.push(impostor.certificate().clone());
    let north = authority("north.example");
    let north = north.issue(&super::workload(&north, "productpage"), &[], HOUR).unwrap();
    vec![
        row("west's identity signed by east", world.east.issue_altered(world.client.id(), |_| {})),
        row("east's identity signed by west", world.west.issue_altered(world.server.id(), |_| {}))
            .accepting(all_east()),
        row("west's identity signed by an intermediate of east", leaf_below(world, &below_east, |_| {})),
        row("west's identity signed by east, its root sent along", with_root),
        row("west's identity signed by east, both roots sent along", both_roots),
        row("a root that calls itself west's, sent along", own_root),
        row("a leaf signed by itself", self_signed(world)),
        Row::new(world, "a domain without a bundle", "no_bundle", "NoBundle", north),
        Row::new(world, "no bundle at all", "no_bundle", "NoBundle", leaf(world, |_| {}))
            .with_bundles(super::TrustBundles::new()),
    ]
}

/// Intermediates with a malformed or unacceptable certificate.
fn authorities(world: &World) -> Vec<Row> {
    let unknown = world.west.intermediate_altered(|p| p.custom_extensions.push(unknown_extension()));
    let mut cut = leaf_below(world, &world.west.intermediate_altered(|_| {}), |_| {});
    let half = cut.chain[1].len() / 2;
    cut.chain[1] = cut.chain[1][..half].to_vec().into();
    let row = |name, reason, detail, shown| Row::new(world, name, reason, detail, shown);
    vec![
        row(
            "an intermediate with an unknown critical extension",
            "critical_extension",
            "UnsupportedCriticalExtension",
            leaf_below(world, &unknown, |_| {}),
        ),
        row("an intermediate cut in half", "malformed", "Chain {", cut),
    ]
}

fn signatures(world: &World) -> Vec<Row> {
    let row = |name, reason, detail, edit: &dyn Fn(&mut Vec<u8>)| -> Row {
        let mut shown = leaf(world, |_| {});
        let mut der = shown.chain[0].to_vec();
        edit(&mut der);
        shown.chain[0] = der.into();
        Row::new(world, name, reason, detail, shown)
    };
    // The name of west's root, but not its key.
    let key = KeyKind::P256.generate().unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(world.west.certificate(), &key).unwrap();
    let mut params = CertificateParams::default();
    let mut forged = leaf(world, |good| params = good.clone());
    let own = rcgen::KeyPair::from_pem(&forged.key_pem).unwrap();
    forged.chain = vec![params.signed_by(&own, &issuer).unwrap().der().clone()];
    let places = |der: &[u8]| -> Vec<usize> {
        (0..der.len()).filter(|&at| der[at..].starts_with(ECDSA_SHA256)).map(|at| at + 9).collect()
    };
    vec![
        Row::new(world, "the root's name, another key", "bad_signature", "InvalidSignature", forged),
        row("one bit of the signature altered", "bad_signature", "InvalidSignature", &|der| {
            *der.last_mut().unwrap() ^= 1;
        }),
        row("one letter of the identity altered", "bad_signature", "InvalidSignature", &|der| {
            let at = (0..der.len()).find(|&at| der[at..].starts_with(b"productpage")).unwrap();
            der[at] ^= 1;
        }),
        row("two signature algorithms", "signature_algorithm", "SignatureAlgorithmMismatch", &|der| {
            let at = places(der)[1];
            der[at] = 3;
        }),
        row("a signature over SHA-224", "signature_algorithm", "UnsupportedSignatureAlgorithm", &|der| {
            for at in places(der) {
                der[at] = 1;
            }
        }),
    ]
}

/// A constraint that permits the name: webpki refuses every URI name under one.
fn name_constraints(world: &World) -> Row {
    let extension = uri_constraint("west.example");
    let below = world.west.intermediate_altered(|p| p.custom_extensions.push(extension));
    let shown = leaf_below(world, &below, |_| {});
    Row::new(world, "a URI constraint that permits it", "name_constraints", "NameConstraintViolation", shown)
}

/// The cross-signed root for OpenSSL, used to sign an identity of another domain.
fn cross_signed(world: &World) -> Row {
    let crossed = cross::sign(&world.west, world.east.trust_domain(), world.east.certificate()).unwrap();
    let mut shown = world.east.issue_altered(world.client.id(), |_| {});
    shown.chain.push(crossed);
    let name = "west's identity signed by east, whose root west has signed";
    Row::new(world, name, "name_constraints", "NameConstraintViolation", shown)
}

fn too_deep(world: &World) -> Row {
    let unconstrained = |p: &mut CertificateParams| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let first = world.west.intermediate_altered(unconstrained);
    let last = (0..7).fold(first, |above, _| above.intermediate_altered(unconstrained));
    let shown = leaf_below(world, &last, |_| {});
    Row::new(world, "eight intermediates", "too_costly", "MaximumPathDepthExceeded", shown)
}

/// Every intermediate has the right name, and costs two signature checks to exclude.
fn too_many(world: &World) -> Row {
    let below = world.west.intermediate_altered(|_| {});
    let name = subject(&below);
    let mut shown = leaf_below(world, &below, |_| {});
    let namesakes = (0..60).map(|_| {
        let name = name.clone();
        world.west.intermediate_altered(|p| p.distinguished_name = name).certificate().clone()
    });
    shown.chain = shown.chain[..1].iter().cloned().chain(namesakes).collect();
    Row::new(world, "60 intermediates of one name", "too_costly", "MaximumSignatureChecksExceeded", shown)
}

fn self_signed(world: &World) -> Identity {
    let mut params = CertificateParams::default();
    let mut identity = leaf(world, |good| params = good.clone());
    let key = rcgen::KeyPair::from_pem(&identity.key_pem).unwrap();
    identity.chain = vec![params.self_signed(&key).unwrap().der().clone()];
    identity
}

fn like_a_leaf(p: &mut CertificateParams) {
    p.is_ca = IsCa::ExplicitNoCa;
    p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    p.subject_alt_names = vec![super::names::uri("spiffe://west.example/ns/bookinfo/sa/ratings")];
}

pub(super) fn subject(authority: &Authority) -> DistinguishedName {
    let (_, parsed) = x509_parser::parse_x509_certificate(authority.certificate()).unwrap();
    let mut name = DistinguishedName::new();
    for part in parsed.subject().iter_attributes() {
        let oid: Vec<u64> = part.attr_type().iter().unwrap().collect();
        name.push(rcgen::DnType::from_oid(&oid), part.as_str().unwrap());
    }
    name
}

fn uri_constraint(host: &str) -> CustomExtension {
    let content = yasna::construct_der(|writer| {
        writer.write_sequence(|constraints| {
            constraints.next().write_tagged_implicit(yasna::Tag::context(0), |permitted| {
                permitted.write_sequence(|subtrees| {
                    subtrees.next().write_sequence(|subtree| {
                        subtree.next().write_tagged_implicit(yasna::Tag::context(6), |uri| {
                            uri.write_ia5_string(host);
                        });
                    });
                });
            });
        });
    });
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    extension.set_criticality(true);
    extension
}
