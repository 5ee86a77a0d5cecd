//! `isthmus-bench hairpin` as a process: with links of equal delay the direct path takes half of the detour's
//! time and keeps the client's identity, and Ctrl-C leaves nothing behind. Requires root, for namespaces and
//! TUN devices, and HAProxy.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use isthmus_tests::lock::alone;
use isthmus_tests::{binary, figure, is_root, skip};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The missing requirement, if any.
fn missing() -> Option<&'static str> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = folders.map(|folder| folder.join("haproxy")).any(|file| file.is_file());
    if !is_root() {
        Some("namespaces require root")
    } else if !Path::new("/dev/net/tun").exists() {
        Some("there is no /dev/net/tun")
    } else if env::var_os("ISTHMUS_HAPROXY").is_none() && !found {
        Some("there is no HAProxy")
    } else {
        None
    }
}

fn hairpin(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary::bench());
    command.args(["hairpin", "--gateway"]).arg(binary::gateway()).args(arguments);
    command.stdin(Stdio::null());
    command
}

/// Delay dominates: a link's round trip takes 40 ms, all computation a few. The bound therefore tests the
/// number of link crossings.
#[test]
fn hairpin_direct_path_halves_latency_and_keeps_client_identity() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("hairpin.json");
    let output = hairpin(&["--delay", "20ms", "--rounds", "3", "--size", "256KiB", "--json"])
        .arg(&file)
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    assert!(stdout.contains("of the round trip and") && stderr.contains("1 of 6"), "{stdout}\n{stderr}");

    let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(report["equal_legs"], true);
    let figure = |key: &str| {
        let figures = report["figures"].as_array().unwrap();
        figures.iter().find(|figure| figure["key"] == key).unwrap()
    };
    for (key, crossings) in [("round_trip", 1.0), ("first_byte", 3.0)] {
        let (ratio, least) = (&figure(key)["ratio"], crossings * 40.0);
        figure!("{key}: direct/hairpin {ratio}");
        assert!(ratio.as_f64().unwrap() <= 0.55, "{stdout}");
        assert!(
            figure(key)["direct"]["min"].as_f64().unwrap() >= least,
            "faster than the links allow: {stdout}"
        );
        assert!(figure(key)["hairpin"]["min"].as_f64().unwrap() >= 2.0 * least, "{stdout}");
    }
    for key in ["cpu_connection_ingress", "cpu_gb_ingress"] {
        assert!(figure(key)["hairpin"]["min"].as_f64().unwrap() > 0.0, "{stdout}");
    }

    let client = report["client_id"].as_str().unwrap();
    assert!(client.starts_with("spiffe://"), "{client}");
    assert_eq!(report["direct"]["service_saw"], client);
    assert_ne!(report["hairpin"]["service_saw"], client);
    assert_eq!(report["hairpin"]["service_saw"], report["hairpin"]["client_saw"], "the ingress, to both");
}

#[test]
fn hairpin_ctrl_c_stops_all_children() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut bench =
        hairpin(&["--rounds", "1000"]).env("TMPDIR", folder.path()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(bench.stderr.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.starts_with("1 of 2000"), "{first}");
    let children = children_of(bench.id());
    assert_eq!(children.len(), 2, "the gateway and the ingress");
    assert!(fs::read_dir(folder.path()).unwrap().count() > 0, "no files of the gateway and the ingress");

    kill_process(Pid::from_child(&bench), Signal::INT).unwrap();
    assert_eq!(bench.wait().unwrap().code(), Some(1));
    let stderr: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(stderr.last().unwrap().contains("stopped by a signal"), "{stderr:?}");
    for child in children {
        assert!(!Path::new("/proc").join(&child).exists(), "{child} is left");
    }
    let left: Vec<PathBuf> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn hairpin_names_missing_requirement_and_remedy() {
    let output = Command::new(binary::bench()).args(["hairpin", "--gateway", "/no/such"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("/no/such") && stderr.contains("--gateway"), "{stderr}");
    let output = hairpin(&["--west-east", "delay=20"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("'20' is not a duration; write"), "{stderr}");
}

fn children_of(pid: u32) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads
        .map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap())
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect()
}
