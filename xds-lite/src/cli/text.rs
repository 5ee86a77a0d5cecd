//! Renders an agent's answers for people: what is wrong first, then sections and tables. `--json` prints the answer itself.

use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

/// Rows of a table; the rest is counted.
const ROWS: usize = 20;

/// The page of `/status`.
#[must_use]
pub fn status(answer: &Value) -> String {
    let mut page = format!(
        "isthmus-agent {} of cluster {}, network {}\n",
        text(at(answer, "/version")),
        text(at(answer, "/cluster")),
        text(at(answer, "/network"))
    );
    let problems = problems(answer);
    page += if problems.is_empty() { "\nNo problems.\n" } else { "\nPROBLEMS\n" };
    for problem in problems {
        let _infallible = writeln!(page, "  {problem}");
    }
    let count = |pointer: &str| text(at(answer, pointer));
    let _infallible = write!(
        page,
        "\nSERVICES\n  {} hosts in the registry, {} VMs registered, {} hosts exported, {} slices imported\n",
        count("/registry/hosts"),
        count("/registry/registered"),
        count("/exports/count"),
        count("/imports/count"),
    );
    page += &section("NOT EXPORTED", items(at(answer, "/exports/held_back")), HELD_BACK);
    page += &section("QUARANTINED", items(at(answer, "/imports/held_back")), QUARANTINED);
    page += &section("PEERS", members(at(answer, "/peers")), PEER);
    let followers = members(at(answer, "/nodes")).into_iter().flat_map(|(kind, followers)| {
        let of_kind = move |(_, follower)| (kind.clone(), follower);
        items(followers).into_iter().map(of_kind)
    });
    page += &section("CLIENTS", followers.collect(), CLIENT);
    page += &section("STATE", items(at(answer, "/state/stores")), STORE);
    page
}

/// Headings and where in a row their values are; the empty pointer is the row's name.
type Columns = [(&'static str, &'static str)];

const HELD_BACK: &Columns = &[("HOST", "/host"), ("WHY", "/why")];
const QUARANTINED: &Columns = &[("CLUSTER", "/cluster"), ("HOST", "/host"), ("QUARANTINED", "/held")];
const PEER: &Columns = &[
    ("NAME", ""),
    ("CONNECTED", "/connected"),
    ("ADDRESS", "/address"),
    ("SLICES", "/offers/slices/used"),
    ("REFUSALS", "/refusals"),
    ("BUNDLE", "/bundle/taken"),
];
const CLIENT: &Columns = &[
    ("NAME", ""),
    ("PEER", "/peer"),
    ("SETTLED", "/settled"),
    ("REFUSALS", "/refusals"),
    ("REFUSAL", "/refusal"),
];
const STORE: &Columns = &[
    ("STORE", "/store"),
    ("USABLE", "/usable"),
    ("BEHIND", "/behind"),
    ("LOST RECORDS", "/lost_records"),
    ("FILE", "/file"),
];
const ENDPOINT: &Columns =
    &[("NAME", ""), ("ADDRESS", "/address"), ("INSTANCE", "/instance"), ("MTLS", "/mtls")];

/// The page of `/explain`.
#[must_use]
pub fn explain(answer: &Value) -> String {
    let mut page = format!("host: {}\n", text(at(answer, "/host")));
    let mut line = |name: &str, value: &Value| {
        if !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()) {
            let _infallible = writeln!(page, "{name}: {}", text(value));
        }
    };
    if at(answer, "/named_by") != "host" {
        line("named by", at(answer, "/named_by"));
    }
    line("also the name of", at(answer, "/others"));
    let registry = at(answer, "/registry");
    if registry.is_object() {
        line("selected by an export rule", at(registry, "/chosen_by_an_export"));
        line("not exported", at(registry, "/why_not"));
        line("revision", at(answer, "/offer/revision"));
        let endpoints = items(at(registry, "/ports")).into_iter().flat_map(|(_, port)| {
            let number = text(at(port, "/port"));
            items(at(port, "/endpoints")).into_iter().map(move |(_, endpoint)| (number.clone(), endpoint))
        });
        page += &section("ENDPOINTS", endpoints.collect(), ENDPOINT);
    } else {
        page += "not in the registry of this cluster\n";
    }
    page += &section("OFFERED BY OTHER CLUSTERS", items(at(answer, "/imports")), QUARANTINED);
    if let Some(note) = at(answer, "/note").as_str() {
        let _infallible = write!(page, "\n{}\n", printable(note));
    }
    page
}

