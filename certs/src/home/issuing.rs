//! Issues intermediates, in the layouts of Istio and cert-manager, and the leaves that a directory renews.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::{Home, HomeError, LeafRecord, check_name, read, renew_at};
use crate::authority::{Authority, Leaf};
use crate::deny::DenyList;
use crate::facts::{Facts, is_signed_by};
use crate::files::{self, Entry, WriteError};
use crate::identity::Identity;
use crate::issuer::Csr;
use crate::pem;

const LEAF_FILES: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// How files were brought up to date.
pub(super) enum Seen {
    /// A new certificate and key.
    Renewed,
    /// The same certificate and key, with new roots beside them.
    Roots,
}

impl Home {
    /// Makes the intermediate of a cluster unless there is one. Returns whether it is new.
    pub fn add_cluster(&mut self, cluster: &str) -> Result<bool, HomeError> {
        check_name(cluster)?;
        if self.state.clusters.contains(cluster) {
            return Ok(false);
        }
        self.make_intermediate(cluster)?;
        self.state.clusters.insert(cluster.to_owned());
        self.save()?;
        Ok(true)
    }

    /// Issues a leaf with a new key, and renews it from now on. Files not written here are never replaced.
    pub fn keep(&mut self, name: &str, kept: LeafRecord) -> Result<(), HomeError> {
        check_name(name)?;
        let folder = self.folder_of(name, &kept);
        let elsewhere =
            |(other, kept): (&String, &LeafRecord)| other != name && self.folder_of(other, kept) == folder;
        if self.state.leaves.iter().any(elsewhere) {
            return Err(WriteError::Occupied(folder).into());
        }
        if self.state.leaves.get(name).is_none_or(|known| self.folder_of(name, known) != folder) {
            files::check_unoccupied(&folder, &LEAF_FILES)?;
        }
        self.make_leaf(name, &kept, kept.leaf.lifetime)?;
        self.state.leaves.insert(name.to_owned(), kept);
        self.save()
    }

    /// Stops renewing a leaf; its files stay. Returns whether there was such a leaf.
    pub fn forget(&mut self, name: &str) -> Result<bool, HomeError> {
        let was_kept = self.state.leaves.remove(name).is_some();
        self.save()?;
        Ok(was_kept)
    }

    /// Signs a leaf for the key of a request and returns the chain as PEM. It is not renewed here.
    pub fn certify(&mut self, csr: &Csr, leaf: &Leaf, cluster: Option<&str>) -> Result<String, HomeError> {
        let chain = self.signer(cluster)?.certify(csr.key(), leaf)?;
        self.remember(leaf)?;
        Ok(pem::encode(&chain))
    }

