//! Gateways that speak TLS themselves: identities in files as an operator writes them, and the configuration of
//! listeners that originate and of services that are terminated.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isthmus_certs::{
    Authority, DenyList, IdPattern, Identity, Peer, Server, SpiffeId, Trust, TrustDomain, TrustFiles,
    server_verifier,
};
use rcgen::KeyPair;
use rustls::client::WantsClientCert;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, ServerConfig, ServerConnection,
    StreamOwned, SupportedProtocolVersion,
};
use tempfile::TempDir;
use time::OffsetDateTime;

use crate::client::dial;
use crate::endpoint::Scripted;
use crate::forged::{issuer, leaf, uri};
use crate::is_root;
use crate::setup::{NOBODY, Setup, service};
use crate::tls::{ClientStream, ServerStream};

/// The host of the services here.
pub const HOST: &str = "db.example";

/// Trust domains with identities in files. All but `north` trust each other.
#[derive(Debug)]
pub struct Domains {
    authorities: Vec<Authority>,
    folder: TempDir,
}

impl Default for Domains {
    fn default() -> Self {
        Domains::new()
    }
}

/// The SPIFFE ID of a workload.
#[must_use]
pub fn id(domain: &str, name: &str) -> String {
    format!("spiffe://{domain}.example/ns/test/sa/{name}")
}

