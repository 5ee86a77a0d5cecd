//! TLS itself, by rustls without any buffer of its own: it decrypts where the bytes have arrived, and encrypts into the
//! buffer that it is given. `session` moves the bytes.

use std::fmt;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError, UnbufferedStatus,
    WriteTraffic,
};
use rustls::{ClientConfig, CommonState, Error, ExtractedSecrets, ServerConfig};

/// One side of a TLS connection.
pub(super) enum Engine {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What is encrypted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outgoing<'a> {
    Bytes(&'a [u8]),
    CloseNotify,
}

/// What became of bytes of the peer.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Bytes that are done with, from the first on. The others must come again, in front of those that follow.
    pub(super) done: usize,
    /// The peer has sent its close_notify: whatever follows counts for nothing.
    pub(super) peer_closed: bool,
}

/// What a step has led to.
enum Progress {
    Step,
    PeerClosed,
    /// Nothing more can be done with these bytes.
    Bytes,
}

impl Engine {
    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Engine, Error> {
        UnbufferedServerConnection::new(config).map(Engine::Server)
    }

    pub(super) fn client(config: Arc<ClientConfig>, server: ServerName<'static>) -> Result<Engine, Error> {
        UnbufferedClientConnection::new(config, server).map(Engine::Client)
    }

    pub(super) fn into_secrets(self) -> Result<ExtractedSecrets, Error> {
        match self {
            Engine::Client(tls) => tls.dangerous_into_kernel_connection().map(|(secrets, _)| secrets),
            Engine::Server(tls) => tls.dangerous_into_kernel_connection().map(|(secrets, _)| secrets),
        }
    }

    pub(super) fn state(&self) -> &CommonState {
        match self {
            Engine::Client(tls) => tls,
            Engine::Server(tls) => tls,
        }
    }

    /// Decrypts bytes of the peer in place and gives on the plaintext, record by record. What TLS itself answers, such as
    /// its next flight or the alert for an error, is added to `answers`.
    pub(super) fn open(
        &mut self,
        arrived: &mut [u8],
        answers: &mut Vec<u8>,
        give: &mut impl FnMut(&[u8]),
    ) -> Result<Opened, Error> {
        let mut opened = Opened::default();
        loop {
            let rest = arrived.get_mut(opened.done..).unwrap_or_default();
            let (done, next) = self.step(rest, answers, give);
            opened.done += done;
            match next {
                Ok(Progress::Step) => {}
                Ok(Progress::PeerClosed) => opened.peer_closed = true,
                Ok(Progress::Bytes) => return Ok(opened),
                Err(error) => {
                    // The alert comes before anything else, so no bytes are looked at again.
                    while self.state().wants_write() && self.step(&mut [], answers, give).1.is_ok() {}
                    return Err(error);
                }
            }
        }
    }

    fn step(
        &mut self,
        arrived: &mut [u8],
        answers: &mut Vec<u8>,
        give: &mut impl FnMut(&[u8]),
    ) -> (usize, Result<Progress, Error>) {
        match self {
            Engine::Client(tls) => step(tls.process_tls_records(arrived), answers, give),
            Engine::Server(tls) => step(tls.process_tls_records(arrived), answers, give),
        }
    }

    /// Encrypts into `sealed`, which is made as large as it must be, and returns how many bytes that took: none for a
    /// close_notify that cannot be sent any more. `held` is what has arrived and is not done with.
    pub(super) fn seal(
        &mut self,
        outgoing: Outgoing<'_>,
        held: &mut [u8],
        sealed: &mut Vec<u8>,
    ) -> Result<usize, Error> {
        match self {
            Engine::Client(tls) => seal(tls.process_tls_records(held), outgoing, sealed),
            Engine::Server(tls) => seal(tls.process_tls_records(held), outgoing, sealed),
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Client(_) => "Client",
            Engine::Server(_) => "Server",
        })
    }
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    answers: &mut Vec<u8>,
    give: &mut impl FnMut(&[u8]),
) -> (usize, Result<Progress, Error>) {
    let mut done = status.discard;
    let next = status.state.and_then(|state| match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                done += record.discard;
                give(record.payload);
            }
            Ok(Progress::Step)
        }
        ConnectionState::EncodeTlsData(message) => append(message, answers).map(|()| Progress::Step),
        ConnectionState::TransmitTlsData(sent) => {
            sent.done();
            Ok(Progress::Step)
        }
        ConnectionState::PeerClosed => Ok(Progress::PeerClosed),
        // Among them early data, which is never accepted.
        _ => Ok(Progress::Bytes),
    });
    (done, next)
}