/// What an operator should look at, the most urgent first.
fn problems(answer: &Value) -> Vec<String> {
    let listed = |pointer: &str, what: &str| -> Vec<String> {
        items(at(answer, pointer)).iter().map(|(_, problem)| format!("{what}: {}", text(problem))).collect()
    };
    let mut found = listed("/registry/problems", "registry");
    found.extend(members(at(answer, "/peers")).iter().flat_map(|(cluster, peer)| of_peer(cluster, peer)));
    for (kind, followers) in members(at(answer, "/nodes")) {
        for (_, follower) in items(followers) {
            let peer = text(at(follower, "/peer"));
            found.extend(said(follower, "/refusal", &format!("{kind}: {peer} rejects a response")));
        }
    }
    for (direction, what) in [("exports", "not exported"), ("imports", "quarantined")] {
        match items(at(answer, &format!("/{direction}/held_back"))).len() {
            0 => {}
            count => found.push(format!("{direction}: {count} {what}; see below")),
        }
    }
    for (_, store) in items(at(answer, "/state/stores")) {
        let name = text(at(store, "/store"));
        if at(store, "/usable") == false {
            found.push(format!("state: {name}: not persisted: {}", text(at(store, "/problem"))));
        }
        found.extend(said(store, "/damage", &format!("state: {name}")));
    }
    found.extend(listed("/state/problems", "state"));
    found.extend(listed("/trust/refused", "trust"));
    found.extend(listed("/envoys", "Envoys' tables"));
    found.extend(listed("/grpc", "gRPC clients' tables"));
    found
}

fn of_peer(cluster: &str, peer: &Value) -> Vec<String> {
    let lost = (at(peer, "/connected") == false)
        .then(|| format!("peer {cluster}: not connected: {}", text(at(peer, "/error"))));
    let refusals = [("slice", "/refusal"), ("bundle", "/bundle/refusal"), ("bundle", "/bundle/advice")];
    let refusals =
        refusals.iter().filter_map(|(what, pointer)| said(peer, pointer, &format!("peer {cluster}: {what}")));
    lost.into_iter().chain(refusals).collect()
}

/// A text of the answer after what it is about, if there is one.
fn said(value: &Value, pointer: &str, what: &str) -> Option<String> {
    at(value, pointer).as_str().map(|why| format!("{what}: {}", printable(why)))
}

type Row<'a> = (String, &'a Value);

fn items(list: &Value) -> Vec<Row<'_>> {
    list.as_array().into_iter().flatten().map(|item| (String::new(), item)).collect()
}

/// The members of an object, each with its name.
fn members(object: &Value) -> Vec<Row<'_>> {
    object.as_object().into_iter().flatten().map(|(name, member)| (printable(name), member)).collect()
}

/// A table under a title; nothing where there are no rows.
fn section(title: &str, rows: Vec<Row<'_>>, columns: &Columns) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(heading, _)| heading));
    let count = rows.len();
    for (name, row) in rows.into_iter().take(ROWS) {
        table.add_row(columns.iter().map(|(_, pointer)| match *pointer {
            "" => name.clone(),
            pointer => text(at(row, pointer)),
        }));
    }
    let more = match count.saturating_sub(ROWS) {
        0 => String::new(),
        more => format!("  and {more} more; --json lists them\n"),
    };
    format!("\n{title}\n{table}\n{more}")
}

/// A value in one line.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| format!("{} {}", printable(key), text(value)))
            .collect::<Vec<_>>()
            .join(", "),
        Value::Number(number) => number.to_string(),
    }
}

/// The value at a JSON pointer, null if there is none.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// The answer may come from anything that listens there: no control characters reach the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn status_page_names_problems_first() {
        let answer = json!({
            "version": "0.1.0", "cluster": "west", "network": "west-net",
            "registry": { "hosts": 3, "registered": 0, "problems": ["a.yaml:1:2: no \u{1b}[31mhost"] },
            "exports": { "count": 2, "held_back": [{ "host": "db.pxc", "why": "not_mtls: no endpoint" }] },
            "imports": { "count": 1, "held_back": [] },
            "peers": { "east": { "connected": false, "error": "connection refused", "address": "e:1", "refusals": 0 } },
            "nodes": { "gateways": [{ "peer": "spiffe://w/gw", "settled": true, "refusals": 0, "refusal": null }] },
            "state": { "stores": [{ "store": "slices", "usable": false, "problem": "disk full" }], "problems": [] },
        });
        let page = status(&answer);
        let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("{what} is not in {page}"));
        assert!(!page.contains('\u{1b}'), "{page}");
        for problem in [
            "registry: a.yaml:1:2",
            "peer east: not connected: connection refused",
            "exports: 1 not exported",
        ] {
            assert!(at("PROBLEMS") < at(problem) && at(problem) < at("SERVICES"), "{page}");
        }
        assert!(at("state: slices: not persisted: disk full") < at("NOT EXPORTED"), "{page}");
        assert!(at("CLIENTS") < at("spiffe://w/gw"), "{page}");
        assert!(status(&json!({})).contains("No problems."));
    }

    #[test]
    fn explain_page_says_by_what_a_name_is_known() {
        let answer = json!({
            "asked": "productpage.bookinfo", "host": "productpage.bookinfo.svc.cluster.local", "named_by": "alias",
            "others": [], "registry": null, "note": "run it there",
            "imports": [{ "cluster": "east", "host": "productpage.bookinfo.svc.cluster.local", "held": "not granted" }],
        });
        let page = explain(&answer);
        for part in ["named by: alias", "not in the registry", "east", "not granted", "run it there"] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
}
