//! Renders an agent's answers for people: what is wrong first, then sections and tables. `--json` prints the answer itself.

use std::fmt::{Display, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use isthmus_model::access::Verdict;
use isthmus_model::admin::StoreHealth;
use isthmus_model::admin::agent::{
    Client, Explanation, GatewayReport, MtlsResult, Names, Peer, PolicyOf, PortAccess, RegisteredEndpoint,
    RegisteredHost, Status, Upstream,
};

use isthmus_model::matrix::State;

use super::matrix::problems as of_gateway;

/// Rows of a table; the rest is counted.
const ROWS: usize = 20;

/// The page of `/status`.
#[must_use]
pub fn status(answer: &Status) -> String {
    let Status { version, cluster, network, registry, exports, imports, .. } = answer;
    let mut page = format!("isthmus-agent {version} of cluster {cluster}, network {network}\n");
    let problems = problems(answer);
    page += if problems.is_empty() { "\nNo problems.\n" } else { "\nPROBLEMS\n" };
    for problem in problems {
        let _infallible = writeln!(page, "  {problem}");
    }
    let _infallible = write!(
        page,
        "\nSERVICES\n  {} hosts in the registry, {} VMs registered, {} hosts exported, {} slices imported\n",
        registry.hosts, registry.registered, exports.count, imports.count,
    );
    let not_exported = exports.held_back.iter().map(|host| [host.host.clone(), host.why.clone()]);
    page += &section("NOT EXPORTED", ["HOST", "WHY"], not_exported);
    let quarantined = imports.held_back.iter();
    let quarantined =
        quarantined.map(|slice| [slice.cluster.clone(), slice.host.clone(), or_dash(slice.held.as_ref())]);
    page += &section("QUARANTINED", QUARANTINED, quarantined);
    let peers = answer.peers.iter().map(|(cluster, peer)| peer_row(cluster, peer));
    page += &section("PEERS", ["NAME", "CONNECTED", "ADDRESS", "SLICES", "REFUSALS", "BUNDLE"], peers);
    let clients = clients(answer).map(|(kind, client)| {
        let Client { peer, settled, refusals, refusal, .. } = client;
        [kind.to_owned(), peer.clone(), yes_or_no(*settled), refusals.to_string(), or_dash(refusal.as_ref())]
    });
    page += &section("CLIENTS", ["NAME", "PEER", "SETTLED", "REFUSALS", "REFUSAL"], clients);
    let gateways = answer.reports.gateways.iter().map(|(name, report)| {
        let GatewayReport { fresh, age_seconds, matrix, unhealthy_count, .. } = report;
        let up = matrix.iter().filter(|row| row.state == State::Up).count();
        let seen = format!("{up} of {}", matrix.len());
        [name.clone(), yes_or_no(*fresh), age_seconds.to_string(), seen, unhealthy_count.to_string()]
    });
    page += &section("REPORTS", ["GATEWAY", "FRESH", "AGE S", "GATEWAYS UP", "UNHEALTHY"], gateways);
    let stores = answer.state.stores.iter().map(|store| {
        let StoreHealth { store, usable, behind, lost_records, file, .. } = store;
        [store.clone(), yes_or_no(*usable), yes_or_no(*behind), lost_records.to_string(), file.clone()]
    });
    page += &section("STATE", ["STORE", "USABLE", "BEHIND", "LOST RECORDS", "FILE"], stores);
    page
}

const QUARANTINED: [&str; 3] = ["CLUSTER", "HOST", "QUARANTINED"];

fn peer_row(cluster: &str, peer: &Peer) -> [String; 6] {
    [
        cluster.to_owned(),
        yes_or_no(peer.connected),
        peer.address.clone(),
        or_dash(peer.offers.as_ref().map(|offers| offers.slices.used).as_ref()),
        peer.refusals.to_string(),
        or_dash(peer.bundle.taken.as_ref()),
    ]
}

fn clients(answer: &Status) -> impl Iterator<Item = (&str, &Client)> {
    answer.nodes.iter().flat_map(|(kind, clients)| clients.iter().map(move |client| (kind.as_str(), client)))
}

/// The page of `/explain`.
#[must_use]
pub fn explain(answer: &Explanation) -> String {
    let mut page = format!("host: {}\n", answer.host);
    let mut line = |name: &str, text: Option<String>| {
        if let Some(text) = text {
            let _infallible = writeln!(page, "{name}: {text}");
        }
    };
    line("named by", answer.named_by.clone().filter(|kind| kind != "host"));
    line("also the name of", (!answer.others.is_empty()).then(|| answer.others.join(", ")));
    match &answer.registry {
        Some(RegisteredHost { chosen_by_an_export, why_not, ports, .. }) => {
            line("selected by an export rule", Some(yes_or_no(*chosen_by_an_export)));
            line("not exported", why_not.clone());
            line("revision", answer.offer.as_ref().map(|offer| offer.revision.to_string()));
            let endpoints = ports.iter().flat_map(|port| {
                port.endpoints.iter().map(|RegisteredEndpoint { address, instance, mtls }| {
                    let mtls = mtls.as_ref().map(mtls_text);
                    let port = port.port.to_string();
                    [port, address.to_string(), or_dash(instance.as_ref()), or_dash(mtls.as_ref())]
                })
            });
            page += &section("ENDPOINTS", ["NAME", "ADDRESS", "INSTANCE", "MTLS"], endpoints);
        }
        None => page += "not in the registry of this cluster\n",
    }
    let access = answer.access.iter().map(|PortAccess { port, decided }| {
        let verdict = if decided.verdict == Verdict::Allowed { "allowed" } else { "denied" };
        let rule = decided.rule.as_ref().map(|rule| {
            let of = rule.of.as_ref().map(|of| format!(" {of}")).unwrap_or_default();
            format!("{}{of} rule {}", rule.scope, rule.name)
        });
        [port.to_string(), verdict.to_owned(), or_dash(rule.as_ref())]
    });
    page += &section("ACCESS OF THE CALLER", ["PORT", "VERDICT", "RULE"], access);
    let traffic = answer.traffic.iter().map(|PolicyOf { port, written, policy }| {
        let port = port.map_or_else(|| "*".to_owned(), |port| port.to_string());
        [port, or_dash(written.as_ref()), policy.clone()]
    });
    page += &section("TRAFFIC OF THIS CLUSTER'S CALLERS", ["PORT", "WRITTEN IN", "POLICY"], traffic);
    let imports = answer.imports.iter();
    let imports =
        imports.map(|slice| [slice.cluster.clone(), slice.host.clone(), or_dash(slice.held.as_ref())]);
    page += &section("OFFERED BY OTHER CLUSTERS", QUARANTINED, imports);
    if let Some(note) = &answer.note {
        let _infallible = write!(page, "\n{note}\n");
    }
    page
}

fn mtls_text(check: &MtlsResult) -> String {
    match check {
        MtlsResult::Awaited => "awaited".to_owned(),
        MtlsResult::Required => "required".to_owned(),
        MtlsResult::NotRequired(seen) => format!("not_required {seen}"),
        MtlsResult::Unreachable(why) => format!("unreachable {why}"),
    }
}

/// What an operator should look at, the most urgent first.
fn problems(answer: &Status) -> Vec<String> {
    let listed = |problems: &[String], what: &str| -> Vec<String> {
        problems.iter().map(|problem| format!("{what}: {problem}")).collect()
    };
    let mut found: Vec<_> = answer.refused_edit.iter().map(|why| format!("edit refused: {why}")).collect();
    if answer.needs_restart {
        found.push("the agent's file has changed in keys besides `traffic`: restart the agent".to_owned());
    }
    found.extend(listed(&answer.registry.problems, "registry"));
    found.extend(answer.peers.iter().flat_map(|(cluster, peer)| of_peer(cluster, peer)));
    found.extend(clients(answer).filter_map(|(kind, client)| {
        let refusal = client.refusal.as_ref()?;
        Some(format!("{kind}: {} rejects a response: {refusal}", client.peer))
    }));
    found.extend(answer.reports.gateways.iter().flat_map(|(name, report)| of_gateway(name, report)));
    for (direction, count, what) in [
        ("exports", answer.exports.held_back.len(), "not exported"),
        ("imports", answer.imports.held_back.len(), "quarantined"),
    ] {
        if count > 0 {
            found.push(format!("{direction}: {count} {what}; see below"));
        }
    }
    found.extend(answer.state.stores.iter().flat_map(of_store));
    found.extend(listed(&answer.state.problems, "state"));
    found.extend(listed(&answer.trust.refused, "trust"));
    found.extend(answer.names.iter().flat_map(of_names));
    found.extend(listed(answer.envoys.as_deref().unwrap_or_default(), "Envoys' tables"));
    found.extend(listed(answer.grpc.as_deref().unwrap_or_default(), "gRPC clients' tables"));
    found
}

fn of_peer(cluster: &str, peer: &Peer) -> Vec<String> {
    let lost =
        (!peer.connected).then(|| format!("peer {cluster}: not connected: {}", or_dash(peer.error.as_ref())));
    let refusals =
        [("slice", &peer.refusal), ("bundle", &peer.bundle.refusal), ("bundle", &peer.bundle.advice)];
    let refusals = refusals
        .into_iter()
        .filter_map(|(what, why)| Some(format!("peer {cluster}: {what}: {}", why.as_ref()?)));
    lost.into_iter().chain(refusals).collect()
}

fn of_names(names: &Names) -> Vec<String> {
    let exhausted = (names.exhausted > 0).then(|| {
        let first = names.without.first().map(String::as_str).unwrap_or_default();
        format!("names: {} addresses or ports are missing: {first}", names.exhausted)
    });
    let collisions = names.collisions.iter().map(|collision| format!("names: {collision}"));
    let unsaved = names.unsaved.iter().map(|why| format!("names: not persisted: {why}"));
    let upstreams = names.dns.iter().flat_map(|dns| &dns.upstreams);
    let upstreams = upstreams.filter_map(|Upstream { server, problem }| {
        Some(format!("dns.upstreams: {server}: {}", problem.as_ref()?))
    });
    exhausted.into_iter().chain(collisions).chain(unsaved).chain(upstreams).collect()
}

fn of_store(store: &StoreHealth) -> Vec<String> {
    let StoreHealth { store: name, usable, problem, damage, .. } = store;
    let lost = (!usable).then(|| format!("state: {name}: not persisted: {}", or_dash(problem.as_ref())));
    let damage = damage.as_ref().map(|damage| format!("state: {name}: {damage}"));
    lost.into_iter().chain(damage).collect()
}

/// A table under a title; nothing where there are no rows.
pub(super) fn section<const COLUMNS: usize>(
    title: &str,
    headings: [&str; COLUMNS],
    rows: impl Iterator<Item = [String; COLUMNS]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headings);
    let mut count = 0_usize;
    for row in rows {
        count += 1;
        if count <= ROWS {
            table.add_row(row);
        }
    }
    let more = match count.saturating_sub(ROWS) {
        0 => String::new(),
        more => format!("  and {more} more; --json lists them\n"),
    };
    if count == 0 { String::new() } else { format!("\n{title}\n{table}\n{more}") }
}

