//! Checks the splits of a gateway's own file beside its endpoints, which are of no cluster.

use isthmus_model::problem::{Place, Report};
use isthmus_model::services::Table;
use isthmus_model::traffic::SplitTo;

use crate::config::raw::File;

pub(super) fn check(report: &mut Report, raw: &File, services: &Table<'_>) {
    let written = raw.services.as_deref().unwrap_or_default();
    let place = Place::Root.key("services");
    for entry in services.entries() {
        let (place, service) = (place.item(entry.index), &entry.service);
        let raw = written.get(entry.index).and_then(|raw| raw.value.traffic());
        let Some((raw, traffic)) = raw.zip(service.traffic.as_ref()) else { continue };
        let place = place.key("traffic");
        let parts = place.key("split");
        for (index, spot) in raw.policy().parts_by_cluster() {
            let what = format_args!(
                "{}.cluster: the endpoints of a gateway's own file are of no cluster",
                parts.item(index)
            );
            report.add(spot, what, "write 'labels: { KEY: VALUE }', or the split in the agent's file");
        }
        for (index, spot) in raw.policy().parts_by_labels() {
            let Some(SplitTo::Labels(wanted)) = traffic.split.get(index).map(|part| &part.to) else {
                continue;
            };
            if !service.endpoints.iter().any(|endpoint| endpoint.labels.match_all(wanted)) {
                let what =
                    format_args!("{}.labels: no endpoint of the service has {wanted}", parts.item(index));
                report.warn(spot, what, "add these labels to an endpoint");
            }
        }
    }
}
