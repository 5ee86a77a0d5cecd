//! Resolves `trust:`: files managed by another program, or a directory with a token for enrolment. No file is read
//! here.

use std::path::PathBuf;

use isthmus_certs::crl::StaleCrl;
use isthmus_certs::{SpiffeId, TrustFiles};
use isthmus_model::at::{At, Spot};
use isthmus_model::problem::{Place, Report};
use isthmus_model::values::Zero;
use isthmus_trust::join::{Guest, Token};

use crate::config::defaults;
use crate::config::raw;
use crate::config::settings::{FirstToken, ManagedTrust, Trusts};

type Text<'a> = Option<&'a At<String>>;

pub(crate) fn trust(report: &mut Report, file: &raw::File) -> Option<Trusts> {
    let At { value, spot } = file.trust.as_ref()?;
    let place = Place::Root.key("trust");
    let path = |path: Text<'_>| path.map(|path| PathBuf::from(&path.value));
    let deny = path(value.deny.as_ref());
    let crls = path(value.crls.as_ref());
    let stale_crl = match value.stale_crl {
        Some(raw::StaleCrl::Accept) => StaleCrl::Accept,
        Some(raw::StaleCrl::Refuse) | None => StaleCrl::Refuse,
    };
    let outage_budget = report.time(
        value.outage_budget.as_ref(),
        place.key("outage_budget"),
        Zero::Allowed,
        defaults::OUTAGE_BUDGET,
    );
    if let Some(directory) = &value.directory {
        let bundles = path(value.bundles.as_ref()).filter(|_| is_under_control_plane(file));
        check_directory(report, file, *spot);
        let token = token(report, place, value);
        let directory = PathBuf::from(&directory.value);
        let kept = ManagedTrust { directory, bundles, deny, crls, stale_crl, outage_budget, token: token? };
        return Some(Trusts::ManagedTrust(kept));
    }
    for (key, text) in [("token", &value.token), ("token_file", &value.token_file)] {
        if let Some(text) = text {
            let what = format_args!("{place} has a {key} but no directory for the certificate");
            report.add(text.spot, what, "add 'directory: /var/lib/isthmus/trust'");
            return None;
        }
    }
    let mut required = |key, written: Text<'_>| {
        if written.is_none() {
            report.add(*spot, format_args!("{place} has no {key}"), format_args!("add '{key}: …'"));
        }
        path(written)
    };
    let certificate = required("certificate", value.certificate.as_ref());
    let key = required("key", value.key.as_ref());
    let bundles = required("bundles", value.bundles.as_ref());
    let (certificate, key, bundles) = (certificate?, key?, bundles?);
    Some(Trusts::Files(TrustFiles { certificate, key, bundles, deny, crls, stale_crl, outage_budget }))
}

fn is_under_control_plane(file: &raw::File) -> bool {
    file.xds.as_ref().is_some_and(|xds| xds.value.control_plane.is_some())
}

/// Checks the other keys when `directory` is set.
fn check_directory(report: &mut Report, file: &raw::File, spot: Spot) {
    let place = Place::Root.key("trust");
    let Some(At { value, .. }) = &file.trust else { return };
    let mut others = vec![("certificate", &value.certificate), ("key", &value.key)];
    if is_under_control_plane(file) {
        others.push(("token", &value.token));
        for (key, written) in [("bundles", &value.bundles), ("token_file", &value.token_file)] {
            if written.is_none() {
                let what = format_args!("{place} has a directory but no {key} for the control_plane");
                report.add(spot, what, format_args!("add '{key}: …'"));
            }
        }
    } else {
        others.push(("bundles", &value.bundles));
    }
    for (key, written) in others.into_iter().filter_map(|(key, written)| Some((key, written.as_ref()?))) {
        let what = format_args!("{place} has both a directory and {key}");
        report.add(
            written.spot,
            what,
            "remove one of them; the gateway keeps its own files in the directory",
        );
    }
    if file.xds.is_none() {
        let what = format_args!(
            "{place} has a directory but there is no xds, so its certificate would not be renewed"
        );
        report.add(spot, what, "add 'xds: { agents: [ADDRESS:15012] }'");
    }
}

fn token(report: &mut Report, place: Place<'_>, trust: &raw::Trust) -> Option<FirstToken> {
    match (&trust.token, &trust.token_file) {
        (None, None) => Some(FirstToken::None),
        (None, Some(file)) => Some(FirstToken::File(PathBuf::from(&file.value))),
        (Some(text), Some(_)) => {
            report.add(
                text.spot,
                format_args!("{place} has both a token and a token_file"),
                "remove one of them",
            );
            None
        }
        (Some(text), None) => match read(&text.value) {
            Ok((token, identity)) => Some(FirstToken::Token(Box::new(token), identity)),
            Err(why) => {
                let remedy = "write the token that `isthmus-agent token create --gateway NAME` prints";
                report.add(text.spot, format_args!("{}: {why}", place.key("token")), remedy);
                None
            }
        },
    }
}

/// Parses a token and the gateway it is for. The error does not repeat the token.
pub(crate) fn read(text: &str) -> Result<(Token, SpiffeId), String> {
    let token: Token = text.parse().map_err(|error| format!("{error}"))?;
    let guest = token.guest.clone();
    match &guest {
        Guest::Identity { identity } if gateway_of(identity).is_some() => Ok((token, identity.clone())),
        guest => Err(format!("{}, not for a gateway", guest.purpose())),
    }
}

/// Returns the cluster of a gateway identity.
pub(crate) fn gateway_of(id: &SpiffeId) -> Option<&str> {
    let mut segments = id.path().strip_prefix("/isthmus/")?.split('/');
    let (cluster, role, _name) = (segments.next()?, segments.next()?, segments.next()?);
    (role == "gateway" && segments.next().is_none()).then_some(cluster)
}