fn append<Data>(mut message: EncodeTlsData<'_, Data>, to: &mut Vec<u8>) -> Result<(), Error> {
    let begin = to.len();
    if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
        message.encode(&mut [])
    {
        to.resize(begin + required_size, 0);
    }
    let room = to.get_mut(begin..).unwrap_or_default();
    message.encode(room).map(drop).map_err(|error| Error::General(error.to_string()))
}

fn seal<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: Outgoing<'_>,
    sealed: &mut Vec<u8>,
) -> Result<usize, Error> {
    match (status.state?, outgoing) {
        (ConnectionState::WriteTraffic(mut traffic), outgoing) => {
            match encrypt(&mut traffic, outgoing, sealed) {
                Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
                    sealed.resize(required_size, 0);
                    encrypt(&mut traffic, outgoing, sealed)
                }
                encrypted => encrypted,
            }
            .map_err(|error| Error::General(error.to_string()))
        }
        (_, Outgoing::CloseNotify) => Ok(0),
        (_, Outgoing::Bytes(_)) => Err(Error::HandshakeNotComplete),
    }
}

fn encrypt<Data>(
    traffic: &mut WriteTraffic<'_, Data>,
    outgoing: Outgoing<'_>,
    sealed: &mut [u8],
) -> Result<usize, EncryptError> {
    match outgoing {
        Outgoing::Bytes(plain) => traffic.encrypt(plain, sealed),
        Outgoing::CloseNotify => traffic.queue_close_notify(sealed),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_certs::{Authority, Identity, Peer, SpiffeId, TrustBundles, TrustDomain};
    use rustls::server::ServerSessionMemoryCache;
    use rustls::{AlertDescription, ClientConnection, Connection, ServerConnection};

    use super::*;

    /// Records this small split every flight, and every ticket.
    const RECORD: usize = 64;

    fn identity() -> (Identity, Arc<TrustBundles>) {
        let authority = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let mut bundles = TrustBundles::new();
        bundles.add_root(authority.trust_domain().clone(), authority.certificate()).unwrap();
        let id = SpiffeId::workload(authority.trust_domain(), "a", "b").unwrap();
        (authority.issue(&id, &["a.example"], Duration::from_hours(1)).unwrap(), Arc::new(bundles))
    }

    /// An engine, what it holds and has said, and the bytes that it was told.
    struct Near {
        engine: Engine,
        held: Vec<u8>,
        said: Vec<u8>,
        heard: Vec<u8>,
        peer_closed: bool,
    }

    impl Near {
        fn receive(&mut self, piece: &[u8]) -> Result<(), Error> {
            self.held.extend_from_slice(piece);
            let opened = self
                .engine
                .open(&mut self.held, &mut self.said, &mut |plain| self.heard.extend_from_slice(plain))?;
            self.held.drain(..opened.done);
            self.peer_closed |= opened.peer_closed;
            Ok(())
        }

        fn say(&mut self, outgoing: Outgoing<'_>) {
            let mut sealed = Vec::new();
            let length = self.engine.seal(outgoing, &mut self.held, &mut sealed).unwrap();
            self.said.extend_from_slice(&sealed[..length]);
        }
    }

    /// An engine, and another implementation at its other end.
    fn pair(is_client: bool) -> (Near, Connection) {
        let (identity, bundles) = identity();
        let mut server =
            isthmus_certs::server_config(&identity, Arc::clone(&bundles), Peer::Trusted).unwrap();
        let mut client = isthmus_certs::client_config(&identity, bundles, Peer::Trusted).unwrap();
        server.session_storage = ServerSessionMemoryCache::new(8);
        server.send_tls13_tickets = 2;
        let name = ServerName::try_from("a.example").unwrap();
        let (engine, far) = if is_client {
            server.max_fragment_size = Some(RECORD);
            let far = ServerConnection::new(Arc::new(server)).unwrap();
            (Engine::client(Arc::new(client), name).unwrap(), far.into())
        } else {
            client.max_fragment_size = Some(RECORD);
            let far = ClientConnection::new(Arc::new(client), name).unwrap();
            (Engine::server(Arc::new(server)).unwrap(), far.into())
        };
        let mut near =
            Near { engine, held: Vec::new(), said: Vec::new(), heard: Vec::new(), peer_closed: false };
        near.receive(&[]).unwrap();
        (near, far)
    }

    /// Passes on what each side has said, in pieces; returns what the far side has read.
    fn pass_on(
        near: &mut Near,
        far: &mut Connection,
        piece: usize,
        mut between: impl FnMut(&mut Near),
    ) -> Vec<u8> {
        let mut read = Vec::new();
        loop {
            let mut wire = Vec::new();
            while far.wants_write() {
                far.write_tls(&mut wire).unwrap();
            }
            if wire.is_empty() && near.said.is_empty() {
                return read;
            }
            for piece in wire.chunks(piece) {
                near.receive(piece).unwrap();
                between(near);
            }
            let said = std::mem::take(&mut near.said);
            let mut said = &said[..];
            while !said.is_empty() {
                far.read_tls(&mut said).unwrap();
                far.process_new_packets().unwrap();
                std::io::copy(&mut far.reader(), &mut read).ok();
            }
        }
    }

    #[test]
    fn engine_takes_records_and_messages_in_any_pieces() {
        for (is_client, piece) in [(true, 1), (true, 7), (true, 4096), (false, 1), (false, 7), (false, 4096)]
        {
            let (mut near, mut far) = pair(is_client);
            let mut sent = 0;
            // Also while half a ticket is held.
            let speak = |near: &mut Near| {
                if !near.engine.state().is_handshaking() {
                    near.say(Outgoing::Bytes(b"x"));
                    sent += 1;
                }
            };
            let read = pass_on(&mut near, &mut far, piece, speak);
            assert!(!far.is_handshaking() && !near.engine.state().is_handshaking());
            assert_eq!(read, vec![b'x'; sent], "{is_client} {piece}");
            assert!(sent > 0 || !is_client, "tickets follow the handshake");
            std::io::Write::write_all(&mut far.writer(), &[b'y'; 1000]).unwrap();
            far.refresh_traffic_keys().unwrap();
            std::io::Write::write_all(&mut far.writer(), &[b'z'; 1000]).unwrap();
            pass_on(&mut near, &mut far, piece, |_| ());
            assert_eq!(near.heard, [[b'y'; 1000], [b'z'; 1000]].concat());
            near.say(Outgoing::Bytes(&[b'w'; 40_000]));
            assert_eq!(pass_on(&mut near, &mut far, piece, |_| ()), [b'w'; 40_000], "with new keys, too");
            far.send_close_notify();
            pass_on(&mut near, &mut far, piece, |_| ());
            assert!(near.peer_closed && near.held.is_empty());
            near.say(Outgoing::Bytes(b"after the other's end"));
            near.say(Outgoing::CloseNotify);
            near.say(Outgoing::CloseNotify);
            assert_eq!(pass_on(&mut near, &mut far, piece, |_| ()), b"after the other's end");
        }
    }

    #[test]
    fn engine_answers_a_broken_record_with_its_alert() {
        let (mut near, mut far) = pair(false);
        pass_on(&mut near, &mut far, 4096, |_| ());
        std::io::Write::write_all(&mut far.writer(), b"good").unwrap();
        std::io::Write::write_all(&mut far.writer(), b"bad").unwrap();
        let mut wire = Vec::new();
        far.write_tls(&mut wire).unwrap();
        *wire.last_mut().unwrap() ^= 1;
        assert_eq!(near.receive(&wire), Err(Error::DecryptError));
        assert_eq!(near.heard, b"good");
        let said = std::mem::take(&mut near.said);
        far.read_tls(&mut &said[..]).unwrap();
        assert_eq!(
            far.process_new_packets().unwrap_err(),
            Error::AlertReceived(AlertDescription::BadRecordMac)
        );
    }
}
