//! Classifies failed operations into a closed set of kinds and explains each to an operator of Isthmus.
//! What counts as a failure is decided in `client`.

use std::error::Error;
use std::fmt;
use std::io;

use isthmus_certs::VerifyError;
use rustix::io::Errno;
use rustls::AlertDescription;

/// Longest error text that is shown, in characters.
const LONGEST_TEXT: usize = 200;

/// The step of an operation that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    #[default]
    Connect,
    Handshake,
    Answer,
    Close,
}

/// The kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Connection refused: nothing listens at the address.
    Refused,
    /// The operation took longer than `--timeout`.
    TimedOut,
    /// The connection was reset.
    Reset,
    /// The server closed the connection before it answered.
    Closed,
    /// The network or the host is unreachable.
    Unreachable,
    /// This machine ran out of descriptors, ports or memory.
    LocalResources,
    /// The server or a gateway refused with this TLS alert.
    Alert(u8),
    /// The server's certificate failed verification.
    CertificateRefused,
    /// The server violates TLS or speaks another protocol.
    Tls,
    /// The response differs from the expected bytes.
    WrongAnswer,
    /// An HTTP status of 400 or more.
    Status(u16),
}

/// A failure, with a text that is safe to print.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) text: String,
}

impl Failure {
    /// Escapes control characters of the text, which may come from a server, and truncates it.
    pub(crate) fn new(kind: Kind, text: &str) -> Self {
        let mut safe = String::new();
        for letter in text.chars().take(LONGEST_TEXT) {
            match letter {
                '"' | '\'' => safe.push(letter),
                _ => safe.extend(letter.escape_debug()),
            }
        }
        Self { kind, text: safe }
    }

    fn of_io(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let text = match tls.and_then(VerifyError::find_in) {
            Some(why) => why.to_string(),
            None => error.to_string(),
        };
        Self::new(tls.map_or_else(|| of_system(error), of_tls), &text)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::of_io(&error)
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        let mut causes = std::iter::successors(error.source(), |cause| (*cause).source());
        if let Some(cause) = causes.find_map(|cause| cause.downcast_ref::<io::Error>()) {
            return Self::of_io(cause);
        }
        let kind = if error.is_parse() { Kind::WrongAnswer } else { Kind::Closed };
        Self::new(kind, &error.to_string())
    }
}

fn of_tls(error: &rustls::Error) -> Kind {
    match error {
        rustls::Error::AlertReceived(alert) => Kind::Alert(u8::from(*alert)),
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => {
            Kind::CertificateRefused
        }
        _ => Kind::Tls,
    }
}

fn of_system(error: &io::Error) -> Kind {
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    if Errno::from_io_error(error).is_some_and(|errno| exhausted.contains(&errno)) {
        return Kind::LocalResources;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Kind::Refused,
        io::ErrorKind::TimedOut => Kind::TimedOut,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
            Kind::Reset
        }
        io::ErrorKind::UnexpectedEof => Kind::Closed,
        io::ErrorKind::InvalidData => Kind::Tls,
        _ => Kind::Unreachable,
    }
}

impl Kind {
    /// The name in reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Unreachable => "unreachable",
            Self::LocalResources => "local_resources",
            Self::Alert(_) => "alert",
            Self::CertificateRefused => "certificate_refused",
            Self::Tls => "tls",
            Self::WrongAnswer => "wrong_answer",
            Self::Status(_) => "status",
        }
    }

    /// The alert or the status code.
    pub(crate) fn detail(self) -> Option<String> {
        match self {
            Self::Alert(code) => Some(format!("{} ({code})", alert_name(code))),
            Self::Status(status) => Some(status.to_string()),
            _ => None,
        }
    }

    /// The likely cause and where to look.
    pub(crate) fn meaning(self) -> Option<&'static str> {
        Some(match self {
            Self::Alert(112) => {
                "a gateway has no service for this SNI and ALPN (sni_unmatched, alpn_unmatched); run isthmus-gateway explain SNI"
            }
            Self::Alert(49) => {
                "a gateway denies this source or identity access to the service (source_denied, identity_denied)"
            }
            Self::Alert(80) => {
                "a gateway found no usable endpoint or reached a limit (no_endpoint, connect_*, limit_*); see its access log"
            }
            Self::Alert(50) => "a gateway could not read the ClientHello (hello_*, not_tls)",
            Self::Alert(116) => "the server requires a client certificate; add --cert and --key",
            Self::Alert(42..=46 | 48) => "the server rejects the client certificate of --cert",
            Self::Alert(120) => "the server supports none of the --alpn protocols",
            Self::Refused => "nothing listens at the address",
            Self::CertificateRefused => "the server's certificate does not match --ca, --expect or --sni",
            Self::LocalResources => {
                "this machine ran out of file descriptors, ports or memory; this is not a server failure"
            }
            _ => return None,
        })
    }
}

/// The alert's name as in the RFCs.
fn alert_name(code: u8) -> String {
    let name = match AlertDescription::from(code) {
        AlertDescription::UnrecognisedName => return "unrecognized_name".to_owned(),
        AlertDescription::Unknown(_) => return "unknown".to_owned(),
        known => format!("{known:?}"),
    };
    let mut written = String::new();
    let mut after_small = false;
    for letter in name.chars() {
        if letter.is_uppercase() && after_small {
            written.push('_');
        }
        after_small = letter.is_lowercase();
        written.push(letter.to_ascii_lowercase());
    }
    written
}

impl Step {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Handshake => "handshake",
            Self::Answer => "answer",
            Self::Close => "close",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.detail().map_or(Ok(()), |detail| write!(f, " {detail}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alert_names_follow_the_rfcs() {
        let names = [(112, "unrecognized_name"), (49, "access_denied"), (80, "internal_error")];
        let more = [(48, "unknown_ca"), (116, "certificate_required"), (200, "unknown")];
        for (code, name) in names.into_iter().chain(more) {
            assert_eq!(alert_name(code), name);
        }
    }

    #[test]
    fn server_text_is_escaped_and_truncated_for_the_terminal() {
        let failure = Failure::new(Kind::WrongAnswer, "\u{1b}[2J\r\n\u{202e}evil");
        assert_eq!(failure.text, "\\u{1b}[2J\\r\\n\\u{202e}evil");
        assert_eq!(Failure::new(Kind::Tls, &"x".repeat(10_000)).text.len(), LONGEST_TEXT);
    }

    #[test]
    fn local_resource_exhaustion_is_not_a_server_failure() {
        for errno in [Errno::MFILE, Errno::ADDRNOTAVAIL] {
            assert_eq!(of_system(&errno.into()), Kind::LocalResources);
        }
        assert_eq!(of_system(&Errno::HOSTUNREACH.into()), Kind::Unreachable);
    }
}
