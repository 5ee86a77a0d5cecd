//! Tests the documentation: links resolve; every reason, metric, key and command is documented once; shown commands
//! exist. Facts come from the built programs, or from the sources.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tree::{code, files, root};

const GATEWAY: &str = "isthmus-gateway";
const AGENT: &str = "isthmus-agent";
const CERTS: &str = "isthmus-certs";
const BENCH: &str = "isthmus-bench";

/// Other programs that command blocks may use.
const TOOLS: &[&str] =
    &["cargo", "curl", "docker", "install", "ip", "kubectl", "mkdir", "openssl", "systemctl"];
/// Scripts of this repository.
const SCRIPTS: &[&str] = &["tests/run", ".ci/run"];
/// Maximum length of the README in bytes.
const LONGEST_README: usize = 9_000;

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns every page with its text.
fn pages() -> Vec<(PathBuf, String)> {
    let top = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path());
    let top = top.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let all = top.chain(files(&root().join("docs"), "md"));
    all.map(|path| (path.clone(), fs::read_to_string(&path).unwrap())).collect()
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// Returns the first cell of each table row, with the whole row.
fn rows(text: &str) -> Vec<(&str, &str)> {
    let rows = text.lines().map(str::trim).filter(|line| line.starts_with("| "));
    rows.filter_map(|row| Some((row.strip_prefix("| ")?.split(" | ").next()?, row))).collect()
}

/// Returns the parts of a text in backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Returns the lines of a text, each with the language of its fenced block, if any.
fn fenced(text: &str) -> Vec<(Option<&str>, &str)> {
    let mut language = None;
    let mut lines = Vec::new();
    for line in text.lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (fence, language) {
            (Some(_), Some(_)) => language = None,
            (Some(begun), None) => language = Some(begun.trim()),
            (None, _) => lines.push((language, line)),
        }
    }
    lines
}

/// Returns GitHub's anchor of a heading.
fn slug(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut times = BTreeMap::<String, usize>::new();
    let lines = fenced(text).into_iter().filter(|(language, _)| language.is_none());
    let headings = lines.filter_map(|(_, line)| {
        let rest = line.trim_start_matches('#');
        (rest.len() < line.len()).then(|| rest.strip_prefix(' ')).flatten()
    });
    headings
        .map(|heading| {
            let slug = slug(heading);
            let time = times.entry(slug.clone()).or_default();
            *time += 1;
            if *time == 1 { slug } else { format!("{slug}-{}", *time - 1) }
        })
        .collect()
}

