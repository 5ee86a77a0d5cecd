//! Resolves `limits:` of an agent's file.

use isthmus_grpc::budget::{Amounts, Limits};
use isthmus_model::at::At;
use isthmus_model::problem::{Place, Report};
use isthmus_model::units::{Count, Size};
use isthmus_model::values::Range;
use isthmus_registry::imports::SliceLimits;

use super::raw;

/// Each takes a file descriptor.
const CONNECTIONS: Range = (1, 65_536);
const STREAMS: Range = (1, 65_536);
/// The minimum admits a first request that names some services.
const REQUESTS: Range = (1 << 20, 4 << 30);
const NAMES: Range = (2, 100_000_000);
const SLICES: Range = (1, 10_000_000);
const BYTES: Range = (1 << 10, 64 << 30);
/// Memory of a subscribed name, with the bytes of a long one.
const NAME: u64 = 168;

/// Resource limits of the agent's clients and peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentLimits {
    /// Limits of connections, requests and names.
    pub clients: Limits,
    /// Limits of a peer's slices.
    pub slices: SliceLimits,
}

pub(super) fn limits(report: &mut Report, raw: Option<raw::Limits>) -> AgentLimits {
    let raw::Limits { gateways, peers } = raw.unwrap_or_default();
    let (gateways, peers) = (gateways.unwrap_or_default(), peers.unwrap_or_default());
    let (place, mut limits) = (Place::Root.key("limits"), AgentLimits::default());
    let of_gateways = [gateways.connections, gateways.streams, gateways.names];
    amounts(
        report,
        place.key("gateways"),
        &of_gateways,
        gateways.requests.as_ref(),
        &mut limits.clients.gateway,
    );
    let of_peers = [peers.connections, peers.streams, peers.names];
    let place = place.key("peers");
    amounts(report, place, &of_peers, peers.requests.as_ref(), &mut limits.clients.peer);
    let SliceLimits { slices, bytes } = &mut limits.slices;
    count(report, peers.slices.as_ref(), place.key("slices"), SLICES, slices);
    size(report, peers.bytes.as_ref(), place.key("bytes"), BYTES, bytes);
    limits
}

fn amounts(
    report: &mut Report,
    place: Place<'_>,
    counts: &[Option<At<Count>>; 3],
    requests: Option<&At<Size>>,
    amounts: &mut Amounts,
) {
    let [connections, streams, names] = counts;
    count(report, connections.as_ref(), place.key("connections"), CONNECTIONS, &mut amounts.connections);
    count(report, streams.as_ref(), place.key("streams"), STREAMS, &mut amounts.streams);
    size(report, requests, place.key("requests"), REQUESTS, &mut amounts.request_bytes);
    if names.is_some() {
        count(report, names.as_ref(), place.key("names"), NAMES, &mut amounts.names);
        amounts.name_bytes = amounts.names.saturating_mul(NAME);
    }
}

fn count(report: &mut Report, raw: Option<&At<Count>>, place: Place<'_>, range: Range, value: &mut u64) {
    *value = report.count(raw, place, range, u32::try_from(*value).unwrap_or(u32::MAX)).into();
}

fn size(report: &mut Report, raw: Option<&At<Size>>, place: Place<'_>, range: Range, value: &mut u64) {
    *value = report.size(raw, place, range, *value) as u64;
}
