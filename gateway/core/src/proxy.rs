//! Implements the PROXY protocol: reads versions 1 and 2 from sources that must send it, and writes version 2 to
//! endpoints. Pure, without I/O. The caller knows whether a header is due.

use std::net::SocketAddr;

use isthmus_certs::SpiffeId;
use isthmus_model::HostName;
use ppp::{PartialResult, v1, v2};

use crate::reason::Reason;

const V1_START: &[u8] = b"PROXY ";
const V1_MAX: usize = 107;
/// Before the addresses of version 2.
const V2_FIXED: usize = 16;
/// Version 2, command LOCAL.
const V2_LOCAL: u8 = 0x20;

/// The result for the bytes so far, if a header is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The header is not complete yet.
    More,
    /// The header is complete.
    Header {
        /// Its length in bytes.
        length: usize,
        /// The client behind the proxy; `None` when the proxy speaks for itself or does not know.
        source: Option<SocketAddr>,
    },
    /// The header is invalid: `proxy_malformed`.
    Refused(Reason),
}

/// Reads a header that must be there.
#[must_use]
pub fn read(bytes: &[u8]) -> Verdict {
    if starts(bytes, V1_START) { read_v1(bytes) } else { read_v2(bytes) }
}

/// Whether these bytes are the start of a header, from a source that must not send one.
#[must_use]
pub fn is_header(bytes: &[u8]) -> bool {
    bytes.starts_with(V1_START) || bytes.starts_with(v2::PROTOCOL_PREFIX)
}

fn starts(bytes: &[u8], with: &[u8]) -> bool {
    bytes.iter().zip(with).all(|(a, b)| a == b)
}

fn read_v1(bytes: &[u8]) -> Verdict {
    let line = bytes.get(..V1_MAX).unwrap_or(bytes);
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return if line.len() < V1_MAX { Verdict::More } else { Verdict::Refused(Reason::ProxyMalformed) };
    };
    let length = end + 2;
    match v1::Header::try_from(bytes.get(..length).unwrap_or_default()) {
        Ok(header) => {
            let source = match header.addresses {
                v1::Addresses::Tcp4(ip) => Some(SocketAddr::from((ip.source_address, ip.source_port))),
                v1::Addresses::Tcp6(ip) => Some(SocketAddr::from((ip.source_address, ip.source_port))),
                v1::Addresses::Unknown => None,
            };
            Verdict::Header { length, source }
        }
        Err(_) => Verdict::Refused(Reason::ProxyMalformed),
    }
}

fn read_v2(bytes: &[u8]) -> Verdict {
    if let Some(rest @ [V2_LOCAL, ..]) = bytes.strip_prefix(v2::PROTOCOL_PREFIX) {
        return read_local(rest);
    }
    let header = v2::Header::try_from(bytes);
    if header.is_incomplete() {
        return Verdict::More;
    }
    match header {
        // With a TLV past the end, the client address cannot be trusted either.
        Ok(header) if header.command == v2::Command::Proxy && header.tlvs().any(|tlv| tlv.is_err()) => {
            Verdict::Refused(Reason::ProxyMalformed)
        }
        Ok(header) => {
            let source = match (header.command, &header.addresses) {
                (v2::Command::Proxy, v2::Addresses::IPv4(ip)) => {
                    Some(SocketAddr::from((ip.source_address, ip.source_port)))
                }
                (v2::Command::Proxy, v2::Addresses::IPv6(ip)) => {
                    Some(SocketAddr::from((ip.source_address, ip.source_port)))
                }
                _ => None,
            };
            Verdict::Header { length: header.len(), source }
        }
        Err(_) => Verdict::Refused(Reason::ProxyMalformed),
    }
}

/// Reads a LOCAL header, such as a health check of the proxy: family and address block are skipped.
fn read_local(rest: &[u8]) -> Verdict {
    let Some([_command, _family, block @ ..]) = rest.first_chunk::<4>() else { return Verdict::More };
    let length = V2_FIXED + usize::from(u16::from_be_bytes(*block));
    let is_whole = v2::PROTOCOL_PREFIX.len() + rest.len() >= length;
    if is_whole { Verdict::Header { length, source: None } } else { Verdict::More }
}

/// A version 2 LOCAL header, for connections of the gateway itself.
pub const LOCAL: [u8; 16] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// What a header says of the client's TLS.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientTls<'a> {
    /// The SNI (TLV 0x02).
    pub sni: Option<&'a HostName>,
    /// Its SPIFFE ID (TLV 0xD0, as Istio's ztunnel sends it).
    pub identity: Option<&'a SpiffeId>,
    /// The protocol that was chosen (TLV 0x01); at most 255 bytes.
    pub protocol: Option<&'a [u8]>,
}

/// Writes a version 2 header with the client's address, the address it reached, and its TLS.
#[must_use]
pub fn write(client: SocketAddr, reached: SocketAddr, tls: ClientTls<'_>) -> Vec<u8> {
    const ALPN: u8 = 0x01;
    const PROXY_V2: u8 = 0x21;
    const TCP4: u8 = 0x11;
    const TCP6: u8 = 0x21;
    const AUTHORITY: u8 = 0x02;
    const IDENTITY: u8 = 0xd0;
    let mut body = Vec::with_capacity(64);
    let family = if let (SocketAddr::V4(client), SocketAddr::V4(reached)) = (client, reached) {
        body.extend(client.ip().octets());
        body.extend(reached.ip().octets());
        TCP4
    } else {
        for address in [client, reached] {
            let ip = match address.ip() {
                std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                std::net::IpAddr::V6(ip) => ip,
            };
            body.extend(ip.octets());
        }
        TCP6
    };
    body.extend(client.port().to_be_bytes());
    body.extend(reached.port().to_be_bytes());
    let identity = tls.identity.map(ToString::to_string);
    let tlvs = [
        (AUTHORITY, tls.sni.map(|sni| sni.as_str().as_bytes())),
        (IDENTITY, identity.as_deref().map(str::as_bytes)),
        (ALPN, tls.protocol),
    ];
    for (kind, value) in tlvs.into_iter().filter_map(|(kind, value)| Some((kind, value?))) {
        body.push(kind);
        body.extend(length_of(value));
        body.extend(value);
    }
    let mut header = v2::PROTOCOL_PREFIX.to_vec();
    header.extend([PROXY_V2, family]);
    header.extend(length_of(&body));
    header.append(&mut body);
    header
}

