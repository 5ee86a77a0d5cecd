//! Encodes and decodes how the health of endpoints is learned. Values outside the bounds come to the nearest bound.

use std::time::Duration;

use super::{Result, port_number, wrong};
use crate::services::health::{self, HealthCheck, Probe};
use isthmus_proto::isthmus::v1 as pb;

pub(super) fn to_message(check: &HealthCheck) -> pb::HealthCheck {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let unless_default = |time, default| if time == default { 0 } else { millis(time) };
    let count = |count: u8, default| if count == default { 0 } else { count.into() };
    let (probe, port, path) = match &check.probe {
        None | Some(Probe::Off) => (pb::Probe::Unspecified, None, ""),
        Some(Probe::Tls) => (pb::Probe::Tls, None, ""),
        Some(Probe::Http { port, path }) => (pb::Probe::Http, *port, &**path),
        Some(Probe::Tcp { port }) => (pb::Probe::Tcp, *port, ""),
    };
    pb::HealthCheck {
        probe: probe.into(),
        port: port.unwrap_or_default().into(),
        path: path.to_owned(),
        interval: unless_default(check.interval, health::INTERVAL),
        timeout: unless_default(check.timeout, health::TIMEOUT),
        down_after: count(check.down_after, health::DOWN_AFTER),
        up_after: count(check.up_after, health::UP_AFTER),
        slow_start: check.slow_start.map_or(0, millis),
        close_on_unhealthy: check.close_on_unhealthy.map_or(0, millis),
    }
}

pub(super) fn from_message(message: pb::HealthCheck) -> Result<HealthCheck> {
    let above_zero = |millis: u64| Some(Duration::from_millis(millis)).filter(|time| !time.is_zero());
    let count = |count: u32, default| match count {
        0 => default,
        count => u8::try_from(count).unwrap_or(u8::MAX),
    };
    let port = || Some(message.port).filter(|port| *port > 0).map(port_number).transpose();
    let probe = match pb::Probe::try_from(message.probe) {
        Ok(pb::Probe::Unspecified) => Probe::Off,
        Ok(pb::Probe::Tls) => Probe::Tls,
        Ok(pb::Probe::Http) if health::is_path(&message.path) => {
            Probe::Http { port: port()?, path: message.path.into() }
        }
        Ok(pb::Probe::Http) => return wrong("health", "has an invalid path"),
        Ok(pb::Probe::Tcp) => Probe::Tcp { port: port()? },
        Err(_) => return wrong("health", "has an unknown probe"),
    };
    let check = HealthCheck {
        probe: Some(probe),
        interval: above_zero(message.interval).unwrap_or(health::INTERVAL),
        timeout: above_zero(message.timeout).unwrap_or(health::TIMEOUT),
        down_after: count(message.down_after, health::DOWN_AFTER),
        up_after: count(message.up_after, health::UP_AFTER),
        slow_start: above_zero(message.slow_start),
        close_on_unhealthy: above_zero(message.close_on_unhealthy),
    };
    Ok(check.within_bounds())
}
