//! How a gateway begins or ends TLS for a service, and who may connect: the identities of its endpoints, its own
//! certificate, and its rules. Certificates and keys are not read here.

use std::path::PathBuf;
use std::sync::Arc;

use isthmus_certs::SpiffeId;
use serde::Serialize;

use crate::access::{self, Access, AccessRules};
use crate::at::At;
use crate::problem::{Place, Report};

use super::{TlsMode, defaults, raw};

/// TLS of a gateway's own for a service, and the rules for its callers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServiceTls {
    /// Who speaks TLS with the client.
    #[serde(rename = "tls")]
    pub mode: TlsMode,
    /// The identities of its endpoints; a server with another one gets no byte.
    pub identities: Vec<SpiffeId>,
    /// Its certificate, where the gateway ends its TLS; `None` where the agent issues it.
    #[serde(flatten)]
    pub files: Option<CertificateFiles>,
    /// The rules for its callers; `None` where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<ServiceAccess>,
}

/// The rules for the callers of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ServiceAccess {
    /// Its own, as a file has them: one scope of several.
    Written(AccessRules),
    /// Those of all scopes, as a slice has them.
    Combined(Arc<Access>),
}

impl ServiceTls {
    /// Takes over what it does not set itself.
    pub fn keep_from(&mut self, other: &ServiceTls) {
        if other.mode == TlsMode::Terminate {
            self.mode = other.mode;
        }
        if self.identities.is_empty() {
            self.identities.clone_from(&other.identities);
        }
        self.files = self.files.take().or_else(|| other.files.clone());
        self.access = self.access.take().or_else(|| other.access.clone());
    }
}

/// The files of a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct CertificateFiles {
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl CertificateFiles {
    /// The two files as written; `None` where neither is.
    ///
    /// # Errors
    /// The key that is missing beside the other.
    pub fn resolve(
        certificate: Option<&At<String>>,
        key: Option<&At<String>>,
    ) -> Result<Option<CertificateFiles>, &'static str> {
        let path = |text: &At<String>| PathBuf::from(&text.value);
        match (certificate, key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => {
                Ok(Some(CertificateFiles { certificate: path(certificate), key: path(key) }))
            }
            (None, Some(_)) => Err("certificate"),
            (Some(_), None) => Err("key"),
        }
    }
}

/// Resolves the keys of a service; `None` if none is set.
pub(super) fn resolve(
    report: &mut Report,
    place: Place<'_>,
    whole: &At<raw::Service>,
) -> Option<Box<ServiceTls>> {
    let raw = &whole.value;
    let mode = raw.tls.as_ref().map(|tls| tls.value).unwrap_or_default();
    let tls = ServiceTls {
        mode,
        identities: identities(report, place, raw),
        files: match mode {
            TlsMode::Terminate => files(report, place, whole),
            TlsMode::Passthrough => {
                without_door(report, place, raw);
                None
            }
        },
        access: access(report, place, raw, mode).map(ServiceAccess::Written),
    };
    (tls != ServiceTls::default()).then(|| Box::new(tls))
}

fn identities(report: &mut Report, place: Place<'_>, raw: &raw::Service) -> Vec<SpiffeId> {
    let place = place.key("identities");
    if let Some(first) = raw.identities.as_ref().and_then(|list| list.get(defaults::MAX_IDENTITIES)) {
        let what = format_args!("{place}: has more than {} values", defaults::MAX_IDENTITIES);
        report.add(first.spot, what, "remove some: the endpoints of a service share few identities");
        return Vec::new();
    }
    report.values(raw.identities.as_ref(), place)
}

fn files(report: &mut Report, place: Place<'_>, whole: &At<raw::Service>) -> Option<CertificateFiles> {
    let raw = &whole.value;
    let is_named = raw.identities.as_ref().is_some_and(|list| !list.is_empty());
    match CertificateFiles::resolve(raw.certificate.as_ref(), raw.key.as_ref()) {
        Ok(Some(files)) => Some(files),
        Ok(None) if is_named => None,
        Ok(None) => {
            let what = format_args!("{place} has tls: terminate but no certificate");
            let remedy = "add 'identities: [spiffe://…]' for a certificate of the agent, or 'certificate: FILE' and 'key: FILE'";
            report.add(whole.spot, what, remedy);
            None
        }
        Err(missing) => {
            let what = format_args!("{place} has tls: terminate but no {missing}");
            report.add(whole.spot, what, format_args!("add '{missing}: FILE' with the service's own, PEM"));
            None
        }
    }
}

fn without_door(report: &mut Report, place: Place<'_>, raw: &raw::Service) {
    for (key, file) in [("certificate", &raw.certificate), ("key", &raw.key)] {
        let Some(file) = file else { continue };
        let what = format_args!("{}: has no effect without 'tls: terminate'", place.key(key));
        report.add(file.spot, what, "add 'tls: terminate', or remove it");
    }
}

fn access(report: &mut Report, place: Place<'_>, raw: &raw::Service, mode: TlsMode) -> Option<AccessRules> {
    let written = raw.access.as_deref()?;
    let place = place.key("access");
    let rules = access::rules(report, place, &written.value);
    if rules.asks_for_identity() && mode == TlsMode::Passthrough && !rules.advisory {
        report.add(
            written.spot,
            format_args!("{place}: has rules about identities, which nobody sees where TLS passes through"),
            "add 'tls: terminate' to the service, or 'advisory: true' here for gateways that originate TLS alone",
        );
    }
    Some(rules)
}
