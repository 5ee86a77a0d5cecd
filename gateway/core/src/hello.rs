//! Parses the ClientHello incrementally, without I/O and without panics. It is not a TLS implementation: it reads what
//! routing needs, refuses broken framing, and ignores versions, ciphers and key shares.
//!
//! The verdict depends only on the bytes, never on how they were split into reads.

use isthmus_model::HostName;

use crate::reason::Reason;

/// The largest ClientHello that any configuration may allow: bytes of the handshake message.
pub const MAX_HELLO: usize = 64 * 1024;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
/// RFC 8446, 5.1: the fragment of a plaintext record is at most 2^14 bytes.
const MAX_FRAGMENT: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// What routing needs of a ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The SNI; with Encrypted ClientHello the outer one.
    pub sni: Option<HostName>,
    /// The offered protocols.
    pub alpn: Alpn,
    /// Application bytes may follow before the server answers.
    pub early_data: bool,
    /// Bytes on the wire, record headers included.
    pub wire_len: usize,
}

/// The ALPN protocols of a hello in wire format, each prefixed with its length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Alpn(Box<[u8]>);

impl Alpn {
    /// Iterates over the protocols; their bytes are untrusted.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = Reader(&self.0);
        std::iter::from_fn(move || rest.prefixed_u8())
    }

    /// Whether the client offers this protocol.
    #[must_use]
    pub fn offers(&self, protocol: &str) -> bool {
        self.iter().any(|offered| offered == protocol.as_bytes())
    }

    /// Builds a list from protocol names. Names over 255 bytes are ignored.
    pub fn from_protocols<'a>(protocols: impl IntoIterator<Item = &'a str>) -> Alpn {
        let mut wire = Vec::new();
        for protocol in protocols {
            if let Ok(length) = u8::try_from(protocol.len()) {
                wire.push(length);
                wire.extend_from_slice(protocol.as_bytes());
            }
        }
        Alpn(wire.into())
    }
}

/// The result for the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The hello is not complete yet.
    More,
    /// The hello is complete.
    Hello(Hello),
    /// The hello is refused: `not_tls`, `postgres_plain`, `hello_malformed` or `hello_too_large`.
    Refused(Reason),
}

/// Follows the records of one hello. Each byte is read once for the framing, and the body once when it is complete.
#[derive(Debug)]
pub struct Parser {
    limit: usize,
    /// Where the next record header starts.
    record: usize,
    /// Handshake bytes in the records before it.
    gathered: usize,
}

impl Parser {
    /// Refuses hellos whose handshake message is longer than `limit` bytes. Record headers do not count:
    /// the verdict must not depend on how the client split its hello into records. On the wire a hello is
    /// at most six times as long (each record carries at least one byte).
    #[must_use]
    pub fn new(limit: usize) -> Parser {
        Parser { limit: limit.min(MAX_HELLO), record: 0, gathered: 0 }
    }

    /// Judges `wire`: all bytes from the connection's first one on, each call with more of them.
    pub fn advance(&mut self, wire: &[u8]) -> Verdict {
        if let Some(verdict) = postgres(wire) {
            return verdict;
        }
        loop {
            let header = wire.get(self.record..).unwrap_or_default();
            if let Err(reason) = check_header(header, self.record == 0) {
                return Verdict::Refused(reason);
            }
            let Some(fragment) = fragment_length(header) else { return Verdict::More };
            let end = self.record + RECORD_HEADER + fragment;
            let there = wire.get(..end).unwrap_or(wire);
            match message_length(there) {
                Some(Err(reason)) => return Verdict::Refused(reason),
                Some(Ok(length)) if length > self.limit => return Verdict::Refused(Reason::HelloTooLarge),
                // Nothing may follow a ClientHello in its last record (RFC 8446, 5.1).
                Some(Ok(length)) if self.gathered + fragment > length => {
                    return Verdict::Refused(Reason::HelloMalformed);
                }
                Some(Ok(length)) if self.gathered + fragment == length && there.len() == end => {
                    return whole(there);
                }
                _ if there.len() < end => return Verdict::More,
                _ => {}
            }
            self.record = end;
            self.gathered += fragment;
        }
    }
}

/// First bytes of Postgres clients: a length, then the message type. SSLRequest and GSSENCRequest ask whether the
/// server speaks TLS or GSSAPI; a StartupMessage asks for neither. `None` is any byte.
const POSTGRES: [[Option<u8>; 8]; 2] = [
    [Some(0), Some(0), Some(0), Some(8), Some(4), Some(210), Some(22), None],
    [Some(0), Some(0), None, None, Some(0), Some(3), Some(0), None],
];

