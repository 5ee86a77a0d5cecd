//! Groups endpoints by part of a split and by priority, with a weighted schedule for each group. Health is not considered
//! here.

use super::ready_counts::gcd;
use super::{Endpoint, Service};

/// Endpoints of one part and priority.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Group {
    /// First index among the service's endpoints, and number of endpoints.
    start: u32,
    count: u32,
    /// Indexes in the group, repeated by weight and evenly spread; `None` if all weights are equal.
    pub(super) schedule: Option<Box<[u32]>>,
}

impl Group {
    /// The group of a service without endpoints.
    pub(super) const NOBODY: Group = Group { start: 0, count: 0, schedule: None };

    /// Groups endpoints that are sorted by part and priority.
    pub(super) fn by_place(endpoints: &[Endpoint]) -> Vec<Group> {
        let mut start = 0;
        let alike = endpoints.chunk_by(|one, other| one.place() == other.place());
        let group = |endpoints: &[Endpoint]| {
            let count = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
            let group = Group { start, count, schedule: schedule(endpoints) };
            start += count;
            group
        };
        alike.map(group).collect()
    }

    /// Returns its first endpoint.
    pub(super) fn first<'e>(&self, endpoints: &'e [Endpoint]) -> Option<&'e Endpoint> {
        endpoints.get(self.start as usize)
    }

    /// Number of turns in a round.
    pub(crate) fn turns(&self) -> usize {
        self.schedule.as_ref().map_or(self.count as usize, |schedule| schedule.len())
    }

    pub(crate) fn endpoints<'s>(&self, service: &'s Service) -> &'s [Endpoint] {
        let start = self.start as usize;
        service.endpoints.get(start..start + self.count as usize).unwrap_or_default()
    }

    /// Returns the endpoint of a turn.
    pub(crate) fn at<'s>(&self, service: &'s Service, turn: usize) -> Option<&'s Endpoint> {
        let index = match &self.schedule {
            Some(schedule) => *schedule.get(turn)? as usize,
            None => turn,
        };
        self.endpoints(service).get(index)
    }
}

/// Maximum turns in one schedule; weights are scaled down to it.
const MAX_TURNS: u64 = 4096;

fn schedule(endpoints: &[Endpoint]) -> Option<Box<[u32]>> {
    let first = endpoints.first()?.weight;
    if first > 0 && endpoints.iter().all(|endpoint| endpoint.weight == first) {
        return None;
    }
    let weights = || endpoints.iter().map(|endpoint| u64::from(endpoint.weight));
    let divisor = weights().fold(0, gcd).max(1);
    let total: u64 = weights().sum::<u64>() / divisor;
    let scale = |weight: u64| match weight {
        0 => 0,
        weight if total <= MAX_TURNS => weight / divisor,
        weight => (weight / divisor * MAX_TURNS / total).max(1),
    };
    // Turn k of n stands at (k + ½)/n of the round: sorting them spreads each endpoint's turns evenly.
    let mut turns: Vec<(f64, u32)> = Vec::new();
    for (index, weight) in (0_u32..).zip(weights()) {
        let count = u32::try_from(scale(weight)).unwrap_or(u32::MAX);
        turns.extend((0..count).map(|turn| ((f64::from(turn) + 0.5) / f64::from(count), index)));
    }
    turns.sort_by(|a, b| a.0.total_cmp(&b.0));
    Some(turns.into_iter().map(|(_, index)| index).collect())
}
