//! Stores the bundles and deny-lists that the own agent publishes, in the files of a gateway that manages its trust: the
//! agent decides whom its cluster trusts. What a peer's agent may publish is in `keeper`.

use std::fs;
use std::io;

use isthmus_certs::files::{self, PUBLIC, WriteError};
use isthmus_certs::{Trust, TrustDomain, TrustFiles};
use tokio_rustls::rustls::pki_types::UnixTime;

use super::keeper::texts;
use super::known::Known;
use super::published::PublishedBundle;
use super::rule::{Judged, Refusal};
use super::wire::decode;

/// Trust domains of one gateway.
const MAX_DOMAINS: usize = 1_024;
/// Characters of a load error that are reported.
const LONGEST_CAUSE: usize = 512;

/// The files of a [`Trust`] that follow the own agent.
#[derive(Debug)]
pub struct Mirror {
    trust: Trust,
    files: TrustFiles,
}

impl Mirror {
    /// A mirror in the files that a trust was loaded from.
    #[must_use]
    pub fn new(trust: Trust, files: TrustFiles) -> Mirror {
        Mirror { trust, files }
    }

    /// The trusted domains besides the own one.
    #[must_use]
    pub fn domains(&self) -> Vec<TrustDomain> {
        let trusted = self.trust.current();
        let own = trusted.identity.id().trust_domain();
        trusted.bundles.iter().map(|(domain, _)| domain.clone()).filter(|domain| domain != own).collect()
    }

    /// Stores a domain's bundle and deny-list; on return they are on disk and in use.
    ///
    /// # Errors
    /// The resource is refused; the known bundle stays in use.
    pub fn accept(&self, name: &str, bytes: &[u8], now: UnixTime) -> Result<(), Refusal> {
        let message = decode(name, bytes)?;
        let domain = TrustDomain::new(name).map_err(|_| Refusal::OtherName(message.trust_domain.clone()))?;
        let known = self.trust.current();
        let before = known.bundles.get(&domain);
        let domains = known.bundles.iter().count();
        if before.is_none() && domains >= MAX_DOMAINS {
            return Err(Refusal::TooLarge { what: "the list of trust domains", size: domains });
        }
        let envelope = Some(message.deny_list).filter(|list| !list.is_empty() && self.files.deny.is_some());
        let said =
            PublishedBundle::read(&domain, &message.bundle, envelope, known.bundles.denied(&domain), now)?;
        if said.bundle.sequence != message.sequence {
            return Err(Refusal::Sequences { said: message.sequence, found: said.bundle.sequence });
        }
        if let Some(before) = before.filter(|before| before.sequence > said.bundle.sequence) {
            return Err(Refusal::Older { found: said.bundle.sequence, known: before.sequence });
        }
        let on_disk = Known::read(&domain, &self.files.bundles, self.files.deny.as_deref())?;
        let judged = Judged { said, is_later: true, has_list: true };
        for (path, text) in texts(&domain, &on_disk, &judged, now)? {
            if let Some(folder) = path.parent() {
                files::make_folder(folder)?;
            }
            files::write(&path, &text, PUBLIC)?;
        }
        self.trust.reload(&self.files);
        self.check(&domain, &judged)
    }