fn postgres(wire: &[u8]) -> Option<Verdict> {
    let fits = |(byte, known): (&u8, &Option<u8>)| known.is_none_or(|known| known == *byte);
    let begins = |first: &&[Option<u8>; 8]| wire.iter().zip(*first).all(fits);
    let first = POSTGRES.iter().find(begins).filter(|_| !wire.is_empty())?;
    let is_whole = wire.len() >= first.len();
    Some(if is_whole { Verdict::Refused(Reason::PostgresPlain) } else { Verdict::More })
}

/// Returns the length of the handshake message with its header, once those four bytes have arrived; they may be spread
/// over several records.
fn message_length(wire: &[u8]) -> Option<Result<usize, Reason>> {
    let mut message = handshake_bytes(wire);
    if message.next()? != CLIENT_HELLO {
        return Some(Err(Reason::HelloMalformed));
    }
    let (high, middle, low) = (message.next()?, message.next()?, message.next()?);
    let length = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
    Some(Ok(HANDSHAKE_HEADER + length))
}

/// Returns the bytes inside the records, up to the end of the wire.
fn handshake_bytes(wire: &[u8]) -> impl Iterator<Item = u8> + '_ {
    fragments(wire).flatten().copied()
}

fn fragments(mut wire: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let length = fragment_length(wire)?;
        let body = wire.get(RECORD_HEADER..)?;
        let fragment = body.get(..length).unwrap_or(body);
        wire = body.get(length..).unwrap_or_default();
        Some(fragment)
    })
}

fn fragment_length(header: &[u8]) -> Option<usize> {
    match header {
        [_, _, _, high, low, ..] => Some(usize::from(*high) << 8 | usize::from(*low)),
        _ => None,
    }
}

/// Checks the received part of a record header.
fn check_header(header: &[u8], first: bool) -> Result<(), Reason> {
    let wrong = if first { Reason::NotTls } else { Reason::HelloMalformed };
    let kind_is_wrong = header.first().is_some_and(|kind| *kind != HANDSHAKE);
    let version_is_wrong = header.get(1).is_some_and(|major| *major != 3);
    if kind_is_wrong || version_is_wrong {
        return Err(wrong);
    }
    // A record without a byte of handshake is forbidden (RFC 8446, 5.1), and would let a peer send
    // headers forever.
    match fragment_length(header) {
        Some(0) => Err(Reason::HelloMalformed),
        Some(length) if length > MAX_FRAGMENT => Err(Reason::HelloMalformed),
        _ => Ok(()),
    }
}

fn whole(wire: &[u8]) -> Verdict {
    let mut records = fragments(wire);
    let first = records.next().unwrap_or_default();
    let parsed = if records.next().is_none() {
        body(first)
    } else {
        let message: Vec<u8> = handshake_bytes(wire).collect();
        body(&message)
    };
    match parsed {
        Some(hello) => Verdict::Hello(Hello { wire_len: wire.len(), ..hello }),
        None => Verdict::Refused(Reason::HelloMalformed),
    }
}

/// Returns the invalid SNI of a complete hello, escaped and truncated, for the log.
#[must_use]
pub fn refused_name(wire: &[u8]) -> Option<String> {
    let message: Vec<u8> = handshake_bytes(wire).collect();
    let mut reader = Reader(message.get(HANDSHAKE_HEADER + 2 + 32..)?);
    reader.prefixed_u8()?;
    reader.prefixed_u16()?;
    reader.prefixed_u8()?;
    let mut extensions = Reader(reader.prefixed_u16()?);
    let data = std::iter::from_fn(|| Some((extensions.u16()?, extensions.prefixed_u16()?)))
        .find_map(|(kind, data)| (kind == 0).then_some(data))?;
    // Skips the list's length and the name type: the name is shown whatever they are.
    let name = Reader(data.get(3..)?).prefixed_u16()?;
    let shown = name.get(..MAX_SHOWN).unwrap_or(name);
    HostName::parse(name).is_err().then(|| shown.escape_ascii().to_string())
}

/// Maximum bytes of an invalid name that are shown; a valid name has no more.
const MAX_SHOWN: usize = 253;

