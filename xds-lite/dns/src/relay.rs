//! Questions that another server answers: what is sent to it, and what of its answer is passed on.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};

use crate::message::{self, HEADER, LARGEST_UDP, SMALLEST_UDP, Transport};

/// A question for another server: of the asker's packet only what the answer depends on. Equal questions have equal
/// bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relayed {
    /// With the ID 0.
    bytes: Vec<u8>,
    /// The length of the question section, behind the header.
    section: usize,
}

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody has answered, or too many questions are open.
    Unanswered,
    /// This asker, or this question, is not served.
    Refused,
}

/// What another server's packet is to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The answer, whatever it says.
    Yes,
    /// Its word that it cannot or will not answer; another server may.
    Failed,
    /// Something else: it is to be ignored.
    No,
}

impl Relayed {
    /// The question of a packet; `None`: it has none.
    #[must_use]
    pub fn new(packet: &[u8]) -> Option<Relayed> {
        let question = message::read(packet).ok()?;
        let asked = question.message();
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = asked.metadata.recursion_desired;
        message.metadata.checking_disabled = asked.metadata.checking_disabled;
        message.metadata.authentic_data = asked.metadata.authentic_data;
        message.queries = vec![question.query().clone()];
        message.edns = asked.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(SMALLEST_UDP, LARGEST_UDP));
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        Some(Relayed { bytes: message.to_vec().ok()?, section: question.section().len() })
    }

    /// The packet to send. An ID that nobody can guess makes a forged answer improbable.
    #[must_use]
    pub fn packet(&self, id: u16) -> Vec<u8> {
        let mut packet = self.bytes.clone();
        set_id(&mut packet, id);
        packet
    }

    /// What a packet of the server is to this question, sent with this ID.
    #[must_use]
    pub fn answered_by(&self, id: u16, packet: &[u8]) -> Answered {
        let Some((header, rest)) = packet.split_first_chunk::<HEADER>() else { return Answered::No };
        let [id_high, id_low, flags, code, _, questions, ..] = header;
        let is_answer = flags & 0xf8 == 0x80;
        if [*id_high, *id_low] != id.to_be_bytes() || !is_answer {
            return Answered::No;
        }
        let failed = matches!(
            ResponseCode::from_low(code & 0x0f),
            ResponseCode::FormErr | ResponseCode::ServFail | ResponseCode::NotImp | ResponseCode::Refused
        );
        let asked = self.section();
        let is_same = rest.get(..asked.len()).is_some_and(|same| same.eq_ignore_ascii_case(asked));
        match (questions, failed) {
            (1, false) if is_same => Answered::Yes,
            (1, true) if is_same => Answered::Failed,
            // Who cannot read a question cannot repeat it.
            (0, true) => Answered::Failed,
            _ => Answered::No,
        }
    }

    fn section(&self) -> &[u8] {
        self.bytes.get(HEADER..HEADER.saturating_add(self.section)).unwrap_or_default()
    }
}

/// The answer for an asker, made of another server's: with the asker's ID, letters, EDNS and size. `None`: it cannot be
/// read.
#[must_use]
pub fn relay(packet: &[u8], answer: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let question = message::read(packet).ok()?;
    let mut message = Message::from_vec(answer).ok()?;
    let is_alike = message.queries.as_slice() == [question.query().clone()];
    let has_fitting_edns = message.edns.is_none() || question.message().edns.is_some();
    if is_alike && has_fitting_edns && answer.len() <= question.limit(transport) {
        return question.addressed(answer.to_vec());
    }
    let mut reply = question.reply();
    reply.metadata = message.metadata;
    reply.metadata.id = question.message().metadata.id;
    reply.answers = std::mem::take(&mut message.answers);
    question.encode(reply, transport)
}

/// The answer that there is none. `None`: the packet has no question.
#[must_use]
pub fn failure(packet: &[u8], why: Failure, transport: Transport) -> Option<Vec<u8>> {
    let question = message::read(packet).ok()?;
    let mut reply = question.reply();
    reply.metadata.authoritative = false;
    reply.metadata.response_code = match why {
        Failure::Unanswered => ResponseCode::ServFail,
        Failure::Refused => ResponseCode::Refused,
    };
    question.encode(reply, transport)
}

fn set_id(packet: &mut [u8], id: u16) {
    for (byte, new) in packet.iter_mut().zip(id.to_be_bytes()) {
        *byte = new;
    }
}

#[cfg(test)]
mod tests;
