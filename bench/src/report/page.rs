//! Renders a report as one self-contained HTML page without scripts, fonts or requests.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::digest::{Line, date, heading, lines, named, short, slug, spread};
use super::{CaseReport, FigureReport, Report, Row, svg};

const CSS: &str = include_str!("page.css");

/// Renders the HTML page.
pub(super) fn render(report: &Report) -> String {
    let title = "isthmus-bench: Isthmus compared with other proxies";
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(CSS)) (PreEscaped(svg::STYLE)) }
            }
            body {
                h1 { (title) }
                (setting(report))
                (summary(report))
                (how_to_read())
                @for scenario in scenarios(report) {
                    h2 id=(anchor(scenario)) { (scenario) }
                    @for (name, case) in named(report).iter().filter(|(_, case)| case.scenario == scenario) {
                        (section(name, case))
                    }
                }
            }
        }
    };
    page.into_string()
}

fn setting(report: &Report) -> Markup {
    let machine = &report.machine;
    html! {
        @for warning in &report.warnings { p.note { strong { "Warning: " } (warning) } }
        @for skipped in &report.skipped { p.note { strong { "Skipped: " } (skipped.what) ": " (skipped.why) } }
        p {
            "Started " (date(report.began_unix)) " on " (machine.cpu) ", " (machine.cores) " cores, " (machine.memory_kib >> 20) " GiB, Linux " (machine.kernel) ". "
            (report.rounds) " interleaved rounds of " (report.seconds) " s, " (report.took_seconds) " s in total; "
            (format!("{:.0}", report.busy_before * 100.0)) " % of the machine was busy before the start. isthmus-bench "
            (report.bench_version) @if let Some(commit) = &report.commit { ", commit " code { (commit) } } "."
        }
        table.versions {
            @for system in &report.systems { tr { th scope="row" { (system.name) } td { (system.version) } } }
        }
        nav aria-label="Scenarios" {
            @for scenario in scenarios(report) { a href={ "#" (anchor(scenario)) } { (scenario) } " " }
        }
    }
}

fn summary(report: &Report) -> Markup {
    html! {
        div.scroll {
            table.summary {
                tr { th { "case" } th { "figure" } th { "isthmus" } th { "best peer" } th { "ratio" } th { "result" } }
                @for line in lines(report) { (summary_row(&line)) }
            }
        }
        p.soft {
            "The ratio is isthmus divided by the best peer. Even: the rounds of both overlap, or the medians are within 2 % (5 % for "
            "a single round)."
        }
    }
}

fn summary_row(line: &Line<'_>) -> Markup {
    html! {
        tr {
            td { @if line.is_headline() { a href={ "#" (line.name) } { (line.case.title) } } }
            td { (heading(line.ours)) }
            td { (spread(line.ours.summary)) }
            td { @if let Some((name, best)) = line.best { (name) " " (spread(best.summary)) } }
            td { @if let Some(ratio) = line.ratio() { "×" (short(ratio)) } }
            td { @if let Some(verdict) = line.verdict() { span class=(verdict.word()) { (verdict.word()) } } }
        }
    }
}

fn how_to_read() -> Markup {
    html! {
        details {
            summary { "How to read this" }
            p {
                "A number is the median of the rounds, ± half of the range from minimum to maximum; whiskers go "
                "from minimum to maximum. × in a chart is a system divided by isthmus. Systems are measured in turn, so that a noisy "
                "machine affects all alike; memory and routes are measured once. All have one worker and the same routes."
            }
            p {
                "Latencies are of all rounds together; a quantile is shown only if there are enough values for it. At a fixed "
                "rate they count from the due time, so that a stall is charged to every operation that it delayed. "
                "For round trips and short connections the proxy has a core to itself."
            }
            p {
                "CPU is counted twice: by /proc/stat for the whole machine, which includes other programs and samples by "
                "ticks, and exactly for load generator and proxy, which misses the kernel's own threads. If both "
                "agree within 3 % of the machine, the first is compared, otherwise the second. direct is without a proxy; ≈ "
                "marks figures within 10 % of it, or of a proxy whose worker was busy for less than 90 % of the time: there the "
                "load generator is the limit, not the system."
            }
            p {
                "In tls-ends the proxy ends or begins TLS 1.3 with AES-128-GCM, X25519, ECDSA keys on P-256 and a client "
                "certificate. The load generator speaks the other side of it and verifies nothing, and what it downloads by "
                "TLS it counts without decrypting; before that, every system has been checked by a client that does both."
            }
        }
    }
}

fn section(name: &str, case: &CaseReport) -> Markup {
    let cpu = [case.cpu_headline.as_str(), "cpu_proxy"].map(|key| svg::bars(case, key));
    let charts = [svg::bars(case, &case.headline), svg::curves(case)].into_iter().chain(cpu).flatten();
    html! {
        h3 id=(name) { (case.title) }
        div.charts { @for chart in charts { div { (chart.inline()) } } }
        @for row in &case.systems {
            @for failure in &row.failures { p.note { strong { (row.system) " failed: " } (failure) } }
        }
        details { summary { "All figures" } div.scroll { (figures(case)) } }
    }
}

