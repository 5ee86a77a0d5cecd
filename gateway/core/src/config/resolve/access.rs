//! Refuses rules for callers that a gateway cannot enforce from its own file.

use isthmus_model::problem::{Place, Report};
use isthmus_model::services::Table;

pub(super) fn check(report: &mut Report, services: &Table<'_>) {
    for entry in services.entries() {
        let Some(rules) = entry.service.access() else { continue };
        let place = Place::Root.key("services");
        let (place, spot) = (place.item(entry.index), entry.access_spot());
        if rules.workspace {
            let what = format_args!(
                "{}: mode: workspace has no effect in a gateway's file, which knows no workspaces",
                place.key("access")
            );
            report.add(spot, what, "write the identities, or namespaces with trust_domains");
        }
        if let Err(error) = entry.service.enforced_access() {
            report.add(spot, format_args!("{}: cannot be enforced", place.key("access")), error);
        }
    }
}
