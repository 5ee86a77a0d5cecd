//! The part of Postgres' protocol that its tests need: a login without a password, a query, and the requests that come
//! before a login.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use isthmus_tests::client::dial;

/// Asks for encryption by GSSAPI.
pub(crate) const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];
/// Asks for TLS.
pub(crate) const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// A session after its login.
pub(crate) struct Session {
    stream: TcpStream,
    /// The session's process and secret.
    key: [u8; 8],
}

/// A message: its type and its body.
pub(crate) type Message = (u8, Vec<u8>);

impl Session {
    /// Logs in as the administrator.
    pub(crate) fn open(address: SocketAddr) -> Session {
        let mut stream = dial(address);
        let body = [&[0, 3, 0, 0][..], b"user\0postgres\0database\0postgres\0\0"].concat();
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        stream.write_all(&[&length[..], &body].concat()).unwrap();
        let mut session = Session { stream, key: [0; 8] };
        loop {
            match session.message().unwrap() {
                (b'K', key) => session.key = key.try_into().unwrap(),
                (b'Z', _) => return session,
                (b'E', error) => panic!("{}", String::from_utf8_lossy(&error)),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> io::Result<Message> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        self.stream.read_exact(&mut body)?;
        Ok((head[0], body))
    }

    /// Sends a query.
    pub(crate) fn send(&mut self, sql: &str) {
        let length = u32::try_from(sql.len() + 5).unwrap().to_be_bytes();
        self.stream.write_all(&[b"Q", &length[..], sql.as_bytes(), b"\0"].concat()).unwrap();
    }

    /// Sends a query; returns whether its notice comes before its end.
    pub(crate) fn begins(&mut self, sql: &str) -> bool {
        self.send(sql);
        loop {
            match self.message().unwrap().0 {
                b'N' => return true,
                b'Z' => return false,
                _ => {}
            }
        }
    }

    /// Reads messages up to one of this type; returns its text.
    #[track_caller]
    pub(crate) fn until(&mut self, kind: u8) -> String {
        loop {
            let (got, body) = self.message().unwrap();
            if got == kind {
                return String::from_utf8_lossy(&body).into_owned();
            }
            assert_ne!(got, b'Z', "the query has ended");
        }
    }

    /// What cancels the session's query, on a connection of its own.
    pub(crate) fn cancel(&self) -> [u8; 16] {
        let mut request = [0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 0, 0, 0, 0, 0];
        request[8..].copy_from_slice(&self.key);
        request
    }
}