fn figures(case: &CaseReport) -> Markup {
    html! {
        table {
            tr { th scope="col" { "figure" } @for row in &case.systems { th scope="col" { (row.system) } } }
            @for figure in known_figures(case) {
                tr {
                    th scope="row" { (heading(figure)) }
                    @for row in &case.systems {
                        td { @if let Some(figure) = row.figure(&figure.key) { (spread(figure.summary)) } }
                    }
                }
                @if [&case.headline, &case.cpu_headline].contains(&&figure.key) { (beside_direct(case, &figure.key)) }
            }
        }
    }
}

/// A row with the ratios to the direct connection, if it was measured.
fn beside_direct(case: &CaseReport, key: &str) -> Markup {
    let ratio = |row: &Row| row.figure(key).and_then(|figure| figure.ratio_to_direct);
    html! {
        @if case.systems.iter().any(|row| ratio(row).is_some()) {
            tr.soft {
                td { "– ÷ direct" }
                @for row in &case.systems { td { @if let Some(ratio) = ratio(row) { (short(ratio)) } } }
            }
        }
    }
}

/// The figures of all systems, in the order of first appearance.
pub(super) fn known_figures(case: &CaseReport) -> Vec<&FigureReport> {
    let mut known: Vec<&FigureReport> = Vec::new();
    for figure in case.systems.iter().flat_map(|row| &row.figures) {
        if !known.iter().any(|other| other.key == figure.key) {
            known.push(figure);
        }
    }
    known
}

/// The distinct scenarios in their order.
pub(super) fn scenarios(report: &Report) -> Vec<&str> {
    let mut scenarios: Vec<&str> = Vec::new();
    for case in &report.cases {
        if !scenarios.contains(&case.scenario.as_str()) {
            scenarios.push(&case.scenario);
        }
    }
    scenarios
}

/// The anchor of a scenario; no case has such a name.
fn anchor(scenario: &str) -> String {
    format!("{}.", slug(scenario))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::digest::tests::case;
    use crate::report::{Machine, SCHEMA, Skipped, SystemInfo, markdown};

    /// Hostile text, used for every external value.
    const HOSTILE: &str = "\"><script>alert(1)</script>|\n# [x](javascript:y)";

    fn hostile() -> Report {
        let mut hostile = case(true, &[(HOSTILE, [1.0; 3]), ("isthmus", [2.0, 1.0, 3.0])]);
        hostile.title = HOSTILE.into();
        hostile.scenario = HOSTILE.into();
        for row in &mut hostile.systems {
            row.failures.push(HOSTILE.into());
            row.figures[0].title = HOSTILE.into();
            row.figures[0].unit = HOSTILE.into();
        }
        Report {
            schema: SCHEMA.into(),
            bench_version: HOSTILE.into(),
            commit: Some(HOSTILE.into()),
            machine: Machine { cpu: HOSTILE.into(), kernel: HOSTILE.into(), ..Machine::read() },
            began_unix: 0,
            took_seconds: 0,
            rounds: 3,
            seconds: 0.4,
            busy_before: 0.0,
            warnings: vec![HOSTILE.into()],
            systems: vec![SystemInfo {
                name: HOSTILE.into(),
                version: HOSTILE.into(),
                program: HOSTILE.into(),
            }],
            skipped: vec![Skipped { what: HOSTILE.into(), why: HOSTILE.into() }],
            cases: vec![hostile],
        }
    }

    #[test]
    fn page_escapes_all_external_text() {
        let report = hostile();
        let charts = markdown::charts(&report);
        assert!(
            charts
                .iter()
                .all(|(name, _)| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b)))
        );
        let forms = charts.into_iter().map(|(_, chart)| chart);
        for form in forms.chain([render(&report), markdown::render(&report)]) {
            assert!(form.contains("alert(1)"), "it is shown: {form}");
            assert!(!form.contains("<script"), "{form}");
        }
        let text = markdown::render(&report);
        assert!(!text.contains("[x](") && !text.lines().any(|line| line.starts_with("# [")), "{text}");
    }

    #[test]
    fn page_separates_equal_case_titles_and_unordered_scenarios() {
        let mut report = hostile();
        report.cases = ["a", "b", "a"]
            .map(|scenario| {
                let mut case = case(true, &[("isthmus", [1.0; 3])]);
                case.scenario = scenario.into();
                case
            })
            .into();
        let page = render(&report);
        let ids: Vec<&str> = page.split(" id=\"").skip(1).filter_map(|part| part.split('"').next()).collect();
        assert_eq!(ids, ["a.", "a-case", "a-case-3", "b.", "a-case-2"]);
        let links = page.split("href=\"#").skip(1).filter_map(|part| part.split('"').next());
        assert!(links.clone().count() > 4 && links.clone().all(|link| ids.contains(&link)));
        let mut files: Vec<String> = markdown::charts(&report).into_iter().map(|(name, _)| name).collect();
        files.dedup();
        assert_eq!(files.len(), 6);
    }

    #[test]
    fn report_round_trips_through_json() {
        let report = hostile();
        let text = serde_json::to_string(&report).unwrap();
        let again: Report = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
        assert_eq!(render(&again), render(&report));
    }
}
