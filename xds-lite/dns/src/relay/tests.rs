//! What passes through is as the asker must have it, whatever the other server sends.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::Query;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;

fn question(name: &str, payload: Option<u16>) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(Name::from_ascii(name).unwrap(), RecordType::A)];
    message.edns = payload.map(edns);
    message
}

fn edns(payload: u16) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    edns.set_dnssec_ok(true);
    edns
}

/// Another server's answer with this many addresses.
fn answer(relayed: &Relayed, id: u16, addresses: u8, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::from_vec(&relayed.packet(id)).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message.edns = payload.map(edns);
    let record = |last| {
        let name = message.queries[0].name().clone();
        Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, last))))
    };
    message.answers = (0..addresses).map(record).collect();
    message.to_vec().unwrap()
}

fn passed_on(question: &Message, answer: &[u8], transport: Transport) -> (Message, usize) {
    let bytes = relay(&question.to_vec().unwrap(), answer, transport).unwrap();
    (Message::from_vec(&bytes).unwrap(), bytes.len())
}

#[test]
fn relayed_question_has_only_what_the_answer_depends_on() {
    let asked = question("WWW.example.org.", Some(4_096));
    let mut other = asked.clone();
    other.metadata.id = 9;
    let relayed = Relayed::new(&asked.to_vec().unwrap()).unwrap();
    assert_eq!(Relayed::new(&other.to_vec().unwrap()), Some(relayed.clone()), "whoever asks");
    let sent = Message::from_vec(&relayed.packet(0xabcd)).unwrap();
    assert_eq!((sent.metadata.id, sent.metadata.recursion_desired), (0xabcd, true));
    assert_eq!(sent.queries[0].name().to_ascii(), "WWW.example.org.");
    let edns = sent.edns.unwrap();
    assert_eq!((edns.max_payload(), edns.flags().dnssec_ok), (1_232, true));
    let plain = Relayed::new(&question("www.example.org.", None).to_vec().unwrap()).unwrap();
    assert!(Message::from_vec(&plain.packet(1)).unwrap().edns.is_none());
    assert_ne!(plain, relayed);
    assert_eq!(Relayed::new(b"noise"), None);
}

#[test]
fn relayed_question_is_answered_by_its_own_answer_alone() {
    let asked = question("www.example.org.", None).to_vec().unwrap();
    let relayed = Relayed::new(&asked).unwrap();
    let good = answer(&relayed, 5, 1, None);
    assert_eq!(relayed.answered_by(5, &good), Answered::Yes);
    assert_eq!(relayed.answered_by(6, &good), Answered::No, "another ID");
    assert_eq!(relayed.answered_by(5, &relayed.packet(5)), Answered::No, "a question");
    let other = Relayed::new(&question("www.example.com.", None).to_vec().unwrap()).unwrap();
    assert_eq!(other.answered_by(5, &good), Answered::No, "of another name");
    for length in 0..good.len().min(HEADER + relayed.section) {
        assert_eq!(relayed.answered_by(5, &good[..length]), Answered::No, "{length} bytes");
    }
    let mut failed = good;
    for (code, expected) in
        [(1, Answered::Failed), (2, Answered::Failed), (5, Answered::Failed), (3, Answered::Yes)]
    {
        failed[3] = failed[3] & 0xf0 | code;
        assert_eq!(relayed.answered_by(5, &failed), expected, "code {code}");
    }
    assert_eq!(relayed.answered_by(5, &[0, 5, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Answered::Failed);
}

#[test]
fn relayed_answer_with_sixty_addresses_fits_what_the_asker_takes() {
    let plain = question("many.example.org.", None);
    let large = answer(&Relayed::new(&plain.to_vec().unwrap()).unwrap(), 5, 60, Some(1_232));
    let (message, size) = passed_on(&plain, &large, Transport::Udp);
    assert!(size <= 512 && message.metadata.truncation && message.edns.is_none(), "{size}");
    let (message, _) = passed_on(&plain, &large, Transport::Tcp);
    assert_eq!((message.answers.len(), message.edns), (60, None));
    let (message, size) = passed_on(&question("many.example.org.", Some(1_232)), &large, Transport::Udp);
    assert!(size <= 1_232 && message.edns.is_some(), "{size}");
    assert_eq!((message.answers.len(), message.metadata.truncation), (60, false));
}

#[test]
fn relayed_answer_has_the_id_and_the_letters_of_its_asker() {
    let asked = question("wWw.Example.org.", None).to_vec().unwrap();
    let answer = answer(&Relayed::new(&asked).unwrap(), 5, 1, None);
    let lower = answer.to_ascii_lowercase();
    let bytes = relay(&asked, &lower, Transport::Udp).unwrap();
    assert_eq!((&bytes[..2], &bytes[HEADER..asked.len()]), (&asked[..2], &asked[HEADER..]));
    let header_only = [0, 5, 0x80, 5, 0, 0, 0, 0, 0, 0, 0, 0];
    let refused = Message::from_vec(&relay(&asked, &header_only, Transport::Udp).unwrap()).unwrap();
    assert_eq!((refused.metadata.response_code, refused.metadata.id), (ResponseCode::Refused, 7));
}

#[test]
fn failure_is_answered_with_its_code() {
    let asked = question("www.example.org.", Some(1_232)).to_vec().unwrap();
    for (why, code) in
        [(Failure::Unanswered, ResponseCode::ServFail), (Failure::Refused, ResponseCode::Refused)]
    {
        let reply = Message::from_vec(&failure(&asked, why, Transport::Udp).unwrap()).unwrap();
        assert_eq!((reply.metadata.response_code, reply.metadata.authoritative), (code, false));
        assert!(reply.edns.is_some() && reply.answers.is_empty());
    }
    assert_eq!(failure(b"noise", Failure::Refused, Transport::Udp), None);
}

/// No panic, whatever asker and server send; what is passed on fits, and is the asker's.
#[test]
fn fuzz_dns_relay() {
    let asked = question("many.example.org.", Some(1_232)).to_vec().unwrap();
    let good = answer(&Relayed::new(&asked).unwrap(), 5, 60, Some(1_232));
    let check = bolero::check!().with_test_time(Duration::from_secs(3)).with_type::<(Vec<u8>, u16, u8)>();
    check.for_each(|(bytes, from, cut)| {
        let mixed = |good: &[u8]| {
            let from = usize::from(*from) % (good.len() + 1);
            let to = (from + usize::from(*cut)).min(good.len());
            [&good[..from], bytes, &good[to..]].concat()
        };
        for (question, answer) in [(asked.clone(), mixed(&good)), (mixed(&asked), good.clone())] {
            if let Some(relayed) = Relayed::new(&question) {
                let _any = relayed.answered_by(5, &answer);
            }
            if let Some(reply) = relay(&question, &answer, Transport::Udp) {
                assert!(reply.len() <= 1_232 && reply[..2] == question[..2]);
            }
        }
    });
}
