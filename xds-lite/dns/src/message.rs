//! Packets: reads a question, and encodes its answer in the asker's size, with the question byte for byte.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable};

/// Where the question section begins.
pub(crate) const HEADER: usize = 12;
/// What every asker takes over UDP.
pub(crate) const SMALLEST_UDP: u16 = 512;
/// What fits into one packet of any path; askers that take more get no more.
pub(crate) const LARGEST_UDP: u16 = 1_232;
const LARGEST_TCP: usize = 65_535;

/// How a packet came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// In one datagram.
    Udp,
    /// In a stream, without its length.
    Tcp,
}

/// A readable question.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    message: Message,
    query: Query,
    bytes: &'a [u8],
}

/// A packet without a readable question.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// It gets no answer: it is too short, or an answer itself.
    Ignored,
    /// It gets this answer.
    Refused(Vec<u8>),
}

/// Reads a packet.
pub(crate) fn read(packet: &[u8]) -> Result<Question<'_>, Unreadable> {
    let header = packet.get(..HEADER).ok_or(Unreadable::Ignored)?;
    let flags = header.get(2).copied().unwrap_or_default();
    // An answer to an answer would go round for ever.
    if flags & 0x80 != 0 {
        return Err(Unreadable::Ignored);
    }
    question(packet).ok_or_else(|| Unreadable::Refused(malformed(header)))
}

fn question(packet: &[u8]) -> Option<Question<'_>> {
    let message = Message::from_vec(packet).ok()?;
    let [query] = message.queries.as_slice() else { return None };
    let query = query.clone();
    let mut decoder = BinDecoder::new(packet.get(HEADER..)?);
    let again = Query::read(&mut decoder).ok()?;
    let bytes = packet.get(HEADER..HEADER.checked_add(decoder.index())?)?;
    // A compressed question could not be echoed byte for byte.
    let is_plain = query.to_bytes().is_ok_and(|plain| plain.len() == bytes.len());
    (again == query && is_plain).then_some(Question { message, query, bytes })
}

/// Format error, without the question that could not be read.
fn malformed(header: &[u8]) -> Vec<u8> {
    let mut reply = vec![0; HEADER];
    let flags = header.get(2).map_or(0x80, |flags| 0x80 | flags & 0x79);
    for (place, byte) in reply.iter_mut().zip(header.iter().take(2).chain(&[flags, 1])) {
        *place = *byte;
    }
    reply
}

impl Question<'_> {
    pub(crate) fn message(&self) -> &Message {
        &self.message
    }

    /// The question section as it came.
    pub(crate) fn section(&self) -> &[u8] {
        self.bytes
    }

    pub(crate) fn query(&self) -> &Query {
        &self.query
    }

    pub(crate) fn op_code(&self) -> OpCode {
        self.message.metadata.op_code
    }

    /// Whether its EDNS is of a version that nobody knows yet.
    pub(crate) fn asks_newer_edns(&self) -> bool {
        self.message.edns.as_ref().is_some_and(|edns| edns.version() > 0)
    }

    /// An answer without records.
    pub(crate) fn reply(&self) -> Message {
        let asked = &self.message.metadata;
        let mut reply = Message::new(asked.id, MessageType::Response, asked.op_code);
        reply.metadata.recursion_desired = asked.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.authoritative = true;
        reply.metadata.response_code = ResponseCode::NoError;
        reply.queries = vec![self.query.clone()];
        // Only who speaks EDNS is answered in it.
        reply.edns = self.message.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGEST_UDP);
            edns
        });
        reply
    }

    /// The bytes that the asker takes at most.
    pub(crate) fn limit(&self, transport: Transport) -> usize {
        match (transport, &self.message.edns) {
            (Transport::Tcp, _) => LARGEST_TCP,
            (Transport::Udp, None) => SMALLEST_UDP.into(),
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(SMALLEST_UDP, LARGEST_UDP).into(),
        }
    }

    /// The bytes of an answer, with fewer records and the truncation flag where not all fit.
    pub(crate) fn encode(&self, mut reply: Message, transport: Transport) -> Option<Vec<u8>> {
        let most = self.limit(transport);
        let mut bytes = reply.to_vec().ok()?;
        while bytes.len() > most {
            reply.metadata.truncation = true;
            let fitting = reply.answers.len().saturating_mul(most) / bytes.len();
            let fewer = fitting.min(reply.answers.len().checked_sub(1)?);
            reply.answers.truncate(fewer);
            bytes = reply.to_vec().ok()?;
        }
        self.addressed(bytes)
    }

    /// An answer with the asker's ID, and with the question in the asker's letters. `None`: it is not of this question.
    pub(crate) fn addressed(&self, mut answer: Vec<u8>) -> Option<Vec<u8>> {
        answer.get_mut(..2)?.copy_from_slice(&self.message.metadata.id.to_be_bytes());
        let section = answer.get_mut(HEADER..HEADER.checked_add(self.bytes.len())?)?;
        if !section.eq_ignore_ascii_case(self.bytes) {
            return None;
        }
        section.copy_from_slice(self.bytes);
        Some(answer)
    }
}
