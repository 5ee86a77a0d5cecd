//! Renders `/status` for people: what is wrong first, then what the gateway does. `--json` prints all of it.

use std::fmt::Write as _;

use isthmus_model::admin::StoreHealth;
use isthmus_model::admin::gateway::{
    AbortedPart, AgentContact, Bindings, EndpointHealth, Matrix, Status, Trust,
};
use isthmus_model::matrix::{Row, State};

use super::text::{or_dash, table};

/// Renders the page.
pub(super) fn status(answer: &Status) -> String {
    let Status { version, node, phase, connections, tables, .. } = answer;
    let mut page = format!(
        "isthmus-gateway {version}, node {} of cluster {}, network {}\n",
        node.id, node.cluster, node.network
    );
    let problems = problems(answer);
    page += if problems.is_empty() { "\nNo problems.\n\n" } else { "\nPROBLEMS\n" };
    for problem in &problems {
        let _infallible = writeln!(page, "  {problem}");
    }
    if !problems.is_empty() {
        page.push('\n');
    }
    let mut line = |name: &str, text: String| {
        let _infallible = writeln!(page, "{name:<14}{text}");
    };
    line("phase", phase.clone());
    line("connections", format!("{} of at most {}", connections.open, connections.limit));
    line(
        "tables",
        format!(
            "{} services, {} endpoints, {} failing; changed {} s ago",
            tables.services, tables.endpoints, answer.endpoints_failing, tables.age_seconds
        ),
    );
    if let Some(AgentContact { agent, connected, since, slices, .. }) = &answer.agent {
        let state = if *connected { "connected" } else { "unreachable" };
        line("agent", format!("{} {state} since {since}, {slices} slices", or_dash(agent.as_ref())));
    }
    match &answer.trust {
        None => {}
        Some(Trust::Loaded(trust)) => line("identity", trust.identity.clone()),
        Some(Trust::Awaited(_)) => line("identity", "-".to_owned()),
    }
    if answer.bindings != Bindings::default() {
        let Bindings { hosts, callers, .. } = &answer.bindings;
        line("bindings", format!("{hosts} hosts, {callers} callers of the agent"));
    }
    line("uptime", format!("{} s", answer.uptime_seconds));
    let mut listeners = table(&["listener", "address", "connections", "accepted"]);
    for listener in &answer.listeners {
        let (connections, accepted) = (listener.connections.to_string(), listener.accepted.to_string());
        listeners.add_row([&listener.name, &listener.address, &connections, &accepted]);
    }
    format!("{page}\n{listeners}\n")
}

/// What an operator should look at, the most urgent first.
fn problems(answer: &Status) -> Vec<String> {
    let mut found = Vec::new();
    if !answer.ready {
        found.push("not ready: it takes no traffic of a load balancer that asks /healthz/ready".to_owned());
    }
    if let Some(agent) = &answer.agent {
        if !agent.connected {
            let why = agent.error.as_deref().unwrap_or("not connected yet");
            found.push(format!("agent unreachable, keeping the last tables: {why}"));
        }
        found.extend(agent.refusal.as_ref().map(|why| format!("slice refused: {why}")));
    }
    for listener in &answer.listeners {
        let each = listener.not_open.iter();
        found.extend(
            each.map(|one| format!("listener {} is not open at {}: {}", listener.name, one.address, one.why)),
        );
    }
    for conflict in &answer.bindings.conflicts {
        found.push(format!("{conflict} is claimed by several hosts and leads to none of them"));
    }
    if let Some(edit) = &answer.last_refused_edit {
        // Its problems were lines before the answer was escaped.
        let why = edit.why.replace("\\n", "\n    ");
        found.push(format!("the last edit of the configuration was refused: {why}"));
    }
    found.extend(answer.trust.as_ref().map(of_trust).unwrap_or_default());
    if let Some(StoreHealth { usable, problem, damage, .. }) = &answer.state {
        if !usable {
            found.push(format!("state is not persisted: {}", problem.as_deref().unwrap_or_default()));
        }
        found.extend(damage.as_ref().map(|why| format!("state was damaged: {why}")));
    }
    found.extend(of_endpoints(&answer.endpoint_health));
    found.extend(of_matrix(&answer.matrix));
    if answer.endpoints_failing > 0 {
        found.push(format!("{} endpoints are failing; `services` names them", answer.endpoints_failing));
    }
    for AbortedPart { service, part } in &answer.split_aborts {
        found.push(format!("{service}: {part} was taken out of the split: too many of its connections failed; mend it, then edit the split"));
    }
    if answer.access_log_dropped > 0 {
        let count = answer.access_log_dropped;
        found.push(format!("{count} lines of the access log were dropped: nothing reads it fast enough"));
    }
    found
}