    /// Trusts a domain no longer; the own one always stays.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), Refusal> {
        let Ok(domain) = TrustDomain::new(name) else { return Ok(()) };
        if domain == *self.trust.current().identity.id().trust_domain() {
            return Ok(());
        }
        let file = format!("{domain}.json");
        // The list first: one without its bundle would be refused.
        for folder in self.files.deny.iter().chain([&self.files.bundles]) {
            let path = folder.join(&file);
            match fs::remove_file(&path) {
                Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                    return Err(WriteError::Failed { path, cause }.into());
                }
                _ => {}
            }
        }
        self.trust.reload(&self.files);
        Ok(())
    }

    /// Checks that the trust in use matches the files just written.
    fn check(&self, domain: &TrustDomain, judged: &Judged) -> Result<(), Refusal> {
        let bundles = &self.trust.current().bundles;
        let is_bundle = bundles.get(domain) == Some(&judged.said.bundle);
        let is_list =
            judged.said.denied.as_ref().is_none_or(|said| bundles.denied(domain) == Some(&said.list));
        if is_bundle && is_list {
            return Ok(());
        }
        Err(Refusal::Unused(self.trust.refused().join("; ").chars().take(LONGEST_CAUSE).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_certs::{Authority, Bundle, DenyList, SpiffeId, spiffe_bundle};
    use serde_json::json;
    use tempfile::TempDir;

    use super::super::encode;
    use super::*;

    const WEST: &str = "west.example";

    fn domain(name: &str) -> TrustDomain {
        TrustDomain::new(name).unwrap()
    }

    fn message(root: &Authority, sequence: u64, list: Option<&str>) -> Vec<u8> {
        let bundle = Bundle::new(root.trust_domain(), sequence, [root.certificate()]).unwrap();
        encode(root.trust_domain(), &bundle, list).unwrap()
    }

    /// The directory of a gateway of east that trusts nobody else yet.
    fn mirror(folder: &TempDir, east: &Authority) -> Mirror {
        let at = |name: &str| folder.path().join(name);
        let id = SpiffeId::gateway(east.trust_domain(), "east", "gw-1").unwrap();
        let identity = east.issue(&id, &[], Duration::from_secs(3600)).unwrap();
        identity.write_to(folder.path(), "tls").unwrap();
        for name in ["bundles", "deny"] {
            fs::create_dir(at(name)).unwrap();
        }
        let own = Bundle::new(east.trust_domain(), 1, [east.certificate()]).unwrap();
        fs::write(at("bundles/east.example.json"), spiffe_bundle::write(&own).unwrap()).unwrap();
        let files = TrustFiles {
            certificate: at("tls.crt"),
            key: at("tls.key"),
            bundles: at("bundles"),
            deny: Some(at("deny")),
            ..TrustFiles::default()
        };
        Mirror::new(Trust::load(&files).unwrap(), files)
    }

    #[test]
    fn mirror_trusts_whom_the_agent_trusts_and_no_longer() {
        let (folder, now) = (TempDir::new().unwrap(), UnixTime::now());
        let [east, west, anew] =
            ["east.example", WEST, WEST].map(|name| Authority::generate(domain(name)).unwrap());
        let mirror = mirror(&folder, &east);
        let list =
            json!({ "trust_domain": WEST, "sequence": 1, "identities": ["spiffe://west.example/ns/bad/*"] });
        let list = serde_json::from_value::<DenyList>(list).unwrap().sign(&west).unwrap();
        mirror.accept(WEST, &message(&west, 5, Some(&list)), now).unwrap();
        let trusted = || mirror.trust.current();
        let root = |authority: &Authority| {
            trusted()
                .bundles
                .get(&domain(WEST))
                .is_some_and(|bundle| bundle.roots() == [authority.certificate().clone()])
        };
        assert!(root(&west) && trusted().bundles.denied(&domain(WEST)).is_some());
        assert_eq!(mirror.domains(), [domain(WEST)]);
        assert!(matches!(
            mirror.accept(WEST, &message(&anew, 4, None), now),
            Err(Refusal::Older { found: 4, known: 5 })
        ));
        assert!(matches!(
            mirror.accept("x.example", &message(&west, 6, None), now),
            Err(Refusal::OtherName(_))
        ));
        assert!(matches!(mirror.accept(WEST, b"x", now), Err(Refusal::Malformed(_))));
        assert!(root(&west));
        // The file of before a restart counts as well.
        assert!(folder.path().join("bundles/west.example.json").exists());
        mirror.remove(WEST).unwrap();
        mirror.remove("east.example").unwrap();
        mirror.remove("not a domain").unwrap();
        assert!(trusted().bundles.get(&domain(WEST)).is_none() && mirror.domains().is_empty());
        assert!(trusted().bundles.get(&domain("east.example")).is_some(), "the own domain stays");
        assert!(!folder.path().join("deny/west.example.json").exists());
        mirror.accept(WEST, &message(&anew, 1, None), now).unwrap();
        assert!(root(&anew), "a domain that comes back begins anew");
    }
}
