//! Reads the first bytes of a connection: a PROXY header if one is due, then the ClientHello. They are read and not
//! peeked at in the kernel, because an incomplete hello would stay readable and spin.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::hello::{Hello, Parser, Verdict, refused_name};
use crate::memory::Flight;
use crate::proxy;
use crate::reason::Reason;

/// Maximum bytes of one read: more than a usual hello, less than a client could send with it.
const FIRST_READ: usize = 16 * 1024;
/// Maximum bytes of one read that are passed on as they are.
pub(crate) const SCRATCH: usize = 64 * 1024;
/// Maximum bytes of one read: seven full records. Less costs more system calls and wake-ups, more leaves the cache.
pub(crate) const RECODED: usize = 112 * 1024;
/// Maximum bytes that stand in front of those of a read: a piece of a record, or of a message of a handshake.
pub(crate) const HELD: usize = 64 * 1024;

thread_local! {
    /// What every read of a worker goes through.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; HELD + RECODED].into());
}

/// The first bytes of a connection.
#[derive(Debug)]
pub struct Peeked {
    /// The parsed hello.
    pub hello: Hello,
    /// Its bytes and those received with them.
    pub flight: Flight,
}

/// What the first bytes may be, and how long they may take.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A PROXY header must come before the hello; otherwise none may.
    pub proxy_due: bool,
    /// Maximum bytes of a hello.
    pub hello_size: usize,
    /// Time left until the absolute deadline.
    pub deadline: Duration,
}

/// Reads until the ClientHello is complete. `on_source` receives the client's address from a PROXY header,
/// `on_refused_name` the name that made the hello malformed.
///
/// # Errors
/// The reason to refuse the connection.
pub async fn peek(
    client: &mut TcpStream,
    mut flight: Flight,
    rules: Rules,
    on_source: impl FnMut(Option<SocketAddr>) -> Result<(), Reason>,
    on_refused_name: impl FnOnce(String),
) -> Result<Peeked, Reason> {
    let reading = read_hello(client, &mut flight, rules, on_source);
    let verdict = tokio::time::timeout(rules.deadline, reading).await;
    match verdict {
        Ok(Ok(hello)) => Ok(Peeked { hello, flight }),
        Ok(Err(reason)) => {
            let name = (reason == Reason::HelloMalformed).then(|| refused_name(flight.bytes())).flatten();
            if let Some(name) = name {
                on_refused_name(name);
            }
            Err(reason)
        }
        Err(_) if flight.bytes().is_empty() => Err(Reason::ClientSilent),
        Err(_) => Err(Reason::HelloTimeout),
    }
}

/// Reads a PROXY header if one is due, and nothing otherwise; returns what came with it.
///
/// # Errors
/// The reason to refuse the connection.
pub(crate) async fn peek_source(
    client: &mut TcpStream,
    mut flight: Flight,
    rules: Rules,
    mut on_source: impl FnMut(Option<SocketAddr>) -> Result<(), Reason>,
) -> Result<Flight, Reason> {
    if !rules.proxy_due {
        on_source(None)?;
        return Ok(flight);
    }
    let reading = async {
        loop {
            read_more(client, &mut flight).await?;
            match proxy::read(flight.bytes()) {
                proxy::Verdict::More => {}
                proxy::Verdict::Refused(reason) => return Err(reason),
                proxy::Verdict::Header { length, source } => {
                    flight.strip(length);
                    return on_source(source);
                }
            }
        }
    };
    match tokio::time::timeout(rules.deadline, reading).await {
        Ok(read) => read.map(|()| flight),
        Err(_) => Err(Reason::ClientSilent),
    }
}

async fn read_more(client: &mut TcpStream, flight: &mut Flight) -> Result<(), Reason> {
    let got = std::future::poll_fn(|cx| {
        poll_through(client, cx, FIRST_READ, |bytes| flight.extend(bytes).map(|()| bytes.len()))
    });
    match got.await {
        // A PROXY header comes from the load balancer; without anything after it, it was a health check.
        Ok(Ok(0)) | Err(_) if flight.bytes().is_empty() => Err(Reason::NoData),
        Ok(Ok(0)) | Err(_) => Err(Reason::HelloIncomplete),
        Ok(read) => read.map(|_| ()),
    }
}

async fn read_hello(
    client: &mut TcpStream,
    flight: &mut Flight,
    rules: Rules,
    mut on_source: impl FnMut(Option<SocketAddr>) -> Result<(), Reason>,
) -> Result<Hello, Reason> {
    let mut proxy_due = rules.proxy_due;
    if !proxy_due {
        on_source(None)?;
    }
    let mut parser = Parser::new(rules.hello_size);
    loop {
        read_more(client, flight).await?;
        if proxy_due {
            match proxy::read(flight.bytes()) {
                proxy::Verdict::More => continue,
                proxy::Verdict::Refused(reason) => return Err(reason),
                proxy::Verdict::Header { length, source } => {
                    flight.strip(length);
                    on_source(source)?;
                    proxy_due = false;
                }
            }
        }
        match parser.advance(flight.bytes()) {
            Verdict::More => {}
            Verdict::Hello(hello) => return Ok(hello),
            Verdict::Refused(Reason::NotTls) if proxy::is_header(flight.bytes()) => {
                return Err(Reason::ProxyDenied);
            }
            Verdict::Refused(reason) => return Err(reason),
        }
    }
}

/// Like [`poll_through`], for a stream that is borrowed.
pub(crate) fn poll_through_shared<T>(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    most: usize,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    BUFFER.with_borrow_mut(|buffer| {
        let most = most.min(buffer.len());
        let room = buffer.get_mut(..most).unwrap_or_default();
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|read| take(room.get(..read).unwrap_or_default()))),
            }
        }
    })
}

/// Reads once through the worker's buffer and passes the bytes on; no bytes mean the end of the stream.
pub(crate) fn poll_through<T>(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    most: usize,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    poll_behind(stream, cx, &[], most, |bytes| take(bytes))
}

/// Likewise; the bytes stand behind `held`, of which [`HELD`] may be.
pub(crate) fn poll_behind<T>(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    held: &[u8],
    most: usize,
    take: impl FnOnce(&mut [u8]) -> T,
) -> Poll<io::Result<T>> {
    BUFFER.with_borrow_mut(|buffer| {
        let most = buffer.len().min(held.len() + most);
        let mut read = ReadBuf::new(buffer.get_mut(..most).unwrap_or_default());
        read.put_slice(held);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        Poll::Ready(Ok(take(read.filled_mut())))
    })
}