fn of_endpoints(health: &EndpointHealth) -> Vec<String> {
    let each = health.listed.iter().map(|one| {
        let cluster = one.cluster.as_ref().map(|cluster| format!(" (cluster {cluster})")).unwrap_or_default();
        format!(
            "{}: endpoint {}{cluster} is unhealthy since {}: {}",
            one.service, one.address, one.since, one.why
        )
    });
    let mut found: Vec<_> = each.collect();
    let more = health.unhealthy.saturating_sub(health.listed.len() as u64);
    if more > 0 {
        found.push(format!("{more} more endpoints are unhealthy; `services` shows them"));
    }
    if health.stretch >= 2.0 {
        let (stretch, probed) = (health.stretch, health.probed);
        found.push(format!(
            "{probed} endpoints are probed, too many for 500 probes a second: intervals are {stretch:.0} times as long as configured"
        ));
    }
    found
}

fn of_matrix(matrix: &Matrix) -> Vec<String> {
    let Matrix { rows, cut_off_since, left_out } = matrix;
    let cut_off = cut_off_since.map(|_| {
        "cut off: no gateway of another cluster answers; the last good addresses stay in use".to_owned()
    });
    let down = rows.iter().filter(|row| row.state == State::Down).map(|row| {
        let Row { cluster, address, why, .. } = row;
        format!("gateway {address} of cluster {cluster} is down: {}", or_dash(why.as_ref()))
    });
    let left_out = (*left_out > 0).then(|| {
        format!("{left_out} gateway addresses of other clusters are not probed: there are too many")
    });
    cut_off.into_iter().chain(down).chain(left_out).collect()
}

fn of_trust(trust: &Trust) -> Vec<String> {
    match trust {
        Trust::Awaited(awaited) => {
            awaited.problem.iter().map(|why| format!("no certificate yet: {why}")).collect()
        }
        Trust::Loaded(trust) => {
            let renewal = trust.renewal.iter().flat_map(|renewal| &renewal.problem);
            let renewal = renewal.map(|why| format!("certificate not renewed: {why}"));
            let issued = trust.issued.iter().filter_map(|issued| {
                let state = if issued.not_after.is_some() {
                    "not renewed"
                } else {
                    "missing; its connections are refused"
                };
                let why = issued
                    .problem
                    .as_deref()
                    .or(issued.not_after.is_none().then_some("not requested yet"))?;
                Some(format!("certificate of {} {state}: {why}", issued.identity))
            });
            let renewal = renewal.chain(issued);
            renewal.chain(trust.refused.iter().map(|file| format!("trust file refused: {file}"))).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use isthmus_model::admin::Answer;
    use serde_json::{Value, json};

    use super::*;

    fn page(answer: &Value) -> String {
        status(&Answer::parse(answer.to_string().as_bytes()).unwrap().page().unwrap())
    }

    #[test]
    fn status_page_names_problems_first() {
        let good = json!({
            "version": "0.1.0", "node": { "id": "gw-1", "cluster": "east", "network": "east-net" },
            "phase": "serving", "ready": true, "agent": { "connected": true, "agent": "a:1" },
            "listeners": [{ "name": "east-west", "address": "0.0.0.0:15443", "connections": 3, "accepted": 9 }],
        });
        let text = page(&good);
        assert!(text.contains("No problems.") && text.contains("east-west"), "{text}");
        let mut bad = good;
        bad["agent"] = json!({ "connected": false, "error": "connection refused\u{1b}[31m" });
        bad["state"] = json!({ "store": "tables", "usable": false, "problem": "disk full" });
        bad["trust"] = json!({ "identity": null, "problem": "token used" });
        bad["ready"] = json!(false);
        bad["listeners"][0]["not_open"] = json!([{ "address": "10.0.0.1:20001", "why": "in use" }]);
        bad["bindings"] = json!({ "hosts": 2, "conflicts": ["240.15.0.7"] });
        let unhealthy = json!({
            "service": "db.example:3306", "address": "10.9.0.1:15443", "cluster": "west",
            "since": "2026-12-01T00:00:00Z", "why": "tls probe: not_served",
        });
        bad["endpoint_health"] =
            json!({ "probed": 9000, "stretch": 6.1, "unhealthy": 3, "listed": [unhealthy] });
        let text = page(&bad);
        assert!(!text.contains('\u{1b}'), "{text}");
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what} is not in {text}"));
        let problems = [
            "not ready",
            "agent unreachable",
            "no certificate yet: token used",
            "state is not persisted: disk full",
            "listener east-west is not open at 10.0.0.1:20001: in use",
            "240.15.0.7 is claimed by several hosts",
            "db.example:3306: endpoint 10.9.0.1:15443 (cluster west) is unhealthy since 2026-12-01T00:00:00Z: tls probe: not_served",
            "2 more endpoints are unhealthy",
            "9000 endpoints are probed, too many for 500 probes a second: intervals are 6 times as long",
        ];
        for problem in problems {
            assert!(at("PROBLEMS") < at(problem) && at(problem) < at("phase"), "{text}");
        }
    }
}
