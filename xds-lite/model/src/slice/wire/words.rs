//! Encodes and decodes single values of a slice: deadlines, modes, policies. Unknown values are refused.

use std::time::Duration;

use super::{Result, text, wrong};
use crate::locality::Locality;
use crate::services::{Balance, ServiceTimeouts};
use crate::slice::Tls;
use isthmus_proto::isthmus::v1 as pb;

pub(super) fn timeouts_message(timeouts: &ServiceTimeouts) -> pb::Timeouts {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let or_off = |time: Option<Duration>| time.map_or(0, millis);
    pb::Timeouts {
        connect: millis(timeouts.connect),
        connect_total: millis(timeouts.connect_total),
        idle: or_off(timeouts.idle),
        half_closed: or_off(timeouts.half_closed),
        first_byte: or_off(timeouts.first_byte),
        max_duration: or_off(timeouts.max_duration),
    }
}

pub(super) fn timeouts(message: Option<pb::Timeouts>) -> Result<ServiceTimeouts> {
    let Some(message) = message else { return wrong("timeouts", "must be set") };
    let or_off = |millis: u64| Some(Duration::from_millis(millis)).filter(|time| !time.is_zero());
    let above_zero = |millis| or_off(millis).map_or_else(|| wrong("timeouts", "must be above zero"), Ok);
    Ok(ServiceTimeouts {
        connect: above_zero(message.connect)?,
        connect_total: above_zero(message.connect_total)?,
        idle: or_off(message.idle),
        half_closed: or_off(message.half_closed),
        first_byte: or_off(message.first_byte),
        max_duration: or_off(message.max_duration),
    })
}

pub(super) fn balance_number(balance: Balance) -> i32 {
    match balance {
        Balance::RoundRobin => pb::Balance::RoundRobin,
        Balance::LeastConnections => pb::Balance::LeastConnections,
        Balance::Random => pb::Balance::Random,
        Balance::SourceHash => pb::Balance::SourceHash,
    }
    .into()
}

pub(super) fn balance(number: i32) -> Result<Balance> {
    match pb::Balance::try_from(number) {
        Ok(pb::Balance::RoundRobin) => Ok(Balance::RoundRobin),
        Ok(pb::Balance::LeastConnections) => Ok(Balance::LeastConnections),
        Ok(pb::Balance::Random) => Ok(Balance::Random),
        Ok(pb::Balance::SourceHash) => Ok(Balance::SourceHash),
        Ok(pb::Balance::Unspecified) | Err(_) => wrong("balance", "has an unknown value"),
    }
}

pub(super) fn tls_number(tls: Option<Tls>) -> i32 {
    match tls {
        None => pb::Tls::Unspecified,
        Some(Tls::Mutual) => pb::Tls::Mutual,
        Some(Tls::Unauthenticated) => pb::Tls::Unauthenticated,
        Some(Tls::Terminated) => pb::Tls::Terminated,
    }
    .into()
}

pub(super) fn tls(number: i32) -> Result<Option<Tls>> {
    match pb::Tls::try_from(number) {
        Ok(pb::Tls::Unspecified) => Ok(None),
        Ok(pb::Tls::Mutual) => Ok(Some(Tls::Mutual)),
        Ok(pb::Tls::Unauthenticated) => Ok(Some(Tls::Unauthenticated)),
        Ok(pb::Tls::Terminated) => Ok(Some(Tls::Terminated)),
        Err(_) => wrong("tls", "has an unknown value"),
    }
}

pub(super) fn locality_message(locality: &Locality) -> Option<pb::Locality> {
    let Locality { region, zone, sub_zone } = locality.clone();
    (!locality.is_empty()).then_some(pb::Locality { region, zone, sub_zone })
}

pub(super) fn locality(message: Option<pb::Locality>) -> Result<Locality> {
    let message = message.unwrap_or_default();
    Ok(Locality {
        region: text("locality", message.region)?,
        zone: text("locality", message.zone)?,
        sub_zone: text("locality", message.sub_zone)?,
    })
}