    /// The only cluster, whose intermediate signs by default; none if there is no cluster.
    pub fn only_cluster(&self) -> Result<Option<String>, HomeError> {
        let clusters: Vec<_> = self.state.clusters.iter().cloned().collect();
        match clusters.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            _ => Err(HomeError::WhichCluster(clusters)),
        }
    }

    /// The directory of a leaf.
    pub fn folder_of(&self, name: &str, kept: &LeafRecord) -> PathBuf {
        kept.folder.clone().unwrap_or_else(|| self.folder.join("leaves").join(name))
    }

    pub(super) fn signer(&self, cluster: Option<&str>) -> Result<Authority, HomeError> {
        match cluster {
            Some(cluster) => self.intermediate(cluster),
            None => self.root(self.state.root),
        }
    }

    /// Records, before a leaf is handed out, how long its root must stay trusted.
    fn remember(&mut self, leaf: &Leaf) -> Result<(), HomeError> {
        let until = OffsetDateTime::now_utc() + leaf.lifetime;
        if until > self.state.issued_until {
            self.state.issued_until = until;
            self.save()?;
        }
        Ok(())
    }

    pub(super) fn make_intermediate(&self, cluster: &str) -> Result<(), HomeError> {
        let root = self.root(self.state.root)?;
        // Not past the root: its roll-over must not wait for an intermediate.
        let lifetime = self.state.intermediate_lifetime.min(root.longest());
        let made = root.intermediate(cluster, self.state.key, lifetime)?;
        let key = made.key_pem().unwrap_or_default();
        self.publish_intermediate(cluster, &made.certificate_pem(), key)
    }

    fn publish_intermediate(&self, cluster: &str, certificate: &str, key: &str) -> Result<(), HomeError> {
        let roots = self.trusted_roots()?;
        let signing = pem::encode(&[self.root_certificate(self.state.root)?]);
        let entries = [
            Entry::public("ca-cert.pem", certificate),
            Entry::secret("ca-key.pem", key),
            Entry::public("root-cert.pem", &roots),
            Entry::public("cert-chain.pem", certificate.to_owned() + &signing),
            Entry::public("tls.crt", certificate),
            Entry::secret("tls.key", key),
            Entry::public("ca.crt", roots),
        ];
        Ok(files::publish(&self.cluster_folder(cluster), &entries)?)
    }

    fn make_leaf(&mut self, name: &str, kept: &LeafRecord, lifetime: Duration) -> Result<(), HomeError> {
        let signer = self.signer(kept.cluster.as_deref())?;
        let leaf = Leaf { lifetime, ..kept.leaf.clone() };
        let identity = signer.issue_with(&leaf, kept.key)?;
        self.remember(&leaf)?;
        self.publish_leaf(&self.folder_of(name, kept), identity.chain_pem(), identity.key_pem())
    }

    fn publish_leaf(&self, folder: &Path, chain: &str, key: &str) -> Result<(), HomeError> {
        let entries = [
            Entry::public("tls.crt", chain),
            Entry::secret("tls.key", key),
            Entry::public("ca.crt", self.trusted_roots()?),
        ];
        Ok(files::publish(folder, &entries)?)
    }

    /// Brings the files of a cluster up to date. Returns what was done.
    pub(super) fn see_to_cluster(
        &self,
        cluster: &str,
        now: OffsetDateTime,
    ) -> Result<Option<Seen>, HomeError> {
        let folder = self.cluster_folder(cluster);
        files::tidy(&folder)?;
        let root = self.root_certificate(self.state.root)?;
        let standing = self.intermediate(cluster).ok();
        let denied = self.denied();
        let standing = standing.filter(|standing| is_good(standing.certificate(), &denied, now));
        match standing.filter(|standing| is_signed_by(standing.certificate(), &root)) {
            None => {
                self.make_intermediate(cluster)?;
                Ok(Some(Seen::Renewed))
            }
            Some(standing) if read(&folder.join("ca.crt")).ok() != Some(self.trusted_roots()?) => {
                let key = standing.key_pem().unwrap_or_default();
                self.publish_intermediate(cluster, &standing.certificate_pem(), key)?;
                Ok(Some(Seen::Roots))
            }
            Some(_) => Ok(None),
        }
    }

    /// Brings the files of a leaf up to date. Returns what was done.
    pub(super) fn see_to_leaf(&mut self, name: &str, now: OffsetDateTime) -> Result<Option<Seen>, HomeError> {
        let Some(kept) = self.state.leaves.get(name).cloned() else { return Ok(None) };
        let folder = self.folder_of(name, &kept);
        files::tidy(&folder)?;
        let files = LEAF_FILES.map(|file| read(&folder.join(file)).ok());
        let [Some(chain), Some(key), Some(roots)] = files else { return self.renew(name, &kept) };
        let denied = self.denied();
        let signer = self.signer(kept.cluster.as_deref()).ok();
        let root = self.root_certificate(self.state.root)?;
        // Until the right root can sign, the wrong one must not sign on every pass.
        let is_of_root = |leaf: &Identity| {
            let is_signed = |last: &CertificateDer<'_>| is_signed_by(last, &root);
            let could_be = signer.as_ref().is_some_and(|signer| signer.above().last().is_none_or(&is_signed));
            !could_be || leaf.chain().last().is_some_and(is_signed)
        };
        let standing = Identity::from_pem(&chain, &key).ok().filter(|leaf| {
            let chain_is_good = leaf.chain().iter().enumerate().all(|(place, one)| match place {
                0 => is_good(one, &denied, now),
                _ => Facts::read(one).is_ok_and(|facts| !denied.has_serial(&facts.serial)),
            });
            leaf.id() == &kept.leaf.id && chain_is_good
        });
        match standing.filter(is_of_root) {
            None => self.renew(name, &kept),
            Some(_) if roots != self.trusted_roots()? => {
                self.publish_leaf(&folder, &chain, &key)?;
                Ok(Some(Seen::Roots))
            }
            Some(_) => Ok(None),
        }
    }

    /// The own deny-list, or an empty one if it is damaged: that is reported elsewhere and must not stop renewals.
    fn denied(&self) -> DenyList {
        let domain = &self.state.trust_domain;
        self.deny_list(domain).unwrap_or_else(|_| DenyList::new(domain.clone()))
    }

    fn renew(&mut self, name: &str, kept: &LeafRecord) -> Result<Option<Seen>, HomeError> {
        // Near the end of the signer, a shorter lifetime than requested rather than no leaf.
        let most = self.signer(kept.cluster.as_deref())?.longest();
        self.make_leaf(name, kept, kept.leaf.lifetime.min(most))?;
        Ok(Some(Seen::Renewed))
    }
}

/// Valid now, not due for renewal and not denied.
fn is_good(certificate: &CertificateDer<'_>, denied: &DenyList, now: OffsetDateTime) -> bool {
    Facts::read(certificate).is_ok_and(|facts| {
        facts.not_before <= now && now < renew_at(&facts) && !denied.has_serial(&facts.serial)
    })
}
