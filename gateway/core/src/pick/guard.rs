//! Counts how connects and probes end, for the guards of a split.

use std::sync::atomic::Ordering::Relaxed;

use crate::metrics::Metrics;
use crate::snapshot::{Endpoint, Service};
use crate::socket;

/// Records a connect to an endpoint, or a probe of the gateway itself. With too many failures, the endpoint's part is taken
/// out of the split until the split is edited.
pub(crate) fn record(service: &Service, endpoint: &Endpoint, has_failed: bool, metrics: &Metrics) {
    if let Some(part) = service.record(endpoint, has_failed, socket::now()) {
        metrics.split_aborts.fetch_add(1, Relaxed);
        tracing::warn!(service = %service.name(), %part, "part taken out of the split: too many of its connections failed; it returns once the split is edited");
    }
}
