//! `isthmus-bench compare` as a process: a quick comparison with all installed peers writes a table, JSON and
//! a page and names missing peers; Ctrl-C leaves nothing running.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use isthmus_tests::lock::alone;
use isthmus_tests::wait::until;
use isthmus_tests::{binary, figure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PEERS: [&str; 4] = ["haproxy", "nginx", "envoy", "traefik"];

fn compare(out: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary::bench());
    command.arg("compare").arg("--gateway").arg(binary::gateway()).arg("--out").arg(out);
    // tests/run installs peers without a Debian package there.
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    command.args(arguments).stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

#[test]
fn compare_quick_measures_every_scenario_of_every_system() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let output = compare(folder.path(), &["--quick", "--seconds", "0.1"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let report: Value =
        serde_json::from_slice(&fs::read(folder.path().join("report.json")).unwrap()).unwrap();
    let names = |list: &Value, key: &str| -> BTreeSet<String> {
        list.as_array().unwrap().iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
    };
    let took_part = names(&report["systems"], "name");
    let skipped = names(&report["skipped"], "what");
    assert!(took_part.contains("direct") && took_part.contains("isthmus"), "{took_part:?}");
    for peer in PEERS {
        assert!(took_part.contains(peer) || skipped.contains(peer), "{peer} is neither measured nor named");
        let demanded = std::env::var("ISTHMUS_REQUIRE_PEERS").as_deref() == Ok("1");
        assert!(took_part.contains(peer) || !demanded, "{peer} is required, but: {stderr}");
    }
    let scenarios = names(&report["cases"], "scenario");
    let all =
        ["bulk", "churn", "failover", "idle", "mixed", "pingpong", "routes", "short", "tls", "tls-ends"]
            .map(String::from);
    assert_eq!(scenarios, all.into());
    for case in report["cases"].as_array().unwrap() {
        let measured = names(&case["systems"], "system");
        let left_out = |name: &str| match case["scenario"].as_str() {
            Some("tls-ends") => name == "traefik",
            Some("failover") => ["nginx", "traefik"].contains(&name),
            _ => false,
        };
        let proxies = took_part.iter().filter(|name| *name != "direct" && !left_out(name));
        assert!(proxies.clone().all(|name| measured.contains(name)), "{}: {measured:?}", case["title"]);
        for row in case["systems"].as_array().unwrap() {
            let headline = |figure: &&Value| figure["key"] == case["headline"];
            let value = row["figures"].as_array().unwrap().iter().find(headline).unwrap();
            assert!(value["median"].as_f64().unwrap() > 0.0, "{}: {row}", case["title"]);
        }
    }
    assert!(!took_part.contains("traefik") || skipped.contains("traefik, tls-ends"), "{skipped:?}");
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("<svg") && took_part.iter().all(|name| page.contains(name)));
    figure!(
        "{} cases with {} systems in {} s",
        report["cases"].as_array().unwrap().len(),
        took_part.len(),
        report["took_seconds"]
    );
}

#[test]
fn compare_reports_usage_errors_before_measuring() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = |arguments: &[&str]| {
        let output = compare(folder.path(), arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let unknown = refusal(&["--peers", "nginx,no-such-place"]);
    assert!(unknown.contains("no-such-place") && unknown.contains("traefik"), "{unknown}");
    for seconds in ["0", "-1", "NaN", "1e9", "soon"] {
        let stderr = refusal(&[&format!("--seconds={seconds}")]);
        assert!(stderr.contains("between 0.01 and 60"), "{stderr}");
    }
    let mut without = Command::new(binary::bench());
    without.args(["compare", "--gateway", "/no/such/gateway", "--out"]).arg(folder.path());
    let output = without.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("/no/such/gateway") && stderr.contains("cargo build --release"), "{stderr}");
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none(), "files were written");
}

#[test]
fn compare_ctrl_c_stops_children_and_reports_partial_results() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--scenarios", "pingpong", "--peers", "haproxy", "--rounds", "99"];
    let mut child = compare(folder.path(), &arguments).spawn().unwrap();
    let mut progress = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    // At the first step all systems have been started.
    progress.find(|line| line.starts_with("1 of ")).unwrap();
    let family = descendants(child.id());
    assert!(!family.is_empty());
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let _rest: Vec<String> = progress.collect();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    until("all started processes are gone", || {
        family.iter().all(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z")
        })
    });
    let report: Value =
        serde_json::from_slice(&fs::read(folder.path().join("report.json")).unwrap()).unwrap();
    assert!(report["warnings"].to_string().contains("interrupted"), "{}", report["warnings"]);
}

fn descendants(root: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{root}/task")).unwrap();
    let lists =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    let children: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    children.iter().flat_map(|child| [vec![*child], descendants(*child)].concat()).collect()
}
