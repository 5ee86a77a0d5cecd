//! What an agent's file says to those who join by a token. Not the joining itself: that is `join`.

use isthmus_certs::Trust;

use isthmus_model::address::Target;
use isthmus_trust::join::{Context, Folders, Introduction, Party};

use super::Error;
use super::config::Settings;

/// What both sides of a meeting need of the file.
///
/// # Errors
/// What is missing in the file, or of no use to others.
pub fn context(settings: &Settings, trust: Trust) -> Result<Context, Error> {
    let state = settings.state.clone();
    let state = state
        .ok_or_else(|| Error::Join("who joins is kept: add `state: DIRECTORY` to the file".to_owned()))?;
    let address = settings.advertise.clone().ok_or_else(|| {
        Error::Join(
            "others must find this agent: add `xds: { advertise: NAME:15012 }` to the file".to_owned(),
        )
    })?;
    let trust_domain = trust.current().identity.id().trust_domain().clone();
    let introduction = Introduction {
        party: Party { cluster: settings.cluster.clone(), trust_domain },
        network: settings.network.clone(),
        address,
        gateways: settings.gateways.iter().flat_map(|gateway| gateway.addresses.iter().cloned()).collect(),
    };
    let folders =
        Folders { state, bundles: settings.trust.bundles.clone(), deny: settings.trust.deny.clone() };
    Context::new(trust, introduction, folders).map_err(|error| Error::Join(error.to_string()))
}

/// Where a token says to come.
///
/// # Errors
/// The file does not say.
pub fn meeting_place(settings: &Settings) -> Result<Target, Error> {
    let join = settings.join.as_ref();
    let join =
        join.ok_or_else(|| Error::Join("nobody can join here: add `join: {}` to the file".to_owned()))?;
    let port = join.address.port();
    let at_port = match &settings.advertise {
        Some(Target::Address(address)) => Some(Target::Address((address.ip(), port).into())),
        Some(Target::Name { host, .. }) => Some(Target::Name { host: host.clone(), port }),
        None => None,
    };
    join.advertise.clone().or(at_port.filter(|_| port != 0)).ok_or_else(|| {
        Error::Join(
            "others must find the place: add `join: { advertise: NAME:15011 }` to the file".to_owned(),
        )
    })
}
