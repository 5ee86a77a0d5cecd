//! Leaves with wrong names, or that are not certificates of a workload.

use rcgen::string::Ia5String;
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, KeyUsagePurpose, SanType};

use super::{Identity, Row, World, leaf};

const SUBJECT_ALT_NAME: [u64; 4] = [2, 5, 29, 17];
const GOOD: &str = "spiffe://west.example/ns/bookinfo/sa/productpage";

/// A single URI name: the text, the reason, and the detail.
const URIS: &[(&str, &str, &str)] = &[
    ("", "not_spiffe", "Scheme"),
    ("https://west.example/ns/bookinfo/sa/productpage", "not_spiffe", "Scheme"),
    ("SPIFFE://west.example/ns/bookinfo/sa/productpage", "not_spiffe", "Scheme"),
    ("Spiffe://west.example/ns/bookinfo/sa/productpage", "not_spiffe", "Scheme"),
    (" spiffe://west.example/ns/bookinfo/sa/productpage", "not_spiffe", "Scheme"),
    ("west.example/ns/bookinfo/sa/productpage", "not_spiffe", "Scheme"),
    ("spiffe:west.example/ns/bookinfo/sa/productpage", "not_spiffe", "Scheme"),
    ("spiffe:///ns/bookinfo/sa/productpage", "not_spiffe", "TrustDomainEmpty"),
    ("spiffe://West.Example/ns/bookinfo/sa/productpage", "not_spiffe", "TrustDomainCharacter('W')"),
    ("spiffe://west%2eexample/ns/bookinfo/sa/productpage", "not_spiffe", "TrustDomainCharacter('%')"),
    ("spiffe://west.example:443/ns/bookinfo/sa/productpage", "not_spiffe", "TrustDomainCharacter(':')"),
    ("spiffe://east.example@west.example/ns/a/sa/b", "not_spiffe", "TrustDomainCharacter('@')"),
    ("spiffe://west.example\0.evil/ns/bookinfo/sa/productpage", "not_spiffe", "TrustDomainCharacter('\\0')"),
    ("spiffe://west.example\\/ns/bookinfo/sa/productpage", "not_spiffe", "TrustDomainCharacter('\\\\')"),
    ("spiffe://west.example?/ns/bookinfo/sa/productpage", "not_spiffe", "TrustDomainCharacter('?')"),
    ("spiffe://west.example/ns/bookinfo/sa/productpage\0", "not_spiffe", "PathCharacter('\\0')"),
    ("spiffe://west.example/ns/bookinfo/sa/product\0page", "not_spiffe", "PathCharacter('\\0')"),
    ("spiffe://west.example/ns/bookinfo/sa/product%70age", "not_spiffe", "PathCharacter('%')"),
    ("spiffe://west.example/ns/bookinfo%2fsa/productpage", "not_spiffe", "PathCharacter('%')"),
    ("spiffe://west.example/ns/bookinfo/sa/productpage?x=1", "not_spiffe", "PathCharacter('?')"),
    ("spiffe://west.example/ns/bookinfo/sa/productpage#x", "not_spiffe", "PathCharacter('#')"),
    ("spiffe://west.example/ns/bookinfo/sa/*", "not_spiffe", "PathCharacter('*')"),
    ("spiffe://west.example/ns/bookinfo/sa/product page", "not_spiffe", "PathCharacter(' ')"),
    ("spiffe://west.example/ns/bookinfo/sa/productpage\r\n", "not_spiffe", "PathCharacter('\\r')"),
    ("spiffe://west.example/ns/other/../bookinfo/sa/productpage", "not_spiffe", "DotSegment"),
    ("spiffe://west.example/ns/./bookinfo/sa/productpage", "not_spiffe", "DotSegment"),
    ("spiffe://west.example/ns//bookinfo/sa/productpage", "not_spiffe", "EmptySegment"),
    ("spiffe://west.example//ns/bookinfo/sa/productpage", "not_spiffe", "EmptySegment"),
    ("spiffe://west.example/ns/bookinfo/sa/productpage/", "not_spiffe", "TrailingSlash"),
    ("spiffe://west.example/", "not_spiffe", "TrailingSlash"),
    ("spiffe://west.example", "no_path", "NoPath"),
];

pub(super) fn rows(world: &World) -> Vec<Row> {
    let mut rows: Vec<_> = URIS
        .iter()
        .map(|&(text, reason, detail)| {
            let shown = named(world, vec![uri(text)]);
            Row::new(world, format!("the URI name {text:?}"), reason, detail, shown)
        })
        .collect();
    let long = format!("spiffe://west.example/{}", "p".repeat(2049 - 22));
    let shown = named(world, vec![uri(&long)]);
    rows.push(Row::new(world, "an ID of 2049 bytes", "not_spiffe", "TooLong(2049)", shown));
    let long = format!("spiffe://{}/x", "w".repeat(256));
    let shown = named(world, vec![uri(&long)]);
    rows.push(Row::new(world, "a domain of 256 bytes", "not_spiffe", "TrustDomainTooLong(256)", shown));
    rows.extend(several(world));
    rows.extend(forms(world));
    rows.extend(bytes(world));
    rows
}