/// Returns the link targets of a page, without code.
fn links(text: &str) -> Vec<String> {
    let lines = fenced(text).into_iter().filter(|(language, _)| language.is_none());
    let prose =
        lines.map(|(_, line)| line.split('`').step_by(2).collect::<Vec<_>>().join("")).collect::<Vec<_>>();
    let prose = prose.join("\n");
    prose.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// Returns the path of a program: beside the gateway's, or from its variable. None, with a message, if it was not
/// built.
fn program(name: &str) -> Option<PathBuf> {
    let gateway = PathBuf::from(env!("CARGO_BIN_EXE_isthmus-gateway"));
    if name == GATEWAY {
        return Some(gateway);
    }
    let variable = name.to_ascii_uppercase().replace('-', "_");
    let path = env::var_os(variable).map_or_else(|| gateway.with_file_name(name), PathBuf::from);
    if path.exists() {
        return Some(path);
    }
    assert!(env::var_os("ISTHMUS_REQUIRE_PEERS").is_none(), "{} is not built", path.display());
    eprintln!("SKIPPED: {} is not built; `cargo build --workspace` builds it", path.display());
    None
}

fn output(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{} {arguments:?}: {}", program.display(), output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Returns every command of a program with its help, including groups that are commands themselves (`bundle`).
fn commands(program: &Path, words: &[String]) -> BTreeMap<Vec<String>, String> {
    let arguments: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
    let help = output(program, &arguments);
    let below =
        help.split("\nCommands:\n").nth(1).unwrap_or_default().split("\n\n").next().unwrap_or_default();
    let lines =
        below.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    let names = lines.filter_map(|line| line.split_whitespace().next());
    let mut all = BTreeMap::new();
    for name in names.filter(|name| *name != "help") {
        all.extend(commands(program, &[words, &[name.to_owned()]].concat()));
    }
    let may_stand_alone = all.is_empty() || help.contains("[OPTIONS]\n");
    if !words.is_empty() && may_stand_alone {
        all.insert(words.to_vec(), help);
    }
    all
}

/// Returns the keys of a JSON Schema that hold a value.
fn keys(schema: &Value) -> BTreeSet<String> {
    fn walk(schema: &Value, whole: &Value, path: &str, found: &mut BTreeSet<String>) {
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let meant = whole.pointer(reference.trim_start_matches('#'));
            walk(meant.unwrap_or_else(|| panic!("{reference} does not exist")), whole, path, found);
        }
        for variants in ["anyOf", "oneOf", "allOf"] {
            for variant in schema.get(variants).and_then(Value::as_array).into_iter().flatten() {
                walk(variant, whole, path, found);
            }
        }
        if let Some(items) = schema.get("items") {
            walk(items, whole, &format!("{path}[]"), found);
        }
        for (key, value) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            found.insert(path.clone());
            walk(value, whole, &path, found);
        }
    }
    let mut found = BTreeSet::new();
    walk(schema, schema, "", &mut found);
    let is_section = |key: &String| {
        found.iter().any(|other| {
            other
                .strip_prefix(key.as_str())
                .is_some_and(|rest| rest.starts_with('.') || rest.starts_with("[]."))
        })
    };
    found.iter().filter(|key| !is_section(key)).cloned().collect()
}

