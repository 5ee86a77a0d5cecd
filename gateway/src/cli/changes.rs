//! Compares an edited configuration with the one a running gateway shows at `/config`, leaf by leaf. The edit
//! has been validated by `config` before.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_certs::printable::{printable, printable_json};
use serde_json::Value;

/// Returns a line for each difference, marked if a running gateway would refuse it.
pub(crate) fn changes(running: &Value, edit: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for key in keys(running, edit) {
        let (before, after) = (get(running, key), get(edit, key));
        match key {
            "listeners" => listeners(before, after, &mut lines),
            "services" => services(before, after, &mut lines),
            _ => lines.extend(leaves(key, before, after).iter().map(Leaf::line)),
        }
    }
    lines
}

const RESTART: &str = "(needs a restart: the edit would be refused)";

/// Sections that may change without a restart; `listeners` and `services` have their own rules.
const LIVE: [&str; 4] = ["limits", "timeouts", "upstream", "drain"];
const BOUND: [&str; 3] = ["address", "backlog", "ipv6_only"];

/// One value that differs.
struct Leaf<'a> {
    path: String,
    before: &'a Value,
    after: &'a Value,
}

impl Leaf<'_> {
    fn line(&self) -> String {
        let Leaf { path, before, after } = self;
        let (before, after) = (cell(before), cell(after));
        if path.split('.').next().is_some_and(|key| LIVE.contains(&key)) {
            format!("~ {path}: {before} → {after}")
        } else {
            format!("! {path}: {before} → {after} {RESTART}")
        }
    }

    fn short(&self) -> String {
        format!("{} {} → {}", self.path, cell(self.before), cell(self.after))
    }
}

fn leaves<'a>(path: &str, before: &'a Value, after: &'a Value) -> Vec<Leaf<'a>> {
    if before.is_object() && after.is_object() {
        let below = |key: &str| {
            let key = printable(key);
            if path.is_empty() { key } else { format!("{path}.{key}") }
        };
        let keys = keys(before, after).into_iter();
        keys.flat_map(|key| leaves(&below(key), get(before, key), get(after, key))).collect()
    } else if before == after {
        Vec::new()
    } else {
        vec![Leaf { path: path.to_owned(), before, after }]
    }
}

fn listeners(before: &Value, after: &Value, lines: &mut Vec<String>) {
    let names = |list| items(list).map(|listener| cell(get(listener, "name"))).collect::<Vec<_>>();
    let (old, new) = (names(before), names(after));
    if old != new {
        lines.push(format!("! listeners: {} → {} {RESTART}", old.join(","), new.join(",")));
    }
    let before: BTreeMap<_, _> = old.into_iter().zip(items(before)).collect();
    for (name, listener) in new.into_iter().zip(items(after)) {
        let Some(old) = before.get(&name) else { continue };
        for leaf in leaves("", old, listener) {
            let bound = BOUND.contains(&leaf.path.as_str());
            let (sign, remark) = if bound { ("!", format!(" {RESTART}")) } else { ("~", String::new()) };
            lines.push(format!("{sign} listener {name}: {}{remark}", leaf.short()));
        }
    }
}

fn services(before: &Value, after: &Value, lines: &mut Vec<String>) {
    let name = |service: &Value| format!("{}:{}", cell(get(service, "host")), cell(get(service, "port")));
    let (before, after) = (index_by(before, name), index_by(after, name));
    for name in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        match (before.get(name), after.get(name)) {
            (Some(_), None) => lines.push(format!("- service {name}")),
            (None, Some(_)) => lines.push(format!("+ service {name}")),
            (Some(old), Some(new)) if old != new => service(name, old, new, lines),
            _ => {}
        }
    }
}

