//! Loads the certificates of callers and of services whose TLS ends at this gateway, and follows their files. `originate`
//! and `terminate` use them; a set of them belongs to one edit of the configuration.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use isthmus_certs::trust::{Expiry, Kind, LoadError, Watch};
use isthmus_certs::{Client, ConfigError, Peer, Server, SpiffeId, Trust, TrustFiles};
use isthmus_model::HostPattern;

use crate::config::settings::{Caller, CertificateFiles, Live, Originate, Service, Trusts};

/// The certificate and key files of one identity.
type Files = (PathBuf, PathBuf);
/// The service and everything that its configuration depends on.
type Door = (HostPattern, u16, Files, Vec<String>);
/// A caller's certificate, the servers that it expects, and the protocols that it offers. Sessions are kept apart by
/// these.
type Way = (Files, Vec<SpiffeId>, Vec<String>);

/// The TLS clients and servers of one edit of the configuration.
#[derive(Debug, Default)]
pub struct Ends {
    servers: HashMap<(HostPattern, u16), (Door, Arc<Server>)>,
    clients: HashMap<Way, Arc<Client>>,
    /// By listener, then by caller.
    ways: Vec<Vec<Arc<Client>>>,
    trusts: BTreeMap<Files, Trust>,
    watch: Option<Arc<Watch>>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be used.
    #[error("{place}: {cause}")]
    Load {
        /// The place in the configuration.
        place: String,
        /// The file, the problem and the remedy.
        #[source]
        cause: LoadError,
    },
    /// The certificate is another identity's.
    #[error("{place}: {} is the certificate of {}, not of {}; write the right file", file.display(), identities.0, identities.1)]
    Other {
        /// The place in the configuration.
        place: String,
        /// The certificate's file.
        file: PathBuf,
        /// Its identity, and one that it should have.
        identities: Box<(SpiffeId, SpiffeId)>,
    },
    /// Certificate and key cannot be used for TLS.
    #[error("{place}: {cause}")]
    Config {
        /// The place in the configuration.
        place: String,
        /// The problem.
        #[source]
        cause: Box<ConfigError>,
    },
    /// The files cannot be followed.
    #[error("cannot follow certificate files: {0}")]
    Watch(#[from] io::Error),
}

impl Ends {
    /// Loads what the settings name. What is unchanged since `before` is kept, with its sessions.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub(crate) fn load(live: &Live, trust: Option<&Trusts>, before: &Ends) -> Result<Ends, Error> {
        let mut load =
            Loading { base: trust.map(Trusts::files).unwrap_or_default(), before, made: Ends::default() };
        for (index, service) in live.services.iter().enumerate() {
            if let Some(files) = service.tls.as_ref().and_then(|tls| tls.files.as_ref()) {
                load.server(&format!("services[{index}]"), service, files)?;
            }
        }
        for (index, listener) in live.listeners.iter().enumerate() {
            let mut ways = Vec::new();
            for (caller, settings) in originating(listener.originate.as_deref()) {
                let place = format!("listeners[{index}], caller {}", settings.identity);
                ways.push(load.client(&place, caller, settings)?);
            }
            load.made.ways.push(ways);
        }
        load.done()
    }

    /// Returns the TLS server of a service.
    pub(crate) fn server(&self, host: &HostPattern, port: u16) -> Option<&Arc<Server>> {
        self.servers.get(&(host.clone(), port)).map(|(_, server)| server)
    }

    /// Returns the TLS client of a caller, by the positions of listener and caller.
    pub(crate) fn client(&self, listener: usize, caller: usize) -> Option<&Arc<Client>> {
        self.ways.get(listener)?.get(caller)
    }

    /// Returns the expiry of each certificate in use, without the roots, which are the gateway's own.
    pub(crate) fn expiries(&self) -> impl Iterator<Item = Expiry> {
        self.trusts.values().flat_map(Trust::expiries).filter(|expiry| expiry.kind != Kind::Root)
    }

