//! Creates the run's trust domain, with identities for client, service and ingress.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::{
    Authority, Identity, Peer, SpiffeId, TrustBundles, TrustDomain, client_config, server_config,
};
use rustls::{ClientConfig, ServerConfig};

/// The service's name.
pub(super) const NAME: &str = "orders.shop.svc.cluster.local";

/// Lifetime of certificates; longer than any run.
const LIFETIME: Duration = Duration::from_hours(24);

/// TLS configurations of all sides.
#[derive(Debug)]
pub(super) struct Trust {
    /// A client that accepts only the service.
    pub(super) to_service: Arc<ClientConfig>,
    /// The same client, accepting the ingress instead.
    pub(super) to_ingress: Arc<ClientConfig>,
    /// The service, which accepts client and ingress.
    pub(super) service: Arc<ServerConfig>,
    pub(super) client_id: SpiffeId,
    ingress: Identity,
    root_pem: String,
}

impl Trust {
    pub(super) fn new() -> anyhow::Result<Self> {
        let authority = Authority::generate(TrustDomain::new("mesh.example")?)?;
        let issue = |namespace, account| -> anyhow::Result<Identity> {
            let id = SpiffeId::workload(authority.trust_domain(), namespace, account)?;
            Ok(authority.issue(&id, &[NAME], LIFETIME)?)
        };
        let (client, service, ingress) =
            (issue("shop", "web")?, issue("shop", "orders")?, issue("hub", "ingress")?);
        let mut bundles = TrustBundles::new();
        bundles.add_root(authority.trust_domain().clone(), authority.certificate())?;
        let bundles = Arc::new(bundles);
        let only = |identity: &Identity| Peer::Ids(vec![identity.id().clone()]);
        let callers = Peer::Ids(vec![client.id().clone(), ingress.id().clone()]);
        Ok(Self {
            to_service: Arc::new(client_config(&client, Arc::clone(&bundles), only(&service))?),
            to_ingress: Arc::new(client_config(&client, Arc::clone(&bundles), only(&ingress))?),
            service: Arc::new(server_config(&service, bundles, callers)?),
            client_id: client.id().clone(),
            ingress,
            root_pem: authority.certificate_pem(),
        })
    }

    /// Writes HAProxy's files: its chain and key as `ingress.pem`, the root as `root.pem`.
    pub(super) fn write_for_ingress(&self, directory: &Path) -> io::Result<()> {
        let own = format!("{}{}", self.ingress.chain_pem(), self.ingress.key_pem());
        let write = |name, text: &str| fs::write(directory.join(name), text);
        write("ingress.pem", &own).and_then(|()| write("root.pem", &self.root_pem))
    }
}
