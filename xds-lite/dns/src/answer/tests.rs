//! Answers as reports about other DNS proxies ask for them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, MessageType};
use proptest::prelude::*;

use super::*;

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn virtual_address(last: u8) -> IpAddr {
    Ipv4Addr::new(240, 240, 0, last).into()
}

/// `db.mesh` with one IPv4 address, `many.mesh` with 60, `both.mesh` with one of each family.
fn table() -> Table {
    let records = |addresses: Vec<IpAddr>| Arc::new(Records { addresses, ports: vec![3306, 80], ttl: 30 });
    let mut table = Table::default();
    table.ranges = vec!["240.240.0.0/16".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
    table.zones = vec![host("mesh")];
    table.absent = [host("secret.shop")].into();
    table.pointers = [(virtual_address(7), host("db.mesh"))].into();
    table.insert(host("db.mesh"), records(vec![virtual_address(7)]));
    table.insert(host("page.shop"), records(vec![virtual_address(8)]));
    table.insert(host("deep.below.mesh"), records(vec![virtual_address(9)]));
    table.insert(host("many.mesh"), records((0..60).map(virtual_address).collect()));
    table.insert(host("both.mesh"), records(vec![virtual_address(1), Ipv6Addr::LOCALHOST.into()]));
    table
}

fn question_name(name: &str) -> Name {
    Name::from_labels(name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes)).unwrap()
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(question_name(name), kind)];
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.edns = Some(edns);
    message
}

fn reply(message: &Message, transport: Transport) -> (Message, usize) {
    let packet = message.to_vec().unwrap();
    let Outcome::Reply(bytes) = answer(&table(), &packet, transport) else {
        panic!("{message} is not answered")
    };
    (Message::from_vec(&bytes).unwrap(), bytes.len())
}

fn ask(name: &str, kind: RecordType) -> Message {
    reply(&question(name, kind), Transport::Udp).0
}

#[track_caller]
fn assert_empty(name: &str, kind: RecordType, code: ResponseCode) {
    let reply = ask(name, kind);
    assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, 0), "{name} {kind}");
    assert_eq!(reply.authorities.iter().map(Record::record_type).collect::<Vec<_>>(), [RecordType::SOA]);
}

fn is_forwarded(name: &str) -> bool {
    let packet = question(name, RecordType::A).to_vec().unwrap();
    answer(&table(), &packet, Transport::Udp) == Outcome::Forward
}

#[test]
fn dns_answer_has_the_addresses_of_its_family() {
    let reply = ask("both.mesh.", RecordType::A);
    assert_eq!(
        reply.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>(),
        ["240.240.0.1"]
    );
    assert_eq!((reply.answers[0].ttl, reply.metadata.id), (30, 7));
    assert!(
        reply.metadata.authoritative
            && reply.metadata.recursion_desired
            && reply.metadata.recursion_available
    );
    let reply = ask("both.mesh.", RecordType::AAAA);
    assert_eq!(reply.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>(), ["::1"]);
}

#[test]
fn dns_answer_with_sixty_addresses_fits_what_the_asker_takes() {
    let plain = question("many.mesh.", RecordType::A);
    let (message, size) = reply(&plain, Transport::Udp);
    assert!(size <= 512 && message.metadata.truncation && message.edns.is_none(), "{size}");
    assert!(!message.answers.is_empty() && message.answers.len() < 60);
    let (message, size) = reply(&with_edns(plain.clone(), 600), Transport::Udp);
    assert!(size <= 600 && message.metadata.truncation && message.edns.is_some(), "{size}");
    for payload in [1_232, 65_535] {
        let (message, size) = reply(&with_edns(plain.clone(), payload), Transport::Udp);
        assert!(size <= 1_232 && !message.metadata.truncation, "{size}");
        assert_eq!(message.answers.len(), 60);
    }
    let (message, _) = reply(&with_edns(plain.clone(), 0), Transport::Udp);
    assert!(!message.answers.is_empty(), "less than 512 is 512");
    let (message, _) = reply(&plain, Transport::Tcp);
    assert_eq!((message.answers.len(), message.metadata.truncation), (60, false));
}

#[test]
fn dns_answer_without_records_of_a_type_is_empty_with_soa() {
    for kind in [RecordType::AAAA, RecordType::TXT, RecordType::HTTPS, RecordType::MX, RecordType::PTR] {
        assert_empty("db.mesh.", kind, ResponseCode::NoError);
    }
    assert_empty("page.shop.", RecordType::AAAA, ResponseCode::NoError);
    assert_empty("below.mesh.", RecordType::A, ResponseCode::NoError);
    assert_empty("mesh.", RecordType::A, ResponseCode::NoError);
}

#[test]
fn dns_names_of_zones_and_hidden_imports_do_not_exist_and_others_are_forwarded() {
    for name in ["nobody.mesh.", "x.db.mesh.", "secret.shop.", "a b.mesh.", "_80._udp.page.shop."] {
        assert_empty(name, RecordType::A, ResponseCode::NXDomain);
    }
    for name in ["example.org.", "shop.", "x.page.shop.", "db.mesh.svc.cluster.local.", "notmesh.", "."] {
        assert!(is_forwarded(name), "{name}");
    }
}

