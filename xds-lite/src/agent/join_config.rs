//! Builds the join context from an agent's file. The join protocol itself is `isthmus_trust::join`.

use std::path::Path;
use std::sync::Arc;

use isthmus_certs::Trust;
use isthmus_store::Store;

use isthmus_model::address::Target;
use isthmus_trust::join::{Context, Folders, Introduction, Party};

use super::Error;
use super::config::Settings;

/// What both sides of a join need from the file.
///
/// # Errors
/// A setting is missing, or of no use to other clusters.
pub fn context(settings: &Settings, trust: Trust, store: Arc<dyn Store>) -> Result<Context, Error> {
    let state = state(settings)?.to_owned();
    let address = settings.advertise.clone().ok_or_else(|| {
        Error::Join(
            "the other cluster must reach this agent: add `xds: { advertise: NAME:15012 }` to the file"
                .to_owned(),
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
    Context::new(trust, introduction, folders, store).map_err(|error| Error::Join(error.to_string()))
}

/// The state directory.
///
/// # Errors
/// The file names none.
pub fn state(settings: &Settings) -> Result<&Path, Error> {
    settings.state.as_deref().ok_or_else(|| {
        let why = "tokens and joined clusters need a state directory: add `state: DIRECTORY` to the file";
        Error::Join(why.to_owned())
    })
}

/// The join address that a token carries.
///
/// # Errors
/// The file has no join endpoint, or no address that other clusters reach.
pub fn meeting_place(settings: &Settings) -> Result<Target, Error> {
    let join = settings.join.as_ref();
    let join = join.ok_or_else(|| {
        Error::Join("this agent has no join endpoint: add `join: {}` to the file".to_owned())
    })?;
    let port = join.address.port();
    let at_port = match &settings.advertise {
        Some(Target::Address(address)) => Some(Target::Address((address.ip(), port).into())),
        Some(Target::Name { host, .. }) => Some(Target::Name { host: host.clone(), port }),
        None => None,
    };
    join.advertise.clone().or(at_port.filter(|_| port != 0)).ok_or_else(|| {
        Error::Join(
            "the other cluster must reach the join endpoint: add `join: { advertise: NAME:15011 }` to the file"
                .to_owned(),
        )
    })
}