/// Reads a whole handshake message; `None` for anything that breaks its structure.
fn body(message: &[u8]) -> Option<Hello> {
    let mut hello = Hello::default();
    let mut reader = Reader(message.get(HANDSHAKE_HEADER..)?);
    reader.take(2 + 32)?; // version, random
    let session = reader.prefixed_u8()?;
    let ciphers = reader.prefixed_u16()?;
    let compression = reader.prefixed_u8()?;
    if session.len() > 32 || ciphers.is_empty() || !ciphers.len().is_multiple_of(2) || compression.is_empty()
    {
        return None;
    }
    if reader.0.is_empty() {
        return Some(hello); // TLS 1.0 knew no extensions
    }
    let mut extensions = Reader(reader.prefixed_u16()?);
    if !reader.0.is_empty() {
        return None;
    }
    let mut seen = [0_u64; 1024];
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.prefixed_u16()?;
        let word = seen.get_mut(usize::from(kind >> 6))?;
        let bit = 1_u64 << (kind & 63);
        if *word & bit != 0 {
            return None;
        }
        *word |= bit;
        match kind {
            0 => hello.sni = Some(server_name(data)?),
            16 => hello.alpn = alpn(data)?,
            42 if data.is_empty() => hello.early_data = true,
            42 => return None,
            _ => {}
        }
    }
    Some(hello)
}

/// RFC 6066, 3: a list that may hold one name of each type, and there is only the type host_name.
fn server_name(data: &[u8]) -> Option<HostName> {
    let mut reader = Reader(data);
    let mut list = Reader(reader.prefixed_u16()?);
    let host_name = list.u8()? == 0;
    let name = list.prefixed_u16()?;
    if !host_name || !list.0.is_empty() || !reader.0.is_empty() {
        return None;
    }
    HostName::parse(name).ok()
}

/// RFC 7301, 3.1: at least one protocol, none of them empty.
fn alpn(data: &[u8]) -> Option<Alpn> {
    let mut reader = Reader(data);
    let list = reader.prefixed_u16()?;
    let mut protocols = Reader(list);
    if list.is_empty() || !reader.0.is_empty() {
        return None;
    }
    while !protocols.0.is_empty() {
        if protocols.prefixed_u8()?.is_empty() {
            return None;
        }
    }
    Some(Alpn(list.into()))
}

