//! The running server, on loopback: what it answers, whom it asks, and what clients and other servers cannot do to it.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use isthmus_dns::Records;
use isthmus_model::HostName;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::config::Upstreams as Configured;
use super::*;

mod abuse;
mod asking;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server, until dropped.
struct Running {
    address: SocketAddr,
    server: Arc<Server>,
    table: watch::Sender<Arc<Table>>,
    task: JoinHandle<io::Result<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Limits with which nothing takes long.
fn quick() -> Limits {
    Limits { attempt: Duration::from_millis(300), total: Duration::from_secs(1), ..Limits::default() }
}

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

/// `page.shop`, and `many.shop` with 60 addresses.
fn shop() -> Table {
    let records = |last: std::ops::Range<u8>| {
        let addresses = last.map(|last| Ipv4Addr::new(240, 15, 0, last).into()).collect();
        Arc::new(Records { addresses, ports: vec![9080], ttl: 30 })
    };
    let mut table = Table::default();
    table.zones = vec![host("mesh")];
    table.insert(host("page.shop"), records(7..8));
    table.insert(host("many.shop"), records(0..60));
    table
}

/// A server for all clients on loopback.
fn start(upstreams: Configured, limits: Limits) -> Running {
    let sockets = Sockets::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let own = sockets.local_addr().unwrap();
    start_on(sockets, own, "127.0.0.0/8", upstreams, limits)
}

/// A server that takes `own` for its address.
fn start_on(
    sockets: Sockets,
    own: SocketAddr,
    clients: &str,
    upstreams: Configured,
    limits: Limits,
) -> Running {
    let address = sockets.local_addr().unwrap();
    let clients = config::Clients::Listed(vec![clients.parse().unwrap()]);
    let settings = config::Dns { listen: address, clients, upstreams, zones: Vec::new() };
    let table = watch::Sender::new(Arc::new(shop()));
    let server = Arc::new(Server::new(&settings, own, table.subscribe(), limits));
    let serving = Arc::clone(&server);
    let task = tokio::spawn(async move { serving.serve(sockets).await });
    Running { address, server, table, task }
}

fn question(name: &str, payload: Option<u16>) -> Message {
    let mut message = Message::new(fastrand::u16(..), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.queries = vec![Query::query(Name::from_ascii(name).unwrap(), RecordType::A)];
    message.edns = payload.map(|payload| {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        edns
    });
    message
}

async fn socket(client: &str) -> UdpSocket {
    UdpSocket::bind((client.parse::<IpAddr>().unwrap(), 0)).await.unwrap()
}

async fn receive(socket: &UdpSocket) -> (Message, usize) {
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    (Message::from_vec(&buffer[..length]).unwrap(), length)
}

async fn exchange(server: SocketAddr, client: &str, question: &Message) -> (Message, usize) {
    let socket = socket(client).await;
    socket.connect(server).await.unwrap();
    socket.send(&question.to_vec().unwrap()).await.unwrap();
    let (reply, length) = receive(&socket).await;
    assert_eq!((reply.metadata.id, &reply.queries), (question.metadata.id, &question.queries));
    (reply, length)
}

async fn ask(server: SocketAddr, name: &str) -> Message {
    exchange(server, "127.0.0.1", &question(name, None)).await.0
}

/// What the other end of a connection sends; an error once it has closed it.
async fn message(stream: &mut TcpStream) -> io::Result<Message> {
    let bytes = timeout(PATIENCE, tcp::read_at_most(stream, 65_535)).await.unwrap()?;
    Ok(Message::from_vec(&bytes).unwrap())
}

async fn ask_over_tcp(server: SocketAddr, name: &str) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    tcp::write(&mut stream, &question(name, None).to_vec().unwrap()).await.unwrap();
    message(&mut stream).await.unwrap()
}

fn code(reply: &Message) -> ResponseCode {
    reply.metadata.response_code
}

/// The last byte of the first address.
fn last(reply: &Message) -> u8 {
    let RData::A(A(address)) = &reply.answers[0].data else { panic!("{reply}") };
    address.octets()[3]
}

fn answered(question: &Message, code: ResponseCode, addresses: u8) -> Message {
    let mut reply = question.clone();
    reply.metadata.message_type = MessageType::Response;
    reply.metadata.response_code = code;
    let name = question.queries[0].name();
    let record = |last| Record::from_rdata(name.clone(), 60, RData::A(A([192, 0, 2, last].into())));
    reply.answers = (0..addresses).map(record).collect();
    reply
}

/// Another server, on UDP and TCP, that answers as scripted: questions are numbered from 0.
async fn upstream(
    script: impl Fn(usize, &Message) -> Option<Message> + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked: Arc<AtomicUsize> = Arc::default();
    let Sockets { udp, tcp } = Sockets::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = udp.local_addr().unwrap();
    let (udp, tcp) = (UdpSocket::from_std(udp).unwrap(), tokio::net::TcpListener::from_std(tcp).unwrap());
    let script = Arc::new(script);
    let (count, also) = (Arc::clone(&asked), Arc::clone(&script));
    tokio::spawn(async move {
        let mut buffer = vec![0; 4_096];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            if let Some(reply) = also(count.fetch_add(1, Relaxed), &question) {
                udp.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
            }
        }
    });
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut streams = Vec::new();
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let question = message(&mut stream).await.unwrap();
            if let Some(reply) = script(count.fetch_add(1, Relaxed), &question) {
                tcp::write(&mut stream, &reply.to_vec().unwrap()).await.unwrap();
            }
            streams.push(stream);
        }
    });
    (address, asked)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}
