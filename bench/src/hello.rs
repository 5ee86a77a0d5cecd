//! The first flight of every connection: one real TLS 1.3 ClientHello, built once at start.
//! Not a TLS client: what follows the hello is plain bytes, which no passthrough proxy looks at.

use std::io;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// The one name that every system routes to the one backend.
pub(crate) const SERVER_NAME: &str = "service.bench.svc.cluster.local";

/// The byte with which the backend answers every hello. It moves a proxy from peeking to relaying.
pub(crate) const ANSWER: u8 = 0x2a;

/// Record header (5), handshake header (4), version (2): here the 32 random bytes begin. Nobody on
/// the way may interpret them, so the first one tells the backend what to do.
const JOB_AT: usize = 11;

/// What the backend does once it has answered the hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Send back whatever arrives.
    Echo,
    /// Close at once.
    Once,
    /// Keep quiet until told to close.
    Hold,
    /// Send without end.
    Source,
    /// Send back whatever arrives, any amount, until the end of the stream. For checks, not for load.
    Verify,
}

impl Job {
    const ALL: [Self; 5] = [Self::Echo, Self::Once, Self::Hold, Self::Source, Self::Verify];

    fn code(self) -> u8 {
        self as u8
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|job| job.code() == code)
    }
}

/// The ClientHello record, with a place for the job.
#[derive(Debug)]
pub(crate) struct Hello {
    bytes: Vec<u8>,
}

impl Hello {
    /// Lets rustls write a ClientHello for [`SERVER_NAME`], as a current client would send it (with a
    /// post-quantum key share, about 1.5 KB).
    pub(crate) fn new() -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(SERVER_NAME)?;
        let mut client = ClientConnection::new(Arc::new(config), name)?;
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes)?;
        let body = bytes.get(3..5).context("the hello has no record header")?;
        let body = body.iter().fold(0_usize, |length, byte| length * 256 + usize::from(*byte));
        ensure!(bytes.len() == 5 + body, "the hello is not exactly one record: {} bytes", bytes.len());
        Ok(Self { bytes })
    }

    /// The bytes to send when the backend shall do this job.
    pub(crate) fn for_job(&self, job: Job) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some(place) = bytes.get_mut(JOB_AT) {
            *place = job.code();
        }
        bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Compares a part that arrived with what was sent, `at` bytes into the hello. Gives the job if the
    /// part holds it, and an error if any other byte was changed on the way.
    pub(crate) fn accept(&self, at: usize, part: &[u8]) -> io::Result<Option<Job>> {
        let corrupt = || io::Error::new(io::ErrorKind::InvalidData, "the hello arrived changed");
        let expected = self.bytes.get(at..at + part.len()).ok_or_else(corrupt)?;
        let Some(job_at) = JOB_AT.checked_sub(at).filter(|place| *place < part.len()) else {
            return if part == expected { Ok(None) } else { Err(corrupt()) };
        };
        let (Some((before, rest)), Some((same, others))) =
            (part.split_at_checked(job_at), expected.split_at_checked(job_at))
        else {
            return Err(corrupt());
        };
        let (Some((code, after)), Some((_, following))) = (rest.split_first(), others.split_first()) else {
            return Err(corrupt());
        };
        if before != same || after != following {
            return Err(corrupt());
        }
        Job::from_code(*code).map(Some).ok_or_else(corrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_one_handshake_record_with_the_name_in_it() {
        let hello = Hello::new().unwrap();
        let bytes = hello.for_job(Job::Echo);
        assert_eq!(bytes[0], 22, "a handshake record");
        assert_eq!(bytes[5], 1, "a ClientHello");
        let handshake = usize::from(bytes[7]) * 256 + usize::from(bytes[8]);
        assert_eq!(handshake + 9, bytes.len(), "one message fills the record");
        let name = SERVER_NAME.as_bytes();
        let at = bytes.windows(name.len()).position(|part| part == name).expect("the name is in the hello");
        let length = u16::try_from(name.len()).unwrap().to_be_bytes();
        assert_eq!(bytes[at - 2..at], length, "its length stands before it");
        assert_eq!(bytes[at - 3], 0, "it is of type host_name");
    }

    #[test]
    fn the_backend_reads_the_job_however_the_hello_is_cut() {
        let hello = Hello::new().unwrap();
        for job in Job::ALL {
            let bytes = hello.for_job(job);
            assert_eq!(bytes.len(), hello.len());
            for cut in 0..bytes.len() {
                let (first, second) = bytes.split_at(cut);
                let found = [hello.accept(0, first).unwrap(), hello.accept(cut, second).unwrap()];
                assert_eq!(found.into_iter().flatten().collect::<Vec<_>>(), [job], "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_changed_byte_is_noticed_wherever_it_is() {
        let hello = Hello::new().unwrap();
        for at in 0..hello.len() {
            let mut bytes = hello.for_job(Job::Once);
            bytes[at] ^= 0x80;
            assert!(hello.accept(0, &bytes).is_err(), "byte {at}");
        }
        let mut longer = hello.for_job(Job::Once);
        longer.push(0);
        assert!(hello.accept(0, &longer).is_err());
    }
}
