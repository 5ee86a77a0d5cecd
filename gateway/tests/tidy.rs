//! What must stay true of the tree itself: imports go strictly downward, files say what they are for and
//! stay small, every reason and every metric is documented, and the README's commands exist.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use isthmus_gateway::reason::Reason;

/// The modules of the gateway from top to bottom. A module may use what stands in a later row, never
/// what stands in its own or an earlier one.
const LAYERS: &[&[&str]] = &[
    &["main", "cli"],
    &["demo"],
    &["gateway"],
    &["admin", "listen", "resolve", "watch"],
    &["collect", "conn"],
    &["control", "attempts", "relay"],
    &["flow", "connect", "close", "drain"],
    &["answer", "bulk", "held"],
    &["account"],
    &["pick", "peek"],
    &["route", "worker"],
    &["limits", "live"],
    &["log"],
    &["metrics"],
    &["snapshot"],
    &["endpoint"],
    &["pipe", "hello", "proxy"],
    &["reason", "socket", "turn"],
    &["config"],
];

const LONGEST_FILE: usize = 400;
const LONGEST_ON_THE_DATA_PATH: usize = 250;
const DATA_PATH: &[&str] = &[
    "listen", "conn", "attempts", "peek", "route", "pick", "connect", "relay", "close", "account", "pipe",
    "turn",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() && !entry.ends_with("target") {
            files.extend(sources(&entry));
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            files.push(entry);
        }
    }
    files.sort();
    files
}

/// What stands before the tests of a file.
fn code(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap()
}

fn rank(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|row| row.contains(&module))
        .unwrap_or_else(|| panic!("module {module} has no place in LAYERS"))
}

#[test]
fn imports_go_strictly_downward() {
    let folder = root().join("gateway/src");
    let mut wrong = Vec::new();
    for file in sources(&folder) {
        let inside = file.strip_prefix(&folder).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs").to_owned();
        let module = if inside.ends_with("collect.rs") { "collect".to_owned() } else { module };
        if module == "lib" {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in
            code(&text).lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            for used in line.split("crate::").skip(1) {
                let used: String =
                    used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if !used.is_empty() && used != module && used != "cli" && rank(&used) <= rank(&module) {
                    wrong.push(format!("{}:{}: {module} uses {used}", inside.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "upward or sideways imports:\n{}", wrong.join("\n"));
}

#[test]
fn files_open_with_their_purpose_and_stay_small() {
    let mut wrong = Vec::new();
    for file in sources(&root()) {
        let text = fs::read_to_string(&file).unwrap();
        if !text.starts_with("//!") {
            wrong.push(format!("{}: does not open with //!", file.display()));
        }
        let lines = code(&text).lines().count();
        let stem = file.file_stem().unwrap().to_str().unwrap();
        let on_path = file.parent().unwrap().ends_with("gateway/src") && DATA_PATH.contains(&stem);
        let most = if on_path { LONGEST_ON_THE_DATA_PATH } else { LONGEST_FILE };
        let is_test = stem == "tests" || file.components().any(|part| part.as_os_str() == "tests");
        if lines > most && !is_test {
            wrong.push(format!("{}: {lines} lines before its tests, over {most}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_reason_is_in_the_readme_with_its_meaning() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let rows: BTreeMap<&str, &str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .map(|(word, rest)| (word, rest.trim_end_matches(" |")))
        .collect();
    for reason in Reason::ALL {
        let row = rows.get(reason.word()).unwrap_or_else(|| panic!("README.md has no row for {reason}"));
        assert!(
            row.ends_with(reason.meaning()),
            "README.md says of {reason}: {row}; the code: {}",
            reason.meaning()
        );
    }
}

#[test]
fn every_metric_of_the_documentation_is_in_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let metrics = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let mut count = 0;
    for name in metrics.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next()) {
        assert!(readme.contains(&format!("`{name}")), "README.md does not name {name}");
        count += 1;
    }
    assert!(count > 20, "docs/metrics.md lists {count} metrics");
}

#[test]
fn the_commands_of_the_readme_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let help =
        std::process::Command::new(env!("CARGO_BIN_EXE_isthmus-gateway")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut commands = 0;
    for line in readme.lines().map(str::trim_start) {
        if let Some(rest) = line.strip_prefix("isthmus-gateway ") {
            let command = rest.split_whitespace().next().unwrap();
            assert!(help.contains(&format!("\n  {command} ")), "{command} of the README is no subcommand");
            commands += 1;
        }
        for script in ["tests/run", ".ci/run"] {
            if line.starts_with(script) {
                assert!(root().join(script).is_file(), "{script} does not exist");
            }
        }
    }
    assert!(commands > 3, "the README shows {commands} commands");
    assert!(readme.contains("cargo run --release -- demo"));
}
