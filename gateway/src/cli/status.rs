//! Renders `/status` for people: what is wrong first, then what the gateway does. `--json` prints all of it.

use std::fmt::Write as _;

use serde_json::Value;

use super::ask::{cell, field, items, table};

/// Renders the page.
pub(super) fn status(answer: &Value) -> String {
    let node = |key: &str| answer.pointer(&format!("/node/{key}")).map_or_else(|| "-".to_owned(), cell);
    let mut page = format!(
        "isthmus-gateway {}, node {} of cluster {}, network {}\n",
        field(answer, "version"),
        node("id"),
        node("cluster"),
        node("network")
    );
    let problems = problems(answer);
    page += if problems.is_empty() { "\nNo problems.\n\n" } else { "\nPROBLEMS\n" };
    for problem in &problems {
        let _infallible = writeln!(page, "  {problem}");
    }
    if !problems.is_empty() {
        page.push('\n');
    }
    let at = |pointer: &str| answer.pointer(pointer).map_or_else(|| "-".to_owned(), cell);
    let mut line = |name: &str, text: String| {
        let _infallible = writeln!(page, "{name:<14}{text}");
    };
    line("phase", at("/phase"));
    line("connections", format!("{} of at most {}", at("/connections/open"), at("/connections/limit")));
    line(
        "tables",
        format!(
            "{} services, {} endpoints, {} failing; changed {} s ago",
            at("/tables/services"),
            at("/tables/endpoints"),
            at("/endpoints_failing"),
            at("/tables/age_seconds")
        ),
    );
    if let Some(is_connected) = answer.pointer("/agent/connected").and_then(Value::as_bool) {
        let state = if is_connected { "connected" } else { "unreachable" };
        line(
            "agent",
            format!(
                "{} {state} since {}, {} slices",
                at("/agent/agent"),
                at("/agent/since"),
                at("/agent/slices")
            ),
        );
    }
    if answer.pointer("/trust/identity").is_some() {
        line("identity", at("/trust/identity"));
    }
    line("uptime", format!("{} s", at("/uptime_seconds")));
    let mut listeners = table(&["listener", "address", "connections", "accepted"]);
    for listener in items(answer, "listeners") {
        listeners.add_row(["name", "address", "connections", "accepted"].map(|key| field(listener, key)));
    }
    format!("{page}\n{listeners}\n")
}

/// What an operator should look at, the most urgent first.
fn problems(answer: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let text = |pointer: &str| answer.pointer(pointer).filter(|value| value.is_string()).map(cell);
    if answer.get("ready") == Some(&Value::Bool(false)) {
        found.push("not ready: it takes no traffic of a load balancer that asks /healthz/ready".to_owned());
    }
    if answer.pointer("/agent/connected") == Some(&Value::Bool(false)) {
        let why = text("/agent/error").unwrap_or_else(|| "not connected yet".to_owned());
        found.push(format!("agent unreachable, keeping the last tables: {why}"));
    }
    found.extend(text("/agent/refusal").map(|why| format!("slice refused: {why}")));
    if let Some(edit) = answer.get("last_refused_edit").filter(|edit| !edit.is_null()) {
        found.push(format!("the last edit of the configuration was refused: {}", field(edit, "why")));
    }
    found.extend(text("/trust/problem").map(|why| format!("no certificate yet: {why}")));
    found.extend(text("/trust/renewal/problem").map(|why| format!("certificate not renewed: {why}")));
    let refused = answer.pointer("/trust/refused").and_then(Value::as_array).into_iter().flatten();
    found.extend(refused.map(|file| format!("trust file refused: {}", cell(file))));
    if answer.pointer("/state/usable") == Some(&Value::Bool(false)) {
        let why = text("/state/problem").unwrap_or_default();
        found.push(format!("state is not persisted: {why}"));
    }
    found.extend(text("/state/damage").map(|why| format!("state was damaged: {why}")));
    match answer.get("endpoints_failing").and_then(Value::as_u64) {
        None | Some(0) => {}
        Some(count) => found.push(format!("{count} endpoints are failing; `services` names them")),
    }
    let dropped = answer.get("access_log_dropped").and_then(Value::as_u64).filter(|count| *count > 0);
    found.extend(
        dropped.map(|count| {
            format!("{count} lines of the access log were dropped: nothing reads it fast enough")
        }),
    );
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn status_page_names_problems_first() {
        let good = json!({
            "version": "0.1.0", "node": { "id": "gw-1", "cluster": "east", "network": "east-net" },
            "phase": "serving", "ready": true, "agent": { "connected": true, "agent": "a:1" },
            "listeners": [{ "name": "east-west", "address": "0.0.0.0:15443", "connections": 3, "accepted": 9 }],
        });
        let page = status(&good);
        assert!(page.contains("No problems.") && page.contains("east-west"), "{page}");
        let mut bad = good;
        bad["agent"] = json!({ "connected": false, "error": "connection refused" });
        bad["state"] = json!({ "usable": false, "problem": "disk full" });
        bad["ready"] = json!(false);
        let page = status(&bad);
        let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("{what} is not in {page}"));
        for problem in ["not ready", "agent unreachable", "state is not persisted: disk full"] {
            assert!(at("PROBLEMS") < at(problem) && at(problem) < at("phase"), "{page}");
        }
    }
}
