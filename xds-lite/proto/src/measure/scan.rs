//! Scans the outline of gRPC messages as their bytes arrive, in any pieces: the length, the number of parts,
//! and so the decoded size. Pure; stores only its position.

use super::shapes::{PART, Shape};

/// The prefix of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Limit of bytes in parts outside of the message's lists: a node, an error.
const OTHER: u64 = 64 << 10;

/// The limits of a message.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// The parts of the message.
    pub shape: &'static Shape,
    /// The limit of its bytes.
    pub longest: u64,
    /// The limit of its decoded size.
    pub most: u64,
}

/// Why a message is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// It is longer than allowed.
    #[error("a message of {length} bytes is too large; the limit is {longest}")]
    Long {
        /// Its length in bytes.
        length: u64,
        /// The limit in bytes.
        longest: u64,
    },
    /// It would take too much memory once decoded.
    #[error("a message with so many parts is too large: over {most} bytes once decoded")]
    Large {
        /// The limit in bytes.
        most: u64,
    },
    /// It has too much besides its lists.
    #[error("a message has over {OTHER} bytes outside of its lists")]
    Other,
    /// It is compressed, or not gRPC.
    #[error("not a gRPC message, or a compressed one")]
    Compressed,
    /// It is not valid protobuf.
    #[error("a message cannot be decoded: invalid protobuf")]
    Malformed,
}

/// What is known of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing.
    Other,
    /// It has no parts that count.
    Leaf,
    /// It has parts.
    Parts(&'static Shape),
}

/// The position of the next byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In the prefix, after this many bytes of it.
    Prefix(usize),
    /// The number and type of a part.
    Tag,
    /// A varint.
    Number,
    /// The length of a part.
    Length(Known),
    /// This many bytes to skip.
    Skip(u64),
}

/// The outline so far.
#[derive(Debug)]
pub struct Scan {
    rules: Rules,
    at: At,
    length: u32,
    /// Bytes of the message still to come.
    left: u64,
    /// The enclosing parts, with their bytes to come; as deep as shapes are.
    inside: Vec<(&'static Shape, u64)>,
    number: u64,
    shift: u32,
    other: u64,
    current: u64,
    whole: u64,
}

impl Scan {
    /// Nothing has arrived yet.
    pub fn new(rules: Rules) -> Scan {
        Scan {
            rules,
            at: At::Prefix(0),
            length: 0,
            left: 0,
            inside: Vec::new(),
            number: 0,
            shift: 0,
            other: 0,
            current: 0,
            whole: 0,
        }
    }

    /// The decoded size of the messages not settled yet.
    pub fn held(&self) -> u64 {
        self.whole + self.current
    }

    /// Releases the complete messages.
    pub fn settle(&mut self) {
        self.whole = 0;
    }

    /// Scans the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Result<(), Wrong> {
        while let Some((first, rest)) = bytes.split_first() {
            if let At::Prefix(seen) = self.at {
                self.prefix(seen, *first)?;
                bytes = rest;
            } else if let At::Skip(length) = self.at {
                let skipped = usize::try_from(length).unwrap_or(usize::MAX).min(bytes.len());
                self.at = match length - skipped as u64 {
                    0 => At::Tag,
                    left => At::Skip(left),
                };
                self.pass(skipped as u64);
                bytes = bytes.get(skipped..).unwrap_or_default();
            } else {
                self.pass(1);
                self.varint(*first)?;
                bytes = rest;
            }
            self.end()?;
        }
        Ok(())
    }

    fn prefix(&mut self, seen: usize, byte: u8) -> Result<(), Wrong> {
        if seen == 0 {
            self.length = 0;
            if byte != 0 {
                return Err(Wrong::Compressed);
            }
        } else {
            self.length = self.length << 8 | u32::from(byte);
        }
        self.at = At::Prefix(seen + 1);
        if seen + 1 == PREFIX {
            let (length, longest) = (u64::from(self.length), self.rules.longest);
            if length > longest {
                return Err(Wrong::Long { length, longest });
            }
            (self.left, self.current, self.other) = (length, 0, 0);
            self.inside.clear();
            self.at = At::Tag;
            return self.takes(length);
        }
        Ok(())
    }

