//! `inspect`: shows the certificates of a file or of a live endpoint.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use isthmus_certs::facts::Facts;
use isthmus_certs::printable::printable;
use isthmus_certs::probe::{self, ClientCertificate, Seen};
use isthmus_certs::{Role, pem};
use rustls::pki_types::CertificateDer;
use serde_json::json;

use super::chains::{bundles, described, escaped, objections};
use super::options::InspectOptions;
use super::say::{Answer, bad, good};

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn inspect(options: &InspectOptions) -> anyhow::Result<Answer> {
    let path = Path::new(&options.what);
    if path.exists() {
        let chain = pem::certificates(super::read(path)?).with_context(|| escaped(path))?;
        return answer(options, &chain, None);
    }
    let Some((host, _)) = options.what.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok())
    else {
        bail!("{} is neither an existing file nor HOST:PORT", escaped(path));
    };
    let seen = connect(options, host)?;
    answer(options, &seen.chain, Some(&seen))
}

fn connect(options: &InspectOptions, host: &str) -> anyhow::Result<Seen> {
    let place = &options.what;
    let addresses = place.to_socket_addrs().with_context(|| format!("{place}: cannot resolve the name"))?;
    let mut last = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Err(error) => last = Some(error),
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let sni = options.sni.as_deref().unwrap_or(host);
                let alpn: Vec<_> = options.alpn.iter().map(String::as_bytes).collect();
                return probe::inspect(stream, sni, &alpn).with_context(|| place.clone());
            }
        }
    }
    let error =
        last.map(anyhow::Error::from).unwrap_or_else(|| anyhow::anyhow!("the name has no address; check it"));
    Err(error.context(format!("cannot connect to {place}")))
}

fn answer(
    options: &InspectOptions,
    chain: &[CertificateDer<'static>],
    seen: Option<&Seen>,
) -> anyhow::Result<Answer> {
    let bundles = bundles(&options.judges)?;
    let roles: &[Role] = if seen.is_some() { &[Role::Server] } else { &[Role::Server, Role::Client] };
    let objections = objections(chain, bundles.as_ref(), roles);
    let facts: Result<Vec<_>, _> = chain.iter().map(Facts::read).collect();
    let facts = facts.with_context(|| printable(&options.what))?;
    let mut text: String =
        facts.iter().enumerate().map(|(place, facts)| described(place + 1, facts) + "\n").collect();
    if let Some(seen) = seen {
        text += &format!("{}\n", endpoint(seen));
    }
    text += &verdict(&objections, bundles.is_some());
    let json = json!({
        "chain": facts,
        "objections": objections,
        "judged_by_bundles": bundles.is_some(),
        "endpoint": seen.map(|seen| json!({
            "version": seen.version,
            "alpn": seen.alpn,
            "client_certificate": seen.client_certificate,
        })),
    });
    Ok(Answer::new(text, json))
}

fn endpoint(seen: &Seen) -> String {
    let version = seen.version.as_deref().unwrap_or("TLS 1.2 or older");
    let alpn = seen.alpn.as_ref().map(|alpn| format!(", protocol {}", printable(alpn))).unwrap_or_default();
    let wants = match seen.client_certificate {
        ClientCertificate::NotAsked => bad("does not ask for a client certificate: it accepts every client"),
        ClientCertificate::Asked => bad(
            "asks for a client certificate and completes the handshake without one; it may still refuse requests (nginx: 400), which is not checked here",
        ),
        ClientCertificate::Unclear => bad(
            "asks for a client certificate and, without one, closed the connection without a TLS alert, as grpcio does",
        ),
        ClientCertificate::Demanded => good("requires a client certificate"),
    };
    format!("{version}{alpn}; the endpoint {wants}")
}

fn verdict(objections: &[String], is_judged: bool) -> String {
    match (objections, is_judged) {
        ([], true) => good("OK: a peer with these bundles accepts this chain"),
        ([], false) => "well-formed; give --bundles DIR to verify the chain".to_owned(),
        (all, _) => {
            let lines: Vec<_> =
                all.iter().map(|why| bad(&format!("a peer would refuse it: {}", printable(why)))).collect();
            lines.join("\n")
        }
    }
}
