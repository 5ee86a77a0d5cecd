//! The TLS of the gateway's own, of callers and of services whose TLS ends here: certificates in files, which are loaded and
//! followed here, and those of the agent (`issued`). `originate` and `terminate` use it; a set of it belongs to one edit of
//! the configuration.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use isthmus_certs::trust::{Expiry, Kind, LoadError, Watch};
use isthmus_certs::{Client, ConfigError, Peer, Server, SpiffeId, Trust, TrustFiles};
use isthmus_model::HostPattern;

use crate::clients::{Clients, NoCertificate, bytes};
use crate::config::settings::{Caller, CertificateFiles, Live, Service, Trusts};
use crate::issued::Issued;

/// The service and everything that its configuration depends on.
type Door = (HostPattern, u16, CertificateFiles, Vec<String>);

/// The TLS clients and servers of one edit of the configuration.
#[derive(Debug, Default)]
pub struct Ends {
    servers: HashMap<(HostPattern, u16), (Door, Arc<Server>)>,
    callers: HashMap<CertificateFiles, Arc<Clients>>,
    trusts: BTreeMap<CertificateFiles, Trust>,
    watch: Option<Arc<Watch>>,
    /// Outlives edits.
    pub(crate) issued: Arc<Issued>,
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
        let made = Ends { issued: Arc::clone(&before.issued), ..Ends::default() };
        let mut load = Loading { base: trust.map(Trusts::files).unwrap_or_default(), before, made };
        for (index, service) in live.services.iter().enumerate() {
            if let Some(files) = service.tls.as_ref().and_then(|tls| tls.files.as_ref()) {
                load.server(&format!("services[{index}]"), service, files)?;
            }
        }
        for (index, listener) in live.listeners.iter().enumerate() {
            for caller in listener.originate.iter().flat_map(|originate| originate.callers.of_file()) {
                if let Some(files) = &caller.files {
                    load.caller(&format!("listeners[{index}], caller {}", caller.identity), caller, files)?;
                }
            }
        }
        load.done()
    }

    /// Returns the TLS server of a service; with `issued` the agent issues the certificate of that identity.
    ///
    /// # Errors
    /// There is no usable certificate.
    pub(crate) fn server(
        &self,
        (host, port): (&HostPattern, u16),
        issued: Option<&SpiffeId>,
        alpn: &[String],
    ) -> Result<Arc<Server>, NoCertificate> {
        match issued {
            Some(identity) => self.issued.server((host, port), identity, alpn),
            None => {
                let known = self.servers.get(&(host.clone(), port));
                known.map(|(_, server)| Arc::clone(server)).ok_or(NoCertificate::Absent)
            }
        }
    }

    /// Returns the TLS client of a caller, with the certificate in its files or the agent's, for servers with one of these
    /// identities and these protocols.
    ///
    /// # Errors
    /// The caller has no usable certificate here, or the service no identities.
    pub(crate) fn client(
        &self,
        (identity, files): (&SpiffeId, Option<&CertificateFiles>),
        servers: &[SpiffeId],
        alpn: &[String],
    ) -> Result<Arc<Client>, NoCertificate> {
        let clients = match files {
            Some(files) => self.callers.get(files).map(Arc::clone).ok_or(NoCertificate::Absent)?,
            None => self.issued.clients(identity)?,
        };
        clients.get(servers, alpn)
    }

    /// Returns the expiry of each certificate in use, without the roots, which are the gateway's own.
    pub(crate) fn expiries(&self) -> impl Iterator<Item = Expiry> {
        let all = self.trusts.values().flat_map(Trust::expiries).chain(self.issued.expiries());
        all.filter(|expiry| expiry.kind != Kind::Root)
    }

    /// Grows with each change of trust by which handshakes are judged.
    pub(crate) fn trust_changes(&self) -> u64 {
        self.trusts.values().map(|trust| trust.current().epoch).sum::<u64>() + self.issued.trust_changes()
    }

    /// Returns the files refused at the last reload, each with its reason and remedy.
    pub(crate) fn refused(&self) -> impl Iterator<Item = String> {
        self.trusts.values().flat_map(Trust::refused)
    }
}

struct Loading<'a> {
    /// The gateway's own trust; bundles and lists are the same for every identity.
    base: TrustFiles,
    before: &'a Ends,
    made: Ends,
}

impl Loading<'_> {
    fn server(&mut self, place: &str, service: &Service, files: &CertificateFiles) -> Result<(), Error> {
        let trust = self.trust(place, files, service.identities())?;
        let name = (service.host.clone(), service.port);
        let key: Door = (name.0.clone(), name.1, files.clone(), service.alpn.clone());
        let known = self.before.servers.get(&name).filter(|(known, _)| *known == key);
        let server = match known {
            Some((_, server)) => Arc::clone(server),
            None => Arc::new(
                Server::gated(trust, Peer::Trusted, &bytes(&service.alpn))
                    .map_err(|cause| failed(place, cause))?,
            ),
        };
        self.made.servers.insert(name, (key, server));
        Ok(())
    }

    fn caller(&mut self, place: &str, caller: &Caller, files: &CertificateFiles) -> Result<(), Error> {
        let trust = self.trust(place, files, std::slice::from_ref(&caller.identity))?;
        let known = self.made.callers.get(files).or_else(|| self.before.callers.get(files));
        let clients = known.map_or_else(|| Arc::new(Clients::new(trust)), Arc::clone);
        self.made.callers.insert(files.clone(), clients);
        Ok(())
    }

    /// Loads an identity, which must be one of `wanted` unless that is empty.
    fn trust(&mut self, place: &str, files: &CertificateFiles, wanted: &[SpiffeId]) -> Result<Trust, Error> {
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
            let (place, file) = (place.to_owned(), files.certificate.clone());
            return Err(Error::Other { place, file, identities: Box::new((found, first.clone())) });
        }
        self.made.trusts.insert(files.clone(), trust.clone());
        Ok(trust)
    }

    fn files(&self, files: &CertificateFiles) -> TrustFiles {
        TrustFiles { certificate: files.certificate.clone(), key: files.key.clone(), ..self.base.clone() }
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

fn failed(place: &str, cause: ConfigError) -> Error {
    Error::Config { place: place.to_owned(), cause: Box::new(cause) }
}