    fn pass(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        for (_, left) in &mut self.inside {
            *left = left.saturating_sub(bytes);
        }
    }

    /// Closes parts and messages without bytes left.
    fn end(&mut self) -> Result<(), Wrong> {
        let is_between = self.at == At::Tag && self.shift == 0;
        while self.inside.last().is_some_and(|(_, left)| *left == 0) {
            if !is_between {
                return Err(Wrong::Malformed);
            }
            self.inside.pop();
        }
        if self.left == 0 && !matches!(self.at, At::Prefix(_)) {
            if !is_between {
                return Err(Wrong::Malformed);
            }
            self.whole += std::mem::take(&mut self.current);
            self.at = At::Prefix(0);
        }
        Ok(())
    }

    fn varint(&mut self, byte: u8) -> Result<(), Wrong> {
        if self.shift > 63 {
            return Err(Wrong::Malformed);
        }
        self.number |= u64::from(byte & 0x7f) << self.shift;
        if byte & 0x80 != 0 {
            self.shift += 7;
            return Ok(());
        }
        self.shift = 0;
        let number = std::mem::take(&mut self.number);
        match self.at {
            At::Tag => self.tag(number),
            At::Length(known) => self.part(number, known),
            _ => {
                self.at = At::Tag;
                Ok(())
            }
        }
    }

    fn tag(&mut self, tag: u64) -> Result<(), Wrong> {
        let shape = self.inside.last().map_or(self.rules.shape, |(shape, _)| shape);
        let part = shape.0.iter().find(|part| part.number == tag >> 3);
        self.takes(part.map_or(PART, |part| part.takes))?;
        let known = part.map_or(Known::Other, |part| part.inside.map_or(Known::Leaf, Known::Parts));
        self.at = match tag & 7 {
            0 => At::Number,
            1 => self.skip(8)?,
            2 => At::Length(known),
            5 => self.skip(4)?,
            _ => return Err(Wrong::Malformed),
        };
        Ok(())
    }

    /// Enters a part of this length.
    fn part(&mut self, length: u64, known: Known) -> Result<(), Wrong> {
        self.at = self.skip(length)?;
        match known {
            Known::Leaf => {}
            Known::Parts(shape) => {
                self.inside.push((shape, length));
                self.at = At::Tag;
            }
            Known::Other => {
                self.other = self.other.saturating_add(length);
                if self.other > OTHER {
                    return Err(Wrong::Other);
                }
            }
        }
        Ok(())
    }

    fn skip(&self, length: u64) -> Result<At, Wrong> {
        let left = self.inside.last().map_or(self.left, |(_, left)| *left);
        match length {
            0 => Ok(At::Tag),
            length if length > left => Err(Wrong::Malformed),
            length => Ok(At::Skip(length)),
        }
    }

