//! A connection of the load generator or of its backend: bytes as they are, or through a TLS session of its own.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, CommonState, HandshakeKind, ServerConfig, ServerConnection, StreamOwned,
};

/// What a session encrypts in one write.
const SEALED: usize = 64 * 1024;

/// A connection, blocking or not.
#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    Client(Box<StreamOwned<ClientConnection, TcpStream>>),
    Server(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Wire {
    /// Begins TLS as a client that names `server`; the handshake is made by the first read or write.
    pub(crate) fn client(
        stream: TcpStream,
        config: &Arc<ClientConfig>,
        server: &'static str,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(server).map_err(io::Error::other)?;
        let tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        Ok(Self::Client(Box::new(StreamOwned::new(tls, stream))))
    }

    /// Begins TLS as a server; the handshake is made by the first read.
    pub(crate) fn server(stream: TcpStream, config: &Arc<ServerConfig>) -> io::Result<Self> {
        let tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        Ok(Self::Server(Box::new(StreamOwned::new(tls, stream))))
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Client(tls) => &tls.sock,
            Self::Server(tls) => &tls.sock,
        }
    }

    /// The bare socket; what a session holds is lost.
    pub(crate) fn into_socket(self) -> TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Client(tls) => tls.sock,
            Self::Server(tls) => tls.sock,
        }
    }

    /// The part of a chunk that one write can take.
    pub(crate) fn cut<'a>(&self, chunk: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Plain(_) => chunk,
            Self::Client(_) | Self::Server(_) => chunk.get(..SEALED).unwrap_or(chunk),
        }
    }

    /// Whether its handshake resumed a session; `None` without TLS and before the handshake.
    pub(crate) fn is_resumed(&self) -> Option<bool> {
        let state: &CommonState = match self {
            Self::Plain(_) => return None,
            Self::Client(tls) => &tls.conn,
            Self::Server(tls) => &tls.conn,
        };
        state.handshake_kind().map(|kind| kind == HandshakeKind::Resumed)
    }

    /// Reads the end of the stream.
    ///
    /// # Errors
    /// If more bytes come.
    pub(crate) fn read_end(&mut self) -> io::Result<()> {
        match self.read(&mut [0]) {
            // How a system ends TLS is not measured.
            Ok(0) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "received unexpected bytes")),
            Err(error) => Err(error),
        }
    }

    /// Tells the other side that no more bytes follow, as far as TLS does that.
    pub(crate) fn end(&mut self) {
        // A side that has left need not be told.
        let _sent = match self {
            Self::Plain(_) => Ok(()),
            Self::Client(tls) => {
                tls.conn.send_close_notify();
                tls.flush()
            }
            Self::Server(tls) => {
                tls.conn.send_close_notify();
                tls.flush()
            }
        };
    }
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Client(tls) => tls.read(buffer),
            Self::Server(tls) => tls.read(buffer),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Client(tls) => tls.write(bytes),
            Self::Server(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Client(tls) => tls.flush(),
            Self::Server(tls) => tls.flush(),
        }
    }
}
