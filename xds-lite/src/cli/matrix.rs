//! Renders `/matrix` for people: a table of sites, with a row for each gateway of this cluster and a column for each
//! gateway address of other clusters. `--json` prints the answer itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use comfy_table::{ContentArrangement, Table, presets};
use isthmus_model::admin::agent::{GatewayReport, Matrix};
use isthmus_model::matrix::{Row, State};

use super::text::section;

/// Columns of the table; further ones are counted.
const COLUMNS: usize = 8;

/// The page of `/matrix`.
#[must_use]
pub(super) fn matrix(answer: &Matrix) -> String {
    if answer.gateways.is_empty() {
        return "No gateway has reported yet.\n".to_owned();
    }
    let problems: Vec<_> = answer.gateways.iter().flat_map(|(name, report)| problems(name, report)).collect();
    let mut page = if problems.is_empty() { "No problems.\n" } else { "PROBLEMS\n" }.to_owned();
    for problem in problems {
        let _infallible = writeln!(page, "  {problem}");
    }
    page += &sites(answer);
    let unhealthy = answer.gateways.iter().flat_map(|(name, report)| {
        let each = report.unhealthy.iter();
        each.map(|one| [short(name), one.service.clone(), one.address.clone(), one.why.clone()])
    });
    page + &section(
        "UNHEALTHY ENDPOINTS OF THIS CLUSTER",
        ["GATEWAY", "SERVICE", "ADDRESS", "WHY"],
        unhealthy,
    )
}

/// What an operator should look at in the report of one gateway.
pub(super) fn problems(name: &str, report: &GatewayReport) -> Vec<String> {
    let name = short(name);
    if !report.fresh {
        let silence = report.age_seconds;
        return vec![format!("gateway {name}: no report for {silence} s; what it reported no longer counts")];
    }
    let mut found = Vec::new();
    if report.cut_off_since.is_some() {
        found.push(format!(
            "gateway {name}: cut off: no gateway of another cluster answers it; the last good addresses stay in use"
        ));
    }
    let down = report.matrix.iter().filter(|row| row.state == State::Down);
    found.extend(down.map(|row| {
        let why = row.why.as_deref().unwrap_or("no answer");
        format!("gateway {name}: cluster {}, gateway {} is down: {why}", row.cluster, row.address)
    }));
    if report.unhealthy_count > 0 {
        let count = report.unhealthy_count;
        found.push(format!(
            "gateway {name}: {count} unhealthy endpoints of this cluster; `matrix` names them"
        ));
    }
    found
}

fn sites(answer: &Matrix) -> String {
    let key = |row: &Row| (row.cluster.clone(), row.address.clone());
    let all: BTreeSet<_> =
        answer.gateways.values().flat_map(|report| report.matrix.iter().map(key)).collect();
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let shown = || all.iter().take(COLUMNS);
    let headings = shown().map(|(cluster, address)| format!("{cluster} {address}"));
    table.set_header(["GATEWAY".to_owned(), "AGE".to_owned()].into_iter().chain(headings));
    for (name, report) in &answer.gateways {
        let rows: BTreeMap<_, _> = report.matrix.iter().map(|row| (key(row), row)).collect();
        let cells =
            shown().map(|column| rows.get(column).map_or_else(|| "-".to_owned(), |row| row.summary()));
        table.add_row([short(name), format!("{} s", report.age_seconds)].into_iter().chain(cells));
    }
    let more = match all.len().saturating_sub(COLUMNS) {
        0 => String::new(),
        more => format!("  and {more} more gateway addresses; --json lists them\n"),
    };
    format!("\nSITES (round trip ± jitter, loss, state)\n{table}\n{more}")
}

/// The name of a gateway in its cluster, of its identity.
fn short(identity: &str) -> String {
    identity.rsplit('/').next().unwrap_or(identity).to_owned()
}

#[cfg(test)]
mod tests {
    use isthmus_model::admin::Answer;
    use serde_json::json;

    use super::*;

    #[test]
    fn matrix_page_names_problems_first_and_has_a_column_for_each_gateway() {
        let row = |cluster: &str, state: &str, millis: u64| {
            json!({ "cluster": cluster, "gateway": "gw:1", "address": format!("203.0.113.{}:15443", cluster.len()),
                    "state": state, "rtt_micros": millis * 1_000, "jitter_micros": 400, "loss_percent": 3,
                    "why": (state == "down").then_some("no answer within 2 s") })
        };
        let answer = json!({ "gateways": {
            "spiffe://west.example/isthmus/west/gateway/gw-1": {
                "fresh": true, "age_seconds": 1, "matrix": [row("east", "up", 30), row("south", "down", 90)],
                "unhealthy_count": 1,
                "unhealthy": [{ "service": "db.pxc:3306", "address": "10.0.0.1:3306", "why": "ejected" }],
            },
            "spiffe://west.example/isthmus/west/gateway/gw-2": { "age_seconds": 70, "matrix": [row("east", "up", 31)] },
        } });
        let answer = Answer::parse(answer.to_string().as_bytes()).unwrap();
        let page = matrix(&answer.page().unwrap());
        let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("{what} is not in {page}"));
        assert!(
            at("gw-1: cluster south, gateway 203.0.113.5:15443 is down: no answer") < at("SITES"),
            "{page}"
        );
        assert!(at("gw-2: no report for 70 s") < at("SITES"));
        assert!(at("east 203.0.113.4:15443") < at("south 203.0.113.5:15443"));
        assert!(at("30.0 ms ±0.4 3% up") < at("90.0 ms ±0.4 3% down"));
        assert!(at("31.0 ms") < at("UNHEALTHY") && at("UNHEALTHY") < at("10.0.0.1:3306"));
        assert_eq!(matrix(&Matrix::default()), "No gateway has reported yet.\n");
    }
}