    fn takes(&mut self, more: u64) -> Result<(), Wrong> {
        self.current = self.current.saturating_add(more);
        let most = self.rules.most;
        if self.current > most { Err(Wrong::Large { most }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost_types::Any;

    use super::super::shapes::{DELTA_REQUEST, DELTA_RESPONSE};
    use super::*;
    use crate::envoy::config::core::v3::Node;
    use crate::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

    static REQUEST: Rules = Rules { shape: &DELTA_REQUEST, longest: 1 << 20, most: 2 << 20 };
    static RESPONSE: Rules = Rules { shape: &DELTA_RESPONSE, longest: 1 << 20, most: 2 << 20 };

    fn framed(message: &impl prost::Message) -> Vec<u8> {
        let bytes = message.encode_to_vec();
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        [&[0], &length[..], &bytes].concat()
    }

    fn request(names: usize, known: usize) -> DeltaDiscoveryRequest {
        let name = |number: usize| format!("east/{number}");
        DeltaDiscoveryRequest {
            node: Some(Node { id: "gw".to_owned(), ..Node::default() }),
            type_url: "type.example/a".to_owned(),
            resource_names_subscribe: (0..names).map(name).collect(),
            initial_resource_versions: (0..known).map(|number| (name(number), "1".to_owned())).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    fn response(resources: usize) -> DeltaDiscoveryResponse {
        let one = |number: usize| Resource {
            name: format!("east/{number}"),
            version: "1".to_owned(),
            resource: Some(Any { type_url: "type.example/a".to_owned(), value: vec![7; 100] }),
            ..Resource::default()
        };
        DeltaDiscoveryResponse {
            resources: (0..resources).map(one).collect(),
            removed_resources: vec!["east/gone".to_owned()],
            nonce: "1".to_owned(),
            ..DeltaDiscoveryResponse::default()
        }
    }

    proptest! {
        /// The count is the same for every split of the bytes, and not below the bytes sent.
        #[test]
        fn message_count_is_the_same_for_every_split(
            counts in proptest::collection::vec((0..20_usize, 0..20_usize), 1..4),
            cuts in proptest::collection::vec(1..64_usize, 1..8),
            is_request in any::<bool>(),
        ) {
            let message = |(one, other): &(usize, usize)| match is_request {
                true => framed(&request(*one, *other)),
                false => framed(&response(*one)),
            };
            let bytes: Vec<u8> = counts.iter().flat_map(message).collect();
            let rules = if is_request { REQUEST } else { RESPONSE };
            let mut whole = Scan::new(rules);
            prop_assert_eq!(whole.feed(&bytes), Ok(()));
            prop_assert!(whole.held() >= bytes.len() as u64 - 5 * counts.len() as u64);
            let (mut parts, mut rest, mut sizes) = (Scan::new(rules), &bytes[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                prop_assert_eq!(parts.feed(now), Ok(()));
                rest = later;
            }
            prop_assert_eq!(parts.held(), whole.held());
            parts.settle();
            prop_assert_eq!((parts.held(), parts.at), (0, At::Prefix(0)));
        }

        /// No bytes cause a panic, and no message exceeds its limit.
        #[test]
        fn message_of_any_bytes_stays_within_its_limit(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut scan = Scan::new(Rules { most: 500, ..REQUEST });
            let _ = scan.feed(&[&[0, 0, 0, 0, 200], &bytes[..]].concat());
            prop_assert!(scan.current <= 500 + 512);
        }
    }

    #[test]
    fn message_length_is_judged_by_its_prefix() {
        let mut scan = Scan::new(REQUEST);
        assert_eq!(scan.feed(&[0, 0, 0x10, 0]), Ok(()));
        let wrong = scan.feed(&[1]).unwrap_err();
        assert_eq!(wrong, Wrong::Long { length: (1 << 20) + 1, longest: 1 << 20 });
        assert_eq!(Scan::new(REQUEST).feed(&[1]), Err(Wrong::Compressed));
    }

    #[test]
    fn message_of_countless_empty_parts_is_refused_before_it_is_decoded() {
        let empty = |tag: u8| {
            let body = [tag, 0].repeat(500_000);
            let length = u32::try_from(body.len()).unwrap().to_be_bytes();
            [&[0], &length[..], &body].concat()
        };
        for (rules, tag) in [(REQUEST, 3 << 3 | 2), (RESPONSE, 2 << 3 | 2), (REQUEST, 1 << 3 | 2)] {
            assert_eq!(Scan::new(rules).feed(&empty(tag)), Err(Wrong::Large { most: 2 << 20 }), "{tag}");
        }
        let node = Node { id: "x".repeat(70_000), ..Node::default() };
        let large = DeltaDiscoveryRequest { node: Some(node), ..DeltaDiscoveryRequest::default() };
        assert_eq!(Scan::new(REQUEST).feed(&framed(&large)), Err(Wrong::Other));
    }
}
