//! Renders a gateway's answers for people; `status` has a page of its own. `--json` prints the answer itself.

use std::fmt::Display;
use std::io::IsTerminal;

use comfy_table::{Attribute, Cell, Color, ContentArrangement, Table, presets};
use isthmus_certs::printable::printable;
use isthmus_model::access::Verdict;
use isthmus_model::admin::WouldDecide;
use isthmus_model::admin::gateway::{
    Connection, DownEndpoint, Draining, Endpoint, Ends, Explanation, Matched, Matrix, Paged, Routes, Service,
};
use isthmus_model::matrix::Row;
use owo_colors::OwoColorize;

pub(super) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| heading(name)));
    table
}

// The style is set on the cell: escape codes in the text would shift the columns.
fn heading(name: &str) -> Cell {
    let cell = Cell::new(name.replace('_', " ").to_uppercase());
    if coloured() { cell.add_attribute(Attribute::Bold) } else { cell }
}

fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// The value, or `-` for none.
pub(super) fn or_dash(value: Option<&impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn list(items: &[String]) -> String {
    if items.is_empty() { "-".to_owned() } else { items.join(",") }
}

pub(super) fn drain(answer: &Draining) -> String {
    let state = if answer.draining { "draining" } else { "not draining" };
    format!("the gateway is {state}\n")
}

pub(super) fn routes(answer: &Routes) -> String {
    let mut table = table(&["name", "service", "alpn", "sources"]);
    for route in &answer.page.items {
        table.add_row([&route.name, &route.service, &list(&route.alpn), &list(&route.sources)]);
    }
    let mut text = format!("{table}\n{}", paging_hint(&answer.page));
    for default in &answer.defaults {
        text += &format!("listener {}: unmatched names go to {}\n", default.listener, default.service);
    }
    text
}

pub(super) fn matrix(answer: &Matrix) -> String {
    if answer.rows.is_empty() {
        return "No gateway of another cluster is in the tables.\n".to_owned();
    }
    let mut table = table(&["cluster", "gateway", "address", "class", "measured", "why"]);
    for row in &answer.rows {
        let Row { cluster, gateway, address, class, why, .. } = row;
        let (class, why) = (class.to_string(), or_dash(why.as_ref()));
        table.add_row([cluster, gateway, address, &class, &row.summary(), &why]);
    }
    let left_out = match answer.left_out {
        0 => String::new(),
        count => format!("{count} addresses are not probed: there are too many\n"),
    };
    let cut_off = answer.cut_off_since.map_or("", |_| CUT_OFF);
    format!("{cut_off}{table}\n{left_out}")
}

const CUT_OFF: &str = "No gateway of another cluster answers: this gateway seems to be cut off. The last good addresses stay in use.\n\n";

pub(super) fn connections(answer: &Paged<Connection>) -> String {
    let columns = [
        "id",
        "listener",
        "client",
        "sni",
        "service",
        "endpoint",
        "since",
        "idle_ms",
        "bytes_in",
        "bytes_out",
    ];
    let mut table = table(&columns);
    for conn in &answer.items {
        table.add_row([
            conn.id.to_string(),
            or_dash(conn.listener.as_ref()),
            conn.client.clone(),
            or_dash(conn.sni.as_ref()),
            or_dash(conn.service.as_ref()),
            or_dash(conn.endpoint.as_ref()),
            conn.since.clone(),
            conn.idle_ms.to_string(),
            conn.bytes_in.to_string(),
            conn.bytes_out.to_string(),
        ]);
    }
    format!("{table}\n{}", paging_hint(answer))
}

fn paging_hint<T>(page: &Paged<T>) -> String {
    let shown = page.items.len();
    if page.total > shown as u64 {
        format!("showing {shown} of {}; use --offset, --limit or --name for others\n", page.total)
    } else {
        String::new()
    }
}

const ENDPOINT: [&str; 7] =
    ["address", "instance", "priority", "weight", "healthy", "failures", "connections"];

pub(super) fn services(answer: &Paged<Service>) -> String {
    let mut table = table(&[&["service", "balance"], &ENDPOINT[..]].concat());
    for service in &answer.items {
        let lead = || [Cell::new(&service.service), Cell::new(service.balance)].into_iter();
        for endpoint in &service.endpoints {
            table.add_row(lead().chain(endpoint_row(endpoint)));
        }
        for name in &service.unresolved {
            table.add_row(lead().chain([Cell::new(format!("{name} does not resolve"))]));
        }
        for endpoint in &service.down {
            table.add_row(lead().chain([Cell::new(describe_down(endpoint))]));
        }
        if service.endpoints.is_empty() && service.unresolved.is_empty() {
            table.add_row(lead().chain([Cell::new("no endpoints")]));
        }
    }
    let policy = |service: &Service| format!("traffic of {}: {}\n", service.service, service.traffic);
    let policies: String =
        answer.items.iter().filter(|service| service.traffic != "default").map(policy).collect();
    format!("{table}\n{policies}{}", paging_hint(answer))
}

/// Renders an endpoint that failed its probes while the agent is unreachable.
fn describe_down(endpoint: &DownEndpoint) -> String {
    let DownEndpoint { address, since, why } = endpoint;
    format!("{address} down since {since} (stale: probe): {why}")
}

fn endpoint_row(endpoint: &Endpoint) -> [Cell; 7] {
    let healthy = match (endpoint.healthy, endpoint.demoted) {
        (false, _) if coloured() => Cell::new("unhealthy").fg(Color::Red),
        (false, _) => Cell::new("unhealthy"),
        (true, true) => Cell::new("demoted"),
        (true, false) => Cell::new("yes"),
    };
    [
        Cell::new(&endpoint.address),
        Cell::new(or_dash(endpoint.instance.as_ref())),
        Cell::new(endpoint.priority),
        Cell::new(endpoint.weight),
        healthy,
        Cell::new(endpoint.failures),
        Cell::new(endpoint.connections),
    ]
}

pub(super) fn explanation(answer: &Explanation) -> String {
    let mut text = String::new();
    let asked = answer.asked.listener.as_ref();
    let listeners = answer.listeners.as_deref().unwrap_or_default();
    if let Some(listener) = asked.filter(|_| listeners.len() > 1) {
        text += &format!("on listener {listener}:\n");
    }
    if let Some(refusal) = &answer.refusal {
        let reason = &refusal.refused;
        let reason = if coloured() { reason.red().to_string() } else { reason.clone() };
        text += &format!("refused: {reason}: {}\n", refusal.meaning);
        text += &format!("TLS alert to the client: {}\n", or_dash(refusal.alert.as_ref()));
    }
    text += &describe_ends(&answer.ends);
    if let Some(matched) = &answer.matched {
        text += &describe_match(matched);
    }
    if !answer.ends.reached_at.is_empty() {
        text += &format!("reached at: {}\n", answer.ends.reached_at.join(", "));
    }
    for other in listeners.iter().filter(|other| Some(&other.listener) != asked) {
        let outcome = match &other.refused {
            Some(reason) => format!("refused: {reason}"),
            None => format!("service: {}", or_dash(other.service.as_ref())),
        };
        text += &format!("on listener {}: {outcome}\n", other.listener);
    }
    text
}

/// Who calls, and what is decided about it.
fn describe_ends(ends: &Ends) -> String {
    let decision = ends.decision.as_ref();
    let dry_run = decision.iter().flat_map(|decision| &decision.dry_run).map(|would| {
        let WouldDecide { verdict, rule } = would;
        let would = if *verdict == Verdict::Denied { "deny" } else { "allow" };
        ("dry run", format!("{} rule {} would {would}", rule.scope, rule.name))
    });
    let mut lines = vec![
        ("caller", ends.caller.clone()),
        ("server", ends.expects.as_ref().map(|expected| expected.join(" or "))),
        ("access", ends.access.clone().or_else(|| decision?.cause.clone())),
    ];
    lines.extend(dry_run.map(|(name, text)| (name, Some(text))));
    let lines = lines.into_iter().filter_map(|(name, text)| Some(format!("{name}: {}\n", printable(&text?))));
    lines.collect()
}

fn describe_match(matched: &Matched) -> String {
    let mut text = format!("service: {} ({})\n", matched.service, matched.balance);
    text += &format!("traffic: {}\n", matched.traffic);
    for part in &matched.split {
        let aborted = if part.aborted { ": taken out, too many of its connections failed" } else { "" };
        text += &format!("split: {} (weight {}){aborted}\n", part.to, part.weight);
    }
    if matched.priorities.len() > 1 || matched.priorities.iter().any(|priority| priority.health < 100) {
        let mut table = table(&["part", "priority", "endpoints", "health %", "share %", "panic"]);
        for priority in &matched.priorities {
            table.add_row([
                or_dash(priority.part.as_ref()),
                priority.priority.to_string(),
                priority.endpoints.to_string(),
                priority.health.to_string(),
                priority.share.to_string(),
                if priority.panic { "yes" } else { "no" }.to_owned(),
            ]);
        }
        text += &format!("priorities, the nearest first:\n{table}\n");
    }
    if !matched.endpoints.is_empty() {
        let mut table = table(&ENDPOINT);
        for endpoint in &matched.endpoints {
            table.add_row(endpoint_row(endpoint));
        }
        text += &format!("endpoints in the order they would be tried:\n{table}\n");
    }
    for endpoint in &matched.down {
        text += &format!("not used: {}\n", describe_down(endpoint));
    }
    text
}