/// Asserts that each name is in the first cell of exactly one table row of a page.
#[track_caller]
fn assert_documented_once(page: &str, wanted: impl IntoIterator<Item = String>) {
    let text = read(page);
    let documented: Vec<&str> = rows(&text).into_iter().flat_map(|(first, _)| quoted(first)).collect();
    let mut wrong = Vec::new();
    for one in wanted {
        match documented.iter().filter(|name| **name == one).count() {
            1 => {}
            times => wrong.push(format!("{page} has {times} rows for `{one}`")),
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Returns the words and meanings from the macro in the gateway's `reason.rs`.
fn reasons() -> Vec<(String, String)> {
    let source = files(&root().join("gateway"), "rs")
        .into_iter()
        .find(|path| path.ends_with("src/reason.rs"))
        .unwrap();
    let source = fs::read_to_string(source).unwrap();
    let table = source.split("\nreasons! {\n").nth(1).unwrap().split("\n}\n").next().unwrap();
    let mut meaning = String::new();
    let mut found = Vec::new();
    for line in table.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            meaning.push_str(text);
        } else if let Some((_, rest)) = line.split_once(" = \"") {
            let word = rest.split('"').next().unwrap().to_owned();
            found.push((word, std::mem::take(&mut meaning).trim().to_owned()));
        }
    }
    found
}

/// Returns the names of the gateway's metrics from its table: `"NAME" KIND [LABELS] "HELP"`.
fn gateway_metrics() -> BTreeSet<String> {
    let kinds = ["\" counter [", "\" gauge [", "\" histogram ["];
    let sources =
        files(&root().join("gateway"), "rs").into_iter().filter(|path| path.ends_with("metrics/collect.rs"));
    let lines = sources.map(|path| code(&fs::read_to_string(path).unwrap()).to_owned()).collect::<String>();
    let named =
        lines.lines().map(str::trim_start).filter(|line| kinds.iter().any(|kind| line.contains(kind)));
    named.filter_map(|line| Some(format!("isthmus_{}", line.strip_prefix('"')?.split('"').next()?))).collect()
}

/// Returns the names of the agent's metrics from its source.
fn agent_metrics() -> BTreeSet<String> {
    let sources = files(&root().join("xds-lite"), "rs");
    let sources = sources.into_iter().filter(|path| path.iter().any(|part| part == "src"));
    let texts = sources.map(|path| code(&fs::read_to_string(path).unwrap()).to_owned()).collect::<String>();
    let named = texts.split("\"isthmus_agent_").skip(1).filter_map(|rest| rest.split('"').next());
    let is_name = |name: &&str| name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    named.filter(is_name).map(|name| format!("isthmus_agent_{name}")).collect()
}

#[test]
fn readme_is_short() {
    let length = read("README.md").len();
    assert!(length <= LONGEST_README, "README.md has {length} bytes, over {LONGEST_README}");
}

#[test]
fn links_lead_to_files_and_headings() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (page, text) in pages() {
        for link in
            links(&text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:"))
        {
            seen += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((link.as_str(), ""));
            let target = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            if !target.exists() {
                wrong.push(format!("{}: {link}: there is no such file", relative(&page)));
            } else if !anchor.is_empty() && !anchors(&fs::read_to_string(&target).unwrap()).contains(anchor) {
                wrong.push(format!("{}: {link}: there is no such heading", relative(&page)));
            }
        }
    }
    assert!(seen > 100, "{seen} links");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn reasons_are_documented_once_with_their_meaning() {
    let reasons = reasons();
    assert!(reasons.len() > 30, "{} reasons", reasons.len());
    assert_documented_once("docs/reasons.md", reasons.iter().map(|(word, _)| word.clone()));
    let page = read("docs/reasons.md");
    for (word, meaning) in reasons {
        let (_, row) = rows(&page).into_iter().find(|(first, _)| *first == format!("`{word}`")).unwrap();
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 5, "docs/reasons.md: {row}");
        assert!(cells.contains(&meaning.as_str()), "docs/reasons.md says {row}; the code: {meaning}");
    }
}

#[test]
fn metrics_of_both_programs_are_documented_once() {
    let (gateway, agent) = (gateway_metrics(), agent_metrics());
    assert!(gateway.len() > 30 && agent.len() > 20, "{} and {}", gateway.len(), agent.len());
    let page = read("docs/metrics.md");
    let (own, others) = page.split_once("\n## Agent\n").unwrap();
    let names = |text: &str| -> Vec<String> {
        let first = rows(text).into_iter().filter(|(_, row)| row.split(" | ").count() == 4);
        let named = first.flat_map(|(first, _)| quoted(first)).map(str::to_owned);
        named.filter(|name| name.starts_with("isthmus_")).collect()
    };
    for (whose, mut documented, exported) in
        [("gateway", names(own), gateway), ("agent", names(others), agent)]
    {
        documented.sort();
        assert_eq!(documented, exported.into_iter().collect::<Vec<_>>(), "docs/metrics.md, {whose}");
    }
}

#[test]
fn gateway_keys_are_documented_once() {
    let schema = output(&program(GATEWAY).unwrap(), &["check", "--schema"]);
    let keys = keys(&serde_json::from_str(&schema).unwrap());
    assert!(keys.len() > 80, "{} keys", keys.len());
    assert_documented_once("docs/configuration.md", keys);
}

#[test]
fn agent_keys_are_documented_once() {
    let Some(agent) = program(AGENT) else { return };
    let keys = keys(&serde_json::from_str(&output(&agent, &["check", "--schema"])).unwrap());
    assert!(keys.len() > 50, "{} keys", keys.len());
    assert_documented_once("docs/agent.md", keys);
}

#[test]
fn commands_are_documented_once() {
    for name in [GATEWAY, AGENT, CERTS] {
        let Some(program) = program(name) else { continue };
        let commands = commands(&program, &[]);
        assert!(commands.len() > 7, "{name}: {commands:?}");
        let wanted = commands.keys().map(|words| format!("{name} {}", words.join(" ")));
        assert_documented_once("docs/commands.md", wanted);
    }
}

#[test]
fn shown_commands_exist() {
    let names = [GATEWAY, AGENT, CERTS, BENCH];
    let built: BTreeMap<&str, _> =
        names.into_iter().filter_map(|name| Some((name, commands(&program(name)?, &[])))).collect();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (page, text) in pages() {
        let shell = fenced(&text).into_iter().filter(|(language, _)| *language == Some("sh"));
        let lines = shell.map(|(_, line)| line.trim()).collect::<Vec<_>>().join("\n").replace("\\\n", " ");
        for command in lines.lines().flat_map(|line| without_comment(line).split(" && ")) {
            if let Err(why) = judge(command, &built) {
                wrong.push(format!("{}: {command}: {why}", relative(&page)));
            }
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} commands");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn without_comment(line: &str) -> &str {
    if line.starts_with('#') { "" } else { line.split(" # ").next().unwrap_or_default().trim() }
}

/// Checks that a line begins with a known program, one of its commands and existing options.
fn judge(line: &str, built: &BTreeMap<&str, BTreeMap<Vec<String>, String>>) -> Result<(), String> {
    let mut words = line.split_whitespace().skip_while(|word| word.ends_with('$') || *word == "sudo");
    let Some(first) = words.next() else { return Ok(()) };
    let mut words: Vec<&str> = words.collect();
    let mut name = ["target/release/", "target/dist/"]
        .iter()
        .find_map(|folder| first.strip_prefix(folder))
        .unwrap_or(first);
    if SCRIPTS.contains(&name) {
        return if root().join(name).is_file() { Ok(()) } else { Err("there is no such script".to_owned()) };
    }
    if name == "cargo" && words.first() == Some(&"run") {
        // What `cargo run` starts is the workspace's default member.
        words = words.into_iter().skip_while(|word| *word != "--").skip(1).collect();
        name = GATEWAY;
    } else if TOOLS.contains(&name) {
        return Ok(());
    }
    if ![GATEWAY, AGENT, CERTS, BENCH].contains(&name) {
        return Err(format!("{name} is no program of ours, and not in TOOLS"));
    }
    let Some(commands) = built.get(name) else { return Ok(()) };
    let of_command = |(known, _): &(&Vec<String>, &String)| {
        words.iter().zip(known.iter()).filter(|(a, b)| **a == b.as_str()).count() == known.len()
    };
    let longest = commands.iter().filter(of_command).max_by_key(|(known, _)| known.len());
    let (_, help) = longest.ok_or_else(|| format!("{name} has no such command"))?;
    let options = words.iter().filter(|word| word.starts_with("--") && word.len() > 2);
    let unknown = options.map(|word| word.split('=').next().unwrap_or(word)).find(|option| {
        !help.split(|c: char| c.is_whitespace() || c == ',' || c == '[').any(|word| word == *option)
    });
    unknown.map_or(Ok(()), |option| Err(format!("it has no option {option}")))
}

#[test]
fn runbook_has_command_cause_and_remedy_for_each_symptom() {
    let runbook = read("docs/runbook.md");
    let symptoms: Vec<&str> = runbook.split("\n### ").skip(1).collect();
    assert!(symptoms.len() >= 20, "{} symptoms", symptoms.len());
    for symptom in symptoms {
        for part in ["**Message**", "**Command**", "**Cause", "emedy**"] {
            let title = symptom.lines().next().unwrap_or_default();
            assert!(
                symptom.contains(part) || symptom.to_lowercase().contains("| remedy |"),
                "{title}: no {part}"
            );
        }
    }
}

/// Paths of sources in the text, such as `gateway/core/src/conn.rs`.
fn source_paths(text: &str) -> Vec<&str> {
    let folders = ["gateway/", "xds-lite/", "certs/", "bench/", "tests/", "docker/"];
    let is_path = |span: &&str| span.ends_with(".rs") && !span.contains([' ', '*']);
    quoted(text)
        .into_iter()
        .filter(is_path)
        .filter(|span| folders.iter().any(|top| span.starts_with(top)))
        .collect()
}

#[test]
fn source_paths_exist() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    let is_of_its_time = |page: &Path| page.components().any(|part| part.as_os_str() == "decisions");
    for (page, text) in
        pages().into_iter().filter(|(page, _)| !is_of_its_time(page) && !page.ends_with("CHANGELOG.md"))
    {
        for path in source_paths(&text) {
            seen += 1;
            if !root().join(path).exists() {
                wrong.push(format!("{}: {path}", relative(&page)));
            }
        }
    }
    assert!(seen > 50, "{seen} paths");
    assert!(wrong.is_empty(), "no such files:\n{}", wrong.join("\n"));
}

/// The crates of this repository, each with those that it uses in production, as Cargo knows them.
fn crate_graph() -> String {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut rows = BTreeSet::new();
    for package in metadata["packages"].as_array().unwrap() {
        let folder = Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned();
        let is_used = |edge: &&Value| edge["kind"].is_null() && edge["path"].is_string();
        let used = package["dependencies"].as_array().unwrap().iter().filter(is_used).map(|edge| {
            let optional = if edge["optional"] == true { " (feature `demo`)" } else { "" };
            format!("`{}`{optional}", edge["name"].as_str().unwrap())
        });
        let used = used.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
        let used = if used.is_empty() { "–".to_owned() } else { used };
        let what = package["description"].as_str().unwrap();
        rows.insert(format!(
            "| `{}` | `{}` | {what} | {used} |",
            package["name"].as_str().unwrap(),
            relative(&folder)
        ));
    }
    let rows = rows.into_iter().collect::<Vec<_>>().join("\n");
    format!("| crate | folder | what | uses |\n|---|---|---|---|\n{rows}\n")
}

/// `ISTHMUS_REGENERATE=1` writes the table again.
#[test]
fn crate_graph_is_what_cargo_says() {
    let (begin, end) = ("<!-- crates:begin -->\n", "<!-- crates:end -->");
    let page = read("docs/architecture.md");
    let (before, rest) = page.split_once(begin).unwrap();
    let (table, after) = rest.split_once(end).unwrap();
    let graph = crate_graph();
    if env::var_os("ISTHMUS_REGENERATE").is_some() {
        fs::write(root().join("docs/architecture.md"), [before, begin, &graph, end, after].concat()).unwrap();
    } else {
        assert!(
            table == graph,
            "docs/architecture.md differs from Cargo; ISTHMUS_REGENERATE=1 writes:\n{graph}"
        );
    }
}

/// What the layers forbid; Cargo refuses an edge that is not declared, and this one that is declared in haste.
#[test]
fn crates_do_not_use_what_lies_above_them() {
    let graph = crate_graph();
    let uses = |name: &str| {
        let row = graph.lines().find(|row| row.starts_with(&format!("| `{name}` |"))).unwrap();
        row.rsplit(" | ").next().unwrap().to_owned()
    };
    for (name, never) in [
        ("isthmus-core", &["isthmus-agent", "isthmus-registry"][..]),
        ("isthmus-model", &["isthmus-grpc", "isthmus-ads", "isthmus-trust"]),
        ("isthmus-ads", &["isthmus-envoy", "isthmus-trust", "isthmus-registry"]),
        ("isthmus-trust", &["isthmus-ads", "isthmus-registry"]),
        ("isthmus-registry", &["isthmus-trust", "isthmus-ads"]),
        ("isthmus-grpc", &["isthmus-ads", "isthmus-trust"]),
    ] {
        let found: Vec<_> = never.iter().filter(|other| uses(name).contains(**other)).collect();
        assert!(found.is_empty(), "{name} uses {found:?}");
    }
}