fn yes_or_no(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

/// The value, or `-` for none.
fn or_dash(value: Option<&impl Display>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use isthmus_model::admin::Answer;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn page<T: DeserializeOwned>(answer: &Value) -> T {
        Answer::parse(answer.to_string().as_bytes()).unwrap().page().unwrap()
    }

    #[test]
    fn status_page_names_problems_first() {
        let answer = json!({
            "version": "0.1.0", "cluster": "west", "network": "west-net",
            "registry": { "hosts": 3, "registered": 0, "problems": ["a.yaml:1:2: no \u{1b}[31mhost"] },
            "exports": { "count": 2, "held_back": [{ "host": "db.pxc", "why": "not_mtls: no endpoint" }] },
            "imports": { "count": 1, "held_back": [] },
            "peers": { "east": { "connected": false, "error": "connection refused", "address": "e:1", "refusals": 0 } },
            "nodes": { "gateways": [{ "peer": "spiffe://w/gw", "settled": true, "refusals": 0, "refusal": null }] },
            "names": {
                "exhausted": 2, "without": ["no place is left for a.shop"], "collisions": ["10.0.0.1 is used"],
                "dns": { "upstreams": [{ "server": "127.0.0.1:53", "problem": "no answer in time" }] },
            },
            "state": { "stores": [{ "store": "slices", "usable": false, "problem": "disk full" }], "problems": [] },
        });
        let page = status(&page(&answer));
        let at = |what: &str| page.find(what).unwrap_or_else(|| panic!("{what} is not in {page}"));
        assert!(!page.contains('\u{1b}'), "{page}");
        for problem in [
            "registry: a.yaml:1:2",
            "peer east: not connected: connection refused",
            "exports: 1 not exported",
            "names: 2 addresses or ports are missing: no place is left for a.shop",
            "names: 10.0.0.1 is used",
            "dns.upstreams: 127.0.0.1:53: no answer in time",
        ] {
            assert!(at("PROBLEMS") < at(problem) && at(problem) < at("SERVICES"), "{page}");
        }
        assert!(at("state: slices: not persisted: disk full") < at("NOT EXPORTED"), "{page}");
        assert!(at("CLIENTS") < at("spiffe://w/gw"), "{page}");
        let none = json!({ "version": "0.1.0", "cluster": "west", "network": "west-net" });
        assert!(status(&self::page(&none)).contains("No problems."));
    }

    #[test]
    fn explain_page_says_by_what_a_name_is_known() {
        let answer = json!({
            "asked": "productpage.bookinfo", "host": "productpage.bookinfo.svc.cluster.local", "named_by": "alias",
            "others": [], "registry": null, "note": "run it there",
            "imports": [{ "cluster": "east", "host": "productpage.bookinfo.svc.cluster.local", "held": "not granted" }],
        });
        let page = explain(&page(&answer));
        for part in ["named by: alias", "not in the registry", "east", "not granted", "run it there"] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
}