impl Domains {
    /// `east` and `west` trust each other; nobody trusts `north`.
    #[must_use]
    pub fn new() -> Domains {
        let folder = tempfile::Builder::new().prefix("isthmus-ends-").tempdir().unwrap();
        for name in ["bundles", "deny"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let authorities = ["east", "west", "north"].map(|name| {
            let domain = TrustDomain::new(&format!("{name}.example")).unwrap();
            Authority::generate(domain).unwrap()
        });
        let domains = Domains { authorities: authorities.into(), folder };
        for authority in &domains.authorities[..2] {
            domains.trust_authority(authority);
        }
        domains.issue("east", "gateway");
        domains
    }

    fn trust_authority(&self, authority: &Authority) {
        let name = format!("bundles/{}.pem", authority.trust_domain());
        fs::write(self.folder.path().join(name), authority.certificate_pem()).unwrap();
    }

    /// Removes the bundle of a domain.
    pub fn distrust(&self, domain: &str) {
        fs::remove_file(self.path(&format!("bundles/{domain}.example.pem"))).unwrap();
    }

    /// The authority of `east`, `west` or `north`.
    #[must_use]
    pub fn authority(&self, domain: &str) -> &Authority {
        let is_it = |authority: &&Authority| authority.trust_domain().as_str() == format!("{domain}.example");
        self.authorities.iter().find(is_it).unwrap()
    }

    /// Gives a domain another authority for what is issued from now on; nobody trusts it yet.
    pub fn replace(&mut self, authority: Authority) {
        self.authorities.retain(|old| old.trust_domain() != authority.trust_domain());
        self.authorities.push(authority);
    }

    /// Takes an identity back: it is the only one on its domain's deny-list.
    pub fn deny(&self, domain: &str, name: &str) {
        let authority = self.authority(domain);
        let mut list = DenyList::new(authority.trust_domain().clone());
        list.add_identity(IdPattern::parse(&id(domain, name)).unwrap());
        let new = self.path("deny.new");
        fs::write(&new, list.sign(authority).unwrap()).unwrap();
        fs::rename(new, self.path(&format!("deny/{}.json", authority.trust_domain()))).unwrap();
    }

    /// The path of a file.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Gives all files to the unprivileged user, if this is root.
    pub fn give_to_nobody(&self) {
        fn give(path: &Path) {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            if path.is_dir() {
                fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path()));
            }
        }
        if is_root() {
            give(self.folder.path());
        }
    }

    /// Issues an identity; returns the YAML keys of its files.
    pub fn issue(&self, domain: &str, name: &str) -> String {
        self.issue_for(domain, name, Duration::from_secs(3600))
    }

    /// Issues an identity for a time; returns the YAML keys of its files.
    pub fn issue_for(&self, domain: &str, name: &str, lifetime: Duration) -> String {
        self.write(domain, name, &[], lifetime)
    }

    /// Issues an identity with these DNS names; returns the YAML keys of its files.
    pub fn issue_named(&self, domain: &str, name: &str, dns: &[&str]) -> String {
        self.write(domain, name, dns, Duration::from_secs(3600))
    }

    /// Issues an identity that is valid between two moments, in minutes from now.
    pub fn issue_between(&self, domain: &str, name: &str, (from, until): (i64, i64)) {
        let mut params = leaf(vec![uri(&id(domain, name))]);
        let now = OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::minutes(from);
        params.not_after = now + time::Duration::minutes(until);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer(self.authority(domain))).unwrap();
        fs::write(self.path(&format!("{domain}-{name}.crt")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{domain}-{name}.key")), key.serialize_pem()).unwrap();
    }

    fn write(&self, domain: &str, name: &str, dns: &[&str], lifetime: Duration) -> String {
        let id = SpiffeId::parse(&id(domain, name)).unwrap();
        let identity = self.authority(domain).issue(&id, dns, lifetime).unwrap();
        identity.write_to(self.folder.path(), &format!("{domain}-{name}")).unwrap();
        self.files(domain, name)
    }

    /// The YAML keys of an identity's files.
    #[must_use]
    pub fn files(&self, domain: &str, name: &str) -> String {
        let file = |ending| self.path(&format!("{domain}-{name}.{ending}")).display().to_string();
        format!("certificate: {}, key: {}", file("crt"), file("key"))
    }

    /// The `trust:` of a gateway.
    #[must_use]
    pub fn trust_yaml(&self) -> String {
        let [bundles, deny] = ["bundles", "deny"].map(|name| self.path(name).display().to_string());
        format!("trust: {{ {}, bundles: {bundles}, deny: {deny} }}", self.files("east", "gateway"))
    }

    /// A gateway that terminates [`HOST`] before an endpoint, with the identity `server` of east.
    #[must_use]
    pub fn terminating(&self, allow: &[&str], endpoint: SocketAddr) -> Setup {
        Setup::new(self.terminated(HOST, allow, &[], endpoint)).with(&self.trust_yaml())
    }

    /// A terminated service in YAML.
    #[must_use]
    pub fn terminated(&self, host: &str, allow: &[&str], keys: &[&str], endpoint: SocketAddr) -> String {
        let allow: Vec<_> = allow.iter().map(|name| id("east", name)).collect();
        let files = self.issue("east", "server").replace(", key", "\n  key");
        let access = format!("access: {{ allow: [{}] }}", allow.join(", "));
        let keys: Vec<&str> = ["tls: terminate", &files, &access].iter().chain(keys).copied().collect();
        service(host, &keys, &[endpoint])
    }

    /// A gateway on whose listener every local application is `caller` of east, for [`HOST`] at these endpoints, whose
    /// identity is `server` of east.
    #[must_use]
    pub fn originating(&self, caller: &str, endpoints: &[SocketAddr]) -> Setup {
        self.originating_with(caller, &[], endpoints)
    }

    /// The same with more keys of the service.
    #[must_use]
    pub fn originating_with(&self, caller: &str, more: &[&str], endpoints: &[SocketAddr]) -> Setup {
        let keys = self.issue("east", caller);
        let identities = format!("identities: [{}]", id("east", "server"));
        let service_keys: Vec<&str> = [identities.as_str()].iter().chain(more).copied().collect();
        Setup::new(service(HOST, &service_keys, endpoints)).with(&self.trust_yaml()).listeners(&format!(
            "- {{ address: \"ADDRESS\", side: outbound, mode: originate, service: {HOST}, identity: {}, {keys} }}",
            id("east", caller)
        ))
    }

    fn trust(&self, domain: &str, name: &str) -> TrustFiles {
        let file = |ending| self.path(&format!("{domain}-{name}.{ending}"));
        TrustFiles {
            certificate: file("crt"),
            key: file("key"),
            bundles: self.path("bundles"),
            deny: Some(self.path("deny")),
            ..TrustFiles::default()
        }
    }

    /// A TLS client with an issued identity, which accepts `server` of east. It resumes sessions.
    #[must_use]
    pub fn client(&self, domain: &str, name: &str) -> Arc<ClientConfig> {
        self.client_of(domain, name, rustls::DEFAULT_VERSIONS)
    }

    /// The same with these protocol versions.
    #[must_use]
    pub fn client_of(
        &self,
        domain: &str,
        name: &str,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let identity = self.identity(domain, name);
        let config = self.verifying(versions);
        Arc::new(config.with_client_auth_cert(identity.chain().to_vec(), identity.key().clone_key()).unwrap())
    }

    fn identity(&self, domain: &str, name: &str) -> Identity {
        let [chain, key] =
            ["crt", "key"].map(|ending| fs::read(self.path(&format!("{domain}-{name}.{ending}"))).unwrap());
        Identity::from_pem(chain, key).unwrap()
    }

    /// A TLS client without a certificate.
    #[must_use]
    pub fn anonymous(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        Arc::new(self.verifying(versions).with_no_client_auth())
    }

    fn verifying(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        let bundles = self.trust("east", "gateway").bundles_only().unwrap();
        let server = Peer::Ids(vec![SpiffeId::parse(&id("east", "server")).unwrap()]);
        ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(server_verifier(Arc::new(bundles), server))
    }

    /// A TLS server with an issued identity of east, for clients of either domain.
    #[must_use]
    pub fn server(&self, name: &str) -> Arc<ServerConfig> {
        let trust = Trust::load(&self.trust("east", name)).unwrap();
        Server::new(trust, Peer::Trusted, &[]).unwrap().config()
    }

    /// A TLS server that shows an identity, valid or not, to clients of east.
    #[must_use]
    pub fn showing(&self, domain: &str, name: &str) -> Arc<ServerConfig> {
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.authority("east").certificate().clone()).unwrap();
        let clients =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider)).build().unwrap();
        let identity = self.identity(domain, name);
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(identity.chain().to_vec(), identity.key().clone_key());
        Arc::new(config.unwrap())
    }

    /// A TLS server that accepts one client of east alone.
    #[must_use]
    pub fn server_for(&self, name: &str, client: &str) -> Arc<ServerConfig> {
        let trust = Trust::load(&self.trust("east", name)).unwrap();
        let only = Peer::Ids(vec![SpiffeId::parse(&id("east", client)).unwrap()]);
        Server::new(trust, only, &[]).unwrap().config()
    }
}

/// Begins TLS to [`HOST`] at an address.
#[must_use]
#[track_caller]
pub fn connect(config: &Arc<ClientConfig>, address: SocketAddr) -> ClientStream {
    connect_to(config, HOST, address)
}

/// Begins TLS to a host at an address.
#[must_use]
#[track_caller]
pub fn connect_to(config: &Arc<ClientConfig>, host: &str, address: SocketAddr) -> ClientStream {
    connect_over(config, host, dial(address))
}

/// Begins TLS to a host on a connection.
#[must_use]
#[track_caller]
pub fn connect_over(config: &Arc<ClientConfig>, host: &str, stream: TcpStream) -> ClientStream {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), stream)
}

/// An endpoint that talks TLS with each client.
#[must_use]
pub fn tls_endpoint(
    config: Arc<ServerConfig>,
    talk: impl Fn(&mut ServerStream) + Send + Sync + 'static,
) -> Scripted {
    Scripted::unread(move |stream| {
        talk(&mut StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream));
    })
}
