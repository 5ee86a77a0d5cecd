//! What is answered to a question: records, nothing, no such name, or that others know.

use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use isthmus_model::HostName;

use crate::message::{self, Transport};
use crate::table::{Known, Records, Table};

/// The TTL of answers without records: a service that appears is found at once.
const NEGATIVE_TTL: u32 = 0;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This is the answer.
    Reply(Vec<u8>),
    /// Others are to be asked.
    Forward,
    /// It is no question, and gets no answer.
    Ignore,
}

/// Answers a packet. The answer has at most the bytes that the asker takes.
#[must_use]
pub fn answer(table: &Table, packet: &[u8], transport: Transport) -> Outcome {
    let question = match message::read(packet) {
        Ok(question) => question,
        Err(message::Unreadable::Ignored) => return Outcome::Ignore,
        Err(message::Unreadable::Refused(reply)) => return Outcome::Reply(reply),
    };
    let mut reply = question.reply();
    if question.asks_newer_edns() {
        reply.metadata.response_code = ResponseCode::BADVERS;
    } else if question.op_code() != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
    } else if !is_ordinary(question.query()) {
        reply.metadata.response_code = ResponseCode::Refused;
    } else if !fill(table, question.query(), &mut reply) {
        return Outcome::Forward;
    }
    question.encode(reply, transport).map_or(Outcome::Ignore, Outcome::Reply)
}

/// Whether it asks for records of a name: no transfers, no other classes.
fn is_ordinary(query: &Query) -> bool {
    let is_of_the_internet = matches!(query.query_class(), DNSClass::IN | DNSClass::ANY);
    is_of_the_internet && !matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR)
}

/// Fills in the answer; false: others are to be asked.
fn fill(table: &Table, query: &Query, reply: &mut Message) -> bool {
    if let Some(address) = reverse(query.name()) {
        return point(table, address, query, reply);
    }
    let Ok(name) = HostName::parse(query.name().to_lowercase().to_ascii()) else {
        let text = query.name().to_lowercase().to_ascii();
        let zone = table.zone_of(text.trim_end_matches('.'));
        if let Some(zone) = zone {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.authorities.extend(authority(zone.as_str()));
        }
        return zone.is_some();
    };
    let answers = match (table.get(&name), service(table, &name)) {
        (Known::Records(records), _) => {
            records.answers(query.name(), query.name(), query.query_type(), &records.ports)
        }
        (_, Some((host, records, port))) => {
            let Ok(target) = absolute(host) else { return false };
            let ports = [port];
            let kind = query.query_type();
            let is_srv = matches!(kind, RecordType::SRV | RecordType::ANY);
            if is_srv { records.answers(query.name(), &target, RecordType::SRV, &ports) } else { Vec::new() }
        }
        (Known::Empty, None) => Vec::new(),
        (Known::Absent, None) => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            Vec::new()
        }
        (Known::Elsewhere, None) => return false,
    };
    if answers.is_empty() {
        let zone = table.zone_of(name.as_str()).map_or(name.as_str(), HostName::as_str);
        reply.authorities.extend(authority(zone));
    }
    reply.answers = answers;
    true
}

/// The host and port of `_PORT._tcp.HOST`.
fn service<'a>(table: &'a Table, name: &'a HostName) -> Option<(&'a str, &'a Records, u16)> {
    let (port, rest) = name.as_str().strip_prefix('_')?.split_once("._tcp.")?;
    let records = table.records(rest)?;
    let port = records.ports.iter().find(|known| known.to_string() == port)?;
    Some((rest, records, *port))
}

impl Records {
    fn answers(&self, owner: &Name, target: &Name, kind: RecordType, ports: &[u16]) -> Vec<Record> {
        let asks = |of| kind == of || kind == RecordType::ANY;
        let addresses = self.addresses.iter().filter_map(|address| match address {
            IpAddr::V4(address) => asks(RecordType::A).then_some(RData::A(A(*address))),
            IpAddr::V6(address) => asks(RecordType::AAAA).then_some(RData::AAAA(AAAA(*address))),
        });
        let services = ports.iter().filter(|_| asks(RecordType::SRV));
        let services = services.map(|port| RData::SRV(SRV::new(0, 0, *port, target.clone())));
        addresses.chain(services).map(|data| Record::from_rdata(owner.clone(), self.ttl, data)).collect()
    }
}

/// The address of a name under `in-addr.arpa` or `ip6.arpa`.
fn reverse(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// Answers for a virtual address; false: it is none.
fn point(table: &Table, address: IpAddr, query: &Query, reply: &mut Message) -> bool {
    if !table.is_virtual(address) {
        return false;
    }
    let name = table.pointers.get(&address);
    let target = name.and_then(|name| absolute(name.as_str()).ok());
    let ttl = name.and_then(|name| table.records(name.as_str())).map_or(NEGATIVE_TTL, |records| records.ttl);
    match target {
        Some(target) if matches!(query.query_type(), RecordType::PTR | RecordType::ANY) => {
            reply.answers = vec![Record::from_rdata(query.name().clone(), ttl, RData::PTR(PTR(target)))];
        }
        Some(_) => reply.authorities.extend(soa(query.name().clone())),
        None => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.authorities.extend(soa(query.name().clone()));
        }
    }
    true
}

fn authority(zone: &str) -> Option<Record> {
    soa(absolute(zone).ok()?)
}

/// The name of a host, whose labels may be of any letters that the model allows.
fn absolute(name: &str) -> Result<Name, ProtoError> {
    Name::from_labels(name.split('.').map(str::as_bytes))
}

/// The SOA that lets the asker remember for how long there is nothing.
fn soa(zone: Name) -> Option<Record> {
    let server = absolute("isthmus.invalid").ok()?;
    let data = SOA::new(server.clone(), server, 1, 3_600, 600, 86_400, NEGATIVE_TTL);
    Some(Record::from_rdata(zone, NEGATIVE_TTL, RData::SOA(data)))
}

#[cfg(test)]
mod tests;
