//! Asks one endpoint: a ClientHello with a name of the service, a request, or a connect. An answer of any kind is read no
//! further than its first bytes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use isthmus_certs::probe;
use isthmus_health::tcp::has_no_way;
use isthmus_model::services::Probe;
use isthmus_model::sni;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::answer::says_elsewhere;
use crate::clients;
use crate::demotion::Outcome;
use crate::dial;
use crate::proxy;
use crate::reason::Alert;
use crate::snapshot::{Endpoint, Service};
use crate::socket;
use crate::worker::Process;

/// Bytes of an alert record, and where its description stands.
const ALERT_RECORD: usize = 7;
/// The most bytes of the head of an answer in HTTP, the least that hyper accepts.
const HEAD: usize = 8 * 1024;

/// A probe of one endpoint, ready to be made.
#[derive(Debug)]
pub(super) struct Question {
    to: SocketAddr,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A ClientHello. Another cluster's gateway says by an alert that it does not serve the service.
    Hello {
        wire: Vec<u8>,
        is_gateway: bool,
    },
    Request {
        before: &'static [u8],
        request: Box<Request<String>>,
    },
    Connect,
}

/// How long a probe may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Until it is connected.
    pub(super) connect: Duration,
    /// Until it is answered.
    pub(super) whole: Duration,
}

impl Question {
    /// Builds a probe of this kind; none if the service has no fixed name for a ClientHello.
    pub(super) fn new(service: &Service, endpoint: &Endpoint, probe: &Probe) -> Option<Question> {
        let at = |port: &Option<u16>| {
            SocketAddr::new(endpoint.address.ip(), port.unwrap_or_else(|| endpoint.address.port()))
        };
        Some(match probe {
            Probe::Off => return None,
            Probe::Tls => Question {
                to: endpoint.address,
                what: What::Hello {
                    wire: hello(service, endpoint)?,
                    is_gateway: endpoint.cluster().is_some(),
                },
            },
            Probe::Http { port, path } => {
                let takes_proxy = service.rules.send_proxy && port.is_none();
                let before = if takes_proxy { &proxy::LOCAL[..] } else { &[] };
                let request = Box::new(request(service, at(port), path)?);
                Question { to: at(port), what: What::Request { before, request } }
            }
            Probe::Tcp { port } => Question { to: at(port), what: What::Connect },
        })
    }

    /// Makes the probe.
    pub(super) async fn ask(self, patience: Patience, process: &Process) -> Outcome {
        let answer = async {
            match timeout(patience.connect, dial::plain(self.to, process)).await {
                Ok(Ok(stream)) => self.what.ask(stream).await,
                Ok(Err(error)) if socket::is_local_resource(&error) || has_no_way(&error, self.to) => {
                    Outcome::Unasked
                }
                Ok(Err(_)) | Err(_) => Outcome::Unreached,
            }
        };
        timeout(patience.whole, answer).await.unwrap_or(Outcome::Silent)
    }
}

fn hello(service: &Service, endpoint: &Endpoint) -> Option<Vec<u8>> {
    let host = service.own_name()?;
    // Another cluster's gateway knows each port by this form, and may map the bare host to another port.
    let is_bare = service.port == 0 || (service.rules.default_port && endpoint.cluster().is_none());
    let name = if is_bare { host.to_string() } else { sni::name(host.as_str(), service.port) };
    let hello = probe::hello(&name, &clients::bytes(&service.rules.alpn)).ok()?;
    Some(if service.rules.send_proxy { [&proxy::LOCAL[..], &hello].concat() } else { hello })
}

fn request(service: &Service, to: SocketAddr, path: &str) -> Option<Request<String>> {
    let host = service.own_name().map_or_else(|| to.to_string(), ToString::to_string);
    let mut request = Request::new(String::new());
    *request.uri_mut() = Uri::try_from(path).ok()?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::try_from(host).ok()?);
    headers.insert(USER_AGENT, HeaderValue::from_static("isthmus-gateway"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Some(request)
}

impl What {
    async fn ask(self, mut stream: TcpStream) -> Outcome {
        match self {
            What::Connect => Outcome::Answered,
            What::Hello { wire, is_gateway } => said_to_hello(&mut stream, &wire, is_gateway).await,
            What::Request { before, request } => match stream.write_all(before).await {
                Ok(()) => said_to_request(stream, *request).await,
                Err(_) => Outcome::Reset,
            },
        }
    }
}

/// Sends the hello and classifies the first answer.
async fn said_to_hello(stream: &mut TcpStream, wire: &[u8], is_gateway: bool) -> Outcome {
    let mut record = [0; ALERT_RECORD];
    // If the write fails, the read tells whether the endpoint closed or reset.
    let _written = stream.write_all(wire).await;
    let [kind, rest @ ..] = &mut record;
    match stream.read(std::slice::from_mut(kind)).await {
        Ok(0) => Outcome::Closed,
        Ok(_) if *kind != Alert::RECORD => Outcome::Answered,
        Ok(_) if is_gateway && stream.read_exact(rest).await.is_ok() => match says_elsewhere(&record) {
            Some(true) => Outcome::NotServed,
            _ => Outcome::Alerted,
        },
        Ok(_) => Outcome::Alerted,
        Err(_) => Outcome::Reset,
    }
}

/// Sends the request and classifies the status. The body is not read.
async fn said_to_request(stream: TcpStream, request: Request<String>) -> Outcome {
    let mut client = hyper::client::conn::http1::Builder::new();
    client.max_buf_size(HEAD);
    let (mut sender, connection) = match client.handshake(TokioIo::new(stream)).await {
        Ok(client) => client,
        Err(error) => return failure(&error),
    };
    let answer = sender.send_request(request);
    tokio::pin!(answer, connection);
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The connection has brought the answer, or the error. A server that speaks first is no HTTP server.
        ended = &mut connection => match (ended, answer.await) {
            (Err(error), Err(answer)) if answer.is_canceled() && cause(&error).is_none() => {
                return Outcome::BadStatus;
            }
            (_, answer) => answer,
        },
    };
    match answer.as_ref().map(Response::status) {
        Ok(status) if status.is_success() || status.is_redirection() => Outcome::Answered,
        Ok(_) => Outcome::BadStatus,
        Err(error) => failure(error),
    }
}

fn cause(error: &hyper::Error) -> Option<&io::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

fn failure(error: &hyper::Error) -> Outcome {
    match cause(error).map(io::Error::kind) {
        Some(io::ErrorKind::UnexpectedEof) => Outcome::Closed,
        Some(_) => Outcome::Reset,
        None if error.is_parse() => Outcome::BadStatus,
        None => Outcome::Closed,
    }
}
