//! Checks that endpoints to be exported refuse a client without a certificate.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_certs::probe::{ClientCertificate, ProbeError, Seen, inspect, inspect_and_request};

use isthmus_grpc::resolve;
use isthmus_health::mtls::{MtlsCheck, Subject};
use isthmus_model::host::HostPattern;

use super::blocking;
use super::own_services::OwnServices;

const PATIENCE: Duration = Duration::from_secs(2);
/// Results, worded to follow an endpoint's address and precede a remedy.
const NOT_ASKED: &str = "completed a TLS handshake without asking for a client certificate";
const ASKED: &str = "asked for a client certificate and completed the TLS handshake without one";
const UNSEEN: &str = "if it refuses the request instead, as nginx's `ssl_verify_client on` does by a 400, that cannot be \
                      seen in TLS";
const DECLARED: &str = "if that is its refusal of clients without one, set `client_certificate: declared`";
const UNCLEAR: &str = "it asked for a client certificate and closed the connection without a TLS alert when it got none \
                       (as grpcio does; a crash looks the same)";

/// What to do about an endpoint that does not pass the check.
pub(super) const REMEDY: &str = "set `client_certificate` on the service: `declared` if it requires one after the handshake, `none` if it need not";

/// Runs the checks that are due, until dropped.
pub(super) async fn run_mtls_checks(own: Arc<OwnServices>) {
    loop {
        let (due, next) = own.due_checks(Instant::now());
        if due.is_empty() {
            match next {
                Some(next) => {
                    let _either = tokio::time::timeout_at(next.into(), own.to_check.notified()).await;
                }
                None => own.to_check.notified().await,
            }
            continue;
        }
        for subject in due {
            let own = Arc::clone(&own);
            tokio::spawn(async move {
                let result = match resolve::addresses(&subject.address).await {
                    Ok(addresses) => check_addresses(&subject, addresses, own.protocols_of(&subject)).await,
                    Err(error) => MtlsCheck::Unreachable(error.to_string()),
                };
                blocking(move || own.record_check(subject, result, Instant::now())).await;
            });
        }
    }
}

async fn check_addresses(subject: &Subject, addresses: Vec<SocketAddr>, alpn: Vec<String>) -> MtlsCheck {
    let name = match &subject.host {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Suffix(suffix) => format!("probe.{suffix}"),
    };
    let checked = tokio::task::spawn_blocking(move || prove(&addresses, &name, &alpn)).await;
    checked.unwrap_or_else(|_| {
        MtlsCheck::Unreachable("the check panicked; this is a bug, please report it".to_owned())
    })
}

/// Checks every address of a name: a single one that needs no certificate fails it.
fn prove(addresses: &[SocketAddr], name: &str, alpn: &[String]) -> MtlsCheck {
    let mut proof = MtlsCheck::Unreachable("the name has no address".to_owned());
    for address in addresses {
        match check_endpoint(*address, name, alpn) {
            MtlsCheck::NotRequired(why) => return MtlsCheck::NotRequired(why),
            MtlsCheck::Unreachable(_) if proof == MtlsCheck::Required => {}
            seen => proof = seen,
        }
    }
    proof
}

