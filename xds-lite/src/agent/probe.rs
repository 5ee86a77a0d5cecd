//! Looking at endpoints that are to be exported: does each refuse a client that has no certificate?

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isthmus_certs::probe::{ClientCertificate, look};
use tokio::sync::Notify;

use crate::config::address::Target;
use crate::host::HostPattern;
use crate::proofs::{Proof, Subject};

use super::locked;
use super::state::State;

const PATIENCE: Duration = Duration::from_secs(2);
/// Until it is asked again which are due.
const PACE: Duration = Duration::from_millis(500);

/// Looks at whatever is due, for ever; `waiting` says that something is.
pub(super) async fn probe(state: Arc<Mutex<State>>, waiting: Arc<Notify>) {
    loop {
        let due = locked(&state).proofs.next(Instant::now());
        if due.is_empty() {
            let _either = tokio::time::timeout(PACE, waiting.notified()).await;
            continue;
        }
        for subject in due {
            let (state, waiting) = (Arc::clone(&state), Arc::clone(&waiting));
            tokio::task::spawn_blocking(move || {
                let proof = prove(&subject);
                let mut state = locked(&state);
                state.seen(vec![(subject, proof)], Instant::now());
                waiting.notify_one();
            });
        }
    }
}

/// A name has several addresses: one that lets anybody in is enough.
fn prove(subject: &Subject) -> Proof {
    let addresses: io::Result<Vec<SocketAddr>> = match &subject.address {
        Target::Address(address) => Ok(vec![*address]),
        Target::Name { host, port } => (host.as_str(), *port).to_socket_addrs().map(Iterator::collect),
    };
    let name = match &subject.host {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Suffix(suffix) => format!("probe.{suffix}"),
    };
    let addresses = match addresses {
        Ok(addresses) => addresses,
        Err(error) => return Proof::Unseen(error.to_string()),
    };
    let mut proof = Proof::Unseen("the name has no address".to_owned());
    for address in addresses {
        match prove_one(address, &name) {
            Proof::LetsIn(why) => return Proof::LetsIn(why),
            Proof::Unseen(_) if proof == Proof::Demands => {}
            seen => proof = seen,
        }
    }
    proof
}

fn prove_one(address: SocketAddr, name: &str) -> Proof {
    let connected = TcpStream::connect_timeout(&address, PATIENCE).and_then(|stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    });
    let stream = match connected {
        Ok(stream) => stream,
        Err(error) => return Proof::Unseen(error.to_string()),
    };
    match look(stream, name, &[]).map(|seen| seen.client_certificate) {
        Ok(ClientCertificate::Demanded) => Proof::Demands,
        Ok(ClientCertificate::NotAsked) => Proof::LetsIn("it asks for no client certificate".to_owned()),
        Ok(ClientCertificate::Asked) => {
            Proof::LetsIn("it lets in a client without the certificate that it asks for".to_owned())
        }
        Ok(ClientCertificate::Unclear) => {
            Proof::Unseen("it asks for a client certificate and ends without a word".to_owned())
        }
        Err(error) => Proof::Unseen(error.to_string().chars().take(200).collect()),
    }
}
