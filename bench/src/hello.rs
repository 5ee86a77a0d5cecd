//! Builds the first flight of every connection: a real TLS 1.3 ClientHello, created once at start. It is not
//! a TLS client: plain bytes follow the hello, which a passthrough proxy does not inspect.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// Digits of a service's number in its name, so that all hellos have the same length.
const DIGITS: usize = 6;

/// The name of one of a million services, all routed to the one backend.
pub(crate) fn service_name(number: u32) -> String {
    format!("service-{number:0DIGITS$}.bench.svc.cluster.local")
}

/// The backend's answer to every hello. It moves a proxy from peeking to relaying.
pub(crate) const ANSWER: u8 = 0x2a;

/// Offset of the 32 random bytes: record header (5), handshake header (4), version (2). No proxy may
/// interpret them, so the first one carries the job for the backend.
const JOB_AT: usize = 11;

/// What the backend does after answering the hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Job {
    /// Echo.
    Echo,
    /// Close at once after the answer.
    Once,
    /// Stay silent until asked to close.
    Hold,
    /// Send endlessly.
    Source,
    /// Receive and count.
    Sink,
    /// Send endlessly and receive.
    Both,
    /// Echo any amount until the end of the stream; for checks, not for load.
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

/// The ClientHello record, with the offsets of the job and of the service's number.
#[derive(Debug)]
pub(crate) struct Hello {
    bytes: Vec<u8>,
    number: Range<usize>,
}

impl Hello {
    /// Creates a ClientHello for the first service with rustls, like that of a current client (with a
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
        let body = bytes.get(3..5).context("the hello lacks a record header")?;
        let body = body.iter().fold(0_usize, |length, byte| length * 256 + usize::from(*byte));
        ensure!(bytes.len() == 5 + body, "the hello is not a single record: {} bytes", bytes.len());
        let at = bytes.windows(name.len()).position(|part| part == name.as_bytes());
        let start = at.context("the hello lacks the SNI")? + "service-".len();
        Ok(Self { bytes, number: start..start + DIGITS })
    }

    /// The hello for this job of the first service.
    pub(crate) fn for_job(&self, job: Job) -> Vec<u8> {
        self.for_service(job, 0)
    }

    /// The hello for this job of this service.
    pub(crate) fn for_service(&self, job: Job, number: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Some(place) = bytes.get_mut(JOB_AT) {
            *place = job.code();
        }
        self.address_to(number, &mut bytes);
        bytes
    }

    /// Changes the service of a hello.
    pub(crate) fn address_to(&self, mut number: u32, hello: &mut [u8]) {
        for place in hello.get_mut(self.number.clone()).unwrap_or_default().iter_mut().rev() {
            *place = b'0' + u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Compares received bytes with the hello at offset `at`. Returns the job if they contain it, and an
    /// error if any other byte was altered.
    pub(crate) fn accept(&self, at: usize, part: &[u8]) -> io::Result<Option<Job>> {
        let corrupt = || io::Error::new(io::ErrorKind::InvalidData, "the hello was altered on the path");
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
        assert_eq!(bytes[0], 22, "record type handshake");
        assert_eq!(bytes[5], 1, "message type ClientHello");
        let handshake = usize::from(bytes[7]) * 256 + usize::from(bytes[8]);
        assert_eq!(handshake + 9, bytes.len(), "one message fills the record");
        let name = service_name(0);
        let name = name.as_bytes();
        let at =
            bytes.windows(name.len()).position(|part| part == name).expect("the hello contains the name");
        let length = u16::try_from(name.len()).unwrap().to_be_bytes();
        assert_eq!(bytes[at - 2..at], length, "name length");
        assert_eq!(bytes[at - 3], 0, "name type host_name");
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
        assert_eq!(hello.accept(0, &other).unwrap(), Some(Job::Once), "another service is not an alteration");
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