/// A name has at most 253 bytes, an identity 2048, and the addresses 36.
fn length_of(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn proxy_header_round_trips() {
        let sni = HostName::parse("details.example").unwrap();
        for (client, reached) in
            [("192.0.2.1:4000", "192.0.2.9:15443"), ("[2001:db8::1]:4000", "[2001:db8::2]:15443")]
        {
            let (client, reached) = (v4(client), v4(reached));
            let id = SpiffeId::parse("spiffe://east.example/ns/a/sa/b").unwrap();
            let tls = ClientTls { sni: Some(&sni), identity: Some(&id), protocol: Some(b"h2") };
            let mut wire = write(client, reached, tls);
            let length = wire.len();
            for end in 0..length {
                assert_eq!(read(&wire[..end]), Verdict::More, "prefix of {end}");
            }
            wire.extend(b"\x16\x03\x01");
            assert_eq!(read(&wire), Verdict::Header { length, source: Some(client) });
            let header = v2::Header::try_from(&wire[..]).unwrap();
            let tlv = header.tlvs().next().unwrap().unwrap();
            assert_eq!((tlv.kind, &*tlv.value), (2, &b"details.example"[..]));
            let tlv = header.tlvs().nth(1).unwrap().unwrap();
            assert_eq!((tlv.kind, &*tlv.value), (0xd0, &b"spiffe://east.example/ns/a/sa/b"[..]));
            let tlv = header.tlvs().nth(2).unwrap().unwrap();
            assert_eq!((tlv.kind, &*tlv.value), (1, &b"h2"[..]));
        }
    }

    #[test]
    fn proxy_v1_is_read_and_bounded() {
        let wire = b"PROXY TCP4 192.0.2.1 192.0.2.2 4000 15443\r\n\x16";
        assert_eq!(
            read(wire),
            Verdict::Header { length: wire.len() - 1, source: Some(v4("192.0.2.1:4000")) }
        );
        assert_eq!(read(b"PROXY UNKNOWN\r\n"), Verdict::Header { length: 15, source: None });
        assert_eq!(read(&wire[..20]), Verdict::More);
        assert_eq!(read(b""), Verdict::More);
        assert_eq!(read(b"PROXY TCP4 999.0.0.1 192.0.2.2 1 2\r\n"), Verdict::Refused(Reason::ProxyMalformed));
        let endless = [V1_START, &[b'x'; 200]].concat();
        assert_eq!(read(&endless), Verdict::Refused(Reason::ProxyMalformed));
    }

    #[test]
    fn proxy_v2_with_short_addresses_is_refused() {
        let mut wire = v2::PROTOCOL_PREFIX.to_vec();
        wire.extend([0x21, 0x11, 0, 4, 1, 2, 3, 4]);
        assert_eq!(read(&wire), Verdict::Refused(Reason::ProxyMalformed));
        assert_eq!(read(b"\x16\x03\x01"), Verdict::Refused(Reason::ProxyMalformed));
    }

    #[test]
    fn proxy_local_ignores_family_and_block() {
        let of = |rest: &[u8]| [v2::PROTOCOL_PREFIX, &[0x20], rest].concat();
        for (rest, length) in [
            (&b"\0\0\0"[..], 16),
            (b"\x11\0\0", 16),
            (b"\x11\0\x03abc", 19),
            (b"\x21\0\x0c123456789012", 28),
            (b"\x71\0\0", 16),
            (b"\xff\0\x01x", 17),
        ] {
            let wire = [&of(rest)[..], b"\x16\x03\x01"].concat();
            assert_eq!(read(&wire), Verdict::Header { length, source: None }, "{rest:?}");
            for end in 0..length {
                assert_eq!(read(&wire[..end]), Verdict::More, "{rest:?}, {end} bytes");
            }
        }
        assert_eq!(read(&LOCAL), Verdict::Header { length: LOCAL.len(), source: None });
    }

    /// A header may be as large as one with a client's certificate.
    #[test]
    fn proxy_v2_accepts_maximum_length() {
        let mut wire = write(v4("192.0.2.1:4000"), v4("192.0.2.2:443"), ClientTls::default());
        wire.extend([0xe0, 0xff, 0xf0]);
        wire.resize(V2_FIXED + 65_535, b'x');
        wire[14..16].copy_from_slice(&[0xff, 0xff]);
        assert_eq!(read(&wire[..60_000]), Verdict::More);
        let source = Some(v4("192.0.2.1:4000"));
        assert_eq!(read(&wire), Verdict::Header { length: wire.len(), source });
    }

    proptest! {
        #[test]
        fn proxy_parser_is_total_and_prefix_stable(
            start in prop_oneof![Just(&b""[..]), Just(V1_START), Just(v2::PROTOCOL_PREFIX)],
            rest in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let wire = [start, &rest].concat();
            let verdict = read(&wire);
            for end in 0..wire.len() {
                let earlier = read(&wire[..end]);
                prop_assert!(earlier == Verdict::More || earlier == verdict, "{end}: {earlier:?}, then {verdict:?}");
            }
        }
    }
}