#[test]
fn dns_answer_echoes_its_question_byte_for_byte() {
    for name in ["Db.MESH.", "dB.mesh.", "db.mesh."] {
        let packet = question(name, RecordType::A).to_vec().unwrap();
        let Outcome::Reply(bytes) = answer(&table(), &packet, Transport::Udp) else { panic!("{name}") };
        assert_eq!(bytes[12..packet.len()], packet[12..], "{name}");
        let reply = Message::from_vec(&bytes).unwrap();
        assert_eq!(reply.answers[0].data.to_string(), "240.240.0.7");
        assert_eq!(reply.answers[0].name.to_ascii(), name);
    }
}

#[test]
fn dns_srv_names_the_ports_of_a_host() {
    let reply = ask("_3306._tcp.db.mesh.", RecordType::SRV);
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].data.to_string(), "0 0 3306 db.mesh.");
    assert_eq!(ask("db.mesh.", RecordType::SRV).answers.len(), 2);
    assert_empty("_3306._tcp.db.mesh.", RecordType::A, ResponseCode::NoError);
    assert_empty("_3307._tcp.db.mesh.", RecordType::SRV, ResponseCode::NXDomain);
}

#[test]
fn dns_ptr_of_virtual_addresses_is_answered_here_alone() {
    let reply = ask("7.0.240.240.in-addr.arpa.", RecordType::PTR);
    assert_eq!(reply.answers[0].data.to_string(), "db.mesh.");
    assert_empty("7.0.240.240.in-addr.arpa.", RecordType::A, ResponseCode::NoError);
    assert_empty("99.0.240.240.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain);
    assert!(is_forwarded("7.0.0.10.in-addr.arpa."));
}

#[test]
fn dns_question_of_another_kind_is_refused_by_its_code() {
    let code = |message: &Message| reply(message, Transport::Udp).0.metadata.response_code;
    assert_eq!(code(&question("db.mesh.", RecordType::AXFR)), ResponseCode::Refused);
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    let mut status = question("db.mesh.", RecordType::A);
    status.metadata.op_code = OpCode::Status;
    assert_eq!(code(&status), ResponseCode::NotImp);
    let mut newer = with_edns(question("db.mesh.", RecordType::A), 1_232);
    newer.edns.as_mut().unwrap().set_version(1);
    // Its number has two names.
    assert_eq!(u16::from(code(&newer)), u16::from(ResponseCode::BADVERS));
    let mut two = question("db.mesh.", RecordType::A);
    two.queries.push(two.queries[0].clone());
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut answered = question("db.mesh.", RecordType::A);
    answered.metadata.message_type = MessageType::Response;
    let packet = answered.to_vec().unwrap();
    assert_eq!(answer(&table(), &packet, Transport::Udp), Outcome::Ignore);
}

#[test]
fn dns_question_cut_anywhere_is_malformed_or_ignored() {
    let packet = with_edns(question("db.mesh.", RecordType::A), 1_232).to_vec().unwrap();
    for length in 0..packet.len() {
        match answer(&table(), &packet[..length], Transport::Udp) {
            Outcome::Ignore => assert!(length < 12),
            Outcome::Reply(bytes) => {
                let reply = Message::from_vec(&bytes).unwrap();
                assert_eq!((reply.metadata.id, reply.metadata.response_code), (7, ResponseCode::FormErr));
            }
            Outcome::Forward => panic!("{length} bytes are a question"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dns_answer_to_any_name_fits_and_can_be_read(name in "([a-zA-Z0-9_-]{1,12}\\.){0,3}(mesh|shop|db\\.mesh)\\.", kind: u16) {
        let message = question(&name, RecordType::from(kind));
        if let Outcome::Reply(bytes) = answer(&table(), &message.to_vec().unwrap(), Transport::Udp) {
            prop_assert!(bytes.len() <= 512);
            let reply = Message::from_vec(&bytes).unwrap();
            prop_assert_eq!(&reply.queries, &message.queries);
        }
    }
}

/// No panic, and no answer larger than the asker takes.
#[test]
fn fuzz_dns_packet() {
    let table = table();
    let good = with_edns(question("many.mesh.", RecordType::A), 4_096).to_vec().unwrap();
    let check = bolero::check!().with_test_time(Duration::from_secs(3)).with_type::<(Vec<u8>, u16, u8)>();
    check.for_each(|(bytes, from, cut)| {
        let from = usize::from(*from) % (good.len() + 1);
        let to = (from + usize::from(*cut)).min(good.len());
        for packet in [bytes.clone(), [&good[..from], bytes, &good[to..]].concat()] {
            if let Outcome::Reply(reply) = answer(&table, &packet, Transport::Udp) {
                assert!(reply.len() <= 1_232 && reply[..2] == packet[..2] && reply[2] & 0x80 != 0);
            }
        }
    });
}