    /// Returns the files refused at the last reload, each with its reason and remedy.
    pub(crate) fn refused(&self) -> impl Iterator<Item = String> {
        self.trusts.values().flat_map(Trust::refused)
    }
}

fn originating(originate: Option<&Originate>) -> impl Iterator<Item = (&Originate, &Caller)> {
    originate.into_iter().flat_map(|all| all.callers.iter().map(move |caller| (all, caller)))
}

struct Loading<'a> {
    /// The gateway's own trust; bundles and lists are the same for every identity.
    base: TrustFiles,
    before: &'a Ends,
    made: Ends,
}

impl Loading<'_> {
    fn server(&mut self, place: &str, service: &Service, files: &CertificateFiles) -> Result<(), Error> {
        let files = (files.certificate.clone(), files.key.clone());
        let trust = self.trust(place, &files, service.identities())?;
        let name = (service.host.clone(), service.port);
        let key: Door = (name.0.clone(), name.1, files, service.alpn.clone());
        let known = self.before.servers.get(&name).filter(|(known, _)| *known == key);
        let server = match known {
            Some((_, server)) => Arc::clone(server),
            None => Arc::new(
                Server::new(trust, Peer::Trusted, &bytes(&service.alpn))
                    .map_err(|cause| failed(place, cause))?,
            ),
        };
        self.made.servers.insert(name, (key, server));
        Ok(())
    }

    fn client(&mut self, place: &str, originate: &Originate, caller: &Caller) -> Result<Arc<Client>, Error> {
        let files = (caller.certificate.clone(), caller.key.clone());
        let trust = self.trust(place, &files, std::slice::from_ref(&caller.identity))?;
        let key: Way = (files, originate.identities.clone(), originate.alpn.clone());
        let known = self.made.clients.get(&key).or_else(|| self.before.clients.get(&key));
        let client = match known {
            Some(client) => Arc::clone(client),
            None => {
                let expected = Peer::Ids(originate.identities.clone());
                let made = Client::new(trust, expected, &bytes(&originate.alpn));
                Arc::new(made.map_err(|cause| failed(place, cause))?)
            }
        };
        self.made.clients.insert(key, Arc::clone(&client));
        Ok(client)
    }

    /// Loads an identity, which must be one of `wanted` unless that is empty.
    fn trust(&mut self, place: &str, files: &Files, wanted: &[SpiffeId]) -> Result<Trust, Error> {
        let known = self.made.trusts.get(files).or_else(|| self.before.trusts.get(files));
        let trust = match known {
            Some(trust) => trust.clone(),
            None => Trust::load(&self.files(files))
                .map_err(|cause| Error::Load { place: place.to_owned(), cause })?,
        };
        let found = trust.current().identity.id().clone();
        if let Some(first) = wanted.first()
            && !wanted.contains(&found)
        {
            let (place, file) = (place.to_owned(), files.0.clone());
            return Err(Error::Other { place, file, identities: Box::new((found, first.clone())) });
        }
        self.made.trusts.insert(files.clone(), trust.clone());
        Ok(trust)
    }

    fn files(&self, (certificate, key): &Files) -> TrustFiles {
        TrustFiles { certificate: certificate.clone(), key: key.clone(), ..self.base.clone() }
    }

    fn done(mut self) -> Result<Ends, Error> {
        let is_same = self.made.trusts.keys().eq(self.before.trusts.keys());
        self.made.watch = match &self.before.watch {
            Some(watch) if is_same => Some(Arc::clone(watch)),
            _ if self.made.trusts.is_empty() => None,
            _ => {
                let all = self.made.trusts.iter().map(|(files, trust)| (trust.clone(), self.files(files)));
                Some(Arc::new(Watch::all(all.collect())?))
            }
        };
        Ok(self.made)
    }
}

fn bytes(protocols: &[String]) -> Vec<&[u8]> {
    protocols.iter().map(String::as_bytes).collect()
}

fn failed(place: &str, cause: ConfigError) -> Error {
    Error::Config { place: place.to_owned(), cause: Box::new(cause) }
}
