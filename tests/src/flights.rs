//! First flights that every listener must judge alike: well-formed ones in all sizes and pieces, and malformed ones.

use rustls::version;

use crate::client::alert;
use crate::hello::{Hello, hello, hello_of, records, sni};

/// What a flight is, and the pieces in which it is sent.
pub type Pieces = (String, Vec<Vec<u8>>);

/// Well-formed ClientHellos for a host, real and hand-built, in segments and records of many sizes.
#[must_use]
pub fn well_formed(host: &str) -> Vec<Pieces> {
    let real = hello(host);
    assert!(real.len() > 1_400, "post-quantum hellos are large: {}", real.len());
    let whole = |what: &str, bytes: Vec<u8>| (what.to_owned(), vec![bytes]);
    let cut =
        |what: &str, bytes: &[u8], size| (what.to_owned(), bytes.chunks(size).map(<[u8]>::to_vec).collect());
    let message = Hello::new(host).message();
    let large = Hello::new(host).padded_to(60 * 1024);
    let mut old = Hello::new(host).without(43).without(51);
    old.version = 0x0301;
    let mut future = Hello::new(host);
    future.version = 0x0999;
    let mut flights = vec![
        cut("segments of one byte", &real, 1),
        cut("records and segments of one byte", &records(&message, 1), 1),
        cut("60 KiB in segments of 999", &large.bytes(), 999),
        whole("a post-quantum hello", real),
        whole("TLS 1.2 only", hello_of(Some(host), &[], &[&version::TLS12])),
        whole("TLS 1.3 only", hello_of(Some(host), &["h2"], &[&version::TLS13])),
        whole("60 KiB in full records", large.bytes()),
        whole("60 KiB in records of 300", large.records(300)),
        whole("TLS 1.0", old.bytes()),
        whole("no signature algorithms", Hello::new(host).without(13).bytes()),
        whole("an unknown future version", future.bytes()),
        whole("ECH with an outer name", Hello::new(host).and((0xfe0d, vec![0; 200])).bytes()),
    ];
    flights
        .extend([1, 2, 3, 5, 100].map(|most| whole(&format!("records of {most}"), records(&message, most))));
    for name in [host.to_uppercase(), format!("{host}."), format!("outbound_.443_._.{host}")] {
        flights.push(whole(&name, Hello::new(&name).bytes()));
    }
    flights
}

/// First flights that are not TLS.
#[must_use]
pub fn not_tls() -> Vec<Vec<u8>> {
    vec![
        b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n".to_vec(),
        b"\0\x01".to_vec(),
        b"SSH-2.0-x\r\n".to_vec(),
        vec![0x80, 46, 1, 3, 1],
        alert(40),
        vec![23, 3, 3, 0, 1, 0],
    ]
}

/// Malformed ClientHellos for a host, and what is wrong with each.
#[must_use]
pub fn malformed(host: &str) -> Vec<(String, Vec<u8>)> {
    let good = || Hello::new(host);
    let twice = [sni(host.as_bytes()).1[2..].to_vec(), sni(b"b.example").1[2..].to_vec()].concat();
    let list = [&(twice.len() as u16).to_be_bytes(), twice.as_slice()].concat();
    let mut flights = vec![
        ("a ServerHello", records(&[&[2], &good().message()[1..]].concat(), 16_384)),
        ("two names", good().and(sni(host.as_bytes())).bytes()),
        ("a list of two names", good().without(0).and((0, list)).bytes()),
        ("a duplicate extension", good().and((43, vec![2, 3, 4])).bytes()),
        ("a duplicate unknown extension", good().and((999, vec![])).and((999, vec![])).bytes()),
        (
            "an SNI list longer than its extension",
            good().without(0).and((0, vec![0, 90, 0, 0, 1, 97])).bytes(),
        ),
        (
            "an SNI list shorter than its extension",
            good().without(0).and((0, vec![0, 4, 0, 0, 1, 97, 0])).bytes(),
        ),
        ("an empty SNI extension", good().without(0).and((0, vec![])).bytes()),
        ("an empty message", records(&[1, 0, 0, 0], 16_384)),
    ];
    let mut message = good().message();
    message[38] = 33;
    flights.push(("a session of 33 bytes", records(&message, 16_384)));
    let mut message = good().message();
    let last = message.len() - 1;
    message.truncate(last);
    message[1..4].copy_from_slice(&(last as u32 - 4).to_be_bytes()[1..]);
    flights.push(("extensions longer than the message", records(&message, 16_384)));
    let long_label = format!("{}.example", "a".repeat(64));
    let long_name = format!("{}example", "abcdefg.".repeat(32));
    let names: [&[u8]; 8] = [
        b"web.example\0",
        b"\0web.example",
        "wéb.example".as_bytes(),
        b"",
        b".",
        b"web..example",
        long_label.as_bytes(),
        long_name.as_bytes(),
    ];
    let named = names
        .map(|name| (String::from_utf8_lossy(name).into_owned(), good().without(0).and(sni(name)).bytes()));
    flights.into_iter().map(|(what, bytes)| (what.to_owned(), bytes)).chain(named).collect()
}
