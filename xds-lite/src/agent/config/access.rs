//! The rules for callers of the cluster, of namespaces and of workspaces.

use std::collections::BTreeMap;

use isthmus_model::access::{self, AccessRules, MAX_SCOPES};
use isthmus_model::at::At;
use isthmus_model::problem::{Place, Report};
use isthmus_model::slice::Cluster;
use isthmus_registry::access::{WiderRules, Workspace};

use super::resolve::namespaces;
use super::{Peer, raw};

/// The sections as written: `access`, `namespaces` and `workspaces`.
type Written<'a> =
    (Option<&'a At<access::raw::Access>>, Option<&'a [At<raw::Namespace>]>, Option<&'a [At<raw::Workspace>]>);

pub(super) fn wider_rules(
    report: &mut Report,
    (cluster, namespaces, workspaces): Written<'_>,
    own: &Cluster,
    peers: &[Peer],
) -> WiderRules {
    WiderRules {
        cluster: cluster.map(|raw| access::rules(report, Place::Root.key("access"), &raw.value)),
        namespaces: of_namespaces(report, namespaces.unwrap_or_default()),
        workspaces: of_workspaces(report, workspaces.unwrap_or_default(), own, peers),
    }
}

fn of_namespaces(report: &mut Report, list: &[At<raw::Namespace>]) -> BTreeMap<String, AccessRules> {
    let place = Place::Root.key("namespaces");
    let mut all = BTreeMap::new();
    for (index, whole) in limited(report, place, list).iter().enumerate() {
        let (place, raw) = (place.item(index), &whole.value);
        let name = report.required(raw.name.as_ref(), whole, place, "name");
        if raw.access.is_none() {
            report.add(whole.spot, format_args!("{place} has no access"), "add 'access: …'");
        }
        let rules = raw.access.as_ref().map(|raw| access::rules(report, place.key("access"), &raw.value));
        let Some((name, rules)) = name.zip(rules) else { continue };
        if all.insert(name.as_str().to_owned(), rules).is_some() {
            report.add(
                whole.spot,
                format_args!("{place}: {name} is listed twice"),
                "merge its rules into one entry",
            );
        }
    }
    all
}

fn of_workspaces(
    report: &mut Report,
    list: &[At<raw::Workspace>],
    own: &Cluster,
    peers: &[Peer],
) -> Vec<Workspace> {
    let place = Place::Root.key("workspaces");
    let mut all: Vec<Workspace> = Vec::new();
    for (index, whole) in limited(report, place, list).iter().enumerate() {
        let (place, raw) = (place.item(index), &whole.value);
        let name = report.required(raw.name.as_ref(), whole, place, "name");
        let written = raw.namespaces.as_deref().unwrap_or_default();
        if written.is_empty() {
            let remedy = "add 'namespaces: [NAMESPACE, CLUSTER/NAMESPACE, …]'";
            report.add(whole.spot, format_args!("{place} has no namespaces"), remedy);
        }
        let namespaces = namespaces(report, place.key("namespaces"), written, own);
        for (index, (part, spot)) in namespaces.iter().zip(written.iter().map(|one| one.spot)).enumerate() {
            let is_known = |name: &Cluster| name == own || peers.iter().any(|peer| peer.cluster == *name);
            if let Some(cluster) = part.cluster.as_ref().filter(|cluster| !is_known(cluster)) {
                let place = place.key("namespaces");
                let place = place.item(index);
                let what = format_args!(
                    "{place}: {cluster} is not listed under peers; it means nobody until that cluster joins"
                );
                report.warn(spot, what, "write the name of a peer");
            }
        }
        let rules = raw.access.as_ref().map(|raw| access::rules(report, place.key("access"), &raw.value));
        let Some(name) = name.map(|name| name.as_str().to_owned()) else { continue };
        if all.iter().any(|known| known.name == name) {
            report.add(
                whole.spot,
                format_args!("{place}: {name} is listed twice"),
                "merge both into one entry",
            );
        }
        all.push(Workspace { name, namespaces, rules });
    }
    all
}

fn limited<'a, T>(report: &mut Report, place: Place<'_>, list: &'a [At<T>]) -> &'a [At<T>] {
    if let Some(first) = list.get(MAX_SCOPES) {
        let what = format_args!("{place}: has {} entries; the limit is {MAX_SCOPES}", list.len());
        report.add(first.spot, what, "write rules of the cluster in place of some");
    }
    list.get(..MAX_SCOPES).unwrap_or(list)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Settings, parse};

    const BASE: &str = "\
cluster: east
trust: { certificate: tls.crt, key: tls.key, bundles: bundles }
registry: { files: ./registry }
peers: [{ cluster: west, address: 'a.west.example:15012', trustDomain: west.example }]
";

    fn read(text: &str) -> Result<Settings, String> {
        parse(&format!("{BASE}{text}"), Path::new("agent.yaml")).map_err(|problems| problems.to_string())
    }

    #[test]
    fn access_of_wider_scopes_is_read_with_its_problems() {
        let text = "access: { deny: [{ sources: [10.66.0.0/16] }] }\n\
                    namespaces: [{ name: shop, access: { allow: [] } }]\n\
                    workspaces: [{ name: retail, namespaces: [shop, west/cart, '*/stock'], access: { mode: workspace } }]\n";
        let settings = read(text).unwrap();
        assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
        let rules = settings.access;
        assert_eq!(rules.cluster.unwrap().deny.len(), 1);
        assert_eq!(rules.namespaces["shop"].allow, Some(Vec::new()));
        let [retail] = &rules.workspaces[..] else { panic!("one workspace") };
        assert!(retail.rules.as_ref().unwrap().workspace && retail.namespaces.len() == 3);
        for (from, to, expected) in [
            ("10.66.0.0/16", "10.66.0.1/16", "access.deny[0].sources[0]"),
            ("name: shop,", "", "namespaces[0] has no name"),
            (", access: { allow: [] }", "", "namespaces[0] has no access"),
            ("name: shop", "name: a.b", "namespaces[0].name"),
            ("allow: []", "alow: []", "unknown key 'alow'"),
            ("[shop, west/cart, '*/stock']", "[]", "workspaces[0] has no namespaces"),
            ("west/cart", "west/a.b", "is not a workspace entry"),
            ("{ mode: workspace }", "{ mode: open }", "workspaces[0].access.mode"),
        ] {
            assert!(text.contains(from), "{from}");
            let problem = read(&text.replace(from, to)).unwrap_err();
            assert!(problem.contains(expected), "{to}: {problem}");
        }
        let twice = "namespaces: [{ name: a, access: {} }, { name: a, access: {} }]\n";
        assert!(read(twice).unwrap_err().contains("namespaces[1]: a is listed twice"));
    }

    #[test]
    fn access_that_is_probably_not_meant_is_warned_of() {
        let warnings = |text: &str| -> Vec<String> {
            read(text).unwrap().warnings.iter().map(ToString::to_string).collect()
        };
        let unknown = warnings("workspaces: [{ name: retail, namespaces: [shop, south/shop] }]\n");
        assert!(
            unknown[0].contains("workspaces[0].namespaces[1]: south is not listed under peers"),
            "{unknown:?}"
        );
        let dry = "access: { allow: [{ sources: [10.0.0.0/8], dry_run: true }] }\n";
        assert!(
            warnings(dry)[0].starts_with("agent.yaml:5:19: access.allow: has dry-run rules alone"),
            "{:?}",
            warnings(dry)
        );
        assert!(warnings(&dry.replace("dry_run: true }]", "dry_run: true }, { ports: [1] }]")).is_empty());
        assert!(warnings("access: { allow: [] }\n").is_empty());
    }
}