/// Looks with the service's protocols, as all its clients come with one of them; and without, where there is none or that
/// shows nothing: a server may refuse them and still demand a certificate.
fn check_endpoint(address: SocketAddr, name: &str, alpn: &[String]) -> MtlsCheck {
    let protocols: Vec<&[u8]> = alpn.iter().map(String::as_bytes).collect();
    let with_protocols = || match connect(address) {
        Ok(stream) => verdict(inspect_and_request(stream, name, &protocols)),
        Err(error) => MtlsCheck::Unreachable(error.to_string()),
    };
    let alone = || match connect(address) {
        Ok(stream) => verdict(inspect(stream, name, &[])),
        Err(error) => MtlsCheck::Unreachable(error.to_string()),
    };
    match Some(()).filter(|()| !protocols.is_empty()).map(|()| with_protocols()) {
        None | Some(MtlsCheck::Unreachable(_)) => alone(),
        Some(seen) => seen,
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Only an alert proves that a certificate is demanded: a status may be the application's own.
fn verdict(seen: Result<Seen, ProbeError>) -> MtlsCheck {
    match seen {
        Err(error) => MtlsCheck::Unreachable(error.to_string().chars().take(200).collect()),
        Ok(Seen { client_certificate, status, .. }) => match (client_certificate, status) {
            (ClientCertificate::Demanded, _) => MtlsCheck::Required,
            (ClientCertificate::NotAsked, _) => MtlsCheck::NotRequired(NOT_ASKED.to_owned()),
            (ClientCertificate::Asked, Some(status @ (400 | 401 | 403 | 496))) => MtlsCheck::NotRequired(
                format!("{ASKED}, and answered HTTP {status} to a request without one: {DECLARED}"),
            ),
            (ClientCertificate::Asked, Some(status)) => MtlsCheck::NotRequired(format!(
                "{ASKED}, and answered HTTP {status} to a request without one"
            )),
            (ClientCertificate::Asked, None) => MtlsCheck::NotRequired(format!("{ASKED} ({UNSEEN})")),
            (ClientCertificate::Unclear, _) => MtlsCheck::Unreachable(UNCLEAR.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;

    use isthmus_certs::{Authority, SpiffeId, TrustDomain};
    use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
    use tokio_rustls::rustls::sign::CertifiedKey;
    use tokio_rustls::rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, crypto};

    use super::*;

    #[derive(Clone, Copy, PartialEq)]
    enum Server {
        NotAsking,
        /// As nginx does with `ssl_verify_client on`.
        RefusingTheRequest,
        /// As gRPC's core does.
        Closing,
        Requiring,
    }

    #[derive(Debug)]
    struct Shown(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shown {
        fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    fn config(server: Server) -> ServerConfig {
        let root = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let id = SpiffeId::workload(root.trust_domain(), "a", "b").unwrap();
        let identity = root.issue(&id, &[], Duration::from_secs(600)).unwrap();
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let (chain, key) = (identity.chain().to_vec(), identity.key().clone_key());
        let shown = Shown(Arc::new(CertifiedKey::from_der(chain, key, &provider).unwrap()));
        let mut roots = RootCertStore::empty();
        roots.add(root.certificate().clone()).unwrap();
        let asking = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let versions = versions.unwrap();
        let asked = match server {
            Server::NotAsking => versions.with_no_client_auth(),
            Server::Requiring => versions.with_client_cert_verifier(asking.build().unwrap()),
            Server::RefusingTheRequest | Server::Closing => {
                versions.with_client_cert_verifier(asking.allow_unauthenticated().build().unwrap())
            }
        };
        asked.with_cert_resolver(Arc::new(shown))
    }

    /// Serves one connection.
    fn serve(server: Server) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (socket, _) = listener.accept().unwrap();
            let connection = ServerConnection::new(Arc::new(config(server))).unwrap();
            let mut stream = StreamOwned::new(connection, socket);
            while stream.conn.is_handshaking() && stream.conn.complete_io(&mut stream.sock).is_ok() {}
            if server != Server::Closing && stream.read(&mut [0]).is_ok_and(|length| length > 0) {
                let _answered = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            }
        });
        address
    }

    #[test]
    fn mtls_check_reports_how_the_server_treats_a_client_without_certificate() {
        let seen = |server| check_endpoint(serve(server), "a.example", &[]);
        assert_eq!(seen(Server::Requiring), MtlsCheck::Required);
        assert_eq!(seen(Server::NotAsking), MtlsCheck::NotRequired(NOT_ASKED.to_owned()));
        let unseen = format!("{ASKED} ({UNSEEN})");
        assert_eq!(seen(Server::RefusingTheRequest), MtlsCheck::NotRequired(unseen.clone()));
        assert_eq!(seen(Server::Closing), MtlsCheck::Unreachable(UNCLEAR.to_owned()));
        assert!(unseen.contains("`ssl_verify_client on`") && UNCLEAR.contains("grpcio"));
    }
}
