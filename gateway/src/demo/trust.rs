//! The demo's trust domain: who is who, and what each end needs to prove it. Everyone gets an identity here
//! but the gateway, which needs none.

use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::{Authority, Identity, Peer, SpiffeId, TrustBundles, TrustDomain, client_config};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};

use super::Broken;

const DOMAIN: &str = "demo.isthmus";
const LIFETIME: Duration = Duration::from_hours(24);

/// A trust domain with its one authority.
#[derive(Debug)]
pub(super) struct Trust {
    authority: Authority,
    pub(super) bundles: Arc<TrustBundles>,
}

impl Trust {
    pub(super) fn new() -> Result<Trust, Broken> {
        let domain = TrustDomain::new(DOMAIN).map_err(Broken::cannot("name the trust domain"))?;
        let authority = Authority::generate(domain.clone()).map_err(Broken::cannot("make an authority"))?;
        let mut bundles = TrustBundles::new();
        bundles.add_root(domain, authority.certificate()).map_err(Broken::cannot("trust the authority"))?;
        Ok(Trust { authority, bundles: Arc::new(bundles) })
    }

    pub(super) fn root_pem(&self) -> String {
        self.authority.certificate_pem()
    }

    /// Makes an identity with a key of its own. The DNS names are for curl and browsers, which look at
    /// nothing else; our clients look at the SPIFFE ID.
    pub(super) fn issue(&self, namespace: &str, account: &str, names: &[String]) -> Result<Identity, Broken> {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.authority
            .issue(&self.id(namespace, account)?, &names, LIFETIME)
            .map_err(Broken::cannot("issue a certificate"))
    }

    pub(super) fn id(&self, namespace: &str, account: &str) -> Result<SpiffeId, Broken> {
        SpiffeId::workload(self.authority.trust_domain(), namespace, account)
            .map_err(Broken::cannot("make a SPIFFE ID"))
    }

    /// A client that shows `identity` and talks to whoever of this domain the gateway leads it to: whether it
    /// was the right one, the demo checks for each call.
    pub(super) fn client(&self, identity: &Identity) -> Result<ClientConfig, Broken> {
        let peer = Peer::Domain(self.authority.trust_domain().clone());
        client_config(identity, Arc::clone(&self.bundles), peer)
            .map_err(Broken::cannot("configure the client's TLS"))
    }

    /// A client without a certificate that checks DNS names, as browsers do.
    pub(super) fn stranger(&self) -> Result<ClientConfig, Broken> {
        let mut roots = RootCertStore::empty();
        roots
            .add(self.authority.certificate().clone())
            .map_err(Broken::cannot("trust the authority as a browser does"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(Broken::cannot("configure the stranger's TLS"))?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }
}