fn service(name: &str, before: &Value, after: &Value, lines: &mut Vec<String>) {
    let settings: Vec<_> =
        leaves("", before, after).iter().filter(|leaf| leaf.path != "endpoints").map(Leaf::short).collect();
    if !settings.is_empty() {
        lines.push(format!("~ service {name}: {}", settings.join(", ")));
    }
    let address = |endpoint: &Value| match get(endpoint, "address") {
        Value::Object(target) => {
            let part = |key| target.get(key).map(cell).unwrap_or_default();
            format!("{}:{}", part("host"), part("port"))
        }
        address => cell(address),
    };
    let (old, new) = (get(before, "endpoints"), get(after, "endpoints"));
    if old == new {
        return;
    }
    let lines_before = lines.len();
    let (by_old, by_new) = (index_by(old, address), index_by(new, address));
    for address in by_old.keys().chain(by_new.keys()).collect::<BTreeSet<_>>() {
        match (by_old.get(address), by_new.get(address)) {
            (Some(_), None) => lines.push(format!("- service {name}: endpoint {address}")),
            (None, Some(_)) => lines.push(format!("+ service {name}: endpoint {address}")),
            (Some(old), Some(new)) if old != new => {
                let changed: Vec<_> = leaves("", old, new).iter().map(Leaf::short).collect();
                lines.push(format!("~ service {name}: endpoint {address}: {}", changed.join(", ")));
            }
            _ => {}
        }
    }
    if lines.len() == lines_before {
        lines.push(format!("~ service {name}: endpoints reordered"));
    }
}

fn index_by(list: &Value, name: impl Fn(&Value) -> String) -> BTreeMap<String, &Value> {
    items(list).map(|item| (name(item), item)).collect()
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn keys<'a>(left: &'a Value, right: &'a Value) -> BTreeSet<&'a str> {
    [left, right]
        .into_iter()
        .filter_map(Value::as_object)
        .flat_map(|map| map.keys().map(String::as_str))
        .collect()
}

/// A value in one line: the running gateway may be anything that listens there.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => printable_json(&other.to_string()),
    }
}

fn get<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_core::admin::effective::effective;
    use isthmus_core::config;
    use std::path::Path;

    const RUNNING: &str = "
node: { id: gw }
workers: 2
listeners: [{ address: '127.0.0.1:15443', default: b.example }]
services:
- { host: a.example, endpoints: [{ address: '10.0.0.1:1' }, { address: '10.0.0.2:1' }] }
- { host: b.example, endpoints: [{ address: 'db.example:2', weight: 3 }] }
";

    fn after(edits: &[(&str, &str)]) -> Vec<String> {
        let shown = |text: &str| {
            let settings = config::parse(text, Path::new("test.yaml")).unwrap();
            serde_json::to_value(effective(&settings.fixed, &settings.live)).unwrap()
        };
        let edit = edits.iter().fold(RUNNING.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        changes(&shown(RUNNING), &shown(&edit))
    }

    #[test]
    fn changes_name_each_leaf() {
        assert_eq!(after(&[]), Vec::<String>::new());
        assert_eq!(
            after(&[("workers: 2", "workers: 4\ndrain: { window: 20s }"), ("15443'", "15444'")]),
            [
                "~ drain.window: 15s → 20s",
                "! listener east-west: address 127.0.0.1:15443 → 127.0.0.1:15444 \
                 (needs a restart: the edit would be refused)",
                "! workers: 2 → 4 (needs a restart: the edit would be refused)",
            ]
        );
        assert_eq!(
            after(&[
                ("'10.0.0.2:1'", "'10.0.0.3:1'"),
                ("weight: 3", "weight: 0"),
                ("host: b.example", "host: b.example, balance: random")
            ]),
            [
                "- service a.example:443: endpoint 10.0.0.2:1",
                "+ service a.example:443: endpoint 10.0.0.3:1",
                "~ service b.example:443: balance round_robin → random",
                "~ service b.example:443: endpoint db.example:2: weight 3 → 0",
            ]
        );
        assert_eq!(
            after(&[(
                "{ address: '10.0.0.1:1' }, { address: '10.0.0.2:1' }",
                "{ address: '10.0.0.2:1' }, { address: '10.0.0.1:1' }"
            )]),
            ["~ service a.example:443: endpoints reordered"]
        );
    }

    #[test]
    fn changes_follow_default_by_name_not_index() {
        let inserted = after(&[("services:\n", "services:\n- { host: z.example, endpoints: [] }\n")]);
        assert_eq!(inserted, ["+ service z.example:443"]);
        let swapped = after(&[
            ("default: b.example", "default: A.example"),
            ("host: a.example", "host: B.example"),
            ("host: b.example", "host: a.example"),
        ]);
        assert!(
            swapped.contains(&"~ listener east-west: default b.example:443 → a.example:443".to_owned()),
            "{swapped:?}"
        );
        let added = after(&[("'127.0.0.1:15443'", "'127.0.0.1:15443', name: x")]);
        assert_eq!(added, ["! listeners: east-west → x (needs a restart: the edit would be refused)"]);
    }
}