/// Takes bytes from the front; `None` where there are too few.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from(self.u8()?) << 8 | u16::from(self.u8()?))
    }

    fn prefixed_u8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    fn prefixed_u16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        let mut wire = kind.to_be_bytes().to_vec();
        wire.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        wire.extend(data);
        wire
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        let mut data = u16::try_from(name.len() + 3).unwrap().to_be_bytes().to_vec();
        data.push(0);
        data.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        data.extend(name);
        extension(0, &data)
    }

    fn message(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        if let Some(extensions) = extensions {
            let block = extensions.concat();
            body.extend(u16::try_from(block.len()).unwrap().to_be_bytes());
            body.extend(block);
        }
        let mut message = vec![CLIENT_HELLO, 0];
        message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        message.extend(body);
        message
    }

    fn records(message: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut wire = Vec::new();
        let mut rest = message;
        for cut in cuts.iter().copied().chain([MAX_FRAGMENT]).cycle() {
            if rest.is_empty() {
                break;
            }
            let (fragment, after) = rest.split_at(cut.clamp(1, MAX_FRAGMENT).min(rest.len()));
            wire.extend([HANDSHAKE, 3, 1]);
            wire.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
            wire.extend(fragment);
            rest = after;
        }
        wire
    }

    fn verdict(wire: &[u8]) -> Verdict {
        Parser::new(MAX_HELLO).advance(wire)
    }

    fn reason(wire: &[u8]) -> Reason {
        match verdict(wire) {
            Verdict::Refused(reason) => reason,
            other => panic!("not refused: {other:?}"),
        }
    }

    fn refused(extensions: &[Vec<u8>]) {
        assert_eq!(reason(&records(&message(Some(extensions)), &[])), Reason::HelloMalformed);
    }

    #[test]
    fn hello_parser_reads_sni_alpn_and_early_data() {
        let alpn = extension(16, b"\0\x0c\x02h2\x08http/1.1");
        let message =
            message(Some(&[sni(b"Details.Example."), alpn, extension(42, b""), extension(0x0a0a, b"x")]));
        let wire = records(&message, &[]);
        let Verdict::Hello(hello) = verdict(&wire) else { panic!("no hello") };
        assert_eq!(hello.sni.unwrap().as_str(), "details.example");
        assert!(hello.alpn.offers("h2") && hello.alpn.offers("http/1.1") && !hello.alpn.offers("h3"));
        assert!(hello.early_data);
        assert_eq!(hello.wire_len, wire.len());
    }

    #[test]
    fn hello_without_extensions_has_no_sni() {
        let Verdict::Hello(hello) = verdict(&records(&message(None), &[])) else { panic!("no hello") };
        assert_eq!(hello.sni, None);
    }

    #[test]
    fn hello_prefix_needs_more_bytes() {
        let wire = records(&message(Some(&[sni(b"a.example")])), &[3, 1, 9]);
        for end in 0..wire.len() {
            assert_eq!(verdict(&wire[..end]), Verdict::More, "prefix of {end} bytes");
        }
        assert!(matches!(verdict(&wire), Verdict::Hello(_)));
    }

    #[test]
    fn hello_parser_ignores_later_records() {
        let mut wire = records(&message(Some(&[sni(b"a.example")])), &[]);
        let length = wire.len();
        wire.extend(b"\x17\x03\x03\x00\x01x");
        let Verdict::Hello(hello) = verdict(&wire) else { panic!("no hello") };
        assert_eq!(hello.wire_len, length);
    }

    #[test]
    fn non_tls_is_refused_at_first_wrong_byte() {
        assert_eq!(reason(b"G"), Reason::NotTls);
        assert_eq!(reason(b"\x16\x02"), Reason::NotTls);
        assert_eq!(reason(b"\x16\xfe\xff"), Reason::NotTls);
        assert_eq!(reason(b"\x80\x2e\x01"), Reason::NotTls);
        assert_eq!(reason(b"\x17\x03\x03"), Reason::NotTls);
        assert_eq!(reason(b"\x16\x03\x01\0\0"), Reason::HelloMalformed);
        assert_eq!(reason(b"\x16\x03\x01\x40\x01"), Reason::HelloMalformed);
        assert_eq!(reason(b"\x16\x03\x01\0\x04\x02"), Reason::HelloMalformed);
    }

    #[test]
    fn hello_interrupted_by_other_record_is_refused() {
        let mut wire = records(&message(Some(&[sni(b"a.example")])), &[10]);
        wire[15] = 21;
        assert_eq!(reason(&wire), Reason::HelloMalformed);
    }

    #[test]
    fn malformed_extensions_are_refused() {
        refused(&[sni(b"a"), sni(b"a")]);
        refused(&[extension(7, b""), extension(7, b"")]);
        for name in [&b""[..], b".", b"a\0b", "é".as_bytes(), b"a..b", b"a b", &[b'a'; 64], &[b'.'; 300]] {
            refused(&[sni(name)]);
        }
        refused(&[extension(0, b"")]);
        refused(&[extension(0, b"\0\x08\0\0\x01a\0\0\x01b")]); // two names
        refused(&[extension(0, b"\0\x04\x01\0\x01a")]); // a type of name that does not exist
        refused(&[extension(0, b"\0\x05\0\0\x01a")]); // list longer than its extension
        refused(&[extension(16, b"\0\0")]);
        refused(&[extension(16, b"\0\x01\0")]);
        refused(&[extension(16, b"\0\x03\x04h2")]);
        refused(&[extension(42, b"x")]);
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let good = message(Some(&[sni(b"a.example")]));
        let mut long = good.clone();
        long.push(0);
        assert_eq!(reason(&records(&long, &[])), Reason::HelloMalformed);
        for (at, value) in [(38, 33), (40, 3), (43, 0), (45, 0xff)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(reason(&records(&bad, &[])), Reason::HelloMalformed, "byte {at}");
        }
    }

    #[test]
    fn hello_limit_counts_message_without_record_headers() {
        let padding = extension(21, &vec![0; 65_000]);
        let message = message(Some(&[sni(b"a.example"), padding]));
        assert!(message.len() <= MAX_HELLO);
        assert!(matches!(verdict(&records(&message, &[])), Verdict::Hello(_)));
        assert!(matches!(verdict(&records(&message, &[1])), Verdict::Hello(_)));
        let mut parser = Parser::new(message.len() - 1);
        assert_eq!(parser.advance(&records(&message, &[])[..9]), Verdict::Refused(Reason::HelloTooLarge));
    }

    /// Feeds the wire in pieces and returns the first answer that is not "more".
    fn in_pieces(wire: &[u8], pieces: &[usize]) -> Verdict {
        let mut parser = Parser::new(MAX_HELLO);
        let mut end = 0;
        let mut pieces = pieces.iter().copied().chain([1]).cycle();
        while end < wire.len() {
            end = (end + pieces.next().unwrap().max(1)).min(wire.len());
            match parser.advance(&wire[..end]) {
                Verdict::More => {}
                answer => return answer,
            }
        }
        parser.advance(wire)
    }

    fn near_hello() -> impl Strategy<Value = Vec<u8>> {
        let name = proptest::collection::vec(prop_oneof![9 => 97_u8..123, 1 => any::<u8>()], 0..40);
        let other = (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..60));
        let cuts = proptest::collection::vec(1_usize..40, 1..6);
        let damage = proptest::option::weighted(0.5, (any::<prop::sample::Index>(), any::<u8>()));
        (name, proptest::collection::vec(other, 0..5), cuts, damage).prop_map(
            |(name, others, cuts, damage)| {
                let mut extensions = vec![sni(&name)];
                extensions.extend(others.iter().map(|(kind, data)| extension(*kind, data)));
                let mut wire = records(&message(Some(&extensions)), &cuts);
                if let Some((at, value)) = damage {
                    let at = at.index(wire.len());
                    wire[at] = value;
                }
                wire
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100_000))]

        #[test]
        fn hello_verdict_is_independent_of_segments(
            wire in near_hello(),
            pieces in proptest::collection::vec(1_usize..50, 1..8),
        ) {
            prop_assert_eq!(in_pieces(&wire, &pieces), verdict(&wire));
            prop_assert_eq!(in_pieces(&wire, &[1]), verdict(&wire));
        }

        #[test]
        fn hello_verdict_is_independent_of_records(
            name in proptest::collection::vec(prop_oneof![9 => 97_u8..123, 1 => any::<u8>()], 0..40),
            cuts in proptest::collection::vec(1_usize..50, 1..8),
        ) {
            let message = message(Some(&[sni(&name)]));
            let forget_length = |verdict| match verdict {
                Verdict::Hello(hello) => Verdict::Hello(Hello { wire_len: 0, ..hello }),
                other => other,
            };
            prop_assert_eq!(
                forget_length(verdict(&records(&message, &cuts))),
                forget_length(verdict(&records(&message, &[])))
            );
        }

        #[test]
        fn hello_parser_is_total(wire in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(in_pieces(&wire, &[1]), verdict(&wire));
        }
    }

    #[test]
    fn refused_name_is_escaped_and_truncated() {
        let shown = |name: &[u8]| {
            let wire = records(&message(Some(&[extension(43, &[2, 3, 4]), sni(name)])), &[60, 9]);
            (Parser::new(MAX_HELLO).advance(&wire), refused_name(&wire))
        };
        let refused = Verdict::Refused(Reason::HelloMalformed);
        assert_eq!(shown(b"a..b"), (refused.clone(), Some("a..b".to_owned())));
        assert_eq!(shown(b"a\x00\n\"\xff"), (refused.clone(), Some("a\\x00\\n\\\"\\xff".to_owned())));
        let (verdict, name) = shown(&[b'\xee'; 60_000]);
        assert_eq!((verdict, name.unwrap().len()), (refused, MAX_SHOWN * 4));
        assert_eq!(shown(b"web.example").1, None, "a valid name is not reported");
        let wire = records(&message(None), &[]);
        for end in 0..wire.len() {
            assert_eq!(refused_name(&wire[..end]), None);
        }
    }

    #[test]
    fn postgres_client_is_recognized_at_every_split() {
        let judged = |wire: &[u8]| Parser::new(MAX_HELLO).advance(wire);
        let (ssl, gss) = ([0, 0, 0, 8, 4, 210, 22, 47], [0, 0, 0, 8, 4, 210, 22, 48]);
        for first in [ssl, gss, [0, 0, 0, 41, 0, 3, 0, 0], [0, 0, 1, 41, 0, 3, 0, 2]] {
            for end in 1..first.len() {
                assert_eq!(judged(&first[..end]), Verdict::More);
            }
            assert_eq!(judged(&first), Verdict::Refused(Reason::PostgresPlain));
        }
        for other in [&[0, 1][..], &[0, 0, 0, 8, 4, 211], &[0, 0, 9, 9, 0, 4]] {
            assert_eq!(judged(other), Verdict::Refused(Reason::NotTls), "{other:?}");
        }
    }
}
