//! Makes the TLS clients of one caller when they are first used: one for each set of servers that it may expect and
//! protocols that it offers. Sessions are kept apart by these.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use isthmus_certs::{Client, ConfigError, Peer, SpiffeId, Trust};

/// Clients of one caller at once; the one that was used longest ago makes room, and its servers full handshakes.
const MOST: usize = 256;
/// Sessions of one client: an instance and a port each have a name of their own.
const SESSIONS: usize = 64;

/// Why TLS of the gateway's own cannot begin.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NoCertificate {
    /// The tables have no certificate for it.
    #[error("there is no certificate here")]
    Absent,
    /// The agent has issued none.
    #[error("the agent has issued no certificate for {identity}{}", because(.why.as_ref()))]
    NotIssued {
        /// The identity.
        identity: SpiffeId,
        /// Why not, if that is known.
        why: Option<String>,
    },
    /// It has not been renewed in time.
    #[error("the certificate of {identity} has expired{}", because(.why.as_ref()))]
    Expired {
        /// The identity.
        identity: SpiffeId,
        /// Why it was not renewed, if that is known.
        why: Option<String>,
    },
    /// The service has no identities.
    #[error("the service has no identities, so its server cannot be told from another")]
    NoIdentities,
    /// It cannot be used in TLS.
    #[error(transparent)]
    Config(#[from] Arc<ConfigError>),
}

fn because(why: Option<&String>) -> String {
    why.map(|why| format!(": {why}")).unwrap_or_default()
}

/// The clients of one caller.
#[derive(Debug)]
pub(crate) struct Clients {
    trust: Trust,
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    /// By the servers' identities: the protocols, the client, and when it was last used.
    clients: HashMap<Box<[SpiffeId]>, Vec<OfProtocols>>,
    count: usize,
    uses: u64,
}

#[derive(Debug)]
struct OfProtocols {
    alpn: Box<[String]>,
    client: Arc<Client>,
    used: u64,
}

impl Clients {
    pub(crate) fn new(trust: Trust) -> Clients {
        Clients { trust, made: Mutex::default() }
    }

    /// Returns the client for servers with one of these identities.
    ///
    /// # Errors
    /// There are no identities, or no client can be made.
    pub(crate) fn get(&self, servers: &[SpiffeId], alpn: &[String]) -> Result<Arc<Client>, NoCertificate> {
        if servers.is_empty() {
            return Err(NoCertificate::NoIdentities);
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.uses = made.uses.saturating_add(1);
        let used = made.uses;
        let known =
            made.clients.get_mut(servers).and_then(|all| all.iter_mut().find(|one| *one.alpn == *alpn));
        if let Some(known) = known {
            known.used = used;
            return Ok(Arc::clone(&known.client));
        }
        let client = Client::keeping(self.trust.clone(), Peer::Ids(servers.to_vec()), &bytes(alpn), SESSIONS);
        let client = Arc::new(client.map_err(Arc::new)?);
        if made.count >= MOST {
            made.drop_oldest();
        }
        let one = OfProtocols { alpn: alpn.into(), client: Arc::clone(&client), used };
        made.clients.entry(servers.into()).or_default().push(one);
        made.count += 1;
        Ok(client)
    }
}

/// Returns protocols (ALPN) as TLS has them.
pub(crate) fn bytes(protocols: &[String]) -> Vec<&[u8]> {
    protocols.iter().map(String::as_bytes).collect()
}

impl Made {
    fn drop_oldest(&mut self) {
        let oldest = self.clients.values().flatten().map(|one| one.used).min();
        self.clients.retain(|_, all| {
            all.retain(|one| Some(one.used) != oldest);
            !all.is_empty()
        });
        self.count = self.clients.values().map(Vec::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_certs::{Authority, TrustBundles, TrustDomain};

    use super::*;

    fn clients() -> Clients {
        let authority = Authority::generate(TrustDomain::new("east.example").unwrap()).unwrap();
        let id = server(0).remove(0);
        let identity = authority.issue(&id, &[], Duration::from_secs(3600)).unwrap();
        Clients::new(Trust::new(identity, TrustBundles::new()))
    }

    fn server(number: usize) -> Vec<SpiffeId> {
        vec![SpiffeId::parse(&format!("spiffe://east.example/ns/a/sa/s{number}")).unwrap()]
    }

    fn count(clients: &Clients) -> usize {
        clients.made.lock().unwrap().count
    }

    #[test]
    fn clients_are_shared_by_servers_and_protocols_alone() {
        let clients = clients();
        let h2 = ["h2".to_owned()];
        let one = clients.get(&server(1), &[]).unwrap();
        assert!(Arc::ptr_eq(&one, &clients.get(&server(1), &[]).unwrap()));
        for (servers, alpn) in [(server(2), &[][..]), (server(1), &h2)] {
            assert!(!Arc::ptr_eq(&one, &clients.get(&servers, alpn).unwrap()));
        }
        assert_eq!(count(&clients), 3);
        assert!(matches!(clients.get(&[], &[]), Err(NoCertificate::NoIdentities)));
    }

    #[test]
    fn clients_beyond_the_limit_replace_the_one_used_longest_ago() {
        let clients = clients();
        let first = clients.get(&server(0), &[]).unwrap();
        let second = clients.get(&server(1), &[]).unwrap();
        for number in 2..=MOST {
            clients.get(&server(0), &[]).unwrap();
            clients.get(&server(number), &[]).unwrap();
        }
        assert_eq!(count(&clients), MOST);
        assert!(Arc::ptr_eq(&first, &clients.get(&server(0), &[]).unwrap()));
        assert!(!Arc::ptr_eq(&second, &clients.get(&server(1), &[]).unwrap()));
    }
}
