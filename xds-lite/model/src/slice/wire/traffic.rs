//! Encodes and decodes the policy of a port's traffic, and labels. A policy that no file could have is refused.

use std::sync::Arc;

use isthmus_proto::isthmus::v1 as pb;

use super::{Result, bounded, each, within, wrong};
use crate::cluster::Cluster;
use crate::labels::{Labels, MAX_LABELS};
use crate::traffic::{
    ABORT_IF, Affinity, Breakers, LocalityScope, MAX_PARTS, OVERPROVISIONING, PANIC, SplitPart, SplitTo,
    Traffic, WEIGHTS,
};
use crate::values::Range;

impl Traffic {
    pub(super) fn to_message(&self) -> pb::Traffic {
        let Breakers { max_pending, max_connections_per_endpoint } = self.breakers;
        pb::Traffic {
            affinity: match self.affinity {
                Affinity::Local => pb::Affinity::Local,
                Affinity::None => pb::Affinity::None,
                Affinity::Remote => pb::Affinity::Remote,
            }
            .into(),
            locality: match self.locality {
                LocalityScope::Zone => pb::LocalityScope::Zone,
                LocalityScope::Region => pb::LocalityScope::Region,
                LocalityScope::Off => pb::LocalityScope::Off,
            }
            .into(),
            overprovisioning: self.overprovisioning.into(),
            panic: self.panic.map_or(0, u32::from),
            split: self.split.iter().map(SplitPart::to_message).collect(),
            sticky: self.sticky,
            max_pending: max_pending.unwrap_or(0),
            max_connections_per_endpoint: max_connections_per_endpoint.unwrap_or(0),
        }
    }

    /// The policy of a message; services without settings of their own share one.
    pub(super) fn shared(message: pb::Traffic) -> Result<Arc<Traffic>> {
        let traffic = within(|| "traffic".to_owned(), Traffic::from_message(message))?;
        let unwritten = Traffic::unwritten();
        Ok(if traffic == *unwritten { unwritten } else { Arc::new(traffic) })
    }

    fn from_message(message: pb::Traffic) -> Result<Traffic> {
        bounded("split", message.split.len(), MAX_PARTS)?;
        let split = each("split", message.split, SplitPart::from_message)?;
        if !split.is_empty() && split.iter().all(|part| part.weight == 0) {
            return wrong("split", "must have a weight above 0");
        }
        let limit = |most: u32| Some(most).filter(|most| *most > 0);
        Ok(Traffic {
            affinity: match pb::Affinity::try_from(message.affinity) {
                Ok(pb::Affinity::Local) => Affinity::Local,
                Ok(pb::Affinity::None) => Affinity::None,
                Ok(pb::Affinity::Remote) => Affinity::Remote,
                Ok(pb::Affinity::Unspecified) | Err(_) => return wrong("affinity", "has an unknown value"),
            },
            locality: match pb::LocalityScope::try_from(message.locality) {
                Ok(pb::LocalityScope::Zone) => LocalityScope::Zone,
                Ok(pb::LocalityScope::Region) => LocalityScope::Region,
                Ok(pb::LocalityScope::Off) => LocalityScope::Off,
                Ok(pb::LocalityScope::Unspecified) | Err(_) => {
                    return wrong("locality", "has an unknown value");
                }
            },
            overprovisioning: number("overprovisioning", message.overprovisioning, OVERPROVISIONING)?,
            panic: limit(message.panic).map(|share| number("panic", share, PANIC)).transpose()?,
            split,
            sticky: message.sticky,
            breakers: Breakers {
                max_pending: limit(message.max_pending),
                max_connections_per_endpoint: limit(message.max_connections_per_endpoint),
            },
        })
    }
}

impl SplitPart {
    fn to_message(&self) -> pb::SplitPart {
        use pb::split_part::To;
        pb::SplitPart {
            to: Some(match &self.to {
                SplitTo::Cluster(cluster) => To::Cluster(cluster.to_string()),
                SplitTo::Labels(labels) => To::Labels(pb::Labels { labels: labels_message(labels) }),
            }),
            weight: self.weight.into(),
            abort_if: self.abort_if.map(u32::from),
        }
    }

    fn from_message(message: pb::SplitPart) -> Result<SplitPart> {
        use pb::split_part::To;
        Ok(SplitPart {
            to: match message.to {
                Some(To::Cluster(name)) => {
                    SplitTo::Cluster(name.parse::<Cluster>().or_else(|error| wrong("cluster", error))?)
                }
                Some(To::Labels(wanted)) if !wanted.labels.is_empty() => {
                    SplitTo::Labels(labels(&wanted.labels)?)
                }
                Some(To::Labels(_)) | None => return wrong("to", "must be set"),
            },
            weight: number("weight", message.weight, WEIGHTS)?,
            abort_if: message.abort_if.map(|share| number("abort_if", share, ABORT_IF)).transpose()?,
        })
    }
}

fn number<T: TryFrom<u32>>(field: &str, value: u32, (least, most): Range) -> Result<T> {
    let in_range = Some(value).filter(|value| (least..=most).contains(&u64::from(*value)));
    let number = in_range.and_then(|value| T::try_from(value).ok());
    number.map_or_else(|| wrong(field, format!("must be from {least} to {most}")), Ok)
}

pub(super) fn labels_message(labels: &Labels) -> Vec<pb::Label> {
    labels.iter().map(|(key, value)| pb::Label { key: key.to_owned(), value: value.to_owned() }).collect()
}

pub(super) fn labels(message: &[pb::Label]) -> Result<Labels> {
    bounded("labels", message.len(), MAX_LABELS)?;
    let pairs = message.iter().map(|label| (label.key.as_str(), label.value.as_str()));
    Labels::new(pairs).or_else(|error| wrong("labels", error))
}