/// Not exactly one URI name, with other names beside and before it.
fn several(world: &World) -> Vec<Row> {
    let good = || uri(GOOD);
    let dns = |text: &str| SanType::DnsName(Ia5String::try_from(text).unwrap());
    let email = || SanType::Rfc822Name("productpage@west.example".try_into().unwrap());
    let zero = |name, names| Row::new(world, name, "uri_names", "UriNames(0)", named(world, names));
    let two = |name, names| Row::new(world, name, "uri_names", "UriNames(2)", named(world, names));
    let dns_first = vec![dns("west.example"), email(), uri("https://west.example/")];
    vec![
        zero("no name of any kind", vec![]),
        zero("a DNS name only", vec![dns("west.example")]),
        zero("the ID as a DNS name", vec![dns(GOOD)]),
        zero("a DNS name with NUL, which ends in the domain", vec![dns("evil.example\0.west.example")]),
        two("two IDs of one domain", vec![good(), uri("spiffe://west.example/ns/a/sa/b")]),
        two("two IDs of two domains", vec![good(), uri("spiffe://east.example/ns/a/sa/b")]),
        two("the same ID twice", vec![good(), good()]),
        two("an ID, then a web address", vec![good(), uri("https://west.example/")]),
        two("a web address, then an ID", vec![uri("https://west.example/"), good()]),
        two("DNS and email first, then two IDs", vec![dns("west.example"), email(), good(), good()]),
        Row::new(
            world,
            "DNS and email first, then a web address",
            "not_spiffe",
            "Scheme",
            named(world, dns_first),
        ),
    ]
}

/// Leaves that could sign certificates, or are not usable for TLS.
fn forms(world: &World) -> Vec<Row> {
    let row = |name, reason, detail, alter: &dyn Fn(&mut CertificateParams)| -> Row {
        Row::new(world, name, reason, detail, leaf(world, alter))
    };
    let authority = world.west.intermediate_altered(|p| p.subject_alt_names = vec![uri(GOOD)]);
    let mut rows = vec![
        row("an authority as a leaf", "authority_as_leaf", "Authority", &|p| {
            p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }),
        row("a leaf that may sign certificates", "authority_as_leaf", "Authority", &|p| {
            p.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }),
        row("a leaf that may sign revocation lists", "authority_as_leaf", "Authority", &|p| {
            p.key_usages.push(KeyUsagePurpose::CrlSign);
        }),
        row("key usage without digitalSignature", "key_usage", "KeyUsage", &|p| {
            p.key_usages = vec![KeyUsagePurpose::KeyAgreement, KeyUsagePurpose::KeyEncipherment];
        }),
        row("an unknown critical extension", "critical_extension", "UnsupportedCriticalExtension", &|p| {
            p.custom_extensions.push(unknown_extension());
        }),
    ];
    let mut shown = leaf(world, |_| {});
    shown.chain = authority.above().to_vec();
    shown.key = rustls::pki_types::PrivatePkcs8KeyDer::from(
        rcgen::KeyPair::from_pem(authority.key_pem().unwrap()).unwrap().serialize_der(),
    )
    .into();
    rows.push(Row::new(world, "a real intermediate as a leaf", "authority_as_leaf", "Authority", shown));
    rows
}

/// Malformed certificates.
fn bytes(world: &World) -> Vec<Row> {
    let row = |name, detail, edit: &dyn Fn(&mut Vec<u8>)| -> Row {
        let mut shown = leaf(world, |_| {});
        let mut der = shown.chain[0].to_vec();
        edit(&mut der);
        shown.chain[0] = der.into();
        Row::new(world, name, "malformed", detail, shown)
    };
    let raw = |name, detail, tag: u8, text: &[u8]| -> Row {
        let extension = san(&[(tag, text)]);
        let shown = leaf(world, |p| {
            p.subject_alt_names.clear();
            p.custom_extensions.push(extension);
        });
        Row::new(world, name, "malformed", detail, shown)
    };
    let lookalike = "spiffe://w\u{435}st.example/x".as_bytes();
    let cyrillic = raw("a Cyrillic letter in the domain", "TrustDomainCharacter('\u{435}')", 0x86, lookalike);
    let twice = leaf(world, |p| p.custom_extensions.push(san(&[(0x86, b"spiffe://west.example/x")])));
    let mut none = leaf(world, |_| {});
    none.chain.clear();
    vec![
        row("a certificate cut in half", "Svid(Malformed", &|der| der.truncate(der.len() / 2)),
        row("a certificate without its last byte", "Svid(Malformed", &|der| _ = der.pop()),
        row("a byte after the certificate", "bytes follow", &|der| der.push(0)),
        row("another certificate after the certificate", "bytes follow", &|der| {
            der.extend_from_slice(&world.client.chain[0]);
        }),
        row("noise", "Svid(Malformed", &|der| *der = b"noise".to_vec()),
        row("an empty certificate", "Svid(Malformed", &Vec::clear),
        raw("a Latin-1 URI name", "not ASCII", 0x86, b"spiffe://west.example/caf\xe9"),
        Row { reason: "not_spiffe", ..cyrillic },
        Row::new(world, "the names twice", "malformed", "Svid(Malformed", twice),
        Row::new(world, "no certificate at all", "no_certificate", "NoCertificatesPresented", none)
            .only_as_client(),
    ]
}

pub(super) fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

pub(super) fn unknown_extension() -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
    extension.set_criticality(true);
    extension
}

fn named(world: &World, names: Vec<SanType>) -> Identity {
    leaf(world, |p| p.subject_alt_names = names)
}

/// Subject alternative names of any bytes.
fn san(names: &[(u8, &[u8])]) -> CustomExtension {
    let content = yasna::construct_der(|writer| {
        writer.write_sequence(|all| {
            for (tag, text) in names {
                let length = u8::try_from(text.len()).unwrap();
                assert!(length < 128, "one byte of length");
                all.next().write_der(&[&[*tag, length], *text].concat());
            }
        });
    });
    CustomExtension::from_oid_content(&SUBJECT_ALT_NAME, content)
}
