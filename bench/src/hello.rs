//! The first flight of every connection: one real TLS 1.3 ClientHello, built once at start.
//! Not a TLS client: what follows the hello is plain bytes, which no passthrough proxy looks at.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// Digits of a service's number in its name: all hellos have the same length.
const DIGITS: usize = 6;

/// The name of one of a million services. Every system routes each to the one backend.
pub(crate) fn service_name(number: u32) -> String {
    format!("service-{number:0DIGITS$}.bench.svc.cluster.local")
}

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
    /// Take in whatever arrives, and count it.
    Sink,
    /// Send without end and take in whatever arrives.
    Both,
    /// Send back whatever arrives, any amount, until the end of the stream. For checks, not for load.
    Verify,
}

impl Job {
    const ALL: [Self; 7] =
        [Self::Echo, Self::Once, Self::Hold, Self::Source, Self::Sink, Self::Both, Self::Verify];

    fn code(self) -> u8 {
        self as u8
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|job| job.code() == code)
    }
}

/// The ClientHello record, with a place for the job and one for the number of the service.
#[derive(Debug)]
pub(crate) struct Hello {
    bytes: Vec<u8>,
    number: Range<usize>,
}

impl Hello {
    /// Lets rustls write a ClientHello for the first service, as a current client would send it (with a
    /// post-quantum key share, about 1.5 KB).
    pub(crate) fn new() -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = service_name(0);
        let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from(name.clone())?)?;
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes)?;
        let body = bytes.get(3..5).context("the hello has no record header")?;
        let body = body.iter().fold(0_usize, |length, byte| length * 256 + usize::from(*byte));
        ensure!(bytes.len() == 5 + body, "the hello is not exactly one record: {} bytes", bytes.len());
        let at = bytes.windows(name.len()).position(|part| part == name.as_bytes());
        let start = at.context("the hello does not hold the name")? + "service-".len();
        Ok(Self { bytes, number: start..start + DIGITS })
    }

    /// The bytes that ask the first service for this job.
    pub(crate) fn for_job(&self, job: Job) -> Vec<u8> {
        self.for_service(job, 0)
    }

    /// The bytes that ask this service for this job.
    pub(crate) fn for_service(&self, job: Job, number: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some(place) = bytes.get_mut(JOB_AT) {
            *place = job.code();
        }
        self.address_to(number, &mut bytes);
        bytes
    }

    /// Changes the service that a hello is for.
    pub(crate) fn address_to(&self, mut number: u32, hello: &mut [u8]) {
        for place in hello.get_mut(self.number.clone()).unwrap_or_default().iter_mut().rev() {
            *place = b'0' + u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Compares a part that arrived with what was sent, `at` bytes into the hello. Gives the job if the
    /// part holds it, and an error if any other byte was changed on the way.
    pub(crate) fn accept(&self, at: usize, part: &[u8]) -> io::Result<Option<Job>> {
        let corrupt = || io::Error::new(io::ErrorKind::InvalidData, "the hello arrived changed");
        let expected = self.bytes.get(at..at + part.len()).ok_or_else(corrupt)?;
        let mut job = None;
        for ((place, byte), wanted) in (at..).zip(part).zip(expected) {
            if place == JOB_AT {
                job = Some(Job::from_code(*byte).ok_or_else(corrupt)?);
            } else if byte != wanted && !(self.number.contains(&place) && byte.is_ascii_digit()) {
                return Err(corrupt());
            }
        }
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_is_one_handshake_record_with_its_sni() {
        let hello = Hello::new().unwrap();
        let bytes = hello.for_job(Job::Echo);
        assert_eq!(bytes[0], 22, "a handshake record");
        assert_eq!(bytes[5], 1, "a ClientHello");
        let handshake = usize::from(bytes[7]) * 256 + usize::from(bytes[8]);
        assert_eq!(handshake + 9, bytes.len(), "one message fills the record");
        let name = service_name(0);
        let name = name.as_bytes();
        let at = bytes.windows(name.len()).position(|part| part == name).expect("the name is in the hello");
        let length = u16::try_from(name.len()).unwrap().to_be_bytes();
        assert_eq!(bytes[at - 2..at], length, "its length stands before it");
        assert_eq!(bytes[at - 3], 0, "it is of type host_name");
    }

    #[test]
    fn hello_job_is_read_at_every_fragmentation() {
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
    fn hello_checksum_detects_any_changed_byte() {
        let hello = Hello::new().unwrap();
        let other = hello.for_service(Job::Once, 123_456);
        assert_eq!(hello.accept(0, &other).unwrap(), Some(Job::Once), "another service is no change");
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
