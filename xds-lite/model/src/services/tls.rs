//! How a gateway begins or ends TLS for a service: the identities of its endpoints, and its own door. Keys are not read
//! here.

use std::path::PathBuf;

use isthmus_certs::SpiffeId;
use serde::Serialize;

use crate::at::At;
use crate::problem::{Place, Report};

use super::raw;

/// TLS of a gateway's own for a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceTls {
    /// The identities of its endpoints; a server with another one gets no byte.
    pub identities: Vec<SpiffeId>,
    /// Set where the gateway ends TLS itself.
    #[serde(flatten)]
    pub terminate: Option<Terminate>,
}

/// The door of a service that does not speak TLS itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "tls", rename = "terminate")]
pub struct Terminate {
    /// The file with its certificate chain.
    pub certificate: PathBuf,
    /// The file with the key.
    pub key: PathBuf,
    /// Who may enter.
    pub access: Access,
}

/// The clients that may use a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Access {
    /// Identities that may.
    pub allow: Vec<SpiffeId>,
    /// Identities that may not.
    pub deny: Vec<SpiffeId>,
}

/// Resolves the keys of a service; `None` if none is set.
pub(super) fn resolve(
    report: &mut Report,
    place: Place<'_>,
    whole: &At<raw::Service>,
) -> Option<Box<ServiceTls>> {
    let raw = &whole.value;
    let identities = report.values(raw.identities.as_ref(), place.key("identities"));
    let terminate = if raw.tls == Some(raw::TlsMode::Terminate) {
        Some(terminate(report, place, whole)?)
    } else {
        let spot = |text: &Option<At<String>>| text.as_ref().map(|text| text.spot);
        let others = [
            ("certificate", spot(&raw.certificate)),
            ("key", spot(&raw.key)),
            ("access", raw.access.as_ref().map(|access| access.spot)),
        ];
        for (key, spot) in others.into_iter().filter_map(|(key, spot)| Some((key, spot?))) {
            let what = format_args!("{}: has no effect without 'tls: terminate'", place.key(key));
            report.add(spot, what, "add 'tls: terminate', or remove it");
        }
        None
    };
    (terminate.is_some() || !identities.is_empty()).then(|| Box::new(ServiceTls { identities, terminate }))
}

fn terminate(report: &mut Report, place: Place<'_>, whole: &At<raw::Service>) -> Option<Terminate> {
    let raw = &whole.value;
    let mut file = |key, text: &Option<At<String>>| {
        if text.is_none() {
            let what = format_args!("{place} has tls: terminate but no {key}");
            report.add(whole.spot, what, format_args!("add '{key}: FILE' with the service's own, PEM"));
        }
        text.as_ref().map(|text| PathBuf::from(&text.value))
    };
    let (certificate, key) = (file("certificate", &raw.certificate), file("key", &raw.key));
    let written = raw.access.as_ref().map(|access| &access.value);
    let place = place.key("access");
    let mut ids = |key, list: Option<&Vec<_>>| report.values(list, place.key(key));
    let access = Access {
        allow: ids("allow", written.and_then(|access| access.allow.as_ref())),
        deny: ids("deny", written.and_then(|access| access.deny.as_ref())),
    };
    Some(Terminate { certificate: certificate?, key: key?, access })
}
